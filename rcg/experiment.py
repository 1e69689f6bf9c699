"""What a trainer trains: pure functions, a name, and what to look at."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

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
      sharding_rules: ordered (regex on the parameter's path, partition spec); first match wins.
      constrain: (params, frozen) -> params, after every update: what an update must not change.
      compose: (exported variables, frozen) -> the component's, where it also holds frozen networks.
      tokenizer: folder of the tokenizer that goes with the component; "" for none.
      flops_per_example: of a training step, by formula; 0: not known.
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
    sharding_rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    constrain: Callable[[PyTree, PyTree], PyTree] | None = None
    compose: Callable[[PyTree, PyTree], PyTree] | None = None
    resumes_evaluation: bool = False
    tokenizer: str = ""
    flops_per_example: float = 0.0


def eval_batches(
    dataset: Callable[..., Any], config: Any, put: Callable[..., Any], fields: Iterable[str]
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray, dict[str, np.ndarray]]]:
    """One pass over the eval split: (fields on the devices, which rows of the global batch count, this
    process's batch). Each process reads its share."""
    processes, index = jax.process_count(), jax.process_index()
    size = config.batch_size // processes
    for batch in dataset("eval", size, config.seed, index, processes):
        keep = multihost_utils.process_allgather(batch["mask"], tiled=True) > 0
        yield put({name: batch[name] for name in fields}), np.asarray(keep), batch


def whole(array: jax.Array) -> np.ndarray:
    """A global array, on every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


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
