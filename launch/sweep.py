"""Runs a comparison and makes one table of it.

    python -m launch.sweep --config=configs/sweeps/table6a.py --workdir=runs/table6a

A sweep is a pipeline and members that change some fields of its stages. A stage is trained once for all the
members that agree on everything its training reads, in `workdir/stages/<method>-<hash>`; what a member
measures is in `workdir/<sweep>/<member>.json`. Members run one after another, each in a process of its own;
one that fails is told in the table and the others go on. The same command again does what is missing, and
sweeps in the same workdir share what they have in common.

    --index=3     one member only: for a cluster, one job an index
    --list        the members with their indices, nothing else

Writes `<sweep>.md`, `<sweep>.csv` and `<sweep>.html`, with the plots, into the workdir.
"""

import csv
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from html import escape
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch.evaluate import ENCODER_SPACE, as_json, evaluate, in_encoder_space
from launch.pipeline import configure, hardware
from launch.runtime import charts, cli
from launch.runtime.config import decides_training, flatten, put
from launch.runtime.page import page
from launch.train import train
from rcg import component, json_files
from rcg.errors import UserError

WAIT = 20  # seconds between looks at a stage that another process trains


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def built_on(stages: ConfigDict, name: str) -> set[str]:
    """The stage and all that it takes components of."""
    return {name}.union(*(built_on(stages, other) for other in stages[name].components.values()))


def member_pipeline(config: ConfigDict, member: ConfigDict) -> ConfigDict:
    """The sweep's pipeline with the member's fields.

    Raises:
      UserError: a field of a stage that is not there, or of one that a given one is, or is built on.
    """
    stages = {name: stage.to_dict() for name, stage in config.stages.items()}
    given = {name: built_on(config.stages, name) for name, path in config.given.items() if path}
    for field, value in member.overrides:
        stage, _, rest = field.partition(".")
        if stage not in stages:
            raise UserError(f'member "{member.name}" changes {field}; the stages are: {", ".join(stages)}')
        for name, behind in given.items():
            if stage in behind:
                raise UserError(
                    f'member "{member.name}" changes {field}, but {name} is given; leave '
                    f"--config.given.{name} out: a given component is the same for all members"
                )
        if rest.startswith("components."):
            stages[stage]["components"][rest.removeprefix("components.")] = value
        elif rest == "config":
            stages[stage]["config"] = value
        else:
            put(stages[stage]["overrides"], rest, value)
    return ConfigDict({"path": config.path, "stages": stages})


def replace(path: str, text: str) -> None:
    """Writes a file whole or not at all, also where others write it at the same time."""
    staging = f"{path}.{socket.gethostname()}.{os.getpid()}.incomplete"
    with open(staging, "w") as f:
        f.write(text)
    os.replace(staging, path)


class Member:
    """One row, being made."""

    def __init__(self, config: ConfigDict, index: int, workdir: str):
        self.member, self.workdir = config.members[index], workdir
        self.given, self.features = config.given, config.features
        self.pipeline = member_pipeline(config, self.member)
        self.path = os.path.join(workdir, config.name, f"{slug(self.member.name)}.json")

    def _trained_on(self, name: str) -> dict[str, str]:
        """The components that the stage's training reads: name in its config -> folder."""
        stages = self._components(name)
        found = {k: self.component(stage) for k, stage in stages.items()}
        return found | ({"features": os.path.abspath(self.features)} if self._measured_in(name) else {})

    def _measured_in(self, name: str) -> bool:
        """Whether the stage is measured in features that are given."""
        return bool(self.features) and name == self.member.measure

    def _components(self, name: str) -> dict[str, str]:
        """The stages that a stage takes components of."""
        found = dict(self.pipeline.stages[name].components)
        if self._measured_in(name):
            found.pop("features", None)
        return found

    def config(self, name: str) -> ConfigDict:
        """The stage's config, with its components' folders.

        Raises:
          UserError: it can't be trained and is not given.
        """
        if not self.pipeline.stages[name].config:
            raise UserError(
                f'member "{self.member.name}" needs {name}, which is not trained here: '
                f"--config.given.{name}=<folder of its component>"
            )
        return configure(self.pipeline, name, self._trained_on(name))

    def folder(self, name: str) -> str:
        """Where the stage is trained: the name says all that its training reads."""
        config = self.config(name)
        flat = flatten(config.to_dict())
        read = {k: v for k, v in flat.items() if decides_training(config.experiment, k)}
        method = config.experiment.split(".")[-1]
        return os.path.join(self.workdir, "stages", f"{method}-{self._hash(read)[:10]}")

    def _hash(self, flat: dict[str, Any]) -> str:
        """Of fields of a config; of components not where they lie, but which they are."""
        flat = dict(flat)
        for key, path in flat.items():
            if key.startswith("components.") and path:
                inside = os.path.relpath(path, self.workdir)  # such a folder's name says what it is
                flat[key] = component.describe(path).content_hash if inside.startswith("..") else inside
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()

    def component(self, name: str) -> str:
        if name not in self.pipeline.stages:
            raise UserError(f'member "{self.member.name}" needs a stage "{name}", which is not there')
        return os.path.abspath(self.given.get(name) or os.path.join(self.folder(name), "component"))

    def needed(self, name: str) -> list[str]:
        """The stages to train for this one, itself last, each after those it builds on."""
        order: list[str] = []
        for other in self._components(name).values():
            if not self.given.get(other):
                order += [stage for stage in self.needed(other) if stage not in order]
        return [*order, name]

    def inputs(self) -> str:
        """A hash of everything the member's results depend on."""
        return self._hash(flatten(self.config(self.member.measure).to_dict()))

    def made(self) -> dict[str, Any]:
        """What was written of this member as it is now configured; {}: nothing."""
        if not os.path.exists(self.path):
            return {}
        held = json_files.read(self.path, "take it away: the member is then made again")
        try:
            return held if held.get("inputs") == self.inputs() else {}
        except UserError:  # it can't even be configured
            return held if "error" in held else {}

    def done(self) -> bool:
        return "results" in self.made()

    def write(self, **about: Any) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            inputs = self.inputs()
        except UserError:
            inputs = ""
        text = {"name": self.member.name, "inputs": inputs, "hardware": hardware()} | about
        replace(self.path, json.dumps(text, indent=2))

    def train(self, name: str) -> int:
        """Trains a stage, or waits until another process has; 0, or `cli.STOPPED`."""
        folder = self.folder(name)
        while not os.path.exists(os.path.join(folder, "component")):
            print(f"== {name} in {os.path.relpath(folder, self.workdir)}", file=sys.stderr)
            try:
                return train(self.config(name), folder)
            except UserError as error:
                if "another process is training" not in str(error):
                    raise
                time.sleep(WAIT)
        return 0

    def run(self) -> int:
        """Trains what is missing and measures; 0, or `cli.STOPPED`."""
        started, name = time.perf_counter(), self.member.measure
        for stage in self.needed(name):
            code = self.train(stage)
            if code:
                return code
        config, folder = self.config(name), self.folder(name)
        results = evaluate(config, folder, os.path.splitext(self.path)[0])
        budget = {
            "steps": config.total_steps,
            "batch_size": config.batch_size,
            "stage": os.path.basename(folder),
        }
        self.write(results=as_json(results), seconds=time.perf_counter() - started, **budget)
        return 0


def rows(config: ConfigDict, workdir: str) -> list[dict[str, Any]]:
    """What there is of each member: {"name", "fields", "values", "error", "seconds", "budget"}."""
    found = []
    for index, member in enumerate(config.members):
        made = Member(config, index, workdir).made()
        row = {"name": member.name, "fields": dict(member.overrides), "values": {}, "error": "not run yet"}
        if made:
            row |= {"error": made.get("error", ""), "seconds": made.get("seconds")}
            results = made.get("results", {})
            wanted = {config.heading: member.metric} if member.metric else {m: m for m in config.metrics}
            # measured with FID-Inception, the Frechet distance is called what it is called elsewhere
            wanted = {t: m if m in results else m.replace("frechet_", "fid_", 1) for t, m in wanted.items()}
            row["values"] = {title: results[m] for title, m in wanted.items() if m in results}
            row["encoder_space"] = in_encoder_space(results)
            row["steps"], row["batch_size"] = made.get("steps"), made.get("batch_size")
            row["hardware"] = made.get("hardware", {})
            if not row["error"] and not row["values"]:
                row["error"] = f"no {', '.join(wanted.values())} among its results"
        found.append(row)
    return found


def table(config: ConfigDict, found: list[dict[str, Any]]) -> list[list[str]]:
    """Heading and rows, as text."""
    titles = list(dict.fromkeys(title for row in found for title in row["values"]))
    lines = [["", *titles, "features", "samples", "steps", "batch", "note"]]
    for row in found:
        samples = sorted({str(v.get("samples", "")) for v in row["values"].values()})
        values = [row["values"].get(t, {"value": ""})["value"] for t in titles]
        cells = [value if isinstance(value, str) else f"{value:.4g}" for value in values]
        features = sorted({str(v.get("features", "")) for v in row["values"].values()})
        rest = [
            " / ".join(features),
            " / ".join(samples),
            str(row.get("steps") or ""),
            str(row.get("batch_size") or ""),
        ]
        lines.append([row["name"], *cells, *rest, row["error"]])
    return lines


def markdown(lines: list[list[str]]) -> str:
    out = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([out[0], f"|{' --- |' * len(lines[0])}", *out[1:]]) + "\n"


def plots(config: ConfigDict, found: list[dict[str, Any]]) -> list[str]:
    """A chart for each column: over config.x, or bars by name."""
    titles = list(dict.fromkeys(title for row in found for title in row["values"]))
    charts_made = []
    for title in titles:
        with_value = [
            row for row in found if not isinstance(row["values"].get(title, {"value": ""})["value"], str)
        ]
        values = [row["values"][title]["value"] for row in with_value]
        if config.x:
            points = sorted(zip((row["fields"][config.x] for row in with_value), values, strict=True))
            charts_made.append(charts.curve(f"{title} by {config.x.split('.')[-1]}", points))
        else:
            names = [row["name"] for row in with_value]
            charts_made.append(charts.bars(title, list(zip(names, values, strict=True))))
    return charts_made


def collect(config: ConfigDict, workdir: str) -> str:
    """Writes the table of what there is so far; returns it as Markdown, with what is to be said of it."""
    found = rows(config, workdir)
    lines = table(config, found)
    text = markdown(lines)
    held = io.StringIO()
    csv.writer(held).writerows(lines)
    machines = {json.dumps(row["hardware"]) for row in found if row.get("hardware")}
    told = "; ".join(", ".join(f"{k} {v}" for k, v in json.loads(m).items()) for m in sorted(machines))
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in line)}</tr>" for line in lines[1:])
    drawn = "".join(plots(config, found))
    said = ENCODER_SPACE if any(row.get("encoder_space") for row in found) else ""
    html = page(
        config.title,
        f"<h1>{escape(config.title)}</h1><p>{escape(config.description)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div class="charts">{drawn}</div>'
        f'<p class="quiet">{escape(said)}</p><p class="quiet">{escape(told)}</p>',
    )
    for ending, content in (("md", text), ("csv", held.getvalue()), ("html", html)):
        replace(os.path.join(workdir, f"{config.name}.{ending}"), content)
    return f"{text}\n{said}\n" if said else text


def run_member(config: ConfigDict, index: int, workdir: str) -> int:
    """Makes one row; a failure is written into it, too."""
    row = Member(config, index, workdir)
    if row.done():
        return 0
    try:
        return row.run()
    except Exception as error:
        row.write(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise


def run_all(config: ConfigDict, workdir: str, argv: list[str]) -> int:
    """Each member in a process of its own; 0, 1 if any failed, or `cli.STOPPED`."""
    failed = 0
    for index, member in enumerate(config.members):
        row = Member(config, index, workdir)
        if not row.done():
            print(f"\n=== {index}: {member.name}", file=sys.stderr)
            command = [sys.executable, "-m", "launch.sweep", *argv[1:], f"--index={index}"]
            code = subprocess.run(command).returncode
            if code == cli.STOPPED:
                return code
            failed += code != 0
            if code != 0 and not row.made():  # killed: it could not say so
                row.write(error=f"ended with status {code}")
        collect(config, workdir)
    return 1 if failed else 0


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("workdir", None, "where everything goes", flag_values=values)
        flags.DEFINE_integer("index", None, "this member only", flag_values=values)
        flags.DEFINE_bool("list", False, "print the members with their indices", flag_values=values)

    values = cli.parse(argv, define, __doc__)
    config = cli.required(values, "config")
    if "members" not in config:
        raise UserError(
            "--config is no sweep; a pipeline's is for launch.pipeline, one experiment's for launch.train"
        )
    names = [slug(member.name) for member in config.members]
    if len(set(names)) < len(names):
        raise UserError("two members of the sweep have the same name")
    if values.list:
        for index, member in enumerate(config.members):
            fields = ", ".join(f"{k}={v}" for k, v in member.overrides)
            print(f"{index:3}  {member.name:24} {fields}")
        return 0
    workdir = os.path.abspath(cli.required(values, "workdir"))
    for member in config.members:  # a mistake is told before anything is trained
        member_pipeline(config, member)
    os.makedirs(workdir, exist_ok=True)
    if values.index is not None:
        if not 0 <= values.index < len(config.members):
            raise UserError(f"--index={values.index}: the members are 0..{len(config.members) - 1}")
        code = run_member(config, values.index, workdir)
        collect(config, workdir)
        return code
    code = run_all(config, workdir, argv)
    print(collect(config, workdir))
    return code


if __name__ == "__main__":
    cli.run(main)
