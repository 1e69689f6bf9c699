"""VQGAN: the tokenizer, from images alone.

    python -m launch.train --config=configs/rcg/vqgan.py:variant=official --config.data.path=/data/imagenet \
        --workdir=runs/vqgan

Variants: official (the published network, 256 px to 16 x 16 tokens; its training recipe is taming's, the
published weights' own is not known), small (32 px to 8 x 8 tokens, CIFAR-10: five minutes on a CPU core),
kitchen (drawn dishes, otherwise as small: a minute and a half). `adversarial` adds the discriminator to the
small ones.
"""

from ml_collections import ConfigDict

from configs.common import images, parse_arg, training

VARIANTS = ("official", "small", "kitchen")


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., adversarial, runlocal."""
    arg = parse_arg(arg, variant="official", adversarial=False, runlocal=False)
    if arg.variant not in VARIANTS:
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(VARIANTS)}')
    c = training()
    c.experiment = "rcg.vqgan"
    c.components = ConfigDict({"perceptual": ""})  # folder of an rcg.lpips component; "": no such term

    c.model = ConfigDict()
    c.model.ch = 128
    c.model.ch_mult = (1, 1, 2, 2, 4)  # of ch, a level each; the resolution halves between levels
    c.model.num_res_blocks = 2  # a level
    c.model.z_channels = 256  # of a code
    c.model.codebook_size = 1024
    c.model.num_groups = 32  # of the GroupNorms

    c.method = ConfigDict()
    c.method.l1_weight = 1.0
    c.method.l2_weight = 0.0
    c.method.perceptual_weight = 1.0  # where there is a perceptual component
    c.method.codebook = "gradient"  # gradient (the official code's), running_mean (uses all codes at once)
    c.method.beta = 0.25  # of the codes' term in the legacy order, of the latents' else
    c.method.legacy_order = True  # the official code's, which holds the latents to the codes the harder
    c.method.codebook_decay = 0.9  # running_mean: share that stays per step
    c.method.revive_below = (
        0.1  # running_mean: a code chosen less than this, 1 being its fair share, starts anew
    )
    c.method.quantize_start_step = 0  # until then an autoencoder
    c.method.adversarial_weight = 0.8  # 0: no discriminator
    c.method.adversarial_start_step = 10_000
    c.method.adaptive_weight = True  # scales adversarial_weight so that its gradient matches the distance's
    c.method.discriminator = ConfigDict({"ch": 64, "num_layers": 3, "num_groups": 32})

    c.data = images(image_size=256)
    c.data.augment = "random_crop_flip"

    c.batch_size = 256
    c.total_steps = 500_000
    c.optimizer.learning_rate = 1e-4
    c.optimizer.b1, c.optimizer.b2 = 0.5, 0.9
    c.panel_steps = 5000
    c.checkpoint_steps = 5000

    if arg.variant in ("small", "kitchen"):
        _little(c, arg.adversarial)
        if arg.variant == "kitchen":
            _kitchen(c)
    if c.method.adversarial_weight:
        rate = c.optimizer.learning_rate if arg.variant == "official" else 3e-4
        c.optimizer.groups.discriminator = ConfigDict(
            {"params": "^discriminator/", "learning_rate": rate, "b1": 0.5, "b2": 0.9}
        )
    if arg.runlocal:
        _runlocal(c)
    return c


def _little(c: ConfigDict, adversarial: bool) -> None:
    """CIFAR-10: a CPU core, five minutes, 24.0 dB and all codes in use on its 5000 test images."""
    # one width throughout: where it changes, a block cuts its shortcut, and colours are long in coming
    c.model.update(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=32, codebook_size=256, num_groups=4)
    c.method.update(l1_weight=0.0, l2_weight=10.0, codebook="running_mean", legacy_order=False)
    c.method.update(quantize_start_step=500, codebook_decay=0.98)
    c.method.adversarial_weight = 0.1 if adversarial else 0.0
    c.method.adversarial_start_step = 3000
    c.method.discriminator.update(ch=16, num_layers=2, num_groups=8)
    c.data = images(source="parquet", image_size=32)
    c.data.augment = "flip"
    # steps count here, not images: eight images say as well as 32 where to go
    c.batch_size = 8
    c.total_steps = 6000
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.b1, c.optimizer.b2 = 0.9, 0.99
    c.panel_steps = 0
    c.log_steps = 100
    c.checkpoint_steps = 1000


def _kitchen(c: ConfigDict) -> None:
    """Drawn dishes: a minute and a half."""
    c.model.ch = 24
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = "flip"
    c.data.max_eval_records = 500
    c.total_steps = 2000
    c.method.adversarial_start_step = 1000


def _runlocal(c: ConfigDict) -> None:
    """Any variant, tiny: seconds on a CPU."""
    c.model.update(ch=8, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, num_groups=4)
    c.method.discriminator.update(ch=8, num_layers=2, num_groups=4)
    c.method.update(quantize_start_step=1, adversarial_start_step=2, codebook_decay=0.9)
    augment = c.data.augment
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = augment
    c.data.update(num_records=64, max_eval_records=32)
    c.batch_size = 16
    c.total_steps = 4
    c.log_steps = 2
    c.panel_steps = 0
    c.checkpoint_steps = 4
