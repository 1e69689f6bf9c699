"""Orbax checkpoints of a run: written whole or not at all, and never silently skipped over.

A checkpoint holds all that decides the next step: the train state, the data iterator's position, the
count of bad records and the config.
"""

import os
from typing import Any

import orbax.checkpoint as ocp

from launch.runtime.cli import RunError
from launch.runtime.step import TrainState

ITEMS = ("state", "progress", "config")


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`."""

    def __init__(self, workdir: str, keep: int = 2, read_only: bool = False):
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, create=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)

    def latest(self) -> int | None:
        """The newest step there is; None before the first save."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts writing in the background; returns once the arrays are copied."""
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave(config),
                ),
            )
        except OSError as error:
            raise RunError(
                f"checkpoint {step} could not be written to {self.folder}: {error}; the ones before it "
                "are untouched: make room and run the same command again"
            ) from error

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step`, placed as `abstract` says, and the data's progress.

        Raises:
          RunError: it can't be read. Never falls back to an older one or to a fresh start.
        """
        try:
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
                "Put it back, or move it away to go on from the one before"
            ) from error

    def wait(self) -> None:
        """Until what was saved is on disk.

        Raises:
          RunError: a write in the background failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise RunError(f"a checkpoint could not be written to {self.folder}: {error}") from error

    def close(self) -> None:
        self._manager.close()
