"""Trains one experiment, or goes on with it: `python -m launch.train --config=... --workdir=...`

The same command again resumes from the newest checkpoint, bit for bit as if it had never stopped.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from chef_fusion import tokenization
from launch.runtime import cli, dry_run, processes
from launch.runtime.checkpoint import Checkpoints, DamagedError
from launch.runtime.config import folder_hash, save_or_compare, validate
from launch.runtime.images import labelled_rows, save_png
from launch.runtime.metrics import MetricWriter
from launch.runtime.progress import Progress
from launch.runtime.setup import Setup, prepare, use_compilation_cache
from launch.runtime.step import TrainState, mean_metrics, root_key, with_ema
from rcg import component
from rcg.data import BadRecords
from rcg.errors import UserError
from rcg.experiment import whole

PANEL_IMAGES = 8
PANEL_STREAM, EVALUATE_STREAM = 2**31 - 2, 2**31 - 3  # folded into the root key; no step reaches them


class StopSignal:
    """SIGTERM as a flag, looked at between steps. Of several processes one that gets it stops all, at one
    step: there JAX's own handler takes the signal, and they agree through the coordinator."""

    def __enter__(self) -> "StopSignal":
        self.received, self._several = False, jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, *_: Any) -> None:
        self.received = True

    def look(self, step: int) -> bool:
        """Whether to stop before `step`; every process asks at every step."""
        if self._several and not self.received:
            self.received = multihost_utils.reached_preemption_sync_point(step)
        return self.received

    def __exit__(self, *_: Any) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)


def lock_workdir(workdir: str) -> Any:
    """Makes the workdir, and sees to it that no other run trains in it: the first process holds a lock."""
    try:
        os.makedirs(workdir, exist_ok=True)
        if not processes.first():
            return contextlib.nullcontext()
        lock = open(os.path.join(workdir, ".lock"), "w")  # held until the process ends
    except OSError as error:
        raise UserError(f"can't write to --workdir {workdir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"another process is training in {workdir}; wait for it, or stop it") from error
    return lock


def start(
    setup: Setup, checkpoints: Checkpoints, iterator: Any, bad: BadRecords, allow_older: bool
) -> tuple[TrainState, dict[str, Any] | None]:
    """The first state, or the newest checkpoint's with the data where it was. A checkpoint that can't be read
    stops the run, unless `allow_older`: then it is set aside for the one before."""
    while True:
        step = checkpoints.latest()
        if step is None:
            return setup.init_state(), None
        try:
            state, progress = checkpoints.restore(step, setup.abstract)
            break
        except DamagedError as error:
            if not allow_older or checkpoints.is_oldest(step):
                raise
            kept = checkpoints.set_aside(step)
            if processes.first():
                print(f"{error}\nit is kept as {kept}", file=sys.stderr)
    iterator.set_state(progress["data"])
    bad.restore(progress["bad"])
    return state, progress


def refuse_bad(state: TrainState, checkpoints: Checkpoints) -> None:
    """Stops a run whose loss or gradient was not finite, naming the step; nothing bad is ever saved."""
    if int(state.bad_step) >= 0:
        raise cli.RunError(
            f"loss or gradient is not finite at step {int(state.bad_step)}; the newest checkpoint is "
            f"{checkpoints.latest()}. Lower the learning rate or clip gradients"
        )


class Profiler:
    """Traces the steps of config.profile into workdir/profile, or what is left of them after a resume."""

    def __init__(self, config: ConfigDict, workdir: str):
        self._steps = range(config.profile.start_step, config.profile.start_step + config.profile.steps)
        self._folder, self._running = os.path.join(workdir, "profile"), False

    def look(self, step: int, state: TrainState) -> None:
        """Before the step after `step`; `state` is what that one begins from."""
        if (step in self._steps) != self._running:
            self._switch(state)

    def close(self, state: TrainState) -> None:
        """A window that goes beyond the end."""
        if self._running:
            self._switch(state)

    def _switch(self, state: TrainState) -> None:
        jax.block_until_ready(state)
        self._running = not self._running
        if self._running:
            jax.profiler.start_trace(self._folder)
        else:
            jax.profiler.stop_trace()


def draw_panels(setup: Setup, state: TrainState, frozen: Any, workdir: str, writer: MetricWriter) -> None:
    """PNG panels of what the experiment has to show."""
    shards = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
    size = -(-PANEL_IMAGES // shards) * shards
    count, index = jax.process_count(), jax.process_index()
    batch = next(iter(setup.experiment.dataset("eval", size // count, setup.config.seed, index, count)))
    batch = setup.place({name: batch[name] for name in setup.experiment.batch_spec})
    key = jax.random.fold_in(root_key(setup.config), PANEL_STREAM)
    names: list[str] = []

    def panels(*inputs: Any) -> list[jax.Array]:
        rows = setup.experiment.panels(*inputs)
        names.extend(rows)  # in their own order: a dict would come back from jit sorted by name
        return list(rows.values())

    images = jax.jit(panels)(with_ema(state, setup.config), state.extra, frozen, batch, key)
    rows = dict(zip(names, map(whole, images), strict=True))
    if not rows or not processes.first():
        return
    step = int(state.step)
    save_png(os.path.join(workdir, "panels", f"step_{step:08d}.png"), labelled_rows(rows))
    writer.write_images(step, rows)


def evaluate(setup: Setup, state: TrainState, frozen: Any, partial: str = "") -> dict[str, dict[str, Any]]:
    """The experiment's own measurements, each with the step it was made at.

    Args:
      partial: file for what is measured so far, to go on from, where the experiment can.
    """
    key = jax.random.fold_in(root_key(setup.config), EVALUATE_STREAM)
    params = with_ema(state, setup.config)
    further = {"partial": partial} if setup.experiment.resumes_evaluation else {}
    results = setup.experiment.evaluate(params, state.extra, frozen, key, setup.place, **further)
    return {k: {"seed": setup.config.seed, "step": int(state.step)} | v for k, v in results.items()}


def contents(setup: Setup) -> dict[str, str]:
    """What lies at the paths of the config that name networks, tokenizers and caches: field -> hash. Of a
    cache that which says what it is of."""
    found = {f"components.{name}": about.content_hash for name, about in setup.components.items()}
    fields = (
        ("data", "tokenizer", tokenization.FILES),
        ("data", "cache", {"train.json"}),
        ("method", "targets", {"train.json"}),
    )
    for part, name, files in fields:
        folder = setup.config.get(part, {}).get(name)
        if folder and os.path.isdir(folder):
            found[f"{part}.{name}"] = folder_hash(folder, files)
    return found


def exported_step(workdir: str) -> int | None:
    """The step that the exported component is of; None: there is none."""
    path = os.path.join(workdir, "component")
    return component.describe(path).provenance.get("step") if os.path.exists(path) else None


def export(setup: Setup, state: TrainState, workdir: str) -> str:
    """Writes the trained network as `workdir/component`; returns its content hash."""
    experiment = setup.experiment
    variables = jax.tree.map(whole, experiment.export(with_ema(state, setup.config), state.extra))
    if experiment.compose is not None:  # frozen networks in full precision, not as they are held here
        frozen = {name: component.load(setup.config.components[name]).variables for name in setup.components}
        variables = experiment.compose(variables, jax.device_get(frozen))
    provenance = {
        "experiment": setup.config.experiment,
        "step": int(state.step),
        "seed": setup.config.seed,
        "components": {name: c.content_hash for name, c in setup.components.items()},
    }
    path = os.path.join(workdir, "component")
    made = component.Component(experiment.kind, experiment.architecture, variables, provenance)
    return component.save(path, dataclasses.replace(made, tokenizer=experiment.tokenizer))


def train(config: ConfigDict, workdir: str, allow_older: bool = False) -> int:
    """Runs or resumes `config` in `workdir`; `allow_older`: see `start`.

    Returns:
      0 when done, `cli.STOPPED` when SIGTERM came and everything was saved.

    Raises:
      UserError: bad input. RunError: the run failed; what was saved stays.
    """
    # ---- config, mesh, model: nothing is allocated before all of it holds
    validate(config, jax.device_count())
    use_compilation_cache(config, workdir)
    setup = prepare(config)
    with lock_workdir(workdir):
        return _train(setup, workdir, allow_older)


def _train(setup: Setup, workdir: str, allow_older: bool) -> int:
    config, first = setup.config, processes.first()
    processes.wait("workdir")
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    begun = checkpoints.latest() is not None or exported_step(workdir) is not None
    save_or_compare(config, workdir, contents(setup), write=first, begun=begun)
    processes.wait("config")

    reached = checkpoints.latest() or 0
    if reached >= config.total_steps and exported_step(workdir) == reached:
        if first:
            print(f"{workdir} is complete at step {reached}", file=sys.stderr)
        return 0

    # ---- data
    if config.panel_steps >= 0 or config.evaluate_steps:
        setup.source("eval")  # that it is not there is told before training
    dataset = setup.experiment.dataset(
        "train",
        config.batch_size // jax.process_count(),
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    iterator = iter(dataset)
    bad = BadRecords(setup.source("train"), config.data.max_bad_fraction)

    # ---- state: the newest checkpoint, or a fresh start
    state, resumed = start(setup, checkpoints, iterator, bad, allow_older)
    step = int(state.step)
    writer = MetricWriter(workdir) if first else processes.Silent()
    writer.rewind(step)
    frozen = setup.load_frozen()
    key = jax.jit(lambda: root_key(config), out_shardings=state.step.sharding)()

    def next_batch() -> dict[str, jax.Array]:
        batch = next(iterator)
        bad.update(batch["bad"], batch["bad_index"])
        return setup.place_inputs(batch)

    def save() -> None:
        refuse_bad(state, checkpoints)
        known = bad.joined(processes.gather(bad_position))
        checkpoints.save(step, state, {"data": position, "bad": known}, config.to_dict())

    # ---- loop: dispatch a step, fetch the next batch while it runs, then look at what came out
    progress = Progress(config.total_steps, config.batch_size, step, silent=not first)
    with StopSignal() as stop, progress:
        if resumed:
            progress.note(f"resumed {workdir} at step {step}")
        programs: dict[tuple, Any] = {}  # by the shapes of a batch

        def train_step(state: TrainState, frozen: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
            shapes = tuple((name, batch[name].shape) for name in sorted(batch))
            if shapes not in programs:
                started = time.perf_counter()
                programs[shapes] = setup.compile_step(batch=batch)
                progress.compiled(time.perf_counter() - started)
            with jax.transfer_guard("disallow"):
                return programs[shapes](state, frozen, batch, key)

        position, bad_position = iterator.get_state(), bad.state()
        batch, before = next_batch() if step < config.total_steps else None, None
        profiler = Profiler(config, workdir)
        while step < config.total_steps and not stop.look(step):
            profiler.look(step, state)
            state, done = train_step(state, frozen, batch, key)
            step += 1
            # what a resume at this step must read next: the batch not yet fetched
            position, bad_position = iterator.get_state(), bad.state()
            if step < config.total_steps:
                batch = next_batch()
            # one step runs while the next is sent: never so far ahead that a stop has to wait
            jax.block_until_ready(before)
            before = done
            last = step == config.total_steps
            scalars = {}
            if step % config.log_steps == 0 or last:
                scalars = mean_metrics(state, config.log_steps)
            progress.step(step, scalars or None)
            # measured and shown before the save: a kill in between repeats them, it does not lose them
            if config.evaluate_steps and step % config.evaluate_steps == 0 and not last:
                jax.block_until_ready(state)
                with progress.pause("evaluate"):
                    results = evaluate(setup, state, frozen)
                    scalars |= {f"eval/{k}": v["value"] for k, v in results.items()}
            if scalars:
                writer.write_scalars(step, scalars)
                refuse_bad(state, checkpoints)
            if config.panel_steps > 0 and step % config.panel_steps == 0 and not last:
                jax.block_until_ready(state)
                with progress.pause("panels"):
                    draw_panels(setup, state, frozen, workdir, writer)
            if step % config.checkpoint_steps == 0 and not last:
                jax.block_until_ready(state)
                with progress.pause("checkpoint"):
                    save()

        # ---- end: save, show, export
        profiler.close(state)
        with progress.pause("checkpoint"):
            save()
            checkpoints.wait()
        if stop.received:
            progress.note(f"stopped by SIGTERM; saved step {step}; the same command goes on from here")
        else:
            if config.panel_steps >= 0:
                with progress.pause("panels"):
                    draw_panels(setup, state, frozen, workdir, writer)
            digest = export(setup, state, workdir)
            progress.note(f"exported {os.path.join(workdir, 'component')} ({digest[:12]})")
        if first:
            with open(os.path.join(workdir, "metrics", "speed.json"), "w") as f:
                json.dump(progress.rates(), f)
    writer.close()
    checkpoints.close()
    if hasattr(iterator, "close"):
        iterator.close()
    processes.wait("end")
    return cli.STOPPED if stop.received else 0


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("workdir", None, "where the run lives", flag_values=values)
        flags.DEFINE_bool(
            "dry_run", False, "print parameters, memory and FLOPs; touch no data", flag_values=values
        )
        older = "if the newest checkpoint can't be read, set it aside and go on from the one before"
        flags.DEFINE_bool("allow_older_checkpoint", False, older, flag_values=values)
        dry_run.define(values)
        processes.define(values)

    values = cli.parse(argv, define, __doc__)
    config = cli.required(values, "config")
    processes.join(values)
    planned = [name for name in dry_run.FLAGS if values[name].present]
    if planned and not values.dry_run:
        raise UserError(f"--{planned[0]} is for --dry_run, which is not given")
    if values.dry_run:
        if values.devices:
            dry_run.use_devices(values.devices, config)
        return dry_run.report(config, dry_run.Hardware.of(values))
    return train(config, cli.required(values, "workdir"), values.allow_older_checkpoint)


if __name__ == "__main__":
    cli.run(main)
