"""Computes what training reads, once: `python -m launch.prepare --config=... --out=...`

    configs/chef_fusion/tokenizer.py   a byte-level BPE tokenizer of one's own texts, for
                                       --config.data.tokenizer
    configs/toy/pictures.py            the toy kitchen's pictures, drawn once, for --config.data.pictures
    configs/chef_fusion/joints.py      the text encoder's states of every recipe, which l_g compares with, for
                                       --config.method.targets
    configs/rcg/rdm.py, mage.py,       what frozen networks make of the training images (representations,
    configs/chef_fusion/               tokens, latents), for --config.data.cache; --views: how many random
    stable_diffusion.py                crops of each are kept, where the augmentation has those

    any config of images, --shards=16  the images themselves, in ArrayRecord shards, which are read faster
                                       than many files: for --config.data.source=array_record

Cut off, the same command goes on where it was. What is there, right and undamaged is left alone.
"""

import functools
import os
import shutil
import sys

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from chef_fusion import kitchen, targets, texts, tokenization
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.data import RecipeSet
from chef_fusion.kitchen import pictures
from chef_fusion.tokenization import CaptionTokenizer
from launch.runtime import cached, cli, registry
from launch.runtime.config import validate
from launch.runtime.setup import prepare as prepare_setup
from rcg import component
from rcg.data import array_records, cores, encoded
from rcg.data.pipeline import training_loader
from rcg.errors import UserError
from rcg.experiment import compute_options

BATCH = 64


def make_tokenizer(config: ConfigDict, out: str) -> None:
    """Learns from the training texts, and writes the folder whole or not at all.

    Raises:
      UserError: something else is at `out`.
    """
    if os.path.exists(out) and not (os.path.isdir(out) and set(os.listdir(out)) <= tokenization.FILES):
        raise UserError(f"{out} holds more than a tokenizer: name another folder, it would be replaced")
    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    documents = texts.documents(open_source(config.data, "train"))
    staging = os.path.abspath(out) + ".incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    count = tokenization.train(config.kind, documents, config.vocab_size, staging)
    shutil.rmtree(out, ignore_errors=True)
    os.rename(staging, out)
    print(f"{count} tokens of {len(documents)} texts in {out}", file=sys.stderr)


def make_pictures(config: ConfigDict, out: str) -> None:
    """The toy kitchen's, of all splits."""
    for split in kitchen.SPLITS:
        source = kitchen.open_source(config.data, split)

        def progress(done: int, split: str = split, total: int = len(source)) -> None:
            _live(f"{split}: {done}/{total}")

        about = source.seed, split, source.menu, source.image_size
        pictures.write(out, len(source), *about, cores(), progress)
        _done(f"{split}: {len(source)} pictures in {out}")


def make_targets(config: ConfigDict, out: str) -> None:
    """The text encoder's states of both splits' recipes."""
    options = compute_options(config.compute)
    path = config.components.stable_diffusion
    held = component.load(path, "stable_diffusion", dtype=options["dtype"])
    sd = pipeline.build(held.architecture, **options)
    tokenizer = CaptionTokenizer.load(held.tokenizer or config.data.tokenizer, sd.max_tokens)
    states = jax.jit(functools.partial(pipeline.encode_text, sd))

    def encode(texts: list[str]) -> np.ndarray:
        padded = texts + [""] * (BATCH - len(texts))
        return np.asarray(states(held.variables, tokenizer(padded)))[: len(texts)]

    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    shape = (sd.max_tokens, sd.unet.cross_attention_dim)
    for split in ("train", config.data.eval_split):
        recipes = open_source(config.data, split)
        wanted = targets.identity(recipes, config.data.target_text, held.content_hash, shape)

        def progress(done: int, split: str = split, total: int = recipes.num_recipes) -> None:
            _live(f"{split}: {done}/{total}")

        targets.compute(out, split, recipes, wanted, encode, BATCH, progress)
        _done(f"{split}: {recipes.num_recipes} recipes in {out}")


def _live(text: str) -> None:
    """Over the line before, on a terminal; a log gets the end alone."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def _done(text: str) -> None:
    print(f"\r{text}" if sys.stderr.isatty() else text, file=sys.stderr)


def make_cache(config: ConfigDict, out: str, views: int) -> None:
    """Computes the cache of a config's training split; goes on where it was cut off.

    Raises:
      UserError: an experiment that has nothing to cache, or a disk that can't take it.
    """
    with config.unlocked():
        config.data.cache = ""
    validate(config, jax.device_count())
    setup = prepare_setup(config)
    if setup.experiment.encode is None:
        raise UserError(f"{config.experiment} has nothing that is computed beforehand")
    source = setup.source("train")
    load, transform = training_loader(source, config.data)
    views = encoded.num_views(transform, views)
    frozen = setup.load_frozen()
    program = jax.jit(setup.experiment.encode)

    def encode(images: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(program(frozen, setup.place({"image": images})))

    def progress(done: int) -> None:
        _live(f"{done}/{len(source)}")

    about = cached.wanted(config, setup.experiment, setup.components, source, views)
    encoded.write(
        out, source, load, transform, views, about, encode, config.batch_size, config.seed, progress
    )
    _done(f"{len(source)} records in {views} view(s) each: {out}")


def make_shards(config: ConfigDict, out: str, shards: int, workers: int) -> None:
    """Both splits' images as ArrayRecord shards, for data.source=array_record.

    Raises:
      UserError: recipes, whose photos are not all there is of them.
    """
    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    for split, name in (("train", config.data.train_split), ("eval", config.data.eval_split)):
        source = open_source(config.data, split)
        if isinstance(source, (RecipeSet, texts.Documents)):
            raise UserError(f'config.data.source = "{config.data.source}" holds more than images and labels')

        def progress(done: int, name: str = name) -> None:
            _live(f"{name}: {done}/{shards} shards")

        about = array_records.write(source, out, name, shards, workers, progress)
        skipped = f", {len(about['bad'])} left out that can't be read" if about["bad"] else ""
        _done(f"{name}: {about['records']} records in {shards} shards{skipped}")


PREPARED = {
    "chef_fusion.tokenizer": make_tokenizer,
    "chef_fusion.pictures": make_pictures,
    "chef_fusion.joints": make_targets,
}


def prepare(config: ConfigDict, out: str, views: int = 0) -> None:
    """What `config.experiment` needs, into the folder `out`.

    Raises:
      UserError: it needs nothing, or something is missing.
    """
    if config.experiment in PREPARED:
        PREPARED[config.experiment](config, out)
    else:
        make_cache(config, out, views)


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
        views = "views of each record to keep, of random crops"
        flags.DEFINE_integer("views", 0, views, lower_bound=0, flag_values=values)
        shards = "write the images themselves, in so many ArrayRecord shards a split"
        flags.DEFINE_integer("shards", 0, shards, lower_bound=0, flag_values=values)
        workers = "processes that write shards; 0: this one"
        flags.DEFINE_integer("workers", 0, workers, lower_bound=0, flag_values=values)

    values = cli.parse(argv, define, __doc__)
    config, out = cli.required(values, "config"), cli.required(values, "out")
    if "experiment" not in config:
        raise UserError("--config is of no experiment; a pipeline prepares its own stages")
    if values.workers and not values.shards:
        raise UserError("--workers write shards: it needs --shards")
    if values.shards:
        make_shards(config, out, values.shards, values.workers)
    else:
        prepare(config, out, values.views)
    return 0


if __name__ == "__main__":
    cli.run(main)
