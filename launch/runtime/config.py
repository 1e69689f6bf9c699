"""A run's config: checked before any device work, saved beside the run, compared on resume."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.runtime import registry
from launch.runtime.mesh import mesh_shape
from launch.runtime.optimizer import DECAY, NAMES, SCHEDULES
from rcg import json_files
from rcg.errors import UserError
from rcg.layers import REMAT_POLICIES

# How a run runs: nothing that it computes depends on these.
RUNNING = (
    r"mesh\..*|compute\.(attention|scan_layers|remat)|profile\..*|compilation_cache|log_steps|panel_steps|"
    r"evaluate_steps|checkpoint_steps|keep_checkpoints|data\.pictures"
)
# What a field that an older version did not have was in its runs; one that is not named here: off.
BEFORE = {"optimizer.name": "adamw", "optimizer.muon_scale": 1.0}
# What is measured of a run, and the sampling it is measured with: training does not read these.
MEASURING = r"method\.eval_.*|data\.(max_eval_records|eval_split)"
SAMPLING = {
    "rcg.rdm": r"method\.(rdm_steps|eta|ddim_end)",
    "rcg.mage": (
        r"method\.(temperature|cfg_scale|mage_steps|rdm_steps|eta|ddim_end|reference)|"
        r"components\.(rdm|features)"
    ),
    "chef_fusion.recipe_rdm": r"method\.(rdm_steps|eta|ddim_end)",
    "chef_fusion.stable_diffusion": r"method\.(sample_steps|scheduler|cfg_scale)",
    "chef_fusion.joints": (
        r"method\.(sample_steps|sample_size|scheduler|cfg_scale|rcg_.*)|"
        r"components\.(judge|rdm|mage|tokenizer)"
    ),
}


def decides_training(experiment: str, field: str) -> bool:
    """Whether the trained network depends on this field of the config, flat: "method.temperature"."""
    others = "|".join(filter(None, (RUNNING, MEASURING, SAMPLING.get(experiment))))
    return not re.fullmatch(others, field)


def may_change(experiment: str, field: str) -> bool:
    """Whether a resumed run may change this field: its length, and what does not decide training. Means are
    logged over `log_steps`, which a resumed run keeps so that its metrics are those of one in one piece."""
    return field == "total_steps" or (field != "log_steps" and not decides_training(experiment, field))


def measured_with(config: ConfigDict) -> dict[str, Any]:
    """The fields, flat, that change what is measured of a network, and not the network."""
    flat = flatten(config.to_dict())
    running = re.compile(RUNNING + r"|components\..*")
    return {
        k: v
        for k, v in flat.items()
        if not (decides_training(config.experiment, k) or k == "total_steps" or running.fullmatch(k))
    }


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b": value}, tuples as lists, as JSON gives them back."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def put(nested: dict[str, Any], field: str, value: Any) -> None:
    """Sets "a.b" in a nested dict, made where it is not there."""
    *path, last = field.split(".")
    for key in path:
        nested = nested.setdefault(key, {})
    nested[last] = value


def validate(config: ConfigDict, num_devices: int, processes: int = 0) -> None:
    """Checks across fields, for so many devices and processes; 0: as many as there are.

    Raises:
      UserError: naming the field, both numbers, and what would do.
    """
    if "experiment" not in config:
        kind = "launch.pipeline" if "order" in config else "launch.sweep" if "members" in config else ""
        raise UserError(f"this config is of no experiment{f'; it is for {kind}' if kind else ''}")
    registry.resolve(registry.EXPERIMENTS, config.experiment, "config.experiment")
    if "data" in config and config.data.source not in registry.SOURCES:
        registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    for name in ("batch_size", "total_steps", "log_steps", "checkpoint_steps", "keep_checkpoints"):
        if config[name] < 1:
            raise UserError(f"config.{name} is {config[name]}, must be at least 1")
    parts = config.optimizer.accumulation_steps
    if parts < 1:
        raise UserError(f"config.optimizer.accumulation_steps is {parts}, must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed is {config.seed}, must be in 0..{2**32 - 1}")
    data, fsdp, tensor = mesh_shape(config.mesh, num_devices)
    processes = processes or jax.process_count()
    if data * fsdp % processes:  # each reads rows of its own
        raise UserError(
            f"config.mesh.tensor = {tensor} leaves {data * fsdp} shards of a batch for {processes} "
            "processes; make it at most the devices of one process"
        )
    shards = data * fsdp * parts
    if config.batch_size % shards:
        near = max(config.batch_size // shards, 1) * shards
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by {shards} (data x fsdp shards x "
            f"accumulation steps); try {near} or {near + shards}"
        )
    choices = {
        "compute.dtype": ("auto", "float32", "bfloat16", "float16"),
        "compute.attention": ("auto", "einsum", "mapped", "fused"),
        "compute.remat": tuple(REMAT_POLICIES),
        "dropout_rng": ("threefry", "rbg"),
        "optimizer.name": NAMES,
        "optimizer.schedule": SCHEDULES,
        "optimizer.decay": DECAY,
    }
    flat = flatten(config.to_dict())
    for name, allowed in choices.items():
        if flat[name] not in allowed:
            raise UserError(f'config.{name} = "{flat[name]}" is not one of {", ".join(allowed)}')
    if config.optimizer.schedule == "step" and config.optimizer.decay_steps < 1:
        raise UserError('config.optimizer.schedule "step" needs decay_steps: after how many the rate falls')
    if not 0 <= config.ema.decay < 1:
        raise UserError(f"config.ema.decay is {config.ema.decay}, must be in [0, 1)")
    if config.optimizer.warmup_steps > config.total_steps:
        raise UserError(
            f"config.optimizer.warmup_steps {config.optimizer.warmup_steps} is more than "
            f"config.total_steps {config.total_steps}"
        )


def folder_hash(folder: str, files: Collection[str]) -> str:
    """Of the names and contents of those of these files that are in a folder."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if os.path.isfile(os.path.join(folder, name)):
            with open(os.path.join(folder, name), "rb") as f:
                digest.update(f"{name}\0".encode() + hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def contents_of(workdir: str) -> dict[str, str]:
    """What the networks, tokenizers and caches were that a run began with: field -> hash."""
    path = os.path.join(workdir, "components.json")
    return json_files.read(path, "put it back or use another --workdir") if os.path.exists(path) else {}


def refuse_others(config: ConfigDict, contents: Mapping[str, str], workdir: str) -> None:
    """Raises UserError if something that a run was trained on is another now."""
    before, flat = contents_of(workdir), flatten(config.to_dict())
    for field in sorted(before.keys() & contents.keys()):
        if before[field] != contents[field] and not may_change(config.experiment, field):
            name, was, now = field.rpartition(".")[2], before[field][:12], contents[field][:12]
            raise UserError(
                f"{workdir} was trained on another {name} than is now at {flat[field]} (content {was}, not "
                f"{now}); put that back, or train anew in another folder"
            )


def save_or_compare(
    config: ConfigDict,
    workdir: str,
    contents: Mapping[str, str] | None = None,
    write: bool = True,
    begun: bool = True,
) -> None:
    """Saves the resolved config in a new workdir; in one where a run has `begun` refuses a config that
    computes something else. Without `write` it only compares.

    Args:
      contents: fields that are paths of networks, tokenizers and caches -> hashes of what is there, kept in
        components.json: such a field is the same where that is, wherever it lies.

    Raises:
      UserError: with the differing fields, old -> new.
    """
    path, beside = os.path.join(workdir, "config.json"), os.path.join(workdir, "components.json")
    contents = dict(contents or {})
    new = flatten(config.to_dict())
    if begun and os.path.exists(path):
        advice = "put it back or use another --workdir"
        old = flatten(json_files.read(path, advice))
        before = contents_of(workdir)
        for field in before.keys() & contents.keys():
            if before[field] == contents[field]:
                old[field] = new[field]
        refuse_others(config, {k: v for k, v in contents.items() if old.get(k) == new.get(k)}, workdir)
        differing = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        # a field that the run's version did not have
        differing = [k for k in differing if k in old or new[k] not in ("", 0, None, BEFORE.get(k))]
        fixed = [k for k in differing if not may_change(config.experiment, k)]
        if fixed:
            diff = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in fixed)
            raise UserError(
                f"{workdir} holds a run with another config ({diff}); use another --workdir, "
                "or the config it was started with"
            )
    for place, held in ((path, config.to_dict()), (beside, contents)) if write else ():
        with open(place + ".incomplete", "w") as f:
            json.dump(held, f, indent=2)
        os.replace(place + ".incomplete", place)
