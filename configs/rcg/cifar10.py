"""RCG on small photographs, from nothing, on two CPU cores in an estimated hour: CIFAR-10 at 32 px.

    python -m launch.pipeline --config=configs/rcg/cifar10.py --workdir=runs/cifar10 \
        --config.path=<folder of train.parquet and test.parquet>

Encoder, tokenizer, RDM, MAGE on generated representations, and a second MAGE of the same size and budget
without any condition, to hold against it.
"""

from ml_collections import ConfigDict

from configs.pipeline import stage

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    if arg:
        raise ValueError(f'configs/rcg/cifar10.py takes no argument, not "{arg}"')
    c = ConfigDict()
    c.name = "cifar10"
    c.title = "RCG on CIFAR-10"
    c.description = "New 32 x 32 photographs from 50,000 real ones, without labels, on a CPU."
    c.path = ""  # folder of the Parquet files
    c.order = ("encoder", "tokenizer", "rdm", "mage", "mage_unconditional")
    c.stages = ConfigDict()
    c.stages.encoder = stage(
        "MoCo v3 encoder",
        "configs/rcg/moco_v3.py:variant=small",
        total_steps=1800,
        checkpoint_steps=300,
        optimizer__warmup_steps=150,
    )
    c.stages.tokenizer = stage("VQGAN tokenizer", "configs/rcg/vqgan.py:variant=small")
    rdm, mage = "configs/rcg/rdm.py:variant=small", "configs/rcg/mage.py:variant=small"
    c.stages.rdm = stage("RDM", rdm, {"encoder": "encoder"}, total_steps=1500)
    budget = {"model__variant": "little", "batch_size": 32, "total_steps": 4000, "method__eval_samples": 1000}
    c.stages.mage = stage("MAGE", mage, FROZEN | {"rdm": "rdm"}, method__temperature=16.0, **budget)
    c.stages.mage_unconditional = stage(
        "MAGE without condition",
        mage,
        FROZEN,
        model__conditioning="none",
        method__temperature=8.0,  # of 4, 8 and 16 the best for it, as 16 is with a representation
        **budget,
    )
    c.samples = ConfigDict()
    c.samples.generate = ConfigDict({"task": "generate", "num": 64, "temperature": 16.0, "rdm_steps": 100})
    c.samples.guided = ConfigDict(
        {"task": "generate", "num": 64, "cfg_scale": 2.0, "temperature": 16.0, "rdm_steps": 100}
    )
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 2, "num": 8, "temperature": 16.0})
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8, "temperature": 16.0})
    return c
