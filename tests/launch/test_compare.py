"""launch.evaluate --images: sets of images held against each other, cut off and gone on with."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from launch import evaluate
from launch.runtime import comparing
from rcg import component, encoders, metrics, statistics
from rcg.component import Component
from rcg.errors import UserError

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
    with pytest.raises(UserError, match="are of FID-Inception, not of encoder's class token"):
        run(sets, tmp_path / "x", reference=tmp_path / "named.npz")
    whole = (sets / "made.npz").read_bytes()
    for damaged in (b"PK no zip", b"", whole[: len(whole) // 2]):
        (tmp_path / "broken.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="can't be read"):
            run(sets, tmp_path / "x", reference=tmp_path / "broken.npz")
        with pytest.raises(UserError, match="neither a folder of images nor an npz"):
            run(sets, tmp_path / "x", images=str(tmp_path / "broken.npz"))


def test_precision_and_recall_of_plain_cases():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)
    both = np.concatenate([real, real + 100])  # two groups, of which only one is made
    precision, recall = metrics.precision_recall(both, real + 1e-3 * rng.normal(size=(200, 4)))
    assert (precision, recall) == (1.0, 0.5)
