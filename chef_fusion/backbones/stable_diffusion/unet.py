"""The UNet of Stable Diffusion v1.x (Rombach et al. 2022): noise from latents, a timestep and a text.

Equal to diffusers' UNet2DConditionModel at the v1 configurations. NHWC. What does not depend on the latents
is split off, so that a sampler computes it once: `from_time` for every timestep, `from_context` for the text.
`attention_head_dim` in the published configs is the number of heads.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg.errors import UserError
from rcg.layers import (
    Array,
    Dtype,
    GroupNorm,
    UpsampleConv,
    attention,
    convolution,
    gelu,
    layer_norm,
    linear,
)
from rcg.layers import torch_linear_init as torch_init

SHARDING_RULES = (
    (r"(to_q|to_k|to_v|ff/net_0/proj)/kernel", ("fsdp", "tensor")),
    (r"(to_out_0|ff/net_2)/kernel", ("tensor", "fsdp")),
    (r"conv\d?/kernel", (None, None, "fsdp", "tensor")),
)
Conv = functools.partial(nn.Conv, kernel_init=torch_init, conv_general_dilated=convolution)
Linear = functools.partial(linear, kernel_init=torch_init)


def timestep_embedding(t: Array, dim: int) -> Array:
    """[...] -> [..., dim], float32: cosines first, then sines."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, plus what the time adds; the same again; plus the input."""

    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        norm = functools.partial(GroupNorm, self.num_groups, 1e-5, True, self.dtype)
        self.norm1, self.conv1, self.norm2, self.conv2 = norm(), conv(), norm(), conv()
        self.time_emb_proj = Linear(self.features, dtype=self.dtype)
        self.conv_shortcut = Conv(self.features, (1, 1), dtype=self.dtype)

    def from_time(self, e: Array) -> list[Array]:
        """Time embedding, after SiLU, [..., E] -> [[..., features]]."""
        return [self.time_emb_proj(e)]

    def __call__(self, x: Array, times: list[Array]) -> Array:
        """[B, H, W, C] -> [B, H, W, features]; takes its part of `times`."""
        h = self.conv1(self.norm1(x)) + times.pop(0)[:, None, None].astype(self.dtype)
        h = self.conv2(self.norm2(h))
        return (self.conv_shortcut(x) if x.shape[-1] != self.features else x) + h


class CrossAttention(nn.Module):
    """Attention whose keys and values come from x itself, or from a context's."""

    num_heads: int
    dim: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        self.to_q, self.to_k, self.to_v = (
            Linear(self.dim, use_bias=False, dtype=self.dtype) for _ in range(3)
        )
        self.to_out_0 = Linear(self.dim, dtype=self.dtype)

    def keys_values(self, context: Array) -> tuple[Array, Array]:
        """[B, S, D] -> each [B, S, H, dim / H]."""
        heads = (*context.shape[:2], self.num_heads, -1)
        return self.to_k(context).reshape(heads), self.to_v(context).reshape(heads)

    def __call__(self, x: Array, kv: tuple[Array, Array] | None = None) -> Array:
        """[B, N, dim] -> [B, N, dim]."""
        k, v = self.keys_values(x) if kv is None else kv
        q = self.to_q(x).reshape(*x.shape[:2], self.num_heads, -1)
        return self.to_out_0(attention(q, k, v, impl=self.attention).reshape(x.shape))


class GatedLinear(nn.Module):
    """GEGLU: the first half of a projection, times GELU of the second."""

    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, gate = jnp.split(Linear(2 * self.dim, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return h * gelu(gate)


class FeedForward(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = GatedLinear(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, feed-forward."""

    num_heads: int
    dim: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        self.norm1, self.norm2, self.norm3 = (layer_norm(1e-5, self.dtype, f"norm{i}") for i in (1, 2, 3))
        attn = functools.partial(CrossAttention, self.num_heads, self.dim, self.dtype, self.attention)
        self.attn1, self.attn2, self.ff = attn(), attn(), FeedForward(self.dtype)

    def from_context(self, context: Array) -> list[tuple[Array, Array]]:
        return [self.attn2.keys_values(context)]

    def __call__(self, x: Array, contexts: list[tuple[Array, Array]]) -> Array:
        """[B, N, dim] -> [B, N, dim]; takes its part of `contexts`."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), contexts.pop(0))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels, between 1x1 convolutions, plus the input."""

    num_heads: int
    dim: int
    num_groups: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        self.norm = GroupNorm(self.num_groups, 1e-6, False, self.dtype)
        self.proj_in, self.proj_out = (Conv(self.dim, (1, 1), dtype=self.dtype) for _ in range(2))
        self.transformer_blocks = [TransformerBlock(self.num_heads, self.dim, self.dtype, self.attention)]

    def from_context(self, context: Array) -> list[tuple[Array, Array]]:
        return self.transformer_blocks[0].from_context(context)

    def __call__(self, x: Array, contexts: list[tuple[Array, Array]]) -> Array:
        """[B, H, W, dim] -> [B, H, W, dim]."""
        B, H, W, C = x.shape
        h = self.proj_in(self.norm(x)).reshape(B, H * W, C)
        h = self.transformer_blocks[0](h, contexts).reshape(B, H, W, C)
        return self.proj_out(h) + x


class Downsample(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Conv(x.shape[-1], (3, 3), 2, padding=1, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return UpsampleConv(self.dtype, name="conv")(x)


class Stage(nn.Module):
    """Resnets, each maybe followed by a transformer, then maybe a change of resolution.

    `kind`: "down" keeps every output as a skip, "up" concatenates one to each input, "mid" puts its one
    transformer between two resnets.
    """

    kind: str
    features: int
    num_resnets: int
    num_heads: int  # 0: no transformers
    num_groups: int
    resample: bool = False
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        resnet = functools.partial(ResnetBlock, self.features, self.num_groups, self.dtype)
        transformer = functools.partial(
            SpatialTransformer, self.num_heads, self.features, self.num_groups, self.dtype, self.attention
        )
        self.resnets = [resnet() for _ in range(self.num_resnets)]
        count = self.num_resnets - (self.kind == "mid") if self.num_heads else 0
        self.attentions = [transformer() for _ in range(count)]
        if self.resample and self.kind == "down":
            self.downsamplers = [Downsample(self.dtype)]
        if self.resample and self.kind == "up":
            self.upsamplers = [Upsample(self.dtype)]

    def from_time(self, e: Array) -> list[Array]:
        return [t for block in self.resnets for t in block.from_time(e)]

    def from_context(self, context: Array) -> list[tuple[Array, Array]]:
        return [c for block in self.attentions for c in block.from_context(context)]

    def __call__(self, x: Array, skips: list[Array], times: list[Array], contexts: list[Any]) -> Array:
        """`skips`: what the way down leaves for the way up; `times`, `contexts`: see `ResnetBlock`."""
        for i, block in enumerate(self.resnets):
            if self.kind == "up":
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = block(x, times)
            if i < len(self.attentions):
                x = self.attentions[i](x, contexts)
            if self.kind == "down":
                skips.append(x)
        if self.resample and self.kind == "down":
            x = self.downsamplers[0](x)
            skips.append(x)
        return self.upsamplers[0](x) if self.resample and self.kind == "up" else x


class UNet(nn.Module):
    """The defaults are Stable Diffusion 1.5's."""

    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    attention_blocks: Sequence[bool] = (True, True, True, False)  # down; up is the reverse
    layers_per_block: int = 2
    attention_head_dim: int = 8
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 0  # side of the latents it was trained on; 0: unknown
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        widths, levels = self.block_out_channels, len(self.block_out_channels)
        stage = functools.partial(
            Stage, num_groups=self.norm_num_groups, dtype=self.dtype, attention=self.attention
        )
        heads = [self.attention_head_dim if has else 0 for has in self.attention_blocks]
        n = self.layers_per_block
        self.conv_in = Conv(widths[0], (3, 3), padding=1, dtype=self.dtype)
        self.time_embedding = TimeEmbedding(4 * widths[0], self.dtype)
        self.down_blocks = [
            stage("down", widths[i], n, heads[i], resample=i < levels - 1) for i in range(levels)
        ]
        self.mid_block = stage("mid", widths[-1], 2, self.attention_head_dim)
        self.up_blocks = [
            stage("up", widths[-1 - i], n + 1, heads[-1 - i], resample=i < levels - 1) for i in range(levels)
        ]
        self.conv_norm_out = GroupNorm(self.norm_num_groups, 1e-5, True, self.dtype)
        self.conv_out = Conv(self.out_channels, (3, 3), padding=1, dtype=self.dtype)

    @property
    def stages(self) -> list[Stage]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def from_time(self, t: Array) -> list[Array]:
        """Timesteps [...] -> what each resnet adds for it, [..., C] each."""
        e = nn.silu(self.time_embedding(timestep_embedding(t, self.block_out_channels[0])))
        return [part for stage in self.stages for part in stage.from_time(e)]

    def from_context(self, context: Array) -> list[tuple[Array, Array]]:
        """Text states [B, S, cross_attention_dim] -> keys and values of each cross-attention."""
        context = context.astype(self.dtype)
        return [part for stage in self.stages for part in stage.from_context(context)]

    def denoise(self, x: Array, times: list[Array], contexts: list[tuple[Array, Array]]) -> Array:
        """Latents [B, H, W, in_channels], H and W multiples of 2^(levels - 1) -> noise, float32
        [B, H, W, out_channels].

        Args:
          times: [B or 1, C] each, see `from_time`; contexts: see `from_context`.
        """
        times, contexts, skips = list(times), list(contexts), []
        x = self.conv_in(x.astype(self.dtype))
        skips.append(x)
        for stage in self.stages:
            x = stage(x, skips, times, contexts)
        return self.conv_out(self.conv_norm_out(x)).astype(jnp.float32)

    def __call__(self, x: Array, t: Array, context: Array) -> Array:
        """x: [B, H, W, in_channels]; t: [B] or scalar; context: [B, S, cross_attention_dim] -> noise."""
        t = jnp.broadcast_to(jnp.asarray(t), (len(x),))
        return self.denoise(x, self.from_time(t), self.from_context(context))


class TimeEmbedding(nn.Module):
    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, e: Array) -> Array:
        h = nn.silu(Linear(self.dim, dtype=self.dtype, name="linear_1")(e))
        return Linear(self.dim, dtype=self.dtype, name="linear_2")(h)


FIELDS = (
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "norm_num_groups",
    "in_channels",
    "out_channels",
    "sample_size",
)
# what config.json must say elsewhere, if anything, for this code to be the same network
SUPPORTED = {
    "act_fn": ("silu",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False,),
}
DOWN, UP = (
    {True: "CrossAttnDownBlock2D", False: "DownBlock2D"},
    {True: "CrossAttnUpBlock2D", False: "UpBlock2D"},
)


def architecture_of(config: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """The architecture that a published config.json describes.

    Raises:
      UserError: a block of another type, or a number of heads that changes with the level.
    """
    del names
    fields = {name: config[name] for name in FIELDS if name in config}
    if not isinstance(fields.get("sample_size", 0), int):  # none, or a height and a width
        del fields["sample_size"]
    kinds = {v: k for k, v in DOWN.items()}
    down = list(config.get("down_block_types", [DOWN[True]] * 3 + [DOWN[False]]))
    up = list(config.get("up_block_types", [UP[False]] + [UP[True]] * 3))
    fits = all(kind in kinds for kind in down)
    if not fits or up != [UP[kinds[kind]] for kind in reversed(down)]:
        raise UserError(f"this UNet has blocks {down} and {up}; supported are those of Stable Diffusion v1")
    if not isinstance(fields.get("attention_head_dim", 8), int):
        raise UserError("this UNet has its own number of heads at each level, which v1 has not")
    return fields | {"attention_blocks": [kinds[kind] for kind in down]}


def config_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an architecture, without the fields that have the same names."""
    has = list(architecture.get("attention_blocks", UNet.attention_blocks))
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "center_input_sample": False,
        "down_block_types": [DOWN[h] for h in has],
        "up_block_types": [UP[h] for h in reversed(has)],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
    }


def build(
    architecture: Mapping[str, Any], *, dtype: Dtype = jnp.float32, attention: str = "auto", **unused: Any
) -> UNet:
    """The module of an architecture: UNet's fields. Of stacks there is none to scan.

    Raises:
      UserError: sizes that do not fit each other.
    """
    del unused
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
    module = UNet(**fields, dtype=dtype, attention=attention)
    for width in module.block_out_channels:
        if width % module.norm_num_groups or width % module.attention_head_dim:
            raise UserError(
                f"UNet block_out_channels {width} is not a multiple of norm_num_groups "
                f"{module.norm_num_groups} and of attention_head_dim {module.attention_head_dim}"
            )
    if len(module.attention_blocks) != len(module.block_out_channels):
        raise UserError(
            f"UNet attention_blocks names {len(module.attention_blocks)} levels, block_out_channels "
            f"{len(module.block_out_channels)}"
        )
    return module


def abstract_variables(architecture: Mapping[str, Any]) -> Any:
    """Names, shapes and dtypes of the variables."""
    module = build(architecture)
    side = 2 ** (len(module.block_out_channels) - 1)
    x = jnp.zeros((1, side, side, module.in_channels))
    context = jnp.zeros((1, 1, module.cross_attention_dim))
    return jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), context)
