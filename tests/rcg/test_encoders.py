"""The encoder's own promises: statistics, options, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rcg import encoders
from rcg.encoders import moco_v3, vit
from rcg.errors import UserError

SMALL = dict(
    arch="moco_v3", image_size=16, patch_size=4, dim=16, depth=2, num_heads=2, head_hidden=24, head_out=8
)


def images(n=4, size=16):
    return jax.random.uniform(jax.random.key(1), (n, size, size, 3))


def test_representation_is_standardised():
    module = encoders.build(SMALL)
    variables = jax.jit(module.init)(jax.random.key(0), images())
    rep = jax.jit(functools.partial(encoders.represent, module))(variables, images(5, 24))
    assert rep.shape == (5, 8) and rep.dtype == jnp.float32
    np.testing.assert_allclose(rep.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(rep.std(-1, ddof=1), 1, atol=1e-6)
    assert encoders.features(module, variables, images()).shape == (4, 16)


def test_batch_norm_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(2, 3, (10, 6)).astype(np.float32)
    theirs = torch.nn.BatchNorm1d(6)
    ours = vit.BatchNorm()
    variables = ours.init(jax.random.key(0), x)
    for _ in range(3):
        want = theirs(torch.tensor(x)).detach().numpy()
        got, new = ours.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = variables | new
        np.testing.assert_allclose(got, want, atol=1e-5)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=1e-5)
    assert int(stats["count"]) == 3
    want = theirs.eval()(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours.apply(variables, x), want, atol=1e-5)


def test_position_table_gets_no_gradient():
    module = encoders.build(SMALL)
    variables = jax.jit(module.init)(jax.random.key(0), images())

    def loss(params):
        return jnp.sum(module.apply(variables | {"params": params}, images()) ** 2)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert not np.any(grads["pos_embed"])
    assert np.any(grads["patch_embed"]["kernel"])


def test_conv_stem():
    """As many tokens as patches would give, and statistics of its own that training moves."""
    module = encoders.build(SMALL | {"stem": "conv"})
    variables = jax.jit(module.init)(jax.random.key(0), images())
    assert variables["params"]["pos_embed"].shape == (1, 17, 16)
    widths = [variables["params"]["patch_embed"][f"conv{i}"]["kernel"].shape for i in (0, 1)]
    assert widths == [(3, 3, 3, 8), (3, 3, 8, 16)]
    _, new = module.apply(variables, images(), train=True, mutable=["batch_stats"])
    for name, before in traverse_util.flatten_dict(variables["batch_stats"], sep="/").items():
        after = traverse_util.flatten_dict(new["batch_stats"], sep="/")[name]
        assert not np.array_equal(before, after), name


def test_scan_and_remat_change_nothing():
    plain = encoders.build(SMALL)
    variables = jax.jit(plain.init)(jax.random.key(0), images())
    want = plain.apply(variables, images())
    other = encoders.build(SMALL, scan_layers=True, remat="dots")
    np.testing.assert_allclose(other.apply(variables, images()), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"arch": "resnet"}, "resnet.*moco_v3"),
        ({"image_size": 18}, "18.*4"),
        ({"num_heads": 3}, "16.*3"),
        ({"stem": "conv", "patch_size": 1}, "power of two"),
        ({"stem": "gabor"}, "gabor"),
    ],
)
def test_bad_architectures_are_named(change, words):
    with pytest.raises(UserError, match=words):
        encoders.build(SMALL | change)


def test_unwrap_keeps_the_query_encoder_and_repairs_names():
    got = moco_v3.unwrap(
        {
            "module.base_encoder.blocks.13.norm13.weight": 1,
            "module.base_encoder.blocks.14.mlp.fc14.bias": 2,
            "module.base_encoder.blocks.13.attn.qkv.bias": 3,
            "module.momentum_encoder.cls_token": 4,
            "module.predictor.0.weight": 5,
        }
    )
    assert got == {"blocks.13.norm1.weight": 1, "blocks.14.mlp.fc2.bias": 2, "blocks.13.attn.qkv.bias": 3}
    assert moco_v3.unwrap({"base_encoder.norm.bias": 1}) == {"norm.bias": 1}
    assert moco_v3.unwrap({"norm.bias": 1}) == {"norm.bias": 1}
