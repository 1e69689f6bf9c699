"""k-means over representations: labels without labels, for RCG's clustering ablation.

Mini-batch k-means (Sculley 2010) in running means: each step pulls a centre towards the mean of the points
that chose it, and a centre that hardly anyone chooses starts anew at some point of the batch. Memory is one
batch, so the size of the data set does not matter.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
REVIVE_BELOW = 0.1  # a centre chosen less than this, 1 being its fair share, starts anew


def init(centres: Array, revive_below: float = REVIVE_BELOW) -> dict[str, Array]:
    """The state before the first step, from centres [n, D] that differ: all are too rare already, so that
    those the first batch does not choose start anew at its points."""
    usage = jnp.full(len(centres), revive_below / 2)
    return {"usage": usage, "sums": centres * usage[:, None]}


def centres(state: Mapping[str, Array]) -> Array:
    """[num_clusters, dim]."""
    return state["sums"] / state["usage"][:, None]


def nearest(points: Array, centres: Array) -> tuple[Array, Array]:
    """Points [..., D] -> (index of the nearest centre [...], squared distance to it [...])."""
    dot = jnp.matmul(points, centres.T, precision="highest")
    distances = jnp.square(centres).sum(-1) - 2 * dot
    return distances.argmin(-1).astype(jnp.int32), distances.min(-1) + jnp.square(points).sum(-1)


def update(
    state: Mapping[str, Array],
    points: Array,
    chosen: Array,
    rng: Array,
    decay: float | Array,
    revive_below: float = REVIVE_BELOW,
) -> dict[str, Array]:
    """One step of the running means, after which each centre that is too rare starts anew at some point.

    Args:
      state: "usage" [n], how often a centre is chosen, 1 for its fair share; "sums" [n, D], usage times
        mean.
      points: [..., D]; chosen: what they chose, with as many elements.
      decay: the share that stays.
    """
    n, D = state["sums"].shape
    points = points.reshape(-1, D)
    hot = jax.nn.one_hot(chosen.reshape(-1), n)
    share = n / len(points)
    usage = decay * state["usage"] + (1 - decay) * share * hot.sum(0)
    sums = decay * state["sums"] + (1 - decay) * share * hot.T @ points
    rare = usage < revive_below
    seeds = points[jax.random.randint(rng, (n,), 0, len(points))]
    return {"usage": jnp.where(rare, 1.0, usage), "sums": jnp.where(rare[:, None], seeds, sums)}


class Clusters(nn.Module):
    """Fitted centres, and how the training set is spread over them."""

    num_clusters: int
    dim: int

    @nn.compact
    def __call__(self, representations: Array) -> Array:
        """[B, dim] -> int32 [B]: the nearest centres."""
        shape = (self.num_clusters, self.dim)
        table = self.param("centres", nn.initializers.zeros, shape)
        self.param("shares", nn.initializers.constant(1 / self.num_clusters), shape[:1])
        return nearest(representations, table)[0]


def build(architecture: Mapping[str, Any], **unused: Any) -> Clusters:
    """The module of an architecture; it computes in float32 always."""
    del unused
    return Clusters(**architecture)
