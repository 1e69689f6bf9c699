"""Orbax checkpoints of a run: written whole or not at all, and never silently skipped over.

A checkpoint holds all that decides the next step: the train state, the data iterator's position, the
count of bad records and the config. Once it is on disk, its files' checksums are written beside them.
"""

import hashlib
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
        self._sealing: threading.Thread | None = None  # writes the newest one's checksums
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
        self.wait()
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
            self._sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
            self._sealing.start()

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
        """Renames a damaged checkpoint, so that the one before is the newest; returns its new path."""
        path = os.path.join(self.folder, str(step))
        kept = os.path.join(self.folder, f"damaged.{step}")
        if processes.first():
            os.rename(path, kept)
        processes.wait("set aside")
        self._manager.reload()
        return kept

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step`, placed as `abstract` says, and the data's progress.

        Raises:
          RunError: it can't be read. Never falls back to an older one or to a fresh start.
        """
        damage = self.damage(step) if processes.first() else ""
        damage = next(filter(None, processes.gather(damage)), "")
        try:
            if damage:
                raise ValueError(damage)
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
            return items.state, items.progress
        except Exception as error:  # whatever orbax raises, the run must stop here
            raise RunError(
                f"checkpoint {os.path.join(self.folder, str(step))} can't be read "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); nothing was changed. "
                "Put it back; or go on from the one before: --allow_older_checkpoint"
            ) from error

    def wait(self) -> None:
        """Until what was saved is on disk.

        Raises:
          RunError: a write in the background failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed.set()
            raise RunError(f"a checkpoint could not be written to {self.folder}: {error}") from error
        if self._sealing is not None:
            self._sealing.join()

    def close(self) -> None:
        self._manager.close()
