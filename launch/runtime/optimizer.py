"""AdamW or Muon from the config: parameter groups, schedules, clipping."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from launch.runtime.mesh import path_name
from rcg.errors import UserError

SCHEDULES = ("constant", "cosine", "step")
DECAY = ("matrices", "all")
NAMES = ("adamw", "muon")


def learning_rate(step: Any, settings: ConfigDict, total_steps: int) -> jax.Array:
    """Rate of the update that follows `step` updates: linear warm-up from 0, then constant, half a
    cosine from the peak to `min_learning_rate` (MAE's and RCG's per-iteration rule, rcg main_mage.py), or
    `decay_factor` times as much every `decay_steps` steps after the one that follows the warm-up (GILL's)."""
    peak, floor, warmup = settings.learning_rate, settings.min_learning_rate, settings.warmup_steps
    step = jnp.asarray(step)
    if settings.epoch_steps:
        step = step - step // settings.epoch_steps
    if settings.schedule == "step":
        drops = jnp.maximum(step - warmup - 1, 0) // max(settings.decay_steps, 1)
        rate = peak * settings.decay_factor ** drops.astype(jnp.float32)
        return jnp.where(step <= warmup, peak * step / max(warmup, 1), rate)
    step = step.astype(jnp.float32)
    after = jnp.float32(peak)
    if settings.schedule == "cosine":
        progress = (step - warmup) / max(total_steps - warmup, 1)
        after = floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, peak * step / max(warmup, 1), after)


def decay_mask(params: Any, rule: str) -> Any:
    """Which leaves weight decay applies to: "all", or only "matrices" (no 1-D arrays, no biases)."""

    def decays(path, leaf):
        return rule == "all" or (leaf.ndim > 1 and not path_name(path).endswith("bias"))

    return jax.tree.map_with_path(decays, params)


def _transform(settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()

    def rate(step):
        return learning_rate(step, settings, total_steps)

    adamw = optax.adamw(
        rate,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=lambda params: decay_mask(params, settings.decay),
    )
    if settings.name == "adamw":
        return optax.chain(clip, adamw)
    muon = contrib.muon(
        lambda step: settings.muon_scale * rate(step),
        beta=0.95,
        weight_decay=settings.weight_decay,
        muon_weight_dimension_numbers=muon_dimensions,
        consistent_rms=0.2,
    )
    by_kind = optax.partition({"muon": muon, "adamw": adamw}, muon_labels)
    return optax.chain(clip, by_kind)


def muon_dimensions(params: Any) -> Any:
    """How Muon sees each kernel as a matrix: all but the last axis are inputs."""

    def dimensions(leaf):
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map(dimensions, params)


def muon_labels(params: Any) -> Any:
    """Which of the two moves what: Muon the kernels of layers, AdamW embeddings, norms and biases."""

    def label(path, leaf):
        return "muon" if leaf.ndim > 1 and path_name(path).endswith("kernel") else "adamw"

    return jax.tree.map_with_path(label, params)


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformation:
    """The optimiser of `config.optimizer` for (abstract) `params`; each group has its own clip and moments.

    Raises:
      UserError: an unknown optimiser, schedule or decay rule, a `muon_scale` that is not above 0, or a group
        that matches no parameter.
    """
    base = config.optimizer
    groups = {"default": base}
    for name, overrides in base.groups.items():
        settings = ConfigDict(base.to_dict() | {"params": overrides.params})
        unknown = sorted(set(overrides.keys()) - set(settings.keys()))
        if unknown:
            raise UserError(f"optimizer group {name} has no field {', '.join(unknown)}")
        settings.update({k: v for k, v in overrides.items() if k != "params"})
        groups[name] = settings
    for name, settings in groups.items():
        for field, allowed in (("name", NAMES), ("schedule", SCHEDULES), ("decay", DECAY)):
            if settings[field] not in allowed:
                listed = ", ".join(allowed)
                raise UserError(f'optimizer group {name}: {field} "{settings[field]}" is not one of {listed}')
        if settings.muon_scale <= 0:
            raise UserError(f"optimizer group {name}: muon_scale {settings.muon_scale} must be above 0")

    def label(path, _):
        others = {n: s.params for n, s in groups.items() if n != "default"}
        try:
            names = [n for n, pattern in others.items() if re.search(pattern, path_name(path))]
        except re.error as error:
            raise UserError(f"a pattern of optimizer groups, one of {others}, is none: {error}") from error
        return next(iter(names), "default")

    labels = jax.tree.map_with_path(label, params)
    unused = set(groups) - {"default"} - set(jax.tree.leaves(labels))
    if unused:
        raise UserError(f"optimizer groups {sorted(unused)} match no parameter; check their regexes")
    transforms = {name: _transform(settings, config.total_steps) for name, settings in groups.items()}
    return optax.partition(transforms, labels) if len(groups) > 1 else transforms["default"]
