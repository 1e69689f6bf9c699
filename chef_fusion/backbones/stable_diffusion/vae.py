"""The autoencoder of Stable Diffusion v1.x: images in [-1, 1] <-> latents an eighth as large.

Equal to diffusers' AutoencoderKL at the v1 configurations. NHWC. Latents here are the VAE's own;
`SCALING` times them is what the UNet works on.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg.errors import UserError
from rcg.layers import Array, Dtype, GroupNorm, UpsampleConv, attention, linear
from rcg.layers import torch_linear_init as torch_init

SCALING = 0.18215
SHARDING_RULES = ((r"kernel", (None, None, "fsdp", "tensor")),)  # of convolutions; Linear's have two axes
Conv = functools.partial(nn.Conv, kernel_init=torch_init)
Linear = functools.partial(linear, kernel_init=torch_init)


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; plus the input."""

    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        norm = functools.partial(GroupNorm, self.num_groups, 1e-6, True, self.dtype)
        h = conv(name="conv1")(norm(name="norm1")(x))
        h = conv(name="conv2")(norm(name="norm2")(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class PixelAttention(nn.Module):
    """One head over all pixels, plus the input."""

    num_groups: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, H, W, C = x.shape
        h = GroupNorm(self.num_groups, 1e-6, False, self.dtype, name="group_norm")(x).reshape(B, H * W, C)
        project = functools.partial(Linear, C, dtype=self.dtype)
        q, k, v = (project(name=name)(h)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        h = attention(q, k, v, impl=self.attention)[:, :, 0]
        return x + project(name="to_out_0")(h).reshape(x.shape)


class MidBlock(nn.Module):
    """Resnet, attention, resnet."""

    num_groups: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        resnet = functools.partial(ResnetBlock, x.shape[-1], self.num_groups, self.dtype)
        x = resnet(name="resnets_0")(x)
        x = PixelAttention(self.num_groups, self.dtype, self.attention, name="attentions_0")(x)
        return resnet(name="resnets_1")(x)


class Level(nn.Module):
    """Resnets of one width, then maybe half or twice the resolution."""

    features: int
    num_resnets: int
    num_groups: int
    resample: str = ""  # "down", "up"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.num_resnets):
            x = ResnetBlock(self.features, self.num_groups, self.dtype, name=f"resnets_{i}")(x)
        if self.resample == "down":  # padded on the right and below only
            x = Strided(self.features, self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Doubled(self.dtype, name="upsamplers_0")(x)
        return x


class Strided(nn.Module):
    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        padding = ((0, 1), (0, 1))
        return Conv(self.features, (3, 3), 2, padding=padding, dtype=self.dtype, name="conv")(x)


class Doubled(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return UpsampleConv(self.dtype, name="conv")(x)


class Encoder(nn.Module):
    widths: Sequence[int]
    layers_per_block: int
    latent_channels: int
    num_groups: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, 3] -> [B, H / 2^(levels - 1), W / 2^(levels - 1), 2 latent_channels]."""
        x = Conv(self.widths[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            resample = "down" if i < len(self.widths) - 1 else ""
            sizes = width, self.layers_per_block, self.num_groups
            x = Level(*sizes, resample, self.dtype, name=f"down_blocks_{i}")(x)
        x = MidBlock(self.num_groups, self.dtype, self.attention, name="mid_block")(x)
        x = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="conv_norm_out")(x)
        return Conv(2 * self.latent_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    widths: Sequence[int]
    layers_per_block: int
    out_channels: int
    num_groups: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, h, w, latent_channels] -> [B, h * 2^(levels - 1), w * 2^(levels - 1), out_channels]."""
        x = Conv(self.widths[-1], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(z)
        x = MidBlock(self.num_groups, self.dtype, self.attention, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            resample = "up" if i < len(self.widths) - 1 else ""
            sizes = width, self.layers_per_block + 1, self.num_groups
            x = Level(*sizes, resample, self.dtype, name=f"up_blocks_{i}")(x)
        x = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="conv_norm_out")(x)
        return Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """The defaults are Stable Diffusion 1.5's: 512 px <-> 64 x 64 x 4."""

    block_out_channels: Sequence[int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    scaling_factor: float = SCALING
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        shared = {"num_groups": self.norm_num_groups, "dtype": self.dtype, "attention": self.attention}
        sizes = self.block_out_channels, self.layers_per_block
        self.encoder = Encoder(*sizes, self.latent_channels, **shared)
        self.decoder = Decoder(*sizes, self.out_channels, **shared)
        self.quant_conv = Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """[B, H, W, 3] in [-1, 1] -> the posterior's (mean, log variance), float32 [B, h, w, C] each."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """[B, h, w, C] -> [B, H, W, 3], about [-1, 1], not clipped, float32."""
        z = self.post_quant_conv(latents.astype(self.dtype))
        return self.decoder(z).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:
        """Reconstruction through the posterior's mean."""
        return self.decode(self.encode(images)[0])


FIELDS = (
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "norm_num_groups",
    "in_channels",
    "out_channels",
    "scaling_factor",
)
SUPPORTED = {
    "act_fn": ("silu",),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def architecture_of(config: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """The architecture that a published config.json describes.

    Raises:
      UserError: a block of another type.
    """
    del names
    for name, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        if set(config.get(name, [kind])) != {kind}:
            raise UserError(f"this VAE has {name} {config[name]}; supported is {kind}")
    return {name: config[name] for name in FIELDS if name in config}


def config_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an architecture, without the fields that have the same names."""
    levels = len(architecture.get("block_out_channels", VAE.block_out_channels))
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": [DOWN] * levels,
        "up_block_types": [UP] * levels,
    }


def build(
    architecture: Mapping[str, Any], *, dtype: Dtype = jnp.float32, attention: str = "auto", **unused: Any
) -> VAE:
    """The module of an architecture: VAE's fields. Of stacks there is none to scan.

    Raises:
      UserError: sizes that do not fit each other.
    """
    del unused
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
    module = VAE(**fields, dtype=dtype, attention=attention)
    for width in module.block_out_channels:
        if width % module.norm_num_groups:
            raise UserError(
                f"VAE block_out_channels {width} is not a multiple of norm_num_groups "
                f"{module.norm_num_groups}"
            )
    return module


def abstract_variables(architecture: Mapping[str, Any]) -> Any:
    """Names, shapes and dtypes of the variables."""
    module = build(architecture)
    image = jnp.zeros((1, module.factor, module.factor, module.in_channels))
    return jax.eval_shape(module.init, jax.random.key(0), image)


LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def canonical(names: list[str]) -> dict[str, str]:
    """Name in the file -> diffusers' current name: the published files' attention has older ones."""

    def current(name: str) -> str:
        *path, last, kind = name.split(".")
        return ".".join([*path, LEGACY.get(last, last) if "attentions" in path else last, kind])

    return {name: current(name) for name in names}
