"""Training from what frozen networks made of the images beforehand, instead of from the images.

A record has as many views as its augmentation needs: one without, two with flips (as it is, mirrored), and
with random crops as many as were asked for. Which one a batch takes is drawn as the augmentation itself would
be: with flips or without any augmentation, training is the same as on the images.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rcg import cache
from rcg.data.decode import Transform
from rcg.data.sources import Source
from rcg.errors import UserError

ROWS = ("label", "bad", "bad_index")  # of a record, whatever the view
TRANSFORM = ("image_size", "resize", "augment", "crop_padding")  # fields that decide what an image becomes
PROBES = 64  # records that stand for a source


def num_views(transform: Transform, asked: int) -> int:
    """How many views are kept of each record.

    Raises:
      UserError: fewer than one of random crops.
    """
    if transform.crop != "random":
        return 2 if transform.flip else 1
    if asked < 1:
        raise UserError("random crops have no end of views: say how many to keep of each record, --views=4")
    return asked


def draws_of(transform: Transform, seed: int, record: int, view: int) -> np.ndarray:
    """The draws [3] that make a view of a record, see `Transform.finish`."""
    if transform.crop != "random":
        return np.array([0.0, 0.0, 0.25 if view else 0.75])
    return np.random.default_rng([seed, record, view]).random(3)


def view_of(transform: Transform, views: int, draws: np.ndarray) -> int:
    """The view that stands for what these draws would have made."""
    if transform.crop != "random":
        return int(transform.flip and draws[2] < 0.5)
    return int(draws[0] * views)


def identity(data: ConfigDict, source: Source, views: int, made_by: dict[str, str]) -> dict[str, Any]:
    """What a cache must be of.

    Args:
      made_by: the networks' content hashes, by their part in it.
    """
    digest = hashlib.sha256()
    count = len(source)
    for i in range(min(PROBES, count)):
        try:
            record = source[i * count // min(PROBES, count)]
            image = record["image"]
            digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes())
            digest.update(str(record["label"]).encode())
        except (OSError, ValueError):
            digest.update(b"bad")
    about = {"records": count, "images": digest.hexdigest(), "views": views}
    return about | {name: data[name] for name in TRANSFORM} | dict(made_by)


def views_held(folder: str, transform: Transform) -> int:
    """How many views of each record a cache has; without random crops as many as it should."""
    if transform.crop != "random":
        return num_views(transform, 0)
    held = cache.open_arrays(folder, "train", {})
    return next(array.shape[1] for name, array in held.items() if name not in ROWS)


def check(folder: str, wanted: dict[str, Any]) -> None:
    """Raises UserError if a cache is of something else, or cut off."""
    cache.open_arrays(folder, "train", wanted)


class EncodedLoader:
    """[(index, draws)] -> a batch, as the images' own loader makes it, with what was computed of the images
    in their place."""

    def __init__(self, folder: str, transform: Transform):
        self._folder, self._transform = folder, transform
        self._held: dict[str, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def __call__(self, elements: Sequence[tuple[int, np.ndarray]]) -> dict[str, np.ndarray]:
        if self._held is None:
            self._held = cache.open_arrays(self._folder, "train", {})
        index = np.array([i for i, _ in elements])
        batch = {}
        for name, array in self._held.items():
            if name in ROWS:
                batch[name] = np.array(array[index])
                continue
            views = [view_of(self._transform, array.shape[1], draws) for _, draws in elements]
            batch[name] = array[index, views]
        return batch


def write(
    folder: str,
    source: Source,
    load: Callable[[Sequence[tuple[int, np.ndarray]]], dict[str, np.ndarray]],
    transform: Transform,
    views: int,
    wanted: dict[str, Any],
    encode: Callable[[np.ndarray], dict[str, np.ndarray]],
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Computes the views of every record of the training split; goes on where it was cut off.

    Args:
      load: the images' own loader.
      encode: uint8 [batch_size, S, S, 3] -> arrays [batch_size, ...].

    Raises:
      UserError: see `cache.write`.
    """

    def compute(numbers: range) -> dict[str, np.ndarray]:
        made: dict[str, list[np.ndarray]] = {}
        for view in range(views):
            batch = load([(i, draws_of(transform, seed, i, view)) for i in numbers])
            missing = batch_size - len(numbers)
            images = np.pad(batch["image"], ((0, missing), (0, 0), (0, 0), (0, 0)))
            for name, array in encode(images).items():
                made.setdefault(name, []).append(array[: len(numbers)])
        return {n: batch[n] for n in ROWS} | {name: np.stack(x, axis=1) for name, x in made.items()}

    example = compute(range(1))
    specs = {name: (array.shape[1:], array.dtype) for name, array in example.items()}
    cache.write(folder, "train", wanted, specs, len(source), compute, batch_size, progress)
