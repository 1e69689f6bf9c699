"""Tables 3 and 6c: scales of classifier-free guidance, on one trained chain.

    python -m launch.sweep --config=configs/sweeps/guidance.py:scale=cifar10 --config.path=<data> \
        --workdir=runs/guidance
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.sweep import member, sweep
from configs.sweeps.chain import chain, scale_of

SCALES = {"paper": (0.0, 1.0, 2.0, 3.0, 6.0), "cifar10": (0.0, 0.5, 1.0, 2.0, 4.0), "runlocal": (0.0, 2.0)}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: scale=paper|cifar10, runlocal."""
    scale = scale_of(parse_arg(arg, scale="paper", runlocal=False))
    members = []
    for value in SCALES[scale]:
        way = "generated_guided" if value else "generated"
        fields = {"mage__method__cfg_scale": value, "mage__method__eval_ways": way}
        members.append(member(f"guidance {value:g}", "mage", f"frechet_{way}", **fields))
    title = "Classifier-free guidance"
    x = "mage.method.cfg_scale"
    return sweep(chain(scale), "guidance", title, members, heading="Fréchet distance", x=x)
