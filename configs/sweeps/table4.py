"""Table 4: the encoder that makes the representations.

    python -m launch.sweep --config=configs/sweeps/table4.py:part=a --config.path=<data> \
        --workdir=runs/table4a --config.given.dino=components/dino ...

Parts: a, how it was pre-trained (published ViT-B's, converted by launch.convert; at the small scales MoCo v3
stands against random weights), b, its size, c, the size of the representation.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import stage
from configs.sweep import member, sweep
from configs.sweeps.chain import VARIANT, chain, scale_of

PUBLISHED = {"dino": "DINO", "ibot": "iBOT", "deit": "DeiT"}
TITLES = {"a": "Pre-training of the encoder", "b": "Size of the encoder", "c": "Size of the representation"}
SIZES = {"paper": ("vit_small", "base", "large"), "cifar10": (64, 128, 192), "runlocal": (16, 32)}
REPRESENTATIONS = {"paper": (32, 64, 128, 256), "cifar10": (32, 64, 128), "runlocal": (8, 16)}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: part=a|b|c, scale=paper|cifar10, runlocal."""
    arg = parse_arg(arg, part="a", scale="paper", runlocal=False)
    scale, base = scale_of(arg), chain(scale_of(arg))
    if arg.part not in TITLES:
        raise ValueError(f'part "{arg.part}" is not one of {", ".join(TITLES)}')
    moco = f"configs/rcg/moco_v3.py:{VARIANT[scale]}"
    # all in one space: FID-Inception's, or where that is not given, of the chain's own encoder
    measured = {"mage__method__eval_ways": "generated", "mage__components__features": "judge"}
    base.stages.judge = base.stages.encoder.copy_and_resolve_references()

    def row(name, **fields):
        return member(name, "mage", "frechet_generated", **measured, **fields)

    def on(encoder):
        return {f"{name}__components__encoder": encoder for name in ("rdm", "mage")}

    if arg.part == "a":
        base.stages.random = stage(
            "Random ViT", moco, total_steps=1, optimizer__learning_rate=0.0, optimizer__warmup_steps=0
        )
        members = [row("MoCo v3"), row("random weights", **on("random"))]
        if scale == "paper":
            for name, title in PUBLISHED.items():
                base.stages[name] = stage(title, "")  # must be given
                size = 768 if name == "deit" else 256
                sizes = {"rdm__model__channels": size, "mage__model__rep_dim": size}
                members.append(row(title, **on(name), **sizes))
    elif arg.part == "b" and scale == "paper":
        members = [
            row(size, encoder__config=f"configs/rcg/moco_v3.py:variant={size}") for size in SIZES[scale]
        ]
    elif arg.part == "b":
        members = [row(f"width {size}", encoder__model__dim=size) for size in SIZES[scale]]
    else:
        members = [
            row(f"{n} values", encoder__model__head_out=n, rdm__model__channels=n, mage__model__rep_dim=n)
            for n in REPRESENTATIONS[scale]
        ]
    return sweep(base, f"table4{arg.part}", TITLES[arg.part], members, heading="Fréchet distance")
