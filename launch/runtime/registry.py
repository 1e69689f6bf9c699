"""The names a config may use: experiments and sources of records. Imported when first asked for."""

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from rcg.errors import UserError

# config.experiment -> module:function, `(config, components, source) -> Experiment`
EXPERIMENTS = {
    "rcg.moco_v3": "rcg.experiments.moco_v3:experiment",
    "rcg.vqgan": "rcg.experiments.vqgan:experiment",
    "rcg.kmeans": "rcg.experiments.kmeans:experiment",
    "rcg.rdm": "rcg.experiments.rdm:experiment",
    "rcg.mage": "rcg.experiments.mage:experiment",
    "chef_fusion.opt": "chef_fusion.experiments.opt:experiment",
    "chef_fusion.clip": "chef_fusion.experiments.clip:experiment",
    "chef_fusion.vae": "chef_fusion.experiments.vae:experiment",
    "chef_fusion.stable_diffusion": "chef_fusion.experiments.stable_diffusion:experiment",
    "chef_fusion.recipe_rdm": "chef_fusion.experiments.recipe_rdm:experiment",
    "chef_fusion.judge": "chef_fusion.experiments.judge:experiment",
    "chef_fusion.joints": "chef_fusion.experiments.joints:experiment",
}

# config.data.source -> module:function, `(config.data, split) -> Source`
SOURCES = {
    "folder": "rcg.data:open_source",
    "parquet": "rcg.data:open_source",
    "tfds": "rcg.data:open_source",
    "array_record": "rcg.data:open_source",
    "kitchen": "chef_fusion.kitchen:open_source",
    "recipe1m": "chef_fusion.data:open_recipes",
    "recipe_tsv": "chef_fusion.data:open_recipes",
    "recipe_jsonl": "chef_fusion.data:open_recipes",
    "recipes_kitchen": "chef_fusion.kitchen_sets:open_recipes",
    "kitchen_talk": "chef_fusion.kitchen_sets:open_recipes",
    "kitchen_texts": "chef_fusion.kitchen_sets:open_texts",
    "texts": "chef_fusion.texts:open_texts",
}

# a component's kind -> where its sharding rules are, ordered (regex on the path, axis of the mesh for each of
# the array's); the first that matches counts. Trained or frozen, a network is split alike.
SHARDING = {
    "rcg.encoder": "rcg.layers",
    "rcg.mage": "rcg.layers",
    "rcg.rdm": "rcg.rdm",
    "rcg.vqgan": "rcg.pixel.vqgan",
    "opt": "chef_fusion.backbones.opt",
    "clip": "chef_fusion.backbones.clip",
    "vae": "chef_fusion.backbones.stable_diffusion.vae",
    "stable_diffusion": "chef_fusion.backbones.stable_diffusion.pipeline",
    "chef_fusion": "chef_fusion.model",
}


def sharding_rules(kind: str) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """How the arrays of a kind of component are split; networks too small for rules have none."""
    return importlib.import_module(SHARDING[kind]).SHARDING_RULES if kind in SHARDING else ()


def resolve(table: dict[str, str], name: str, field: str) -> Callable[..., Any]:
    """What `name` stands for.

    Raises:
      UserError: with the nearest name there is.
    """
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else f"; there are: {', '.join(table)}"
        raise UserError(f'{field} = "{name}" is unknown{hint}')
    module, function = table[name].split(":")
    return getattr(importlib.import_module(module), function)
