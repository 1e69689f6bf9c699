"""The kitchen's pictures, drawn once and read by all stages of a pipeline (`rcg.cache`)."""

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from chef_fusion.kitchen.menu import dish
from chef_fusion.kitchen.scenes import draw
from rcg import cache
from rcg.errors import UserError

BATCH = 256


def identity(seed: int, split: str, menu: str, size: int) -> dict[str, Any]:
    """What kept pictures must be of; the first one's bytes stand for how they are drawn."""
    first = hashlib.sha256(draw(dish(seed, 0, split, menu), size).tobytes()).hexdigest()
    return {"seed": seed, "menu": menu, "size": size, "first": first}


@functools.cache
def open_pictures(folder: str, num: int, seed: int, split: str, menu: str, size: int) -> np.ndarray:
    """uint8 [at least num, size, size, 3], read as they are used.

    Raises:
      UserError: see `cache.open_arrays`; or fewer than `num`.
    """
    held = cache.open_arrays(folder, split, identity(seed, split, menu, size), "pictures")["images"]
    if len(held) < num:
        raise UserError(f"{folder} holds {len(held)} pictures of the split {split}, not {num}; {cache.AGAIN}")
    return held


def write(
    folder: str,
    num: int,
    seed: int,
    split: str,
    menu: str,
    size: int,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Draws a split's first `num` pictures, in `workers` processes; one that was cut off goes on.

    Raises:
      UserError: see `cache.write`.
    """
    specs = {"images": ((size, size, 3), np.uint8)}
    drawn = functools.partial(_drawn, seed, split, menu, size)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def images(numbers: range) -> dict[str, np.ndarray]:
            parts = [numbers[i::workers] for i in range(workers)]
            made = np.empty((len(numbers), size, size, 3), np.uint8)
            for i, part in enumerate(pool.map(drawn, parts)):
                made[i::workers] = part
            return {"images": made}

        wanted = identity(seed, split, menu, size) | {"records": num}
        cache.write(folder, split, wanted, specs, num, images, BATCH, progress, what="pictures")


def _drawn(seed: int, split: str, menu: str, size: int, numbers: range) -> np.ndarray:
    return np.stack([draw(dish(seed, i, split, menu), size) for i in numbers])
