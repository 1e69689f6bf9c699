"""Measures a run's newest checkpoint: `python -m launch.evaluate --workdir=... [--config=...]`

Fills `workdir/results.json`, or that of the folder --out: name -> value, with the number of samples, the
seed and the step. --split=test measures on that split, and names the results "test/...".

    python -m launch.evaluate --images=<folder or npz> --out=... \
        --reference=<npz of statistics, folder or npz of images> \
        --features=<component of FID-Inception, or of an encoder>

measures images instead: FID (in an encoder's space: the Frechet distance), Inception Score, and with --keep
precision and recall.

Both stream, and go on where they were cut off; of the runs only MAGE's.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from glob import escape, glob

import jax
from absl import flags
from ml_collections import ConfigDict

from launch.runtime import cli, processes
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.comparing import compare
from launch.runtime.config import refuse_others, validate
from launch.runtime.setup import Setup, prepare, use_compilation_cache
from launch.train import contents
from launch.train import evaluate as evaluate_state
from rcg import component, json_files
from rcg.errors import UserError

ENCODER_SPACE = "no FID-Inception: the Frechet distance is in an encoder's space, not to be held against FIDs"


def in_encoder_space(results: Iterable[str]) -> bool:
    """Whether there is a Frechet distance among these names of results that is no FID."""
    return any(name == "frechet" or name.startswith("frechet_") for name in results)


def saved_config(workdir: str) -> ConfigDict:
    """The config a run was started with.

    Raises:
      UserError: no run there, or its config.json is damaged.
    """
    path = os.path.join(workdir, "config.json")
    if not os.path.isfile(path):
        raise UserError(f"no run in {workdir} (it has no config.json); train one there first")
    try:
        config = ConfigDict(json_files.read(path, "put it back"))
        for part, names, parts in (
            ("components", list(config.get("components", {})), 2),
            ("data", ["tokenizer", "cache", "pictures"], 1),
            ("method", ["targets"], 1),
        ):
            for name in names:
                place = config.get(part, {}).get(name)
                if place and isinstance(place, str):
                    config[part][name] = component.moved(place, workdir, parts)
        return config.lock()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); put it back") from error


def write_results(
    workdir: str, results: dict[str, dict], replaced: Callable[[str, dict], bool] = lambda name, result: False
) -> str:
    """Merges `results` into workdir/results.json, which is replaced whole; returns its path.

    Args:
      replaced: (name, result) -> whether one from before goes though nothing of its name has come.
    """
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "results.json")
    folder = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two splits may be measured at the same time
        merged = {name: r for name, r in read_results(workdir).items() if not replaced(name, r)}
        staging = path + ".incomplete"
        with open(staging, "w") as f:
            json.dump(merged | as_json(results), f, indent=2)
        os.replace(staging, path)
    finally:
        os.close(folder)
    return path


def as_json(results: dict[str, dict]) -> dict[str, dict]:
    """Values that are no number as text: JSON has no words for them."""
    found = {name: result.get("value") for name, result in results.items()}
    odd = {name: str(v) for name, v in found.items() if isinstance(v, float) and not math.isfinite(v)}
    return results | {name: results[name] | {"value": text} for name, text in odd.items()}


def read_results(workdir: str) -> dict[str, dict]:
    """What was measured before; raises UserError if that is damaged."""
    path = os.path.join(workdir, "results.json")
    return json_files.read(path, "put it back or take it away") if os.path.exists(path) else {}


def evaluate(config: ConfigDict, workdir: str, out: str = "", split: str = "") -> dict[str, dict]:
    """Restores the newest checkpoint of `workdir` and measures it; the results are returned, and merged into
    results.json in `out`, which is `workdir` unless given.

    Args:
      split: measure on this one, in place of config.data.eval_split; the results' names begin with it.
    """
    validate(config, jax.device_count())
    if split:
        config = ConfigDict(config.to_dict())
        config.data.eval_split = split
    read_results(out or workdir)  # damage is told before hours of measuring
    use_compilation_cache(config, workdir)
    checkpoints = Checkpoints(workdir, read_only=True) if os.path.isdir(workdir) else None
    step = checkpoints and checkpoints.latest()
    if step is None:
        raise UserError(f"no checkpoint under {workdir}/checkpoints; train first")
    setup = prepare(config)
    refuse_others(config, contents(setup), workdir)
    state, _ = checkpoints.restore(step, setup.abstract)
    folder = out or workdir
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f"evaluate.{inputs(setup, step)}.partial.npz")
    if jax.process_index() == 0:
        forget(folder, [partial])
    results = evaluate_state(setup, state, setup.load_frozen(), partial)
    if split:
        results = {f"{split}/{name}": result for name, result in results.items()}
    if jax.process_index() == 0:

        def of_this(name: str, result: dict) -> bool:
            """Whether a figure is of this split but of another step: beside these it would mislead."""
            own = name.startswith(f"{split}/") if split else "/" not in name
            return own and result.get("step") not in (0, step)  # 0 is of images

        write_results(folder, results, of_this)
        if os.path.exists(partial):
            os.remove(partial)
    return results


def forget(folder: str, kept: Iterable[str]) -> None:
    """Takes away what evaluations of other steps or settings left, not today's: that may be another's."""
    for path in glob(os.path.join(escape(folder), "evaluate.*.partial.npz")):
        with contextlib.suppress(FileNotFoundError):  # another's end
            if path not in kept and time.time() - os.path.getmtime(path) > 24 * 3600:
                os.remove(path)


def inputs(setup: Setup, step: int) -> str:
    """A name for all that the measurements of a checkpoint depend on."""
    hashes = {name: about.content_hash for name, about in setup.components.items()}
    said = json.dumps([step, setup.config.to_dict(), hashes], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def evaluate_images(values: flags.FlagValues) -> dict[str, dict]:
    """Measures --images; the results are returned, and merged into results.json in --out."""
    out = cli.required(values, "out")
    if not values.features:
        raise UserError(
            "--features=<component> is needed: FID-Inception's, made by launch.convert --kind=rcg.inception, "
            f"or an encoder's, such as <workdir of moco_v3>/component (then {ENCODER_SPACE})"
        )
    fields = ("image_size", "batch_size", "keep", "save_statistics")
    results = compare(
        values.images,
        values.reference,
        values.features,
        out,
        source=values.reference_source,
        split=values.reference_split,
        column=values.reference_column or "image",
        **{name: values[name].value for name in fields},
    )
    if jax.process_index() == 0:
        write_results(out, results)
    return results


OF_IMAGES = ("reference", "reference_source", "reference_split", "reference_column", "features")
OF_IMAGES += ("image_size", "keep", "save_statistics")


def refuse_unused(values: flags.FlagValues) -> None:
    """Raises UserError: a flag is given that would not be heeded."""
    others = ("workdir", "split", "config") if values.images else OF_IMAGES
    for name in others:
        if values[name].value:
            what = "measures a run, but --images=... other images" if values.images else "needs --images=..."
            raise UserError(f"--{name} {what}; see --help")


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("workdir", None, "the run to measure", flag_values=values)
        define_in = {"flag_values": values}
        flags.DEFINE_string("out", "", "folder for results.json; the workdir if not given", **define_in)
        flags.DEFINE_string("split", "", "of the data, such as test; the config's if not given", **define_in)
        flags.DEFINE_string("images", "", "measure these, a folder or npz, and no run", **define_in)
        flags.DEFINE_string("reference", "", "what to hold --images against", **define_in)
        flags.DEFINE_string(
            "reference_source", "", "parquet, tfds: --reference is such a data set", **define_in
        )
        flags.DEFINE_string("reference_split", "", "of the data set", **define_in)
        column = "of the data set's pictures; image if not given"
        flags.DEFINE_string("reference_column", "", column, **define_in)
        flags.DEFINE_string("features", "", "component of FID-Inception, or of an encoder", **define_in)
        flags.DEFINE_integer("image_size", 0, "resize and crop images to this; 0: as they are", **define_in)
        flags.DEFINE_integer("batch_size", 64, "images at once", lower_bound=1, **define_in)
        flags.DEFINE_integer("keep", 0, "images of each set for precision and recall", **define_in)
        flags.DEFINE_string("save_statistics", "", "npz to keep the statistics of --images in", **define_in)
        processes.define(values)

    values = cli.parse(argv, define, __doc__)
    processes.join(values)
    refuse_unused(values)
    if values.images:
        results = evaluate_images(values)
    else:
        workdir = cli.required(values, "workdir")
        results = evaluate(values.config or saved_config(workdir), workdir, values.out, values.split)
    if not processes.first():
        return 0
    if in_encoder_space(results):
        print(ENCODER_SPACE)
    for name, result in sorted(results.items()):
        print(f"{name:32} {result['value']:.6g}  ({result.get('samples', '?')} samples)")
    return 0


if __name__ == "__main__":
    cli.run(main)
