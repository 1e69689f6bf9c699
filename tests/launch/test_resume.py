"""Real processes, killed for real: the end is bit for bit that of a run that was never stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launch import several

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        pixels = rng.integers(0, 255, (6, 7, 3), np.uint8)
        path = folder / ("train" if i < 40 else "test") / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((44, 38), Image.BICUBIC).save(path)
    (folder / "train" / "class0" / "broken.png").write_bytes(b"\x89PNG not really")
    return folder


def command(photos: Path, workdir: Path, *more: str) -> list[str]:
    """Quick, yet with random crops, a worker process, EMA and a bad record."""
    return [
        sys.executable,
        "-m",
        "launch.train",
        "--config=configs/rcg/vqgan.py:runlocal",
        f"--workdir={workdir}",
        "--config.data.source=folder",
        f"--config.data.path={photos}",
        "--config.data.augment=random_crop_flip",
        "--config.data.max_bad_fraction=0.1",
        "--config.data.workers=1",
        "--config.data.cache_mb=0",  # else threads decode, once
        "--config.batch_size=8",
        f"--config.total_steps={STEPS}",
        "--config.log_steps=5",
        "--config.checkpoint_steps=17",
        "--config.ema.decay=0.99",
        # what kill -9 leaves of it no other test should read
        f"--config.compilation_cache={photos.parent / 'cache'}",
        *more,
    ]


def environment() -> dict[str, str]:
    return several.environment(devices=1)


def run(argv: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def interrupt(argv: list[str], workdir: Path, how: signal.Signals, after_lines: int) -> int:
    """Starts the run, waits until it has logged more, and sends `how`; the process's exit code."""
    log = workdir.with_suffix(".log")
    with open(log, "w") as errors:
        process = subprocess.Popen(argv, cwd=ROOT, env=environment(), stderr=errors, start_new_session=True)
    deadline = time.monotonic() + 240
    while steps_logged(workdir) < after_lines and process.poll() is None:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(timeout=120)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)  # raises once all of its processes have ended
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("data workers outlived their parent")
    assert process.returncode in (-how, 143), log.read_text()[-2000:]
    return process.returncode


def outcome(workdir: Path) -> tuple[str, list[dict]]:
    about = json.loads((workdir / "component" / "component.json").read_text())
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    return about["content_hash"], [json.loads(line) for line in lines]


def test_killed_and_resumed_equals_uninterrupted(photos, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = run(command(photos, straight))
    assert done.returncode == 0, done.stderr[-2000:]

    argv = command(photos, broken)
    assert interrupt(argv, broken, signal.SIGKILL, 4) == -signal.SIGKILL
    assert interrupt(argv, broken, signal.SIGTERM, 7) == 143
    saved = max(int(p.name) for p in (broken / "checkpoints").iterdir() if p.name.isdigit())
    assert saved >= 35, "SIGTERM saves where it stands"
    assert interrupt(argv, broken, signal.SIGKILL, 11) == -signal.SIGKILL
    done = run(argv)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed" in done.stderr

    (hash_a, metrics_a), (hash_b, metrics_b) = outcome(straight), outcome(broken)
    assert [m["step"] for m in metrics_a] == list(range(5, STEPS + 1, 5))
    assert metrics_a == metrics_b
    assert hash_a == hash_b

    # the same command once more has nothing to do; another model is refused, with the difference
    assert "complete" in run(argv).stderr
    refused = run([*argv, "--config.seed=3"])
    assert refused.returncode == 2
    assert "seed: 0 -> 3" in refused.stderr and "Traceback" not in refused.stderr

    # a checkpoint that can't be read stops the run: no fresh start, no older one in silence
    newest = max((broken / "checkpoints").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1)
    for file in [p for p in (newest / "state").rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    failed = run([*argv, f"--config.total_steps={STEPS + 10}"])
    assert failed.returncode == 1, failed.stderr[-2000:]
    assert str(newest) in failed.stderr and "Traceback" not in failed.stderr
