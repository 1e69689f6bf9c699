"""The RDM that makes a dish's representation from its recipe, so that RCG can paint for the chef.

    python -m launch.train --config=configs/chef_fusion/recipe_rdm.py --workdir=runs/recipe_rdm \
        --config.components.encoder=runs/encoder/component --config.components.stable_diffusion=sd \
        --config.data.path=/data/recipe1m

Variants: base (the paper's RDM), kitchen (drawn dishes).
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import recipes
from configs.common import parse_arg
from configs.rcg import rdm


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="base", runlocal=False)
    if arg.variant not in ("base", "kitchen"):
        raise ValueError(f'variant "{arg.variant}" is not one of base, kitchen')
    c = rdm.get_config(f"variant={arg.variant}{',runlocal' * arg.runlocal}")
    c.experiment = "chef_fusion.recipe_rdm"
    c.components = ConfigDict({"encoder": "", "stable_diffusion": ""})
    # the encoder says how large a representation is, the text encoder what it is told
    for name in ("num_classes", "channels"):
        del c.model[name]
    old, c.data = c.data, recipes(image_size=c.data.image_size)
    c.data.max_eval_records = old.max_eval_records
    c.data.target_text = "visible"
    c.ema.params = ".*"  # what reads the recipe is trained here, too
    if arg.variant == "kitchen" or arg.runlocal:
        c.data.update(source="recipes_kitchen", augment="none", num_records=old.num_records, menu=old.menu)
    return c
