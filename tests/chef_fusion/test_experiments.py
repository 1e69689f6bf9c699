"""The backbones' own training, and that of the joints: each learns, and what it exports is what it learnt."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from chef_fusion import tokenization
from chef_fusion.backbones import clip, published
from chef_fusion.backbones.stable_diffusion import pipeline, schedulers, vae
from chef_fusion.experiments import clip as clip_experiment
from chef_fusion.experiments import stable_diffusion as sd_experiment
from chef_fusion.experiments import vae as vae_experiment
from configs.chef_fusion import clip as clip_config
from configs.chef_fusion import judge as judge_config
from configs.chef_fusion import opt as opt_config
from configs.chef_fusion import stable_diffusion as sd_config
from configs.chef_fusion import vae as vae_config
from launch import convert, evaluate
from launch.runtime.setup import prepare as set_up
from launch.train import train
from rcg import component
from rcg.errors import UserError
from rcg.pixel import lpips
from tests.chef_fusion import tiny_kitchen
from tests.rcg.tiny_chain import filled
from tests.reference.parity import close


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_kitchen.build(tmp_path_factory.mktemp("parts"))


def kitchen(config, size=tiny_kitchen.SIZE):
    config.data.update(source="recipes_kitchen", num_records=64, image_size=size)
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
    batches = list(iter(set_up(c).experiment.dataset("eval", 8, 0, 0, 1)))
    tokens = np.concatenate([batch["tokens"][batch["mask"] == 1] for batch in batches])
    tokens = tokens[: results["token_accuracy"]["samples"]]
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits[:, :-1].numpy()
    right = (logits.argmax(-1) == tokens[:, 1:]).mean()
    assert right > 0.05
    assert results["token_accuracy"]["value"] == pytest.approx(right, abs=1e-4)


def test_held_out_texts_shorter_than_a_sequence_are_told(parts, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"text": "boil it"}\n' + '{"text": "stir and serve it hot"}\n' * 40)
    c = kitchen(opt_config.get_config("runlocal"))
    c.data.update(source="texts", path=str(tmp_path / "few.jsonl"), tokenizer=tokenizer(parts, "lm"))
    c.data.update(eval_every=50, length=16)
    c.model.vocab_size, c.total_steps = tiny_kitchen.VOCABULARY, 1
    assert train(c, str(tmp_path / "lm")) == 0
    with pytest.raises(UserError, match="shorter than one sequence of 16 tokens"):
        evaluate.main(["evaluate", f"--workdir={tmp_path / 'lm'}"])
    c.data.eval_every = 0
    with pytest.raises(UserError, match="eval_every 0 is below 1"):
        train(c, str(tmp_path / "other"))


@pytest.mark.parametrize(
    "config, source, says",
    [
        (clip_config, "kitchen", '"kitchen" has no recipes; take one of recipe1m'),
        (opt_config, "kitchen", "has no texts"),
        (judge_config, "recipe_jsonl", "a judge learns from the toy kitchen"),
    ],
)
def test_a_source_of_something_else(parts, tmp_path, config, source, says):
    c = kitchen(config.get_config("runlocal"))
    c.data.source = source
    if source == "recipe_jsonl":
        record = {"title": "Soup", "ingredients": ["peas"], "instructions": ["boil"], "images": ["a.png"]}
        Image.fromarray(tiny_kitchen.photo()).save(tmp_path / "a.png")
        for split in ("train", "val"):
            (tmp_path / f"{split}.jsonl").write_text(3 * (json.dumps(record) + "\n"))
        c.data.path = str(tmp_path)
    elif "tokenizer" in c.data:
        c.data.tokenizer = tokenizer(parts, "vision" if config is clip_config else "lm")
    if config is clip_config:
        c.model.vision.image_size = tiny_kitchen.SIZE
        c.model.text.update(vocab_size=tiny_kitchen.VOCABULARY, max_position_embeddings=48)
    with pytest.raises(UserError, match=says):
        train(c, str(tmp_path / "run"))


def test_clip(parts, tmp_path):
    """Learns, and transformers gets the same features from its export."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    c = kitchen(clip_config.get_config("runlocal"))
    c.data.tokenizer, c.total_steps, c.log_steps, c.batch_size = tokenizer(parts, "vision"), 200, 20, 16
    c.model.vision.image_size = tiny_kitchen.SIZE
    c.model.text.update(vocab_size=tiny_kitchen.VOCABULARY, max_position_embeddings=48)
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 2e-3, 20
    lines = run(c, tmp_path / "clip")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    evaluate.main(["evaluate", f"--workdir={tmp_path / 'clip'}"])
    results = json.loads((tmp_path / "clip/results.json").read_text())
    assert results["similarity_of_pairs"]["value"] > results["similarity_of_others"]["value"]
    evaluate.main(["evaluate", f"--workdir={tmp_path / 'clip'}", "--split=test"])
    both = json.loads((tmp_path / "clip/results.json").read_text())
    assert both == results | {name: held for name, held in both.items() if name.startswith("test/")}
    assert {name.removeprefix("test/") for name in both} == results.keys()
    assert both["test/similarity_of_pairs"]["value"] != results["similarity_of_pairs"]["value"]
    with pytest.raises(UserError, match='no split "tset"'):
        evaluate.main(["evaluate", f"--workdir={tmp_path / 'clip'}", "--split=tset"])
    made = component.load(str(tmp_path / "clip/component"), "clip")
    assert made.architecture["logit_scale"]
    published.write(made, str(tmp_path / "published"))
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "published").eval()
    batch = next(iter(set_up(c).experiment.dataset("eval", 4, 0, 0, 1)))
    pixels, ids = clip.normalise(batch["image"]), batch["text_ids"]
    with torch.no_grad():
        seen = theirs.vision_model(pixel_values=torch.tensor(np.moveaxis(pixels, -1, 1))).pooler_output
        read = theirs.text_model(input_ids=torch.tensor(ids)).pooler_output
        expected = theirs.visual_projection(seen), theirs.text_projection(read)
    module = published.build("clip", made.architecture)
    for name, given, of_theirs in zip(("image", "text"), (pixels, ids), expected, strict=True):
        ours = module.apply(made.variables, given, method=f"{name}_features")
        close(f"{name} features", ours, of_theirs, 1e-5)


def test_ranks_do_not_depend_on_how_many_are_looked_at_at_once(monkeypatch):
    images, texts = np.random.default_rng(0).standard_normal((2, 11, 4)).astype(np.float32)
    whole = images @ texts.T
    for size in (1, 4, 100):
        monkeypatch.setattr(clip_experiment, "RANKED", size)
        rank, own = clip_experiment.ranked(images, texts)
        np.testing.assert_allclose(own, np.diagonal(whole), rtol=1e-5, atol=1e-6)
        assert rank.tolist() == (whole > np.diagonal(whole)[:, None]).sum(1).tolist()


def test_autoencoder(tmp_path):
    """Learns; its export has unit latents after the UNet's scaling, and decodes as before the scale.
    diffusers encodes and decodes with it as we do, and what it writes comes back."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    c = vae_config.get_config("runlocal")
    c.data.update(source="kitchen", num_records=64)
    c.data.eval_split = "test"
    kitchen_size = 16
    c.data.image_size, c.total_steps, c.log_steps = kitchen_size, 80, 10
    c.mesh.update(data=1, fsdp=8)
    c.optimizer.learning_rate = 3e-3
    c.method.update(adversarial_weight=0.1, adversarial_start_step=70)
    c.method.discriminator.update(ch=8, num_groups=4)
    lines = run(c, tmp_path / "vae")
    assert [line["discriminator"] > 0 for line in lines] == [False] * 7 + [True]
    assert lines[-1]["adversarial_weight"] > 0
    assert lines[-1]["l1"] < 0.85 * lines[0]["l1"]
    made = component.load(str(tmp_path / "vae/component"), "vae")
    assert "discriminator" not in made.variables["params"]
    module = vae.build(made.architecture)
    batch = next(iter(set_up(c).experiment.dataset("eval", 32, 0, 0, 1)))["image"] / np.float32(255)
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

    source, folder, again = (str(tmp_path / name) for name in ("vae/component", "published", "again"))
    assert convert.main(["convert", "--export", f"--source={source}", f"--out={folder}"]) == 0
    theirs = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(np.moveaxis(2 * batch - 1, -1, 1))).latent_dist
        expected = theirs.decode(torch.tensor(np.moveaxis(np.asarray(mean), -1, 1))).sample
    close("their mean", np.moveaxis(mean, -1, 1), posterior.mean, 1e-5)
    close("their log variance", np.moveaxis(logvar, -1, 1), posterior.logvar, 1e-5)
    close("their picture", np.moveaxis(decoded, -1, 1), expected, 1e-5)
    assert convert.main(["convert", "--kind=vae", f"--source={folder}", f"--out={again}"]) == 0
    assert component.describe(again, "vae").content_hash == made.content_hash


def from_scaled(params, by):
    from chef_fusion.experiments.vae import scaled

    return jax.tree.map(np.asarray, scaled(params, jnp.float32(by)))


def test_the_perceptual_term_of_the_autoencoder():
    c = vae_config.get_config("runlocal")
    c.data.update(source="kitchen", image_size=16)
    c.method.update(perceptual_weight=0.5, kl_weight=0.0, adversarial_weight=0.0)
    network, rng = lpips.build({}), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *jnp.zeros((2, 1, 16, 16, 3)))
    variables = jax.tree.map(lambda x: np.float32(0.05 * np.abs(rng.standard_normal(x.shape))), shapes)
    given = {"perceptual": component.Component("rcg.lpips", {}, variables)}
    made = vae_experiment.experiment(c, given, None)
    params, extra = jax.jit(made.init)(jax.random.key(0))
    batch = {"image": np.stack([tiny_kitchen.photo(i, (16, 16)) for i in range(2)])}
    loss, (metrics, _) = jax.jit(made.loss)(
        params, extra, {"perceptual": variables}, batch, jax.random.key(1)
    )
    module, images = vae.build(made.architecture), batch["image"] / np.float32(255)
    mean, logvar = module.apply({"params": params}, 2 * images - 1, method="encode")
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.key(1), mean.shape)
    painted = (module.apply({"params": params}, latents, method="decode") + 1) / 2
    expected = network.apply(variables, images, painted).mean()
    assert metrics["perceptual"] == pytest.approx(float(expected), rel=1e-3)
    others = c.method.l1_weight * metrics["l1"] + c.method.l2_weight * metrics["l2"]
    assert metrics["perceptual"] > 0 and loss == pytest.approx(float(others + 0.5 * metrics["perceptual"]))
    with pytest.raises(UserError, match="rcg.lpips is needed"):
        vae_experiment.experiment(c, {"perceptual": component.Component("rcg.rdm", {}, {})}, None)


def test_weights_of_timesteps():
    """Min-SNR: the noise's error times this is the clean latents' error times min(SNR, gamma), so a step's
    weight never rises as its noise falls; where there is much noise nothing changes."""
    acp = jnp.asarray(schedulers.alphas_cumprod())
    snr, made = acp / (1 - acp), sd_experiment.snr_weights(acp, 5.0)
    np.testing.assert_allclose(made * snr, np.minimum(snr, 5.0), rtol=1e-6)
    assert (np.diff(made) >= 0).all() and made[0] < 0.01 and (made[snr <= 5] == 1).all()
    np.testing.assert_array_equal(sd_experiment.snr_weights(acp, 0.0), 1)


def test_latent_diffusion(parts, tmp_path):
    """Learns in an autoencoder's latents, of however many channels, and exports a Stable Diffusion with the
    frozen parts in it, whose UNet diffusers reads."""
    architecture = tiny_kitchen.VAE | {"latent_channels": 6}
    autoencoder = component.Component("vae", architecture, filled(vae.abstract_variables(architecture)))
    component.save(str(tmp_path / "vae"), autoencoder)
    c = kitchen(sd_config.get_config("runlocal"))
    c.model.update(block_out_channels=(8, 8), attention_blocks=(True, False), cross_attention_dim=16)
    c.model.update(attention_head_dim=2, norm_num_groups=4)
    c.components.update(clip=parts["vision"], vae=str(tmp_path / "vae"))
    c.total_steps, c.log_steps, c.optimizer.learning_rate = 40, 10, 2e-3
    c.method.snr_gamma = 5.0
    lines = run(c, tmp_path / "sd")
    assert lines[-1]["noise_loss"] < lines[0]["noise_loss"]
    assert all(0 < line["loss"] < line["noise_loss"] for line in lines)
    losses = {}
    for share in (1.0, 0.0):
        told = copy.deepcopy(c)
        told.method.drop_text = share
        setup = set_up(told)
        state, frozen = setup.init_state(), setup.load_frozen()
        params = jax.tree.map(lambda x: x + 0.1, state.params)
        batch = next(iter(setup.experiment.dataset("train", 8, 0, 0, 1)))
        loss = jax.jit(setup.experiment.loss)
        ids = batch["text_ids"]
        captions = tokenization.CaptionTokenizer.load(tokenizer(parts, "vision"), ids.shape[1])
        texts = ids, np.roll(ids, 1, 0), np.tile(captions([""]), (len(ids), 1))
        losses[share] = [
            float(loss(params, state.extra, frozen, batch | {"text_ids": x}, jax.random.key(0))[0])
            for x in texts
        ]
    np.testing.assert_allclose(losses[1.0], losses[0.0][2], rtol=1e-6)  # left out: as the empty text
    assert np.ptp(losses[0.0][:2]) > 1e-4 and abs(losses[0.0][0] - losses[0.0][2]) > 1e-4
    blind = component.load(parts["vision"])
    blind.architecture["vision"] = None
    component.save(str(tmp_path / "blind"), blind)
    wrong = copy.deepcopy(c)
    wrong.components.clip = str(tmp_path / "blind")
    with pytest.raises(UserError, match="lacks its vision tower or its projections"):
        set_up(wrong)
    wrong = copy.deepcopy(c)
    wrong.method.snr_gamma = -1.0
    with pytest.raises(UserError, match="snr_gamma -1.0 is below 0"):
        set_up(wrong)
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
    x, context = rng.standard_normal((2, 8, 8, 6)), rng.standard_normal((2, 12, 16))
    x, context = x.astype(np.float32), context.astype(np.float32)
    sd = pipeline.build(made.architecture)
    variables = {"params": made.variables["params"]["unet"]}
    ours = sd.unet.apply(variables, x, jnp.array([3, 700]), context)
    with torch.no_grad():
        given = torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor([3, 700])
        expected = theirs(*given, encoder_hidden_states=torch.tensor(context)).sample.numpy()
    close("noise", np.moveaxis(ours, -1, 1), expected, 1e-4)

    out, size = tmp_path / "exported", c.data.image_size
    convert.main(["convert", "--export", f"--source={tmp_path / 'sd/component'}", f"--out={out}"])
    whole = diffusers.StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    whole.scheduler = diffusers.DDIMScheduler.from_config(whole.scheduler.config)
    whole.set_progress_bar_config(disable=True)
    latents = rng.standard_normal((1, 8, 8, 6)).astype(np.float32)
    text = " ".join(["a pizza with basil"] * 9)  # longer than is read
    with torch.no_grad():
        expected = whole(
            text, num_inference_steps=3, latents=torch.tensor(np.moveaxis(latents, -1, 1)), output_type="np"
        ).images
    captions = tokenization.CaptionTokenizer.load(made.tokenizer, sd.max_tokens)
    asked, nothing = (
        pipeline.encode_text(sd, made.variables, jnp.asarray(captions([words]))) for words in (text, "")
    )
    key = jax.random.key(0)
    ours = pipeline.generate(
        sd, made.variables, key, asked, nothing, steps=3, scheduler="ddim", latents=jnp.asarray(latents)
    )
    close("picture", ours, expected, 1e-3)
    assert sd.default_size == size == expected.shape[1] == whole.unet.config.sample_size * sd.vae.factor
