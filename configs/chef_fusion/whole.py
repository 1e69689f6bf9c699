"""All of ChefFusion from nothing, on one's own recipes, texts and photos.

    python -m launch.pipeline --config=configs/chef_fusion/whole.py:source=recipe_jsonl --workdir=runs/mine \
        --config.paths.recipes=/data/recipes --config.paths.texts=/data/books --config.paths.images=/data/food

recipes: with photos, for CLIP, Stable Diffusion and the joints. texts: .jsonl files for the language model
and the tokenizers. images: a folder of photos for the autoencoder. Sizes are the small ones, for 64 px; on an
accelerator take more of everything, as `--config.stages.lm.config=configs/chef_fusion/opt.py:variant=125m`.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import stage


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: source=recipe1m, recipe_jsonl or recipe_tsv; vocabulary=..., of both tokenizers."""
    arg = parse_arg(arg, source="recipe1m", vocabulary=16_384)
    c = ConfigDict()
    c.name = "whole"
    c.title = "ChefFusion on recipes of one's own"
    c.description = "Recipes from photos and photos of recipes, every network trained here."
    c.path = ""
    c.paths = ConfigDict({"recipes": "", "texts": "", "images": ""})
    c.order = ("words", "captions", "lm", "clip", "vae", "sd", "joints")
    c.stages = ConfigDict()
    recipes = {"path": "recipes", "data__source": arg.source}
    learn, small = "configs/chef_fusion/tokenizer.py:kind=", "variant=small"
    tokenizer = {"command": "prepare", "path": "texts", "vocab_size": arg.vocabulary, "evaluate": False}
    c.stages.words = stage("tokenizer of texts", f"{learn}opt", **tokenizer)
    c.stages.captions = stage("tokenizer of captions", f"{learn}clip", **tokenizer)
    c.stages.lm = stage(
        "language model",
        f"configs/chef_fusion/opt.py:{small}",
        path="texts",
        prepared={"data__tokenizer": "words"},
        model__vocab_size=arg.vocabulary,
    )
    c.stages.clip = stage(
        "CLIP",
        f"configs/chef_fusion/clip.py:{small}",
        prepared={"data__tokenizer": "captions"},
        model__text__vocab_size=arg.vocabulary,
        **recipes,
    )
    c.stages.vae = stage("autoencoder", f"configs/chef_fusion/vae.py:{small}", path="images")
    c.stages.sd = stage(
        "Stable Diffusion's UNet",
        f"configs/chef_fusion/stable_diffusion.py:{small}",
        {"clip": "clip", "vae": "vae"},
        **recipes,
    )
    c.stages.joints = stage(
        "ChefFusion",
        f"configs/chef_fusion/joints.py:{small}",
        {"lm": "lm", "vision": "clip", "stable_diffusion": "sd"},
        model__image_first=arg.vocabulary,
        **recipes,
    )
    c.samples = ConfigDict()
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": 8})
    return c
