"""Computes what frozen networks make of the data, once: `python -m launch.prepare --config=... --out=...`

Of a ChefFusion config: the text encoder's states of every recipe, which l_g compares with. Train with
--config.method.targets=<out> to read them instead of computing them in each step. Cut off, the same command
goes on where it was; what is there and still right is left alone.
"""

import functools
import sys

import jax
import numpy as np
from absl import flags

from chef_fusion import targets
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.tokenization import CaptionTokenizer
from launch.runtime import cli, registry
from rcg import component
from rcg.errors import UserError
from rcg.experiment import compute_options

BATCH = 64


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        cli.define_config(values)
        flags.DEFINE_string("out", None, "folder to write to", flag_values=values)

    values = cli.parse(argv, define, __doc__)
    config, out = cli.required(values, "config"), cli.required(values, "out")
    if config.experiment != "chef_fusion.joints":
        raise UserError(f"{config.experiment} has nothing to prepare; chef_fusion.joints has")
    options = compute_options(config.compute)
    path = config.components.stable_diffusion
    held = component.load(path, "stable_diffusion", dtype=options["dtype"])
    sd = pipeline.build(held.architecture, **options)
    tokenizer = CaptionTokenizer.load(held.tokenizer, sd.max_tokens)
    states = jax.jit(functools.partial(pipeline.encode_text, sd))

    def encode(texts: list[str]) -> np.ndarray:
        padded = texts + [""] * (BATCH - len(texts))
        return np.asarray(states(held.variables, tokenizer(padded)))[: len(texts)]

    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    shape = (sd.max_tokens, sd.unet.cross_attention_dim)
    for split in ("train", "eval"):
        recipes = open_source(config.data, split)
        wanted = targets.identity(recipes, config.data.target_text, held.content_hash, shape)

        def progress(done: int, split: str = split, total: int = recipes.num_recipes) -> None:
            print(f"\r{split}: {done}/{total}", end="", file=sys.stderr, flush=True)

        targets.compute(out, split, recipes, wanted, encode, BATCH, progress)
        print(f"\r{split}: {recipes.num_recipes} recipes in {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
