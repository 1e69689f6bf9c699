"""Published ChefFusion and GILL checkpoints <-> components (chef_fusion.md, section 2).

A pruned file holds the trained arrays alone; a training checkpoint has `module.` before every name and all
rows of the embeddings. GILL's has a retrieval head besides: it is kept, and not used.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from chef_fusion import model
from rcg import json_files
from rcg.component import Component
from rcg.errors import UserError
from rcg.torch_weights import Rule, export_variables, import_variables

GILL_ONLY = (
    "model.logit_scale",
    "model.ret_text_hidden_fcs.0.model.bias",
    "model.ret_text_hidden_fcs.0.model.weight",
    "model.visual_fc.bias",
    "model.visual_fc.weight",
)
ROWS = "model.input_embeddings.weight"
MODES = ("gill_mapper", "chefFusion_mapper")  # one and the same under two names


def read_arguments(folder: str) -> dict[str, Any]:
    """What model_args.json beside a checkpoint says of the architecture; nothing if it is not there.

    Raises:
      UserError: damaged, or of a mapper that this is not.
    """
    path = os.path.join(folder, "model_args.json")
    if not os.path.exists(path):
        return {}
    held = json_files.read(path, "put it back or take it away")
    try:
        mode, layers = held.get("text_fc_mode", MODES[0]), held.get("text_emb_layers", [-1])
        first = [int(i) for i in held.get("gen_token_idx") or held.get("retrieval_token_idx") or []]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); put it back or take it away") from error
    if mode not in MODES or layers != [-1]:
        raise UserError(f"{path}: text_fc_mode {mode} on layers {layers}; supported is {MODES[0]} on [-1]")
    if first and first != list(range(first[0], first[0] + len(first))):
        raise UserError(f"{path}: the ids of the [IMG] tokens, {first}, do not follow one another")
    return {"image_first": first[0], "num_image_tokens": len(first)} if first else {}


def write_arguments(folder: str, component: Component) -> None:
    """model_args.json, which the published code wants beside a checkpoint: what the joints tell, and how they
    were trained. What else is in such a file stays; which OPT and CLIP they join ("opt_version" and
    "visual_encoder", names on the hub) has to be added where it is not."""
    path = os.path.join(folder, "model_args.json")
    held = json_files.read(path, "put it back or take it away") if os.path.exists(path) else {}
    fields = component.architecture
    tokens = list(range(fields["image_first"], fields["image_first"] + fields["num_image_tokens"]))
    about = {
        "n_visual_tokens": fields["num_visual_tokens"],
        "gen_emb_dim": fields["out_dim"],
        "text_emb_layers": [-1],
        "text_fc_mode": MODES[0],
        "num_tokens": len(tokens),
        "num_clip_tokens": fields["num_outputs"],
        "gen_token_idx": tokens,
        "retrieval_token_idx": tokens,
        "freeze_lm": True,
        "freeze_vm": True,
        "share_ret_gen": True,
    }
    with open(path + ".incomplete", "w", encoding="utf-8") as f:
        json.dump(held | about, f, indent=2)
    os.replace(path + ".incomplete", path)


def convert(
    arrays: Mapping[str, np.ndarray], source: str, architecture: Mapping[str, Any] | None = None
) -> Component:
    """The trained joints of a published checkpoint.

    Args:
      source: what to call the file. architecture: fields that shapes do not tell: image_first, num_heads.

    Raises:
      UserError: whatever is missing, unused or misshapen.
    """
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    own = dict(arrays)
    given = dict(architecture or {})
    for name, value in given.items():
        if name not in model.FIELDS:
            raise UserError(f"--architecture: no field '{name}'; there are {', '.join(model.FIELDS)}")
        if not isinstance(value, int) or (value < 1 and name != "tied"):
            raise UserError(f"--architecture: {name}={value!r} is not a whole number above 0")
    try:
        fields = model.architecture_of(own)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        names = ", ".join(list(own)[:4])
        raise UserError(
            f"{source} does not hold ChefFusion's joints ({error} is missing or misshapen); its first names "
            f"are: {names}"
        ) from error
    fields |= given
    kept = given.get("num_image_tokens", 8)
    if fields["num_image_tokens"] != kept or len(own[ROWS]) != kept:  # all rows of a training checkpoint
        if len(own[ROWS]) < kept:
            raise UserError(f"{source}: {ROWS} has {len(own[ROWS])} rows, fewer than the {kept} [IMG] tokens")
        if len(own[ROWS]) > kept and "image_first" not in given:
            fields["image_first"] = len(own[ROWS]) - kept
        own[ROWS] = own[ROWS][-kept:]
        fields["num_image_tokens"] = kept
    pooled = own["model.visual_embeddings.weight"].shape[1]
    fields["pooled_dim"] = pooled
    left = {name: own.pop(name) for name in GILL_ONLY if name in own}
    try:
        like = model.abstract_variables(fields, pooled)
    except TypeError as error:
        raise UserError(f"--architecture: {error}") from error
    variables = import_variables(own, model.rules(fields), like, source, keep_half=True)
    if left:
        table = [Rule(f"published/{name}", name) for name in left]
        shapes = {"published": {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in left.items()}}
        variables |= import_variables(left, table, shapes, source)
    return Component("chef_fusion", fields, variables, {"source": source})


def publish(component: Component) -> dict[str, np.ndarray]:
    """A component's arrays under the published names, as a pruned checkpoint has them.

    Raises:
      UserError: joints that the published code does not have.
    """
    if not component.architecture.get("tied", True):
        raise UserError("the published layout has no rows of the head apart from the embeddings (tied=False)")
    arrays = export_variables(component.variables, model.rules(component.architecture))
    kept = component.variables.get("published", {})
    return arrays | {name: np.asarray(array) for name, array in kept.items()}
