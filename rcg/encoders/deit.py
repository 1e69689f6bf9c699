"""DeiT's encoder (Touvron et al. 2021), trained on labels: the published layout of its files.

Its representation is the class token; the classifier is left out (RCG table 4a).
"""

from collections.abc import Mapping
from typing import Any

from rcg.encoders import vit
from rcg.torch_weights import Rule


def build(architecture: Mapping[str, Any], **options: Any) -> vit.Encoder:
    """See `vit.build`."""
    return vit.build({"head": "none"} | dict(architecture), **options)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of a file, after `unwrap`."""
    return vit.trunk_rules(build(architecture))


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the encoder whose arrays, after `unwrap`, these are; see `vit.trunk_of`."""
    return {"arch": "deit"} | vit.trunk_of(arrays, vit.HEADS_OF_64) | {"head": "none"}


def unwrap(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A file's arrays without the classifier."""
    return {name: a for name, a in arrays.items() if name not in ("head.weight", "head.bias")}
