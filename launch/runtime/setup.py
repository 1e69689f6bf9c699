"""From a config to everything a command needs: mesh, components, experiment, state, compiled step."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.runtime import cached, planned, registry
from launch.runtime import mesh as meshes
from launch.runtime.optimizer import make_optimizer
from launch.runtime.step import TrainState, init_state, make_train_step, root_key
from rcg import component as components
from rcg.experiment import Experiment, compute_options

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """One experiment on one mesh. `abstract` is the train state's shapes with shardings, `frozen_abstract`
    the frozen networks'; nothing is allocated yet and no data is touched."""

    config: ConfigDict
    mesh: Mesh
    experiment: Experiment
    components: dict[str, components.Component]
    init: Callable[[jax.Array], TrainState]
    abstract: TrainState
    frozen_abstract: PyTree
    batch_abstract: PyTree
    train_step: Callable[..., TrainState]
    source: Callable[[str], Any]

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        return meshes.batch_sharding(self.mesh)

    def init_state(self) -> TrainState:
        """The first state, made in place on its shardings: never whole on one device or on the host."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        return jax.jit(self.init, out_shardings=shardings)(root_key(self.config))

    def load_frozen(self) -> PyTree:
        """The frozen networks' variables, restored straight to their shardings and dtype."""
        loaded = {}
        for name, abstract in self.frozen_abstract.items():
            shardings = jax.tree.map(lambda x: x.sharding, abstract)
            dtype = compute_options(self.config.compute)["dtype"]
            path = self.config.components[name]
            loaded[name] = components.load(path, sharding=shardings, dtype=dtype).variables
        return loaded

    def trace_step(self, batch: PyTree | None = None) -> Any:
        """(state, frozen, batch, key) -> (state, done), traced; the state is donated, `done` is a scalar of
        its own to wait for. For batches like `batch`, else of the experiment's full size."""
        batch = self.batch_abstract if batch is None else batch
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)

        def program(state: TrainState, *inputs: Any) -> tuple[TrainState, jax.Array]:
            state = self.train_step(state, *inputs)
            return state, state.step + 0

        out = (shardings, meshes.replicated(self.mesh))
        step = jax.jit(program, out_shardings=out, donate_argnums=0)
        key = jax.eval_shape(lambda: root_key(self.config))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=meshes.replicated(self.mesh))
        return step.trace(self.abstract, self.frozen_abstract, batch, key)

    def compile_step(self, batch: PyTree | None = None) -> Any:
        """`trace_step`, compiled ahead of use."""
        return self.trace_step(batch).lower().compile()

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch -> device arrays, split over the mesh's data and fsdp axes."""
        return meshes.place_batch(batch, self.batch_sharding)

    def place_inputs(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """What the train step reads of a host batch, on the devices."""
        return self.place({name: batch[name] for name in self.batch_abstract})


def use_compilation_cache(config: ConfigDict, workdir: str) -> None:
    """Keeps compiled programs on disk, so that a second start need not compile again: where the config or the
    environment says, else beside the workdir."""
    if not config.compilation_cache and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = config.compilation_cache or os.path.join(
        os.path.dirname(os.path.abspath(workdir)), ".compilation_cache"
    )
    jax.config.update("jax_compilation_cache_dir", None if config.compilation_cache == "off" else folder)
    if config.compilation_cache != "off":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _traced_for(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets the layers in `function` know the mesh, see `rcg.layers.over_devices`."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def prepare(config: ConfigDict, mesh: Mesh | None = None) -> Setup:
    """Builds everything abstractly: shapes and shardings, no arrays, no records.

    Raises:
      UserError: whatever is wrong with the config or the components it names.
    """
    mesh = meshes.make_mesh(config.mesh) if mesh is None else mesh
    named = {k: v for k, v in config.get("components", {}).items() if v}
    described = {name: planned.describe(path) for name, path in named.items()}
    if "data" in config:
        open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
        source = functools.cache(functools.partial(open_source, config.data))
    else:
        source = None
    factory = registry.resolve(registry.EXPERIMENTS, config.experiment, "config.experiment")
    experiment = factory(config, described, source)

    def with_shardings(tree: PyTree, kind: str) -> PyTree:
        def one(leaf, sharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(one, tree, meshes.tree_shardings(tree, mesh, registry.sharding_rules(kind)))

    dtype = compute_options(config.compute)["dtype"]
    frozen = {k: with_shardings(components.held_in(c, dtype), c.kind) for k, c in described.items()}
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=meshes.batch_sharding(mesh))
        for name, (shape, dtype) in experiment.batch_spec.items()
    }
    if config.get("data", {}).get("cache"):
        experiment = cached.from_cache(experiment, config, described, source)
        made = jax.eval_shape(experiment.encode, frozen, batch)
        batch |= {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.batch_sharding(mesh))
            for name, leaf in made.items()
        }
        del batch["image"]
    init, abstract, optimizer = init_state(
        experiment, functools.partial(make_optimizer, config), config, frozen, batch
    )
    return Setup(
        config=config,
        mesh=mesh,
        experiment=experiment,
        components=described,
        init=init,
        abstract=with_shardings(abstract, experiment.kind),
        frozen_abstract=frozen,
        batch_abstract=batch,
        train_step=_traced_for(mesh, make_train_step(experiment, optimizer, config)),
        source=source,
    )
