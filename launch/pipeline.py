"""Runs a chain of stages: `python -m launch.pipeline --config=... --workdir=...`

Each stage prepares something or trains an experiment in `workdir/<stage>`, on what the stages before it made,
and measures it; then samples are drawn and one report is written. What is complete is skipped, what was cut
off goes on. With --stages=lm,clip these stages alone are run: others may run at the same time, elsewhere, in
the same workdir; the command without it comes last. --jobs=2 does so by itself: two stages at a time, each on
half of the CPU cores, the last on all. --set=lm.total_steps=500 sets a field of a stage.
"""

import ast
import contextlib
import fcntl
import glob
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import ConfigDict

from launch import report, sample
from launch.evaluate import evaluate
from launch.prepare import prepare
from launch.runtime import cli, gallery, jobs, registry
from launch.runtime.config import flatten, measured_with, put, validate
from launch.runtime.images import grid, save_png
from launch.train import train
from rcg import component, json_files
from rcg.data import cores, eval_arrays
from rcg.errors import UserError


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            models = {line.split(":")[1].strip() for line in f if line.startswith("model name")}
        name = ", ".join(sorted(models)) or name
    return {
        "device": name,
        "devices": jax.device_count(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


class Record:
    """workdir/pipeline.json: what was run, in what time, on what. Replaced whole as stages begin and end;
    several processes may add their own."""

    def __init__(self, workdir: str, config: ConfigDict):
        self.path = os.path.join(workdir, "pipeline.json")
        self.order = (*config.order, "samples")
        self.stages, self.unfinished = self.read()
        self.about = {k: config[k] for k in ("name", "title", "description")}
        self.hardware = hardware()

    def read(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[list[float]]]]:
        """The stages that ended, and of those that did not since when: name -> [began, ended], of which the
        last may not be over."""
        if not os.path.exists(self.path):
            return {}, {}
        kept = json_files.read(self.path, "take it away: all stages are then looked at again")
        return {stage["name"]: stage for stage in kept.get("stages", [])}, kept.get("unfinished", {})

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """What is done to the stages inside is written, beside what others did."""
        with open(self.path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.stages, self.unfinished = self.read()
            yield
            self.write()

    def begin(self, name: str, folder: str) -> None:
        """A training begins, so that its time counts though it be killed: until the last line of its metrics
        (in `folder`)."""
        path = os.path.join(folder, "metrics", "metrics.jsonl")
        with self.changed():
            spans = self.unfinished.get(name, [])
            if spans:
                last = os.path.getmtime(path) if os.path.exists(path) else 0.0
                spans[-1][1] = max(last, spans[-1][0])
            self.unfinished[name] = [*spans, [time.time()] * 2]

    def done(self, name: str, inputs: Any) -> bool:
        return self.stages.get(name, {}).get("inputs") == inputs

    def add(self, name: str, inputs: Any, seconds: float, **about: Any) -> None:
        with self.changed():
            before = self.stages.get(name, {})
            killed = self.unfinished.pop(name, [])[:-1]
            spans = [*killed, [time.time() - seconds, time.time()]]
            seconds += sum(ended - began for began, ended in killed)
            if about.pop("goes_on", False):
                seconds += before.get("seconds", 0.0)
                spans = before.get("spans", []) + spans
            about |= {"name": name, "inputs": inputs, "seconds": seconds, "hardware": self.hardware}
            about["spans"] = spans
            self.stages[name] = about

    def take_back(self, name: str) -> None:
        """What was begun last was no training."""
        with self.changed():
            self.unfinished[name] = self.unfinished.get(name, [])[:-1]
            if not self.unfinished[name]:
                del self.unfinished[name]

    def place(self, stage: dict[str, Any]) -> int:
        """Where a stage stands among all; the last for one that is no more in the config."""
        name = stage["name"].split("/")[0]
        return self.order.index(name) if name in self.order else len(self.order)

    def write(self) -> None:
        with open(self.path + ".incomplete", "w") as f:
            stages = sorted(self.stages.values(), key=self.place)
            json.dump(self.about | {"stages": stages, "unfinished": self.unfinished}, f, indent=2)
        os.replace(self.path + ".incomplete", self.path)


def stage_config(config: ConfigDict, name: str, workdir: str) -> ConfigDict:
    """The stage's own config file with its overrides, the pipeline's data, what the stages before made."""
    stage = config.stages[name]
    made = {k: os.path.join(workdir, v, "component") for k, v in stage.components.items()}
    prepared = {k.replace("__", "."): os.path.join(workdir, v) for k, v in stage.prepared.items()}
    return configure(config, name, made, prepared)


def configure(
    config: ConfigDict, name: str, components: dict[str, str], fields: dict[str, Any] | None = None
) -> ConfigDict:
    """The stage's own config file with the pipeline's data, these components' folders and `fields`, then the
    stage's overrides.

    Raises:
      UserError: the stage's data or its tokenizer are at a path that is not given.
    """
    stage = config.stages[name]
    made = {f"components.{k}": path for k, path in components.items()} | (fields or {})
    if stage.path and not config.get("paths", {}).get(stage.path):
        raise UserError(f"the stage {name} needs data: --config.paths.{stage.path}=<where they are>")
    if stage.overrides.get("data", {}).get("tokenizer") == "":
        raise UserError(f"the stage {name} needs a tokenizer: --set={name}.data.tokenizer=<folder>")
    path = config.paths[stage.path] if stage.path else config.path
    if path:
        made["data.path"] = path
    return cli.read_config(stage.config, made | flatten(stage.overrides.to_dict()))


def set_fields(config: ConfigDict, assignments: Sequence[str]) -> None:
    """Sets fields of stages' configs: "lm.optimizer.name=adamw".

    Raises:
      UserError: no stage of that name, or no value. Fields and types are looked at with the stage's config.
    """
    for text in assignments:
        field, equals, value = text.partition("=")
        stage, _, rest = field.partition(".")
        if not (equals and rest) or stage not in config.stages:
            names = ", ".join(config.order)
            raise UserError(f"--set={text} is not <stage>.<field>=<value>; the stages are: {names}")
        nested: dict[str, Any] = {}
        put(nested, rest, _value(value))
        overrides = config.stages[stage].overrides
        with overrides.unlocked(), overrides.ignore_type():
            overrides.update(nested)


def _value(text: str) -> Any:
    """A number, a truth, a tuple; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def prepare_stage(pipeline_config: ConfigDict, name: str, workdir: str, record: Record) -> int:
    """What `launch.prepare` makes of one stage; 0."""
    stage, folder = pipeline_config.stages[name], os.path.join(workdir, name)
    config = stage_config(pipeline_config, name, workdir)
    made = [os.path.join(workdir, v, "component") for v in stage.components.values()]
    said = config.to_json().replace(json.dumps(workdir)[1:-1], "")  # the same where the folder was moved to
    inputs = [said, [component.describe(path).content_hash for path in made]]
    if os.path.isdir(folder) and record.done(name, inputs):
        return 0
    print(f"\n== {name}: {stage.title}", file=sys.stderr)
    started = time.perf_counter()
    prepare(config, folder)
    about = {"kind": "prepare", "title": stage.title, "dir": name, "experiment": config.experiment}
    record.add(name, inputs, time.perf_counter() - started, **about)
    return 0


def run_stage(pipeline_config: ConfigDict, name: str, workdir: str, record: Record) -> int:
    """Trains and measures one stage; 0, or `cli.STOPPED`."""
    stage, folder = pipeline_config.stages[name], os.path.join(workdir, name)
    if stage.command == "prepare":
        return prepare_stage(pipeline_config, name, workdir, record)
    config = stage_config(pipeline_config, name, workdir)
    print(f"\n== {name}: {stage.title}", file=sys.stderr)
    started = time.perf_counter()
    complete = os.path.exists(os.path.join(folder, "component"))
    begun = bool(glob.glob(os.path.join(glob.escape(folder), "checkpoints", "[0-9]*")))
    record.begin(name, folder)
    try:
        code = train(config, folder)
    except UserError:
        record.take_back(name)
        raise
    made = component.describe(os.path.join(folder, "component")) if code == 0 else None
    if complete and record.done(name, made.content_hash):
        record.take_back(name)
    else:
        record.add(
            name,
            made and made.content_hash,
            time.perf_counter() - started,
            kind="train",
            goes_on=begun,
            title=stage.title,
            dir=name,
            experiment=config.experiment,
            steps=config.total_steps,
            batch_size=config.batch_size,
            parameters=made and int(parameter_overview.count_parameters(made.variables)),
        )
    if code or not stage.evaluate:
        return code
    inputs = measured(config, made)
    there = os.path.exists(os.path.join(folder, "results.json"))
    if not (there and record.done(f"{name}/evaluate", inputs)):
        started = time.perf_counter()
        for key, result in sorted(evaluate(config, folder).items()):
            print(f"   {key:32} {result['value']:.6g}", file=sys.stderr)
        seconds = time.perf_counter() - started
        about = {"kind": "evaluate", "title": f"measure {stage.title}", "dir": name}
        record.add(f"{name}/evaluate", inputs, seconds, **about)
    return code


def measured(config: ConfigDict, made: component.Component) -> list[Any]:
    """All that the measurements of a stage depend on, as JSON has it."""
    named = {
        k: component.describe(path).content_hash for k, path in config.get("components", {}).items() if path
    }
    return [made.content_hash, measured_with(config), named]


def made(config: ConfigDict, name: str, workdir: str, record: Record) -> bool:
    """Whether a stage is complete."""
    if config.stages[name].command == "prepare":
        return name in record.stages
    return os.path.exists(os.path.join(workdir, name, "component"))


def draw_samples(config: ConfigDict, workdir: str, record: Record) -> None:
    """The sample tasks of the config, and a grid of real images to hold them against."""
    trained = [name for name in config.order if config.stages[name].command == "train"]
    folders = [os.path.join(workdir, name, "component") for name in trained]
    hashes = [component.describe(folder).content_hash for folder in folders]
    configs = (stage_config(config, name, workdir) for name in trained)
    first = next(c for c in configs if "image_column" in c.data)
    open_source = registry.resolve(registry.SOURCES, first.data.source, "config.data.source")
    images, _ = eval_arrays(open_source(first.data, first.data.eval_split), first.data, 64)
    real = os.path.join(workdir, "samples", "real")
    os.makedirs(real, exist_ok=True)
    save_png(os.path.join(real, "grid.png"), grid(images.astype(np.float32) / 255))
    for index in range(max(settings.get("images", 0) for settings in config.samples.values())):
        save_png(os.path.join(real, f"{index:02d}.png"), images[index].astype(np.float32) / 255)
    for name, settings in config.samples.items():
        inputs = [hashes, settings.to_dict()]
        if settings.task == "gallery":
            inputs.append(measured_with(stage_config(config, settings.stage, workdir)))
        out = os.path.join(workdir, "samples", name)
        if os.path.isdir(out) and record.done(f"samples/{name}", inputs):
            continue
        argv = ["sample", f"--workdir={workdir}", f"--out={out}"]
        for key, value in settings.items():
            if key == "images":  # this many held-out real images
                argv += [f"--image={os.path.join(real, f'{i:02d}.png')}" for i in range(value)]
            else:
                argv.append(f"--{key}={value}")
        started = time.perf_counter()
        if settings.task == "gallery":
            joints = stage_config(config, settings.stage, workdir)
            gallery.make(os.path.join(workdir, settings.stage), joints, out, settings.num)
        elif settings.task == "classes":
            options = {k: v for k, v in settings.items() if k not in ("task", "judge", "num")}
            gallery.classes(workdir, os.path.join(workdir, settings.judge), out, settings.num, **options)
        else:
            sample.main(argv)
        about = {"kind": "sample", "title": f"sample: {name}", "dir": f"samples/{name}"}
        record.add(f"samples/{name}", inputs, time.perf_counter() - started, **about)


def needs(config: ConfigDict, name: str) -> set[str]:
    """The stages that must be complete before this one."""
    stage = config.stages[name]
    return {*stage.components.values(), *stage.prepared.values()}


def choose(config: ConfigDict, workdir: str, stages: Sequence[str], record: Record) -> list[str]:
    """Looks at the settings of all stages, and says which are to run: all, or `stages`.

    Raises:
      UserError: a stage that is not there, or that can't run with its settings or without another.
    """
    unknown = set(config.order) - set(config.stages)
    if unknown:
        raise UserError(f"config.order names {sorted(unknown)}; there are: {', '.join(config.stages)}")
    if not set(stages) <= set(config.order):
        unknown = sorted(set(stages) - set(config.order))
        raise UserError(f"--stages names {unknown}; there are: {', '.join(config.order)}")
    for name in config.order:  # what is wrong with a late stage is told before hours of early ones
        checked = stage_config(config, name, workdir)
        if config.stages[name].command == "train":
            validate(checked, jax.device_count())
    chosen = [name for name in config.order if name in stages or not stages]
    for i, name in enumerate(chosen):
        others = needs(config, name) - set(chosen[:i])
        missing = sorted(other for other in others if not made(config, other, workdir, record))
        if missing:
            raise UserError(
                f"the stage {name} needs {', '.join(missing)}, not made yet: add to --stages, or wait for it"
            )
    return chosen


def pipeline(config: ConfigDict, workdir: str, stages: Sequence[str] = ()) -> int:
    """Runs or goes on with all stages, or with `stages` alone; 0, or `cli.STOPPED` after SIGTERM.

    Raises:
      UserError: see `choose`.
    """
    workdir = os.path.abspath(workdir)
    os.makedirs(workdir, exist_ok=True)
    record = Record(workdir, config)
    for name in choose(config, workdir, stages, record):
        code = run_stage(config, name, workdir, record)
        if code:
            return code
    if stages:
        return 0
    if config.samples:
        draw_samples(config, workdir, record)
    print(f"\nreport: {report.write_report(workdir)}", file=sys.stderr)
    return 0


def side_by_side(
    config: ConfigDict, workdir: str, stages: Sequence[str], count: int, argv: Sequence[str]
) -> int:
    """Runs the stages `count` at a time, each by a command of its own on its share of the CPU cores.

    Args:
      argv: this command's own arguments.

    Raises:
      UserError: see `choose`; an accelerator, which a stage has for itself.
    """
    if jax.default_backend() != "cpu":
        raise UserError(f"--jobs={count} shares CPU cores; on an accelerator the stages run one by one")
    chosen = choose(config, os.path.abspath(workdir), stages, Record(workdir, config))
    command = [sys.executable, "-m", "launch.pipeline", *argv, "--jobs=1"]
    waits = {name: needs(config, name) for name in chosen}
    return jobs.run(waits, lambda name: [*command, f"--stages={name}"], os.path.join(workdir, "logs"), count)


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("workdir", None, "where the stages' folders go", flag_values=values)
        flags.DEFINE_list("stages", [], "run these alone, no samples, no report", flag_values=values)
        many = "stages at a time, each on its share of the CPU cores, the last on all"
        flags.DEFINE_integer("jobs", 1, many, lower_bound=1, flag_values=values)
        flags.DEFINE_multi_string("set", [], "<stage>.<field>=<value>", flag_values=values)

    values = cli.parse(argv, define, __doc__)
    config, workdir = cli.required(values, "config"), cli.required(values, "workdir")
    if "order" not in config:
        raise UserError(
            "--config is no pipeline; one experiment's is for launch.train, a sweep's for launch.sweep"
        )
    set_fields(config, values.set)
    if values.jobs > 1:
        code = side_by_side(config, workdir, values.stages, values.jobs, argv[1:])
        if code:
            return code
    return pipeline(config, workdir, values.stages)


if __name__ == "__main__":
    cli.run(main)
