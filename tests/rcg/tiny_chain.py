"""A whole chain of tiny untrained networks, as components in a folder: 8 px images of 4 x 4 tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from rcg import component, encoders, rdm
from rcg.component import Component
from rcg.pixel import mage, vqgan

SIZE, REP, CLASSES = 8, 8, 3
ENCODER = {
    "arch": "moco_v3",
    "image_size": 16,
    "patch_size": 8,
    "dim": 16,
    "depth": 1,
    "num_heads": 2,
    "head_hidden": 16,
    "head_out": REP,
}
TOKENIZER = {
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 8,
    "codebook_size": 16,
    "num_groups": 4,
}
RDM = {"channels": REP, "width": 16, "bottleneck": 16, "time_dim": 8, "depth": 1, "context_dim": 8}
MAGE = {"variant": "tiny", "num_tokens": 16, "codebook_size": 16, "class_slots": 4, "rep_dim": REP}


def _variables(module, inputs):
    """See `filled`."""
    return filled(jax.eval_shape(module.init, jax.random.key(0), *inputs))


def filled(abstract):
    """Random, without compiling `init`; large enough that each input shows in the output."""
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if name.endswith(("scale", "var")):
            return np.ones(leaf.shape, leaf.dtype)
        return draw.normal(0, 0.4, leaf.shape).astype(leaf.dtype)

    return jax.tree.map_with_path(fill, abstract)


def build(folder, rdms=("rdm",), only=None):
    """Writes encoder, tokenizer, mage, and an RDM for each name of `rdms`, with classes if it says so; or
    `only` these."""
    key, label = jax.random.key(0), jnp.zeros(1, jnp.int32)
    image, rep = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, REP))  # the encoder's 16 px fit both
    networks = {
        "encoder": ("rcg.encoder", ENCODER, encoders.build(ENCODER), (image,)),
        "tokenizer": ("rcg.vqgan", TOKENIZER, vqgan.build(TOKENIZER), (image,)),
    }
    painter = mage.build(MAGE)
    noise = mage.draw_noise(painter, key, 1)
    networks["mage"] = ("rcg.mage", MAGE, painter, (jnp.zeros((1, 16), jnp.int32), rep, noise))
    for name in rdms:
        fields = RDM | {"num_classes": CLASSES if "class" in name else 0}
        networks[name] = (
            "rcg.rdm",
            fields,
            rdm.build(fields),
            (rep, label, label if "class" in name else None),
        )
    for name in only or networks:
        kind, architecture, module, inputs = networks[name]
        about = Component(kind, architecture, _variables(module, inputs))
        component.save(str(folder / name / "component"), about)
    return folder
