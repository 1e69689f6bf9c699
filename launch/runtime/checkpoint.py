"""Orbax checkpoints of a run: written whole or not at all, and never silently skipped over.

A checkpoint holds all that decides the next step: the train state, the data iterator's position, the
count of bad records and the config. Once it is on disk, its files' checksums are written beside them.
"""

import hashlib
import itertools
import json
import os
import threading
from typing import Any

import orbax.checkpoint as ocp

from launch.runtime import processes
from launch.runtime.cli import RunError
from launch.runtime.step import TrainState

ITEMS = ("state", "progress", "config")
CHECKSUMS = "checksums.json"
ADVICE = (
    "nothing was changed. Put it back; or, if there is one before it, go on from that: "
    "--allow_older_checkpoint"
)


class DamagedError(RunError):
    """A checkpoint is not what was written."""


def checksums(folder: str) -> dict[str, str]:
    """SHA-256 of each file below `folder`, by its path in it."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(CHECKSUMS):
                with open(path, "rb") as f:
                    found[os.path.relpath(path, folder)] = hashlib.file_digest(f, "sha256").hexdigest()
    return found


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`."""

    def __init__(self, workdir: str, keep: int = 2, read_only: bool = False):
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)
        self._keep = keep
        self._sealing: list[threading.Thread] = []  # each writes a checkpoint's checksums
        self._failed = threading.Event()

    def latest(self) -> int | None:
        """The newest step there is; None before the first save."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing, once the one before is on disk; returns when the arrays are copied.

        Raises:
          RunError: this one, or the one before, can't be written.
        """
        if step in self._manager.all_steps():
            return
        self._wait_for_files()
        # one that may now be deleted must not be read any more; the others need not hold up this one
        while len(self._sealing) >= self._keep:
            self._sealing.pop(0).join()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave(config),
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore has its own for a full disk
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder}: {error}; the ones before it "
                "are untouched: make room and run the same command again"
            ) from error
        if processes.first():
            self._sealing.append(threading.Thread(target=self._seal, args=(step,), daemon=True))
            self._sealing[-1].start()

    def _seal(self, step: int) -> None:
        """Writes the checksums of a checkpoint as soon as it is on disk, where a kill leaves them."""
        folder = os.path.join(self.folder, str(step))
        while not os.path.isdir(folder):  # it gets its name when it is whole
            if self._failed.wait(0.05):
                return
        try:
            path, found = os.path.join(folder, CHECKSUMS), checksums(folder)
            with open(path + ".incomplete", "w") as f:
                json.dump(found, f, indent=2)
            os.replace(path + ".incomplete", path)
        except OSError:
            pass  # the disk is full: a checkpoint without them counts

    def damage(self, step: int) -> str:
        """What is wrong with a checkpoint's files, by their checksums; "" if nothing, or none are there."""
        folder = os.path.join(self.folder, str(step))
        path = os.path.join(folder, CHECKSUMS)
        if not os.path.exists(path):
            return ""
        try:
            with open(path) as f:
                wanted = json.load(f)
            found = checksums(folder)
        except (OSError, ValueError) as error:
            return f"{path}: {error}"
        for name, digest in wanted.items():
            if name not in found:
                return f"its file {name} is missing"
            if found[name] != digest:
                return f"its file {name} is not what was written"
        return ""

    def is_oldest(self, step: int) -> bool:
        return step == min(self._manager.all_steps())

    def set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, so that the one before is the newest; returns its new path.

        Raises:
          RunError: it can't be renamed.
        """
        path = os.path.join(self.folder, str(step))
        names = (f"damaged.{step}" + (f".{i}" if i else "") for i in itertools.count())
        kept = next(p for p in (os.path.join(self.folder, n) for n in names) if not os.path.exists(p))
        processes.wait("name")
        refused = ""
        if processes.first():
            try:
                os.rename(path, kept)
            except OSError as error:
                refused = f"{path} can't be set aside: {error.strerror}"
        refused = next(filter(None, processes.gather(refused)), "")
        if refused:
            raise RunError(refused)
        self._manager.reload()
        return kept

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step`, placed as `abstract` says, and the data's progress.

        Raises:
          DamagedError: it is not what was written. RunError: it can't be read though it is, as far as is
            known. Never falls back to an older one or to a fresh start.
        """
        damage = self.damage(step) if processes.first() else ""
        damage = next(filter(None, processes.gather(damage)), "")
        where = os.path.join(self.folder, str(step))
        if damage:
            raise DamagedError(f"checkpoint {where} can't be read ({damage}); {ADVICE}")
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
            return items.state, items.progress
        except Exception as error:  # whatever orbax raises, the run must stop here
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if os.path.exists(os.path.join(where, CHECKSUMS)):
                raise RunError(
                    f"checkpoint {where} can't be read ({reason}), though its files are what was written; "
                    "nothing was changed. Is there memory enough, and is this the version that wrote it?"
                ) from error
            raise DamagedError(f"checkpoint {where} can't be read ({reason}); {ADVICE}") from error

    def wait(self) -> None:
        """Until what was saved is on disk, with its checksums.

        Raises:
          RunError: a write in the background failed.
        """
        self._wait_for_files()
        while self._sealing:
            self._sealing.pop(0).join()

    def _wait_for_files(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed.set()
            raise RunError(f"a checkpoint could not be written to {self.folder}: {error}") from error

    def close(self) -> None:
        self._manager.close()
