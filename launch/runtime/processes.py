"""Several processes as one run: how they find each other, and what only the first of them does.

On a TPU VM, under Slurm and under Open MPI nothing need be said: JAX knows its place from what these leave
in the environment. Elsewhere --coordinator, --num_processes and --process_id say it.
"""

import importlib.util
import json
import os
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from rcg.errors import UserError
from rcg.experiment import whole

# how many processes there are, and which one this is, as launchers leave it in the environment
# (srun's: a batch script, which is one process, has the job's own counts too)
LAUNCHERS = (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
HEARTBEAT_SECONDS = 30  # a process that is not heard of for so long is taken for dead


def define(values: flags.FlagValues) -> None:
    """The flags that place a process where no launcher does."""
    flags.DEFINE_string("coordinator", "", "host:port of process 0, the same for all", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "how many there are", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("process_id", -1, "which one this is, from 0", lower_bound=-1, flag_values=values)


def one_of_several() -> bool:
    """Whether a launcher says that it started this process as one of several."""
    return any(int(os.environ.get(n) or 1) > 1 and index in os.environ for n, index in LAUNCHERS)


def launched() -> bool:
    """Whether a launcher that JAX knows started this process as one of several, or it runs on a TPU VM."""
    if one_of_several():
        return True
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return "tpu" in platforms or (not platforms and importlib.util.find_spec("libtpu") is not None)


def join(values: flags.FlagValues) -> None:
    """Makes this process one of its run's, before anything touches a device; alone it does nothing.

    Raises:
      UserError: flags that do not go together, or the others can't be reached.
    """
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    said = {"coordinator": bool(values.coordinator), "num_processes": values.num_processes > 0}
    said["process_id"] = values.process_id >= 0
    options = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    if any(said.values()):
        if not all(said.values()):
            missing = ", ".join(f"--{name}" for name, there in said.items() if not there)
            raise UserError(
                f"--coordinator, --num_processes and --process_id go together; missing: {missing}"
            )
        if values.process_id >= values.num_processes:
            raise UserError(
                f"--process_id={values.process_id} is not one of {values.num_processes} processes: they are "
                f"counted from 0"
            )
        if ":" not in values.coordinator:
            raise UserError(f"--coordinator={values.coordinator} has no port; give it as host:port")
        options |= {"coordinator_address": given.pop("coordinator")} | given
    elif jax.distributed.is_initialized() or not launched():
        return
    # CPUs alone: collectives of one program that don't wait for each other would run in another order on
    # every process, and meet those that they are not meant for
    in_order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {in_order}"
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        if any(said.values()):
            raise UserError(f"--coordinator={values.coordinator}: {error}") from error
        if one_of_several():
            raise UserError(
                f"this is one of several processes, but where the others are is not known ({error}); give "
                "each --coordinator, --num_processes and --process_id"
            ) from error
        # a TPU outside of a TPU VM: nothing to join
    except RuntimeError as error:
        where = values.coordinator or "the coordinator that the environment names"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"can't join the other processes at {where} ({reason})") from error


def first() -> bool:
    """Whether this is the process that writes what is to be written once."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What each process gives, fit for JSON, on every process in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = whole(np.array([len(text)], np.int32))
    padded = np.zeros((1, int(sizes.max())), np.uint8)
    padded[0, : len(text)] = text
    rows = whole(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


class Silent:
    """Stands in for what writes, on the processes that don't: every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
