"""launch.convert on what transformers, diffusers and the ChefFusion authors publish."""

import dataclasses
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest

from chef_fusion import checkpoints, tokenization
from chef_fusion.backbones import published
from launch import convert
from rcg import component, weight_files
from rcg.errors import UserError
from tests.reference.parity import under
from tests.reference.tiny_chef import FIRST, trained

pytest.importorskip("torch")


def run(*flags):
    return convert.main(["convert", *flags])


@pytest.fixture
def chef(shared):
    return shared / "golden/chef_fusion"


@pytest.mark.parametrize("file", ["ckpt_gill/pretrained_ckpt.pth.tar", "ckpt_chef_training/ckpt.pth.tar"])
def test_joints(chef, golden, tmp_path, file):
    """Pruned and not, with and without GILL's retrieval head: the recorded weights, rounded to bfloat16."""
    out = str(tmp_path / "joints")
    assert run("--kind=chef_fusion", f"--source={chef / file}", f"--out={out}") == 0
    made = component.load(out, "chef_fusion")
    assert made.architecture["image_first"] == FIRST
    arrays = under(golden("chef_fusion/chef_model"), "param/")
    back = str(tmp_path / "back.safetensors")
    assert run("--export", f"--source={out}", f"--out={back}") == 0
    exported = weight_files.read(back)
    (tmp_path / "like_theirs").mkdir()
    arguments = tmp_path / "like_theirs/model_args.json"
    theirs = json.loads((chef / "ckpt_gill/model_args.json").read_text())
    others = ("opt_version", "visual_encoder", "ret_emb_dim", "ret_text_fc_mode")  # not of the joints
    arguments.write_text(json.dumps({name: theirs[name] for name in others} | {"gen_token_idx": [3]}))
    for suffix in ("pth.tar", "pth"):  # in the published layout
        again = str(tmp_path / f"like_theirs/ckpt.{suffix}")
        assert run("--export", f"--source={out}", f"--out={again}") == 0
        assert run("--kind=chef_fusion", f"--source={again}", f"--out={tmp_path / suffix}") == 0
        same = component.load(str(tmp_path / suffix), "chef_fusion")
        assert same.content_hash == made.content_hash and same.architecture == made.architecture
    assert json.loads(arguments.read_text()) == theirs
    expected = trained(arrays)
    if "gill" in file:
        expected |= {name: arrays[name] for name in checkpoints.GILL_ONLY}
    assert set(exported) == set(expected)
    for name, value in expected.items():
        rounded = value.astype(ml_dtypes.bfloat16)
        assert exported[name].dtype == rounded.dtype and np.array_equal(exported[name], rounded), name


def test_joints_that_are_none(chef, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    source = tmp_path / "pretrained_ckpt.safetensors"
    arrays = dict(weight_files.read(str(chef / "ckpt_gill/pretrained_ckpt.pth.tar")))
    arrays["model.surprise"] = np.zeros(3, np.float32)
    missing = arrays.pop("model.visual_embeddings.bias")
    weight_files.write(str(source), arrays)
    with pytest.raises(UserError, match="missing model.visual_embeddings.bias; unused model.surprise"):
        run("--kind=chef_fusion", f"--source={source}", out)
    arrays = {"model.input_embeddings.weight": missing[None]}
    weight_files.write(str(source), arrays)
    with pytest.raises(UserError, match="does not hold ChefFusion's joints"):
        run("--kind=chef_fusion", f"--source={source}", out)
    for given, says in (
        ("image_frist=3", "no field 'image_frist'; there are embed_dim, image_first"),
        ("num_heads=0", "num_heads=0 is not a whole number above 0"),
        ("num_image_tokens=abc", "num_image_tokens='abc' is not a whole number"),
    ):
        with pytest.raises(UserError, match=says):
            file = chef / "ckpt_gill/pretrained_ckpt.pth.tar"
            run("--kind=chef_fusion", f"--source={file}", f"--architecture={given}", out)
    with pytest.raises(UserError, match="--strip_prefix has no meaning for importing chef_fusion"):
        run("--kind=chef_fusion", f"--source={source}", "--strip_prefix=x.", out)
    (tmp_path / "model_args.json").write_text(json.dumps({"gen_token_idx": list(range(40, 56))}))
    assert checkpoints.read_arguments(str(tmp_path)) == {"image_first": 40, "num_image_tokens": 16}
    shutil.copy(chef / "ckpt_gill/pretrained_ckpt.pth.tar", tmp_path)
    (tmp_path / "model_args.json").write_text(json.dumps({"text_fc_mode": "linear"}))
    with pytest.raises(UserError, match="text_fc_mode linear"):
        run("--kind=chef_fusion", f"--source={tmp_path / 'pretrained_ckpt.pth.tar'}", out)
    assert not os.path.exists(tmp_path / "out")


def test_every_key_of_the_published_joints_is_used_once(shared, tmp_path):
    manifest = json.loads((shared / "reference/manifests/gill_trainables.json").read_text())
    arrays = {
        name: np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), about["shape"])
        for name, about in manifest["tensors"].items()
    }
    shutil.copy(shared / "reference/configs/gill_model_args.json", tmp_path / "model_args.json")
    told = checkpoints.read_arguments(str(tmp_path))
    assert told == {"image_first": 50266, "num_image_tokens": 8}
    made = checkpoints.convert(arrays, "gill", told)
    assert made.architecture["image_first"] == 50266 and made.architecture["embed_dim"] == 4096
    exported = checkpoints.publish(made)
    assert set(exported) == set(arrays)
    assert all(exported[name].shape == arrays[name].shape for name in arrays)
    print(f"{len(arrays)} arrays, each used once")


def test_folders_and_tokenizers(chef, shared, tmp_path):
    lm, sd = str(tmp_path / "lm"), str(tmp_path / "sd")
    assert run("--kind=opt", f"--source={chef / 'hf_opt_sharded'}", f"--out={lm}") == 0
    assert component.describe(lm, "opt").tokenizer == ""
    with pytest.raises(
        UserError, match="the tokenizer has 50265 tokens, but the network's embedding 96 rows"
    ):
        tokenizer = f"--text_tokenizer={shared / 'tokenizers/opt'}"
        run("--kind=opt", f"--source={chef / 'hf_opt_sharded'}", f"--out={lm}2", tokenizer)
    assert not os.path.exists(lm + "2")
    empty = tmp_path / "wordless"
    empty.mkdir()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "merges.txt"):
        if (shared / "tokenizers/opt" / name).exists():
            shutil.copy(shared / "tokenizers/opt" / name, empty)
    (empty / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UserError, match="lacks its vocabulary: there must be tokenizer.json, or vocab.json"):
        run("--kind=opt", f"--source={chef / 'hf_opt_sharded'}", f"--out={lm}3", f"--text_tokenizer={empty}")
    (empty / "merges.txt").unlink()
    shutil.copy(shared / "tokenizers/opt/tokenizer.json", empty)
    assert len(tokenization.load(str(empty))) == 50265  # all of it is in this file
    assert run("--kind=stable_diffusion", f"--source={chef / 'hf_sd'}", f"--out={sd}") == 0
    made = component.load(sd, "stable_diffusion")
    again = published.read("stable_diffusion", str(chef / "hf_sd"))
    assert made.content_hash == component.content_hash(again.variables)
    back = str(tmp_path / "published")
    assert run("--export", f"--source={sd}", f"--out={back}") == 0
    assert sorted(os.listdir(back)) == ["model_index.json", "scheduler", "text_encoder", "unet", "vae"]
    with pytest.raises(UserError, match="exists and is not empty"):
        run("--export", f"--source={sd}", f"--out={back}")
    with pytest.raises(UserError, match="no folder unet|has no folder"):
        run("--kind=stable_diffusion", f"--source={chef / 'hf_opt_sharded'}", f"--out={tmp_path / 'x'}")


def test_a_tokenizer_of_another_network(shared, tmp_path):
    """The ids of its special tokens tell, in both directions."""
    made = component.Component(
        "opt", {"vocab_size": 50272}, {}, {"config": {"bos_token_id": 2, "pad_token_id": 1}}
    )
    convert.check_tokenizer(dataclasses.replace(made, tokenizer=str(shared / "tokenizers/opt")))
    with pytest.raises(UserError, match="bos_token_id is 49406, but 2 in the network's config.json"):
        convert.check_tokenizer(dataclasses.replace(made, tokenizer=str(shared / "tokenizers/clip")))
    convert.check_tokenizer(dataclasses.replace(made, kind="clip", tokenizer=str(shared / "tokenizers/clip")))
    made.provenance["config"]["pad_token_id"] = 0
    with pytest.raises(UserError, match="pad_token_id is 1, but 0 in the network's config.json"):
        convert.check_tokenizer(dataclasses.replace(made, tokenizer=str(shared / "tokenizers/opt")))
    (tmp_path / "config.json").write_text('{"bos_token_id": 2, "hidden_size": 8}')
    words = tokenization.load(str(shared / "tokenizers/clip"))
    for pad in (words.pad_token, None):  # of a token that it lacks it says nothing
        words.pad_token = pad
        convert.published_ids(str(tmp_path), words)
        about = json.loads((tmp_path / "config.json").read_text())
        assert about["hidden_size"] == 8
        assert [about[name] for name in convert.SPECIAL] == [49406, 49407, 49407]
