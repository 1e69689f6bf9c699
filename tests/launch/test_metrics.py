import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.runtime.metrics import MetricWriter, read_metrics
from rcg.errors import UserError


def lines(workdir):
    return read_metrics(str(workdir / "metrics" / "metrics.jsonl"))


def test_lines_round_trip_exactly(tmp_path):
    writer = MetricWriter(str(tmp_path))
    awkward = {"loss": 0.1 + 0.2, "tiny": 5e-324, "single": np.float32(1 / 3), "count": 3}
    writer.write_scalars(10, awkward)
    writer.write_scalars(20, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    writer.close()
    first, second = lines(tmp_path)
    assert first == {"step": 10} | {k: float(v) for k, v in awkward.items()}
    assert list(first)[0] == "step"
    assert math.isnan(second["loss"]) and second["up"] == math.inf and second["down"] == -math.inf
    text = (tmp_path / "metrics" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text, "not JSON"


def test_rewind_ends_as_an_uninterrupted_run(tmp_path):
    def write(name, *episodes):
        for steps, cut in episodes:
            writer = MetricWriter(str(tmp_path / name))
            writer.rewind(steps.start - 1)
            for step in steps:
                writer.write_scalars(step, {"loss": 1 / step, "odd": math.nan if step % 2 else step})
            writer.close()
            if cut:
                with open(tmp_path / name / "metrics" / "metrics.jsonl", "a") as f:
                    f.write('{"step": 9, "lo')
        return (tmp_path / name / "metrics" / "metrics.jsonl").read_bytes()

    once = write("once", (range(1, 13), False))
    assert write("killed", (range(1, 9), True), (range(5, 11), True), (range(11, 13), False)) == once


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1')
    assert read_metrics(str(path)) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2}')  # it parses, yet it may lack its end
    assert read_metrics(str(path)) == [{"step": 1, "loss": 2.0}]
    assert read_metrics(str(tmp_path / "none.jsonl")) == []


def test_tensorboard_reads_the_events(tmp_path):
    writer = MetricWriter(str(tmp_path))
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": step / 2})
    writer.write_images(2, {"samples": np.zeros((4, 8, 8, 3), np.float32)})
    writer.write_texts(2, {"caption": "a *dish*"})
    writer.write_hparams({"learning_rate": 0.1, "name": "x", "dims": (1, 2)})
    writer.close()
    time.sleep(1.1)  # TensorBoard orders files by the second they were begun in
    resumed = MetricWriter(str(tmp_path))
    resumed.rewind(2)
    resumed.write_scalars(3, {"loss": 9.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "metrics"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    image = events.Images("samples")[0]
    assert (image.width, image.height) == (22, 22) and image.encoded_image_string[:4] == b"\x89PNG"
    assert events.Tensors("caption/text_summary")[0].tensor_proto.string_val[0] == b"a *dish*"
    assert list(events.PluginTagToContent("hparams")) == ["_hparams_/session_start_info"]


def test_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"can't write metrics to .*run/metrics"):
        MetricWriter(str(tmp_path / "run"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_named(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device; free some space"):
        MetricWriter(str(tmp_path)).write_scalars(1, {"loss": 1.0})


def test_needs_no_tensorflow():
    code = "import sys, launch.runtime.metrics; assert 'tensorflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
