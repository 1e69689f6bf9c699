"""The autoencoder of Stable Diffusion, from images alone.

    python -m launch.train --config=configs/chef_fusion/vae.py:variant=small --workdir=runs/vae \
        --config.data.path=<images>

Variants: published (512 px to 64 x 64 x 4), small (64 px to 16 x 16 x 4).
"""

from ml_collections import ConfigDict

from configs.common import images, parse_arg, training


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="published", runlocal=False)
    if arg.variant not in ("published", "small"):
        raise ValueError(f'variant "{arg.variant}" is not one of published, small')
    c = training()
    c.experiment = "chef_fusion.vae"
    c.components = ConfigDict({"perceptual": ""})  # folder of an rcg.lpips component; "": no such term
    c.model = ConfigDict()
    c.model.block_out_channels = (128, 256, 512, 512)
    c.model.layers_per_block = 2
    c.model.latent_channels = 4
    c.model.norm_num_groups = 32
    c.method = ConfigDict()
    c.method.l1_weight = 1.0
    c.method.l2_weight = 0.0
    c.method.perceptual_weight = 1.0  # where there is a perceptual component
    c.method.kl_weight = 1e-6
    c.method.adversarial_weight = 0.5  # relative to the terms above, measured in each step; 0: none
    c.method.adversarial_start_step = 50_000
    c.method.discriminator = ConfigDict({"ch": 64, "num_layers": 3, "num_groups": 32})
    c.data = images(image_size=256)
    c.data.augment = "random_crop_flip"
    c.batch_size = 96
    c.total_steps = 200_000
    c.optimizer.learning_rate = 1e-4
    c.optimizer.b1 = 0.5
    # clipped and scheduled apart from the autoencoder
    c.optimizer.groups.discriminator = ConfigDict({"params": "^discriminator/"})
    c.ema.decay = 0.999
    c.ema.params = "^(?!discriminator/)"
    if arg.variant == "small" or arg.runlocal:
        c.method.adversarial_weight = 0.0
        del c.optimizer.groups.discriminator
        c.method.discriminator.update(ch=32, num_layers=2, num_groups=8)
        c.model.update(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8)
        c.data.image_size = 64
        c.batch_size = 8
        c.total_steps = 2000
        c.optimizer.learning_rate = 1e-3
        c.optimizer.b1 = 0.9
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup_steps = 100
        c.checkpoint_steps = 500
    if arg.runlocal:
        c.model.update(block_out_channels=(8, 8, 8))
        c.batch_size = 8
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.log_steps = 2
    return c
