"""The official files' layouts, at full size by their manifests and bit for bit on the recorded weights."""

import dataclasses
import importlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from rcg import diffusion, encoders, published, weight_files
from rcg.component import Component
from rcg.errors import UserError

RDMS = [f"rcg_rdm_mocov3vit{letter}{cond}" for letter in "bl" for cond in ("", "_classcond")]
FILES = [
    *[("rcg.rdm", name) for name in RDMS],
    *[("rcg.encoder", name) for name in RDMS],
    *[(kind, f"rcg_mage_{n}") for kind in ("rcg.mage", "rcg.encoder", "rcg.vqgan") for n in "bl"],
    ("rcg.vqgan", "rcg_vqgan"),
    *[("rcg.encoder", f"rcg_mocov3_vit{n}{layout}") for n in "bl" for layout in ("", "_file")],
]
HEADS = {"num_heads": 4, "decoder_num_heads": 5}


def full_size(shared, name):
    """The manifest's tensors, all zero, in no memory; the schedule is the real one."""
    tensors = json.loads((shared / "reference" / "manifests" / f"{name}.json").read_text())
    tables = diffusion.schedule(diffusion.betas())
    return {
        key: np.asarray(tables[key], np.float32)
        if key in tables
        else np.broadcast_to(np.zeros((), t["dtype"]), t["shape"])
        for key, t in tensors.items()
    }


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """A dozen networks of full size, each wanted by many tests."""
    true, kept = published.abstract_variables, {}

    def abstract_variables(kind, architecture):
        key = kind, json.dumps(architecture, sort_keys=True)
        if key not in kept:
            kept[key] = true(kind, architecture)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "abstract_variables", abstract_variables)
        yield


@pytest.mark.parametrize("kind, name", FILES)
def test_every_array_of_a_published_file_has_its_place(shared, kind, name):
    made = published.convert(kind, full_size(shared, name), name)
    count = sum(x.size for x in jax.tree.leaves(made.variables["params"]))
    print(f"{name} as {kind}: {count} parameters, {made.architecture}")
    assert made.kind == kind and count > 10**7


@pytest.mark.parametrize("kind, name, gone", [
    ("rcg.rdm", "rcg_rdm_mocov3vitb", "model_ema.diffusion_modelres_blocks3in_layers2weight"),
    ("rcg.rdm", "rcg_rdm_mocov3vitb", "model.diffusion_model.res_blocks.3.in_layers.2.weight"),
    ("rcg.rdm", "rcg_rdm_mocov3vitb", "pretrained_encoder.blocks.3.norm1.bias"),
    ("rcg.rdm", "rcg_rdm_mocov3vitb_classcond", "cond_stage_model.embedding.weight"),
    ("rcg.mage", "rcg_mage_b", "blocks.3.attn.qkv.bias"),
    ("rcg.mage", "rcg_mage_b", "vqgan.decoder.mid.block_1.norm1.bias"),
    ("rcg.encoder", "rcg_mocov3_vitb_file", "module.base_encoder.head.4.running_var"),
    ("rcg.vqgan", "rcg_vqgan", "decoder.mid.block_1.norm1.bias"),
])  # fmt: skip
def test_what_is_missing_unused_or_misshapen_is_named(shared, kind, name, gone):
    def refusal(arrays):
        with pytest.raises(UserError) as caught:
            published.convert(kind, arrays, "file.pth")
        assert "\n" not in str(caught.value) and "file.pth" in str(caught.value)
        return str(caught.value)

    arrays = full_size(shared, name)
    tail = (
        gone.removeprefix("pretrained_encoder.").removeprefix("module.base_encoder.").removeprefix("vqgan.")
    )
    without = {k: a for k, a in arrays.items() if k != gone}
    assert tail.split(".")[-1] in refusal(without)
    assert f"unused {tail}_2" in refusal(arrays | {f"{gone}_2": arrays[gone]})
    wrong = np.zeros((*arrays[gone].shape, 2), np.float32)
    assert "shape" in refusal(arrays | {gone: wrong}) or "embedding" in gone
    half = refusal(arrays | {gone: arrays[gone].astype(np.float16)})
    assert "float16" in half and "--widen" in half


@pytest.mark.parametrize("kind, name, gone", [
    ("rcg.encoder", "rcg_rdm_mocov3vitb", "model.diffusion_model.out.0.weight"),
    ("rcg.encoder", "rcg_mage_b", "vqgan.quantize.embedding.weight"),
    ("rcg.vqgan", "rcg_mage_b", "mlm_layer.fc.weight"),
])  # fmt: skip
def test_the_rest_of_the_file_is_accounted_for_whichever_network_is_wanted(shared, kind, name, gone):
    arrays = full_size(shared, name)
    array = arrays.pop(gone)
    with pytest.raises(UserError, match=gone.removeprefix("vqgan.").replace(".", r"\.")):
        published.convert(kind, arrays, "file.pth")
    extra = f"{gone}_2"
    with pytest.raises(UserError, match="unused"):
        published.convert(kind, arrays | {gone: array, extra: array}, "file.pth")


def test_problems_of_all_networks_of_a_file_are_one_error(shared):
    arrays = full_size(shared, "rcg_mage_b")
    gone = ("pretrained_encoder.norm.bias", "vqgan.encoder.conv_in.weight", "decoder_norm.bias")
    with pytest.raises(UserError) as caught:
        published.convert("rcg.mage", {k: a for k, a in arrays.items() if k not in gone}, "file.pth")
    for part in (
        "file.pth (pretrained_encoder)",
        "missing norm.bias",
        "(vqgan)",
        "missing decoder_norm.bias",
    ):
        assert part in str(caught.value)
    rdm = full_size(shared, "rcg_rdm_mocov3vitb")
    stray = {k: a for k, a in arrays.items() if k.startswith("vqgan.")}
    with pytest.raises(UserError, match=r"unused vqgan\."):  # an RDM's file holds no tokenizer
        published.convert("rcg.rdm", rdm | stray, "file.pth")


def test_half_precision_is_widened_when_asked(shared):
    arrays = {k: a.astype(np.float16) for k, a in full_size(shared, "rcg_vqgan").items()}
    made = published.convert("rcg.vqgan", arrays, "half", widen=True)
    assert {x.dtype for x in jax.tree.leaves(made.variables)} == {np.dtype(np.float32)}


def test_another_networks_file_is_refused(shared):
    for kind, name in (
        ("rcg.mage", "rcg_vqgan"),
        ("rcg.rdm", "rcg_mage_b"),
        ("rcg.vqgan", "rcg_mocov3_vitb"),
    ):
        with pytest.raises(UserError, match=f"other.pth does not hold a network of kind {kind}"):
            published.convert(kind, full_size(shared, name), "other.pth")


def test_another_schedule_is_refused(shared):
    arrays = full_size(shared, "rcg_rdm_mocov3vitb")
    with pytest.raises(UserError, match="betas is not the schedule"):
        published.convert("rcg.rdm", arrays | {"betas": arrays["betas"] * 2}, "other.pth")


def recorded(golden, name):
    return {k.removeprefix("param/"): a for k, a in golden(name).items() if k.startswith("param/")}


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def test_a_mage_file_round_trips_bit_for_bit(golden):
    """Three networks come out of one file; put together again they are the file."""
    arrays = recorded(golden, "rcg/mage_model")
    convert = published.convert
    made = convert("rcg.mage", arrays, "m", architecture=HEADS)
    encoder = convert("rcg.encoder", arrays, "m", architecture={"num_heads": 4})
    tokenizer = convert("rcg.vqgan", arrays, "m")
    back = published.publish(made, {"rcg.encoder": encoder, "rcg.vqgan": tokenizer})
    assert back.keys() == arrays.keys()
    for name in arrays:
        same(back[name], arrays[name])


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("case", ["uncond", "classcond"])
def test_an_rdm_file_round_trips_bit_for_bit(golden, case, weights):
    arrays = recorded(golden, f"rcg/ddim_{case}_s10_eta0")
    made = published.convert("rcg.rdm", arrays, "m", weights=weights)
    back = published.publish(made)
    assert back.keys() == arrays.keys()
    for name in arrays:
        same(back[name], arrays[name])
    other = published.convert("rcg.rdm", arrays, "m", weights={"ema": "raw", "raw": "ema"}[weights])
    kernel = made.variables["params"]["denoiser"]["input_proj"]["kernel"]
    assert (kernel != other.variables["params"]["denoiser"]["input_proj"]["kernel"]).any()
    # one trained here has one set of weights
    trained = dataclasses.replace(made, variables={"params": made.variables["params"]})
    back = published.publish(trained)
    assert back.keys() == arrays.keys()
    twice = [published.convert("rcg.rdm", back, "m", weights=w).variables["params"] for w in ("raw", "ema")]
    jax.tree.map(same, *twice)


def test_what_has_no_published_layout_is_refused(golden):
    with pytest.raises(UserError, match="no published layout"):
        published.publish(Component("rcg.kmeans", {}, {}))
    arrays = recorded(golden, "rcg/mage_model")
    tokenizer = published.convert("rcg.vqgan", arrays, "m")
    with pytest.raises(UserError, match="has no place"):
        published.publish(tokenizer, {"rcg.vqgan": tokenizer})


@pytest.mark.parametrize("kind, fields, says", [
    ("rcg.rdm", {"condition_dim": 6}, "condition_dim"),
    ("rcg.rdm", {"timesteps": 100}, "timesteps=100"),
    ("rcg.rdm", {"beta_end": 0.02}, "beta_end=0.02"),
    ("rcg.mage", {"class_slots": 10}, "class_slots=10"),
])  # fmt: skip
def test_what_the_official_code_could_not_run_is_not_written(kind, fields, says):
    with pytest.raises(UserError, match=f"no published layout of an {kind} with {says}"):
        published.publish(Component(kind, fields, {}))


def test_an_rdm_has_no_place_for_a_tokenizer(golden):
    arrays = recorded(golden, "rcg/ddim_uncond_s10_eta0")
    tokenizer = published.convert("rcg.vqgan", recorded(golden, "rcg/mage_model"), "m")
    with pytest.raises(UserError, match="rcg.vqgan has no place in a file of kind rcg.rdm"):
        published.publish(published.convert("rcg.rdm", arrays, "m"), {"rcg.vqgan": tokenizer})


def test_a_mage_trained_here_has_all_that_the_official_code_wants(golden):
    arrays = recorded(golden, "rcg/mage_model")
    made = published.convert("rcg.mage", arrays, "m", architecture=HEADS)
    trained = dataclasses.replace(made, variables={"params": made.variables["params"]})
    back, want = published.publish(trained), published.publish(made)
    assert {k: (a.shape, a.dtype) for k, a in back.items()} == {
        k: (a.shape, a.dtype) for k, a in want.items()
    }
    same(back["token_emb.position_ids"], want["token_emb.position_ids"])


@pytest.mark.parametrize("arch, heads", [("moco_v3", 12), ("dino", 6), ("deit", 6)])
def test_heads_of_the_small_encoders(arch, heads):
    """MoCo v3's ViT-S has heads of 32 numbers, the others' of 64."""
    arrays = {
        "patch_embed.proj.weight": np.zeros((384, 3, 16, 16)),
        "pos_embed": np.zeros((1, 197, 384)),
        "head.0.weight": np.zeros((8, 384)),
        "head.6.weight": np.zeros((8, 8)),
        "head.mlp.0.weight": np.zeros((8, 384)),
        "head.mlp.4.weight": np.zeros((8, 8)),
    }
    network = importlib.import_module(encoders.ARCHS[arch])
    assert network.architecture_of(arrays)["num_heads"] == heads


def test_types_that_are_not_supported_are_named(tmp_path):
    path = tmp_path / "eighth.safetensors"
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    arrays = weight_files.read(str(path))
    with pytest.raises(UserError, match="w is of type F8_E4M3; supported are F64"):
        arrays["w"]


def test_weights_beside_a_tensor_of_another_kind(tmp_path):
    """As ImageNet trainers keep them: "best_acc1" is a tensor, the weights are in state_dict."""
    torch, path = pytest.importorskip("torch"), str(tmp_path / "checkpoint.pth")
    torch.save({"best_acc1": torch.tensor(0.7), "state_dict": {"w": torch.ones(2)}}, path)
    assert list(weight_files.read(path)) == ["w"]
    half = {"w": np.arange(3, dtype=ml_dtypes.bfloat16), "v": np.ones((), np.float32)}
    weight_files.write(path, half)
    again = weight_files.read(path)
    assert all(again[k].dtype == v.dtype and np.array_equal(again[k], v) for k, v in half.items())
