"""What sampling and chat share: ChefFusion from flags, answers as text on the screen and files beside it."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from chef_fusion import decoding, generate, recipes, tasks
from launch.runtime.images import save_png
from launch.runtime.setup import use_compilation_cache
from rcg import generate as chain
from rcg import json_files
from rcg.data import DecodeError, decode
from rcg.errors import UserError

OF_RECIPES = ("t2t", "t2ti", "t2i")  # tasks whose prompt may be what is known of a recipe


def define(values: flags.FlagValues) -> None:
    """The flags of ChefFusion's answers."""
    define_in = {"flag_values": values}
    for name in generate.KINDS:
        text = f"{name}: a component's folder, where --workdir does not say"
        flags.DEFINE_string(f"components.{name}", None, text, **define_in)
    decoder = "what paints; rcg: with an RDM that was trained on recipes"
    flags.DEFINE_enum("image_decoder", "stable_diffusion", list(generate.DECODERS), decoder, **define_in)
    flags.DEFINE_string("rcg", "", "folder of RCG's networks, where --workdir has none", **define_in)
    flags.DEFINE_float("image_temperature", 6.0, "of RCG's decoding", **define_in)
    flags.DEFINE_integer("max_words", 256, "tokens an answer may have", lower_bound=1, **define_in)
    flags.DEFINE_integer("top_k", 0, "choose among so many tokens, 0: all", lower_bound=0, **define_in)
    flags.DEFINE_float("top_p", 1.0, "choose among the fewest tokens of this probability", **define_in)
    flags.DEFINE_float("repetition_penalty", 1.0, "above 1: what was said is less likely", **define_in)
    pictures = "auto: as the model decides; force, forbid"
    flags.DEFINE_enum("pictures", "auto", list(tasks.PICTURES), pictures, **define_in)
    flags.DEFINE_float("image_bias", 0.0, "added to the logit of a picture: above 0 for more", **define_in)
    flags.DEFINE_float("image_scale", 1.0, "the published code's knob for pictures, above 1", **define_in)
    many = "an answer ends with its so many-th; text goes on between them"
    flags.DEFINE_integer("max_pictures", 1, many, lower_bound=1, **define_in)
    flags.DEFINE_integer("steps", 50, "denoising steps of a picture", lower_bound=1, **define_in)
    flags.DEFINE_string("scheduler", "pndm", "pndm, ddim, dpmpp, euler", **define_in)
    strength = "t2i: below 1 the picture begins from --image and changes it by so much"
    flags.DEFINE_float("strength", 1.0, strength, **define_in)
    flags.DEFINE_string("negative", "", "what a picture should not show", **define_in)
    flags.DEFINE_integer("height", 0, "of a picture, 0: the usual size", lower_bound=0, **define_in)
    flags.DEFINE_integer("width", 0, "of a picture, 0: the usual size", lower_bound=0, **define_in)


def load(values: flags.FlagValues, images: bool = True) -> generate.Chef:
    """The model that --workdir and the --components.* name."""
    named = {name: values[f"components.{name}"].value for name in generate.KINDS}
    paths = generate.find(values.workdir) if values.workdir else {}
    paths |= {name: path for name, path in named.items() if path}
    if not paths:
        raise UserError("--workdir=<a ChefFusion run's folder> is needed, or --components.<name>=<path>")
    if values.workdir:
        use_compilation_cache(ConfigDict({"compilation_cache": ""}), os.path.join(values.workdir, "answers"))
    rcg: Any = values.rcg or values.workdir or ""
    flagged = [name for name in chain.KINDS if f"components.{name}" in values]  # chat has no such flags
    others = {name: values[f"components.{name}"].value for name in flagged}
    others = {name: path for name, path in others.items() if path}
    if values.image_decoder != "rcg" and (others or values.rcg):
        raise UserError("--rcg and the components of RCG paint with --image_decoder=rcg only")
    if others:
        missing = {"rdm", "mage", "tokenizer"} - others.keys()
        rcg = (chain.find(rcg, conditional=True) if rcg and missing else {}) | others
    return generate.load(
        paths, dtype=values.dtype, images=images, image_decoder=values.image_decoder, rcg=rcg
    )


def settings(values: flags.FlagValues) -> tasks.Settings:
    """How an answer is made; without --temperature greedily, without --cfg_scale at 7.5 (RCG: at 0).

    Raises:
      UserError: a value out of its range, or choices among tokens where always the likeliest is taken.
    """
    sampling = decoding.sampling(
        values.temperature or 0.0, values.top_k, values.top_p, values.repetition_penalty
    )
    if not values.temperature and (values.top_k or values.top_p != 1):
        raise UserError("--top_k and --top_p choose among tokens: they need --temperature above 0")
    names = (
        "max_words",
        "pictures",
        "max_pictures",
        "image_bias",
        "image_scale",
        "steps",
        "scheduler",
        "negative",
    )
    given = {name: values[name].value for name in (*names, "strength", "height", "width")}
    scale = 7.5 if values.cfg_scale is None else values.cfg_scale
    rcg = {k: values[k].value for k in ("mage_steps", "rdm_steps", "eta", "ddim_end") if k in values}
    rcg |= {"cfg_scale": values.cfg_scale or 0.0, "temperature": values.image_temperature}
    return tasks.Settings(sampling=sampling, cfg_scale=scale, rcg=rcg, **given)


def read_photo(path: str) -> Image.Image:
    """Raises UserError: no such file, or not a picture."""
    try:
        with open(path, "rb") as f:
            return decode(f.read())
    except OSError as error:
        raise UserError(f"--image={path}: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"--image={path} can't be read as a picture ({error})") from error


def told(path: str, task: str) -> str:
    """The prompt that a JSON file of a recipe, or of some of its parts, stands for; an answer.json has one.

    Raises:
      UserError: it can't be read, is no recipe, or leaves nothing to write.
    """
    held = json_files.read(path, "name a file of a recipe")
    if isinstance(held.get("recipe"), dict):
        held = held["recipe"]
    lists = ("ingredients", "instructions")
    fit = all(isinstance(held[name], list) for name in lists if name in held)
    texts = [held.get("title", ""), *(text for name in lists if fit for text in held.get(name, []))]
    if not held or held.keys() - {"title", *lists} or not fit or not all(isinstance(t, str) for t in texts):
        raise UserError(
            f'--recipe={path} is no recipe: it needs "title", a text, "ingredients" and "instructions", '
            "lists of texts, or some of these, and nothing else"
        )
    if task != "t2i" and len(held) == 3:
        raise UserError(f"--recipe={path} leaves nothing to write; leave out what is to be written")
    return recipes.prompt(**held, asking=task != "t2i")


def shown(message: dict[str, Any], folder: str, prefix: str) -> tuple[str, list[str]]:
    """A message's text, pictures as [file]; they are written to the folder. (text, files)"""
    lines, files = [], []
    for part in message["content"]:
        if isinstance(part, np.ndarray):
            path = os.path.join(folder, f"{prefix}{len(files):02d}.png")
            save_png(path, part)
            files.append(path)
            lines.append(f"[{path}]")
        else:
            lines.append(part)
    return "\n".join(lines), files


def answer(values: flags.FlagValues, out: str, task: str, prompt: str, images: Sequence[str]) -> str:
    """Answers once; writes answer.json and pictures to `out`. Returns the text to show."""
    content: list[Any] = [read_photo(path) for path in images]
    if prompt:
        content.append(prompt)
    messages = [{"role": "user", "content": content}]
    tasks.prompt_of(messages, task)  # what is missing is said before anything is loaded
    how = settings(values)
    tasks.decision_of(task, how, can_paint=True)
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"--out={out} is a file; name a folder")
    chef = load(values, images=task not in ("t2t", "i2t") or values.pictures == "force")
    started = time.perf_counter()
    made = tasks.reply(chef, messages, jax.random.key(values.seed), task=task, settings=how)
    seconds = time.perf_counter() - started
    text, files = shown(made, out, "picture_")
    words = [part for part in made["content"] if isinstance(part, str)]
    about = {
        "task": task,
        "prompt": prompt,
        "images": list(images),
        "text": "\n".join(words),
        "recipe": made["recipe"],
        "pictures": files,
        "complete": made["complete"],
        "seed": values.seed,
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "seconds": round(seconds, 3),
    }
    write_json(os.path.join(out, "answer.json"), about)
    return text


def write_json(path: str, held: Any) -> None:
    """Raises UserError: it can't be written."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(held, f, indent=2, ensure_ascii=False)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror})") from error
