"""RDM: representations from noise. Needs a trained or imported encoder.

    python -m launch.train --config=configs/rcg/rdm.py:variant=base --config.data.path=/data/imagenet \
        --config.components.encoder=runs/encoder/component --workdir=runs/rdm

Variants: base, large (the paper's Table 9 for ViT-B and ViT-L: one network, another encoder), small (32 px
images on two CPU cores), kitchen (drawn dishes). `conditional` adds class labels (appendix A).
"""

from ml_collections import ConfigDict

from configs.common import by_batch, images, parse_arg, training

VARIANTS = ("base", "large", "small", "kitchen")
IMAGENET = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., conditional, runlocal."""
    arg = parse_arg(arg, variant="base", conditional=False, runlocal=False)
    if arg.variant not in VARIANTS:
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(VARIANTS)}')
    c = training()
    c.experiment = "rcg.rdm"
    c.components = ConfigDict({"encoder": ""})  # folder of the frozen encoder's component

    c.model = ConfigDict()
    c.model.channels = 256  # size of the representation
    c.model.width = 1536
    c.model.bottleneck = 1536
    c.model.time_dim = 256
    c.model.depth = 12
    c.model.context_dim = 512  # of the class embedding
    c.model.num_classes = 1000 if arg.conditional else 0  # 0: unconditional
    c.model.beta_schedule = "sqrt_linear"  # the official code's; linear: the paper's word for it
    c.model.beta_start = 0.0015
    c.model.beta_end = 0.0195

    c.method = ConfigDict()
    c.method.rdm_steps = 250  # DDIM steps of panels and evaluation
    c.method.eta = 1.0  # 0 deterministic .. 1
    c.method.ddim_end = "published"  # published: at the first noise level; clean: at none
    c.method.eval_samples = 10_000

    c.data = images(image_size=256)
    c.data.augment = "random_crop_flip"

    c.batch_size = 512
    c.total_steps = 200 * (IMAGENET // c.batch_size)
    c.optimizer.learning_rate = by_batch(c, 1e-6)  # the official rule
    c.optimizer.weight_decay = 0.01
    c.optimizer.decay = "all"
    c.ema.decay = 0.9999
    c.ema.params = "^denoiser/"  # the class embedding is used raw, as published

    if arg.variant in ("small", "kitchen"):
        c.model.update(channels=128, width=512, bottleneck=512, time_dim=128, depth=6, context_dim=128)
        c.model.num_classes = 10 if arg.conditional else 0
        c.data = images(source="parquet", image_size=32)
        c.data.augment = "flip"
        c.batch_size = 256
        c.total_steps = 6000
        c.optimizer.learning_rate = 5e-4
        c.method.eval_samples = 5000
    if arg.variant == "kitchen":
        c.data = images(source="kitchen", image_size=32)
        c.data.augment = "flip"
        c.data.max_eval_records = 500
        c.model.update(width=256, bottleneck=256, depth=4)
        c.model.num_classes = 16 if arg.conditional else 0
        c.batch_size = 128
        c.total_steps = 600
    if arg.runlocal:
        c.model.update(channels=16, width=32, bottleneck=32, time_dim=16, depth=2, context_dim=16)
        c.model.num_classes = 16 if arg.conditional else 0
        augment = c.data.augment
        c.data = images(source="kitchen", image_size=32)
        c.data.augment = augment
        c.data.update(num_records=64, max_eval_records=32)
        c.method.update(rdm_steps=10, eval_samples=32)
        c.optimizer.learning_rate = float(c.optimizer.learning_rate)  # of the full batch
        c.batch_size = 16
        c.total_steps = 4
        c.log_steps = 2
        c.checkpoint_steps = 4
    return c
