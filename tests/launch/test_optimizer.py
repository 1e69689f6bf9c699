"""Learning-rate schedules against the original's, parameter groups, decay masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.common import training
from launch.runtime.optimizer import decay_mask, learning_rate, make_optimizer
from launch.runtime.step import _ema_leaves
from rcg.errors import UserError


@pytest.mark.parametrize("name", ["mage_b", "mage_l", "floor"])
@pytest.mark.parametrize("schedule", ["cosine", "const", "scaled"])
def test_schedule_equals_the_original(golden, name, schedule):
    vectors = golden("rcg/lr_schedule")
    peak, floor, warmup, epochs = vectors[f"in/{name}_lr_minlr_warmup_epochs"]
    scale = 0.5 if schedule == "scaled" else 1  # a group of half the rate; cosine, too
    given = {
        "learning_rate": scale * float(peak),
        "min_learning_rate": scale * float(floor),
        "warmup_steps": float(warmup),  # in epochs here, and not whole
        "schedule": {"const": "constant"}.get(schedule, "cosine"),
    }
    settings = ConfigDict(training().optimizer.to_dict() | given)
    ours = learning_rate(vectors[f"in/{name}_epoch"], settings, float(epochs))
    theirs = vectors[f"out/{name}_{schedule}_f64"]
    error = np.abs(np.asarray(ours, np.float64) - theirs).max() / theirs.max()
    print(f"lr {name} {schedule}: {error:.1e} (limit 1e-6)")
    assert error < 1e-6


PARAMS = {
    "net": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2,))},
    "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((1, 2))},
}


def test_decay_spares_vectors_and_biases_unless_told_otherwise():
    assert decay_mask(PARAMS, "matrices") == {
        "net": {"kernel": True, "bias": False},
        "head": {"kernel": True, "bias": False},
    }
    assert all(jax.tree.leaves(decay_mask(PARAMS, "all")))


def test_a_group_has_its_own_rate_and_clip():
    config = training()
    config.optimizer.groups = ConfigDict({"frozen": {"params": "^head", "learning_rate": 0.0}})
    config.optimizer.weight_decay = 0.1
    optimizer = make_optimizer(config, PARAMS)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert all(not np.any(u) for u in jax.tree.leaves(updates["head"]))
    assert all(np.all(np.asarray(u) < 0) for u in jax.tree.leaves(updates["net"]))


def test_matches_plain_adamw():
    config = training()
    config.optimizer.weight_decay, config.optimizer.decay = 0.01, "all"
    ours, plain = make_optimizer(config, PARAMS), optax.adamw(1e-3, weight_decay=0.01)
    a, _ = ours.update(PARAMS, ours.init(PARAMS), PARAMS)
    b, _ = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_group_that_matches_nothing_is_refused():
    config = training()
    config.optimizer.groups = ConfigDict({"disc": {"params": "^discriminator"}})
    with pytest.raises(UserError, match="disc"):
        make_optimizer(config, PARAMS)
    config.optimizer.groups = ConfigDict({"head": {"params": "^head", "lr": 0.0}})
    with pytest.raises(UserError, match="optimizer group head has no field lr"):
        make_optimizer(config, PARAMS)


def test_muon_turns_kernels_by_orthogonal_matrices_and_leaves_the_rest_to_adamw():
    key = jax.random.key(0)
    shapes = {"tall": (8, 4), "wide": (4, 12), "conv": (3, 3, 2, 4)}
    kernels = {name: {"kernel": jax.random.normal(key, shape)} for name, shape in shapes.items()}
    params = kernels | {"embed_tokens": jnp.ones((5, 4)), "norm": {"bias": jnp.ones((4,))}}
    keys = iter(jax.random.split(key, 5))
    grads = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params)
    config = training()
    config.optimizer.update(name="muon", learning_rate=1e-2)
    ours, adamw = make_optimizer(config, params), optax.adam(1e-2)
    updates, _ = ours.update(grads, ours.init(params), params)
    plain, _ = adamw.update(grads, adamw.init(params), params)
    for same in ("embed_tokens", "norm"):
        jax.tree.map(np.testing.assert_array_equal, updates[same], plain[same])
    for name in shapes:
        leaf = updates[name]["kernel"]
        values = jnp.linalg.svd(leaf.reshape(-1, leaf.shape[-1]), compute_uv=False)
        longer = max(leaf.size / leaf.shape[-1], leaf.shape[-1])
        print(name, values / (1e-2 * 0.2 * longer**0.5))
        # five Newton-Schulz steps bring all singular values near one
        assert np.all(np.abs(values / (1e-2 * 0.2 * longer**0.5) - 1) < 0.4)


def test_muon_sees_a_gradient_that_all_examples_share_and_one_that_tells_them_apart_alike():
    """A linear map on inputs that hardly differ, as CLIP's pooled vectors do: Adam learns their mean."""
    x = 1 + 0.05 * jax.random.normal(jax.random.key(0), (16, 32))
    y = jax.random.normal(jax.random.key(1), (16, 24))

    def error(name, rate):
        config = training()
        config.optimizer.update(name=name, learning_rate=rate)
        params = {"map": {"kernel": jnp.zeros((32, 24)), "bias": jnp.zeros(24)}}
        optimizer = make_optimizer(config, params)

        def loss(params):
            return jnp.mean((x @ params["map"]["kernel"] + params["map"]["bias"] - y) ** 2)

        def step(held, _):
            params, state = held
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        return float(loss(params))

    # each at its best rate
    found = {name: min(error(name, rate) for rate in (0.03, 0.1, 0.3, 1.0)) for name in ("adamw", "muon")}
    print(found)
    assert found["muon"] < 0.2 * found["adamw"]


def test_muons_scale_is_of_its_kernels_alone():
    params = {"kernel": jnp.eye(4), "bias": jnp.ones((4,))}

    def updates(scale):
        config = training()
        config.optimizer.update(name="muon", muon_scale=scale, weight_decay=0.1)
        optimizer = make_optimizer(config, params)
        return optimizer.update(params, optimizer.init(params), params)[0]

    one, three = updates(1.0), updates(3.0)
    np.testing.assert_allclose(three["kernel"], 3 * one["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(three["bias"], one["bias"])


def test_an_optimiser_that_does_not_exist_is_refused():
    config = training()
    config.optimizer.name = "moun"
    with pytest.raises(UserError, match="adamw"):
        make_optimizer(config, PARAMS)
    config.optimizer.update(name="muon", muon_scale=0.0)
    with pytest.raises(UserError, match="muon_scale 0.0 must be above 0"):
        make_optimizer(config, PARAMS)


def test_patterns_that_are_none_or_match_nothing():
    config = training()
    config.optimizer.groups = ConfigDict({"head": {"params": "(head"}})
    with pytest.raises(UserError, match="pattern of optimizer groups"):
        make_optimizer(config, PARAMS)
    config.ema.decay = 0.9
    for pattern, says in (("^denoisr/", "matches no parameter"), ("(", "is no pattern")):
        config.ema.params = pattern
        with pytest.raises(UserError, match=says):
            _ema_leaves(PARAMS, config)
