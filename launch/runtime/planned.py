"""Components that are not there yet: `plan:opt/6.7b` stands for a published network in a dry run, and
`plan:configs/rcg/moco_v3.py:variant=large` for the one that a config would train.

Their shapes are known, so parameters, memory and FLOPs of a run over them can be told before anything is
downloaded or converted.
"""

import dataclasses
import os

import jax

from chef_fusion.backbones import clip, opt
from chef_fusion.backbones.stable_diffusion import unet, vae
from launch.runtime import cli, registry
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


def _trained_by(file: str) -> Component:
    config = cli.read_config(file)
    described = {name: describe(path) for name, path in config.get("components", {}).items() if path}
    factory = registry.resolve(registry.EXPERIMENTS, config.experiment, "config.experiment")
    experiment = factory(config, described, None)
    frozen = {name: held.variables for name, held in described.items()}

    def made(key, frozen):
        variables = experiment.export(*experiment.init(key))
        return experiment.compose(variables, frozen) if experiment.compose else variables

    variables = jax.eval_shape(made, jax.random.key(0), frozen)
    return Component(experiment.kind, experiment.architecture, variables)


def describe(path: str) -> Component:
    """`rcg.component.describe`, or what a `plan:` stands for.

    Raises:
      UserError: see there; an unknown plan.
    """
    if not path.startswith(PREFIX):
        return component.describe(path)
    name = path.removeprefix(PREFIX)
    if os.path.isfile(name.partition(":")[0]):
        try:
            planned = _trained_by(name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    elif name in PLANS:
        planned = PLANS[name]()
    else:
        raise UserError(
            f'"{path}" is unknown; there are: {", ".join(PREFIX + p for p in PLANS)}, and configs\' files'
        )
    return dataclasses.replace(planned, provenance={"source": path}, content_hash=component.PLANNED)
