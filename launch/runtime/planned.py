"""Components that are not there yet: `plan:opt/6.7b` stands for a published network in a dry run.

Their shapes are known, so parameters, memory and FLOPs of a run over them can be told before anything is
downloaded or converted.
"""

import dataclasses

from chef_fusion.backbones import clip, opt
from chef_fusion.backbones.stable_diffusion import unet, vae
from rcg import component
from rcg.component import Component
from rcg.errors import UserError

PREFIX = "plan:"
CLIP_L14 = {"vision": {"hidden_size": 1024}, "text": None, "projection_dim": 768}
# what is not said is the modules' default, which is the published size
TEXT = {"vision": None, "text": {"hidden_size": 768}, "projection_dim": 0}


def _clip() -> Component:
    fields = CLIP_L14
    return Component("clip", fields, clip.abstract_variables(fields))


def _stable_diffusion() -> Component:
    parts = {"text_encoder": (clip, TEXT), "unet": (unet, {}), "vae": (vae, {})}
    fields = {name: about for name, (_, about) in parts.items()}
    params = {name: module.abstract_variables(about)["params"] for name, (module, about) in parts.items()}
    return Component("stable_diffusion", fields, {"params": params})


def _opt(size: str) -> Component:
    fields = opt.resolve({"variant": size})
    return Component("opt", fields, opt.abstract_variables(fields))


PLANS = {"clip/large": _clip, "stable_diffusion/v1": _stable_diffusion} | {
    f"opt/{size}": (lambda size=size: _opt(size)) for size in opt.VARIANTS
}


def describe(path: str) -> Component:
    """`rcg.component.describe`, or what a `plan:` stands for.

    Raises:
      UserError: see there; an unknown plan.
    """
    if not path.startswith(PREFIX):
        return component.describe(path)
    name = path.removeprefix(PREFIX)
    if name not in PLANS:
        raise UserError(f'"{path}" is unknown; there are: {", ".join(PREFIX + p for p in PLANS)}')
    return dataclasses.replace(PLANS[name](), provenance={"source": path}, content_hash="planned")
