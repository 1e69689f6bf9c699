"""A whole ChefFusion of tiny untrained networks over the toy kitchen, as components in a folder."""

import numpy as np

from chef_fusion import kitchen, recipes, tokenization
from chef_fusion import model as chef
from chef_fusion.backbones import clip, opt
from chef_fusion.backbones.stable_diffusion import schedulers, unet, vae
from chef_fusion.recipes import Recipe
from rcg import component
from rcg.component import Component
from tests.rcg.tiny_chain import filled

SIZE = 16
VOCABULARY = 560
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 160,
    "do_layer_norm_before": True,
}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "vision": SMALL | {"image_size": SIZE, "patch_size": 8},
    "text": SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 12},
    "projection_dim": 8,
    "logit_scale": True,
}
VAE = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
UNET = {
    "block_out_channels": [8, 8],
    "attention_blocks": [True, False],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
TEXT = {"vision": None, "text": CLIP["text"], "projection_dim": 0, "logit_scale": False}
SD = {"text_encoder": TEXT, "unet": UNET, "vae": VAE, "scheduler": dict(schedulers.DEFAULTS)}
JOINTS = {
    "embed_dim": 16,
    "image_first": VOCABULARY,
    "num_visual_tokens": 2,
    "num_image_tokens": 3,
    "num_outputs": 12,
    "out_dim": 16,
    "hidden_dim": 8,
    "num_layers": 1,
    "num_heads": 2,
    "tied": True,
}


def texts(num=40):
    source = kitchen.KitchenSource(num)
    return [recipes.caption(Recipe.of(source.recipe(i))) for i in range(num)]


def tokenizers(folder):
    """Both tokenizers, learnt from the kitchen's recipes: (language model's folder, caption's)."""
    made = str(folder / "tokenizer_lm"), str(folder / "tokenizer_caption")
    for kind, path in zip(("opt", "clip"), made, strict=True):
        assert tokenization.train(kind, texts(), VOCABULARY, path) <= VOCABULARY
    return made


def build(folder):
    """Writes lm, vision, stable_diffusion and joints; returns name -> path."""
    language, caption = tokenizers(folder)
    sd = {
        "text_encoder": filled(clip.abstract_variables(TEXT))["params"],
        "unet": filled(unet.abstract_variables(UNET))["params"],
        "vae": filled(vae.abstract_variables(VAE))["params"],
    }
    joints = JOINTS | {"pooled_dim": 16}
    made = {
        "lm": Component("opt", OPT, filled(opt.abstract_variables(OPT)), tokenizer=language),
        "vision": Component("clip", CLIP, filled(clip.abstract_variables(CLIP)), tokenizer=caption),
        "stable_diffusion": Component("stable_diffusion", SD, {"params": sd}, tokenizer=caption),
        "joints": Component("chef_fusion", joints, filled(chef.abstract_variables(joints, 16))),
    }
    for name, one in made.items():
        component.save(str(folder / name), one)
    return {name: str(folder / name) for name in made}


def photo(seed=0, size=(24, 20)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
