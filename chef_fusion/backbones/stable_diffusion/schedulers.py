"""Stable Diffusion's way from noise to latents: PNDM, DDIM, DPM-Solver++ and Euler as one linear recurrence.

Each is a table with a row per call of the network. A row says what of the network's noise estimate is kept
(itself, or the clean latents it implies), how it is mixed with those of earlier calls, and how far that
moves the latents. So one `lax.scan` runs them all. Equal to diffusers' schedulers made from the same
scheduler_config.json: timesteps are spaced as it says, or, as Stable Diffusion 1.5's says nothing, as each
scheduler does by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rcg import diffusion
from rcg.errors import UserError

Array = jax.Array
HISTORY = 3  # earlier estimates that a row can mix in
NAMES = ("pndm", "ddim", "dpmpp", "euler")
DEFAULTS = {  # scheduler_config.json of v1.5
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
FIELDS = (*DEFAULTS, "timestep_spacing")  # which decide what is computed
BETAS = {"scaled_linear": "sqrt_linear", "linear": "linear"}  # published name -> ours
# what else must be said, if anything: of any class, as any of ours may be made from it
SUPPORTED = {
    "beta_schedule": tuple(BETAS),
    "trained_betas": (None,),
    "prediction_type": ("epsilon",),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "skip_prk_steps": (True,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-np.inf, None),
    "solver_order": (2,),
    # the others are DEIS's and UniPC's, which diffusers reads so when it makes a DPM-Solver++ of them
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
}


class Plan(NamedTuple):
    """One run, a row for each call of the network; float32 [N] but for `weights`.

    With m = from_x x + from_eps eps, h the kept estimates, newest first:
    x' = move_x (saved or x) + move_m (weights . [m, *h]).
    """

    timesteps: np.ndarray  # what the network is told
    scale: np.ndarray  # what it is shown: scale x
    from_x: np.ndarray
    from_eps: np.ndarray
    weights: np.ndarray  # [N, 1 + HISTORY]
    move_x: np.ndarray
    move_m: np.ndarray
    restart: np.ndarray  # bool: moves from the latents of the call before, again
    keep: np.ndarray  # bool: m joins the history


class Start(NamedTuple):
    """How a run begins: x = signal * clean latents + noise * standard normal draws. Without clean latents
    x = pure * draws: what little signal the first timestep has is left out, as where it was trained."""

    signal: np.float32
    noise: np.float32
    pure: np.float32


def alphas_cumprod(config: Mapping[str, Any] = DEFAULTS) -> np.ndarray:
    """float32 [T], by float32 products, as the published code makes it.

    Raises:
      UserError: another schedule of betas than v1's.
    """
    config = {**DEFAULTS, **config}
    kind = config["beta_schedule"]
    if kind not in BETAS:
        raise UserError(f'beta_schedule "{kind}" is not one of {", ".join(BETAS)}')
    beta = diffusion.betas(
        BETAS[kind], config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    )
    return np.cumprod(1 - beta.astype(np.float32), dtype=np.float32)


def plan(
    name: str, steps: int, config: Mapping[str, Any] = DEFAULTS, strength: float = 1.0
) -> tuple[Plan, Start]:
    """The table of a run, and how it begins.

    Args:
      name: one of NAMES.
      steps: how many, as diffusers counts them; PNDM of two or more calls the network once more.
      config: scheduler_config.json's fields.
      strength: below 1 the run begins at that part of the way, from noised clean latents.

    Raises:
      UserError: an unknown name, a count that the timesteps do not allow, a strength outside 0..1.
    """
    config = {**DEFAULTS, **config}
    T = config["num_train_timesteps"]
    if name not in NAMES:
        raise UserError(f'scheduler "{name}" is not one of {", ".join(NAMES)}')
    if not 1 <= steps <= T:
        raise UserError(f"{steps} denoising steps; must be in 1..{T}")
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength} must be above 0 and at most 1")
    skipped = max(steps - min(int(steps * strength), steps), 0)
    if skipped == steps:
        raise UserError(f"strength {strength} of {steps} steps leaves none; raise either")
    make = {"pndm": _pndm, "ddim": _ddim, "dpmpp": _dpmpp, "euler": _euler}[name]
    rows, start = make(alphas_cumprod(config).astype(np.float64), steps, skipped, config)
    columns = [np.array(column, np.float32) for column in zip(*rows, strict=True)]
    made = Plan(*columns)
    return made._replace(restart=made.restart > 0, keep=made.keep > 0), Start(*map(np.float32, start))


def _row(t, *, scale=1.0, m=(0.0, 1.0), weights=(1.0,), move=(1.0, 0.0), restart=False, keep=True):
    padded = tuple(weights) + (0.0,) * (1 + HISTORY - len(weights))
    return t, scale, *m, padded, *move, restart, keep


def _timesteps(steps: int, config: Mapping[str, Any], usual: str, beyond: int = 0) -> np.ndarray:
    """The latest first, float64. `usual`: the spacing where the config names none; `beyond`: how many more
    are spread, but not taken, unless they are trailing."""
    T, spacing = config["num_train_timesteps"], config.get("timestep_spacing", usual)
    if spacing == "leading":
        timesteps = np.arange(steps + beyond)[::-1] * (T // (steps + beyond)) + config["steps_offset"]
    elif spacing == "linspace":
        timesteps = np.linspace(0, T - 1, steps + beyond)[::-1]
    elif spacing == "trailing":
        timesteps = np.arange(T, 0, -T / steps).round() - 1  # not a product: ties must fall as diffusers'
    else:
        known = ", ".join(SUPPORTED["timestep_spacing"])
        raise UserError(f'timestep_spacing "{spacing}" is not one of {known}')
    if timesteps[0] >= T or steps + beyond > T:
        raise UserError(f"{steps} steps reach beyond the {T} timesteps; take fewer")
    return timesteps[:steps].astype(np.float64)


def _whole(*given: Any) -> np.ndarray:
    return _timesteps(*given).round().astype(int)


def _alpha(acp: np.ndarray, t: int, config: Mapping[str, Any]) -> float:
    return acp[t] if t >= 0 else 1.0 if config["set_alpha_to_one"] else acp[0]


def _ddim(acp, steps, skipped, config):
    """Song et al. 2021, eta 0."""
    ratio, rows = config["num_train_timesteps"] // steps, []
    timesteps = _whole(steps, config, "leading")[skipped:]
    for t in timesteps:
        a, to = acp[t], _alpha(acp, t - ratio, config)
        rows.append(_row(t, move=((to / a) ** 0.5, (1 - to) ** 0.5 - (to * (1 - a) / a) ** 0.5)))
    return rows, _start(acp[timesteps[0]])


def _start(a: float) -> tuple[float, float, float]:
    return a**0.5, (1 - a) ** 0.5, 1.0


def _pndm(acp, steps, skipped, config):
    """Liu et al. 2022 without Runge-Kutta steps (PLMS): the second timestep, if any, comes twice."""
    ratio, rows = config["num_train_timesteps"] // steps, []
    timesteps = _whole(steps, config, "leading")
    timesteps = np.concatenate([timesteps[:2], timesteps[1:]])[skipped:]
    mixes = [
        (1.0,),
        (0.5, 0.5),
        (1.5, -0.5),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    ]
    for call, t in enumerate(timesteps):
        start, end = (t + ratio, t) if call == 1 else (t, t - ratio)
        a, to = acp[start], _alpha(acp, end, config)
        rate = (to - a) / (a * (1 - to) ** 0.5 + (a * (1 - a) * to) ** 0.5)
        mix, again = mixes[min(call, 4)], call == 1
        rows.append(_row(t, weights=mix, move=((to / a) ** 0.5, -rate), restart=again, keep=not again))
    return rows, _start(acp[timesteps[0]])


def _dpmpp(acp, steps, skipped, config):
    """Lu et al. 2022: second order, multistep, midpoint; the last step, to no noise, of first order."""
    timesteps = _whole(steps, config, "linspace", 1)
    a = np.append(acp[timesteps], 1.0)
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    rows = []
    for i in range(skipped, steps):
        h = lam[i + 1] - lam[i]
        weights = (1.0,)
        if skipped < i < steps - 1:
            r = (lam[i] - lam[i - 1]) / h
            weights = (1 + 0.5 / r, -0.5 / r)
        move = sigma[i + 1] / sigma[i], -alpha[i + 1] * np.expm1(-h)
        m = 1 / alpha[i], -sigma[i] / alpha[i]
        rows.append(_row(timesteps[i], m=m, weights=weights, move=move))
    return rows, _start(a[skipped])


def _euler(acp, steps, skipped, config):
    """Karras et al. 2022, without churn: x is clean latents plus sigma times noise."""
    timesteps = _timesteps(steps, config, "linspace")
    sigma = np.append(np.interp(timesteps, np.arange(len(acp)), ((1 - acp) / acp) ** 0.5), 0.0)
    rows = [
        _row(timesteps[i], scale=(sigma[i] ** 2 + 1) ** -0.5, move=(1.0, sigma[i + 1] - sigma[i]))
        for i in range(skipped, steps)
    ]
    # leading timesteps begin where there is some signal left, so the variances add up to the whole
    whole = config.get("timestep_spacing") == "leading"
    return rows, (1.0, sigma[skipped], (sigma[0] ** 2 + whole) ** 0.5)


def sample(
    noise_of: Callable[[Array, Any], Array],
    x: Array,
    run: Plan,
    conditions: Any = None,
    trace: bool = False,
) -> Any:
    """The denoising loop, as one `lax.scan`.

    Args:
      noise_of: (latents, scaled as the plan says; the call's condition) -> the network's noise estimate.
      x: [B, ...], the latents where the run begins.
      conditions: pytree of arrays [N, ...]: what `noise_of` needs of each call, made beforehand.
      trace: also return the latents after each call, [N, B, ...].

    Returns:
      [B, ...].
    """

    def call(carry, inputs):
        x, saved, history = carry
        row, condition = inputs
        m = row.from_x * x + row.from_eps * noise_of(row.scale * x, condition)
        estimates = jnp.concatenate([m[None], history])
        # latents stay float32: by default accelerators multiply in half precision
        mixed = jnp.tensordot(row.weights, estimates, 1, precision=jax.lax.Precision.HIGHEST)
        moved = row.move_x * jnp.where(row.restart, saved, x) + row.move_m * mixed
        pushed = jnp.concatenate([m[None], history[:-1]])
        return (moved, x, jnp.where(row.keep, pushed, history)), moved if trace else None

    history = jnp.zeros((HISTORY, *x.shape), x.dtype)
    (x, _, _), steps = jax.lax.scan(call, (x, x, history), (jax.tree.map(jnp.asarray, run), conditions))
    return (x, steps) if trace else x
