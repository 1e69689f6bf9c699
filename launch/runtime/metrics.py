"""Metrics to files: JSON lines always, TensorBoard events beside them, without TensorFlow.

The method names are clu's `MetricWriter`'s, whose own module can't be imported without TensorFlow.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from launch.runtime.images import grid, png_bytes
from rcg.errors import UserError


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path) as f:
        for line in f:
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


class MetricWriter:
    """Writes to `workdir/metrics`.

    Raises:
      UserError: the folder can't be written to.
    """

    def __init__(self, workdir: str):
        self._folder = os.path.join(workdir, "metrics")
        self._path = os.path.join(self._folder, "metrics.jsonl")
        try:
            os.makedirs(self._folder, exist_ok=True)
            self._lines = open(self._path, "a")
        except OSError as error:
            raise UserError(f"can't write metrics to {self._folder}: {error.strerror}") from error
        self._events = EventFileWriter(self._folder)

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, so that a resumed run's file ends as an uninterrupted one's."""
        self._lines.close()
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        with open(self._path + ".incomplete", "w") as f:
            f.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(self._path + ".incomplete", self._path)
        self._lines = open(self._path, "a")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line with all of them; floats round-trip exactly, what is not finite is kept as text."""
        finite = {k: v if math.isfinite(v) else str(v) for k, v in scalars.items()}
        self._lines.write(json.dumps({"step": step} | finite) + "\n")
        self._lines.flush()
        self._add(step, [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()])

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """name -> [N, H, W, 3] in [0, 1]."""
        values = []
        for name, batch in images.items():
            sheet = grid(batch)
            encoded = png_bytes(sheet)
            image = Summary.Image(height=sheet.shape[0], width=sheet.shape[1], encoded_image_string=encoded)
            values.append(Summary.Value(tag=name, image=image))
        self._add(step, values)

    def _add(self, step: int, values: list[Summary.Value]) -> None:
        self._events.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))

    def flush(self) -> None:
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        self._lines.close()
        self._events.close()
