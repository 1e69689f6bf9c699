"""Published folders of backbones: every array has its place, and what does not fit is refused."""

import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from chef_fusion import tokenization
from chef_fusion.backbones import clip, folders, opt, published
from chef_fusion.backbones.stable_diffusion import unet, vae
from rcg.component import Component
from rcg.errors import UserError
from rcg.torch_weights import import_variables

TINY_OPT = {
    "vocab_size": 96,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 32,
    "do_layer_norm_before": True,
}


def filled(module, architecture, dtype=np.float32):
    rng = np.random.default_rng(0)
    like = module.abstract_variables(architecture)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(dtype), like)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    )


@pytest.fixture
def tiny_opt():
    return Component("opt", TINY_OPT, filled(opt, TINY_OPT, np.float16))


class Zeros(dict):
    """A manifest's arrays without their memory."""

    def __getitem__(self, name):
        about = super().__getitem__(name)
        return np.broadcast_to(np.zeros((), about["dtype"]), about["shape"])


@pytest.mark.parametrize(
    "name, module",
    [
        ("opt_125m", opt),
        ("opt_350m", opt),
        ("opt_6b7", opt),
        ("clip_vit_l14", clip),
        ("sd15_text_encoder", clip),
    ]
    + [("sd15_unet", unet), ("sd15_vae", vae)],
)
def test_every_array_of_a_manifest_has_its_place(shared, name, module):
    """At full size, zeros: names and shapes on both sides are used once."""
    manifest = json.loads((shared / "reference/manifests" / f"{name}.json").read_text())
    config = json.loads((shared / "reference" / manifest["_config"]).read_text())
    tensors, aliases = manifest["tensors"], manifest.get("_legacy_aliases", {})
    if module is opt:  # as other published files have them
        others = {k.removeprefix("model."): v for k, v in tensors.items() if k != "lm_head.weight"}
    else:
        others = {aliases.get(k, k): v for k, v in tensors.items() if "position_ids" not in k}
    abstract = {}  # by architecture: tracing a network of full size takes seconds
    for listed in (tensors, others):
        arrays = published._arrays(module, Zeros(listed), name)
        fields = module.architecture_of(config, list(arrays))
        key = json.dumps(fields, sort_keys=True)
        abstract[key] = abstract.get(key) or module.abstract_variables(fields)
        placed = []
        import_variables(
            arrays,
            published.rules(module, fields),
            abstract[key],
            name,
            keep_half=True,
            place=lambda n, a, placed=placed: placed.append(n),
        )
        assert len(placed) == len(set(placed)) == len(arrays)
        print(f"{name}: {len(arrays)} of {len(listed)} arrays placed, the others copies or buffers")


def test_half_precision_survives_the_round_trip(tiny_opt, tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        made = Component("opt", TINY_OPT, filled(opt, TINY_OPT, dtype))
        published.write(made, str(tmp_path / "out"))
        assert same(published.read("opt", str(tmp_path / "out")).variables, made.variables)


def test_shards_are_one_network(tiny_opt, tmp_path, monkeypatch):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    published.write(tiny_opt, whole)
    monkeypatch.setattr(folders.write, "__defaults__", ("model", "config.json", 2000))
    published.write(tiny_opt, parts)
    shards = [f for f in os.listdir(parts) if f.endswith(".safetensors")]
    assert len(shards) > 3
    assert same(published.read("opt", parts).variables, published.read("opt", whole).variables)
    os.remove(os.path.join(parts, sorted(shards)[1]))
    with pytest.raises(UserError, match=r"lacks 1 of its \d+ shards: model-00002"):
        published.read("opt", parts)


def test_loading_places_and_casts(tiny_opt, tmp_path):
    published.write(tiny_opt, str(tmp_path))
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    P, split = jax.sharding.PartitionSpec, jax.sharding.NamedSharding

    def sharding(name, shape):
        return split(mesh, P("fsdp") if shape[0] % 8 == 0 else P())

    made = published.load("opt", str(tmp_path), sharding, np.float32)
    for ours, theirs in zip(
        jax.tree.leaves(made.variables), jax.tree.leaves(tiny_opt.variables), strict=True
    ):
        assert ours.dtype == np.float32 and np.array_equal(ours, theirs.astype(np.float32))
        if theirs.shape[0] % 8 == 0:
            assert ours.addressable_shards[0].data.shape[0] == theirs.shape[0] // 8
    plain = published.load("opt", str(tmp_path))
    assert jax.tree.leaves(plain.variables)[0].dtype == np.float16


def broken_config(folder, **fields):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    with open(path, "w") as f:
        json.dump(config | fields, f)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; supported is 'relu'"),
        ({"hidden_size": 32}, r"has shape \(16,\), expected \(32,\)"),
        ({"num_hidden_layers": 3}, "missing model.decoder.layers.2"),
        ({"num_hidden_layers": 1}, "unused model.decoder.layers.1"),
        ({"num_attention_heads": 3}, "not a multiple of num_attention_heads 3"),
    ],
)
def test_a_config_that_does_not_fit(tiny_opt, tmp_path, fields, message):
    published.write(tiny_opt, str(tmp_path))
    broken_config(str(tmp_path), **fields)
    with pytest.raises(UserError, match=message):
        published.read("opt", str(tmp_path))


def test_an_untied_head_is_noticed(tiny_opt, tmp_path):
    from rcg import weight_files

    published.write(tiny_opt, str(tmp_path))
    path = str(tmp_path / "model.safetensors")
    arrays = dict(weight_files.read(path))
    table = arrays["model.decoder.embed_tokens.weight"]
    weight_files.write(path, arrays | {"lm_head.weight": table})
    assert same(published.read("opt", str(tmp_path)).variables, tiny_opt.variables)
    weight_files.write(path, arrays | {"lm_head.weight": table + 1})
    with pytest.raises(UserError, match="lm_head.weight is not the same as"):
        published.read("opt", str(tmp_path))


def test_folders_that_are_none(tiny_opt, tmp_path):
    with pytest.raises(UserError, match="neither a folder nor owner/name"):
        published.load("opt", str(tmp_path / "nothing"))
    published.write(tiny_opt, str(tmp_path / "a"))
    os.remove(tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="holds no weights"):
        published.read("opt", str(tmp_path / "a"))
    (tmp_path / "a" / "config.json").write_text("{" * 100)
    with pytest.raises(UserError, match=r"config.json is damaged .*download it again"):
        published.read("opt", str(tmp_path / "a"))
    (tmp_path / "a" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(UserError, match="is not in a file of this folder"):
        published.read("opt", str(tmp_path / "a"))


def test_the_published_tokenizers(shared):
    """Their special tokens have the ids that OPT and CLIP were trained with."""
    language = tokenization.LanguageTokenizer.load(str(shared / "tokenizers/opt"), 50266, 8)
    assert (language.vocabulary, language.bos, language.eos, language.pad) == (50265, 2, 2, 1)
    assert language.ids("Hello world", bos=True) == [2, 31414, 232] and language.newline == 50118
    row, length = language.example("Hello world", 13)
    assert row.tolist() == [2, 31414, 232, *range(50266, 50274), 1, 1] and length == 11
    captions = tokenization.CaptionTokenizer.load(str(shared / "tokenizers/clip"))
    assert captions.vocabulary == 49408
    short, long = captions(["hello world", "egg " * 100])
    assert short.tolist() == [49406, 3306, 1002] + 74 * [49407]
    assert long[0] == 49406 and long[-2] != 49407 and long[-1] == 49407


def test_stable_diffusion_round_trip(shared, tmp_path):
    pytest.importorskip("torch")
    made = published.read("stable_diffusion", str(shared / "golden/chef_fusion/hf_sd"))
    published.write(made, str(tmp_path / "out"))
    again = published.read("stable_diffusion", str(tmp_path / "out"))
    assert same(again.variables, made.variables) and again.architecture == made.architecture
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").state_dict()
    assert np.array_equal(theirs["conv_in.bias"], made.variables["params"]["unet"]["conv_in"]["bias"])
    shutil.rmtree(tmp_path / "out" / "vae")
    with pytest.raises(UserError, match="has no folder vae"):
        published.read("stable_diffusion", str(tmp_path / "out"))


def test_which_files_of_a_repository_are_fetched():
    there = [
        "config.json",
        "README.md",
        "flax_model.msgpack",
        "pytorch_model.bin",
        "tokenizer.json",
        "merges.txt",
    ]
    assert set(folders.choose_files(there)) == {
        "config.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "merges.txt",
    }
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    there += [
        *shards,
        "model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    chosen = folders.choose_files(there)
    assert set(shards) < set(chosen) and "pytorch_model.bin" not in chosen and "vae/config.json" not in chosen
    inside = folders.choose_files(there, ["vae"])
    assert set(inside) == {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
