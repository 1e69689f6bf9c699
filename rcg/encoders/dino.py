"""DINO's and iBOT's encoders (Caron et al. 2021, Zhou et al. 2022): the published layout of their files.

Their representation is the head's bottleneck, before it is normalised and classified (RCG table 4a). The
two differ in their training only; iBOT's files have a second last layer, which is left out like the first.
"""

import re
from collections.abc import Mapping
from typing import Any

from rcg.encoders import vit
from rcg.torch_weights import Rule, dense


def build(architecture: Mapping[str, Any], **options: Any) -> vit.Encoder:
    """See `vit.build`."""
    return vit.build({"head": "gelu", "head_hidden": 2048} | dict(architecture), **options)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of a file's teacher, after `unwrap`."""
    table = vit.trunk_rules(build(architecture))
    for i in (0, 2, 4):
        table += dense(f"params/head/{i}", f"head.mlp.{i}")
    return table


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the encoder whose arrays, after `unwrap`, these are; see `vit.trunk_of`."""
    hidden, out = arrays["head.mlp.0.weight"].shape[0], arrays["head.mlp.4.weight"].shape[0]
    return (
        {"arch": "dino"}
        | vit.trunk_of(arrays, vit.HEADS_OF_64)
        | {"head": "gelu", "head_hidden": hidden, "head_out": out}
    )


def unwrap(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's arrays without "(module.)backbone." and without its classification layers."""
    plain = {re.sub(r"^(module\.)?(backbone\.)?", "", name): a for name, a in arrays.items()}
    return {name: a for name, a in plain.items() if not re.match(r"head\.last_layer2?\.", name)}
