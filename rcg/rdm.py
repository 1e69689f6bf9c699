"""RDM, the representation diffusion model: a residual MLP that denoises representations (RCG section 3.2).

It predicts x_0. What depends only on the timestep or the class, the embeddings and each layer's projection of
them, is a method of its own, so that sampling computes it for all steps at once, before its loop.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rcg import diffusion
from rcg.errors import UserError
from rcg.layers import Array, Dtype, layer_norm, run_layers, torch_linear_init
from rcg.torch_weights import Rule, count_blocks, dense, norm

SHARDING_RULES = (
    (r"(in_proj|emb_proj|context_proj)/kernel", ("fsdp", "tensor")),
    (r"res_blocks_\d+/out_proj/kernel", ("tensor", "fsdp")),
)


def sinusoid(t: Array, dim: int) -> Array:
    """[...] timesteps (0..999, not scaled) -> [..., dim]: cosines first, then sines."""
    exponent = np.float32(-math.log(10000)) * np.arange(dim // 2, dtype=np.float32) / np.float32(dim // 2)
    # one rounding of the exponential: times t = 999, a last bit more is 3e-5 of an angle
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = t[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Linear(nn.Module):
    """nn.Dense with torch's default initialisation of the bias too, or all zeros."""

    features: int
    zero: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bound = x.shape[-1] ** -0.5

        def bias_init(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros if self.zero else torch_linear_init, (x.shape[-1], self.features))
        bias = self.param("bias", zeros if self.zero else bias_init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class ResBlock(nn.Module):
    """LN, SiLU, Linear, + timestep (+ class), LN, SiLU, Linear, + input."""

    width: int
    bottleneck: int
    context: bool
    dtype: Dtype = jnp.float32

    def setup(self):
        self.in_norm = layer_norm(1e-5, self.dtype, "in_norm")
        self.in_proj = Linear(self.bottleneck, dtype=self.dtype)
        self.emb_proj = Linear(self.bottleneck, dtype=self.dtype)
        if self.context:
            self.context_proj = Linear(self.bottleneck, dtype=self.dtype)
        self.out_norm = layer_norm(1e-5, self.dtype, "out_norm")
        self.out_proj = Linear(self.width, zero=True, dtype=self.dtype)

    def from_time(self, e: Array) -> Array:
        """Timestep embedding [..., E] -> [..., bottleneck]."""
        return self.emb_proj(nn.silu(e))

    def from_class(self, c: Array) -> Array:
        """Class embedding [..., context_dim] -> [..., bottleneck]."""
        return self.context_proj(nn.silu(c))

    def __call__(self, h: Array, condition: Array) -> Array:
        """h: [B, width]; condition: [B or 1, bottleneck], the sum of the two above."""
        u = self.in_proj(nn.silu(self.in_norm(h))) + condition
        return h + self.out_proj(nn.silu(self.out_norm(u)))


class Denoiser(nn.Module):
    """The network proper; its parameters are what the EMA averages."""

    channels: int
    width: int
    bottleneck: int
    time_dim: int
    depth: int
    context: bool
    dtype: Dtype = jnp.float32
    scan_layers: bool = False  # as `rcg.layers.Stack`: parameters lie per layer either way
    remat: str = "none"

    def setup(self):
        self.time_embed_0 = Linear(self.time_dim, dtype=self.dtype)
        self.time_embed_2 = Linear(self.time_dim, dtype=self.dtype)
        self.input_proj = Linear(self.width, dtype=self.dtype)
        self.res_blocks = [
            ResBlock(self.width, self.bottleneck, self.context, self.dtype) for _ in range(self.depth)
        ]
        self.out_norm = layer_norm(1e-6, self.dtype, "out_norm")
        self.out_proj = Linear(self.channels, zero=True, dtype=self.dtype)

    def embed_time(self, t: Array) -> Array:
        """[...] -> [..., time_dim]."""
        return self.time_embed_2(nn.silu(self.time_embed_0(sinusoid(t, self.width))))

    def from_time(self, t: Array) -> list[Array]:
        """[...] -> what each layer adds for the timestep, [..., bottleneck] each."""
        e = self.embed_time(t)
        return [block.from_time(e) for block in self.res_blocks]

    def from_class(self, c: Array) -> list[Array]:
        """[B, context_dim] -> what each layer adds for the class, [B, bottleneck] each."""
        return [block.from_class(c) for block in self.res_blocks]

    def __call__(self, x: Array, conditions: list[Array]) -> Array:
        """x: [B, channels]; conditions: [B or 1, bottleneck] for each layer -> x_0, float32 [B, channels]."""
        h = self.input_proj(x)
        if self.is_initializing():
            for block, condition in zip(self.res_blocks, conditions, strict=True):
                h = block(h, condition)
        else:
            h = self._run_blocks(h, conditions)
        return self.out_proj(nn.silu(self.out_norm(h))).astype(jnp.float32)

    def _run_blocks(self, h: Array, conditions: list[Array]) -> Array:
        block = ResBlock(self.width, self.bottleneck, self.context, self.dtype, parent=None)

        def body(h, layer):
            params, condition = layer
            return block.apply({"params": params}, h, condition), None

        layers = [(b.variables["params"], c) for b, c in zip(self.res_blocks, conditions, strict=True)]
        return run_layers(body, h, layers, scan=self.scan_layers, remat=self.remat)[0]


class RDM(nn.Module):
    """The denoiser with its class table and noise schedule. The defaults are the published size.

    Attributes:
      num_classes: above 0: conditioned on a class. condition_dim: above 0: on vectors of that size, which
        take the labels' place everywhere (appendix A: a new condition needs only a new RDM).
    """

    channels: int = 256
    width: int = 1536
    bottleneck: int = 1536
    time_dim: int = 256
    depth: int = 12
    context_dim: int = 512
    num_classes: int = 0
    condition_dim: int = 0
    beta_schedule: str = "sqrt_linear"
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    timesteps: int = 1000
    dtype: Dtype = jnp.float32
    scan_layers: bool = False
    remat: str = "none"

    def setup(self):
        self.denoiser = Denoiser(
            self.channels,
            self.width,
            self.bottleneck,
            self.time_dim,
            self.depth,
            self.conditional,
            self.dtype,
            self.scan_layers,
            self.remat,
        )
        if self.num_classes:
            shape = (self.num_classes, self.context_dim)
            self.class_embedding = self.param("class_embedding", nn.initializers.normal(1.0), shape)
        elif self.condition_dim:
            self.condition_embed = Linear(self.context_dim, dtype=self.dtype)

    @property
    def conditional(self) -> bool:
        return self.num_classes > 0 or self.condition_dim > 0

    def tables(self) -> dict[str, np.ndarray]:
        """The noise schedule, see `diffusion.schedule`."""
        return diffusion.schedule(
            diffusion.betas(self.beta_schedule, self.timesteps, self.beta_start, self.beta_end)
        )

    def from_time(self, t: Array) -> list[Array]:
        return self.denoiser.from_time(t)

    def from_class(self, labels: Array | None) -> list[Array]:
        """int32 [B], or [B, condition_dim] -> what each layer adds; zeros for an unconditional model."""
        if not self.conditional:
            return [jnp.zeros((1, 1), self.dtype)] * self.depth
        if labels is None:
            raise UserError("a class-conditional RDM needs labels, a conditional one its conditions")
        made = self.class_embedding[labels] if self.num_classes else self.condition_embed(labels)
        return self.denoiser.from_class(made)

    def denoise(self, x: Array, conditions: list[Array]) -> Array:
        return self.denoiser(x, conditions)

    def __call__(self, x: Array, t: Array, labels: Array | None = None) -> Array:
        """x_t: [B, channels], t: int32 [B], labels: see `from_class` -> predicted x_0, float32."""
        conditions = [a + b for a, b in zip(self.from_time(t), self.from_class(labels), strict=True)]
        return self.denoiser(x, conditions)


def loss(
    module: RDM, variables: Any, x0: Array, t: Array, noise: Array, labels: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """The denoising loss (equation 1; simple form, x_0 target).

    Args:
      x0: representations [B, C]; t: int32 [B]; noise: [B, C].

    Returns:
      Mean squared error, and a dict of x_t, prediction and the logged variational bound.
    """
    tables = module.tables()
    x_t = diffusion.q_sample(tables, x0, t, noise)
    prediction = module.apply(variables, x_t, t, labels)
    per_sample = jnp.square(prediction - x0).mean(-1)
    vlb = (jnp.asarray(diffusion.lvlb_weights(tables))[t] * per_sample).mean()
    return per_sample.mean(), {"x_t": x_t, "prediction": prediction, "vlb": vlb}


def sample(
    module: RDM,
    variables: Any,
    key: Array,
    num: int,
    *,
    labels: Array | None = None,
    steps: int = 250,
    eta: float = 1.0,
    end: str = "published",
    noise: Mapping[str, Array] | None = None,
    trace: bool = False,
) -> Any:
    """New representations by DDIM, one program for all steps. jit-able.

    Args:
      variables: with EMA weights, where there are any.
      labels: int32 [num], for a class-conditional model.
      steps, eta, end: see `diffusion.ddim_tables`.
      noise: the draws to use: "x_T" [num, C] and "steps" [steps, num, C].

    Returns:
      float32 [num, C]; with `trace` also each step's predicted x_0.

    Raises:
      UserError: an unusable number of steps, or labels missing.
    """
    run = diffusion.ddim_tables(module.tables(), steps, eta, end)
    call = functools.partial(module.apply, variables)
    by_time = call(jnp.asarray(run.timesteps), method="from_time")  # depth x [S, bottleneck]
    by_class = call(labels, method="from_class")  # depth x [num or 1, bottleneck]
    if noise is None:
        first, rest = jax.random.split(key)
        noise = {"x_T": jax.random.normal(first, (num, module.channels)), "steps": rest}

    def denoise(x, of_step):
        return call(x, [a + b for a, b in zip(of_step, by_class, strict=True)], method="denoise")

    return diffusion.ddim_sample(denoise, noise["x_T"], noise["steps"], run, by_time, trace)


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> RDM:
    """The module of an architecture: RDM's fields. It has no attention."""
    del attention
    return RDM(**architecture, dtype=dtype, scan_layers=scan_layers, remat=remat)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of a published file's `model.*` weights and class table."""
    module, prefix = build(architecture), "model.diffusion_model"

    def linear(ours: str, theirs: str) -> list[Rule]:
        return dense(f"params/denoiser/{ours}", f"{prefix}.{theirs}")

    def normal(ours: str, theirs: str) -> list[Rule]:
        return norm(f"params/denoiser/{ours}", f"{prefix}.{theirs}")

    table = linear("time_embed_0", "time_embed.0") + linear("time_embed_2", "time_embed.2")
    table += linear("input_proj", "input_proj") + normal("out_norm", "out.0") + linear("out_proj", "out.2")
    for i in range(module.depth):
        ours, theirs = f"res_blocks_{i}", f"res_blocks.{i}"
        table += normal(f"{ours}/in_norm", f"{theirs}.in_layers.0")
        table += linear(f"{ours}/in_proj", f"{theirs}.in_layers.2")
        table += linear(f"{ours}/emb_proj", f"{theirs}.emb_layers.1")
        table += linear(f"{ours}/context_proj", f"{theirs}.context_layers.1") * (module.num_classes > 0)
        table += normal(f"{ours}/out_norm", f"{theirs}.out_layers.0")
        table += linear(f"{ours}/out_proj", f"{theirs}.out_layers.3")
    if module.num_classes:
        table += [Rule("params/class_embedding", "cond_stage_model.embedding.weight")]
    return table


def ema_rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """As `rules`, with the denoiser from the EMA, whose published names have lost their dots."""

    def averaged(name: str) -> str:
        inner = name.removeprefix("model.")
        return name if inner == name else f"model_ema.{inner.replace('.', '')}"

    return [rule._replace(theirs=averaged(rule.theirs)) for rule in rules(architecture)]


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the model whose published arrays these are, from their names and shapes."""
    prefix = "model.diffusion_model"
    width, channels = arrays[f"{prefix}.input_proj.weight"].shape
    fields = {
        "channels": channels,
        "width": width,
        "bottleneck": arrays[f"{prefix}.res_blocks.0.in_layers.2.weight"].shape[0],
        "time_dim": arrays[f"{prefix}.time_embed.0.weight"].shape[0],
        "depth": count_blocks(arrays, f"{prefix}.res_blocks"),
    }
    if f"{prefix}.res_blocks.0.context_layers.1.weight" in arrays:
        classes, context_dim = arrays["cond_stage_model.embedding.weight"].shape
        fields |= {"num_classes": classes, "context_dim": context_dim}
    return fields
