"""The paper's settings (Tables 9 and 10, appendix A) at full size: what a run would take, without a run."""

import jax
import numpy as np
import pytest

from launch.runtime import cli, dry_run
from rcg import component, published
from rcg.component import Component
from rcg.errors import UserError

# tiny, but with representations and tokens like the published ones
ENCODER = dict(
    arch="moco_v3", image_size=32, patch_size=16, dim=16, depth=1, num_heads=2, head_hidden=16, head_out=256
)
TOKENIZER = dict(
    ch=8, ch_mult=[1] * 5, num_res_blocks=1, z_channels=8, codebook_size=1024, num_groups=4
)  # fmt: skip
PAPER = {  # config -> trained parameters
    "moco_v3.py:variant=base": None,
    "moco_v3.py:variant=large": None,
    "vqgan.py:variant=official": None,
    "kmeans.py:variant=base": 0,
    "rdm.py:variant=base": 62_721_280,
    "rdm.py:variant=large,conditional": 72_176_896 + 512_000,
    "mage.py:variant=base": None,
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
    config = cli.read_config(f"configs/rcg/{file}")
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


def test_a_run_over_networks_that_are_not_there(capsys):
    """ChefFusion at the published sizes but for the language model: nothing is read, all is told."""
    config = cli.read_config("configs/chef_fusion/joints.py")
    config.components.lm = "plan:opt/125m"
    config.components.vision = "plan:clip/large"
    config.components.stable_diffusion = "plan:stable_diffusion/v1"
    config.compute.dtype, config.compute.scan_layers = "bfloat16", True
    hardware = dry_run.Hardware(memory_gib=24, tflops=790, bandwidth_gbs=4300, hosts=2)
    assert dry_run.report(config, hardware) == 0
    out = capsys.readouterr().out
    assert "frozen lm 125,239,296" in out and "frozen stable_diffusion 1,066,235,307" in out
    assert "2 host(s) with 4 device(s) each" in out and "of 24 GiB a device" in out
    assert "a step at 790 TFLOP/s" in out
    config.components.lm = "plan:opt/7b"
    with pytest.raises(UserError, match='"plan:opt/7b" is unknown; there are: plan:'):
        dry_run.report(config)
