"""A classifier of the toy kitchen's pictures, to say what made pictures show.

python -m launch.train --config=configs/chef_fusion/judge.py --workdir=runs/judge
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import recipes
from configs.common import parse_arg, training


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: runlocal."""
    arg = parse_arg(arg, runlocal=False)
    c = training()
    c.experiment = "chef_fusion.judge"
    c.model = ConfigDict({"widths": (32, 64, 128, 192), "num_groups": 8, "begin_at_half": False})
    # made pictures are softer than real ones: in training up to so many pixels (sigma) out of focus
    c.method = ConfigDict({"soften": 1.5})
    c.data = recipes(source="recipes_kitchen", image_size=64)
    c.data.augment = "flip"
    c.data.num_records = 20_000
    c.batch_size = 64
    c.total_steps = 3000
    c.optimizer.name, c.optimizer.muon_scale = "muon", 1.5
    c.optimizer.learning_rate = 2e-3
    c.optimizer.weight_decay = 0.02
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 100
    c.ema.decay = 0.99
    if arg.runlocal:
        c.model.update(widths=(8, 16))
        c.data.update(num_records=64, image_size=16)
        c.batch_size = 8
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.log_steps = 2
    return c
