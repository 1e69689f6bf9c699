"""The text encoder's states of every recipe, computed once: what l_g compares with.

A folder holds `<split>.npy` [N, 77, D] and `<split>.json`, which says of which texts and which text encoder;
a cache of others is refused before training starts.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from chef_fusion.data import RecipeSet
from rcg.errors import UserError


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
    """The states of a split, read as they are used.

    Raises:
      UserError: not there, cut off, or of other texts or another text encoder.
    """
    path, about = os.path.join(folder, f"{split}.npy"), os.path.join(folder, f"{split}.json")
    again = "run launch.prepare with this config"
    if not os.path.exists(about) or not os.path.exists(path):
        raise UserError(f"{folder} holds no targets of the split {split}; {again}")
    try:
        with open(about, encoding="utf-8") as f:
            found = json.load(f)
        held = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"the targets in {folder} can't be read ({error}); {again}") from error
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing or held.shape != (wanted["recipes"], *wanted["shape"]):
        names = ", ".join(differing) or f"shape {held.shape}"
        raise UserError(f"the targets in {folder} are of other data ({names} of {split} differ); {again}")
    return held


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
      UserError: states that are not finite.
    """
    os.makedirs(folder, exist_ok=True)
    path, about = os.path.join(folder, f"{split}.npy"), os.path.join(folder, f"{split}.json")
    try:
        open_targets(folder, split, wanted)
        return
    except UserError:
        if os.path.exists(about):
            os.remove(about)
    staging, state = path + ".incomplete", about + ".incomplete"
    shape, done = (wanted["recipes"], *wanted["shape"]), 0
    if os.path.exists(state) and os.path.exists(staging):
        with open(state, encoding="utf-8") as f:
            left = json.load(f)
        if left.pop("done", None) is not None and {k: left.get(k) for k in wanted} == wanted:
            with open(state, encoding="utf-8") as f:
                done = json.load(f)["done"]
    mode = "r+" if done else "w+"
    held = np.lib.format.open_memmap(staging, mode, None if done else np.float32, None if done else shape)
    for first in range(done, shape[0], batch_size):
        numbers = range(first, min(first + batch_size, shape[0]))
        found = encode([recipes.target_text(i, wanted["target_text"]) for i in numbers])
        if not np.isfinite(found).all():
            raise UserError(f"the text encoder's states of recipes {first} to {numbers[-1]} are not finite")
        held[first : first + len(found)] = found
        if first // batch_size % 50 == 49:
            held.flush()
            with open(state, "w", encoding="utf-8") as f:
                json.dump(wanted | {"done": first + len(found)}, f)
        progress(first + len(found))
    held.flush()
    del held
    os.replace(staging, path)
    with open(about + ".tmp", "w", encoding="utf-8") as f:
        json.dump(wanted, f, indent=2)
    os.replace(about + ".tmp", about)
    if os.path.exists(state):
        os.remove(state)
