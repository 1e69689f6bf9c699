"""A sweep that takes half a minute: an RDM, measured with two kinds of DDIM."""

from configs.sweep import member, sweep
from configs.sweeps.chain import chain


def get_config(arg=""):
    members = [
        member(f"eta {eta}", "rdm", "rdm_frechet", rdm__method__eta=eta, rdm__method__rdm_steps=2)
        for eta in (0.0, 1.0)
    ]
    return sweep(chain("runlocal"), "tiny", "DDIM", members, heading="distance", x="rdm.method.eta")
