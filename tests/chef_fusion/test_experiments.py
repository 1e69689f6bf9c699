"""The backbones' own training, and that of the joints: each learns, and what it exports is what it learnt."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chef_fusion import model as chef
from chef_fusion import targets
from chef_fusion.backbones import published
from chef_fusion.backbones.stable_diffusion import pipeline, vae
from configs.chef_fusion import clip as clip_config
from configs.chef_fusion import joints as joints_config
from configs.chef_fusion import opt as opt_config
from configs.chef_fusion import stable_diffusion as sd_config
from configs.chef_fusion import vae as vae_config
from launch import evaluate, prepare
from launch.runtime.setup import prepare as set_up
from launch.train import train
from rcg import component
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen
from tests.reference.parity import close


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_kitchen.build(tmp_path_factory.mktemp("parts"))


def kitchen(config, size=tiny_kitchen.SIZE):
    config.data.update(source="recipes_kitchen", num_records=64, image_size=size)
    config.compilation_cache = "off"
    config.mesh.update(data=1, fsdp=8)
    return config


def run(config, workdir):
    assert train(config, str(workdir)) == 0
    with open(workdir / "metrics/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def tokenizer(parts, name):
    return component.describe(parts[name]).tokenizer


def test_language_model(parts, tmp_path):
    """Learns, and transformers gets the same logits from its export."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    c = kitchen(opt_config.get_config("runlocal"))
    c.data.tokenizer, c.total_steps, c.log_steps = tokenizer(parts, "lm"), 60, 10
    c.model.vocab_size, c.optimizer.learning_rate = tiny_kitchen.VOCABULARY, 5e-3
    lines = run(c, tmp_path / "lm")
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]
    assert evaluate.main(["evaluate", f"--workdir={tmp_path / 'lm'}"]) in (0, None)
    results = json.loads((tmp_path / "lm/results.json").read_text())
    assert results["perplexity"]["value"] == pytest.approx(np.exp(results["token_loss"]["value"]))
    made = component.load(str(tmp_path / "lm/component"), "opt")
    assert made.tokenizer
    published.write(made, str(tmp_path / "published"))
    theirs = transformers.OPTForCausalLM.from_pretrained(tmp_path / "published").eval()
    ids = np.random.default_rng(0).integers(4, 300, (2, 9))
    ours, _ = published.build("opt", made.architecture).apply(made.variables, ids, method="from_ids")
    close("logits", ours, theirs(torch.tensor(ids)).logits.detach(), 1e-5)


def test_clip(parts, tmp_path):
    c = kitchen(clip_config.get_config("runlocal"))
    c.data.tokenizer, c.total_steps, c.log_steps, c.batch_size = tokenizer(parts, "vision"), 200, 20, 16
    c.model.vision.image_size = tiny_kitchen.SIZE
    c.model.text.update(vocab_size=tiny_kitchen.VOCABULARY, max_position_embeddings=16)
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 5e-3, 20
    lines = run(c, tmp_path / "clip")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    evaluate.main(["evaluate", f"--workdir={tmp_path / 'clip'}"])
    results = json.loads((tmp_path / "clip/results.json").read_text())
    assert results["similarity_of_pairs"]["value"] > results["similarity_of_others"]["value"]
    assert component.describe(str(tmp_path / "clip/component"), "clip").architecture["logit_scale"]


def test_autoencoder(tmp_path):
    """Learns; its export has unit latents after the UNet's scaling, and decodes as before the scale."""
    c = vae_config.get_config("runlocal")
    c.data.update(source="kitchen", num_records=64)
    c.data.eval_split = "test"
    kitchen_size = 16
    c.data.image_size, c.compilation_cache, c.total_steps, c.log_steps = kitchen_size, "off", 80, 10
    c.mesh.update(data=1, fsdp=8)
    c.optimizer.learning_rate = 3e-3
    lines = run(c, tmp_path / "vae")
    assert lines[-1]["l1"] < 0.85 * lines[0]["l1"]
    made = component.load(str(tmp_path / "vae/component"), "vae")
    module = vae.build(made.architecture)
    batch = next(iter(set_up(c).experiment.dataset("eval", 32, 0, 0, 1)))["image"] / 255.0
    mean, logvar = module.apply(made.variables, 2 * batch - 1, method="encode")
    scaled = np.sqrt((np.square(mean) + np.exp(logvar)).mean()) * module.scaling_factor
    assert 0.7 < scaled < 1.4, scaled
    params = made.variables["params"]
    other = {"params": from_scaled(params, 3.0)}
    mean_2, logvar_2 = module.apply(other, 2 * batch - 1, method="encode")
    close("mean", mean_2 * 3.0, mean, 1e-5)
    close("deviation", np.exp(0.5 * logvar_2) * 3.0, np.exp(0.5 * logvar), 1e-5)
    decoded = module.apply(made.variables, mean, method="decode")
    close("decoded", module.apply(other, mean_2, method="decode"), decoded, 1e-4)


def from_scaled(params, by):
    from chef_fusion.experiments.vae import scaled

    return jax.tree.map(np.asarray, scaled(params, jnp.float32(by)))


def test_latent_diffusion(parts, tmp_path):
    """Learns, and exports a Stable Diffusion with the frozen parts in it, whose UNet diffusers reads."""
    autoencoder = component.load(parts["stable_diffusion"])
    only = dataclasses.replace(
        autoencoder,
        kind="vae",
        architecture=autoencoder.architecture["vae"],
        variables={"params": jax.device_get(autoencoder.variables["params"]["vae"])},
        tokenizer="",
    )
    component.save(str(tmp_path / "vae"), only)
    c = kitchen(sd_config.get_config("runlocal"))
    c.model.update(block_out_channels=(8, 8), attention_blocks=(True, False), cross_attention_dim=16)
    c.model.update(attention_head_dim=2, norm_num_groups=4)
    c.components.update(clip=parts["vision"], vae=str(tmp_path / "vae"))
    c.total_steps, c.log_steps, c.optimizer.learning_rate = 40, 10, 2e-3
    lines = run(c, tmp_path / "sd")
    assert lines[-1]["loss"] < lines[0]["loss"]
    made = component.load(str(tmp_path / "sd/component"), "stable_diffusion")
    assert made.tokenizer and pipeline.build(made.architecture).max_tokens == 12
    text = component.load(parts["vision"]).variables["params"]["text"]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(made.variables["params"]["text_encoder"]["text"]),
            jax.tree.leaves(text),
            strict=True,
        )
    )
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    published.write(made, str(tmp_path / "published"))
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "published", subfolder="unet")
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((2, 8, 8, 4)), rng.standard_normal((2, 12, 16))
    x, context = x.astype(np.float32), context.astype(np.float32)
    sd = pipeline.build(made.architecture)
    variables = {"params": made.variables["params"]["unet"]}
    ours = sd.unet.apply(variables, x, jnp.array([3, 700]), context)
    with torch.no_grad():
        given = torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor([3, 700])
        expected = theirs(*given, encoder_hidden_states=torch.tensor(context)).sample.numpy()
    close("noise", np.moveaxis(ours, -1, 1), expected, 1e-4)


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
    c = joints(parts, total_steps=40, log_steps=10)
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
    yield from (("data.image_size", c.data.image_size), ("compilation_cache", "off"))
    yield "components.stable_diffusion", c.components.stable_diffusion


def test_a_cache_that_was_cut_off_goes_on(tmp_path):
    from chef_fusion.data import open_recipes
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
    ],
)
def test_what_does_not_fit_is_said_before_any_work(parts, tmp_path, overrides, message):
    c = joints(parts)
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


def test_scores(parts, tmp_path):
    c = joints(parts, total_steps=2)
    c.method.update(eval_samples=6, eval_words=8, sample_steps=2)
    run(c, tmp_path / "joints")
    evaluate.main(["evaluate", f"--workdir={tmp_path / 'joints'}"])
    results = json.loads((tmp_path / "joints/results.json").read_text())
    for prefix in ("i2t", "retrieval", "random"):
        for name in ("sacrebleu", "sacrebleu_as_published", "rouge2", "ingredient_f1"):
            assert results[f"{prefix}_{name}"]["samples"] == 6
    for name in ("t2i", "sd", "random"):
        assert -1 <= results[f"{name}_clip_similarity"]["value"] <= 1
    assert results["perplexity"]["value"] == pytest.approx(np.exp(results["l_r"]["value"]))
    assert chef.Recipe._fields  # every choice of the recipe is a field of config.method
    assert set(chef.Recipe._fields) <= set(c.method.keys())


def test_joined_captions_train(parts, tmp_path):
    """Each way of joining is drawn, and changes the losses of its own mode alone."""
    plain = run(joints(parts, total_steps=4, log_steps=1), tmp_path / "plain")
    joined = joints(parts, total_steps=4, log_steps=1, **{"method.concat_captions": 1.0})
    lines = run(joined, tmp_path / "joined")
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[0]["l_r"] != pytest.approx(plain[0]["l_r"], rel=1e-5)
    assert lines[0]["l_p"] != pytest.approx(plain[0]["l_p"], rel=1e-5)
