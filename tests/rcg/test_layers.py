import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import layers


def plain_attention(q, k, v):
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("impl", ["einsum", "mapped", "fused"])
@pytest.mark.parametrize("queries, keys", [(9, 9), (7, 12), (2048, 5)])
def test_attention_forms_agree(impl, queries, keys):
    rngs = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(r, (2, n, 3, 8)) for r, n in zip(rngs, (queries, keys, keys), strict=True))
    got = jax.jit(functools.partial(layers.attention, impl=impl))(q, k, v)
    np.testing.assert_allclose(got, plain_attention(q, k, v), atol=2e-6)


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
