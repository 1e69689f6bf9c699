"""FID-Inception: the Inception v3 of 2015 whose pooled features FID compares (Heusel et al. 2017).

The network of TensorFlow's frozen graph as PyTorch files carry it (`pt_inception-2015-12-05-6726825d.pth`),
with its deviations from the paper's Inception v3: average pools that leave their padding out, a max pool in
the last block, 1008 logits, and TensorFlow 1's bilinear resize. Evaluation only.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcg.layers import Array, Dtype
from rcg.torch_weights import Rule, conv

SIZE = 299
FEATURES, LOGITS = 2048, 1008
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")  # besides those of stride 2
COUNTER = ".num_batches_tracked"  # some files have torch's counters of training steps


class Unit(nn.Module):
    """Convolution, BatchNorm with fixed statistics (eps 0.001), ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        sizes = dict(kernel_size=self.kernel, strides=self.stride, padding=self.padding)
        x = nn.Conv(self.features, **sizes, use_bias=False, dtype=self.dtype, name="conv")(x)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, dtype=jnp.float32, name="bn")
        return nn.relu(norm(x)).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Units:
    """Makes the units of one block of the network, whose names begin with `prefix`."""

    dtype: Dtype
    prefix: str = ""

    def __call__(self, x: Array, name: str, features: int, kernel: Any = 1, stride: int = 1) -> Array:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = "VALID" if stride == 2 or name in UNPADDED else "SAME"
        return Unit(features, kernel, stride, padding, self.dtype, name=self.prefix + name)(x)

    def chain(self, x: Array, name: str, *layers: tuple) -> Array:
        """Layers (suffix, features, kernel, stride) one after another."""
        for suffix, *sizes in layers:
            x = self(x, name + suffix, *sizes)
        return x

    def fork(self, x: Array, name: str, features: int) -> list[Array]:
        """A row and a column beside each other."""
        return [self(x, f"{name}a", features, (1, 3)), self(x, f"{name}b", features, (3, 1))]


def _join(*parts: Array) -> Array:
    return jnp.concatenate(parts, -1)


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


class Inception(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """[B, H, W, 3], 0..255 -> (pooled features [B, 2048], logits without bias [B, 1008]), float32.

        FID compares the features; Inception Score takes these logits, as TensorFlow's code did.
        """
        shrink = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
        x = (resize(images, SIZE) - 128) / 128
        x, unit = x.astype(self.dtype), Units(self.dtype)
        x = unit(x, "Conv2d_1a_3x3", 32, 3, 2)
        x = unit(x, "Conv2d_2a_3x3", 32, 3)
        x = shrink(unit(x, "Conv2d_2b_3x3", 64, 3))
        x = unit(x, "Conv2d_3b_1x1", 80)
        x = shrink(unit(x, "Conv2d_4a_3x3", 192, 3))  # [B, 35, 35, 192]
        for name, pooled in (("Mixed_5b.", 32), ("Mixed_5c.", 64), ("Mixed_5d.", 64)):
            unit = Units(self.dtype, name)
            x = _join(
                unit(x, "branch1x1", 64),
                unit.chain(x, "branch5x5", ("_1", 48), ("_2", 64, 5)),
                unit.chain(x, "branch3x3dbl", ("_1", 64), ("_2", 96, 3), ("_3", 96, 3)),
                unit(_average(x), "branch_pool", pooled),
            )
        unit = Units(self.dtype, "Mixed_6a.")
        x = _join(
            unit(x, "branch3x3", 384, 3, 2),
            unit.chain(x, "branch3x3dbl", ("_1", 64), ("_2", 96, 3), ("_3", 96, 3, 2)),
            shrink(x),
        )  # [B, 17, 17, 768]
        row, column = (1, 7), (7, 1)
        for name, c in (("Mixed_6b.", 128), ("Mixed_6c.", 160), ("Mixed_6d.", 160), ("Mixed_6e.", 192)):
            unit = Units(self.dtype, name)
            there_and_back = (("_2", c, column), ("_3", c, row), ("_4", c, column), ("_5", 192, row))
            x = _join(
                unit(x, "branch1x1", 192),
                unit.chain(x, "branch7x7", ("_1", c), ("_2", c, row), ("_3", 192, column)),
                unit.chain(x, "branch7x7dbl", ("_1", c), *there_and_back),
                unit(_average(x), "branch_pool", 192),
            )
        unit = Units(self.dtype, "Mixed_7a.")
        x = _join(
            unit.chain(x, "branch3x3", ("_1", 192), ("_2", 320, 3, 2)),
            unit.chain(
                x, "branch7x7x3", ("_1", 192), ("_2", 192, row), ("_3", 192, column), ("_4", 192, 3, 2)
            ),
            shrink(x),
        )  # [B, 8, 8, 1280]
        pools = {
            "Mixed_7b.": _average,
            "Mixed_7c.": functools.partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME"),
        }
        for name, pool in pools.items():
            unit = Units(self.dtype, name)
            x = _join(
                unit(x, "branch1x1", 320),
                *unit.fork(unit(x, "branch3x3_1", 384), "branch3x3_2", 384),
                *unit.fork(unit.chain(x, "branch3x3dbl", ("_1", 448), ("_2", 384, 3)), "branch3x3dbl_3", 384),
                unit(pool(x), "branch_pool", 192),
            )
        pooled = x.astype(jnp.float32).mean((1, 2))
        weight = self.param("fc_kernel", nn.initializers.lecun_normal(), (FEATURES, LOGITS))
        self.param("fc_bias", nn.initializers.zeros, (LOGITS,))  # in the file, of no use to the score
        return pooled, pooled @ weight.astype(jnp.float32)


def resize(images: Array, size: int) -> Array:
    """TensorFlow 1's bilinear resize, align_corners=False: [B, H, W, C] -> float32 [B, size, size, C]."""
    x = images.astype(jnp.float32)
    _, H, W, _ = x.shape
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("wW,bHWc->bHwc", _bilinear_matrix(W, size), x, precision=exact)
    return jnp.einsum("hH,bHwc->bhwc", _bilinear_matrix(H, size), x, precision=exact)


@functools.cache
def _bilinear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """[n_out, n_in]: weights of each output sample; sample i lies at i * n_in / n_out."""
    at = np.arange(n_out, dtype=np.float32) * np.float32(n_in / n_out)
    first = np.floor(at).astype(int)
    part = at - first
    matrix = np.zeros((n_out, n_in), np.float32)
    np.add.at(matrix, (np.arange(n_out), first), 1 - part)
    np.add.at(matrix, (np.arange(n_out), np.minimum(first + 1, n_in - 1)), part)
    return matrix


def build(architecture: Mapping[str, Any], *, dtype: Dtype = jnp.float32, **unused: Any) -> Inception:
    """The module; there is one architecture only."""
    del unused
    return Inception(**architecture, dtype=dtype)


@functools.cache
def _units() -> tuple[str, ...]:
    image = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    return tuple(shapes["batch_stats"])


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of the PyTorch files."""
    del architecture
    table = [Rule("params/fc_kernel", "fc.weight", "linear"), Rule("params/fc_bias", "fc.bias")]
    for name in _units():
        table += conv(f"params/{name}/conv", f"{name}.conv", bias=False)
        table += [
            Rule(f"params/{name}/bn/{a}", f"{name}.bn.{b}") for a, b in (("scale", "weight"), ("bias",) * 2)
        ]
        stats = (("mean", "running_mean"), ("var", "running_var"))
        table += [Rule(f"batch_stats/{name}/bn/{a}", f"{name}.bn.{b}") for a, b in stats]
    return table


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing varies; raises KeyError if these are of another network."""
    arrays["Mixed_7c.branch_pool.conv.weight"]
    return {}
