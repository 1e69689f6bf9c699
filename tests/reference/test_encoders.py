"""MoCo v3's ViT, its head and the resize before it, against the official code's recorded numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import encoders, published
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


@pytest.mark.parametrize("case", range(3))
def test_representation_inside_mage(case, golden):
    """Pixels to representation, 32 px enlarged to 224, with the encoder that MAGE's file embeds."""
    file = golden(f"rcg/mage_train_{case}")
    module, variables, _ = load(MAGE_ENCODER, golden("rcg/mage_model"), "param/pretrained_encoder.")
    image = nhwc(file["in/image_u8"]) / np.float32(255)
    rep = jax.jit(lambda v, x: encoders.represent(module, v, x))(variables, image)
    assert error("representation", rep, file["out/rep"]) < 1e-5


def hugging_face_vit():
    """transformers' ViT with random weights, and those under timm's names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, layer_norm_eps=1e-6)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.ndim > 1 else parameter.uniform_(-0.5, 1.5)
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    plain = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "norm",
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "output.dense": "mlp.fc2",
        "encoder.layer": "blocks",
        "layers": "blocks",
    }
    arrays, parts = {}, {}
    for name, array in theirs.items():
        found = re.search(r"(\d+)\..*?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$", name)
        if found:
            parts.setdefault(f"blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2][0]] = array
            continue
        for old, new in plain.items():
            if old in name:
                name = name.replace(old, new)
        arrays[name] = array
    arrays |= {name: np.concatenate([qkv[c] for c in "qkv"]) for name, qkv in parts.items()}
    return torch, model, arrays


@pytest.mark.parametrize("arch", ["dino", "ibot", "deit"])
def test_other_encoders_match_pytorch(arch):
    """DINO's, iBOT's and DeiT's published layouts, against transformers' ViT and a torch head."""
    torch, model, arrays = hugging_face_vit()
    head = torch.nn.Sequential(
        torch.nn.Linear(48, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 20),
    )
    image = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        token = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).last_hidden_state[:, 0]
        projected = head(token)
    if arch == "deit":
        file = arrays | {"head.weight": np.zeros((1000, 48)), "head.bias": np.zeros(1000)}
    else:
        file = {f"backbone.{name}": a for name, a in arrays.items()}
        file |= {f"head.mlp.{name}": a.numpy() for name, a in head.state_dict().items()}
        last = ("last_layer", "last_layer2") if arch == "ibot" else ("last_layer",)
        file |= {f"head.{layer}.weight_{part}": np.zeros((9, 20)) for layer in last for part in "gv"}
    made = published.convert("rcg.encoder", file, f"{arch}.pth", architecture={"num_heads": 4})
    module = encoders.build(made.architecture)
    features = module.apply(made.variables, image, method="features")
    assert error("features", features, token.numpy()) < 1e-5
    want = token.numpy() if arch == "deit" else projected.numpy()
    assert error("representation", module.apply(made.variables, image), want) < 1e-5
    assert module.rep_dim == want.shape[1]
    back = published.publish(made)
    kept = {k.removeprefix("backbone."): a for k, a in file.items() if a.dtype == np.float32}
    assert back.keys() == kept.keys() and all(back[k].tobytes() == kept[k].tobytes() for k in kept)
