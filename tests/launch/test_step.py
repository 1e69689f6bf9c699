"""The train step of every experiment: the mesh, accumulation and remat never change the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runtime import cli
from launch.runtime import mesh as meshes
from launch.runtime.mesh import make_mesh
from launch.runtime.setup import prepare
from launch.runtime.step import mean_metrics, root_key, with_ema
from rcg import component

CONFIGS = {
    "encoder": "configs/rcg/moco_v3.py:runlocal",
    "tokenizer": "configs/rcg/vqgan.py:runlocal",
    "kmeans": "configs/rcg/kmeans.py:runlocal",
    "rdm": "configs/rcg/rdm.py:runlocal",
    "mage": "configs/rcg/mage.py:runlocal",
}
RECIPES = {"code": "center_crop", "paper": "random_crop_flip"}  # MAGE's augmentation
MESHES = {"1": (1, 1, 1), "2x4": (2, 4, 1), "2x2x2": (2, 2, 2)}
SLOW_TO_COMPILE = {"tokenizer": ("2x2x2",), "mage": ("2x2x2",)}


def mesh(name: str) -> jax.sharding.Mesh:
    shape = MESHES[name]
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return make_mesh(sizes, jax.devices()[: int(np.prod(shape))])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An untrained encoder and tokenizer, as components on disk."""
    folder = tmp_path_factory.mktemp("components")
    paths = {}
    for name in ("encoder", "tokenizer"):
        setup = prepare(cli.read_config(CONFIGS[name]), mesh("1"))
        state = setup.init_state()
        variables = jax.device_get(setup.experiment.export(state.params, state.extra))
        paths[name] = str(folder / name)
        kind, architecture = setup.experiment.kind, setup.experiment.architecture
        component.save(paths[name], component.Component(kind, architecture, variables))
    return paths


def setup_for(name, made, mesh_name="1", config="", **overrides):
    config = cli.read_config(config or CONFIGS[name])
    wanted = {f"components.{k}": v for k, v in made.items() if k in config.get("components", {})}
    fixed = {"batch_size": 16, "log_steps": 1, "total_steps": 100}
    config.update_from_flattened_dict(fixed | wanted | overrides)
    return prepare(config, mesh(mesh_name))


def batches(setup, count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {
            name: rng.integers(0, 3 if name == "label" else 256, leaf.shape).astype(leaf.dtype)
            for name, leaf in setup.batch_abstract.items()
        }


def losses(setup, steps=4):
    state, frozen = setup.init_state(), setup.load_frozen()
    step = jax.jit(setup.train_step)
    history = []
    for batch in batches(setup, steps):
        state = step(state, frozen, setup.place(batch), root_key(setup.config))
        history.append(mean_metrics(state, 1)["loss"])
    return np.array(history), state


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_do_not_depend_on_the_mesh(name, made, monkeypatch):
    monkeypatch.setattr(meshes, "SMALL", 256)  # so that kernels of tiny networks are split, too
    reference, state = losses(setup_for(name, made))
    assert np.isfinite(reference).all() and int(state.bad_step) == -1
    for mesh_name in SLOW_TO_COMPILE.get(name, list(MESHES)[1:]):
        got, state = losses(setup_for(name, made, mesh_name))
        split = [not x.sharding.is_fully_replicated for x in jax.tree.leaves((state.params, state.opt_state))]
        assert any(split) or name == "kmeans"
        error = np.abs(got / reference - 1).max()
        print(f"{name} on {mesh_name}: {error:.1e} (limit 1e-5)")
        assert error < 1e-5, mesh_name


def test_muon_does_not_depend_on_the_mesh(made):
    """It looks at whole matrices, also where they lie in pieces."""
    muon = {"optimizer.name": "muon", "optimizer.warmup_steps": 0, "optimizer.learning_rate": 3e-3}
    muon |= {"model.width": 256, "model.bottleneck": 128}  # large enough to be split
    reference, _ = losses(setup_for("rdm", made, **muon))
    got, state = losses(setup_for("rdm", made, "2x2x2", **muon))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.opt_state))
    error = np.abs(got / reference - 1).max()
    print(f"muon on 2x2x2: {error:.1e} (limit 2e-5)")
    assert error < 2e-5


def test_a_step_of_a_conditional_rdm(made):
    """On labelled images of its own data."""
    setup = setup_for("rdm", made, config="configs/rcg/rdm.py:conditional,runlocal")
    batch = next(iter(setup.experiment.dataset("train", 16, 0, 0, 1)))
    state, frozen = setup.init_state(), setup.load_frozen()
    state = jax.jit(setup.train_step)(state, frozen, setup.place_inputs(batch), root_key(setup.config))
    assert np.isfinite(mean_metrics(state, 1)["loss"]) and int(state.bad_step) == -1


def test_the_papers_recipe_is_another_augmentation(made):
    """MAGE's: the step is the same, as for the larger variants that runlocal makes tiny."""
    recipes = [setup_for("mage", made, config=f"configs/rcg/mage.py:recipe={r},runlocal") for r in RECIPES]
    assert [setup.config.data.augment for setup in recipes] == list(RECIPES.values())
    drawn = [next(iter(setup.experiment.dataset("train", 16, 0, 0, 1)))["image"] for setup in recipes]
    assert (drawn[0] != drawn[1]).any()


def test_two_runs_are_equal_bit_for_bit(made):
    _, a = losses(setup_for("mage", made), 2)
    _, b = losses(setup_for("mage", made), 2)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_accumulation_equals_the_whole_batch():
    """On a loss that is a plain mean over examples, without randomness."""
    plain = {"method.codebook": "gradient", "method.adaptive_weight": False}
    whole, _ = losses(setup_for("tokenizer", {}, **plain))
    parts, _ = losses(setup_for("tokenizer", {}, **plain, **{"optimizer.accumulation_steps": 4}))
    np.testing.assert_allclose(parts, whole, rtol=5e-5)


def test_ema_at_decay_zero_point_nine_lags_one_step(made):
    setup = setup_for("rdm", made, **{"ema.decay": 0.9, "ema.warmup": False, "ema.params": ".*"})
    before = setup.init_state()
    _, after = losses(setup, 1)
    jax.tree.map(np.testing.assert_array_equal, with_ema(after, setup.config), before.params)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True)
    )


def test_the_first_bad_step_is_named(made):
    setup = setup_for("rdm", made)
    state, frozen = setup.init_state(), setup.load_frozen()
    step = jax.jit(setup.train_step)
    for i, batch in enumerate(batches(setup, 3)):
        if i == 1:
            state = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
        state = step(state, frozen, setup.place(batch), root_key(setup.config))
    assert int(state.bad_step) == 2
