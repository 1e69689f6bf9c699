"""The train state and the train step: one compiled program per step, for every experiment."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from launch.runtime.mesh import path_name
from launch.runtime.optimizer import learning_rate
from rcg import ema
from rcg.errors import UserError
from rcg.experiment import Experiment

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """Everything that decides the next step, and the metrics that are still being summed.

    Attributes:
      step: int32, updates done.
      params, extra: see `Experiment`.
      ema: exponential moving average of the parameters that `config.ema.params` matches (path -> array).
      metric_sums: float32 sums since the last logged step.
      bad_step: int32, the first step whose loss or gradient was not finite; -1 while all were.
    """

    step: jax.Array
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    ema: PyTree
    metric_sums: dict[str, jax.Array]
    bad_step: jax.Array


def root_key(config: ConfigDict) -> jax.Array:
    """The key all randomness of a run comes from; a step's is `fold_in(root_key, step)`."""
    impl = {"threefry": "threefry2x32", "rbg": "rbg"}[config.dropout_rng]
    return jax.random.key(config.seed, impl=impl)


def with_ema(state: TrainState, config: ConfigDict) -> PyTree:
    """The parameters to look at, evaluate and export: EMA where there is one, raw elsewhere."""
    if not config.ema.decay:
        return state.params
    return jax.tree.map_with_path(lambda p, x: state.ema.get(path_name(p), x), state.params)


def _ema_leaves(params: PyTree, config: ConfigDict) -> dict[str, jax.Array]:
    if not config.ema.decay:
        return {}
    named = ((path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))
    try:
        found = {name: x for name, x in named if re.search(config.ema.params, name)}
    except re.error as error:
        raise UserError(f"config.ema.params {config.ema.params!r} is no pattern: {error}") from error
    if not found:
        raise UserError(f"config.ema.params {config.ema.params!r} matches no parameter")
    return found


def _loss_and_grads(experiment: Experiment, config: ConfigDict):
    """(state, frozen, batch, key) -> (grads, metrics, extra), in `accumulation_steps` micro-batches."""
    value_and_grad = jax.value_and_grad(experiment.loss, has_aux=True)
    micro = config.optimizer.accumulation_steps

    def whole(state, frozen, batch, key):
        (_, (metrics, extra)), grads = value_and_grad(state.params, state.extra, frozen, batch, key)
        return grads, metrics, extra

    def accumulated(state, frozen, batch, key):
        # [B, ...] -> [micro, B / micro, ...], taking every micro-th example so that shards stay put
        batches = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry, inputs):
            total, extra = carry
            batch, key = inputs
            (_, (metrics, extra)), grads = value_and_grad(state.params, extra, frozen, batch, key)
            return (jax.tree.map(jnp.add, total, grads), extra), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        inputs = (batches, jax.random.split(key, micro))
        (total, extra), metrics = jax.lax.scan(body, (zeros, state.extra), inputs)
        mean = functools.partial(jax.tree.map, lambda x: x / micro)
        return mean(total), jax.tree.map(lambda m: m.mean(0), metrics), extra

    return whole if micro == 1 else accumulated


def make_train_step(
    experiment: Experiment, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, PyTree, PyTree, jax.Array], TrainState]:
    """(state, frozen, batch, root key) -> state. Pure; jit it with the state donated."""
    loss_and_grads = _loss_and_grads(experiment, config)

    def train_step(state: TrainState, frozen: PyTree, batch: PyTree, key: jax.Array) -> TrainState:
        grads, metrics, extra = loss_and_grads(state, frozen, batch, jax.random.fold_in(key, state.step))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if experiment.constrain is not None:
            params = experiment.constrain(params, frozen)
        # LitEma's order: the average takes the parameters before this step's update
        averaged = _ema_leaves(state.params, config)
        if averaged:
            averaged = ema.update(state.ema, averaged, state.step, config.ema.decay, config.ema.warmup)
        metrics = {k: v.astype(jnp.float32) for k, v in metrics.items()} | {
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": learning_rate(state.step, config.optimizer, config.total_steps),
        }
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        step = state.step + 1
        fresh = state.step % config.log_steps == 0
        return TrainState(
            step=step,
            params=params,
            extra=extra,
            opt_state=opt_state,
            ema=averaged,
            metric_sums={k: jnp.where(fresh, 0.0, state.metric_sums[k]) + v for k, v in metrics.items()},
            bad_step=jnp.where((state.bad_step < 0) & ~finite, step, state.bad_step),
        )

    return train_step


def init_state(
    experiment: Experiment,
    optimizer_for: Callable[[PyTree], optax.GradientTransformation],
    config: ConfigDict,
    frozen: PyTree,
    batch: PyTree,
) -> tuple[Callable[[jax.Array], TrainState], TrainState, optax.GradientTransformation]:
    """How to make the first state: (root key -> state, its abstract form, the optimiser).

    Args:
      frozen, batch: abstract; they name the metrics the loss reports.
    """
    params, extra = jax.eval_shape(experiment.init, root_key(config))
    optimizer = optimizer_for(params)
    _, (metrics, _) = jax.eval_shape(experiment.loss, params, extra, frozen, batch, root_key(config))
    names = [*metrics, "grad_norm", "param_norm", "learning_rate"]

    def init(key: jax.Array) -> TrainState:
        # a constant no step folds in: initialisation shares no draw with training
        params, extra = experiment.init(jax.random.fold_in(key, 2**31 - 1))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra=extra,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, _ema_leaves(params, config)),
            metric_sums={k: jnp.zeros((), jnp.float32) for k in names},
            bad_step=jnp.full((), -1, jnp.int32),
        )

    return init, jax.eval_shape(init, root_key(config)), optimizer


def mean_metrics(state: TrainState, log_steps: int) -> dict[str, float]:
    """Means of the metrics over the steps since the last logged one."""
    count = (int(state.step) - 1) % log_steps + 1
    return {k: float(v) / count for k, v in sorted(state.metric_sums.items())}
