"""Metrics to files: JSON lines always, TensorBoard events beside them, without TensorFlow.

The method names are clu's `MetricWriter`'s, whose own module can't be imported without TensorFlow.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from launch.runtime.images import grid, png_bytes
from rcg.errors import UserError

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no words for them


def _whole_lines(path: str) -> list[tuple[str, dict[str, Any]]]:
    """(text, parsed) of each line; what a kill cut off is left out."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, errors="replace") as f:
        for text in f:
            with contextlib.suppress(ValueError):
                parsed = json.loads(text)
                if isinstance(parsed, dict) and text.endswith("\n"):
                    lines.append((text, parsed))
    return lines


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each {"step": int, name: float, ...}; [] where there is none."""
    return [
        {k: NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in parsed.items()}
        for _, parsed in _whole_lines(path)
    ]


class MetricWriter:
    """Writes to `workdir/metrics`: metrics.jsonl and TensorBoard's event files.

    Raises (all methods):
      UserError: the disk is full, or the folder can't be written to.
    """

    def __init__(self, workdir: str):
        self._folder = os.path.join(workdir, "metrics")
        self._path = os.path.join(self._folder, "metrics.jsonl")
        with self._disk():
            os.makedirs(self._folder, exist_ok=True)
            self._lines = open(self._path, "a")
            self._events = EventFileWriter(self._folder)

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, so that a resumed run's file ends as an uninterrupted one's."""
        with self._disk():
            self._lines.close()
            kept = [text for text, parsed in _whole_lines(self._path) if parsed.get("step", 0) <= step]
            with open(self._path + ".incomplete", "w") as f:
                f.writelines(kept)
            os.replace(self._path + ".incomplete", self._path)
            self._lines = open(self._path, "a")
        # TensorBoard then forgets what the event files of before the kill say of later steps
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line with all of them; floats round-trip exactly, what is not finite is kept as text."""
        scalars = {k: float(v) for k, v in scalars.items()}
        line = {"step": int(step)} | {k: v if math.isfinite(v) else str(v) for k, v in scalars.items()}
        with self._disk():
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        self._summary(step, [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()])

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """name -> [N, H, W, 3] in [0, 1]; TensorBoard only."""
        values = []
        for name, batch in images.items():
            sheet = grid(batch)
            encoded = png_bytes(sheet)
            image = Summary.Image(height=sheet.shape[0], width=sheet.shape[1], encoded_image_string=encoded)
            values.append(Summary.Value(tag=name, image=image))
        self._summary(step, values)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """name -> Markdown; TensorBoard only."""
        values = []
        for name, text in texts.items():
            tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto())
            metadata = text_metadata.create_summary_metadata(display_name=name, description="")
            values.append(Summary.Value(tag=f"{name}/text_summary", metadata=metadata, tensor=tensor))
        self._summary(step, values)

    def write_hparams(self, hparams: Mapping[str, bool | float | str]) -> None:
        """The flat settings of the run, for TensorBoard's comparison of runs."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hparams.items()}
        self._event(0, summary=hparams_summary.hparams_pb(plain))

    def flush(self) -> None:
        with self._disk():
            self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        with self._disk():
            self._lines.close()
            self._events.close()

    def _summary(self, step: int, values: list[Summary.Value]) -> None:
        self._event(step, summary=Summary(value=values))

    def _event(self, step: int, **what: Any) -> None:
        with self._disk():
            self._events.add_event(Event(step=int(step), wall_time=time.time(), **what))

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"can't write metrics to {self._folder}: {reason}; free some space, or name another --workdir"
            ) from error
