"""Published backbones <-> components: OPT, CLIP, Stable Diffusion, and its autoencoder alone, as transformers
and diffusers keep them.

Every array of a folder must have its place in the network that config.json describes, and every place its
array; a config.json that asks for something this code does not compute is refused.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from chef_fusion.backbones import clip, folders, opt
from chef_fusion.backbones.stable_diffusion import pipeline, schedulers, unet, vae
from rcg.component import Component
from rcg.errors import UserError
from rcg.torch_weights import Rule, derive, export_variables, import_variables

Place = Callable[[str, np.ndarray], Any]
# code, and what files are called, of networks with a folder of their own and of a Stable Diffusion's parts
NETWORKS: dict[str, tuple[ModuleType, str]] = {
    "opt": (opt, "model"),
    "clip": (clip, "model"),
    "vae": (vae, "diffusion_pytorch_model"),
}
PARTS: dict[str, tuple[ModuleType, str]] = {
    "text_encoder": NETWORKS["clip"],
    "unet": (unet, "diffusion_pytorch_model"),
    "vae": NETWORKS["vae"],
}
KINDS = (*NETWORKS, "stable_diffusion")
SCHEDULER = os.path.join("scheduler", "scheduler_config.json")


def build(kind: str, architecture: Mapping[str, Any], **options: Any) -> Any:
    """The module, or modules, of a component's architecture."""
    module = pipeline if kind == "stable_diffusion" else NETWORKS[kind][0]
    return module.build(architecture, **options)


def _diffusers_rules(module: ModuleType, architecture: Mapping[str, Any]) -> list[Rule]:
    def rename(path: str) -> str:
        path = re.sub(r"(?<!linear)_(\d+)(?=/|$)", r".\1", path)
        return path.replace("/", ".")

    return derive(module.abstract_variables(architecture), rename)


def rules(module: ModuleType, architecture: Mapping[str, Any]) -> list[Rule]:
    """The table of published names of one network."""
    own = getattr(module, "rules", None)
    return own(architecture) if own else _diffusers_rules(module, architecture)


def check_config(config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """Raises UserError if a field of config.json says something that this code does not compute."""
    for name, allowed in supported.items():
        if name in config and config[name] not in allowed:
            raise UserError(
                f"{source}: {name} is {config[name]!r}; supported is {' or '.join(map(repr, allowed))}"
            )


def _arrays(module: ModuleType, weights: Mapping[str, np.ndarray], source: str) -> Mapping[str, np.ndarray]:
    """The arrays under the names that `rules` know, less buffers and copies."""
    names = module.canonical(list(weights)) if hasattr(module, "canonical") else {n: n for n in weights}
    current: dict[str, str] = {}
    for old, new in names.items():
        if new.startswith("="):  # a copy
            twin = next((o for o, n in names.items() if n == new[1:]), None)
            if twin is None or not np.array_equal(weights[old], weights[twin]):
                raise UserError(f"{source}: {old} is not the same as {new[1:]}, to which it should be tied")
        elif new in current:
            raise UserError(f"{source} holds {new} twice: {current[new]} and {old}")
        elif new:
            current[new] = old
    return folders.Renamed(weights, current)


def import_folder(
    module: ModuleType, folder: str, place: Place | None = None, keep_half: bool = True
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """One network of a folder: (architecture, variables, config.json).

    Args:
      place: see `import_variables`.

    Raises:
      UserError: whatever does not fit.
    """
    config = folders.read_json(os.path.join(folder, "config.json"))
    for about in (config, *(v for v in config.values() if isinstance(v, dict))):
        check_config(about, getattr(module, "SUPPORTED", {}), os.path.join(folder, "config.json"))
    arrays = _arrays(module, folders.open_weights(folder), folder)
    try:
        architecture = module.architecture_of(config, list(arrays))
        like, table = module.abstract_variables(architecture), rules(module, architecture)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: config.json describes no network of this kind ({error})") from error
    variables = import_variables(arrays, table, like, folder, keep_half=keep_half, place=place)
    return architecture, variables, config


def read(kind: str, folder: str, place: Place | None = None) -> Component:
    """The component of a published folder.

    Args:
      kind: one of KINDS.
      place: ("params/...", array) -> what to hold of it; by default the array, read when used.

    Raises:
      UserError: whatever does not fit: nothing is guessed and nothing left out.
    """
    if kind in NETWORKS:
        architecture, variables, config = import_folder(NETWORKS[kind][0], folder, place)
        return Component(kind, architecture, variables, {"source": folder, "config": config})
    if kind != "stable_diffusion":
        raise UserError(f"--kind={kind} is unknown; there are: {', '.join(KINDS)}")
    scheduler_file = os.path.join(folder, SCHEDULER)
    scheduler = folders.read_json(scheduler_file, True) if os.path.exists(scheduler_file) else {}
    check_config(scheduler, schedulers.SUPPORTED, scheduler_file)
    scheduler.pop("lambda_min_clipped", None)  # -Infinity, which it is where it is left out
    kept = {k: v for k, v in scheduler.items() if k in schedulers.FIELDS}
    architecture: dict[str, Any] = {"scheduler": kept}
    params, configs = {}, {}
    for part, (module, _) in PARTS.items():
        inside = os.path.join(folder, part)
        if not os.path.isdir(inside):
            raise UserError(f"{folder} has no folder {part}; a Stable Diffusion has {', '.join(PARTS)}")
        prefixed = place and (
            lambda name, array, p=part: place(name.replace("params/", f"params/{p}/", 1), array)
        )
        fields, variables, configs[part] = import_folder(module, inside, prefixed)
        architecture[part], params[part] = fields, variables["params"]
    pipeline.build(architecture)
    provenance = {"source": folder, "config": configs | {"scheduler": scheduler}}
    return Component(kind, architecture, {"params": params}, provenance)


def load(kind: str, source: str, sharding: Any = None, dtype: Any = None) -> Component:
    """A published network straight onto devices, an array at a time: never a second copy in host memory.

    Args:
      source: a folder, or owner/name on the Hugging Face hub.
      sharding: where arrays go: one for all, or our name ("params/...") and shape -> one; the first device
        by default.
      dtype: what floating-point arrays are held in; the file's by default.
    """
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(name: str, array: np.ndarray) -> jax.Array:
        own = sharding(name, array.shape) if callable(sharding) else sharding
        to = array.dtype if dtype is None else dtype
        if own.is_fully_addressable and own.num_devices == 1:
            return jax.block_until_ready(jax.device_put(np.asarray(array, to, order="C"), own))
        parts: dict[str, np.ndarray] = {}  # devices that hold the same part share its copy

        def part(index: Any) -> np.ndarray:
            if str(index) not in parts:
                parts[str(index)] = np.asarray(array[index], to, order="C")
            return parts[str(index)]

        return jax.make_array_from_callback(array.shape, own, part)

    return read(kind, fetch(kind, source), place)


def fetch(kind: str, source: str) -> str:
    """The local folder of a folder or hub id; of a Stable Diffusion only what is used of it."""
    subfolders = (*PARTS, "scheduler", "tokenizer", "") if kind == "stable_diffusion" else ("",)
    return folders.fetch(source, subfolders)


def _export(module: ModuleType, architecture: Any, params: Any, config: Any) -> tuple[dict, dict]:
    arrays = export_variables({"params": params}, rules(module, architecture))
    fields = {} if module is clip else dict(architecture)
    fields.pop("attention_blocks", None)
    about = module.config_of(architecture) | fields
    return {**config, **about}, arrays


def write(component: Component, folder: str) -> int:
    """Writes a component in the layout it is published in; `read` gives the same arrays back, bit for bit.

    Returns:
      How many arrays.

    Raises:
      UserError: a component of another kind.
    """
    fields, params = component.architecture, component.variables["params"]
    config = component.provenance.get("config", {})
    if component.kind in NETWORKS:
        module, stem = NETWORKS[component.kind]
        about, arrays = _export(module, fields, params, config)
        folders.write(folder, about, arrays, stem)
        return len(arrays)
    if component.kind != "stable_diffusion":
        raise UserError(f"a component of kind {component.kind} is not one of {', '.join(KINDS)}")
    count = 0
    for part, (module, stem) in PARTS.items():
        about, arrays = _export(module, fields[part], params[part], config.get(part, {}))
        folders.write(os.path.join(folder, part), about, arrays, stem)
        count += len(arrays)
    scheduler = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": False}
    scheduler |= schedulers.DEFAULTS | config.get("scheduler", {}) | fields.get("scheduler", {})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    for name, held in ((SCHEDULER, scheduler), ("model_index.json", index)):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(held, f, indent=2)
    return count
