"""Training the joints: they learn, alike on every mesh; what does not fit is said; and they are scored."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from chef_fusion import model as chef
from chef_fusion import targets
from configs.chef_fusion import joints as joints_config
from launch import prepare
from launch.evaluate import evaluate
from launch.runtime.setup import prepare as set_up
from launch.train import train
from rcg import component
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen
from tests.launch import several

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_kitchen.build(tmp_path_factory.mktemp("parts"))


def kitchen(config, size=tiny_kitchen.SIZE):
    config.data.update(source="recipes_kitchen", num_records=64, image_size=size)
    config.panel_steps = -1
    config.mesh.update(data=1, fsdp=8)
    return config


def run(config, workdir):
    assert train(config, str(workdir)) == 0
    with open(workdir / "metrics/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def joints(parts, **overrides):
    c = kitchen(joints_config.get_config("runlocal"))
    c.components.update({name: parts[name] for name in ("lm", "vision", "stable_diffusion")})
    c.model.update(image_first=tiny_kitchen.VOCABULARY, num_visual_tokens=2, num_image_tokens=3)
    c.model.update(hidden_dim=8, num_layers=1, num_heads=2)
    c.method.update(sample_size=16, eval_samples=0)
    c.data.max_tokens = 48
    c.update_from_flattened_dict(overrides)
    return c


def test_joints_learn_and_the_cache_changes_nothing(parts, tmp_path, monkeypatch):
    c = joints(parts, total_steps=40, log_steps=10, panel_steps=0)
    c.optimizer.learning_rate = 1e-2
    lines = run(c, tmp_path / "fly")
    assert lines[-1]["l_g"] < lines[0]["l_g"] and lines[-1]["l_r"] < lines[0]["l_r"]
    # every [IMG] row keeps the mean norm of the language model's rows
    held = component.load(str(tmp_path / "fly/component"), "chef_fusion")
    table = component.load(parts["lm"]).variables["params"]["embed_tokens"]
    norms = np.linalg.norm(held.variables["params"]["image_embeddings"], axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(table, axis=1).mean(), rtol=1e-5)

    cached = str(tmp_path / "targets")
    flags = [f"--config.{name}={value}" for name, value in targets_flags(c)]
    argv = ["prepare", f"--config={joints_config.__file__}:runlocal", *flags, f"--out={cached}"]
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
    assert prepare.main(argv) == 0
    again = joints(parts, total_steps=40, log_steps=10)
    again.optimizer.learning_rate = 1e-2
    again.method.targets = cached
    from_cache = run(again, tmp_path / "cached")
    for a, b in zip(lines, from_cache, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    again.data.target_text = "caption" if c.data.target_text == "visible" else "visible"
    with pytest.raises(UserError, match=r"of other data \(texts, target_text of train differ\)"):
        train(again, str(tmp_path / "other"))
    again.method.targets = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no targets of the split train; run launch.prepare"):
        train(again, str(tmp_path / "other2"))


def targets_flags(c):
    yield from (("data.source", c.data.source), ("data.num_records", c.data.num_records))
    yield "data.image_size", c.data.image_size
    yield "components.stable_diffusion", c.components.stable_diffusion


def test_a_cache_that_was_cut_off_goes_on(tmp_path):
    from chef_fusion.kitchen_sets import open_recipes
    from configs.chef_fusion import sources

    c = sources.recipes("", "recipes_kitchen", 16)
    c.num_records = 64
    found = open_recipes(c, "train")
    wanted = targets.identity(found, "caption", "hash", (2, 3))
    calls = []

    def encode(batch, fail=False):
        calls.append(len(batch))
        if fail and len(calls) > 60:
            raise KeyboardInterrupt
        return np.full((len(batch), 2, 3), len(batch[0]), np.float32)

    folder = str(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        targets.compute(folder, "train", found, wanted, lambda b: encode(b, True), batch_size=1)
    targets.compute(folder, "train", found, wanted, encode, batch_size=1)
    assert len(calls) == 61 + 14  # 50 were kept
    held = targets.open_targets(folder, "train", wanted)
    assert held.shape == (64, 2, 3) and (held > 0).all()
    targets.compute(folder, "train", found, wanted, encode, batch_size=1)
    assert len(calls) == 61 + 14
    with pytest.raises(UserError, match="not finite"):
        targets.compute(folder, "eval", found, wanted, lambda b: np.full((len(b), 2, 3), np.nan))


@pytest.mark.parametrize("decision", ["sequence", "token"])
def test_held_out_losses_are_means_over_all_that_counts(parts, tmp_path, decision):
    """However the records are cut into batches, the last of them short; questions have no picture."""
    c = joints(parts, total_steps=1, **{"method.decision_loss": decision, "data.max_eval_records": 21})
    c.data.update(source="kitchen_talk", max_tokens=140)
    run(c, tmp_path / "run")
    found = []
    for size in (8, 16):
        c.batch_size = size
        found.append(evaluate(c, str(tmp_path / "run"), str(tmp_path / f"by_{size}")))
    for name in ("l_r", "l_p", "l_g"):
        assert found[0][name]["samples"] == 21
        assert found[0][name]["value"] == pytest.approx(found[1][name]["value"], rel=1e-5), name


@pytest.mark.parametrize("recipe", ["code", "paper"])
def test_the_recipes(recipe):
    c = joints_config.get_config(f"recipe={recipe}")
    assert (c.batch_size, c.total_steps, c.optimizer.learning_rate) == (16, 14_000, 1e-3)
    assert (c.optimizer.b1, c.optimizer.b2, c.data.max_tokens) == (0.9, 0.95, 300)
    assert c.method.image_loss == {"code": "distance", "paper": "squared"}[recipe]
    assert c.optimizer.weight_decay == {"code": 0.01, "paper": 0.0}[recipe]


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"components.lm": ""}, "needs a component of kind opt"),
        ({"data.max_tokens": 500}, "at most the language model's 160 positions"),
        ({"data.image_size": 64}, "the vision tower sees 16 px"),
        ({"method.image_loss": "cosine"}, "is not one of distance, squared"),
        ({"model.image_first": 300}, r"\[IMG0\] is number 300"),
        (
            {"method.concat_captions": 1.0, "batch_size": 6, "optimizer.accumulation_steps": 2}
            | {"mesh.fsdp": 1, "mesh.tensor": 8},
            "an even batch_size / accumulation_steps, not 3",
        ),
        ({"components.judge": "vision"}, "config.components.judge is of kind clip, not chef_fusion.judge"),
        ({"components.mage": "vision"}, "config.components.mage is of kind clip, not rcg.mage"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(parts, tmp_path, overrides, message):
    c = joints(parts)
    overrides = {k: parts[v] if v == "vision" else v for k, v in overrides.items()}
    c.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=message):
        train(c, str(tmp_path / "run"))


def test_joints_on_another_mesh(parts, tmp_path):
    """The same losses, with rows of the head of their own too."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    options = {"total_steps": 3, "log_steps": 1, "model.tied": False}
    one = joints(parts, **options)
    one.mesh.update(data=1, fsdp=8, tensor=1)
    other = joints(parts, **options)
    other.mesh.update(fsdp=1, tensor=1)
    other.mesh.update(mesh)
    pairs = zip(run(one, tmp_path / "one"), run(other, tmp_path / "other"), strict=True)
    for a, b in pairs:
        for name in ("loss", "l_r", "l_p", "l_g", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_joined_captions_train(parts, tmp_path, monkeypatch):
    """Joining changes the losses of both modes. On one device: several CPU devices refuse it."""
    with pytest.raises(UserError, match="can't run on several CPU devices"):
        train(joints(parts, **{"method.concat_captions": 1.0}), str(tmp_path / "refused"))
    with monkeypatch.context() as patched:  # a text without a picture can't be joined with another
        patched.setattr("jax.device_count", lambda: 1)
        talk = joints(parts, **{"method.concat_captions": 1.0, "data.source": "kitchen_talk"})
        setup = set_up(talk)
        with pytest.raises(UserError, match="some texts have none"):
            setup.experiment.dataset("train", 8, 0, 0, 1)
    code = f"""
from pathlib import Path
from tests.chef_fusion.test_joints import joints, run
for name, joined in (("plain", 0.0), ("joined", 1.0)):
    c = joints({parts!r}, total_steps=2, log_steps=1, **{{"method.concat_captions": joined}})
    c.mesh.update(data=1, fsdp=1)
    run(c, Path({str(tmp_path)!r}) / name)
"""
    env = several.environment(devices=1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    plain, joined = (
        [json.loads(line) for line in (tmp_path / name / "metrics/metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "joined")
    )
    assert all(np.isfinite(line["loss"]) for line in joined)
    assert joined[0]["l_r"] != pytest.approx(plain[0]["l_r"], rel=1e-5)
    assert joined[0]["l_p"] != pytest.approx(plain[0]["l_p"], rel=1e-5)


def test_each_row_gets_another_that_counts():
    counted = jnp.array([True, False, True, True, False])
    found = np.asarray(chef.others(counted))
    assert sorted(found[counted]) == [0, 2, 3] and not (found == np.arange(5))[counted].any()
    assert counted[found].all()
    assert chef.others(jnp.array([False, True]))[1] == 1  # alone
