"""Real processes that are one run: they do what one does, read no record twice, and stop together."""

import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from launch import evaluate, sample, train
from launch.runtime import processes
from rcg import component
from rcg.errors import UserError
from tests.launch.several import run, start
from tests.rcg import tiny_chain


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        path = folder / ("train" if i < 40 else "test") / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (6, 7, 3), np.uint8)
        Image.fromarray(pixels).resize((44, 38), Image.BICUBIC).save(path)
    (folder / "train" / "class0" / "broken.png").write_bytes(b"\x89PNG not really")
    tiny_chain.build(folder.parent / "chain", only=("encoder",))
    return folder


def command(photos: Path, workdir: Path, total_steps: int) -> list[str]:
    """With random crops, a bad record, panels, and a measurement on the way."""
    fields = {
        "data.source": "folder",
        "data.path": photos,
        "data.augment": "random_crop_flip",
        "data.image_size": 16,
        "components.encoder": photos.parent / "chain/encoder/component",
        "model.channels": tiny_chain.REP,
        "method.rdm_steps": 2,
        "data.max_bad_fraction": 0.1,
        "batch_size": 8,
        "total_steps": total_steps,
        "log_steps": 2,
        "panel_steps": 6,
        "evaluate_steps": 6,
        "checkpoint_steps": 5,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/rcg/rdm.py:runlocal", f"--workdir={workdir}", *flags]


def metrics(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()]


def same_end(workdir: Path, alone: Path) -> None:
    ours, theirs = metrics(workdir), metrics(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            if name.startswith("eval/"):  # of weights that differ a bit
                continue
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
            worst = max(worst, abs(one[name] - other[name]) / max(abs(other[name]), 1e-6))
    print(f"metrics differ by {worst:.1e} at most")
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, component.describe(str(path / "component")).variables)
        for path in (workdir, alone)
    ]
    assert shapes[0] == shapes[1]


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory) -> Path:
    """The run as one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    argv = ["train", *command(photos, workdir, 12)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)
        assert train.main(argv) == 0
    return workdir


def test_several_processes_train_as_one(photos, alone, tmp_path):
    """Two of them in one go; and two, on another mesh, that go on with what one has begun."""
    workdir = tmp_path / "run"
    said = run("launch.train", 2, 4, *command(photos, workdir, 12))
    assert "exported" in said[0] and not any("exported" in text or "%" in text for text in said[1:])
    same_end(workdir, alone)
    workdir = shutil.copytree(alone, tmp_path / "begun")
    shutil.rmtree(workdir / "checkpoints" / "12")
    shutil.rmtree(workdir / "component")
    other_mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
    said = run("launch.train", 2, 4, *command(photos, workdir, 12), *other_mesh)
    assert "resumed" in said[0] and "at step 10" in said[0]
    same_end(workdir, alone)
    assert len(list((workdir / "metrics").glob("events*"))) == 2  # of each start one
    assert {p.name for p in (workdir / "panels").iterdir()} == {p.name for p in (alone / "panels").iterdir()}


def test_two_processes_measure_a_run_as_one(alone, tmp_path):
    flags = [f"--workdir={alone}", "--out={}"]
    assert evaluate.main(["evaluate", flags[0], f"--out={tmp_path / 'one'}"]) == 0
    said = run("launch.evaluate", 2, 4, flags[0], f"--out={tmp_path / 'two'}")
    assert "samples" in said[0] and "samples" not in said[1]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, result in one.items():
        assert two[name] == result | {"value": pytest.approx(result["value"], rel=1e-5)}


def test_two_processes_sample_what_one_does(tmp_path):
    tiny_chain.build(tmp_path / "chain")
    flags = [
        f"--workdir={tmp_path / 'chain'}",
        "--num=10",
        "--batch_size=3",
        "--mage_steps=2",
        "--rdm_steps=5",
    ]
    assert not sample.main(["sample", *flags, f"--out={tmp_path / 'one'}"])
    run("launch.sample", 2, 2, *flags, f"--out={tmp_path / 'two'}")
    names = [sorted(p.name for p in (tmp_path / name).glob("*.png")) for name in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 11  # and the grid
    for name in names[0]:
        one, two = (np.asarray(Image.open(tmp_path / n / name)).astype(int) for n in ("one", "two"))
        assert np.abs(one - two).max() <= 1, name
    assert json.loads((tmp_path / "two" / "samples.json").read_text())["samples"] == 10


def wait_for(workdir: Path, lines: int, started: list) -> None:
    deadline = time.monotonic() + 240
    path = workdir / "metrics" / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < deadline and all(p.poll() is None for p in started), "no progress"
        time.sleep(0.05)


def test_one_that_dies_ends_all_and_one_that_is_stopped_stops_all(photos, tmp_path):
    """kill -9: the others end by themselves, with an error, within a minute, and the same command goes on
    from the newest checkpoint. SIGTERM to one: all save the same step and stop."""
    workdir = tmp_path / "run"
    flags = [*command(photos, workdir, 4000), "--config.panel_steps=-1", "--config.evaluate_steps=0"]
    flags.append(f"--config.compilation_cache={tmp_path / 'cache'}")  # kill -9 may leave half of an entry
    started = start("launch.train", 2, 4, *flags)
    wait_for(workdir, 4, started)
    started[1].kill()
    at = time.monotonic()
    said = started[0].communicate(timeout=120)[0]
    print(f"the other process ended after {time.monotonic() - at:.1f} s with {started[0].returncode}")
    assert started[0].returncode not in (0, 143) and time.monotonic() - at < 60, said
    reached = newest(workdir)
    assert reached >= 5

    started = start("launch.train", 2, 4, *flags)
    wait_for(workdir, len(metrics(workdir)) + 2, started)
    started[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], said
    assert f"at step {reached}" in said[0] and "stopped by SIGTERM" in said[0]
    assert newest(workdir) > reached
    assert str(newest(workdir)) in said[0]


def newest(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def place(**given):
    values = flags.FlagValues()
    processes.define(values)
    values(["command", *(f"--{name}={value}" for name, value in given.items())])
    return values


@pytest.mark.parametrize("given, says", [
    ({"coordinator": "here:1"}, "missing: --num_processes, --process_id"),
    ({"process_id": 0}, "missing: --coordinator, --num_processes"),
    ({"coordinator": "here:1", "num_processes": 2, "process_id": 2}, "not one of 2 processes"),
    ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "has no port"),
])  # fmt: skip
def test_flags_that_do_not_go_together(given, says):
    with pytest.raises(UserError, match=says):
        processes.join(place(**given))


def test_launchers_are_recognised(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not processes.launched()
    monkeypatch.setenv("SLURM_NTASKS", "4")  # in a batch script, outside of srun
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not processes.launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert processes.launched()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert processes.launched()


def test_alone_there_is_nothing_to_gather():
    assert processes.gather({"a": [1]}) == [{"a": [1]}] and processes.first()


def test_one_of_several_that_does_not_know_the_others_is_not_alone(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("XLA_FLAGS", "")

    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError, match="where the others are is not known .* --coordinator"):
        processes.join(place())
