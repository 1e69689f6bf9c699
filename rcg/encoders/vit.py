"""The Vision Transformer of all encoders here, and the heads that make its class token a representation.

Pre-LN blocks, eps 1e-6, class token (RCG section 2.2 of the reference; Dosovitskiy et al. 2021), and one
option: a convolutional stem (Xiao et al. 2021, "Early convolutions help transformers see better"), which
learns faster on small images. The position table is a parameter, because the published files store it,
and it is not trained here.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcg.errors import UserError
from rcg.layers import Array, Block, Dtype, Stack, gelu, layer_norm, sincos_2d, torch_linear_init
from rcg.torch_weights import Rule, conv, count_blocks, dense, norm

HEADS = ("batch_norm", "gelu", "none")
# (dim, depth, heads): the published encoders
VARIANTS = {"small": (384, 12, 12), "base": (768, 12, 12), "large": (1024, 24, 16)}
HEADS_OF_64 = {dim: dim // 64 for dim in (192, 384, 768, 1024)}  # num_heads by width, of most published ViTs


class BatchNorm(nn.Module):
    """torch's BatchNorm over all axes but the last, statistics in float32.

    Normalises by the biased variance and keeps a running unbiased one. The batch is the global one, on
    any mesh. `count` is torch's num_batches_tracked.
    """

    affine: bool = True
    dtype: Dtype = jnp.float32
    momentum: float = 0.1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[..., C] -> [..., C]; with `train`, by the batch's statistics, updating the running ones."""
        C = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (C,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (C,), jnp.float32)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        x = x.astype(jnp.float32)
        if train:
            n = x.size // C
            axes = tuple(range(x.ndim - 1))
            m, v = x.mean(axes), x.var(axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                mean.value += self.momentum * (m - mean.value)
                var.value += self.momentum * (v * n / max(n - 1, 1) - var.value)
                count.value += 1
        else:
            m, v = mean.value.astype(jnp.float32), var.value.astype(jnp.float32)
        y = (x - m) * jax.lax.rsqrt(v + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (C,))
            y = y * scale + self.param("bias", nn.initializers.zeros, (C,))
        return y.astype(self.dtype)


class Head(nn.Module):
    """Linear, BN, ReLU, ..., Linear, BN: no biases, the last BN without scale and bias.

    With three layers the projection head, with two the predictor. Submodules carry torch's numbers.
    """

    hidden: int
    out: int
    num_layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, D] -> [B, out], float32."""
        linear = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=torch_linear_init)
        last = 3 * (self.num_layers - 1)
        for i in range(0, last, 3):
            x = BatchNorm(dtype=self.dtype, name=str(i + 1))(linear(self.hidden, name=str(i))(x), train)
            x = nn.relu(x)
        x = linear(self.out, name=str(last))(x)
        return BatchNorm(affine=False, name=str(last + 1))(x, train)


class GeluHead(nn.Module):
    """Linear, GELU, Linear, GELU, Linear, with biases: DINO's and iBOT's head up to the bottleneck."""

    hidden: int
    out: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, D] -> [B, out], float32."""
        linear = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.truncated_normal(0.02)
        )
        x = gelu(linear(self.hidden, name="0")(x))
        x = gelu(linear(self.hidden, name="2")(x))
        return linear(self.out, name="4")(x).astype(jnp.float32)


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 with BN and ReLU, doubling their channels up to `dim`; then 1x1."""

    patch_size: int
    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, S, S, 3] -> [B, S / patch_size, S / patch_size, dim]."""
        levels = self.patch_size.bit_length() - 1
        for i in range(levels):
            channels = self.dim >> (levels - 1 - i)
            # torch's padding: "SAME" would pad a stride-2 convolution on one side only
            x = nn.Conv(channels, (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train))
        return nn.Conv(self.dim, (1, 1), dtype=self.dtype, name="proj")(x)


class Encoder(nn.Module):
    """ViT and projection head. The defaults are MoCo v3's published ViT-B's."""

    image_size: int = 224
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    stem: str = "patch"  # "conv": ConvStem
    head: str = "batch_norm"  # MoCo v3's; "gelu": DINO's and iBOT's; "none": the class token itself
    head_hidden: int = 4096
    head_out: int = 256
    dtype: Dtype = jnp.float32
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"

    @property
    def rep_dim(self) -> int:
        """Size of the representation."""
        return self.dim if self.head == "none" else self.head_out

    def setup(self):
        D, P = self.dim, self.patch_size
        if self.stem == "conv":
            self.patch_embed = ConvStem(P, D, self.dtype)
        else:
            self.patch_embed = nn.Conv(
                D, (P, P), P, dtype=self.dtype, kernel_init=_patch_init, padding="VALID"
            )
        self.cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, D))
        grid = self.image_size // P
        self.pos_embed = self.param(
            "pos_embed", lambda _: jnp.asarray(sincos_2d(D, grid, rows_first=True))[None]
        )
        block = functools.partial(
            Block,
            num_heads=self.num_heads,
            mlp_dim=int(D * self.mlp_ratio),
            attention=self.attention,
            dtype=self.dtype,
        )
        self.blocks = Stack(block, self.depth, scan=self.scan_layers, remat=self.remat)
        self.norm = layer_norm(1e-6, self.dtype, "norm")
        if self.head == "batch_norm":
            self.projection = Head(self.head_hidden, self.head_out, dtype=self.dtype, name="head")
        elif self.head == "gelu":
            self.projection = GeluHead(self.head_hidden, self.head_out, self.dtype, name="head")

    def features(self, images: Array, train: bool = False) -> Array:
        """[B, S, S, 3], normalised, S = image_size -> class token after the last LN, [B, dim], float32."""
        B, S = images.shape[:2]
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images {images.shape}, expected [B, {self.image_size}, {self.image_size}, 3]")
        x = images.astype(self.dtype)
        x = self.patch_embed(x, train) if self.stem == "conv" else self.patch_embed(x)
        x = x.reshape(B, -1, self.dim)  # [B, N, D]
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token, (B, 1, self.dim)).astype(x.dtype), x], axis=1)
        x = x + jax.lax.stop_gradient(self.pos_embed).astype(x.dtype)
        x = self.blocks(x, train=train)
        return self.norm(x[:, 0]).astype(jnp.float32)

    def __call__(self, images: Array, train: bool = False) -> Array:
        """[B, S, S, 3], normalised -> the head's output, [B, rep_dim], float32."""
        return self.project(self.features(images, train), train)

    def project(self, tokens: Array, train: bool = False) -> Array:
        """Class tokens [B, dim] -> the head's output, [B, rep_dim], float32."""
        if self.head == "none":
            return tokens
        return self.projection(tokens.astype(self.dtype), train)


def _patch_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Xavier-uniform of the patch projection seen as a Linear. shape: HWIO."""
    bound = np.sqrt(6 / (np.prod(shape[:3]) + shape[3]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> Encoder:
    """The module of an architecture: Encoder's fields; "arch" is ignored.

    Raises:
      UserError: sizes that do not fit each other.
    """
    fields = {k: v for k, v in architecture.items() if k != "arch"}
    m = Encoder(**fields, dtype=dtype, attention=attention, scan_layers=scan_layers, remat=remat)
    if m.head not in HEADS:
        raise UserError(f'encoder head "{m.head}" is not one of {", ".join(HEADS)}')
    if m.stem not in ("patch", "conv"):
        raise UserError(f'encoder stem "{m.stem}" is not one of patch, conv')
    if m.image_size % m.patch_size:
        raise UserError(f"encoder image_size {m.image_size} is not a multiple of patch_size {m.patch_size}")
    if m.dim % m.num_heads or m.dim % 4:
        raise UserError(f"encoder dim {m.dim} must be a multiple of num_heads {m.num_heads} and of 4")
    if m.stem == "conv" and (m.patch_size < 2 or m.patch_size & (m.patch_size - 1)):
        raise UserError(f"encoder stem conv needs a patch_size that is a power of two, not {m.patch_size}")
    return m


def trunk_rules(module: Encoder) -> list[Rule]:
    """Our names -> timm's, of everything but the head.

    Raises:
      UserError: for a convolutional stem, of which there is no published file.
    """
    if module.stem != "patch":
        raise UserError(f"there is no published layout for an encoder with stem {module.stem}")
    table = [Rule("params/cls_token", "cls_token"), Rule("params/pos_embed", "pos_embed")]
    table += conv("params/patch_embed", "patch_embed.proj") + norm("params/norm", "norm")
    for i in range(module.depth):
        ours, theirs = f"params/blocks/{i}", f"blocks.{i}"
        for name in ("norm1", "norm2"):
            table += norm(f"{ours}/{name}", f"{theirs}.{name}")
        for part, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")):
            table += dense(f"{ours}/{part}/{name}", f"{theirs}.{part}.{name}")
    return table


def trunk_of(arrays: Mapping[str, Any], num_heads: Mapping[int, int]) -> dict[str, Any]:
    """Fields of the encoder whose arrays, in timm's names, these are. Heads leave no trace in them: they are
    what `num_heads` has for this width, or None."""
    dim, _, patch_size, _ = arrays["patch_embed.proj.weight"].shape
    side = math.isqrt(arrays["pos_embed"].shape[1] - 1)
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "depth": count_blocks(arrays, "blocks"),
        "num_heads": num_heads.get(dim),
    }
