"""The text encoder's states of every recipe, computed once: what l_g compares with."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from chef_fusion.data import RecipeSet
from rcg import cache


def identity(
    recipes: RecipeSet, target_text: str, encoder_hash: str, shape: tuple[int, int]
) -> dict[str, Any]:
    """What a cache must be of."""
    digest = hashlib.sha256()
    for i in range(recipes.num_recipes):
        digest.update(recipes.target_text(i, target_text).encode() + b"\0")
    about = {"recipes": recipes.num_recipes, "texts": digest.hexdigest(), "target_text": target_text}
    return about | {"stable_diffusion": encoder_hash, "shape": list(shape)}


def open_targets(folder: str, split: str, wanted: dict[str, Any]) -> np.ndarray:
    """The states of a split [N, 77, D], read as they are used; a cache of others is refused.

    Raises:
      UserError: see `cache.open_arrays`.
    """
    return cache.open_arrays(folder, split, wanted, "targets")["states"]


def compute(
    folder: str,
    split: str,
    recipes: RecipeSet,
    wanted: dict[str, Any],
    encode: Callable[[list[str]], np.ndarray],
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes the targets of a split; a run that was cut off goes on from where it was.

    Args:
      encode: texts -> states [N, 77, D].

    Raises:
      UserError: see `cache.write`.
    """

    def states(numbers: range) -> dict[str, np.ndarray]:
        return {"states": encode([recipes.target_text(i, wanted["target_text"]) for i in numbers])}

    specs = {"states": (tuple(wanted["shape"]), np.float32)}
    cache.write(folder, split, wanted, specs, wanted["recipes"], states, batch_size, progress, what="targets")
