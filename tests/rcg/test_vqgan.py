"""The VQGAN and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.rcg.vqgan import get_config
from rcg import data, published
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiments import vqgan as training
from rcg.pixel import lpips, vqgan
from rcg.pixel.discriminator import PatchDiscriminator, discriminator_loss

KEY = jax.random.key(0, impl="rbg")  # whose draws compile in a tenth of the time


@pytest.fixture(scope="module")
def pictures():
    """Coloured gradients, uint8 [32, 16, 16, 3]."""
    corner = np.random.default_rng(0).uniform(0, 255, (32, 2, 2, 3))
    t = np.linspace(0, 1, 16)
    blend = np.stack([1 - t, t], 1)
    return np.einsum("ia,jb,nabc->nijc", blend, blend, corner).astype(np.uint8)


def make(pictures, components=None, accumulation_steps=1, **method):
    config = get_config("variant=small,runlocal")
    config.data.image_size = 16
    config.model.ch_mult = (1, 2)
    config.method.update(method)
    config.method.discriminator.num_layers = 1
    config.optimizer.accumulation_steps = accumulation_steps
    experiment = training.experiment(config, components or {}, lambda split: data.ArraySource(pictures))
    return experiment


def call(module, variables, *inputs, method=None):
    return jax.jit(lambda variables, *inputs: module.apply(variables, *inputs, method=method))(
        variables, *inputs
    )


def run(experiment, pictures, steps, lr=3e-3, frozen=None):
    """Plain Adam; -> (params, extra, metrics of each step)."""
    params, extra = jax.jit(experiment.init)(KEY)
    optimizer = optax.adam(lr)
    state, history = optimizer.init(params), []

    @jax.jit
    def step(params, extra, state, rng):
        grad = jax.grad(experiment.loss, has_aux=True)
        batch = {"image": pictures, "label": np.zeros(len(pictures), np.int32)}
        grads, (metrics, extra) = grad(params, extra, frozen or {}, batch, rng)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), extra, state, metrics

    for i in range(steps):
        params, extra, state, metrics = step(params, extra, state, jax.random.fold_in(KEY, i))
        history.append(jax.device_get(metrics))
    return params, extra, history


def test_learns_uses_its_codes_and_exports(pictures):
    experiment = make(pictures, quantize_start_step=10)
    params, extra, history = run(experiment, pictures, 60)
    print(
        f"psnr {history[0]['psnr']:.1f} -> {history[-1]['psnr']:.1f}, codes {history[-1]['codes_used']:.2f}"
    )
    assert history[-1]["psnr"] > history[0]["psnr"] + 5
    assert history[-1]["codes_used"] > 0.9

    module = vqgan.build(experiment.architecture)
    variables = experiment.export(params, extra)
    expected = jax.eval_shape(module.init, KEY, jnp.zeros((1, 16, 16, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda x: x.shape, expected)

    results = experiment.evaluate(params, extra, {}, KEY, lambda batch: batch)
    image = pictures.astype(np.float32) / 255
    tokens = call(module, variables, image, method="tokenize")
    made = np.clip(call(module, variables, tokens, method="decode_tokens"), 0, 1)
    assert results["reconstruction_mse"]["value"] == pytest.approx(np.square(made - image).mean(), rel=1e-4)
    assert results["reconstruction_l1"]["value"] == pytest.approx(np.abs(made - image).mean(), rel=1e-4)
    assert results["codes_used"]["value"] == len(np.unique(tokens)) / module.codebook_size
    assert results["reconstruction_mse"]["samples"] == 32

    panels = jax.jit(experiment.panels)(params, extra, {}, {"image": pictures[:4]}, KEY)
    assert np.allclose(panels["original"], image[:4])
    assert np.allclose(panels["reconstruction"], made[:4], atol=1e-5)


def test_codebook_can_follow_the_gradient(pictures):
    experiment = make(pictures, codebook="gradient", legacy_order=True, quantize_start_step=0)
    params, extra, _ = run(experiment, pictures[:16], 2)
    before = jax.jit(experiment.init)(KEY)[0]
    assert not np.array_equal(params["codebook"], before["codebook"])
    assert np.array_equal(experiment.export(params, extra)["params"]["codebook"], params["codebook"])


def test_gradients_of_the_adversaries_do_not_mix(pictures):
    experiment = make(pictures, adversarial_weight=0.5, adversarial_start_step=0, quantize_start_step=0)
    alone = make(pictures, quantize_start_step=0)
    params, extra = jax.jit(experiment.init)(KEY)
    batch = {"image": pictures[:8], "label": np.zeros(8, np.int32)}

    def gradient(experiment, params):
        return jax.jit(jax.grad(experiment.loss, has_aux=True))(params, extra, {}, batch, KEY)

    grads, (metrics, _) = gradient(experiment, params)
    network = {k: v for k, v in params.items() if k != "discriminator"}
    plain, _ = gradient(alone, network)

    def norm(tree):
        return float(optax.tree.norm(tree))

    # the decoder feels the discriminator, as strongly as adversarial_weight says
    assert norm(jax.tree.map(jnp.subtract, grads["decoder"], plain["decoder"])) > 0.05 * norm(
        plain["decoder"]
    )
    # the discriminator's gradient is that of its own loss alone, on images that are given to it
    judge = PatchDiscriminator(ch=8, num_layers=1, num_groups=4)
    image = pictures[:8].astype(np.float32) / 255
    made, _ = call(vqgan.build(experiment.architecture), experiment.export(params, extra), image)

    def own(params):
        return discriminator_loss(*(judge.apply({"params": params}, x) for x in (image, made)))

    value, expected = jax.jit(jax.value_and_grad(own))(params["discriminator"])
    assert value == pytest.approx(float(metrics["discriminator"]), rel=1e-4)
    assert norm(jax.tree.map(jnp.subtract, grads["discriminator"], expected)) < 1e-3 * norm(expected)


def test_adversaries_start_late_and_then_both_move(pictures):
    # start steps count updates: with two micro-batches each, step 2 is call 4
    experiment = make(pictures, accumulation_steps=2, adversarial_weight=0.5, adversarial_start_step=2)
    _, _, history = run(experiment, pictures[:16], 10)
    assert [h["discriminator"] > 0 for h in history] == [False] * 4 + [True] * 6
    assert all(h["adversarial_weight"] > 0 for h in history[4:])
    assert history[-1]["discriminator"] < history[4]["discriminator"]
    assert history[-1]["generator"] != history[4]["generator"]


def test_perplexity():
    assert training.perplexity(jnp.array([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2)


def test_bfloat16_keeps_latents_and_images_in_float32():
    architecture = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, num_groups=4)
    module = vqgan.build(architecture, dtype=jnp.bfloat16)
    image = jax.random.uniform(KEY, (2, 16, 16, 3))
    variables = jax.jit(module.init)(KEY, image)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    z = call(module, variables, image, method="encode")
    exact = call(vqgan.build(architecture), variables, image, method="encode")
    error = float(jnp.abs(z - exact).max() / jnp.abs(exact).max())
    print(f"bfloat16 latents: {error:.1e}")
    assert z.dtype == jnp.float32 and 0 < error < 5e-2


def test_tokens_must_form_a_square():
    module = vqgan.build(
        dict(ch=8, ch_mult=(1,), num_res_blocks=1, z_channels=8, codebook_size=4, num_groups=4)
    )
    shapes = jax.eval_shape(module.init, KEY, jnp.zeros((1, 4, 4, 3)))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    with pytest.raises(ValueError, match="6 tokens"):
        module.apply(variables, jnp.zeros((1, 6), jnp.int32), method="decode_tokens")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": {"image_size": 30}}, "image_size 30 is not divisible by 4"),
        ({"model": {"num_groups": 3}}, "not divisible by num_groups 3"),
        ({"method": {"codebook": "magic"}}, '"magic" is not gradient or running_mean'),
    ],
)
def test_refuses_settings_that_contradict(change, message):
    config = get_config("variant=small,runlocal")
    config.update(change)
    with pytest.raises(UserError, match=message):
        training.experiment(config, {}, None)


def lpips_shapes():
    return jax.eval_shape(lpips.build({}).init, KEY, *jnp.zeros((2, 1, 16, 16, 3)))


def test_perceptual_term(pictures):
    module = lpips.build({})
    draw = np.random.default_rng(0).standard_normal
    variables = jax.tree.map(lambda x: np.float32(0.05 * np.abs(draw(x.shape))), lpips_shapes())
    component = Component("rcg.lpips", {}, variables)
    experiment = make(pictures, {"perceptual": component}, perceptual_weight=0.5, quantize_start_step=0)
    params, extra = jax.jit(experiment.init)(KEY)
    batch = {"image": pictures[:4], "label": np.zeros(4, np.int32)}
    loss, (metrics, _) = jax.jit(experiment.loss)(params, extra, {"perceptual": variables}, batch, KEY)
    assert metrics["reconstruction"] == pytest.approx(
        float(10 * metrics["l2"] + 0.5 * metrics["perceptual"]), rel=1e-5
    )
    image = batch["image"].astype(np.float32) / 255
    made, _ = call(vqgan.build(experiment.architecture), experiment.export(params, extra), image)
    expected = float(call(module, variables, image, made).mean())
    assert metrics["perceptual"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="rcg.lpips is needed"):
        make(pictures, {"perceptual": Component("rcg.rdm", {}, {})})


def test_lpips_of_equal_images_is_zero_with_a_finite_gradient():
    module = lpips.build({})
    black = jnp.zeros((1, 16, 16, 3))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape), lpips_shapes())  # all features zero

    def distance(b, variables):
        return module.apply(variables, black, b).sum()

    value, grad = jax.jit(jax.value_and_grad(distance))(black, variables)
    assert value == 0 and np.isfinite(grad).all()


def test_lpips_comes_from_the_published_file():
    draw = np.random.default_rng(0).standard_normal
    variables = jax.tree.map(lambda x: draw(x.shape).astype(np.float32), lpips_shapes())
    arrays = published.publish(Component("rcg.lpips", {}, variables))
    assert arrays["net.slice1.0.weight"].shape == (64, 3, 3, 3)
    assert arrays["lin0.model.1.weight"].shape == (1, 64, 1, 1)
    file = arrays | {f"lins.{i}.model.1.weight": arrays[f"lin{i}.model.1.weight"] for i in range(5)}
    file |= {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
    made = published.convert("rcg.lpips", file, "vgg.pth")
    jax.tree.map(np.testing.assert_array_equal, made.variables, variables)
    del file["net.slice3.12.bias"]
    with pytest.raises(UserError, match="net.slice3.12.bias"):
        published.convert("rcg.lpips", file, "vgg.pth")
