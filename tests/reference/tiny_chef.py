"""The tiny recorded ChefFusion as our model."""

import jax.numpy as jnp
import numpy as np

from chef_fusion import model as chef
from chef_fusion.backbones import clip, opt, published
from chef_fusion.decoding import LanguageModel
from rcg.torch_weights import import_variables
from tests.reference.parity import under

FIRST = 90
GILL_ONLY = ("model.logit_scale", "model.visual_fc.", "model.ret_text_hidden_fcs.")


def language(arrays, name):
    """(lm, variables) of a recorded model's parameters."""
    found = under(arrays, "model.lm.")
    table = arrays["model.input_embeddings.weight"]
    found["model.decoder.embed_tokens.weight"] = table[:FIRST]
    positions = found["model.decoder.embed_positions.weight"]
    fields = {
        "vocab_size": FIRST,
        "hidden_size": positions.shape[1],
        "ffn_dim": len(found["model.decoder.layers.0.fc1.weight"]),
        "num_hidden_layers": sum(k.endswith("fc1.weight") for k in found),
        "num_attention_heads": 4,
        "word_embed_proj_dim": table.shape[1],
        "max_position_embeddings": len(positions) - 2,
        "do_layer_norm_before": "model.decoder.final_layer_norm.weight" in found,
    }
    found = published._arrays(opt, found, name)
    variables = import_variables(found, opt.rules(fields), opt.abstract_variables(fields), name)
    return LanguageModel(opt.build(fields), FIRST), variables


def trained(arrays, name="vector"):
    """The joints' own arrays of a recorded model, as a pruned checkpoint would hold them."""
    del name
    own = {
        k: v for k, v in arrays.items() if not k.startswith(("model.lm.", "model.visual_model.", *GILL_ONLY))
    }
    own["model.input_embeddings.weight"] = arrays["model.input_embeddings.weight"][FIRST:]
    return own


def load(golden, name="chef_model"):
    """(model, params, frozen) of golden(chef_fusion/<name>)."""
    arrays = under(golden(f"chef_fusion/{name}"), "param/")
    lm, lm_variables = language(arrays, name)
    tower = under(arrays, "model.visual_model.")
    config = {
        "model_type": "clip_vision_model",
        "image_size": 42,
        "patch_size": 14,
        "hidden_size": len(tower["vision_model.pre_layrnorm.weight"]),
        "intermediate_size": len(tower["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": sum(k.endswith("fc1.weight") for k in tower),
        "num_attention_heads": 4,
    }
    fields = clip.architecture_of(config, tower)
    vision = import_variables(tower, clip.rules(fields), clip.abstract_variables(fields), name)
    own = trained(arrays)
    joints = chef.architecture_of(own, FIRST)
    like = chef.abstract_variables(joints, config["hidden_size"])
    params = import_variables(own, chef.rules(joints), like, name)
    made = chef.build(chef.build_joints(joints), lm.opt, clip.build(fields))
    return made, params, {"lm": lm_variables, "vision": vision}


def pixels(x):
    """Recorded, normalised NCHW pixels -> images in [0, 1], NHWC, which our model normalises again."""
    return jnp.asarray(np.moveaxis(x, 1, -1) * clip.STD + clip.MEAN)
