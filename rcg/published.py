"""The official code's files of weights <-> components (rcg.md, section 5).

A file may hold several networks: an RDM's has the raw weights, their EMA and the frozen encoder; MAGE's has
the frozen encoder, the tokenizer and leftovers of MAE. Any of them can be asked for. Whichever is, every
array of the file must belong to exactly one network that fits it, so that a file of another network or
another version is noticed at once.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcg import diffusion, encoders, inception, rdm
from rcg.component import Component
from rcg.errors import UserError
from rcg.pixel import lpips, mage, vqgan
from rcg.torch_weights import Rule, export_variables, import_variables

Arrays = Mapping[str, np.ndarray]
CODE: dict[str, ModuleType] = {
    "rcg.rdm": rdm,
    "rcg.mage": mage,
    "rcg.vqgan": vqgan,
    "rcg.encoder": encoders,
    "rcg.inception": inception,
    "rcg.lpips": lpips,
}
HOSTS = {"rcg.rdm": "model.diffusion_model.", "rcg.mage": "token_emb."}  # whose files hold others: their mark
EMBEDDED = {"rcg.rdm": ("rcg.encoder",), "rcg.mage": ("rcg.encoder", "rcg.vqgan")}  # which
PREFIXES = {"rcg.encoder": "pretrained_encoder.", "rcg.vqgan": "vqgan."}  # and under what names
ANY_HEADS = {"rcg.encoder": {"num_heads": 1}, "rcg.mage": {"num_heads": 1, "decoder_num_heads": 1}}
CLASSES = "cond_stage_model.embedding.weight"
WEIGHTS = ("ema", "raw")


def abstract_variables(kind: str, architecture: Mapping[str, Any]) -> Any:
    """Names, shapes and dtypes of a network's variables."""
    module = CODE[kind].build(architecture)
    key = jax.random.key(0)
    if kind == "rcg.rdm":
        inputs = jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
        return jax.eval_shape(module.init, key, *inputs)
    if kind == "rcg.mage":
        condition = {
            "representation": jnp.zeros((1, module.rep_dim)),
            "class": jnp.zeros(1, jnp.int32),
            "none": None,
        }[module.conditioning]
        noise = functools.partial(mage.draw_noise, module, batch_size=1)
        tokens = jnp.zeros((1, module.num_tokens), jnp.int32)
        return jax.eval_shape(lambda k: module.init(k, tokens, condition, noise(k)), key)
    if kind == "rcg.inception":
        return jax.eval_shape(module.init, key, jnp.zeros((1, 32, 32, 3)))
    if kind == "rcg.lpips":
        return jax.eval_shape(module.init, key, *jnp.zeros((2, 1, 16, 16, 3)))
    side = module.image_size if kind == "rcg.encoder" else 2 ** (len(module.ch_mult) - 1)
    return jax.eval_shape(module.init, key, jnp.zeros((1, side, side, 3)))


def _under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _host(kind: str, arrays: Arrays) -> str:
    """The kind of the network whose file this is: `kind`, or of the one in whose file that lies."""
    if _lies_within(kind, arrays):
        for host, mark in HOSTS.items():
            if any(name.startswith(mark) for name in arrays):
                return host
    return kind


def _lies_within(kind: str, arrays: Arrays) -> bool:
    return kind in PREFIXES and any(name.startswith(PREFIXES[kind]) for name in arrays)


def _split(host: str, kind: str, arrays: Arrays) -> dict[str, Arrays]:
    """Networks of a file, by kind, each one's arrays under the names of its rules. In a file of a host that
    is not known here only what lies under the prefix of `kind` is looked at."""
    inside = EMBEDDED.get(host, ())
    if not inside and _lies_within(kind, arrays):
        return {kind: _under(arrays, PREFIXES[kind])}
    parts = {other: _under(arrays, PREFIXES[other]) for other in inside}
    others = tuple(PREFIXES[other] for other in inside)
    parts[host] = {name: a for name, a in arrays.items() if not name.startswith(others)} if others else arrays
    if host == "rcg.inception":
        parts[host] = {name: a for name, a in arrays.items() if not name.endswith(inception.COUNTER)}
    elif host == "rcg.encoder":
        parts[host] = encoders.unwrap(arrays)
    elif host == "rcg.lpips":
        parts[host] = lpips.published(arrays)
    return {part: own for part, own in parts.items() if own or part in (kind, host)}


def _import(
    kind: str,
    arrays: Arrays,
    rules: Callable[[dict[str, Any]], list[Rule]],
    overrides: Mapping[str, Any],
    source: str,
    widen: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(architecture, variables) of exactly these arrays."""
    try:
        architecture = CODE[kind].architecture_of(arrays) | dict(overrides)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{source} does not hold a network of kind {kind} ({error} is missing or misshapen); its first "
            f"names are: {', '.join(list(arrays)[:4])}{_prefix_hint(arrays)}"
        ) from error
    untold = [name for name, value in architecture.items() if value is None]
    if untold:
        fields = ",".join(f"{name}=..." for name in untold)
        raise UserError(f"{source}: shapes do not tell {', '.join(untold)}; pass --architecture={fields}")
    try:
        like = abstract_variables(kind, architecture)
    except TypeError as error:
        raise UserError(f"--architecture: {error}") from error
    return architecture, import_variables(arrays, rules(architecture), like, source, widen)


def _prefix_hint(names: Iterable[str]) -> str:
    first = {name.split(".")[0] for name in names}
    return f'; each begins with "{first.pop()}.", see --strip_prefix' if len(first) == 1 else ""


def convert(
    kind: str,
    arrays: Arrays,
    source: str,
    *,
    architecture: Mapping[str, Any] | None = None,
    weights: str = "ema",
    widen: bool = False,
) -> Component:
    """One network of a published file.

    Args:
      kind: rcg.rdm, rcg.mage, rcg.vqgan, rcg.encoder, rcg.inception or rcg.lpips.
      arrays: the whole file's.
      source: what to call the file in errors and in the component's provenance.
      architecture: fields that shapes do not tell, such as num_heads.
      weights: "ema", as published samples are made with, or "raw"; of an RDM.
      widen: lets half-precision arrays in, as float32.

    Raises:
      UserError: listing every array that is missing, of another shape or dtype, or of no known network.
    """
    if kind not in CODE:
        raise UserError(f"--kind={kind} is unknown; there are: {', '.join(CODE)}")
    if weights not in WEIGHTS:
        raise UserError(f"--weights={weights} is not one of {', '.join(WEIGHTS)}")
    host = _host(kind, arrays)
    made, problems = None, []
    for part, own in _split(host, kind, arrays).items():
        wanted = part == kind
        fields = dict(architecture or {}) if wanted else ANY_HEADS.get(part, {})
        told = source if part == host else f"{source} ({PREFIXES[part].rstrip('.')})"
        try:
            found = _read(part, own, fields, told, weights if wanted else "raw", widen)
        except UserError as error:
            problems.append(str(error))
            continue
        if wanted:
            made = found
        del found  # networks that come along are checked, and then let go
    if problems or made is None:
        raise UserError("; ".join(problems) or f"{source} holds no network of kind {kind}")
    fields, variables = made
    provenance = {"source": source} | ({"weights": weights} if kind == "rcg.rdm" else {})
    provenance |= {"embedded": PREFIXES[kind].rstrip(".")} if _lies_within(kind, arrays) else {}
    return Component(kind, fields, variables, provenance)


def _read(
    kind: str, arrays: Arrays, fields: dict[str, Any], source: str, weights: str, widen: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(architecture, variables) of one network's own arrays."""
    take = functools.partial(_import, source=source, widen=widen)
    if kind == "rcg.rdm":
        buffers = _buffers(arrays, source)
        own = {name: a for name, a in arrays.items() if name not in buffers}
        raw = {name: a for name, a in own.items() if not name.startswith("model_ema.")}
        averaged = {name: a for name, a in own.items() if not name.startswith("model.")}
        labels = raw.pop(CLASSES, None)
        if "model.diffusion_model.res_blocks.0.context_layers.1.weight" in raw and labels is not None:
            raw[CLASSES] = labels
        else:
            averaged.pop(CLASSES, None)
            if labels is not None:
                buffers[CLASSES] = labels  # one row, which nothing reads
        fields, variables = take(kind, raw, rdm.rules, fields)
        sets = {"raw": variables}
        if len(averaged) > (CLASSES in averaged):
            like = abstract_variables(kind, fields)
            sets["ema"] = import_variables(averaged, rdm.ema_rules(fields), like, source, widen)
        if weights not in sets:
            raise UserError(f"{source} has no EMA weights (model_ema.*); pass --weights=raw")
        # what else the file holds goes along, so that it can be written again as it was
        others = {name: held["params"]["denoiser"] for name, held in sets.items() if name != weights}
        kept = {name.replace(".", "__"): np.asarray(a) for name, a in buffers.items()}
        return fields, dict(sets[weights]) | {"published": others | {"buffers": kept}}
    if kind == "rcg.mage":
        left = {name: a for name, a in arrays.items() if name in mage.LEFTOVERS}
        own = {name: a for name, a in arrays.items() if name not in left}
        fields, variables = take(kind, own, mage.rules, fields)
        if left:
            like = {"published": mage.leftover_shapes(fields, left)}
            table = [rule for rule in mage.leftover_rules() if rule.theirs in left]
            variables |= import_variables(left, table, like, source, widen)
        return fields, variables
    return take(kind, arrays, CODE[kind].rules, fields)


def _buffers(arrays: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """An RDM's buffers: the noise schedule, which must be ours, and the EMA's counters."""
    ours = diffusion.schedule(diffusion.betas())
    for name, table in ours.items():
        if name in arrays and not (
            arrays[name].shape == table.shape and np.allclose(arrays[name], table, rtol=1e-4, atol=1e-6)
        ):
            raise UserError(f"{source}: {name} is not the schedule of the published RDMs")
    counters = {"model_ema.decay", "model_ema.num_updates"}
    return {name: a for name, a in arrays.items() if name in ours or name in counters}


def publish(component: Component, frozen: Mapping[str, Component] | None = None) -> dict[str, np.ndarray]:
    """The published layout of a component: name -> array, the inverse of `convert`.

    An RDM's weights are written raw and as EMA, with the schedule and the EMA's counters: of an imported file
    all as they were, of one trained here the one set under both names.

    Args:
      frozen: components to embed as the official trainers do, by kind: the encoder, for MAGE the tokenizer.

    Raises:
      UserError: an architecture that the official code does not have.
    """
    kind, fields, variables = component.kind, component.architecture, component.variables
    if kind not in CODE:
        raise UserError(f"there is no published layout of a component of kind {kind}")
    if kind == "rcg.mage":
        fields = mage.resolve(fields)
    for other, part in (frozen or {}).items():
        if other not in EMBEDDED.get(kind, ()) or part.kind != other:
            raise UserError(f"a component of kind {part.kind} has no place in a file of kind {kind}")
    told = _unpublished(kind, fields)
    if told:
        raise UserError(f"there is no published layout of an {kind} with {told}")
    arrays = export_variables(variables, CODE[kind].rules(fields))
    if kind == "rcg.rdm":
        sets = {"raw": rdm.rules(fields), "ema": rdm.ema_rules(fields)}
        kept = variables.get("published", {})
        for name, rules in sets.items():
            other = {"denoiser": kept[name]} if name in kept else {}
            arrays |= export_variables({"params": {**variables["params"], **other}}, rules)
        module = rdm.build(fields)
        arrays |= {name: np.asarray(table, np.float32) for name, table in module.tables().items()}
        arrays["model_ema.decay"] = np.array(0.9999, np.float32)
        arrays["model_ema.num_updates"] = np.array(0, np.int32)
        if not module.num_classes:
            arrays[CLASSES] = np.zeros((1, module.context_dim), np.float32)
        for name, array in kept.get("buffers", {}).items():
            arrays[name.replace("__", ".")] = np.asarray(array)
    if kind == "rcg.mage":
        kept = variables.get("published") or mage.fresh_leftovers(fields)
        rules = [rule for rule in mage.leftover_rules() if rule.theirs in kept]
        arrays |= export_variables({"published": kept}, rules)
    for other, part in (frozen or {}).items():
        arrays |= {PREFIXES[other] + name: a for name, a in publish(part).items()}
    return arrays


def _unpublished(kind: str, fields: Mapping[str, Any]) -> str:
    """What of an architecture the official code does not have, for an error; "" if it has all."""
    if kind == "rcg.rdm":
        if fields.get("condition_dim"):
            return "condition_dim: its conditions are classes only"
        ours, theirs = rdm.build(fields), rdm.RDM()
        names = ("beta_schedule", "beta_start", "beta_end", "timesteps")
    elif kind == "rcg.mage":
        ours, theirs = mage.build(fields), mage.Mage()
        names = ("class_slots",)
    else:
        return ""
    other = [
        f"{name}={getattr(ours, name)}" for name in names if getattr(ours, name) != getattr(theirs, name)
    ]
    return ", ".join(other)
