"""Exponential moving averages of parameters, as the official code's LitEma."""

from typing import Any

import jax
import jax.numpy as jnp


def update(ema: Any, params: Any, count: Any, decay: float, warmup: bool = True) -> Any:
    """The average after one more set of parameters.

    Args:
      ema, params: trees of one form.
      count: updates made before this one.
      decay: at most this; with `warmup` min(decay, (1 + n) / (10 + n)) where n = count + 1.
    """
    n = jnp.asarray(count, jnp.float32) + 1
    decay = jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else decay
    return jax.tree.map(lambda e, p: e - (1 - decay) * (e - p), ema, params)
