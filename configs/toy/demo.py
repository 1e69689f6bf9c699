"""Both systems from nothing on the toy kitchen: a quarter of an hour of training on two CPU cores.

    python -m launch.pipeline --config=configs/toy/demo.py --workdir=runs/demo
    python -m launch.pipeline --config=configs/toy/demo.py:rcg --workdir=runs/rcg    # RCG alone, for longer

RCG learns to make up dishes, ChefFusion to read recipes off pictures and to paint pictures of recipes, all at
32 px. Measures each network, draws samples and writes runs/demo/report.html.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import settings
from configs.toy.kitchen import chef_stages, rcg_stages


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: rcg, that system alone."""
    arg = parse_arg(arg, rcg=False)
    c = ConfigDict()
    c.name = "demo"
    c.title = "The toy kitchen"
    c.description = "New dishes, recipes from pictures, pictures from recipes: every network trained here."
    c.path = ""
    c.order = ("encoder", "tokenizer", "rdm", "mage")
    c.stages = ConfigDict()
    rcg_stages(c)
    c.samples = ConfigDict()
    # of guidance 0 and 2 and temperatures 1, 3, 6 and 10 the nearest to the held-out dishes
    rcg = {"cfg_scale": 2.0, "temperature": 10.0}
    c.samples.generate = ConfigDict({"task": "generate", "num": 64} | rcg)
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 4, "num": 6} | rcg)
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8} | rcg)
    if arg.rcg:
        c.name, c.title = "rcg", "RCG on the toy kitchen"
        c.description = (
            "New dishes by the method of the RCG paper: no labels, no download, every network trained here."
        )
        return c
    c.order += ("words", "captions", "lm", "clip", "judge", "vae", "sd", "recipe_rdm", "joints")
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": 6})
    chef_stages(c, "", dishes=2000, vocabulary=1024, told=6000)
    settings(
        c,
        lm={
            "total_steps": 300,
            "batch_size": 10,
            "data__length": 416,
            "model__hidden_size": 128,
            "model__ffn_dim": 512,
            "model__word_embed_proj_dim": 128,
            "model__num_hidden_layers": 3,
            "optimizer__name": "adamw",  # what its figures were measured with
            "optimizer__learning_rate": 3e-3,
            "optimizer__min_learning_rate": 2e-4,
        },
        clip={
            "total_steps": 210,
            "optimizer__name": "adamw",
            "data__image_size": 32,
            "model__vision__image_size": 32,
            "model__vision__patch_size": 4,
            "model__vision__hidden_size": 128,
            "model__vision__intermediate_size": 512,
            "model__vision__num_hidden_layers": 3,
            "model__text__hidden_size": 96,
            "model__text__intermediate_size": 384,
            "model__text__num_hidden_layers": 2,
            "model__text__max_position_embeddings": 48,
            "model__projection_dim": 96,
        },
        judge={
            "total_steps": 500,
            "batch_size": 16,
            "optimizer__name": "adamw",
            "data__image_size": 32,
            "model__widths": (16, 48, 96),
        },
        vae={"total_steps": 430, "data__image_size": 32, "model__block_out_channels": (24, 48)},
        encoder={"total_steps": 340},
        tokenizer={"total_steps": 1400},
        mage={"total_steps": 1250},
        recipe_rdm={"total_steps": 300},
        sd={
            "total_steps": 400,
            "data__image_size": 32,
            "model__block_out_channels": (48, 96),
            "model__attention_blocks": (False, True),
            "model__cross_attention_dim": 96,
        },
        joints={
            "total_steps": 270,
            "batch_size": 16,
            "data__image_size": 32,
            "model__num_visual_tokens": 8,
            "data__max_tokens": 400,
            "data__length_buckets": (40, 210),
            "method__sample_size": 32,
            "method__eval_samples": 32,
            "method__eval_words": 200,
            "method__rcg_cfg_scale": 2.0,
            "method__rcg_temperature": 10.0,
        },
    )
    return c
