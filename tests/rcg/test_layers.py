import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runtime.mesh import make_mesh
from rcg import layers


def plain_attention(q, k, v):
    weights = np.exp(np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("impl", ["einsum", "mapped", "fused"])
@pytest.mark.parametrize("queries, keys", [(9, 9), (7, 12), (2048, 5), (1536, 1400)])
def test_attention_forms_agree(impl, queries, keys):
    rngs = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(r, (2, n, 3, 8)) for r, n in zip(rngs, (queries, keys, keys), strict=True))
    got = jax.jit(functools.partial(layers.attention, impl=impl))(q, k, v)
    np.testing.assert_allclose(got, plain_attention(q, k, v), atol=2e-6)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_gradients_agree(rate):
    """Mapped and einsum attention: same draws of dropout, same output, same gradients."""
    rngs = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(r, (2, n, 3, 8)) for r, n in zip(rngs, (7, 12, 12), strict=False))

    def run(impl):
        def total(q, k, v):
            out = layers.attention(q, k, v, impl=impl, dropout_rate=rate, dropout_rng=rngs[3])
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for got, want in zip(jax.tree.leaves(run("mapped")), jax.tree.leaves(run("einsum")), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(
    "queries, keys, masked", [(7, 13, ""), (8, 13, "keys"), (7, 12, "pairs"), (9, 9, "pairs")]
)
def test_fused_attention_has_gradients_at_odd_lengths(queries, keys, masked, monkeypatch):
    """cuDNN has them at even lengths alone: that is all it is asked for."""
    rngs = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(r, (2, 3, n, 8)) for r, n in zip(rngs, (queries, keys, keys), strict=False))
    mask = None
    if masked:
        mask = jax.random.bernoulli(rngs[3], 0.6, (2, 1, queries if masked == "pairs" else 1, keys))
        mask = mask.at[..., 0].set(True)
    true, shapes, mapped = jax.nn.dot_product_attention, [], []

    def watched(q, k, v, **options):
        shapes.extend([q.shape[1], k.shape[1]])
        if masked:
            assert options["mask"].shape[2:] == (q.shape[1], k.shape[1])
        for name in ("query_seq_lengths", "key_value_seq_lengths"):  # cuDNN's batching needs them so
            assert not mapped or options[name] is None or isinstance(options[name], type(q))
        return true(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)

    def run(impl):
        def total(q, k, v):
            out = layers.attend(q, k, v, mask, impl=impl)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for got, want in zip(jax.tree.leaves(run("fused")), jax.tree.leaves(run("einsum")), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)
    both = [jnp.stack([x, 2 * x]) for x in (q, k, v)]
    mapped.append(True)
    each = jax.vmap(lambda q, k, v: layers.attend(q, k, v, mask, impl="fused"))(*both)
    for i, got in enumerate(each):
        want = layers.attend(*(x[i] for x in both), mask, impl="einsum")
        np.testing.assert_allclose(got, want, atol=5e-6)
    assert shapes and all(length % 2 == 0 for length in shapes)


def test_gelu_is_the_exact_form():
    x = jnp.linspace(-9, 9, 1001)
    want = jax.vmap(jax.value_and_grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    got = jax.vmap(jax.value_and_grad(layers.gelu))(x)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones((1000, 333))
    out = layers.dropout(x, 0.1, jax.random.key(0))
    assert abs(float((out == 0).mean()) - 0.1) < 0.002
    assert abs(float(out.mean()) - 1) < 0.002
    np.testing.assert_array_equal(layers.dropout(x, 0.1, None), x)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_words_look_random(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    words = np.stack([layers.random_words(k, (512, 1024)) for k in keys])
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words[0] >> shift).ravel() & 255, minlength=256)
        chi2 = ((counts - 2048) ** 2 / 2048).sum()
        assert 150 < chi2 < 380, (shift, chi2)  # 255 degrees of freedom
    u = words / 2.0**32 - 0.5
    pairs = {
        "neighbours": (u[0, :, 1:], u[0, :, :-1]),
        "rows": (u[0, 1:], u[0, :-1]),
        "keys": (u[0], u[1]),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean() * 12) < 0.006, name  # 4 standard deviations


@functools.partial(jax.jit, static_argnums=0)
def stack_gradients(stack, variables, x):
    def total(variables, x):
        return (stack.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}) ** 2).sum()

    return jax.value_and_grad(total, argnums=(0, 1))(variables, x)


@pytest.mark.parametrize("scan, remat", [(True, "none"), (False, "full"), (True, "dots")])
def test_stack_runs_alike(scan, remat):
    """Scanned or unrolled, with or without recomputation: one layout, one result, dropout included."""
    block = functools.partial(layers.Block, num_heads=2, mlp_dim=8, dropout_rate=0.3)
    x = jax.random.normal(jax.random.key(2), (2, 3, 4))
    plain, other = layers.Stack(block, 3), layers.Stack(block, 3, scan, remat)
    variables = plain.init(jax.random.key(0), x)
    assert jax.tree.structure(jax.eval_shape(other.init, jax.random.key(0), x)) == jax.tree.structure(
        variables
    )
    got, want = stack_gradients(other, variables, x), stack_gradients(plain, variables, x)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    difference = max(float(jnp.abs(a - b).max() / (1 + jnp.abs(b).max())) for a, b in pairs)
    print(f"scan={scan}, remat={remat}: differ by {difference:.1e}")
    assert difference < 1e-5
    still = plain.apply(variables, x)
    assert (
        jnp.abs(plain.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)}) - still).max()
        > 1e-3
    )


def test_stack_parameters_lie_per_layer():
    block = functools.partial(layers.Block, num_heads=2, mlp_dim=8)
    x = jnp.ones((1, 3, 4))
    trees = [
        jax.eval_shape(layers.Stack(block, 3, scan=scan).init, jax.random.key(0), x) for scan in (False, True)
    ]
    assert trees[0] == trees[1] and sorted(trees[0]["params"]) == ["0", "1", "2"]


def test_sincos_orders():
    mae, moco = (layers.sincos_2d(8, 3, rows_first=r) for r in (False, True))
    np.testing.assert_array_equal(mae[1:].reshape(3, 3, 8)[0, 2], moco[1:].reshape(3, 3, 8)[2, 0])
    assert not mae[0].any() and mae.shape == (10, 8)
    assert layers.sincos_2d(8, 3, rows_first=True, cls_token=False).shape == (9, 8)


@pytest.mark.parametrize("scan", [False, True])
def test_what_passes_between_layers_is_split_over_the_mesh(scan):
    """A batch that every device has whole is split before the first layer, and stays so."""
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, jax.devices()[:8])
    layers_of = [jnp.full((64, 64), 0.01 * i) for i in range(3)]

    def body(x, w):
        return jnp.tanh(x @ w), None

    def loss(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return (layers.run_layers(body, x, layers_of, scan=scan)[0] ** 2).sum()

    x = jax.device_put(jnp.ones((16, 64)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line or "__ynn_fusion" in line]
    assert any("f32[2,64]" in line for line in products), "no product of an eighth of the batch"
    assert not any("f32[16,64]" in line.split("=")[1][:20] for line in products)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), jax.grad(lambda x: plain(body, x, layers_of))(x))


def plain(body, x, layers_of):
    for w in layers_of:
        x, _ = body(x, w)
    return (x**2).sum()


def test_a_batch_that_does_not_divide_is_left_alone():
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1}, jax.devices()[:8])
    x = jnp.ones((6, 4))
    assert layers.over_devices(x) is x  # no mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert layers.over_devices(x) is x


@pytest.mark.parametrize(
    "shape, features, kernel, strides, padding, options, product",
    [
        ((2, 3, 4, 5), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), {}, True),
        ((1, 5, 4, 3), 24, (3, 3), (2, 2), ((1, 1), (1, 1)), {}, True),
        ((1, 5, 4, 3), 24, (3, 3), (2, 2), ((0, 1), (0, 1)), {}, True),
        ((2, 3, 3, 4), 20, (2, 2), (1, 1), ((1, 0), (0, 1)), {}, True),
        ((2, 3, 4, 5), 24, (3, 3), (1, 1), ((1, 1), (1, 1)), {}, False),  # as many pixels as channels
        ((1, 2, 2, 5), 24, (1, 1), (1, 1), ((0, 0), (0, 0)), {}, False),
        ((1, 5, 4, 3), 24, (3, 3), (2, 1), ((1, 1), (1, 1)), {}, True),
        ((1, 4, 3, 5), 24, (3, 3), (1, 1), ((2, 2), (2, 2)), {"rhs_dilation": (2, 2)}, False),
        ((1, 2, 3, 5), 24, (2, 2), (1, 1), ((1, 0), (0, 1)), {"lhs_dilation": (1, 2)}, False),
        ((1, 4, 3, 6), 24, (3, 3), (1, 1), ((1, 1), (1, 1)), {"feature_group_count": 2}, False),
    ],
)
def test_convolution(shape, features, kernel, strides, padding, options, product, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 1)
    rng = np.random.default_rng(0)
    taps = (*kernel, shape[-1] // options.get("feature_group_count", 1), features)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, taps))
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def total(convolve, x, w):
        out = convolve(x, w, strides, padding, **numbers, **options)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    def run(convolve):
        return jax.jit(jax.grad(functools.partial(total, convolve), argnums=(0, 1), has_aux=True))(x, w)

    plain = jax.lax.conv_general_dilated
    for got, want in zip(jax.tree.leaves(run(layers.convolution)), jax.tree.leaves(run(plain)), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    traced = str(jax.make_jaxpr(functools.partial(total, layers.convolution))(x, w))
    assert ("conv_general_dilated" not in traced) == (product and jax.default_backend() == "cpu")
    monkeypatch.setattr("jax.device_count", lambda: 2)
    assert "conv_general_dilated" in str(jax.make_jaxpr(functools.partial(total, layers.convolution))(x, w))
