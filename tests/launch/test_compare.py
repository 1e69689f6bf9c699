"""launch.evaluate --images: sets of images held against each other, cut off and gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from launch import convert, evaluate
from launch.runtime import cli, comparing
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.config import save_or_compare
from launch.runtime.setup import prepare
from rcg import component, encoders, inception, metrics, published, statistics, weight_files
from rcg.component import Component
from rcg.errors import UserError
from tests.launch import several
from tests.rcg import tiny_chain

ROOT = Path(__file__).resolve().parents[2]
ENCODER = dict(
    arch="moco_v3", image_size=16, patch_size=8, dim=16, depth=1, num_heads=2, head_hidden=16, head_out=8
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A random encoder; a folder of 50 pictures and one of 40 others, as an npz too."""
    folder = tmp_path_factory.mktemp("sets")
    module = encoders.build(ENCODER)
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    variables = jax.tree.map(lambda x: x + 0.3 if x.ndim > 1 else x, variables)
    component.save(str(folder / "encoder"), Component("rcg.encoder", ENCODER, jax.device_get(variables)))
    rng = np.random.default_rng(0)
    for name, count, top in (("made", 50, 200), ("real", 40, 256)):
        (folder / name).mkdir()
        images = rng.integers(0, top, (count, 16, 16, 3), np.uint8)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{i:03d}.png")
        np.savez(folder / f"{name}.npz", arr_0=images)
    return folder


def run(sets, out, images="made", reference="real", **flags):
    given = {"images": sets / images, "features": sets / "encoder", "out": out, "batch_size": 16} | flags
    if reference:
        given["reference"] = sets / reference
    assert evaluate.main(["evaluate", *(f"--{k}={v}" for k, v in given.items())]) == 0
    return json.loads((out / "results.json").read_text())


def test_folder_npz_and_statistics_agree(sets, tmp_path, capsys):
    results = run(sets, tmp_path / "a", keep=100)
    assert "not to be held against FIDs" in capsys.readouterr().out
    module, about = encoders.build(ENCODER), component.load(str(sets / "encoder"))
    found = {}
    for name in ("made", "real"):
        images = np.load(sets / f"{name}.npz")["arr_0"].astype(np.float32) / 255
        found[name] = np.asarray(encoders.features(module, about.variables, images))
    want = metrics.frechet_distance(*metrics.gaussian(found["real"]), *metrics.gaussian(found["made"]))
    got = results["frechet"]
    assert got["value"] == pytest.approx(want, rel=1e-4)
    assert (got["samples"], got["reference_samples"]) == (50, 40)
    for name, value in zip(
        ("precision", "recall"), metrics.precision_recall(found["real"], found["made"]), strict=True
    ):
        assert results[name]["value"] == pytest.approx(value)
    as_npz = run(sets, tmp_path / "b", images="made.npz", reference="real.npz")
    assert as_npz["frechet"]["value"] == pytest.approx(want, rel=1e-4)
    run(sets, tmp_path / "c", images="real", reference="", save_statistics=sets / "statistics.npz")
    against = run(sets, tmp_path / "d", reference="statistics.npz")
    assert against["frechet"]["value"] == pytest.approx(want, rel=1e-4)
    assert against["frechet"]["reference_samples"] == 40


def test_a_run_cut_off_goes_on(sets, tmp_path, monkeypatch):
    whole = run(sets, tmp_path / "whole", batch_size=8)
    monkeypatch.setattr(comparing, "SAVE_EVERY", 2)
    calls = []
    add = statistics.Moments.add

    def fails_once(self, features):
        calls.append(len(features))
        if len(calls) == 5:
            raise KeyboardInterrupt
        add(self, features)

    monkeypatch.setattr(statistics.Moments, "add", fails_once)
    with pytest.raises(KeyboardInterrupt):
        run(sets, tmp_path / "cut", batch_size=8)
    assert (tmp_path / "cut" / "images.partial.npz").exists()
    before = len(calls)
    again = run(sets, tmp_path / "cut", batch_size=8)
    assert again == whole
    # of the 7 batches of 8 that 50 images are, the 4 that were saved do not come again; 5 are the reference's
    assert len(calls) - before == 3 + 5
    assert not (tmp_path / "cut" / "images.partial.npz").exists()


def test_what_is_left_of_other_images_is_not_gone_on_with(sets, tmp_path, monkeypatch):
    """Even if there are as many of them, of the same size and under the same names."""
    images = np.load(sets / "made.npz")["arr_0"]
    np.savez(sets / "others.npz", arr_0=images[::-1])
    whole = run(sets, tmp_path / "whole", images="others.npz", batch_size=8)
    monkeypatch.setattr(comparing, "SAVE_EVERY", 2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        calls, add = [], statistics.Moments.add

        def fails(self, features):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            add(self, features)

        patched.setattr(statistics.Moments, "add", fails)
        run(sets, tmp_path / "cut", images="made.npz", batch_size=8)
    assert (tmp_path / "cut" / "images.partial.npz").exists()
    assert run(sets, tmp_path / "cut", images="others.npz", batch_size=8) == whole


def test_statistics_of_other_features_are_refused(sets, tmp_path):
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"mu \(2048,\) .* features have 16 values"):
        run(sets, tmp_path / "x", reference=tmp_path / "wrong.npz")
    statistics.save(str(tmp_path / "named.npz"), np.zeros(16), np.eye(16), 10, "FID-Inception")
    with pytest.raises(UserError, match="are of FID-Inception, not of encoder .*'s class token"):
        run(sets, tmp_path / "x", reference=tmp_path / "named.npz")
    whole = (sets / "made.npz").read_bytes()
    array = (tmp_path / "one.npy", np.zeros(3))
    np.save(*array)
    for damaged in (b"PK no zip", b"", whole[: len(whole) // 2], array[0].read_bytes()):
        (tmp_path / "broken.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="can't be read"):
            run(sets, tmp_path / "x", reference=tmp_path / "broken.npz")
        with pytest.raises(UserError, match="neither a folder of images nor an npz"):
            run(sets, tmp_path / "x", images=str(tmp_path / "broken.npz"))


def test_without_inception_an_encoder_is_asked_for(sets, tmp_path):
    with pytest.raises(UserError, match=r"an encoder's, such as .*/component .* not to be held against FIDs"):
        run(sets, tmp_path, features="")


TWO = """
import sys, jax
from launch import evaluate
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
assert jax.process_count() == 2 and jax.device_count() == 4
evaluate.main(["evaluate", *sys.argv[3:]])
"""


def test_two_processes_measure_what_one_does(sets, tmp_path):
    alone = run(sets, tmp_path / "one", keep=30, save_statistics=tmp_path / "one.npz")
    address = f"localhost:{several.free_port()}"
    given = {"images": sets / "made", "reference": sets / "real", "features": sets / "encoder"}
    given |= {"out": tmp_path / "two", "save_statistics": tmp_path / "two.npz", "batch_size": 16, "keep": 30}
    flags = [f"--{k}={v}" for k, v in given.items()]
    command = [sys.executable, "-c", TWO, address]
    pipes = dict(
        cwd=ROOT, env=several.environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    both = [subprocess.Popen([*command, str(i), *flags], **pipes) for i in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    together = json.loads((tmp_path / "two" / "results.json").read_text())
    assert together.keys() == alone.keys()
    for name, result in alone.items():
        assert together[name] == result | {"value": pytest.approx(result["value"], rel=1e-4)}
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one["n"] == two["n"] == 50
        np.testing.assert_allclose(one["mu"], two["mu"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An untrained MAGE's run on a chain of tiny networks."""
    folder = tmp_path_factory.mktemp("run")
    tiny_chain.build(folder, only=("encoder", "tokenizer"))
    fields = {f"components.{name}": str(folder / name / "component") for name in ("encoder", "tokenizer")}
    fields |= {"model.rep_dim": tiny_chain.REP, "data.image_size": 16}
    fields |= {"batch_size": 8, "method.eval_ways": "tokenizer"}
    config = cli.read_config("configs/rcg/mage.py:runlocal", fields)
    checkpoints = Checkpoints(str(folder / "mage"))
    checkpoints.save(1, prepare(config).init_state(), {}, config.to_dict())
    checkpoints.close()
    save_or_compare(config, str(folder / "mage"))
    return folder / "mage"


def test_measuring_a_run_goes_on_where_it_was_cut_off(workdir, tmp_path, monkeypatch, capsys):
    def measure(name):
        assert evaluate.main(["evaluate", f"--workdir={workdir}", f"--out={tmp_path / name}"]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    whole = measure("whole")
    assert "not to be held against FIDs" in capsys.readouterr().out
    monkeypatch.setattr("rcg.experiments.mage.SAVE_EVERY", 1)
    saved, save = [], statistics.Sums.save

    def stops(self, path, **about):
        save(self, path, **about)
        saved.append(int(about["step"]))
        if saved == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(statistics.Sums, "save", stops)
    with pytest.raises(KeyboardInterrupt):
        measure("cut")
    assert len(list((tmp_path / "cut").glob("evaluate.*.partial.npz"))) == 1
    assert measure("cut") == whole
    assert saved == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["results.json"]
    # figures of an earlier step do not stay beside these; those of another split or of images do
    others = {"test/tokenizer": {"value": 1}, "frechet": {"value": 2, "step": 0}}
    others |= {"more": {"value": 2, "step": 1}}
    (tmp_path / "cut/results.json").write_text(json.dumps(whole | others | {"gone": {"value": 3, "step": 7}}))
    assert measure("cut") == whole | others


def test_fid_inception_from_its_file_to_a_table(sets, tmp_path, capsys):
    """With random weights: the published ones are not at hand here."""
    like = published.abstract_variables("rcg.inception", {})
    variables = tiny_chain.filled(like)
    # of activations that neither vanish nor grow
    variables["params"]["fc_kernel"] *= np.float32(0.1)  # not sure of one class
    kernels = {k for k in variables["params"] if k not in ("fc_kernel", "fc_bias")}
    for name in kernels:
        kernel = variables["params"][name]["conv"]["kernel"]
        kernel *= np.float32(np.sqrt(2 / np.prod(kernel.shape[:3])) / 0.4)
    arrays = published.publish(Component("rcg.inception", {}, variables))
    source = str(tmp_path / "pt_inception.safetensors")
    weight_files.write(source, arrays, {})
    flags = {"kind": "rcg.inception", "source": source, "out": tmp_path / "inception"}
    assert convert.main(["convert", *(f"--{k}={v}" for k, v in flags.items())]) == 0
    few = {"real": np.load(sets / "real.npz")["arr_0"][:12]}
    colours = np.random.default_rng(1).integers(0, 256, (12, 1, 1, 3), np.uint8)
    few["made"] = np.tile(colours, (1, 16, 16, 1))
    for name, images in few.items():
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
    capsys.readouterr()
    statistics_of_made = tmp_path / "statistics.npz"
    options = dict(images=tmp_path / "made.npz", features=tmp_path / "inception", batch_size=8)
    options["save_statistics"] = statistics_of_made
    results = run(sets, tmp_path / "out", reference=tmp_path / "real.npz", **options)
    assert "not to be held against FIDs" not in capsys.readouterr().out
    assert results.keys() == {"fid", "inception_score"}
    assert results["fid"]["features"] == "FID-Inception, 2048 values"
    # the network sees the values that are in the files
    found, logits = jax.device_get(jax.jit(inception.build({}).apply)(variables, few["made"]))
    with np.load(statistics_of_made) as kept:
        np.testing.assert_allclose(kept["mu"], found.mean(0), rtol=1e-3, atol=1e-4)
    assert results["fid"]["value"] > 0.01
    more = metrics.inception_score(logits)[0] - 1
    assert results["inception_score"]["value"] - 1 == pytest.approx(more, rel=0.02) and more > 1e-3


def test_precision_and_recall_of_plain_cases():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)
    both = np.concatenate([real, real + 100])  # two groups, of which only one is made
    precision, recall = metrics.precision_recall(both, real + 1e-3 * rng.normal(size=(200, 4)))
    assert (precision, recall) == (1.0, 0.5)


def test_new_pictures_under_old_names_are_others(sets, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    gatherer = comparing.Gatherer(str(sets / "encoder"), 8)

    def identity(shade):
        for i in range(3):
            Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(folder / f"{i}.png")
            os.utime(folder / f"{i}.png", ns=(shade, shade))
        source = comparing.open_set(str(folder))
        return gatherer._identity(str(folder), source, comparing.image_fields("x", image_size=16), 0)

    assert identity(1) == identity(1) != identity(2)


def test_statistics_of_another_encoder_are_refused(sets, tmp_path):
    run(sets, tmp_path / "a", images="real", reference="", save_statistics=tmp_path / "statistics.npz")
    other = component.load(str(sets / "encoder"))
    other.variables["params"] = jax.tree.map(lambda x: 2 * x, other.variables["params"])
    component.save(str(tmp_path / "other"), other)
    with pytest.raises(UserError, match="class token, not of encoder"):
        run(sets, tmp_path / "b", reference=tmp_path / "statistics.npz", features=tmp_path / "other")


@pytest.mark.parametrize(
    "given, says",
    [
        (["--workdir=x", "--features=y"], "--features needs --images"),
        (["--images=x", "--split=test"], "--split measures a run"),
        (["--images=x", "--features=y", "--out=z", "--keep=3"], "need more than 3 images"),
    ],
)
def test_flags_that_would_not_be_heeded(given, says):
    with pytest.raises(UserError, match=says):
        evaluate.main(["evaluate", *given])


def test_damaged_results_are_told_before_anything_is_measured(workdir, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("{")
    monkeypatch.setattr(evaluate, "evaluate_state", None)  # would be no function to call
    with pytest.raises(UserError, match="results.json"):
        evaluate.main(["evaluate", f"--workdir={workdir}", f"--out={tmp_path}"])
