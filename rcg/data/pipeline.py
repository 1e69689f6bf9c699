"""From records to batches, with Grain: what comes when depends on the seed and the position alone.

A record's place in the stream and its random crop are drawn before a batch is split over processes, each of
which reads its rows of it alone: every number of processes sees the same global batches, row by row.
"""

import ctypes
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from rcg.data.decode import DecodeError, Transform
from rcg.data.encoded import EncodedLoader
from rcg.data.sources import Source
from rcg.errors import UserError

# none: center_crop by another name; clip: CLIP's, whose odd margins are rounded down
AUGMENTATIONS = ("center_crop", "random_crop_flip", "flip", "none", "clip")
PADDING = -1  # the index of a row that only fills up an eval batch
MAX_PROBES = 1000  # undecodable records in a row that end the run, whatever the allowed fraction
PR_SET_PDEATHSIG = 1  # of Linux's prctl
NO_DRAWS = np.zeros(3)
ENDLESS = 2**48  # batches


def image_batches(
    source: Source,
    data: ConfigDict,
    *,
    split: str,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    records: int | None = None,
    choose: Callable[[int, float], int] | None = None,
    alike: Sequence[np.ndarray] = (),
) -> grain.IterDataset:
    """Batches of squares from `source`.

    A record that can't be decoded is replaced by the next one (in the source's order) that can.

    Args:
      data: as `configs.common.images`.
      split: "train": endless, reshuffled each epoch, augmented; "eval": one pass in order, at most
        `max_eval_records` evenly spaced records, every shard with as many batches.
      batch_size: rows of this shard's batches.
      records, choose: where several images belong together: how many groups there are, and (group, uniform
        draw) -> index of the image to take this time; for "eval" the draw is 0.
      alike: sets of records (or groups); a training batch takes all of its rows from one of them, as often as
        its share of the records.

    With `data.cache` "train" has what was computed of the images in their place, see `encoded`.

    Returns:
      A dataset of {"image": uint8 [B, S, S, 3], "label": int32 [B], "bad": int32 [B], the undecodable
      records skipped to fill the row, "bad_index": int32 [B], the last of them or -1}. "eval" adds
      "mask": float32 [B], 0 for rows that must not count: padding, and stand-ins for bad records.
      Its iterators resume exactly from `get_state` with the same `data.workers`; `close` them.

    Raises:
      UserError: nothing in the source, or `data` does not fit together; when iterating, if
        `MAX_PROBES` records in a row (or all) can't be decoded.
    """
    if not len(source):
        raise UserError(f"config.data.path {data.path} holds no records")
    if split == "eval":
        groups = records or len(source)
        count = min(groups, data.max_eval_records or groups)
        rows = -(-count // (batch_size * shard_count)) * batch_size * shard_count
        spread = [i * groups // count for i in range(count)]
        spread = [choose(i, 0.0) if choose else i for i in spread] + [PADDING] * (rows - count)
        every = grain.MapDataset.source([(index, NO_DRAWS) for index in spread])
        parts = [every.batch(batch_size * shard_count, batch_fn=list)]
        load, workers = _Loader(source, _transform(data, train=False), 0, cores()), 0
    elif split == "train":
        transform = _transform(data, train=True)
        fits = len(source) * transform.resize**2 * 3 <= data.cache_mb * 2**20
        # Kept in memory, records are decoded once: processes would only multiply the memory.
        workers = 0 if fits else data.workers
        sets = [members for members in alike if len(members)] or [range(records or len(source))]
        orders = [
            _Order(members, batch_size * shard_count, [seed, i], choose) for i, members in enumerate(sets)
        ]
        parts = [grain.MapDataset.range(ENDLESS).map(order) for order in orders]
        load = _Loader(source, transform, data.cache_mb if fits else 0, 1 if workers else cores())
        if data.get("cache"):
            load, workers = EncodedLoader(data.cache, transform), 0
    else:
        raise ValueError(f'split is "train" or "eval", not "{split}"')
    # every shard takes its batches from the same sets in the same order
    mixed = grain.MapDataset.mix(parts, [len(s) for s in sets]) if len(parts) > 1 else parts[0]
    batches = mixed.map(Share(shard_index, batch_size)).map(load)
    if split == "train":
        batches = batches.map(_without_mask)
    # One reader: the loader itself decodes a batch's records in parallel, so few batches are in flight.
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _end_with_parent)
        dataset = dataset.map(_copied)
    return dataset


def image_dataset(
    source: Callable[[str], Source], data: ConfigDict, num_classes: int | None = None
) -> Callable[..., grain.IterDataset]:
    """An experiment's `dataset`: (split, batch_size, seed, shard_index, shard_count) -> `image_batches`.

    Args:
      source: split -> its records.
      num_classes: as many as labels may name, where they are read.

    Raises:
      UserError: when called, if the records have more classes.
    """

    def dataset(
        split: str, batch_size: int, seed: int, shard_index: int, shard_count: int
    ) -> grain.IterDataset:
        records = source(split)
        if num_classes is not None and len(records.label_names) > num_classes:
            raise UserError(
                f"config.model.num_classes is {num_classes}, but the images have "
                f"{len(records.label_names)} classes; set it to at least that"
            )
        shard = {"shard_index": shard_index, "shard_count": shard_count}
        return image_batches(records, data, split=split, batch_size=batch_size, seed=seed, **shard)

    return dataset


def eval_arrays(source: Source, data: ConfigDict, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` records (0: all), evenly spaced, prepared as for evaluation; bad ones are left out.

    Returns:
      images uint8 [N, S, S, 3], labels int32 [N].
    """
    load = _Loader(source, _transform(data, train=False), 0, cores())
    count = min(limit or len(source), len(source))
    batch = load([(i * len(source) // count, NO_DRAWS) for i in range(count)])
    good = batch["mask"] > 0
    return batch["image"][good], batch["label"][good]


def training_loader(source: Source, data: ConfigDict) -> tuple[Any, Transform]:
    """What reads the records of a batch of training images, [(index, draws [3])] -> batch, and how it
    changes them."""
    transform = _transform(data, train=True)
    return _Loader(source, transform, 0, cores()), transform


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent(index: int, count: int) -> None:
    """Lets the kernel end this worker process when its parent is gone, even if that was killed."""
    del index, count
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Share:
    """A global batch of records, not yet read -> the rows that are one shard's, which follow one another."""

    def __init__(self, shard_index: int, batch_size: int):
        self._rows = slice(shard_index * batch_size, (shard_index + 1) * batch_size)

    def __call__(self, elements: Sequence[Any]) -> Sequence[Any]:
        return elements[self._rows]


class _Order:
    """Number of a global batch -> its rows, [(index of the image, draws for its crop)]. Every epoch has each
    member once, in an order of its own.

    For a whole batch at a time: record by record this would be most of the time that cached ones take.
    """

    def __init__(
        self,
        members: Sequence[int],
        rows: int,
        seed: Sequence[int],
        choose: Callable[[int, float], int] | None,
    ):
        self._members, self._rows, self._choose = np.asarray(members), rows, choose
        self._seed = [int(n) % 2**32 for n in seed]
        self._orders: dict[int, np.ndarray] = {}  # of the epochs of the last batch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_orders": {}}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders[epoch] = np.random.default_rng([*self._seed, 0, epoch]).permutation(self._members)
        return self._orders[epoch]

    def __call__(self, number: int) -> list[tuple[int, np.ndarray]]:
        first, end = number * self._rows, (number + 1) * self._rows
        size = len(self._members)
        epochs = range(first // size, (end - 1) // size + 1)
        taken = np.concatenate(
            [self._order(e)[max(first - e * size, 0) : min(end - e * size, size)] for e in epochs]
        )
        self._orders = {epochs[-1]: self._order(epochs[-1])}
        draws = np.random.default_rng([*self._seed, 1, number]).random((self._rows, 4))
        if self._choose:
            taken = np.array([self._choose(int(i), float(d[3])) for i, d in zip(taken, draws, strict=True)])
        return list(zip(taken.tolist(), draws[:, :3], strict=True))


def _copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Out of the memory shared with the workers, which JAX on CPU would alias and keep beyond the exit."""
    return {name: np.array(value) for name, value in batch.items()}


def _without_mask(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in batch.items() if name != "mask"}


def _transform(data: ConfigDict, train: bool) -> Transform:
    """What `data.augment` means.

    Raises:
      UserError: an unknown augmentation, or sizes that do not fit together.
    """
    size = data.image_size
    if data.augment not in AUGMENTATIONS:
        there = ", ".join(AUGMENTATIONS)
        raise UserError(f'config.data.augment = "{data.augment}" is unknown; there are: {there}')
    if data.augment == "clip":
        return Transform(size, size, "clip")
    if not train:
        return Transform(size, size)
    resize = data.resize or size
    if resize < size:
        raise UserError(f"config.data.resize {resize} is less than config.data.image_size {size}")
    if not 0 <= data.crop_padding < resize:
        raise UserError(f"config.data.crop_padding {data.crop_padding} is not in 0..{resize - 1}")
    if data.augment == "random_crop_flip":
        return Transform(size, resize, "random", data.crop_padding, flip=True)
    return Transform(size, resize, flip=data.augment == "flip")


class _Loader:
    """[(index, draws)] -> a batch. Keeps prepared records in memory if `cache_mb` is not 0."""

    def __init__(self, source: Source, transform: Transform, cache_mb: int, threads: int):
        self._source, self._transform, self._threads = source, transform, threads
        self._pool: ThreadPoolExecutor | None = None
        self._room = cache_mb * 2**20
        self._kept: dict[int, tuple[np.ndarray, int] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_kept": {}}

    def __call__(self, elements: Sequence[tuple[int, np.ndarray]]) -> dict[str, np.ndarray]:
        size, rows = self._transform.size, len(elements)
        batch = {
            "image": np.zeros((rows, size, size, 3), np.uint8),
            "label": np.zeros(rows, np.int32),
            "bad": np.zeros(rows, np.int32),
            "bad_index": np.full(rows, -1, np.int32),
            "mask": np.zeros(rows, np.float32),
        }

        def fill(row: int) -> None:
            index, draws = elements[row]
            if index == PADDING:
                return
            (image, batch["label"][row]), batch["bad"][row], batch["bad_index"][row] = self._find_good(index)
            batch["image"][row] = self._transform.finish(image, draws)
            batch["mask"][row] = batch["bad"][row] == 0

        if self._threads == 1 or all(index in self._kept for index, _ in elements):
            for row in range(rows):
                fill(row)
        else:
            self._pool = self._pool or ThreadPoolExecutor(self._threads, "decode")
            for _ in self._pool.map(fill, range(rows)):
                pass
        return batch

    def _find_good(self, first: int) -> tuple[tuple[np.ndarray, int], int, int]:
        """The record at `first` or the next good one; how many were bad, and the last of those (or -1)."""
        bad_index = -1
        for bad in itertools.count():
            index = (first + bad) % len(self._source)
            record = self._prepared(index)
            if record is not None:
                return record, bad, bad_index
            bad_index = index
            if bad + 1 == min(len(self._source), MAX_PROBES):
                raise UserError(
                    f"{bad + 1} records in a row can't be decoded, from {self._source.name(first)} to "
                    f"{self._source.name(index)}; is this the right data?"
                )
        raise AssertionError

    def _prepared(self, index: int) -> tuple[np.ndarray, int] | None:
        """None for a bad record."""
        if index in self._kept:
            return self._kept[index]
        try:
            record = self._source[index]
            result = self._transform.prepare(record["image"]), record["label"]
        except (DecodeError, OSError):
            result = None
        size = result[0].nbytes if result else 0
        if size < self._room:
            self._room -= size
            self._kept[index] = result
        return result
