"""The RDM beyond parity: initialisation, layouts, sampling, the experiment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.rcg.rdm import get_config
from rcg import component, rdm
from rcg.data import ArraySource
from rcg.errors import UserError
from rcg.experiments.rdm import experiment
from tests.rcg import tiny_chain

SMALL = {"channels": 8, "width": 16, "bottleneck": 12, "time_dim": 10, "depth": 3, "context_dim": 6}
KINDS = {"unconditional": SMALL, "conditional": SMALL | {"num_classes": 4}}
X, T, LABELS = (
    np.random.default_rng(0).normal(size=(6, 8)).astype("f"),
    jnp.arange(6) * 150,
    jnp.arange(6) % 4,
)


@functools.cache
def made(kind, lively=True):
    module, labels = rdm.build(KINDS[kind]), LABELS if kind == "conditional" else None
    variables = module.init(jax.random.key(0), X, T, labels)
    if lively:  # the zero-initialised outputs too
        leaves, tree = jax.tree.flatten(variables)
        draw = np.random.default_rng(1)
        variables = jax.tree.unflatten(tree, [x + draw.normal(0, 0.2, x.shape).astype("f") for x in leaves])
    return module, variables, labels


def test_initialisation_is_torchs():
    fields = {"width": 192, "bottleneck": 96, "depth": 1, "num_classes": 1000}
    labels = jnp.zeros(1, jnp.int32)
    params = jax.jit(rdm.build(fields).init)(jax.random.key(0), jnp.zeros((1, 256)), labels, labels)["params"]
    net = params["denoiser"]
    for name in ("kernel", "bias"):
        assert not net["out_proj"][name].any() and not net["res_blocks_0"]["out_proj"][name].any()
        for layer, fan_in in (("time_embed_0", 192), ("time_embed_2", 256), ("input_proj", 256)):
            values, bound = np.asarray(net[layer][name]), fan_in**-0.5
            assert np.abs(values).max() <= bound and abs(values.std() / (bound / 3**0.5) - 1) < 0.15
    assert params["class_embedding"].shape == (1000, 512)
    assert abs(float(params["class_embedding"].std()) - 1) < 0.01


def test_scan_and_remat_change_nothing():
    _, variables, labels = made("conditional")

    def value_and_grad(**options):
        module = rdm.build(KINDS["conditional"], **options)
        return jax.jit(jax.value_and_grad(lambda v: jnp.square(module.apply(v, X, T, labels)).sum()))(
            variables
        )

    want = value_and_grad()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    for options in ({"scan_layers": True}, {"remat": "full"}, {"scan_layers": True, "remat": "dots"}):
        jax.tree.map(close, value_and_grad(**options), want)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_ddim_with_the_whole_network(kind):
    """Hoisting the timestep's and the class's part out of the loop must not change what it computes."""
    from rcg import diffusion

    module, variables, labels = made(kind)
    noise = {"x_T": X, "steps": np.random.default_rng(2).normal(size=(20, 6, 8)).astype("f")}
    got = rdm.sample(module, variables, None, 6, labels=labels, steps=20, eta=0.7, noise=noise)
    run = diffusion.ddim_tables(module.tables(), 20, 0.7)

    def denoise(x, t):
        return module.apply(variables, x, jnp.full(6, t), labels)

    want = diffusion.ddim_sample(denoise, X, noise["steps"], run, run.timesteps)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_sampling_is_one_loop_in_one_program():
    module, variables, _ = made("unconditional")
    program = jax.make_jaxpr(lambda v, k: rdm.sample(module, v, k, 2, steps=50))(variables, jax.random.key(0))
    loops = [e for e in program.eqns if e.primitive.name == "scan"]
    assert [e.params["length"] for e in loops] == [50]
    inside = str(loops[0].params["jaxpr"])
    assert " cos " not in inside and " sin " not in inside  # the timestep's part is outside


def test_sampling_does_not_depend_on_the_mesh():
    module, variables, labels = made("conditional")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    labels = jnp.arange(16) % 4
    sample = jax.jit(lambda v, k, labels: rdm.sample(module, v, k, 16, labels=labels, steps=20))
    key = jax.random.key(3)
    one = np.asarray(sample(variables, key, labels))
    placed = jax.device_put(variables, NamedSharding(mesh, P()))
    spread = sample(placed, key, jax.device_put(labels, NamedSharding(mesh, P("data"))))
    print(f"8 devices against 1: {np.abs(spread - one).max():.1e}")
    np.testing.assert_allclose(spread, one, rtol=1e-4, atol=1e-4)


def test_labels_matter_and_are_needed():
    module, variables, _ = made("conditional")
    a = module.apply(variables, X, T, LABELS)
    b = module.apply(variables, X, T, LABELS[::-1])
    assert np.abs(a - b).max() > 1e-3
    with pytest.raises(UserError, match="labels"):
        rdm.sample(module, variables, jax.random.key(0), 2, steps=10)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tiny_chain.build(tmp_path_factory.mktemp("rdm"), only=("encoder",))
    return component.load(str(folder / "encoder/component"))


def tiny_config(conditional):
    config = get_config("runlocal,conditional" if conditional else "runlocal")
    config.model.channels = tiny_chain.REP
    config.data.update(image_size=16, source="arrays")
    config.method.rdm_steps = 5
    return config


def tiny_source(split):
    images = np.random.default_rng(len(split)).integers(0, 256, (40, 16, 16, 3), np.uint8)
    return ArraySource(images, np.arange(40, dtype=np.int32) % 4)


@pytest.mark.parametrize("conditional", [False, True])
def test_experiment(encoder, conditional):
    config = tiny_config(conditional)
    exp = experiment(config, {"encoder": encoder}, tiny_source)
    params, extra = exp.init(jax.random.key(0))
    frozen = {"encoder": encoder.variables}
    batch = next(iter(exp.dataset("train", 16, 0, 0, 1)))
    assert {k: (batch[k].shape[1:], batch[k].dtype) for k in exp.batch_spec} == {
        k: (shape, np.dtype(dtype)) for k, (shape, dtype) in exp.batch_spec.items()
    }
    batch = {k: jnp.asarray(batch[k]) for k in exp.batch_spec}

    @jax.jit
    def step(params, rng):
        (_, (metrics, _)), grads = jax.value_and_grad(exp.loss, has_aux=True)(
            params, extra, frozen, batch, rng
        )
        return metrics, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    losses = []
    for i in range(60):
        metrics, params = step(params, jax.random.fold_in(jax.random.key(1), i))
        losses.append(float(metrics["loss"]))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert 0.8 < losses[0] < 1.05  # zero output: the mean square of a standardised vector, (C - 1) / C
    assert np.mean(losses[-10:]) < 0.8 * losses[0]

    panels = jax.jit(exp.panels)(params, extra, frozen, batch, jax.random.key(0))
    for image in panels.values():
        assert image.ndim == 4 and image.shape[-1] == 3 and 0 <= image.min() and image.max() <= 1
    results = exp.evaluate(params, extra, frozen, jax.random.key(0), lambda b: jax.tree.map(jnp.asarray, b))
    assert results["rdm_frechet"]["samples"] == 32 and results["rdm_frechet_floor"]["samples"] == 16
    assert all(np.isfinite(r["value"]) for r in results.values())
    assert ("rdm_class_accuracy" in results) == conditional
    exported = exp.export(params, extra)
    rebuilt = rdm.build(exp.architecture)
    labels = jnp.zeros(2, jnp.int32)
    made = jax.eval_shape(
        lambda v, k: rdm.sample(rebuilt, v, k, 2, labels=labels, steps=5), exported, jax.random.key(0)
    )
    assert made.shape == (2, tiny_chain.REP)


def test_experiment_refuses_what_does_not_fit(encoder):
    config = tiny_config(True)
    with pytest.raises(UserError, match="components.encoder"):
        experiment(config, {}, tiny_source)
    config.model.num_classes = 3
    with pytest.raises(UserError, match="4 classes"):
        experiment(config, {"encoder": encoder}, tiny_source).dataset("train", 16, 0, 0, 1)
    config.model.channels = 9
    with pytest.raises(UserError, match="channels is 9"):
        experiment(config, {"encoder": encoder}, tiny_source)


def test_configs_state_the_papers_recipe():
    c = get_config("variant=base,conditional")
    assert (c.batch_size, c.optimizer.learning_rate, c.optimizer.weight_decay) == (512, 5.12e-4, 0.01)
    assert (c.optimizer.decay, c.optimizer.schedule, c.ema.decay) == ("all", "constant", 0.9999)
    fields = {k: v for k, v in rdm.RDM.__dataclass_fields__.items() if k in c.model}
    assert {k: f.default for k, f in fields.items()} | {"num_classes": 1000} == c.model.to_dict()
    assert c.total_steps // 200 == 2502
    with pytest.raises(ValueError, match="huge"):
        get_config("variant=huge")
