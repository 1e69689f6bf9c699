"""Table 5: the representation diffusion model.

    python -m launch.sweep --config=configs/sweeps/table5.py:part=d,scale=cifar10 --config.path=<data> \
        --workdir=runs/table5d

Parts: a, blocks, b, width, c, length of training, d, DDIM steps.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.sweep import member, sweep
from configs.sweeps.chain import chain, scale_of

EPOCH = 1_281_167 // 512  # steps
TITLES = {"a": "Blocks of the RDM", "b": "Width of the RDM", "c": "Training of the RDM", "d": "DDIM steps"}
VALUES = {
    "a": {"paper": (3, 6, 12, 18), "cifar10": (2, 4, 6, 8), "runlocal": (1, 2)},
    "b": {"paper": (256, 512, 1024, 1536, 2048), "cifar10": (128, 256, 512), "runlocal": (16, 32)},
    "c": {
        "paper": tuple(epochs * EPOCH for epochs in (10, 50, 100, 200)),
        "cifar10": (250, 500, 1000, 1500),
        "runlocal": (2, 4),
    },
    "d": {
        "paper": (20, 50, 100, 250, 500),
        "cifar10": (5, 10, 20, 50, 100, 250, 500),
        "runlocal": (2, 10),
    },
}
FIELDS = {
    "a": ("rdm.model.depth",),
    "b": ("rdm.model.width", "rdm.model.bottleneck"),
    "c": ("rdm.total_steps",),
    "d": ("mage.method.rdm_steps",),
}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: part=a|b|c|d, scale=paper|cifar10, runlocal."""
    arg = parse_arg(arg, part="d", scale="paper", runlocal=False)
    scale = scale_of(arg)
    if arg.part not in TITLES:
        raise ValueError(f'part "{arg.part}" is not one of {", ".join(TITLES)}')
    fields = FIELDS[arg.part]
    members = [
        member(
            f"{fields[0].split('.')[-1]} {value}",
            "mage",
            "frechet_generated",
            mage__method__eval_ways="generated",
            **{field.replace(".", "__"): value for field in fields},
        )
        for value in VALUES[arg.part][scale]
    ]
    title = TITLES[arg.part]
    return sweep(chain(scale), f"table5{arg.part}", title, members, heading="Fréchet distance", x=fields[0])
