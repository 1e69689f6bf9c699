"""What a program sends is counted from its own text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.runtime.collectives import collective_bytes
from launch.runtime.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, jax.devices()[:8])


def compiled(mesh, function, *specs, out=None):
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec)) for s, spec in specs]
    return jax.jit(function, out_shardings=NamedSharding(mesh, out or P())).lower(*arrays).compile().as_text()


def test_one_collective_each(mesh):
    gathered = compiled(mesh, lambda x: x, ((64, 16), P("fsdp")))
    assert collective_bytes(gathered) == {"all-gather": 64 * 16 * 4}
    reduced = compiled(mesh, lambda x: x.sum(0), ((64, 16), P("fsdp")))
    assert collective_bytes(reduced) == {"all-reduce": 16 * 4}
    alone = compiled(mesh, lambda x: x * 2, ((64, 16), P("fsdp")), out=P("fsdp"))
    assert collective_bytes(alone) == {}


def test_a_loop_counts_as_often_as_it_runs(mesh):
    def layers(x, w):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, w)[0]

    text = compiled(mesh, layers, ((8, 64), P()), ((5, 64, 64), P(None, "fsdp")))
    total = sum(collective_bytes(text).values())
    one = 8 * 64 * 4  # partial products are summed in each layer, and maybe the end gathered
    assert total in (5 * one, 6 * one)


STARTED = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %a = (f32[1024]{0}, f32[1024]{0}) all-reduce-start(%x, %y), to_apply=%add
  %b = (f32[1024]{0}, f32[8192]{0}) all-gather-start(%x), dimensions={0}
  %c = ((f32[2]{0}, f32[4]{0}), (f32[16]{0}, f32[32]{0})) all-gather-start(%x, %y), dimensions={0}
  %d = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%x)
}
"""


def test_what_is_begun_and_ended_later_counts_by_its_results():
    """As GPUs and TPUs have it: some kinds give back their operands beside the results, some do not."""
    found = collective_bytes(STARTED)
    assert found == {"all-reduce": 8192, "all-gather": 4 * (8192 + 48), "collective-permute": 256}
