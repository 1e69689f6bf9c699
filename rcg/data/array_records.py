"""Images in ArrayRecord shards: what any source holds, in few large files that are read at random.

    <split>-00000-of-00008.array_record, ...   records: the label (int32, little-endian), then an image file
    <split>.json                               how many there are, the labels' names, each shard's SHA-256

A shard is written whole or not at all, from its own records alone: any number of processes makes the same
bytes, and a run that was cut off writes what is missing.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from rcg import cache, json_files
from rcg.data.decode import DecodeError
from rcg.data.sources import Source
from rcg.errors import UserError

LABEL = struct.Struct("<i")
OPTIONS = "group_size:1"  # each record can be read alone


def _shard(folder: str, split: str, index: int, count: int) -> str:
    return os.path.join(folder, f"{split}-{index:05d}-of-{count:05d}.array_record")


def _digest(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def encode(record: dict[str, Any]) -> bytes:
    """A source's record as bytes; an image that is no file becomes a PNG."""
    image = record["image"]
    if not isinstance(image, bytes):
        file = io.BytesIO()
        Image.fromarray(np.asarray(image)).save(file, "PNG")
        image = file.getvalue()
    return LABEL.pack(record["label"]) + image


def _write_shard(source: Source, folder: str, split: str, index: int, count: int) -> dict[str, Any]:
    """{"records", "bad", "sha256"} of one shard, which is written unless it is there."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path = _shard(folder, split, index, count)
    about = path + ".json"
    if os.path.exists(about) and os.path.exists(path):
        with contextlib.suppress(UserError):  # damaged: it is made again
            made = json_files.read(about, "")
            if made.get("sha256") == _digest(path):
                return made
    first, end = (len(source) * i // count for i in (index, index + 1))
    staging, bad = f"{path}.incomplete", []
    try:
        writer = ArrayRecordWriter(staging, OPTIONS)
        for number in range(first, end):
            try:
                record = encode(source[number])
            except (DecodeError, OSError):
                bad.append(source.name(number))
            else:
                writer.write(record)
        writer.close()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"can't write {staging} ({reason}); make room and run the same command again"
        ) from error
    made = {"records": end - first - len(bad), "bad": bad, "sha256": _digest(staging)}
    os.replace(staging, path)
    with open(about + ".incomplete", "w") as f:
        json.dump(made, f)
    os.replace(about + ".incomplete", about)
    return made


def write(
    source: Source,
    folder: str,
    split: str,
    shards: int,
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes a split; what is there and undamaged is kept.

    Args:
      workers: processes, each a shard at a time; 0: this one.

    Returns:
      What `<split>.json` says.

    Raises:
      UserError: shards of another source or another number are there, or the disk can't take them.
    """
    with cache.alone(folder):
        return _write(source, folder, split, shards, workers, progress)


def _write(source, folder, split, shards, workers, progress) -> dict[str, Any]:
    """See `write`."""
    names = hashlib.sha256("\n".join(map(source.name, range(len(source)))).encode()).hexdigest()
    wanted = {"records": len(source), "shards": shards, "first": source.name(0), "split": split}
    wanted |= {"names": names, "label_names": list(source.label_names)}
    plan = os.path.join(folder, f"{split}.plan.json")
    if os.path.exists(plan):
        found = json_files.read(plan, f"take {folder} away")
        if found != wanted:
            raise UserError(
                f"{folder} holds shards of other records ({found}, not {wanted}); name another folder"
            )
    else:
        with open(plan, "w") as f:
            json.dump(wanted, f)
    jobs = [(source, folder, split, index, shards) for index in range(shards)]
    made = []
    if workers:
        # a fresh interpreter each: a fork of one that runs threads may never wake up
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for result in pool.imap(_write_job, jobs):
                made.append(result)
                progress(len(made))
    else:
        for job in jobs:
            made.append(_write_job(job))
            progress(len(made))
    about = {
        "records": sum(shard["records"] for shard in made),
        "label_names": list(source.label_names),
        "shards": [shard["sha256"] for shard in made],
        "bad": [name for shard in made for name in shard["bad"]],
    }
    path = os.path.join(folder, f"{split}.json")
    with open(path + ".incomplete", "w") as f:
        json.dump(about, f, indent=2)
    os.replace(path + ".incomplete", path)
    return about


def _write_job(job: tuple[Any, ...]) -> dict[str, Any]:
    return _write_shard(*job)


class ArrayRecordImages:
    """What `write` made of a split.

    Raises:
      UserError: nothing there, or shards missing.
    """

    def __init__(self, path: str, split: str):
        about = os.path.join(path, f"{split}.json")
        if not os.path.exists(about):
            there = sorted(n[: -len(".plan.json")] for n in _listdir(path) if n.endswith(".plan.json"))
            raise UserError(
                f'{path} has no split "{split}" of launch.prepare --shards; there are: '
                f"{', '.join(there) or 'nothing'} (cut off, the same command goes on)"
            )
        try:
            found = json_files.read(about, "run launch.prepare again")
            count = len(found["shards"])
            self._paths = [_shard(path, split, index, count) for index in range(count)]
            self.label_names = tuple(found["label_names"])
            self._expected = int(found["records"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{about} is damaged ({error}); run launch.prepare again") from error
        missing = [p for p in self._paths if not os.path.exists(p)]
        if missing:
            raise UserError(f"{missing[0]} is missing; run launch.prepare again")
        self._open()

    def _open(self) -> None:
        from grain.sources import ArrayRecordDataSource

        try:
            self._records = ArrayRecordDataSource(self._paths)
            count = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{self._paths[0]} and its like can't be read ({error}); make them again"
            ) from error
        if count != self._expected:
            raise UserError(
                f"{os.path.dirname(self._paths[0])} holds {count} records, but should hold {self._expected}; "
                "run launch.prepare again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return self._expected

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise DecodeError(f"{self.name(index)}: {error}") from error
        return {"image": record[LABEL.size :], "label": LABEL.unpack_from(record)[0]}

    def name(self, index: int) -> str:
        return f"{os.path.dirname(self._paths[0])} record {index}"


def _listdir(path: str) -> list[str]:
    return os.listdir(path) if os.path.isdir(path) else []
