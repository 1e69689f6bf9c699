"""Mesh sizes and where parameters go."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from launch.runtime.mesh import make_mesh, mesh_shape, partition_spec
from rcg.errors import UserError


def sizes(data, fsdp, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


def test_minus_one_takes_the_rest():
    assert mesh_shape(sizes(-1, 4), 8) == (2, 4, 1)


@pytest.mark.parametrize("bad", [sizes(3, 1), sizes(-1, -1), sizes(-1, 3), sizes(0, 8)])
def test_sizes_that_do_not_fit_are_refused(bad):
    with pytest.raises(UserError, match="config.mesh"):
        mesh_shape(bad, 8)


def test_first_matching_rule_wins_and_indivisible_axes_stay_whole():
    mesh = make_mesh(sizes(2, 2, 2), jax.devices()[:8])
    rules = (("attn/.*kernel", ("fsdp", "tensor")), ("kernel", ("tensor", None)))
    assert partition_spec("a/attn/qkv/kernel", (256, 256), mesh, rules) == P("fsdp", "tensor")
    assert partition_spec("a/mlp/kernel", (256, 256), mesh, rules) == P("tensor", None)
    assert partition_spec("a/mlp/kernel", (255, 256), mesh, rules) == P(None, None)
    assert partition_spec("a/table", (100, 512), mesh, rules) == P(None, "fsdp")
    assert partition_spec("a/attn/qkv/kernel", (8, 8), mesh, rules) == P()
