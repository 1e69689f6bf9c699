"""MoCo v3's encoder (RCG section 3.1; Chen et al. 2021): the published layout of its files."""

import re
from collections.abc import Mapping
from typing import Any

from rcg.encoders.vit import VARIANTS, Encoder, build, trunk_of, trunk_rules
from rcg.torch_weights import Rule, dense, norm

__all__ = ["VARIANTS", "Encoder", "architecture_of", "build", "rules", "unwrap"]


def _batch_norm(ours: str, theirs: str, affine: bool = True) -> list[Rule]:
    stats = (("mean", "running_mean", "same"), ("var", "running_var", "same"))
    stats += (("count", "num_batches_tracked", "count"),)
    rules = [Rule(f"batch_stats/{ours}/{a}", f"{theirs}.{b}", how) for a, b, how in stats]
    return rules + norm(f"params/{ours}", theirs) * affine


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of `vitb.pth.tar` and `vitl.pth.tar`, after `unwrap`."""
    table = trunk_rules(build(architecture))
    for i in (0, 3, 6):
        table += dense(f"params/head/{i}", f"head.{i}", bias=False)
        table += _batch_norm(f"head/{i + 1}", f"head.{i + 1}", affine=i != 6)
    return table


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the encoder whose arrays, after `unwrap`, these are; see `vit.trunk_of`."""
    sizes = {"head_hidden": arrays["head.0.weight"].shape[0], "head_out": arrays["head.6.weight"].shape[0]}
    heads = {dim: num_heads for dim, _, num_heads in VARIANTS.values()}  # its small has 12
    return {"arch": "moco_v3"} | trunk_of(arrays, heads) | sizes


def unwrap(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The query encoder's arrays of a MoCo v3 checkpoint's `state_dict`, under the names `rules` know.

    Keeps "(module.)base_encoder." where there is such a prefix, else everything, and repairs the names
    that the authors' ViT-L file got wrong: norm13, fc13 in block 13, norm14, fc14 in block 14.
    """
    prefix = re.compile(r"(module\.)?base_encoder\.")
    if any(prefix.match(name) for name in arrays):
        arrays = {prefix.sub("", name, count=1): a for name, a in arrays.items() if prefix.match(name)}
    number = {"13": "1", "14": "2"}
    wrong = re.compile(r"^(blocks\.(13|14)\.(?:mlp\.)?(?:norm|fc))\2\.")
    return {wrong.sub(lambda m: f"{m[1]}{number[m[2]]}.", name): a for name, a in arrays.items()}
