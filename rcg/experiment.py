"""What a trainer trains: pure functions, a name, and what to look at."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any
Metrics = dict[str, jax.Array]
Images = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One method, as the trainer sees it.

    A module that defines one offers `experiment(config, components, source)`: `config` as in
    `configs/common.py`, `components` name -> `rcg.component.Component` of the frozen networks (arrays
    may be abstract: build nothing from them here), `source(split)` opens the raw records.

    Attributes:
      kind, architecture: what the exported component will say of itself; `architecture` holds the
        fields that rebuild the module.
      init: rng -> (params, extra). `params` is trained, float32; `extra` is what the method itself
        carries from step to step (momentum encoder, batch statistics), `{}` for most.
      loss: (params, extra, frozen, batch, rng) -> (scalar, (metrics, extra)). jit-able. `frozen` is
        name -> variables and never differentiated; an adversarial pair is one scalar with
        stop-gradients and an optimiser per parameter group. Metrics are scalars, among them "loss".
      batch_spec: field -> (shape without the batch axis, dtype) of what `loss` takes.
      dataset: (split, batch_size, seed, shard_index, shard_count) -> grain.IterDataset of batches;
        "train" is endless, shuffled and augmented, "eval" is one pass, padded with `mask` 0.
      panels: (params, extra, frozen, batch, rng) -> name -> [N, H, W, 3] in [0, 1]: what a person
        looks at during training. jit-able; `batch` comes from the eval split.
      evaluate: (params, extra, frozen, rng, put) -> name -> {"value", "samples", ...}; `put` places a
        host batch on the devices.
      resumes_evaluation: `evaluate` takes `partial` besides, a file for its sums: where it is there, a run
        that was cut off goes on from it.
      export: (params, extra) -> the component's variables. Given EMA params where there are any.
      constrain: (params, frozen) -> params, after every update: what an update must not change.
      compose: (exported variables, frozen) -> the component's, where it also holds frozen networks.
      encode: (frozen, batch) -> arrays [B, ...]: what frozen networks make of the images alone, which `loss`
        takes in the place of "image" where a batch has it; `encoded_by`: the components it is made by. None:
        there is nothing to compute beforehand.
      tokenizer: folder of the tokenizer that goes with the component; "" for none.
    """

    kind: str
    architecture: dict[str, Any]
    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, PyTree]]]
    batch_spec: Mapping[str, tuple[tuple[int, ...], Any]]
    dataset: Callable[..., Any]
    panels: Callable[..., Images]
    evaluate: Callable[..., dict[str, dict[str, Any]]]
    export: Callable[[PyTree, PyTree], PyTree]
    constrain: Callable[[PyTree, PyTree], PyTree] | None = None
    compose: Callable[[PyTree, PyTree], PyTree] | None = None
    resumes_evaluation: bool = False
    encode: Callable[[PyTree, Mapping[str, jax.Array]], dict[str, jax.Array]] | None = None
    encoded_by: tuple[str, ...] = ()
    tokenizer: str = ""


def eval_batches(
    dataset: Callable[..., Any], config: Any, put: Callable[..., Any], fields: Iterable[str]
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray, dict[str, np.ndarray]]]:
    """One pass over the eval split: (fields on the devices, which rows of the global batch count, this
    process's batch). Each process reads its share."""
    processes, index = jax.process_count(), jax.process_index()
    size = config.batch_size // processes
    for batch in dataset("eval", size, config.seed, index, processes):
        # the mask goes with the rows: devices may be in another order than processes
        placed = put({name: batch[name] for name in (*fields, "mask")})
        yield placed, whole(placed["mask"]) > 0, batch


def whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """A global array, or what each process holds a share of (its first axis), in full on every process."""
    if jax.process_count() == 1:
        return np.asarray(array)
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
        mesh = Mesh(np.reshape(devices, (jax.process_count(), -1)), ("process", "device"))
        shares = NamedSharding(mesh, PartitionSpec("process"))
        array = jax.make_array_from_process_local_data(shares, np.asarray(array))
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    # On every device of this process, not only on the one that is read: on CPUs the next program's
    # collectives could meet this one's.
    return np.asarray(jax.block_until_ready(_copies(everywhere)(array)).addressable_data(0))


@functools.cache
def _copies(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


def compute_options(compute: Mapping[str, Any]) -> dict[str, Any]:
    """`config.compute` as the keyword arguments every `build` takes: how to run, not what to compute.

    `dtype` "auto" is bfloat16 on accelerators and float32 on CPU, where bfloat16 gains nothing.
    """
    options = dict(compute)
    if options["dtype"] == "auto":
        options["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return options | {"dtype": jnp.dtype(options["dtype"])}


def to_unit(image: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0
