"""launch.convert on files as the official trainers write them, and on damaged ones."""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from chef_fusion.backbones import opt, published
from launch import convert
from rcg import component, weight_files
from rcg.errors import UserError
from tests.rcg.tiny_chain import filled

ROOT = Path(__file__).resolve().parents[2]
FIELDS = "num_heads=4,decoder_num_heads=5"  # which shapes do not tell


def run(**given):
    flags = [f"--{k}={v}" if v is not True else f"--{k}" for k, v in given.items()]
    return convert.main(["convert", *flags])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="reading .pth files needs the torch extra")


@pytest.fixture
def recorded(golden):
    return {
        k.removeprefix("param/"): a for k, a in golden("rcg/mage_model").items() if k.startswith("param/")
    }


@pytest.fixture
def mage_file(recorded, torch, tmp_path):
    """As the official trainer writes it: weights, optimiser, command line."""
    path = tmp_path / "mage.pth"
    tensors = {name: torch.from_numpy(a.copy()) for name, a in recorded.items()}
    args = argparse.Namespace(lr=1e-3, epochs=200)
    torch.save(
        {"model": tensors, "model_ema": None, "optimizer": {"state": {}}, "epoch": 3, "args": args}, path
    )
    return path


def test_one_file_gives_three_components_and_comes_back(mage_file, recorded, tmp_path, capsys):
    out = {name: str(tmp_path / name) for name in ("mage", "encoder", "tokenizer")}
    assert run(kind="rcg.mage", source=mage_file, out=out["mage"], architecture=FIELDS) == 0
    assert run(kind="rcg.encoder", source=mage_file, out=out["encoder"], architecture="num_heads=4") == 0
    assert run(kind="rcg.vqgan", source=mage_file, out=out["tokenizer"]) == 0
    assert "rcg.mage" in capsys.readouterr().out
    provenance = component.describe(out["mage"]).provenance
    assert provenance["source"] == "mage.pth" and len(provenance["sha256"]) == 64

    back = tmp_path / "back.safetensors"
    parts = {"encoder": out["encoder"], "tokenizer": out["tokenizer"]}
    assert run(export=True, source=out["mage"], out=back, **parts) == 0
    arrays = weight_files.read(str(back))
    assert set(arrays) == set(recorded)
    for name, array in recorded.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes(), name

    # what was exported is imported just as well, and is the same network
    again = str(tmp_path / "again")
    run(kind="rcg.mage", source=back, out=again, architecture=FIELDS)
    assert component.describe(again).content_hash == component.describe(out["mage"]).content_hash


def damaged(kind, path, torch):
    """The file at `path`, spoilt."""
    content = path.read_bytes()
    held = torch.load(path, weights_only=False)
    bad = path.with_name("bad.pth")
    if kind == "truncated":
        bad.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        bad.write_bytes(b"")
    elif kind == "text":
        bad.write_text("<html>Quota exceeded</html>")
    elif kind == "half":
        torch.save(
            {"model": {k: v.half() if v.is_floating_point() else v for k, v in held["model"].items()}}, bad
        )
    elif kind == "prefixed":
        torch.save({"model": {f"module.{k}": v for k, v in held["model"].items()}}, bad)
    elif kind == "no weights":
        torch.save({"epoch": 3}, bad)
    return bad


@pytest.mark.parametrize("kind, says", [
    ("truncated", "download it again"),
    ("empty", "empty"),
    ("text", "download it again"),
    ("half", "--widen"),
    ("prefixed", "--strip_prefix"),
    ("no weights", "no named arrays"),
])  # fmt: skip
def test_bad_files_are_refused_in_one_line(kind, says, mage_file, tmp_path, torch):
    bad, out = damaged(kind, mage_file, torch), tmp_path / "out"
    with pytest.raises(UserError) as caught:
        run(kind="rcg.mage", source=bad, out=out, architecture=FIELDS)
    message = str(caught.value)
    assert says in message and "bad.pth" in message and "\n" not in message
    assert sorted(os.listdir(tmp_path)) == ["bad.pth", "mage.pth"]


def test_what_the_message_advises_works(mage_file, tmp_path, torch):
    half, prefixed = (tmp_path / n for n in ("half", "prefixed"))
    bad = damaged("half", mage_file, torch)
    assert run(kind="rcg.mage", source=bad, out=half, architecture=FIELDS, widen=True) == 0
    bad = damaged("prefixed", mage_file, torch)
    assert run(kind="rcg.mage", source=bad, out=prefixed, architecture=FIELDS, strip_prefix="module.") == 0
    dtypes = {x.dtype for x in jax.tree.leaves(component.load(str(half)).variables["params"])}
    assert dtypes == {np.dtype(np.float32)}


@pytest.mark.parametrize("flags, says", [
    ({"kind": "rcg.mga"}, "rcg.mage"),
    ({"kind": "rcg.mage", "architecture": "num_heads"}, "not name=value"),
    ({"kind": "rcg.mage"}, "--architecture=num_heads=...,decoder_num_heads=..."),
    ({"kind": "rcg.mage", "architecture": f"{FIELDS},num_haeds=4"}, "num_haeds"),
    ({"kind": "rcg.vqgan", "strip_prefix": "module."}, "not every name"),
    ({"kind": "rcg.mage", "source": "nowhere.pth"}, "no file nowhere.pth"),
    ({"kind": "rcg.mage", "source": __file__}, "not one of the known files"),
    ({"export": True, "out": "here.pth"}, "no component at"),
])  # fmt: skip
def test_wrong_flags(flags, says, mage_file, tmp_path):
    with pytest.raises(UserError) as caught:
        run(**{"source": mage_file, "out": tmp_path / "out"} | flags)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_rdm_and_an_encoder_go_through_their_components_bit_for_bit(golden, tmp_path):
    """From a file to a component on disk and back; the encoder under the names of MoCo v3's own files."""
    arrays = golden("rcg/ddim_classcond_s10_eta0")
    arrays = {k.removeprefix("param/"): a for k, a in arrays.items() if k.startswith("param/")}
    weight_files.write(str(tmp_path / "rdm.safetensors"), arrays)
    run(kind="rcg.rdm", source=tmp_path / "rdm.safetensors", out=tmp_path / "rdm")
    run(export=True, source=tmp_path / "rdm", out=tmp_path / "back.safetensors")
    back = weight_files.read(str(tmp_path / "back.safetensors"))
    assert set(back) == set(arrays)
    for name, a in arrays.items():
        assert back[name].dtype == a.dtype and back[name].tobytes() == a.tobytes(), name
    with pytest.raises(UserError, match=r"is written as a \.safetensors file \(joints: or \.pth\.tar\)"):
        run(export=True, source=tmp_path / "rdm", out=tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()

    inside = {k: a for k, a in golden("rcg/mage_model").items() if k.startswith("param/pretrained_encoder.")}
    prefix = "module.base_encoder."
    file = {k.replace("param/pretrained_encoder.", prefix): a for k, a in inside.items()}
    weight_files.write(str(tmp_path / "moco.safetensors"), file)
    run(
        kind="rcg.encoder",
        source=tmp_path / "moco.safetensors",
        out=tmp_path / "moco",
        architecture="num_heads=4",
    )
    run(export=True, source=tmp_path / "moco", out=tmp_path / "again.safetensors", add_prefix=prefix)
    again = weight_files.read(str(tmp_path / "again.safetensors"))
    assert set(again) == set(file)
    assert all(again[k].tobytes() == a.tobytes() for k, a in file.items())


def test_without_the_hub_what_was_downloaded_before_is_taken(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"^owner/name can't be downloaded \(.*refused.*\); try again.*$"):
        run(kind="opt", source="owner/name", out=tmp_path / "out")

    sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_attention_heads": 2}
    sizes |= {"vocab_size": 12, "num_hidden_layers": 1, "max_position_embeddings": 4}
    before = component.Component("opt", sizes, filled(opt.abstract_variables(sizes)))
    there = tmp_path / "cache/models--owner--name"
    published.write(before, str(there / "snapshots" / ("0" * 40)))
    (there / "refs").mkdir()
    (there / "refs/main").write_text("0" * 40)
    assert run(kind="opt", source="owner/name", out=tmp_path / "out") == 0
    made = component.describe(str(tmp_path / "out"), "opt")
    assert made.content_hash == component.content_hash(before.variables)
    assert made.provenance["source"] == "owner/name"


FULL_SIZE = """
import json, sys, numpy as np, torch
tensors = json.load(open(sys.argv[1]))
block = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
model = {}
for name, t in tensors.items():
    kind = getattr(torch, t["dtype"])
    a = torch.from_numpy(np.resize(block, t["shape"])) if t["shape"] else torch.zeros(())
    model[name] = a.to(kind)
torch.save({"model": model}, sys.argv[2])
"""


def test_mage_l_at_full_size_within_6_gib(shared, torch, tmp_path):
    manifest = shared / "reference" / "manifests" / "rcg_mage_l.json"
    file, out = tmp_path / "mage-l.pth", tmp_path / "mage-l"
    subprocess.run([sys.executable, "-c", FULL_SIZE, manifest, file], check=True)
    measure = (
        "import resource, sys; from launch import convert; code = convert.main(sys.argv); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20); sys.exit(code)"
    )
    flags = ["--kind=rcg.mage", f"--source={file}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-c", measure, *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peak = float(done.stdout.split()[-1])
    print(f"{file.stat().st_size / 2**30:.2f} GiB file, {peak:.2f} GiB at most")
    assert peak < 6
    about = json.loads((out / "component.json").read_text())
    assert about["architecture"]["depth"] == 24
    arrays = torch.load(file, mmap=True, weights_only=True)["model"]
    got = component.load(str(out)).variables["params"]["blocks"]["23"]["mlp"]["fc1"]["kernel"]
    assert (np.asarray(got).T == arrays["blocks.23.mlp.fc1.weight"].numpy()).all()


def write_zeros(folder, manifest, config):
    """A published network in float32 of nothing but zeros, which take no room, in two shards of like size;
    returns the bytes of the larger one."""
    folder.mkdir()
    (folder / "config.json").write_text(config)
    total = sum(math.prod(about["shape"]) for about in manifest.values())
    shards, ends, shard_of = ({}, {}), [0, 0], {}
    for name, about in manifest.items():
        i = int(4 * total <= 2 * ends[0])
        start, ends[i] = ends[i], ends[i] + 4 * math.prod(about["shape"])
        shards[i][name] = {"dtype": "F32", "shape": about["shape"], "data_offsets": [start, ends[i]]}
        shard_of[name] = f"model-{i}.safetensors"
    for i, (shard, end) in enumerate(zip(shards, ends, strict=True)):
        header = json.dumps(shard).encode()
        with open(folder / f"model-{i}.safetensors", "wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return max(ends)


LOAD = """
import sys, jax
from chef_fusion.backbones import published

def peak():  # unlike ru_maxrss it does not begin with the parent's
    with open("/proc/self/status") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("VmHWM"))

jax.devices()
before = peak()
made = published.load("opt", sys.argv[1], dtype=jax.numpy.bfloat16)
held = sum(x.nbytes for x in jax.tree.leaves(made.variables))
print(held, peak() - before - held)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from Linux's /proc")
def test_loading_needs_room_for_a_shard_besides_what_it_loads(shared, tmp_path):
    """A network is placed an array at a time: less than the whole file, besides what the devices hold."""
    held = json.loads((shared / "reference/manifests/opt_125m.json").read_text())
    config = (shared / "reference" / held["_config"]).read_text()
    tensors = {name: about for name, about in held["tensors"].items() if name != "lm_head.weight"}
    largest = write_zeros(tmp_path / "opt", tensors, config)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "opt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, peak = map(int, done.stdout.split())
    assert loaded == 2 * sum(math.prod(about["shape"]) for about in tensors.values())
    print(f"{largest / 2**30:.2f} GiB the largest shard, {peak / 2**30:.2f} GiB at most")
    assert peak < largest + 2**27
