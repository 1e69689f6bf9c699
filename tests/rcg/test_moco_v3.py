"""The MoCo v3 experiment: its loss, what is trained and what is not, learning, evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.rcg.moco_v3 import get_config
from launch.runtime.optimizer import make_optimizer
from rcg import encoders
from rcg.data import ArraySource
from rcg.errors import UserError
from rcg.experiments import moco_v3


def stripes(n, seed):
    """Two classes, by the direction of the stripes; phase and colour are random."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    phase, color = rng.uniform(0, 6.28, (n, 1, 1)), rng.uniform(0.3, 1, (n, 1, 1, 3))
    y, x = np.mgrid[:32, :32]
    along = np.where(labels[:, None, None] == 0, x, y)
    wave = 0.5 + 0.5 * np.sin(along * 0.8 + phase)
    return (wave[..., None] * color * 255).astype(np.uint8), labels.astype(np.int32)


def sources(split):
    # in the order of the labels, as a folder is
    images, labels = stripes(64, {"train": 0, "eval": 1}[split])
    order = np.argsort(labels, kind="stable")
    return ArraySource(images[order], labels[order])


def setup(variant="small", **fields):
    config = get_config(f"variant={variant},runlocal")
    config.update_from_flattened_dict({"model.depth": 1} | fields)
    return config, moco_v3.experiment(config, {}, sources)


@functools.cache
def trainable(variant):
    """(config, experiment, params, extra, optimiser state, jitted step with the trainer's own optimiser)."""
    config, exp = setup(
        variant,
        **{
            "optimizer.warmup_steps": 0,
            "optimizer.learning_rate": 3e-3,
            "method.momentum": 0.9,
            "method.knn_k": 5,
            "method.eval_bank": 40,
            "total_steps": 60,
        },
    )
    params, extra = jax.jit(exp.init)(jax.random.key(0))
    optimizer = make_optimizer(config, params)

    @jax.jit
    def step(params, extra, state, images, key):
        grad = jax.value_and_grad(exp.loss, has_aux=True)
        (_, (values, extra)), grads = grad(params, extra, {}, {"image": images}, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), extra, state, values, grads

    return config, exp, params, extra, optimizer.init(params), step


def test_contrast_is_moco_v3s():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 6, 5)).astype(np.float32)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k)]
    logits = unit[0] @ unit[1].T / 0.2
    want = 2 * 0.2 * np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    loss, accuracy = moco_v3.contrast(q, k, 0.2)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(logits.argmax(1) == np.arange(6)))
    zeros = jax.grad(lambda q: moco_v3.contrast(q, k, 0.2)[0])(jnp.zeros_like(q))
    assert np.isfinite(zeros).all()


def test_momentum_goes_from_its_start_to_one():
    at = [float(moco_v3.momentum_at(jnp.int32(s), 0.9, 10)) for s in (0, 5, 10, 12)]
    assert at == pytest.approx([0.9, 0.95, 1.0, 1.0])


@pytest.mark.parametrize("variant", ["small", "base"])
def test_step_moves_what_it_should(variant):
    """One optimiser step, weight decay included: fixed tables stay bit for bit, the rest moves, and the
    momentum encoder follows by the stated share of the way."""
    config, _, params, extra, state, step = trainable(variant)
    images = stripes(16, 2)[0]
    new, extra1, state, values, grads = step(params, extra, state, images, jax.random.key(1))
    assert all(np.isfinite(v) for v in values.values()) and 0 < values["representation_std"] < 1.5

    frozen = ["pos_embed"] + ["patch_embed"] * (variant == "base")
    for name in new["encoder"]:
        same = jax.tree.map(np.array_equal, params["encoder"][name], new["encoder"][name])
        assert all(jax.tree.leaves(same)) == (name in frozen), name
        if name in frozen:
            assert not any(np.any(g) for g in jax.tree.leaves(grads["encoder"][name])), name

    _, extra2, *_ = step(new, extra1, state, images, jax.random.key(2))
    m = float(moco_v3.momentum_at(1, 0.9, config.total_steps))
    for slow2, slow1, fast in zip(
        *map(jax.tree.leaves, (extra2["momentum"]["params"], extra1["momentum"]["params"], new["encoder"])),
        strict=True,
    ):
        np.testing.assert_allclose(slow2, m * slow1 + (1 - m) * fast, atol=1e-6)
    assert int(extra2["step"]) == 2
    # each network's head saw two views a step
    for stats in (extra2["batch_stats"]["encoder"], extra2["momentum"]["batch_stats"]):
        assert int(stats["head"]["7"]["count"]) == 4


def test_learns_and_evaluates():
    _, exp, params, extra, state, step = trainable("small")
    images = stripes(64, 0)[0]
    losses = []
    for i in range(60):
        batch = images[(np.arange(16) + 16 * i) % 64]
        params, extra, state, values, _ = step(params, extra, state, batch, jax.random.key(i))
        losses.append(float(values["loss"]))
    print(f"loss {np.mean(losses[:5]):.3f} -> {np.mean(losses[-5:]):.3f}")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    results = exp.evaluate(params, extra, {}, jax.random.key(0), lambda b: jax.tree.map(jnp.asarray, b))
    print({k: round(v["value"], 3) for k, v in results.items()})
    assert results["knn_accuracy"]["samples"] == 32 and results["knn_accuracy"]["bank"] == 40
    assert results["chance_accuracy"]["value"] == 0.5
    assert results["linear_probe_accuracy"]["value"] > 0.65
    again = exp.evaluate(params, extra, {}, jax.random.key(0), lambda b: jax.tree.map(jnp.asarray, b))
    assert again == results

    component = exp.export(params, extra)
    module = encoders.build(exp.architecture)
    rep = encoders.represent(module, component, images[:3] / 255)
    assert rep.shape == (3, 16) and np.isfinite(rep).all()


def test_panels():
    _, exp, params, extra, *_ = trainable("small")
    images = stripes(8, 2)[0]
    images[5] = images[2]  # twins are each other's nearest
    rows = jax.jit(exp.panels)(params, extra, {}, {"image": images}, jax.random.key(0))
    assert {v.shape for v in rows.values()} == {(8, 32, 32, 3)}
    np.testing.assert_allclose(rows["nearest of the others"][2], images[5] / 255, atol=1e-6)
    assert min(v.min() for v in rows.values()) > -1e-5 and max(v.max() for v in rows.values()) < 1 + 1e-5


def test_contradicting_settings_are_named():
    with pytest.raises(UserError, match="patch_embed.*groups"):
        setup("base", **{"method.stop_grad_conv1": False})
    with pytest.raises(UserError, match="pos_embed"):
        setup("base", **{"optimizer.groups.frozen.params": "encoder/patch_embed"})


def test_paper_recipe():
    c = get_config("variant=large")
    assert (c.model.dim, c.model.depth, c.model.num_heads) == (1024, 24, 16)
    assert (c.total_steps, c.optimizer.warmup_steps) == (93_600, 12_480)
    assert c.optimizer.learning_rate == pytest.approx(2.4e-3)
    with pytest.raises(ValueError, match="huge"):
        get_config("variant=huge")


def test_the_momentum_encoder_moves_once_an_update():
    """Not once for each of the parts that a batch is cut into."""
    _, exp = setup(**{"optimizer.accumulation_steps": 2, "batch_size": 16})
    params, extra = jax.jit(exp.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, params)
    images, _ = stripes(8, 0)
    part = jax.jit(lambda extra: exp.loss(params, extra, {}, {"image": images}, jax.random.key(1))[1][1])
    first = part(extra)
    second = part(first)
    slow = [state["momentum"]["params"] for state in (extra, first, second)]
    moved = [
        max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
        for x, y in ((slow[0], slow[1]), (slow[1], slow[2]))
    ]
    assert moved[0] > 0 and moved[1] == 0
