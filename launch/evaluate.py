"""Measures a run's newest checkpoint: `python -m launch.evaluate --workdir=... [--config=...]`

Fills `workdir/results.json`, or that of the folder --out: name -> value, with the number of samples, the
seed and the step.
"""

import json
import os

import jax
from absl import flags
from ml_collections import ConfigDict

from launch.runtime import cli
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.config import validate
from launch.runtime.setup import prepare, use_compilation_cache
from launch.train import evaluate as evaluate_state
from rcg.errors import UserError


def saved_config(workdir: str) -> ConfigDict:
    """The config a run was started with.

    Raises:
      UserError: no run there, or its config.json is damaged.
    """
    path = os.path.join(workdir, "config.json")
    if not os.path.isfile(path):
        raise UserError(f"no run in {workdir} (it has no config.json); train one there first")
    try:
        with open(path) as f:
            return ConfigDict(json.load(f)).lock()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); put it back") from error


def write_results(workdir: str, results: dict[str, dict]) -> str:
    """Merges `results` into workdir/results.json, which is replaced whole; returns its path."""
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "results.json")
    merged = {}
    if os.path.exists(path):
        with open(path) as f:
            merged = json.load(f)
    staging = path + ".incomplete"
    with open(staging, "w") as f:
        json.dump(merged | results, f, indent=2)
    os.replace(staging, path)
    return path


def evaluate(config: ConfigDict, workdir: str, out: str = "") -> dict[str, dict]:
    """Restores the newest checkpoint of `workdir` and measures it; the results are returned, and merged into
    results.json in `out`, which is `workdir` unless given."""
    validate(config, jax.device_count())
    use_compilation_cache(config, workdir)
    checkpoints = Checkpoints(workdir, read_only=True) if os.path.isdir(workdir) else None
    step = checkpoints and checkpoints.latest()
    if step is None:
        raise UserError(f"no checkpoint under {workdir}/checkpoints; train first")
    setup = prepare(config)
    state, _ = checkpoints.restore(step, setup.abstract)
    results = evaluate_state(setup, state, setup.load_frozen())
    write_results(out or workdir, results)
    return results


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("workdir", None, "the run to measure", flag_values=values)
        flags.DEFINE_string(
            "out", "", "folder for results.json; the workdir if not given", flag_values=values
        )

    values = cli.parse(argv, define, __doc__)
    workdir = cli.required(values, "workdir")
    config = values.config or saved_config(workdir)
    for name, result in sorted(evaluate(config, workdir, values.out).items()):
        print(f"{name:32} {result['value']:.6g}  ({result.get('samples', '?')} samples)")
    return 0


if __name__ == "__main__":
    cli.run(main)
