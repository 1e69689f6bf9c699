"""The chain that the paper's comparisons change, at three scales.

paper     ImageNet at 256 px, ViT-B encoder, MAGE-B for 200 epochs, RDM for 100: --config.path=<images>, and
          --config.given.encoder, --config.given.tokenizer for the published networks
cifar10   --config.path=<folder of Parquet files>; a quarter of an hour on a CPU core for a MAGE
runlocal  the toy kitchen and tiny networks: seconds for each
"""

from typing import Any

from ml_collections import ConfigDict

from configs.pipeline import stage

SCALES = ("paper", "cifar10", "runlocal")
VARIANT = {"paper": "variant=base", "cifar10": "variant=small", "runlocal": "runlocal"}
FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def scale_of(arg: Any) -> str:
    """ "runlocal", or the value of `scale`.

    Raises:
      ValueError: there is no such scale.
    """
    scale = "runlocal" if arg.runlocal else arg.scale
    if scale not in SCALES:
        raise ValueError(f'scale "{scale}" is not one of {", ".join(SCALES)}')
    return scale


def chain(scale: str) -> ConfigDict:
    """A pipeline's `path` and `stages`: encoder, tokenizer, clusters, rdm, mage."""
    variant = VARIANT[scale]
    options: dict[str, dict[str, Any]] = {name: {} for name in ("encoder", "tokenizer", "rdm", "mage")}
    tokenizer = "variant=official" if scale == "paper" else variant
    if scale == "paper":
        options["rdm"] = {"total_steps": 100 * (1_281_167 // 512)}
    if scale == "cifar10":
        options["encoder"] = {"total_steps": 1800, "checkpoint_steps": 300, "optimizer__warmup_steps": 150}
        options["rdm"] = {"total_steps": 1500}
        options["mage"] = {
            "model__variant": "little",
            "batch_size": 32,
            "total_steps": 4000,
            "method__eval_samples": 1000,
            "method__cfg_scale": 0.0,
        }
    c = ConfigDict()
    c.path = ""
    c.stages = ConfigDict()
    c.stages.encoder = stage("MoCo v3", f"configs/rcg/moco_v3.py:{variant}", **options["encoder"])
    c.stages.tokenizer = stage("VQGAN", f"configs/rcg/vqgan.py:{tokenizer}", **options["tokenizer"])
    c.stages.clusters = stage("k-means", f"configs/rcg/kmeans.py:{variant}", {"encoder": "encoder"})
    c.stages.rdm = stage("RDM", f"configs/rcg/rdm.py:{variant}", {"encoder": "encoder"}, **options["rdm"])
    mage = f"configs/rcg/mage.py:{variant}"
    c.stages.mage = stage("MAGE", mage, FROZEN | {"rdm": "rdm"}, **options["mage"])
    return c
