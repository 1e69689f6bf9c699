"""RDM, its schedule, DDIM and EMA against vectors recorded from the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rcg import diffusion, ema, rdm
from rcg.errors import UserError
from rcg.torch_weights import export_variables, import_variables

SIZES = {"channels": 16, "width": 64, "bottleneck": 48, "time_dim": 24, "depth": 3}
KINDS = {"uncond": SIZES, "classcond": SIZES | {"context_dim": 20}}


def close(name, ours, theirs, limit):
    theirs = np.asarray(theirs, np.float64)
    error = np.abs(np.asarray(ours, np.float64) - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    print(f"{name}: {error:.1e} (limit {limit:.0e})")
    assert error <= limit, f"{name}: {error:.2e} > {limit:.0e}"


def architecture(vectors, kind):
    table = vectors.get("param/cond_stage_model.embedding.weight")
    classes = len(table) if kind == "classcond" and table is not None else 0
    return KINDS[kind] | {"num_classes": classes}


def load(vectors, fields, averaged=False):
    """Module and variables from a vector's `param/...`, using only what the network reads."""
    module = rdm.build(fields)
    rules = rdm.ema_rules(fields) if averaged else rdm.rules(fields)
    arrays = {rule.theirs: vectors[f"param/{rule.theirs}"] for rule in rules}
    labels = jnp.zeros(1, jnp.int32) if fields["num_classes"] else None
    x, t = jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), x, t, labels))
    variables = import_variables(arrays, rules, like, "vector")
    back = export_variables(variables, rules)
    assert all(np.array_equal(back[k], v) for k, v in arrays.items())
    return module, variables


def check_gradients(grads, rules, vectors, limit=1e-4):
    grads = traverse_util.flatten_dict(export_variables(grads, rules), sep="|")
    scale = max(np.abs(v).max() for k, v in vectors.items() if k.startswith("out/grad/"))
    seen = 0
    for name, ours in grads.items():
        theirs = vectors[f"out/grad/{name}"]
        error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-3 * scale)
        assert error <= limit, f"gradient of {name}: {error:.1e}"
        seen += 1
    print(f"{seen} gradients within {limit}")


def test_schedule(golden):
    vectors = golden("rcg/rdm_schedule")
    tables = diffusion.schedule(diffusion.betas())
    np.testing.assert_allclose(diffusion.betas(), vectors["out/betas_f64"], rtol=1e-14)
    tables["lvlb_weights"] = diffusion.lvlb_weights(tables)
    for name, ours in tables.items():
        close(name, ours, vectors[f"out/{name}"], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients(golden, kind):
    vectors = golden(f"rcg/rdm_forward_{kind}")
    # these vectors hold the denoiser alone, fed with a given class embedding
    fields = KINDS[kind] | {"num_classes": int(kind == "classcond")}
    rules = [r for r in rdm.rules(fields) if "class_embedding" not in r.ours]
    bare = [r._replace(theirs=r.theirs.removeprefix("model.diffusion_model.")) for r in rules]
    arrays = {r.theirs: vectors[f"param/{r.theirs}"] for r in bare}
    module = rdm.build(fields)
    labels = jnp.zeros(1, jnp.int32) if fields["num_classes"] else None
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 16)), jnp.zeros(1), labels))
    like["params"].pop("class_embedding", None)
    variables = import_variables(arrays, bare, like, "vector")
    x, t = vectors["in/x"], jnp.asarray(vectors["in/t"])

    def forward(variables, x):
        net = rdm.Denoiser(16, 64, 48, 24, 3, bool(fields["num_classes"]))
        params = {"params": variables["params"]["denoiser"]}
        conditions = net.apply(params, t, method="from_time")
        if kind == "classcond":
            by_class = net.apply(params, jnp.asarray(vectors["in/context"]), method="from_class")
            conditions = [a + b for a, b in zip(conditions, by_class, strict=True)]
        return net.apply(params, x, conditions)

    # torch's float32 exp is a last bit off in one of the 32 frequencies, which t = 999 multiplies
    close("sinusoid", rdm.sinusoid(t, 64), vectors["out/sinusoid"], 5e-5)
    net = rdm.Denoiser(16, 64, 48, 24, 3, bool(fields["num_classes"]))
    embedded = net.apply({"params": variables["params"]["denoiser"]}, t, method="embed_time")
    close("emb", embedded, vectors["out/emb"], 1e-5)
    close("y", jax.jit(forward)(variables, x), vectors["out/y"], 1e-5)
    cotangent = vectors["in/cotangent"]
    gradient = jax.jit(jax.grad(lambda v, x: (forward(v, x) * cotangent).sum(), argnums=(0, 1)))
    grads, grad_x = gradient(variables, x)
    close("grad x", grad_x, vectors["out/grad_x"], 1e-4)
    check_gradients(grads, bare, vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(golden, kind):
    vectors = golden(f"rcg/rdm_loss_{kind}")
    fields = architecture(vectors, kind)
    module, variables = load(vectors, fields)
    labels = jnp.asarray(vectors["in/label"]) if fields["num_classes"] else None
    arguments = (vectors["in/x0"], jnp.asarray(vectors["in/t"]), vectors["in/noise"], labels)
    value_and_grad = jax.jit(jax.value_and_grad(lambda v: rdm.loss(module, v, *arguments), has_aux=True))
    (value, aux), grads = value_and_grad(variables)
    if labels is not None:
        close("cond", variables["params"]["class_embedding"][labels], vectors["out/cond"][:, 0], 0)
    close("x_noisy", aux["x_t"], vectors["out/x_noisy"], 1e-5)
    close("pred", aux["prediction"], vectors["out/pred"], 1e-5)
    close("loss", value, vectors["out/loss"], 1e-5)
    close("vlb", aux["vlb"], vectors["out/loss_vlb"], 1e-5)
    check_gradients(grads, rdm.rules(fields), vectors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_trajectory(golden, kind, steps, eta):
    vectors = golden(f"rcg/ddim_{kind}_s{steps}_eta{eta}")
    fields = architecture(vectors, kind)
    module, variables = load(vectors, fields, averaged=True)
    noise = {"x_T": vectors["in/x_T"], "steps": vectors["in/noise"]}
    labels = jnp.asarray(vectors["in/label"]) if fields["num_classes"] else None
    settings = {"labels": labels, "steps": steps, "eta": eta, "trace": True}
    x, predicted = jax.jit(lambda v: rdm.sample(module, v, None, 3, noise=noise, **settings))(variables)
    close("pred_x0", predicted, vectors["out/pred_x0"], 1e-4)
    close("sample", x, vectors["out/sample"], 1e-4)


def test_ddim_tables(golden):
    vectors = golden("rcg/ddim_tables")
    tables = diffusion.schedule(diffusion.betas())
    for steps in (1, 10, 20, 50, 100, 250, 500):
        for eta in (0, 0.5, 1):
            run = diffusion.ddim_tables(tables, steps, eta)
            np.testing.assert_array_equal(run.timesteps, vectors[f"out/timesteps_{steps}"])
            close("alphas", run.alphas, vectors[f"out/alphas_{steps}"], 1e-6)
            close("alphas_prev", run.alphas_prev, vectors[f"out/alphas_prev_{steps}"], 1e-6)
            close("sigmas", run.sigmas, vectors[f"out/sigmas_{steps}_eta{eta}"], 1e-5)


@pytest.mark.parametrize("steps", [300, 1000])
def test_steps_that_the_original_can_not_run_are_refused(golden, steps):
    """It would visit a timestep that the noise schedule does not have."""
    tables = diffusion.schedule(diffusion.betas())
    assert golden("rcg/ddim_tables")[f"out/timesteps_{steps}"][-1] == len(tables["alphas_cumprod"])
    with pytest.raises(UserError, match=f"{steps} DDIM steps reach beyond the 1000 timesteps"):
        diffusion.ddim_tables(tables, steps)


def test_ema(golden):
    vectors = golden("rcg/ema")
    params = [
        {k.removeprefix(f"in/p{i}/"): v for k, v in vectors.items() if k.startswith(f"in/p{i}/")}
        for i in range(5)
    ]
    average = params[0]
    for i in range(1, 5):
        decay, count = vectors[f"out/ema{i}/decay"], vectors[f"out/ema{i}/num_updates"]
        average = ema.update(average, params[i], count - 1, float(decay))
        for name, ours in average.items():
            close(f"ema {i} {name}", ours, vectors[f"out/ema{i}/{name.replace('.', '')}"], 1e-6)
