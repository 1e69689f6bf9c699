"""The device mesh, and where each array lies on it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rcg.errors import UserError

AXES = ("data", "fsdp", "tensor")
SMALL = 2**14  # arrays of fewer elements are replicated: splitting them costs more than it saves
Rules = Sequence[tuple[str, tuple[str | None, ...]]]


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
    """Axis sizes with a -1 resolved.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    shape = [sizes[name] for name in AXES]
    if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise UserError(f"config.mesh {dict(sizes)}: sizes are positive, with at most one -1")
    rest = num_devices // int(np.prod([n for n in shape if n != -1]))
    shape = [rest if n == -1 else n for n in shape]
    if int(np.prod(shape)) != num_devices:
        raise UserError(f"config.mesh {dict(sizes)} does not fill the {num_devices} devices there are")
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes (data, fsdp, tensor) over all devices, or over `devices`."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over data x fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def path_name(path: Any) -> str:
    """A tree path as "a/b/0", which rules, groups and masks are matched against."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> P:
    """The spec of one array: the first rule whose regex is found in its path, else fsdp over the largest
    axis that divides. An axis that does not divide is left whole."""
    if int(np.prod(shape)) < SMALL:
        return P()
    for pattern, spec in rules:
        if re.search(pattern, name) and len(spec) == len(shape):
            fits = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(spec, shape, strict=True))
            return P(*fits)
    for axis in np.argsort(shape)[::-1]:
        if shape[axis] % mesh.shape["fsdp"] == 0:
            return P(*("fsdp" if i == axis else None for i in range(len(shape))))
    return P()


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A NamedSharding for each leaf. Optimiser moments and EMA carry their parameter's path, so the same
    rules place them beside it."""

    def one(path, leaf):
        return NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh, rules))

    return jax.tree.map_with_path(one, tree)


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays on the devices."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
