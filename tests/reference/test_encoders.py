"""MoCo v3's ViT, its head and the resize before it, against the official code's recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import encoders
from rcg.layers import sincos_2d
from rcg.torch_weights import export_variables, import_variables

TINY = dict(
    arch="moco_v3", image_size=48, patch_size=8, dim=48, depth=3, num_heads=4, head_hidden=64, head_out=20
)
MAGE_ENCODER = dict(arch="moco_v3", dim=32, depth=2, num_heads=4, head_hidden=48, head_out=12)


def nhwc(a):
    return np.moveaxis(a, 1, -1)


def error(name, got, want):
    value = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name}: {value:.1e}")
    return value


def load(architecture, file, prefix):
    arrays = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    module = encoders.build(architecture)
    like = abstract(module)
    return module, import_variables(arrays, encoders.rules(architecture), like, "golden"), arrays


def abstract(module):
    size = module.image_size
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_vit_and_head_match_official_code(golden):
    file = golden("rcg/moco_vit")
    module, variables, _ = load(TINY, file, "param/")
    image = nhwc(file["in/image"])
    token = module.apply(variables, image, method="features")
    assert error("features", token, file["out/features"]) < 1e-5
    assert error("head", module.apply(variables, image), file["out/proj"]) < 1e-5
    unnormalised = image * encoders.IMAGENET_STD + encoders.IMAGENET_MEAN
    rep = jax.jit(lambda v, x: encoders.represent(module, v, x))(variables, unnormalised)
    assert error("representation", rep, file["out/rep"]) < 1e-5
    assert error("table", sincos_2d(48, 6, rows_first=True)[None], file["out/pos_embed"]) < 1e-6


def test_export_is_the_inverse_of_import(golden):
    _, variables, arrays = load(TINY, golden("rcg/moco_vit"), "param/")
    exported = export_variables(variables, encoders.rules(TINY))
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        assert exported[name].dtype == array.dtype and exported[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("size", [17, 33])
def test_resize_of_odd_sizes(golden, size):
    file = golden("rcg/bicubic")
    got = encoders.resize_bicubic(nhwc(file["in/noise20"]), size)
    assert error(f"20 -> {size}", got, nhwc(file[f"out/noise{size}"])) < 1e-5


def test_preprocess(golden):
    file = golden("rcg/bicubic")
    got = encoders.preprocess(nhwc(file["in/image_u8"]) / np.float32(255), 224)
    assert error("256 -> 224", got, nhwc(file["out/encoder_input"])) < 1e-5


def test_representation_inside_mage(golden):
    """Pixels to representation, 32 px enlarged to 224, with the encoder that MAGE's file embeds."""
    file = golden("rcg/mage_train_0")
    module, variables, _ = load(MAGE_ENCODER, golden("rcg/mage_model"), "param/pretrained_encoder.")
    image = nhwc(file["in/image_u8"]) / np.float32(255)
    rep = jax.jit(lambda v, x: encoders.represent(module, v, x))(variables, image)
    assert error("representation", rep, file["out/rep"]) < 1e-5
