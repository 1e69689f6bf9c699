"""RCG on a folder of one's own images.

    python -m launch.pipeline --config=configs/rcg/folder.py --config.path=/data/photos --workdir=runs/photos
    python -m launch.pipeline --config=configs/rcg/folder.py:variant=small ...    # 32 px, on a CPU

Variants: base, 256 px with the paper's base networks, for an accelerator; small, as on CIFAR-10, an estimated
hour on two CPU cores. Sub-folders of `path` are classes; `path/train` and `path/test` are splits where they
exist. Steps are set for some 100,000 images: fewer images want fewer steps (`--set=mage.total_steps=...`).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import settings, stage
from configs.rcg import cifar10

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=base|small."""
    arg = parse_arg(arg, variant="base")
    if arg.variant not in ("base", "small"):
        raise ValueError(f'variant "{arg.variant}" is not one of base, small')
    if arg.variant == "small":
        return _small()
    c = ConfigDict()
    c.name = "folder"
    c.title = "RCG on a folder of images"
    c.description = "New 256 x 256 images by the method of the RCG paper, every network trained here."
    c.path = ""  # the folder
    c.order = ("encoder", "tokenizer", "rdm", "mage")
    c.stages = ConfigDict()
    c.stages.encoder = stage(
        "MoCo v3 encoder",
        "configs/rcg/moco_v3.py:variant=base",
        batch_size=1024,
        total_steps=30_000,
        optimizer__learning_rate=6e-4,
        optimizer__warmup_steps=3000,
    )
    c.stages.tokenizer = stage(
        "VQGAN tokenizer", "configs/rcg/vqgan.py:variant=official", total_steps=100_000, batch_size=64
    )
    c.stages.rdm = stage(
        "RDM", "configs/rcg/rdm.py:variant=base", {"encoder": "encoder"}, total_steps=100_000
    )
    c.stages.mage = stage(
        "MAGE",
        "configs/rcg/mage.py:variant=base",
        FROZEN | {"rdm": "rdm"},
        batch_size=512,
        total_steps=100_000,
        optimizer__learning_rate=3e-4,
        optimizer__warmup_steps=5000,
    )
    c.samples = ConfigDict()
    c.samples.generate = ConfigDict({"task": "generate", "num": 64})
    c.samples.guided = ConfigDict({"task": "generate", "num": 64, "cfg_scale": 1.0})
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 2, "num": 8})
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8})
    return c


def _small() -> ConfigDict:
    c = cifar10.get_config()
    c.name = "folder"
    c.title = "RCG on a folder of images"
    c.description = "New 32 x 32 images by the method of the RCG paper, every network trained here."
    settings(c, **{name: {"data__source": "folder"} for name in c.order})
    return c
