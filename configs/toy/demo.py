"""RCG from nothing on the toy kitchen: the whole method in minutes on two CPU cores.

    python -m launch.pipeline --config=configs/toy/demo.py --workdir=runs/demo

Trains encoder, tokenizer, RDM and MAGE on drawn dishes at 32 px, measures each, draws samples and writes
runs/demo/report.html.
"""

from ml_collections import ConfigDict

from configs.pipeline import stage

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    if arg:
        raise ValueError(f'configs/toy/demo.py takes no argument, not "{arg}"')
    c = ConfigDict()
    c.name = "demo"
    c.title = "RCG on the toy kitchen"
    c.description = (
        "New dishes by the method of the RCG paper: no labels, no download, every network trained here."
    )
    c.path = ""
    c.order = ("encoder", "tokenizer", "rdm", "mage")
    c.stages = ConfigDict()
    c.stages.encoder = stage("MoCo v3 encoder", "configs/rcg/moco_v3.py:variant=kitchen")
    c.stages.tokenizer = stage("VQGAN tokenizer", "configs/rcg/vqgan.py:variant=kitchen")
    c.stages.rdm = stage("RDM", "configs/rcg/rdm.py:variant=kitchen", {"encoder": "encoder"})
    c.stages.mage = stage("MAGE", "configs/rcg/mage.py:variant=kitchen", FROZEN | {"rdm": "rdm"})
    c.samples = ConfigDict()
    # of guidance 0 and 2 and temperatures 1, 3, 6 and 10 the nearest to the held-out dishes
    settings = {"cfg_scale": 2.0, "temperature": 10.0}
    c.samples.generate = ConfigDict({"task": "generate", "num": 64} | settings)
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 4, "num": 6} | settings)
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8} | settings)
    return c
