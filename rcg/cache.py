"""Arrays that are computed once and read many times: a row for each record, in files that are mapped.

A folder holds, for each split, `<split>.json`, which says of what the rows are, and `<split>.<name>.npy` for
each array. A cache of something else is refused; one that was cut off goes on where it was.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rcg import json_files
from rcg.errors import UserError

Specs = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> (shape of a row, dtype)
SAVE_EVERY = 50  # batches
AGAIN = "run launch.prepare with this config"


def _about(folder: str, split: str) -> str:
    return os.path.join(folder, f"{split}.json")


def _array(folder: str, split: str, name: str) -> str:
    return os.path.join(folder, f"{split}.{name}.npy")


def open_arrays(
    folder: str, split: str, wanted: Mapping[str, Any], what: str = "cache"
) -> dict[str, np.ndarray]:
    """The arrays of a split, read as they are used.

    Args:
      wanted: what they must be of, fit for JSON.
      what: to call it in errors.

    Raises:
      UserError: not there, cut off, or of something else.
    """
    path = _about(folder, split)
    if not os.path.exists(path):
        raise UserError(f"{folder} holds no {what} of the split {split}; {AGAIN}")
    try:
        found = json_files.read(path, AGAIN)
        specs, about = found["arrays"], found["of"]
        held = {name: np.load(_array(folder, split, name), mmap_mode="r") for name in specs}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the {what} in {folder} can't be read ({error}); {AGAIN}") from error
    differing = [name for name in wanted if about.get(name) != wanted[name]]
    for name, array in held.items():
        if list(array.shape) != specs[name]["shape"]:
            differing.append(f"shape {array.shape} of {name}")
    if differing:
        names = ", ".join(differing)
        raise UserError(f"the {what} in {folder} are of other data ({names} of {split} differ); {AGAIN}")
    return held


def intact(folder: str, split: str) -> bool:
    """Whether the arrays are, byte by byte, those that were written."""
    with open(_about(folder, split), encoding="utf-8") as f:
        specs = json.load(f)["arrays"]
    return all(_digest(_array(folder, split, name)) == spec["sha256"] for name, spec in specs.items())


def write(
    folder: str,
    split: str,
    wanted: Mapping[str, Any],
    specs: Specs,
    rows: int,
    compute: Callable[[range], Mapping[str, np.ndarray]],
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
    what: str = "cache",
) -> None:
    """Writes the arrays of a split. What is there, right and undamaged is left alone.

    Args:
      wanted: what the rows are of, see `open_arrays`.
      compute: numbers of rows that follow one another -> those rows of each array.

    Raises:
      UserError: rows that are not finite, or a disk that can't take them.
    """
    with alone(folder):
        _write(folder, split, wanted, specs, rows, compute, batch_size, progress, what)


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Makes the folder, and holds it: of two commands that would write the same files one is refused.

    Raises:
      UserError: another writes there, or it can't be written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another folder") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        raise UserError(f"another process is writing to {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        os.close(held)


def _write(folder, split, wanted, specs, rows, compute, batch_size, progress, what) -> None:
    """See `write`. A cache of something else stays until this one is whole."""
    path = _about(folder, split)
    try:
        open_arrays(folder, split, wanted, what)
        if intact(folder, split):
            return
    except UserError:
        pass
    state, done = path + ".incomplete", 0
    staging = {name: _array(folder, split, name) + ".incomplete" for name in specs}
    plan = {"of": dict(wanted), "arrays": {k: [list(s), np.dtype(d).name] for k, (s, d) in specs.items()}}
    if os.path.exists(state) and all(map(os.path.exists, staging.values())):
        with open(state, encoding="utf-8") as f:
            left = json.load(f)
        if {k: left.get(k) for k in plan} == plan:
            done = left["done"]
    held = {
        name: np.lib.format.open_memmap(
            staging[name], "r+" if done else "w+", None if done else dtype, None if done else (rows, *shape)
        )
        for name, (shape, dtype) in specs.items()
    }
    for name in specs:
        _reserve(staging[name])
    for first in range(done, rows, batch_size):
        numbers = range(first, min(first + batch_size, rows))
        for name, made in compute(numbers).items():
            if np.issubdtype(made.dtype, np.floating) and not np.isfinite(made).all():
                raise UserError(f"{name} of rows {first} to {numbers[-1]} is not finite")
            held[name][first : first + len(numbers)] = made
        if first // batch_size % SAVE_EVERY == SAVE_EVERY - 1:
            for array in held.values():
                array.flush()
            _write_json(state, plan | {"done": numbers[-1] + 1})
        progress(numbers[-1] + 1)
    arrays = {}
    for name, array in held.items():
        array.flush()
        arrays[name] = {"shape": list(array.shape), "sha256": _digest(staging[name])}
    del held
    if os.path.exists(path):
        os.remove(path)
    for name, made in staging.items():
        os.replace(made, _array(folder, split, name))
    _write_json(path, {"of": dict(wanted), "arrays": arrays})
    if os.path.exists(state):
        os.remove(state)


def _reserve(path: str) -> None:
    """Takes all the room of a mapped file: to run out of it later would be a signal, not an error."""
    try:
        with open(path, "r+b") as f:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, os.path.getsize(path))
    except OSError as error:
        size = os.path.getsize(path)
        os.remove(path)
        raise UserError(f"no room for {size / 1e6:.0f} MB in {path} ({error.strerror}); make some") from error


def _digest(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write_json(path: str, value: Any) -> None:
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
    os.replace(path + ".tmp", path)
