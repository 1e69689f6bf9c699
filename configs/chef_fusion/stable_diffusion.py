"""Stable Diffusion's UNet, in the latents of an autoencoder, told by a CLIP text encoder.

    python -m launch.train --config=configs/chef_fusion/stable_diffusion.py:variant=small --workdir=runs/sd \
        --config.components.clip=runs/clip/component --config.components.vae=runs/vae/component \
        --config.data.path=<recipes>

The exported component holds all three. Variants: published (v1.5's UNet), small (64 px).
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import recipes
from configs.common import parse_arg, training


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="published", runlocal=False)
    if arg.variant not in ("published", "small"):
        raise ValueError(f'variant "{arg.variant}" is not one of published, small')
    c = training()
    c.experiment = "chef_fusion.stable_diffusion"
    c.components = ConfigDict({"clip": "", "vae": ""})
    c.model = ConfigDict()
    c.model.block_out_channels = (320, 640, 1280, 1280)
    c.model.attention_blocks = (True, True, True, False)
    c.model.layers_per_block = 2
    c.model.attention_head_dim = 8  # number of heads, as published
    c.model.cross_attention_dim = 768
    c.model.norm_num_groups = 32
    c.method = ConfigDict()
    c.method.drop_text = 0.1  # how often the text is empty, for guidance
    c.method.snr_gamma = 0.0  # weighs timesteps of little noise down (Min-SNR; 5 is usual); 0: all alike
    c.method.sample_steps = 50
    c.method.scheduler = "pndm"
    c.method.cfg_scale = 7.5
    c.method.eval_samples = 256
    c.data = recipes(image_size=512)
    c.batch_size = 2048
    c.total_steps = 200_000
    c.optimizer.learning_rate = 1e-4
    c.optimizer.weight_decay = 0.01
    c.optimizer.warmup_steps = 10_000
    c.ema.decay = 0.9999
    if arg.variant == "small" or arg.runlocal:
        c.model.update(block_out_channels=(64, 128, 128), attention_blocks=(False, True, True))
        c.model.update(layers_per_block=1, attention_head_dim=4, cross_attention_dim=128, norm_num_groups=8)
        c.method.update(sample_steps=20, scheduler="dpmpp", cfg_scale=3.0, eval_samples=32)
        c.data.image_size = 64
        c.data.target_text = "visible"
        c.batch_size = 8
        c.total_steps = 2500
        c.optimizer.learning_rate = 5e-4
        c.optimizer.warmup_steps = 100
        c.optimizer.schedule = "cosine"
        c.ema.decay = 0.998
        c.checkpoint_steps = 500
    if arg.runlocal:
        c.model.update(block_out_channels=(16, 16, 16), cross_attention_dim=32)
        c.method.update(sample_steps=2, eval_samples=8)
        c.batch_size = 8
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.log_steps = 2
    return c
