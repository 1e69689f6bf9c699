"""What can go wrong with a run, done to it: nothing is lost, and nothing is silently different."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs.rcg import rdm as rdm_config
from launch import train as trainer
from launch.runtime import checkpoint, cli
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.progress import Progress
from launch.runtime.setup import prepare
from launch.train import train
from rcg import cache, component
from rcg.data import ArraySource, array_records
from rcg.errors import UserError
from tests.launch.several import ROOT
from tests.rcg import tiny_chain

STEPS = 12


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return tiny_chain.build(tmp_path_factory.mktemp("chain"), only=("encoder",))


def config(chain, **fields):
    c = rdm_config.get_config("runlocal")
    c.data.update(source="kitchen", image_size=16, num_records=64, augment="random_crop_flip", resize=20)
    c.components.encoder = str(chain / "encoder/component")
    c.model.channels = tiny_chain.REP
    c.model.update(width=16, bottleneck=16, depth=1)
    c.method.update(eval_samples=16, rdm_steps=2)
    c.batch_size, c.total_steps, c.log_steps, c.checkpoint_steps = 16, STEPS, 1, 2
    c.evaluate_steps, c.panel_steps, c.keep_checkpoints = 0, -1, 3
    c.update_from_flattened_dict(fields)
    return c


def outcome(workdir):
    """The network's hash and all metrics."""
    about = json.loads((workdir / "component/component.json").read_text())
    return about["content_hash"], (workdir / "metrics/metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def straight(chain, tmp_path_factory):
    """How a run ends that nothing happens to."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert train(config(chain), str(workdir)) == 0
    return outcome(workdir)


@pytest.fixture(scope="module")
def looked_at(chain, tmp_path_factory):
    """The same of a run that is measured and drawn on its way."""
    workdir = tmp_path_factory.mktemp("looked_at") / "run"
    assert train(config(chain, evaluate_steps=4, panel_steps=4), str(workdir)) == 0
    return outcome(workdir)


@pytest.mark.parametrize("during", ["evaluate", "draw_panels", "mean_metrics", "save"])
def test_sigterm_while(during, chain, looked_at, tmp_path, monkeypatch):
    """It is heard while the run measures, draws, waits for a step and saves; what was begun is finished."""
    where = checkpoint.Checkpoints if during == "save" else trainer
    whole, calls = getattr(where, during), []

    def interrupted(*args, **kwargs):
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(during)
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, during, interrupted)
        c = config(chain, evaluate_steps=4, panel_steps=4)
        assert train(c, str(tmp_path / "run")) == cli.STOPPED
    assert not (tmp_path / "run/component").exists()
    assert train(c, str(tmp_path / "run")) == 0
    assert outcome(tmp_path / "run") == looked_at


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("damage", [flip_a_bit, os.remove])
def test_a_damaged_checkpoint_is_named_and_passed_over_only_when_told(
    damage, chain, straight, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    monkeypatch.setattr(trainer, "export", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        train(config(chain), str(workdir))
    monkeypatch.undo()
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(largest)
    with pytest.raises(cli.RunError) as caught:
        train(config(chain), str(workdir))
    assert str(newest) in str(caught.value) and "--allow_older_checkpoint" in str(caught.value)
    assert str(largest.relative_to(newest)) in str(caught.value)
    assert newest.is_dir() and not (workdir / "component").exists()
    assert train(config(chain), str(workdir), allow_older=True) == 0
    assert (workdir / f"checkpoints/damaged.{STEPS}").is_dir()
    assert outcome(workdir) == straight


def test_only_damage_is_passed_over(chain, tmp_path, monkeypatch):
    """Whatever else goes wrong while a checkpoint is read is no reason to leave it."""
    workdir = tmp_path / "run"
    short = config(chain, total_steps=4)
    assert train(short, str(workdir)) == 0
    shutil.rmtree(workdir / "component")
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())

    def no_memory(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", no_memory)
    with pytest.raises(cli.RunError, match="RESOURCE_EXHAUSTED.*though its files are what was written"):
        train(short, str(workdir), allow_older=True)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before


def test_what_is_set_aside_twice_has_two_names(chain, tmp_path):
    workdir = tmp_path / "run"
    assert train(config(chain, total_steps=6), str(workdir)) == 0
    held = Checkpoints(str(workdir))
    last = held.latest()
    copy = tmp_path / "copy"
    shutil.copytree(workdir / f"checkpoints/{last}", copy)
    assert held.set_aside(last).endswith(f"damaged.{last}")
    shutil.copytree(copy, workdir / f"checkpoints/{last}")
    assert held.set_aside(last).endswith(f"damaged.{last}.1")


def test_a_save_does_not_wait_for_checksums(chain, tmp_path, monkeypatch):
    """A large checkpoint takes its time to be read again; what SIGTERM saves must not."""
    release = threading.Event()
    monkeypatch.setattr(checkpoint, "checksums", lambda folder: release.wait() and {})
    held = Checkpoints(str(tmp_path), keep=2)
    setup = prepare(config(chain))
    state = setup.init_state()
    threading.Timer(10.0, release.set).start()  # lest a save that waits do so for ever
    for step in (1, 2):
        held.save(step, state, {}, {})  # the second returns though nothing of the first is summed
    assert not release.is_set()
    threading.Timer(1.0, release.set).start()
    held.save(3, state, {}, {})  # the first may be deleted now
    assert release.is_set()
    held.wait()


def test_without_a_whole_checkpoint_there_is_no_fresh_start(chain, tmp_path):
    workdir = tmp_path / "run"
    short = config(chain, total_steps=2)
    assert train(short, str(workdir)) == 0
    shutil.rmtree(workdir / "component")
    for path in (workdir / "checkpoints/2/state").rglob("*"):
        if path.is_file():
            truncate(path)
    for allow_older in (False, True):
        with pytest.raises(cli.RunError, match="can't be read"):
            train(short, str(workdir), allow_older=allow_older)


def test_a_save_that_was_cut_off_is_none(chain, straight, tmp_path, monkeypatch):
    """A folder that a kill left half written is not taken for a checkpoint."""
    workdir = tmp_path / "run"
    assert train(config(chain, total_steps=6), str(workdir)) == 0
    half = workdir / "checkpoints/8.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints/6", half)
    shutil.rmtree(half / "progress")
    shutil.rmtree(workdir / "component")
    assert train(config(chain), str(workdir)) == 0
    assert outcome(workdir) == straight


@contextlib.contextmanager
def mounted(place, options):
    """A file system of its own, in memory; skips the test where none can be mounted."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(chain, straight, tmp_path):
    """The save that finds no room ends the run in one line; the ones before it stay; with room it goes on."""
    with mounted(tmp_path / "small", "size=3m") as place:
        workdir = place / "run"
        assert train(config(chain, total_steps=6), str(workdir)) == 0
        shutil.rmtree(workdir / "component")
        ballast = place / "ballast"
        with open(ballast, "wb") as f:
            room = shutil.disk_usage(place).free - 8192
            f.write(b"\0" * room)
        with pytest.raises((cli.RunError, UserError)) as caught:
            train(config(chain), str(workdir))
        assert "No space left" in str(caught.value) or "RESOURCE_EXHAUSTED" in str(caught.value)
        assert (workdir / "checkpoints/6").is_dir() and not (workdir / "component").exists()
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        assert train(config(chain), str(workdir)) == 0
        assert outcome(workdir) == straight


def test_a_folder_that_can_not_be_written(chain, tmp_path):
    with mounted(tmp_path / "fixed", "ro") as place:
        with pytest.raises(UserError, match=r"can't write to --workdir .*Read-only file system"):
            train(config(chain), str(place / "run"))


def test_a_checkpoint_has_its_checksums_as_soon_as_it_is_there(tmp_path):
    """Not only when the next one is saved: after a kill the newest is the one that is read."""
    checkpoints = checkpoint.Checkpoints(str(tmp_path))
    checkpoints.save(3, {"a": np.arange(1000.0)}, {}, {})
    deadline = time.monotonic() + 20
    while not (tmp_path / "checkpoints/3" / checkpoint.CHECKSUMS).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert checkpoints.damage(3) == ""
    checkpoints.close()


def test_a_second_run_in_one_folder_is_refused(chain, straight, tmp_path):
    workdir = tmp_path / "run"
    with trainer.lock_workdir(str(workdir)):
        with pytest.raises(UserError, match=f"another process is training in {workdir}"):
            train(config(chain), str(workdir))
    assert train(config(chain), str(workdir)) == 0
    assert outcome(workdir) == straight


def test_a_full_disk_while_data_are_prepared(tmp_path):
    with mounted(tmp_path / "small", "size=1m") as place:
        with pytest.raises(UserError, match="no room for 4 MB"):
            spec = {"x": ((1024,), np.float32)}
            cache.write(str(place), "train", {}, spec, 1000, lambda n: {"x": np.zeros((len(n), 1024))})
        drawn = np.random.default_rng(0).integers(0, 255, (40, 128, 128, 3), np.uint8)
        with pytest.raises(UserError, match="make room"):
            array_records.write(ArraySource(drawn), str(place), "train", 1)
        assert not (place / "train.json").exists()


def test_another_number_of_data_workers_is_refused(chain, tmp_path):
    """Their records come in another order."""
    workdir = str(tmp_path / "run")
    assert train(config(chain, total_steps=2), workdir) == 0
    with pytest.raises(UserError, match=r"data.workers: 0 -> 2"):
        train(config(chain, **{"data.workers": 2}), workdir)


def test_a_clock_that_jumps_changes_no_rate(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: random.uniform(0, 4e9))
    with Progress(10, 4, silent=True) as progress:
        for step in range(1, 11):
            time.sleep(0.002)
            progress.step(step, {"loss": 1.0})
        assert 20 < progress.rates()["steps_per_second"] < 500


RUN = """
import sys
from pathlib import Path
from launch.train import train
from tests.launch.test_faults import config
sys.exit(train(config(Path(sys.argv[1])), sys.argv[2]))
"""


def test_killed_over_and_over(chain, straight, tmp_path):
    """kill -9 at random moments, KILLS times (50 take a few minutes): the end is the same."""
    kills = int(os.environ.get("KILLS", 0))
    if not kills:
        pytest.skip("set KILLS=50 to kill a run so many times")
    draw, workdir = random.Random(0), tmp_path / "run"
    command = [sys.executable, "-c", RUN, str(chain), str(workdir)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "timed")], cwd=ROOT, env=environment, check=True)
    killed, longest, rounds = 0, time.monotonic() - started, 0
    while killed < kills:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=draw.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0, process.stderr.read().decode()[-2000:]
        assert outcome(workdir) == straight
        shutil.rmtree(workdir)  # done: once more from the start
        rounds += 1
    process = subprocess.run(command, cwd=ROOT, env=environment)
    assert process.returncode == 0 and outcome(workdir) == straight
    print(f"{kills} kills at random moments of {longest:.1f} s, {rounds + 1} runs to the same end")


def test_an_end_that_was_not_exported_is_made_up_for(chain, tmp_path, monkeypatch):
    """A run that was finished, made longer, and killed after its last checkpoint has an old component."""
    workdir = str(tmp_path / "run")
    assert train(config(chain, total_steps=4), workdir) == 0
    before = outcome(tmp_path / "run")[0]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "export", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config(chain, total_steps=6), workdir)
    assert Checkpoints(workdir, read_only=True).latest() == 6 and outcome(tmp_path / "run")[0] == before
    assert train(config(chain, total_steps=6), workdir) == 0
    assert outcome(tmp_path / "run")[0] != before and trainer.exported_step(workdir) == 6


def test_another_encoder_at_the_same_path_is_noticed(chain, tmp_path):
    mine = shutil.copytree(chain / "encoder", tmp_path / "encoder") / "component"
    c = config(chain, total_steps=2, **{"components.encoder": str(mine)})
    assert train(c, str(tmp_path / "run")) == 0
    other = component.load(str(mine))
    other.variables["params"] = jax.tree.map(lambda x: x + 1, other.variables["params"])
    shutil.rmtree(mine)
    component.save(str(mine), other)
    for total_steps in (2, 4):
        c.total_steps = total_steps
        with pytest.raises(UserError, match="was trained on another encoder than is now at"):
            train(c, str(tmp_path / "run"))


def test_a_split_to_measure_on_that_is_not_there_is_told_before_training(chain, tmp_path):
    photos = tmp_path / "photos"
    for i in range(16):
        path = photos / "train" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)).save(path)
    c = config(chain, **{"data.source": "folder", "data.path": str(photos), "panel_steps": 4})
    with pytest.raises(UserError, match='no split "test"'):
        train(c, str(tmp_path / "run"))
    assert not list((tmp_path / "run/checkpoints").glob("[0-9]*"))
    (photos / "train").rename(photos / "held")
    shutil.copytree(photos / "held", photos / "train")
    c.data.eval_split = "held"  # which decides nothing of the training
    c.total_steps = 2
    assert train(c, str(tmp_path / "run")) == 0


@pytest.mark.parametrize(
    "first, begins, ends",
    [(0, [3], [6]), (4, [4], [6]), (6, [], []), (2, [3], [5])],
)
def test_the_profilers_window(first, begins, ends, monkeypatch):
    """Also of a run that is resumed within it, or that ends before it does."""
    c = rdm_config.get_config("runlocal")
    c.profile.update(start_step=3, steps=3)
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append(("begin", step)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(("end", step)))
    profiler = trainer.Profiler(c, "run")
    last = 5 if first == 2 else 8
    for step in range(first, last):
        profiler.look(step, None)
    step = last
    profiler.close(None)
    assert calls == [*(("begin", s) for s in begins), *(("end", s) for s in ends)]


def test_a_start_that_came_to_nothing_binds_no_one(chain, tmp_path):
    c = config(chain, total_steps=2, **{"data.source": "folder", "data.path": "/nowhere"})
    with pytest.raises(UserError, match="/nowhere does not exist"):
        train(c, str(tmp_path / "run"))
    assert train(config(chain, total_steps=2), str(tmp_path / "run")) == 0
