"""Table 6a and the clustering ablation: what the pixel generator is conditioned on, at equal budget.

    python -m launch.sweep --config=configs/sweeps/table6a.py:scale=cifar10 --config.path=<data> \
        --workdir=runs/table6a
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.sweep import member, sweep
from configs.sweeps.chain import chain, scale_of

CLASSES = {"paper": 1000, "cifar10": 10, "runlocal": 16}
# the best one depends on the condition: where it is not known, all are shown several
TEMPERATURES = {"paper": (6.0,), "cifar10": (4.0, 8.0, 16.0), "runlocal": (6.0,)}
CLUSTERS = {"paper": 1000, "cifar10": 10, "runlocal": 4}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: scale=paper|cifar10, runlocal."""
    scale = scale_of(parse_arg(arg, scale="paper", runlocal=False))
    on_class = {"mage__model__conditioning": "class"}
    clusters = {"mage__model__num_classes": CLUSTERS[scale], "mage__components__clusters": "clusters"}
    conditions = {
        "none": ("unconditional", {"mage__model__conditioning": "none"}),
        "class": ("class", on_class | {"mage__model__num_classes": CLASSES[scale]}),
        "clusters": ("clusters", on_class | clusters),
        "generated representation": ("generated", {}),
        "oracle representation": ("oracle", {}),
    }
    members = []
    for name, (way, fields) in conditions.items():
        measured = {"mage__method__eval_ways": way}
        for temperature in TEMPERATURES[scale]:
            row = f"{name}, temperature {temperature:g}" if len(TEMPERATURES[scale]) > 1 else name
            sampled = {"mage__method__temperature": temperature}
            members.append(member(row, "mage", f"frechet_{way}", **fields, **measured, **sampled))
    title = "What MAGE is conditioned on"
    return sweep(chain(scale), "table6a", title, members, heading="Fréchet distance")
