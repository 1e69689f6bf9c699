"""Table 6a and the clustering ablation: what the pixel generator is conditioned on, at equal budget.

    python -m launch.sweep --config=configs/sweeps/table6a.py:scale=cifar10 --config.path=<data> \
        --workdir=runs/table6a
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.sweep import member, sweep
from configs.sweeps.chain import chain, scale_of

CLASSES = {"paper": 1000, "cifar10": 10, "runlocal": 16}
CLUSTERS = {"paper": 1000, "cifar10": 10, "runlocal": 4}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: scale=paper|cifar10, runlocal."""
    scale = scale_of(parse_arg(arg, scale="paper", runlocal=False))
    on_class = {"mage__model__conditioning": "class"}
    clusters = {"mage__model__num_classes": CLUSTERS[scale], "mage__components__clusters": "clusters"}
    members = [
        member("none", "mage", "frechet_unconditional", mage__model__conditioning="none"),
        member("class", "mage", "frechet_class", **on_class, mage__model__num_classes=CLASSES[scale]),
        member("clusters", "mage", "frechet_clusters", **on_class, **clusters),
        member("generated representation", "mage", "frechet_generated"),
        member("oracle representation", "mage", "frechet_oracle"),
    ]
    title = "What MAGE is conditioned on"
    return sweep(chain(scale), "table6a", title, members, heading="Fréchet distance")
