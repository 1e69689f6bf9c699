"""Makes images and recipes with trained networks: `python -m launch.sample --workdir=... --task=...`

RCG, --workdir a pipeline's folder:

    generate           --num images from noise
    class_conditional  --num images of each of --labels, from an RDM trained with labels
    reconstruct        --num images with the representation of each --image
    interpolate        --num images from the first --image's representation to the second's

ChefFusion, --workdir a run's or a pipeline's folder:

    i2t                a recipe from --image, or several of one dish
    it2t               an answer to --prompt about --image
    t2t, t2ti          goes on from --prompt, without or with a picture
    t2i                a picture of --prompt; with --strength=0.6 made from --image
    dialogue           an answer to --prompt; launch.chat holds a conversation

t2t, t2ti and t2i also take --recipe=<JSON file> in the place of --prompt: {"title": ...,
"ingredients": [...], "instructions": [...]} without what is to be written.

--components.rdm=... and so on name what is elsewhere. RCG's tasks write numbered PNGs to --out, all of them
in grid.png, and samples.json: what made them, and how long it took; ChefFusion's answer.json and pictures.
"""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from chef_fusion import tasks as chef
from launch.runtime import answering, cli, processes
from launch.runtime.images import grid, save_png, to_uint8
from launch.runtime.setup import use_compilation_cache
from rcg import generate as chain
from rcg.data import DecodeError, center_crop, decode, resize_short_side
from rcg.errors import UserError

NUM = {"generate": 16, "class_conditional": 8, "reconstruct": 4, "interpolate": 8}
NUMBERED = re.compile(r"\d{6}\.png")
GRID_IMAGES = 256  # at most this many in grid.png


def read_image(path: str, size: int) -> np.ndarray:
    """The file's centre, as training saw images: uint8 [size, size, 3].

    Raises:
      UserError: no such file, or not a picture.
    """
    try:
        with open(path, "rb") as f:
            return center_crop(resize_short_side(decode(f.read()), size), size)
    except OSError as error:
        raise UserError(f"--image={path}: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"--image={path} can't be read as a picture ({error})") from error


def component_paths(values: flags.FlagValues, task: str) -> dict[str, str]:
    """Component name -> path, from --workdir and the --components.* that override it."""
    named = {name: values[f"components.{name}"].value for name in chain.KINDS}
    named = {name: path for name, path in named.items() if path}
    found = {}
    if values.workdir:
        found = chain.find(values.workdir, class_conditional=task == "class_conditional")
        for name, path in named.items():  # a stage's name will do
            stage = os.path.join(values.workdir, path, "component")
            named[name] = stage if os.path.isdir(stage) and not os.path.exists(path) else path
    if not found and not named:
        raise UserError("--workdir=<a pipeline's folder> is needed, or --components.<name>=<path> for each")
    return found | named


def labels_for(model: chain.RCG, asked: list[str], num: int) -> np.ndarray:
    """`num` of each label; without --labels of the first ten classes there are."""
    try:
        labels = [int(label) for label in asked]
    except ValueError as error:
        raise UserError(f"--labels={','.join(asked)}: labels are numbers, as --labels=0,1,2") from error
    labels = labels or range(min(10, chain.num_classes(model)))
    if not len(labels):
        raise UserError("class_conditional needs an RDM trained with labels; these networks know no classes")
    return np.repeat(np.array(labels, np.int32), num)


def sample(
    model: chain.RCG, task: str, values: flags.FlagValues
) -> tuple[Iterable[tuple[int, Any]], Any, int]:
    """What the task makes. Of several processes each generates a share; the other tasks, which are small, are
    the first one's.

    Returns:
      (number of the first image, images [n, H, W, 3]) for each batch; what stands in front of each row of the
      grid, [rows, H, W, 3] or None; the grid's columns, 0 for as square as can be.
    """
    shard = jax.process_index(), jax.process_count()
    key, num = jax.random.key(values.seed), values.num or NUM[task]
    settings = {k: values[k].value for k in ("mage_steps", "temperature", "cfg_scale", "batch_size")}
    settings["batch_size"] = settings["batch_size"] or None
    if task in ("generate", "class_conditional"):
        settings |= {k: values[k].value for k in ("rdm_steps", "eta", "ddim_end")}
        labels = None if task == "generate" else labels_for(model, values.labels, num)
        total = num if labels is None else len(labels)
        batches = chain.generate_batches(model, key, total, labels, shard=shard, **settings)
        numbered = zip(chain.starts(total, settings["batch_size"], shard), batches, strict=True)
        return numbered, None, 0 if labels is None else num
    if not processes.first():
        return [], None, 0
    images = [read_image(path, chain.image_size(model)) for path in values.image]
    if task == "interpolate":
        if len(images) != 2:
            raise UserError(
                f"interpolate needs --image twice, got {len(images)}: --image=a.jpg --image=b.jpg"
            )
        made = chain.interpolate(model, key, *images, num, standardise=values.standardise, **settings)
        return [(0, made)], None, num
    if not images:
        raise UserError("reconstruct needs --image=<file>, one or more")
    made = chain.reconstruct(model, key, np.stack(images), num, **settings)
    return [(0, made.reshape(-1, *made.shape[2:]))], np.stack(images), num


def write(out: str, batches: Iterable[tuple[int, Any]]) -> int:
    """Numbered PNGs of all batches, each with its first number, in place of an earlier call's; how many."""
    made = iter(batches)
    begun = list(itertools.islice(made, 1))  # what is wrong with the settings is told before that is gone
    if processes.first():
        clear(out)
    processes.wait("cleared")
    count = 0
    for first, batch in itertools.chain(begun, made):
        for number, image in enumerate(to_uint8(jax.device_get(batch)), first):
            save_png(os.path.join(out, f"{number:06d}.png"), image)
            count += 1
    return count


def read_back(out: str, count: int) -> np.ndarray:
    """The first of the numbered PNGs, whichever process wrote them: uint8 [N, H, W, 3]."""
    paths = [os.path.join(out, f"{number:06d}.png") for number in range(min(count, GRID_IMAGES))]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def clear(out: str) -> None:
    """Takes away what an earlier call wrote, whole or in part, so that the folder holds this one's images
    only; and marks them as such.

    Raises:
      UserError: the folder can't be written to.
    """
    about = os.path.join(out, "samples.json")
    begun = about + ".incomplete"
    try:
        if os.path.exists(about) or os.path.exists(begun):
            for name in os.listdir(out):
                if NUMBERED.fullmatch(name) or name in ("grid.png", "samples.json"):
                    os.remove(os.path.join(out, name))
        os.makedirs(out, exist_ok=True)
        open(begun, "w").close()
    except OSError as error:
        raise UserError(f"can't write to --out={out} ({error.strerror}); name another folder") from error


def refuse_unused(values: flags.FlagValues, task: str) -> None:
    """Raises UserError: a flag is given that this task would not heed."""
    tasks = {
        "num": NUM,
        "batch_size": NUM,
        "labels": ("class_conditional",),
        "standardise": ("interpolate",),
        "prompt": chef.TASKS,
        "recipe": answering.OF_RECIPES,
        "image": ("reconstruct", "interpolate", *chef.TASKS),
    }
    for name, those in tasks.items():
        if values[name].value and task not in those:
            raise UserError(f"--{name} has no meaning for --task={task}; it is for {', '.join(those)}")


def of_rcg(values: flags.FlagValues) -> None:
    """Fills in what the flags leave open."""
    values.cfg_scale = 0.0 if values.cfg_scale is None else values.cfg_scale
    values.temperature = 6.0 if values.temperature is None else values.temperature


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        define_in = {"flag_values": values}
        flags.DEFINE_string("workdir", None, "a pipeline's folder, with all components", **define_in)
        for name in chain.KINDS:
            text = f"{name}: a component's folder, or a stage of --workdir"
            flags.DEFINE_string(f"components.{name}", None, text, **define_in)
        flags.DEFINE_enum("task", "generate", [*NUM, *chef.TASKS], "what to make", **define_in)
        flags.DEFINE_string("prompt", "", "what to go on from, or to answer", **define_in)
        flags.DEFINE_string("recipe", "", "JSON file of a recipe, in place of --prompt", **define_in)
        flags.DEFINE_integer("num", 0, f"how many (of each); by default {NUM}", lower_bound=0, **define_in)
        flags.DEFINE_multi_string("image", [], "an image file; may be given more than once", **define_in)
        flags.DEFINE_list("labels", [], "classes, as 0,1,2", **define_in)
        cli.define_seed(values)
        scale = "guidance; by default 7.5 for ChefFusion's pictures (1: off), 0 for RCG (0: off)"
        flags.DEFINE_float("cfg_scale", None, scale, **define_in)
        flags.DEFINE_integer("rdm_steps", 250, "DDIM steps", **define_in)
        flags.DEFINE_float("eta", 1.0, "DDIM noise, 0..1", **define_in)
        ends = ["published", "clean"]
        flags.DEFINE_enum("ddim_end", "published", ends, "clean: DDIM ends at no noise at all", **define_in)
        flags.DEFINE_integer("mage_steps", 20, "decoding steps", **define_in)
        decoding = "of the decoding; by default 6 for RCG, 0 (the likeliest words) for ChefFusion"
        flags.DEFINE_float("temperature", None, decoding, **define_in)
        flags.DEFINE_bool("standardise", False, "interpolate: bring mixtures to unit deviation", **define_in)
        flags.DEFINE_integer(
            "batch_size", 0, f"images at once, 0: {chain.BATCH} at most", lower_bound=0, **define_in
        )
        flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "to compute in", **define_in)
        flags.DEFINE_string("out", None, "folder to write to", **define_in)
        answering.define(values)
        processes.define(values)

    values = cli.parse(argv, define, __doc__)
    out, task = cli.required(values, "out"), values.task
    processes.join(values)
    refuse_unused(values, task)
    if task in chef.TASKS:
        if not processes.first():
            return 0
        if values.recipe and values.prompt:
            raise UserError("--recipe stands in the place of --prompt; give one of them")
        prompt = answering.told(values.recipe, task) if values.recipe else values.prompt
        print(answering.answer(values, out, task, prompt, values.image))
        return 0
    of_rcg(values)
    paths = component_paths(values, task)
    if values.workdir:
        use_compilation_cache(ConfigDict({"compilation_cache": ""}), os.path.join(values.workdir, task))
    model = chain.load(paths, dtype=values.dtype)
    started = time.perf_counter()
    batches, front, columns = sample(model, task, values)
    count = sum(processes.gather(write(out, batches)))
    if not processes.first():
        return 0
    seconds = time.perf_counter() - started
    rows = images = read_back(out, count)
    if front is not None:
        rows = images[: len(images) // columns * columns].reshape(-1, columns, *images.shape[1:])
        rows = np.concatenate([front[: len(rows), None], rows], axis=1).reshape(-1, *images.shape[1:])
        columns += 1
    save_png(os.path.join(out, "grid.png"), grid(rows, columns or None))

    networks = {name: getattr(model, name) for name in paths}
    used = ["mage_steps", "temperature", "cfg_scale", "batch_size", "dtype"]
    if task in ("generate", "class_conditional"):
        used += ["rdm_steps", "eta", "ddim_end"]
    about = {
        "task": task,
        "samples": count,
        "seed": values.seed,
        "settings": {name: values[name].value for name in used},
        "labels": values.labels,
        "images": values.image,
        "components": {
            name: {"path": paths[name], "content_hash": network.content_hash}
            for name, network in networks.items()
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "seconds": round(seconds, 3),  # compiling and writing included
        "images_per_second": round(count / seconds, 3),
    }
    path = os.path.join(out, "samples.json")
    with open(path + ".incomplete", "w") as f:
        json.dump(about, f, indent=2)
    os.replace(path + ".incomplete", path)
    print(f"{count} images in {seconds:.1f} s: {os.path.join(out, 'grid.png')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
