"""Gaussian diffusion as pure functions on arrays: noise schedules, the forward process, DDIM.

Conventions of the official code (LDM's): T = 1000 timesteps 0..T-1; "linear" is linear in sqrt(beta); a DDIM
run ends on alphas_cumprod[0], not on clean data, with noise added in its last step too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcg.errors import UserError

Array = jax.Array


def betas(
    kind: str = "sqrt_linear", timesteps: int = 1000, start: float = 0.0015, end: float = 0.0195
) -> np.ndarray:
    """float64 [T]. "sqrt_linear" (RDM, LDM: linear in sqrt(beta)) or "linear" (DDPM, ADM, DiT).

    Raises:
      UserError: another kind.
    """
    if kind == "sqrt_linear":
        return np.linspace(start**0.5, end**0.5, timesteps) ** 2
    if kind == "linear":
        return np.linspace(start, end, timesteps)
    raise UserError(f'noise schedule "{kind}" is not one of sqrt_linear, linear')


def schedule(beta: np.ndarray) -> dict[str, np.ndarray]:
    """Every table the published checkpoints store, float32 [T], computed in float64."""
    alpha = 1 - beta
    acp = np.cumprod(alpha)
    prev = np.append(1.0, acp[:-1])
    variance = beta * (1 - prev) / (1 - acp)
    tables = {
        "betas": beta,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(acp),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - acp),
        "log_one_minus_alphas_cumprod": np.log(1 - acp),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / acp),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / acp - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(prev) / (1 - acp),
        "posterior_mean_coef2": (1 - prev) * np.sqrt(alpha) / (1 - acp),
    }
    return {name: table.astype(np.float32) for name, table in tables.items()}


def lvlb_weights(tables: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weights of the logged variational bound for x0-prediction, float32 [T], in the official code's
    form (its parenthesisation included); entry 0 repeats entry 1."""
    acp = tables["alphas_cumprod"]
    weights = (0.5 * np.sqrt(acp) / (2.0 * 1 - acp)).astype(np.float32)
    weights[0] = weights[1]
    return weights


def q_sample(tables: Mapping[str, np.ndarray], x0: Array, t: Array, noise: Array) -> Array:
    """x_t = sqrt(acp_t) x_0 + sqrt(1 - acp_t) noise. x0, noise: [B, ...]; t: int32 [B]."""
    lead = (-1,) + (1,) * (x0.ndim - 1)
    scale = jnp.asarray(tables["sqrt_alphas_cumprod"])[t].reshape(lead)
    sigma = jnp.asarray(tables["sqrt_one_minus_alphas_cumprod"])[t].reshape(lead)
    return scale * x0 + sigma * noise


class DdimTables(NamedTuple):
    """One DDIM run, in ascending time (sampling walks it backwards): int32 and float32 [S]."""

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas: np.ndarray


def ddim_timesteps(steps: int, timesteps: int = 1000) -> np.ndarray:
    """The official subset: every (T // steps)-th, plus one. A count that does not divide T gives more.

    Raises:
      UserError: a count whose subset leaves 0..T-1, naming the nearest that do not.
    """

    def subset(n: int) -> np.ndarray:
        return np.arange(0, timesteps, timesteps // n) + 1

    def usable(n: int) -> bool:
        return 1 <= n <= timesteps and subset(n)[-1] < timesteps and len(subset(n)) == n

    if not 1 <= steps <= timesteps or subset(steps)[-1] >= timesteps:
        below = next((n for n in range(min(steps, timesteps), 0, -1) if usable(n)), 1)
        above = next((n for n in range(max(steps, 1), timesteps) if usable(n)), below)
        raise UserError(
            f"{steps} DDIM steps reach beyond the {timesteps} timesteps; "
            f"try {' or '.join(str(n) for n in dict.fromkeys((below, above)))}"
        )
    return subset(steps).astype(np.int32)


def ddim_tables(
    tables: Mapping[str, np.ndarray], steps: int, eta: float = 1.0, end: str = "published"
) -> DdimTables:
    """Coefficients of a DDIM run.

    Args:
      steps: how many; see `ddim_timesteps`.
      eta: 0 deterministic .. 1 as much noise as DDPM.
      end: "published" stops at alphas_cumprod[0]; "clean" at 1, with no noise in the last step.

    Raises:
      UserError: an unusable count or end, or eta outside 0..1.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}, must be in 0..1")
    if end not in ("published", "clean"):
        raise UserError(f'DDIM end "{end}" is not one of published, clean')
    acp = tables["alphas_cumprod"]
    t = ddim_timesteps(steps, len(acp))
    alphas = acp[t]
    first = acp[0] if end == "published" else np.float32(1)
    prev = np.append(first, acp[t[:-1]]).astype(np.float32)
    sigmas = eta * np.sqrt((1 - prev) / (1 - alphas) * (1 - alphas / prev))
    return DdimTables(t, alphas, prev, sigmas.astype(np.float32))


def ddim_sample(
    denoise: Callable[[Array, Any], Array],
    x_T: Array,
    noise: Array,
    run: DdimTables,
    conditions: Any = None,
    trace: bool = False,
) -> Any:
    """DDIM with an x0-predicting network, as one `lax.scan`.

    Args:
      denoise: (x_t, condition of this step) -> predicted x_0.
      x_T: [B, ...] standard normal.
      noise: standard normal draws [S, B, ...] in the order of the steps (falling time), or a key to draw
        each step's from.
      run: see `ddim_tables`.
      conditions: pytree of arrays [S, ...] in ascending time: what `denoise` needs of each step, made
        beforehand, since it does not depend on x.
      trace: also return the predicted x_0 of each step, [S, B, ...].

    Returns:
      [B, ...].
    """
    reverse = jax.tree.map(lambda a: jnp.asarray(a)[::-1], (run, conditions))
    keyed = jnp.issubdtype(noise.dtype, jax.dtypes.prng_key)
    draws = jax.random.split(noise, len(run.timesteps)) if keyed else noise

    def step(x, inputs):
        (_, a, a_prev, sigma), condition, draw = inputs
        x0 = denoise(x, condition)
        eps = (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)
        z = jax.random.normal(draw, x.shape, x.dtype) if keyed else draw
        x = jnp.sqrt(a_prev) * x0 + jnp.sqrt(jnp.maximum(1 - a_prev - sigma**2, 0)) * eps + sigma * z
        return x, x0 if trace else None

    x, predicted = jax.lax.scan(step, x_T, (*reverse, draws))
    return (x, predicted) if trace else x
