"""The one form in which a trained network is kept and handed on: a directory.

    component.json   kind, architecture, provenance, content hash, format version
    params/          Orbax, one array per leaf: the network's Flax variables
    tokenizer/       of a language model or text encoder: its tokenizer's files

Written whole or not at all. Loading restores straight to the wanted devices and dtype.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rcg import json_files
from rcg.errors import UserError

FORMAT = 1
PLANNED = "planned"  # the content hash of a component that is not there yet
EXACT = ("rcg.inception", "rcg.kmeans")  # kinds that are compared by: never in half precision
EXACT_LEAVES = {"rcg.vqgan": ("codebook",)}  # a rounded one would make other tokens of the same image
FILE_BYTES = 2**27  # as much is held before a file of arrays is written
PyTree = Any


class _Still(np.ndarray):
    """An array that nothing will change: of others Orbax makes copies, of all at once, before it writes."""

    def __deepcopy__(self, memo: Any) -> "_Still":
        return self


@dataclasses.dataclass(frozen=True)
class Component:
    """A network: what it is (`kind`, `architecture`), its `variables` (maybe abstract), its origin; and the
    folder of its tokenizer's files, "" without."""

    kind: str
    architecture: dict[str, Any]
    variables: PyTree
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    content_hash: str = ""
    tokenizer: str = ""


def content_hash(variables: PyTree) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the leaves, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = np.asarray(leaf)
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(path: str, component: Component) -> str:
    """Writes a component; an existing one at `path` is replaced only once the new one is complete. Of several
    processes, which all must call this with the same host arrays, the first one writes.

    Returns:
      The content hash.

    Raises:
      UserError: at `path` is something else than a component, which is left alone.
    """
    digest = content_hash(component.variables)
    if jax.process_index() == 0:
        _write(os.path.abspath(path), component, digest)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("component")
    return digest


def _write(path: str, component: Component, digest: str) -> None:
    parent = os.path.dirname(path)
    about_path = os.path.join(path, "component.json")
    if (
        os.path.lexists(path)
        and not os.path.isfile(about_path)
        and not (os.path.isdir(path) and not os.listdir(path))
    ):
        raise UserError(f"{path} exists and is no component: name another folder, it would be replaced")
    staging = os.path.join(parent, f".{os.path.basename(path)}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        os.makedirs(staging)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror}); name another folder") from error
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    held = jax.tree.map(lambda leaf: np.asarray(leaf).view(_Still), component.variables)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        args = ocp.args.PyTreeSave(held, ocdbt_target_data_file_size=FILE_BYTES)
        checkpointer.save(os.path.join(staging, "params"), args=args)
    if component.tokenizer:
        shutil.copytree(component.tokenizer, os.path.join(staging, "tokenizer"))
    about = {
        "format": FORMAT,
        "kind": component.kind,
        "architecture": component.architecture,
        "provenance": component.provenance,
        "content_hash": digest,
    }
    with open(os.path.join(staging, "component.json"), "w") as f:
        json.dump(about, f, indent=2)
    retired = os.path.join(parent, f".{os.path.basename(path)}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if os.path.exists(path):
        os.rename(path, retired)
    os.rename(staging, path)
    shutil.rmtree(retired, ignore_errors=True)


def moved(path: str, run: str, parts: int = 2) -> str:
    """The path that a run's config names; if nothing is there, but it is beside the run under the same name,
    as in a pipeline's folder that was moved, that.

    Args:
      parts: how many of the path's last names are below the pipeline's folder.
    """
    beside = os.path.join(os.path.dirname(os.path.abspath(run)), *path.rstrip("/").split("/")[-parts:])
    return beside if not os.path.exists(path) and os.path.exists(beside) else path


def describe(path: str, kind: str | None = None) -> Component:
    """The component at `path` with abstract variables: reads no array.

    Raises:
      UserError: no component there, one of another kind, or one of a newer format.
    """
    path = os.path.abspath(path)
    about_path = os.path.join(path, "component.json")
    if not os.path.isfile(about_path):
        raise UserError(f"no component at {path} (it has no component.json); train or convert one first")
    try:
        about = json_files.read(about_path, "export it again")
        kinds = {"format": int, "kind": str, "architecture": dict, "provenance": dict, "content_hash": str}
        for name, wanted in kinds.items():
            if not isinstance(about[name], wanted):
                raise TypeError(f"{name} is {str(about[name])[:60]}")
        if about["format"] > FORMAT:
            raise UserError(
                f"{path} has component format {about['format']}, this version reads up to {FORMAT}; "
                "update this package"
            )
        if kind is not None and about["kind"] != kind:
            raise UserError(f"{path} is a {about['kind']} component, but {kind} is needed here")
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(os.path.join(path, "params")).item_metadata.tree
        variables = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree)
        tokenizer = os.path.join(path, "tokenizer")
        return Component(
            about["kind"],
            about["architecture"],
            variables,
            about["provenance"],
            about["content_hash"],
            tokenizer if os.path.isdir(tokenizer) else "",
        )
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the component at {path} is damaged ({error}); export it again") from error


def held_in(component: Component, dtype: Any) -> PyTree:
    """Shapes and dtypes of the component's variables when it is held in `dtype`: parameters are, unless the
    kind or the leaf is exact; statistics and whole numbers stay what they are."""
    exact = dtype is None or component.kind in EXACT
    leaves = EXACT_LEAVES.get(component.kind, ())

    def one(path, leaf):
        rounded = path[0].key == "params" and path[-1].key not in leaves
        cast = not exact and rounded and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    return jax.tree.map_with_path(one, component.variables)


def load(path: str, kind: str | None = None, sharding: Any = None, dtype: Any = None) -> Component:
    """The component at `path`, its variables placed by `sharding` (one, or a tree) and held in `dtype`, see
    `held_in`.

    Raises:
      UserError: see `describe`.
    """
    component = describe(path, kind)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if not isinstance(sharding, dict):
        sharding = jax.tree.map(lambda _, s=sharding: s, component.variables)

    def target(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = jax.tree.map(target, held_in(component, dtype), sharding)
    try:
        # a few arrays at a time; the largest must have room, in the file's dtype and in that it is held in
        largest = max((leaf.size for leaf in jax.tree.leaves(abstract)), default=0)
        handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=1 + 8 * largest // 10**9)
        with ocp.Checkpointer(handler) as checkpointer:
            params = os.path.join(os.path.abspath(path), "params")
            variables = checkpointer.restore(params, args=ocp.args.StandardRestore(abstract))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the component at {path} is damaged ({error}); export it again") from error
    return dataclasses.replace(component, variables=variables)
