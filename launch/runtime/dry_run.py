"""What a run would take, before it takes it: parameters with shardings, memory, FLOPs. Touches no data.

Components may be plans (`launch/runtime/planned.py`). What the hardware can do is given by flags: then it
also says whether the run fits, and how long a step takes at best.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import ConfigDict

from launch.runtime import collectives
from launch.runtime.config import validate
from launch.runtime.flops import program_flops
from launch.runtime.mesh import path_name
from launch.runtime.setup import Setup, prepare
from rcg.errors import UserError
from rcg.experiment import compute_options

LITTLE_MEMORY = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def bytes_per_device(tree) -> int:
    """Of arrays that are abstract but carry their sharding."""

    def one(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return int(np.prod(shape)) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize

    return sum(map(one, jax.tree.leaves(tree)))


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a device can do; 0: not said."""

    memory_gib: float = 0.0
    tflops: float = 0.0
    bandwidth_gbs: float = 0.0
    link_gbs: float = 0.0
    hosts: int = 1

    @classmethod
    def of(cls, values: flags.FlagValues) -> "Hardware":
        return cls(values.device_gib, values.device_tflops, values.device_gbs, values.link_gbs, values.hosts)


FLAGS = ("device_gib", "device_tflops", "device_gbs", "link_gbs", "devices", "hosts")


def define(values: flags.FlagValues) -> None:
    """The flags of a dry run."""
    define_in = {"flag_values": values, "lower_bound": 0.0}
    flags.DEFINE_float("device_gib", 0.0, "dry run: memory of a device", **define_in)
    flags.DEFINE_float("device_tflops", 0.0, "dry run: peak TFLOP/s of a device", **define_in)
    flags.DEFINE_float("device_gbs", 0.0, "dry run: memory bandwidth of a device, GB/s", **define_in)
    link = "dry run: what a device sends to the others, GB/s"
    flags.DEFINE_float("link_gbs", 0.0, link, **define_in)
    devices = "dry run: plan for so many devices, whatever there are here; 0: those that there are"
    flags.DEFINE_integer("devices", 0, devices, lower_bound=0, flag_values=values)
    hosts = "dry run: hosts that the devices are spread over"
    flags.DEFINE_integer("hosts", 1, hosts, lower_bound=1, flag_values=values)


def use_devices(count: int, config: ConfigDict) -> None:
    """Makes the CPU look like so many devices, before anything touches one, and order a program's operations
    for little memory, as accelerators do; by itself it begins all it can at once. The devices planned for
    are taken for accelerators, which "auto" means bfloat16 on."""
    if config.compute.dtype == "auto":
        config.compute.dtype = "bfloat16"
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags_given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags_given} --xla_force_host_platform_device_count={count} {LITTLE_MEMORY}"
    jax.config.update("jax_platforms", "cpu")


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a step takes on each device: bytes, FLOPs, bytes sent to the others by kind of collective.

    Attributes:
      step: temporaries. total: they, and all that goes in and out. note: what is to be said of these.
    """

    held: int
    step: int
    total: int
    flops: float
    sent: dict[str, int]
    note: str = ""


def report(config: ConfigDict, hardware: Hardware = Hardware()) -> int:  # noqa: B008
    """Prints the plan of `config` on the devices there are.

    Raises:
      UserError: hosts that can't share them equally, or a mesh that they can't.
    """
    if jax.device_count() % hardware.hosts:
        raise UserError(f"--hosts={hardware.hosts} can't share {jax.device_count()} devices equally")
    validate(config, jax.device_count(), hardware.hosts)
    setup = prepare(config)
    kind, dtype = jax.devices()[0].device_kind, compute_options(config.compute)["dtype"]
    print(f"{config.experiment} on {dict(setup.mesh.shape)} of {kind}, computing in {dtype}\n")
    _print_parameters(setup)
    parts = {
        "parameters": setup.abstract.params,
        "optimiser": setup.abstract.opt_state,
        "EMA": setup.abstract.ema,
        "method's own state": setup.abstract.extra,
        "frozen networks": setup.frozen_abstract,
        "batch": setup.batch_abstract,
    }
    sizes = {name: bytes_per_device(tree) for name, tree in parts.items()}
    print("\nper device")
    for name, size in sizes.items():
        print(f"  {name:20} {_gib(size):>12}")
    needs = _needs(config, setup, sum(sizes.values()) - sizes["batch"])
    if needs.total:
        print(f"  {'temporaries (peak)':20} {_gib(needs.step):>12}{needs.note}")
        print(f"  {'in all':20} {_gib(needs.total):>12}")
    print(f"\nFLOPs per step and device {needs.flops:.3e}, matrix products and convolutions")
    told = ", ".join(f"{kind} {_gib(size)}" for kind, size in sorted(needs.sent.items()) if size)
    sent = f"{_gib(sum(needs.sent.values()))}{f' ({told})' if told else ''}{needs.note}"
    print(f"between devices, per step and device {sent}")
    _print_hosts(setup.frozen_abstract, setup.mesh.size, needs.held, hardware.hosts)
    if hardware.memory_gib:
        room = hardware.memory_gib * 2**30 - max(needs.total, needs.held)
        says = f"{_gib(room)} left" if room > 0 else f"too large by {_gib(-room)}{_advice(config)}"
        takes = f"{_gib(needs.held)} held, {_gib(needs.step)} for a step"
        print(f"of {hardware.memory_gib:g} GiB a device: {takes}: {says}")
    _print_times(needs, hardware)
    return 0


def _print_parameters(setup: Setup) -> None:
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(setup.abstract.params):
        spec = tuple(leaf.sharding.spec) or "replicated"
        rows.append((path_name(path), leaf.shape, leaf.dtype.name, int(np.prod(leaf.shape)), spec))
    width = max((len(row[0]) for row in rows), default=len("parameter"))
    print(f"{'parameter':{width}} {'shape':>20} {'dtype':>9} {'size':>12}  sharding")
    for name, shape, dtype, size, spec in rows:
        print(f"{name:{width}} {shape!s:>20} {dtype:>9} {size:>12,}  {spec}")
    print(f"\ntrained parameters {parameter_overview.count_parameters(setup.abstract.params):,}")
    for name, tree in setup.frozen_abstract.items():
        print(f"frozen {name} {int(parameter_overview.count_parameters(tree)):,}")


def _needs(config: ConfigDict, setup: Setup, held: int) -> Needs:
    """Compiles the step."""
    # on a CPU, memory and FLOPs are settled before machine code is made: make it in haste
    in_haste = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    traced, wide = setup.trace_step(), _in_float32(config)
    programs = [traced.lower().compile(in_haste)]
    if wide:
        programs.append(prepare(wide).trace_step().lower().compile(in_haste))
    used = [program.memory_analysis() for program in programs]
    step = total = 0
    if all(memory is not None for memory in used):
        step = min(memory.temp_size_in_bytes for memory in used)
        around = used[0].argument_size_in_bytes + used[0].output_size_in_bytes
        total = around - used[0].alias_size_in_bytes + step
    flops = program_flops(_plain(config, traced)) / setup.mesh.size
    sent = [collectives.collective_bytes(program.as_text()) for program in programs]
    note = f"  at most: {config.compute.dtype} as a CPU computes it" if wide else ""
    return Needs(held, step, total, flops, min(sent, key=lambda kinds: sum(kinds.values())), note)


def _print_times(needs: Needs, hardware: Hardware) -> None:
    """How long a step takes at best, by each limit that is given."""
    if not (hardware.tflops or hardware.bandwidth_gbs or hardware.link_gbs):
        return
    moved = 2 * needs.held  # everything that is held is read in the forward and the backward pass
    limits = {
        f"{hardware.tflops:g} TFLOP/s": (needs.flops, hardware.tflops * 1e12),
        f"{hardware.bandwidth_gbs:g} GB/s": (moved, hardware.bandwidth_gbs * 1e9),
        f"{hardware.link_gbs:g} GB/s between devices": (sum(needs.sent.values()), hardware.link_gbs * 1e9),
    }
    times = {limit: work / rate for limit, (work, rate) in limits.items() if rate and work}
    if not times:
        return
    for limit, seconds in times.items():
        print(f"a step at {limit}: {seconds * 1e3:.1f} ms at best")
    print(f"at half of that: {2 * max(times.values(), default=0.0):.3f} s")


def _plain(config: ConfigDict, traced: Any) -> Any:
    """The step's jaxpr with attention written out: a fused kernel does not say what it computes, and a head
    at a time some is computed twice."""
    if config.compute.attention == "einsum":
        return traced.jaxpr
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.compute.attention = "einsum"
    return prepare(plain).trace_step().jaxpr


def _in_float32(config: ConfigDict) -> ConfigDict | None:
    """The config with nothing but the dtype changed, if a CPU is to stand for devices of half precision.

    XLA's CPU compiler turns the operands of bfloat16 products into float32, at worst whole networks at once.
    Accelerators do not: the float32 step, too, needs no less than theirs, and the smaller of the two is
    nearer to it.
    """
    if jax.default_backend() != "cpu" or config.compute.dtype not in ("bfloat16", "float16"):
        return None
    wide = config.copy_and_resolve_references()
    with wide.unlocked():
        wide.compute.dtype = "float32"
    return wide


def _advice(config: ConfigDict) -> str:
    """What makes a step that does not fit smaller."""
    if config.compute.remat != "full":
        return "; try --config.compute.remat=full"
    return "; try more devices, a larger --config.mesh.fsdp or --config.optimizer.accumulation_steps"


def _print_hosts(frozen, devices: int, held: int, hosts: int) -> None:
    """What each host reads of the frozen networks: an array at a time, and of it only its devices' part."""
    leaves = jax.tree.leaves(frozen)
    if not leaves:
        return
    largest = max(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    print(
        f"\n{hosts} host(s) with {devices // hosts} device(s) each: {_gib(held * (devices // hosts))} on the "
        f"devices of one; in its own memory a few arrays at a time, the largest {_gib(largest)}"
    )
