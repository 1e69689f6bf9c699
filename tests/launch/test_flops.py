"""FLOPs of programs, against what is known of them."""

import jax
import jax.numpy as jnp
import pytest

from chef_fusion.backbones import opt
from launch import benchmark
from launch.runtime import food_cases
from launch.runtime.flops import program_flops
from rcg import rdm
from rcg.pixel import mage
from tests.rcg.tiny_chain import MAGE, RDM


def counted(function, *args) -> float:
    return program_flops(jax.make_jaxpr(function)(*args))


def test_products_and_convolutions():
    a, b = jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 5))
    assert counted(jnp.matmul, a, b) == 2 * 2 * 3 * 4 * 5
    image, kernel = jnp.zeros((1, 8, 8, 6)), jnp.zeros((3, 3, 2, 4))

    def convolve(image):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=3
        )

    kernel = jnp.zeros((3, 3, 2, 12))
    assert counted(convolve, image) == 2 * 8 * 8 * 12 * 9 * 2


def test_loops_and_branches():
    x, w = jnp.zeros((4, 4)), jnp.zeros((7, 4, 4))
    one = 2 * 4**3

    def body(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w), None

    assert counted(lambda: jax.lax.scan(body, x, w)[0]) == 7 * 2 * one
    loss = jax.checkpoint(lambda x: (jnp.sin(x @ w[0]) @ w[1]).sum())
    assert counted(jax.grad(loss), x) >= 3 * one  # forward, and the first product again for the sine


@pytest.mark.parametrize("scan", [False, True])
def test_networks(scan):
    """As by the formulas, however the stack is run."""
    network = rdm.build(RDM, scan_layers=scan)
    x, t = jnp.zeros((4, network.channels)), jnp.zeros(4, jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x, t)
    formula = 4 * sum(benchmark.rdm_flops(network))
    assert counted(network.apply, variables, x, t) == pytest.approx(formula, rel=0.02)

    def loss(variables):
        return network.apply(variables, x, t).sum()

    assert counted(jax.grad(loss), variables) == pytest.approx(3 * formula, rel=0.2)  # not back to x

    def through(x, variables):
        return network.apply(variables, x, t).sum()

    # over a frozen network no kernel has a gradient, nor has what comes of the time alone
    assert 1.5 * formula < counted(jax.grad(through), x, variables) < 2 * formula
    network = mage.build(mage.resolve(MAGE), scan_layers=scan)
    example = benchmark.mage_example(network)
    variables = jax.eval_shape(network.init, jax.random.key(0), *example)
    formula = benchmark.mage_flops(network, network.num_tokens - network.num_dropped)
    assert counted(network.apply, variables, *example) == pytest.approx(formula, rel=0.02)


def test_frozen_kernels_have_no_gradient():
    """The step of OPT's joints goes through it to its inputs: twice the forward pass, not three times."""
    module = opt.build(food_cases.TINY_OPT)
    variables = opt.abstract_variables(food_cases.TINY_OPT)
    x = jnp.zeros((2, 16, module.word_embed_proj_dim))

    def through(x, variables):
        return module.apply(variables, x)[0].sum()

    forward = counted(through, x, variables)
    assert 1.5 * forward < counted(jax.grad(through), x, variables) < 2.5 * forward
