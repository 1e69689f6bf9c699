"""The paper's settings (Tables 9 and 10, appendix A) at full size: what a run would take, without a run."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.runtime import cli, dry_run, planned
from launch.runtime.setup import prepare
from rcg import component, published
from rcg.component import Component
from rcg.errors import UserError
from tests.launch import several

ROOT = Path(__file__).resolve().parents[2]
# tiny, but with representations and tokens like the published ones
ENCODER = dict(
    arch="moco_v3", image_size=32, patch_size=16, dim=16, depth=1, num_heads=2, head_hidden=16, head_out=256
)
TOKENIZER = dict(
    ch=8, ch_mult=[1] * 5, num_res_blocks=1, z_channels=8, codebook_size=1024, num_groups=4
)  # fmt: skip
PAPER = {  # config -> trained parameters
    "moco_v3.py:variant=large": None,
    "vqgan.py:variant=official": None,
    "kmeans.py:variant=base": 0,
    "rdm.py:variant=base": 62_721_280,
    "rdm.py:variant=base,conditional": 72_176_896 + 512_000,
    "rdm.py:variant=large,conditional": 72_176_896 + 512_000,
    "mage.py:variant=large": None,
}


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    folder = tmp_path_factory.mktemp("components")
    for name, kind, fields in (
        ("encoder", "rcg.encoder", ENCODER),
        ("tokenizer", "rcg.vqgan", TOKENIZER),
    ):
        abstract = published.abstract_variables(kind, fields)
        variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract)
        component.save(str(folder / name), Component(kind, fields, variables))
    return folder


@pytest.mark.parametrize("file", PAPER)
def test_the_papers_settings_at_full_size(file, components, capsys):
    config = cli.read_config(
        f"configs/rcg/{file}", {"compute.scan_layers": True, "compute.attention": "einsum"}
    )  # quicker
    for name in ("encoder", "tokenizer"):
        if name in config.get("components", {}):
            config.components[name] = str(components / name)
    assert dry_run.report(config) == 0
    out = capsys.readouterr().out
    said = int(out.split("trained parameters ")[1].split()[0].replace(",", ""))
    print(f"{file}: {said:,} parameters")
    assert "FLOPs per step" in out and "in all" in out
    if PAPER[file] is not None:
        assert said == PAPER[file]
    elif "mage" in file or "large" in file:
        assert said > 10**8


def test_a_run_over_networks_that_are_not_there():
    """ChefFusion at the published sizes but for the language model: nothing is read, all is told."""
    kinds = {"lm": "opt/125m", "vision": "clip/large", "stable_diffusion": "stable_diffusion/v1"}
    flags = [f"--config.components.{name}=plan:{kind}" for name, kind in kinds.items()]
    flags += ["--config.batch_size=1", "--config.data.max_tokens=64", "--config.compute.scan_layers=True"]
    flags += ["--config.compute.attention=einsum"]
    flags += ["--device_gib=24", "--device_tflops=790", "--device_gbs=4300"]
    command = [sys.executable, "-m", "launch.train", "--config=configs/chef_fusion/joints.py", "--dry_run"]
    environment = several.environment(1)  # eight devices make it slow to compile
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "frozen lm 125,239,296" in done.stdout and "left" in done.stdout
    assert "frozen stable_diffusion 1,066,235,307" in done.stdout
    assert "1 host(s) with 1 device(s) each" in done.stdout and "of 24 GiB a device" in done.stdout
    assert "a step at 790 TFLOP/s" in done.stdout


def test_a_plan_of_what_a_config_would_train():
    """Its component is described as if it were there, whatever it stands on itself."""
    encoder = planned.describe("plan:configs/rcg/moco_v3.py:runlocal")
    assert encoder.kind == "rcg.encoder" and encoder.architecture["arch"] == "moco_v3"
    config = cli.read_config("configs/rcg/mage.py:runlocal")
    config.components.encoder = "plan:configs/rcg/moco_v3.py:runlocal"
    config.components.tokenizer = "plan:configs/rcg/vqgan.py:runlocal"
    assert prepare(config).components["encoder"].content_hash == "planned"


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_frozen_networks_are_split_too(axis):
    config = cli.read_config("configs/chef_fusion/joints.py")
    kinds = {"lm": "opt/1.3b", "vision": "clip/large", "stable_diffusion": "stable_diffusion/v1"}
    config.components.update({name: f"plan:{kind}" for name, kind in kinds.items()})
    config.mesh.update({"data": 1, axis: 8})
    for name, tree in prepare(config).frozen_abstract.items():
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        print(f"{name}: {dry_run.bytes_per_device(tree) / whole:.3f} of it on each of eight")
        assert dry_run.bytes_per_device(tree) < 0.16 * whole


def test_a_step_that_does_not_fit(components, capsys):
    config = cli.read_config("configs/rcg/rdm.py:variant=base")
    config.components.encoder = str(components / "encoder")
    dry_run.report(config, dry_run.Hardware(memory_gib=1e-4))
    assert re.search(r"too large by .*; try --config.compute.remat=full", capsys.readouterr().out)


def test_devices_that_are_not_here_are_taken_for_accelerators(monkeypatch, components):
    monkeypatch.setattr(dry_run.os, "environ", {})
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for asked, computed in (("auto", "bfloat16"), ("float32", "float32")):
        config = cli.read_config("configs/rcg/rdm.py:variant=base", {"compute.dtype": asked})
        dry_run.use_devices(4, config)
        assert config.compute.dtype == computed


def test_hosts_share_the_devices_equally(components):
    config = cli.read_config("configs/rcg/rdm.py:variant=base")
    config.components.encoder = str(components / "encoder")
    with pytest.raises(UserError, match="--hosts=3 can't share 8 devices"):
        dry_run.report(config, dry_run.Hardware(hosts=3))
    config.mesh.update(data=1, fsdp=1, tensor=8)
    with pytest.raises(UserError, match="leaves 1 shards of a batch for 2 processes"):
        dry_run.report(config, dry_run.Hardware(hosts=2))


def test_attention_of_every_kind_costs_the_same(capsys):
    """The plan says what the model asks for, not what a kernel hides or what is computed twice."""
    counts = set()
    for attention in ("einsum", "mapped"):
        fields = {"compute.attention": attention, "batch_size": 8}
        dry_run.report(cli.read_config("configs/rcg/moco_v3.py:runlocal", fields))
        counts.add(re.search(r"FLOPs per step and device (\S+),", capsys.readouterr().out)[1])
    assert len(counts) == 1


def test_an_error_in_a_plan_names_the_plan():
    with pytest.raises(UserError, match=r"^plan:configs/rcg/rdm.py: .*encoder"):
        planned.describe("plan:configs/rcg/rdm.py")


def test_an_unknown_plan():
    with pytest.raises(UserError, match='"plan:opt/7b" is unknown; there are: plan:'):
        planned.describe("plan:opt/7b")


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_what_is_said_to_be_held_is_what_the_compiled_step_takes(mesh, components):
    """At a middling size, however it is split."""
    config = cli.read_config("configs/rcg/rdm.py:variant=base")
    config.components.encoder = str(components / "encoder")
    config.model.update(width=512, bottleneck=512, depth=4)
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    setup = prepare(config)
    said = sum(
        dry_run.bytes_per_device(tree)
        for tree in (setup.abstract, setup.frozen_abstract, setup.batch_abstract)
    )
    in_haste = {"xla_backend_optimization_level": 0}
    taken = setup.trace_step().lower().compile(in_haste).memory_analysis()
    print(f"mesh {mesh}: {said:,} bytes said, {taken.argument_size_in_bytes:,} taken")
    assert said == pytest.approx(taken.argument_size_in_bytes, rel=1e-3)


def test_a_plan_for_devices_that_are_not_here(components):
    flags = [f"--config.components.encoder={components / 'encoder'}", "--config.mesh.data=4"]
    flags += ["--config.mesh.fsdp=4", "--devices=16", "--device_tflops=900", "--link_gbs=100"]
    flags += ["--config.model.width=256", "--config.model.bottleneck=256", "--config.model.depth=2"]
    command = [sys.executable, "-m", "launch.train", "--config=configs/rcg/rdm.py:variant=base", "--dry_run"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'data': 4, 'fsdp': 4" in done.stdout
    sent = re.search(r"between devices, per step and device .*all-reduce", done.stdout)
    assert sent and "100 GB/s between devices" in done.stdout
