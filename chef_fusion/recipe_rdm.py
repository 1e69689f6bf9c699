"""RCG paints for the chef: an RDM told by a recipe makes the representation of its dish, and RCG's pixel
generator paints that (RCG, appendix A: a new condition needs only a new RDM).

What it is told are the states of the image generator's text encoder, the very ones that ChefFusion's mapper
makes of its [IMG] tokens: so it needs no mapper of its own.
"""

import jax
import jax.numpy as jnp

from rcg.errors import UserError

Array = jax.Array


def condition(states: Array) -> Array:
    """Text states [N, L, D] -> what the RDM is told, float32 [N, 2 D]: their mean, and the last, which has
    seen all of the text."""
    states = states.astype(jnp.float32)
    return jnp.concatenate([states.mean(1), states[:, -1]], axis=-1)


def check_told(condition_dim: int, width: int) -> None:
    """Raises UserError: an RDM that is told vectors of another size than `condition` makes of text states of
    `width` values."""
    if condition_dim != 2 * width:
        raise UserError(
            f"the RDM is told {condition_dim} values, but text states of {width} make {2 * width}: it needs "
            "one that configs/chef_fusion/recipe_rdm.py trained on this image generator"
        )
