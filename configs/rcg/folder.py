"""RCG on a folder of one's own images, at 256 px with the paper's base networks: for an accelerator.

    python -m launch.pipeline --config=configs/rcg/folder.py --config.path=/data/photos --workdir=runs/photos

Sub-folders of `path` are classes; `path/train` and `path/test` are splits where they exist. Steps are set
for some 100,000 images: fewer images want fewer steps (`--set=mage.total_steps=...`).
"""

from ml_collections import ConfigDict

from configs.pipeline import stage

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    if arg:
        raise ValueError(f'configs/rcg/folder.py takes no argument, not "{arg}"')
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
