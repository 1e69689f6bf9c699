"""CLIP against recorded vectors and against transformers in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from chef_fusion.backbones import clip, published
from rcg.torch_weights import export_variables, import_variables
from tests.reference.parity import close, under

VISION = {
    "image_size": 42,
    "patch_size": 14,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 20}


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def test_vision_tower(golden):
    vectors = golden("chef_fusion/clip_vision")
    arrays = under(vectors, "param/")
    mlp = len(arrays["vision_model.encoder.layers.0.mlp.fc1.weight"])
    config = {"model_type": "clip_vision_model", **VISION, "intermediate_size": mlp}
    config["num_hidden_layers"] = sum(k.endswith("mlp.fc1.weight") for k in arrays)
    fields = clip.architecture_of(config, arrays)
    variables = import_variables(arrays, clip.rules(fields), clip.abstract_variables(fields), "vector")
    module = clip.build(fields)
    tokens, pooled = module.apply(variables, nhwc(vectors["in/pixel_values"]), method="encode_image")
    close("last_hidden_state", tokens, vectors["out/last_hidden_state"], 1e-5)
    close("pooler_output", pooled, vectors["out/pooler_output"], 1e-5)


def theirs_and_ours(eos):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    # two-billion-parameter habits: both activations, and both ways to find the end token
    act = "quick_gelu" if eos == 2 else "gelu"
    vision = {**VISION, "intermediate_size": 64, "hidden_act": act}
    config = transformers.CLIPConfig(
        vision_config=vision, text_config={**TEXT, "eos_token_id": eos, "hidden_act": act}, projection_dim=24
    )
    model = transformers.CLIPModel(config).eval()
    return torch, model


@pytest.mark.parametrize("eos", [2, 98])
def test_both_towers(eos, tmp_path):
    """Written by transformers, read by us: features and gradients to the pixels; and back again."""
    torch, model = theirs_and_ours(eos)
    model.save_pretrained(tmp_path / "theirs")
    made = published.read("clip", str(tmp_path / "theirs"))
    module = clip.build(made.architecture)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 3, 42, 42)).astype(np.float32)
    ids = rng.integers(3, 97, (2, 9))
    ids[0, 5:], ids[1, 7:] = 98, 98
    x = torch.tensor(pixels, requires_grad=True)
    vision = model.vision_model(pixel_values=x).pooler_output
    images = model.visual_projection(vision)
    text = model.text_projection(model.text_model(input_ids=torch.tensor(ids)).pooler_output)
    images.square().sum().backward()

    ours = module.apply(made.variables, nhwc(pixels), method="image_features")
    close("image features", ours, images.detach(), 1e-5)
    close("text features", module.apply(made.variables, ids, method="text_features"), text.detach(), 1e-5)
    grad = jax.grad(lambda p: (module.apply(made.variables, p, method="image_features") ** 2).sum())(
        nhwc(pixels)
    )
    close("gradient", np.moveaxis(grad, -1, 1), x.grad.numpy(), 1e-4)

    published.write(made, str(tmp_path / "ours"))
    transformers = pytest.importorskip("transformers")
    again = transformers.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_tower_alone(tower, tmp_path):
    """transformers 5 leaves out the tower's prefix, 4 does not."""
    torch, whole = theirs_and_ours(eos=2)
    transformers = pytest.importorskip("transformers")
    name = {"vision": "CLIPVisionModel", "text": "CLIPTextModel"}[tower]
    model = getattr(transformers, name)(getattr(whole.config, f"{tower}_config")).eval()
    model.save_pretrained(tmp_path)
    made = published.read("clip", str(tmp_path))
    module = clip.build(made.architecture)
    rng = np.random.default_rng(0)
    if tower == "vision":
        x = rng.standard_normal((2, 3, 42, 42)).astype(np.float32)
        ours, _ = module.apply(made.variables, nhwc(x), method="encode_image")
    else:
        x = rng.integers(3, 97, (2, 9))
        ours, _ = module.apply(made.variables, x, method="encode_text")
    with torch.no_grad():
        theirs = model(torch.tensor(x)).last_hidden_state
    close("states", ours, theirs, 1e-5)


@pytest.mark.parametrize(
    "size", [(256, 342), (341, 256), (500, 375), (224, 225), (301, 224), (100, 80), (224, 224)]
)
def test_preprocessing(size):
    transformers = pytest.importorskip("transformers")
    pil = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = pil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    pixels = np.random.default_rng(sum(size)).integers(
        0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8
    )
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = clip.normalise(jnp.asarray(clip.prepare(image, 224)))
    close(f"{size}", np.moveaxis(ours, -1, 0), theirs, 1e-6)


def test_export_is_the_inverse():
    fields = {"vision": None, "text": {**TEXT, "eos_token_id": 2}, "projection_dim": 0, "logit_scale": False}
    like = clip.abstract_variables(fields)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), like)
    arrays = export_variables(variables, clip.rules(fields))
    back = import_variables(arrays, clip.rules(fields), like, "test")
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
