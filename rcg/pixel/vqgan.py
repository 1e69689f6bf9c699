"""The VQGAN tokenizer of MAGE and RCG (RCG section 3.3; MaskGIT's tokenizer in the official code's form).

Images in [0, 1], NHWC. No attention anywhere, no convolutions around the codebook. Where a residual
block changes its channels, the 1x1 shortcut reads the residual branch's output, not the block's input.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg.layers import Array, Dtype, GroupNorm, UpsampleConv, torch_linear_init
from rcg.torch_weights import Rule, conv, count_blocks, norm

SHARDING_RULES = ((r"kernel", (None, None, "fsdp", "tensor")),)


def codebook_loss(z: Array, z_q: Array, *, beta: float = 0.25, legacy: bool = True) -> Array:
    """Pulls latents and codes together, each seeing the other as fixed.

    Args:
      z: latents; z_q: the codes they were given, of the same shape.
      beta: weight of the code term in the official (taming's "legacy") order, of the latent's
        ("commitment") term in VQ-VAE's.
    """
    fixed = jax.lax.stop_gradient
    latent, code = jnp.square(fixed(z_q) - z).mean(), jnp.square(z_q - fixed(z)).mean()
    return latent + beta * code if legacy else code + beta * latent


# torch's default, as in the official code
Conv = functools.partial(nn.Conv, kernel_init=torch_linear_init)


class ResBlock(nn.Module):
    """Two (GroupNorm, swish, 3x3 convolution without bias), added to x or to their own projection."""

    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        conv = functools.partial(Conv, self.features, use_bias=False, dtype=self.dtype)
        h = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="norm1")(x)
        h = conv((3, 3), name="conv1")(h)
        h = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="norm2")(h)
        h = conv((3, 3), name="conv2")(h)
        if x.shape[-1] == self.features:
            return x + h
        return conv((1, 1), name="nin_shortcut")(h) + h  # of h: MaskGIT's quirk


class Encoder(nn.Module):
    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    z_channels: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, 3] -> [B, H / 2^(levels - 1), W / 2^(levels - 1), z_channels]."""
        block = functools.partial(ResBlock, num_groups=self.num_groups, dtype=self.dtype)
        h = Conv(self.ch, (3, 3), use_bias=False, dtype=self.dtype, name="conv_in")(x)
        for i, mult in enumerate(self.ch_mult):
            for j in range(self.num_res_blocks):
                h = block(self.ch * mult, name=f"down_{i}_block_{j}")(h)
            if i < len(self.ch_mult) - 1:
                h = nn.avg_pool(h, (2, 2), (2, 2))
        for j in (1, 2):
            h = block(h.shape[-1], name=f"mid_block_{j}")(h)
        h = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="norm_out")(h)
        return Conv(self.z_channels, (1, 1), dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, h, w, z_channels] -> [B, h * 2^(levels - 1), w * 2^(levels - 1), 3]."""
        block = functools.partial(ResBlock, num_groups=self.num_groups, dtype=self.dtype)
        h = Conv(self.ch * self.ch_mult[-1], (3, 3), dtype=self.dtype, name="conv_in")(z)
        for j in (1, 2):
            h = block(h.shape[-1], name=f"mid_block_{j}")(h)
        for i, mult in reversed(list(enumerate(self.ch_mult))):  # level 0 is the full resolution
            for j in range(self.num_res_blocks):
                h = block(self.ch * mult, name=f"up_{i}_block_{j}")(h)
            if i > 0:
                h = UpsampleConv(self.dtype, name=f"up_{i}_upsample")(h)
        h = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="norm_out")(h)
        return Conv(3, (3, 3), dtype=self.dtype, name="conv_out")(h)


class VQGAN(nn.Module):
    """Encoder, codebook, decoder. Images [B, S, S, 3] in [0, 1] <-> tokens int32 [B, h * w], row-major.

    The defaults are the published size: 256 px <-> 16 x 16 tokens.
    """

    ch: int = 128
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 1024
    num_groups: int = 32
    dtype: Dtype = jnp.float32

    def setup(self):
        levels = (self.ch, self.ch_mult, self.num_res_blocks)
        self.encoder = Encoder(*levels, self.z_channels, self.num_groups, self.dtype)
        self.decoder = Decoder(*levels, self.num_groups, self.dtype)
        n = self.codebook_size
        self.codebook = self.param(  # U(-1/n, 1/n), as taming-transformers
            "codebook",
            lambda rng, shape: jax.random.uniform(rng, shape, minval=-1 / n, maxval=1 / n),
            (n, self.z_channels),
        )

    def encode(self, images: Array) -> Array:
        """[B, S, S, 3] in [0, 1] -> continuous latents, float32 [B, h, w, C]."""
        return self.encoder(images.astype(self.dtype)).astype(jnp.float32)

    def quantize(self, z: Array) -> tuple[Array, Array]:
        """Latents [B, h, w, C] -> (nearest codes, int32 [B, h * w]; their rows, float32 [B, h, w, C])."""
        indices = self.distances(z).argmin(-1).astype(jnp.int32)
        return indices.reshape(z.shape[0], -1), self.codebook[indices].astype(jnp.float32)

    def distances(self, z: Array) -> Array:
        """|z - e|^2 - |z|^2, float32 [B, h, w, codebook_size]: orders the codes as the distance does."""
        codebook = self.codebook.astype(jnp.float32)
        dot = jnp.matmul(z, codebook.T, precision="highest")  # tokens must not depend on TF32
        return jnp.square(codebook).sum(-1) - 2 * dot

    def tokenize(self, images: Array) -> Array:
        """[B, S, S, 3] in [0, 1] -> int32 [B, h * w]."""
        return self.quantize(self.encode(images))[0]

    def decode(self, z_q: Array) -> Array:
        """Codebook rows [B, h, w, C] -> images, float32 [B, S, S, 3], about [0, 1], not clipped."""
        return self.decoder(z_q.astype(self.dtype)).astype(jnp.float32)

    def decode_tokens(self, indices: Array) -> Array:
        """int32 [B, h * w] (a square grid) -> images as `decode`."""
        side = round(indices.shape[-1] ** 0.5)
        if side * side != indices.shape[-1]:
            raise ValueError(f"{indices.shape[-1]} tokens are no square grid")
        return self.decode(self.codebook[indices.reshape(-1, side, side)])

    def __call__(self, images: Array) -> tuple[Array, Array]:
        """[B, S, S, 3] in [0, 1] -> (reconstruction [B, S, S, 3], tokens int32 [B, h * w])."""
        indices, z_q = self.quantize(self.encode(images))
        return self.decode(z_q), indices


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> VQGAN:
    """The module of an architecture: VQGAN's fields. It has no attention and no stack of like layers."""
    del attention, scan_layers, remat
    fields = dict(architecture)
    if "ch_mult" in fields:
        fields["ch_mult"] = tuple(fields["ch_mult"])
    return VQGAN(**fields, dtype=dtype)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of `vqgan_jax_strongaug.ckpt`."""
    module = build(architecture)
    mults, levels = module.ch_mult, range(len(module.ch_mult))

    def block(ours: str, theirs: str, shortcut: bool = False) -> list[Rule]:
        table = []
        for n in "12":
            table += norm(f"{ours}/norm{n}", f"{theirs}.norm{n}")
            table += conv(f"{ours}/conv{n}", f"{theirs}.conv{n}", bias=False)
        return table + conv(f"{ours}/nin_shortcut", f"{theirs}.nin_shortcut", bias=False) * shortcut

    table = [Rule("params/codebook", "quantize.embedding.weight")]
    for half, direction, previous in (("encoder", "down", -1), ("decoder", "up", 1)):
        ours = f"params/{half}"
        table += conv(f"{ours}/conv_in", f"{half}.conv_in", bias=half == "decoder")
        table += norm(f"{ours}/norm_out", f"{half}.norm_out") + conv(f"{ours}/conv_out", f"{half}.conv_out")
        for j in (1, 2):
            table += block(f"{ours}/mid_block_{j}", f"{half}.mid.block_{j}")
        for i in levels:
            inputs = (
                mults[i + previous] if i + previous in levels else (1 if half == "encoder" else mults[-1])
            )
            for j in range(module.num_res_blocks):
                shortcut = j == 0 and inputs != mults[i]
                table += block(
                    f"{ours}/{direction}_{i}_block_{j}", f"{half}.{direction}.{i}.block.{j}", shortcut
                )
            if half == "decoder" and i > 0:
                table += conv(f"{ours}/up_{i}_upsample", f"{half}.up.{i}.upsample.conv")
    return table


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the model whose published arrays these are; GroupNorm's groups, which leave no
    trace in them, are the default."""
    ch = arrays["encoder.conv_in.weight"].shape[0]
    levels = range(count_blocks(arrays, "encoder.down"))
    widths = [arrays[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
    codebook_size, z_channels = arrays["quantize.embedding.weight"].shape
    return {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": count_blocks(arrays, "encoder.down.0.block"),
        "z_channels": z_channels,
        "codebook_size": codebook_size,
    }
