"""What a run would take, before it takes it: parameters with shardings, memory, FLOPs. Touches no data."""

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from launch.runtime.config import validate
from launch.runtime.mesh import path_name
from launch.runtime.setup import prepare


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def bytes_per_device(tree) -> int:
    """Of arrays that are abstract but carry their sharding."""

    def one(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return int(np.prod(shape)) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def report(config: ConfigDict) -> int:
    """Prints the plan of `config` on the devices there are."""
    validate(config, jax.device_count())
    setup = prepare(config)
    state = setup.abstract
    print(f"{config.experiment} on {dict(setup.mesh.shape)} of {jax.devices()[0].device_kind}\n")
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        spec = tuple(leaf.sharding.spec) or "replicated"
        rows.append((path_name(path), leaf.shape, leaf.dtype.name, int(np.prod(leaf.shape)), spec))
    width = max((len(row[0]) for row in rows), default=len("parameter"))
    print(f"{'parameter':{width}} {'shape':>20} {'dtype':>9} {'size':>12}  sharding")
    for name, shape, dtype, size, spec in rows:
        print(f"{name:{width}} {shape!s:>20} {dtype:>9} {size:>12,}  {spec}")
    print(f"\ntrained parameters {parameter_overview.count_parameters(state.params):,}")
    for name, tree in setup.frozen_abstract.items():
        print(f"frozen {name} {parameter_overview.count_parameters(tree):,}")
    print("\nper device")
    parts = {
        "parameters": state.params,
        "optimiser": state.opt_state,
        "EMA": state.ema,
        "method's own state": state.extra,
        "frozen networks": setup.frozen_abstract,
        "batch": setup.batch_abstract,
    }
    for name, tree in parts.items():
        print(f"  {name:20} {_gib(bytes_per_device(tree)):>12}")
    # on a CPU, memory and FLOPs are settled before machine code is made: make it in haste
    in_haste = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    compiled = setup.compile_step(in_haste)
    memory = compiled.memory_analysis()
    if memory is not None:
        print(f"  {'temporaries (peak)':20} {_gib(memory.temp_size_in_bytes):>12}")
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        total += memory.output_size_in_bytes - memory.alias_size_in_bytes
        print(f"  {'in all':20} {_gib(total):>12}")
    flops = (compiled.cost_analysis() or {}).get("flops", float("nan"))
    note = " (a scanned stack is counted once: unrolled counts in full)" * config.compute.scan_layers
    print(f"\nFLOPs per step and device {flops:.3e}{note}")
    return 0
