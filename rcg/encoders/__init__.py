"""Representation encoders: from images to the standardised vectors that RCG generates (section 2.1)."""

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcg.errors import UserError
from rcg.torch_weights import Rule

Array = jax.Array
# architecture["arch"] -> module with `build`, `rules`, `architecture_of` and `unwrap`
ARCHS = {name: f"rcg.encoders.{name}" for name in ("moco_v3", "dino", "deit")}
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _network(architecture: Mapping[str, Any]) -> ModuleType:
    arch = architecture.get("arch")
    if arch not in ARCHS:
        raise UserError(f'encoder arch "{arch}" is unknown; there are: {", ".join(ARCHS)}')
    return importlib.import_module(ARCHS[arch])


def build(architecture: Mapping[str, Any], **options) -> nn.Module:
    """The encoder module of an architecture; `options` say how to run it (`compute_options`).

    Raises:
      UserError: an unknown arch, or sizes that do not fit each other.
    """
    return _network(architecture).build(architecture, **options)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The table of published names of an architecture."""
    return _network(architecture).rules(architecture)


def unwrap(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A pre-training checkpoint's arrays of the encoder alone, under the names `rules` know."""
    return importlib.import_module(ARCHS[_recognise(arrays)]).unwrap(arrays)


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the encoder whose arrays, after `unwrap`, these are."""
    return importlib.import_module(ARCHS[_recognise(arrays)]).architecture_of(arrays)


def _recognise(arrays: Mapping[str, Any]) -> str:
    """The name in ARCHS of what published these arrays, told by the head."""
    if any(name.endswith("head.0.weight") for name in arrays):
        return "moco_v3"
    return "dino" if any(name.endswith("head.mlp.0.weight") for name in arrays) else "deit"


def represent(module: nn.Module, variables: Mapping[str, Any], images: Array) -> Array:
    """[B, H, W, 3] in [0, 1] -> representations [B, C], float32: zero mean, unit (unbiased) std each."""
    r = module.apply(variables, preprocess(images, module.image_size)).astype(jnp.float32)
    r = r - r.mean(-1, keepdims=True)
    return r / r.std(-1, ddof=1, keepdims=True)


def features(module: nn.Module, variables: Mapping[str, Any], images: Array) -> Array:
    """[B, H, W, 3] in [0, 1] -> class tokens after the last LayerNorm [B, dim], float32."""
    return module.apply(variables, preprocess(images, module.image_size), method="features")


def normalise(images: Array) -> Array:
    """[..., 3] in [0, 1] -> ImageNet's mean 0 and std 1, float32."""
    return (images.astype(jnp.float32) - IMAGENET_MEAN) / IMAGENET_STD


def preprocess(images: Array, size: int) -> Array:
    """Normalises, then resizes to size x size, in the published order."""
    return resize_bicubic(normalise(images), size)


def resize_bicubic(images: Array, size: int) -> Array:
    """torch's bicubic `interpolate`: [B, H, W, C] -> [B, size, size, C], float32.

    a = -0.75, half-pixel centres, no antialiasing, taps clamped to the edge. JAX's own "cubic" has
    a = -0.5 and antialiases.
    """
    _, H, W, _ = images.shape
    if (H, W) == (size, size):
        return images
    rows, cols = _bicubic_matrix(H, size), _bicubic_matrix(W, size)
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("hH,bHWc->bhWc", rows, images, precision=exact)
    return jnp.einsum("wW,bhWc->bhwc", cols, x, precision=exact)


@functools.cache
def _bicubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """[n_out, n_in]: the weights of each output sample."""
    a = -0.75
    # positions in float32, as torch has them: rounding them otherwise costs 1e-5 at 256 -> 224
    at = np.float32(n_in / n_out) * (np.arange(n_out, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(at).astype(int)
    matrix = np.zeros((n_out, n_in))
    for tap in (-1, 0, 1, 2):
        d = np.abs(at - (first + tap))
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        index = np.clip(first + tap, 0, n_in - 1)
        np.add.at(matrix, (np.arange(n_out), index), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)
