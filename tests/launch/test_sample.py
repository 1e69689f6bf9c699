"""The sample command: what it writes, what it says, how it exits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import rcg
from launch import sample
from launch.runtime import comparing
from launch.runtime.images import to_uint8
from rcg.errors import UserError
from tests.rcg import tiny_chain

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--rdm_steps=5", "--mage_steps=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_chain.build(tmp_path_factory.mktemp("sample"), rdms=("rdm", "rdm_class"))
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "text.jpg").write_text("no picture")
    return folder


def run(folder, out, *flags):
    code = sample.main(["sample", f"--workdir={folder}", f"--out={out}", *FEW, *flags])
    assert code == 0
    told = json.loads((out / "samples.json").read_text())
    files = sorted(f for f in os.listdir(out) if f not in ("grid.png", "samples.json"))
    assert files == [f"{i:06d}.png" for i in range(told["samples"])]
    images = np.stack([np.asarray(Image.open(out / f)) for f in files])
    assert images.shape[1:] == (8, 8, 3)
    grid = np.asarray(Image.open(out / "grid.png"))
    return told, images, ((grid.shape[0] - 2) // 10, (grid.shape[1] - 2) // 10)


def test_generate(folder, tmp_path):
    told, images, grid = run(folder, tmp_path, "--num=8", "--seed=3", "--batch_size=4", "--eta=0.5")
    assert grid == (3, 3)
    assert (told["task"], told["seed"], told["samples"]) == ("generate", 3, 8)
    assert told["settings"]["eta"] == 0.5 and told["settings"]["mage_steps"] == 3
    assert told["seconds"] > 0 and told["images_per_second"] > 0
    about = json.loads((folder / "rdm/component/component.json").read_text())
    assert told["components"]["rdm"]["content_hash"] == about["content_hash"]
    model = rcg.load(str(folder))
    settings = {"rdm_steps": 5, "mage_steps": 3, "eta": 0.5, "batch_size": 4}
    np.testing.assert_array_equal(images, to_uint8(rcg.generate(model, jax.random.key(3), 8, **settings)))
    told, *_ = run(folder, tmp_path, "--num=4", "--seed=3", "--batch_size=4")  # leaves no old picture behind
    assert told["samples"] == 4
    assert len(comparing.open_set(str(tmp_path))) == 4  # what launch.evaluate --images measures: not the grid


def test_class_conditional(folder, tmp_path):
    told, images, grid = run(folder, tmp_path, "--task=class_conditional", "--labels=2,0", "--num=4")
    assert len(images) == 8 and grid == (2, 4) and told["labels"] == ["2", "0"]
    assert "rdm_class" in told["components"]["rdm"]["path"]


def test_reconstruct_and_interpolate(folder, tmp_path):
    pictures = [f"--image={folder / name}.png" for name in ("a", "b")]
    told, images, grid = run(folder, tmp_path, "--task=reconstruct", "--num=2", *pictures)
    assert len(images) == 4 and grid == (2, 3) and len(told["images"]) == 2
    shown = np.asarray(Image.open(tmp_path / "grid.png"))[2:10, 2:10]
    np.testing.assert_array_equal(shown, sample.read_image(str(folder / "a.png"), 8))
    told, images, grid = run(folder, tmp_path, "--task=interpolate", "--num=4", *pictures)
    assert len(images) == 4 and grid == (1, 4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task=paint"], "task"),
        (["--task=reconstruct"], "--image"),
        (["--task=interpolate", "--image={folder}/a.png"], "twice"),
        (["--task=reconstruct", "--image={folder}/none.png"], "No such file"),
        (["--task=reconstruct", "--image={folder}/text.jpg"], "picture"),
        (["--task=class_conditional", "--labels=cat"], "numbers"),
        (["--task=class_conditional", "--labels=7"], "0..2"),
        (["--rdm_steps=300"], "250 or 500"),
        (["--components.rdm=nowhere"], "no component"),
        (["--task=class_conditional", "--components.rdm=rdm"], "no classes"),  # a stage's name for a path
        (["--num=-1"], "num"),
        (["--num=many"], "num"),
    ],
)
def test_what_is_wrong_is_said(folder, tmp_path, flags, message):
    flags = [flag.format(folder=folder) for flag in flags]
    with pytest.raises(UserError, match=message) as caught:
        sample.main(["sample", f"--workdir={folder}", f"--out={tmp_path}", *FEW, *flags])
    assert "\n" not in str(caught.value)
    assert not os.listdir(tmp_path)


def test_a_typo_gets_one_line_and_exit_code_2(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "launch.sample",
        f"--workdir={folder}",
        f"--out={tmp_path}",
        "--cfg_scal=1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "cfg_scal" in done.stderr, done.stderr


def test_what_a_cut_off_call_left_is_no_sample_of_the_next(tmp_path):
    for name in ("000000.png", "000001.png", "grid.png", "mine.png"):
        (tmp_path / name).write_bytes(b"")
    sample.clear(str(tmp_path))
    assert (tmp_path / "000001.png").exists()  # by whomever, not by this command
    (tmp_path / "samples.json").write_text("{}")
    sample.clear(str(tmp_path))
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"mine.png", "samples.json.incomplete"}
    (tmp_path / "000007.png").write_bytes(b"")  # and then it is killed
    sample.clear(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == kept
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write to --out"):
        sample.clear(str(tmp_path / "file"))
