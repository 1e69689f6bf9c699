"""ChefFusion's joints over OPT, CLIP and Stable Diffusion.

    python -m launch.train --config=configs/chef_fusion/joints.py --workdir=runs/chef_fusion \
        --config.components.lm=runs/opt-6.7b --config.components.vision=runs/clip \
        --config.components.stable_diffusion=runs/sd15 --config.data.path=/data/recipe1m

Recipes: code (what the published weights were trained with: AdamW, l_g the mean distance, l_p over all
words), paper (Adam, squared l_g, l_p the loss of [IMG0] alone). Both are as long as the paper's, 14K steps;
the published command's is 7,000. Variants: published (OPT-6.7B, ViT-L/14, SD 1.5), small.
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import recipes
from configs.common import parse_arg, training


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., recipe=..., runlocal."""
    arg = parse_arg(arg, variant="published", recipe="code", runlocal=False)
    if arg.variant not in ("published", "small") or arg.recipe not in ("code", "paper"):
        raise ValueError(
            f'variant "{arg.variant}" is published or small, recipe "{arg.recipe}" code or paper'
        )
    c = training()
    c.experiment = "chef_fusion.joints"
    c.components = ConfigDict({"lm": "", "vision": "", "stable_diffusion": ""})
    # for evaluation only, "" without: what says what made pictures show, and RCG as a second image decoder
    c.components.update({"judge": "", "rdm": "", "mage": "", "tokenizer": ""})
    c.model = ConfigDict()
    c.model.image_first = 50266  # id of [IMG0]: OPT's 50265 tokens, <|image|>, then the eight
    c.model.num_visual_tokens = 4  # the paper's k
    c.model.num_image_tokens = 8  # the paper's m
    c.model.hidden_dim = 512  # of the mapper
    c.model.num_layers = 4  # of its encoder and of its decoder
    c.model.num_heads = 4
    c.model.tied = True  # the [IMG] rows of the head are their embeddings
    c.model.embed_dim = 0  # this and the next: as the components have it
    c.model.num_outputs = 0
    c.model.out_dim = 0
    c.method = ConfigDict()
    c.method.image_loss = "distance"  # distance (code), squared (paper)
    c.method.decision_loss = "sequence"  # sequence: all words and [IMG0] (code); token: [IMG0] alone (paper)
    c.method.caption_scale = 1.0  # weight of l_r
    c.method.decision_scale = 0.5  # of l_p
    c.method.image_scale = 1.0  # of l_g
    c.method.rescale_rows = True  # after each step the [IMG] rows get the mean norm of the others
    c.method.concat_captions = 0.0  # probability that a batch joins its examples in pairs (GILL: 0.5)
    c.method.targets = ""  # folder of launch.prepare's text states; "": computed in each step
    c.method.sample_steps = 50
    c.method.sample_size = 512
    c.method.scheduler = "pndm"
    c.method.cfg_scale = 7.5
    c.method.rcg_mage_steps = 20
    c.method.rcg_temperature = 6.0
    c.method.rcg_cfg_scale = 0.0
    c.method.eval_samples = 64  # held-out recipes that are written and painted; 0: losses alone
    c.method.eval_words = 256
    c.data = recipes(image_size=224)
    c.data.max_tokens = 300
    c.data.length_buckets = ()  # batches of shorter texts are only as long as one of these
    c.batch_size = 16
    c.total_steps = 14_000
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    if arg.recipe == "code":
        c.optimizer.weight_decay = 0.01
        c.optimizer.decay = "all"
        c.optimizer.clip_norm = 1.0
        c.optimizer.warmup_steps = 2000
        c.optimizer.schedule = "step"
        c.optimizer.epoch_steps = 1400
        c.optimizer.decay_steps = 5 * 1400
    else:
        c.method.update(image_loss="squared", decision_loss="token", decision_scale=1.0, rescale_rows=False)
    c.checkpoint_steps = 500
    if arg.variant == "small" or arg.runlocal:
        c.model.update(hidden_dim=128, num_layers=2)
        c.method.update(sample_steps=20, sample_size=64, scheduler="dpmpp", cfg_scale=3.0, eval_samples=31)
        c.data.image_size = 64
        c.data.length_buckets = (100, 200)
        c.data.target_text = "visible"
        c.total_steps = 1000
        c.optimizer.warmup_steps = 50
        c.checkpoint_steps = 200
    if arg.runlocal:
        c.model.update(hidden_dim=32, num_layers=1)
        c.method.update(sample_steps=2, eval_samples=8, eval_words=16)
        c.data.max_tokens, c.data.length_buckets = 48, ()
        c.batch_size = 8
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.log_steps = 2
    return c
