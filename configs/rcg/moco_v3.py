r"""MoCo v3: the encoder, from images alone.

    python -m launch.train --config=configs/rcg/moco_v3.py:variant=base --workdir=runs/encoder \
        --config.data.path=/data/imagenet

Variants: vit_small, base, large (the paper's recipe, 224 px, ImageNet's size); small (32 px, CIFAR-10: about
25 minutes on two CPU cores); kitchen (drawn dishes: a minute and a half).
"""

from ml_collections import ConfigDict

from configs.common import by_batch, images, parse_arg, training

SIZES = {"vit_small": (384, 12, 12), "base": (768, 12, 12), "large": (1024, 24, 16)}  # dim, depth, heads
IMAGENET = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="base", runlocal=False)
    c = training()
    c.experiment = "rcg.moco_v3"

    c.model = ConfigDict()
    c.model.image_size = 224  # of the views, and of what the encoder takes
    c.model.patch_size = 16
    c.model.dim = 768
    c.model.depth = 12
    c.model.num_heads = 12
    c.model.mlp_ratio = 4.0
    c.model.stem = "patch"  # patch (the published encoders'); conv: learns faster on small images
    c.model.head_hidden = 4096
    c.model.head_out = 256  # size of the representation

    c.method = ConfigDict()
    c.method.predictor_hidden = 4096
    c.method.temperature = 0.2
    c.method.momentum = 0.99  # of the momentum encoder at the start; 1 at the end, by a cosine
    c.method.stop_grad_conv1 = True  # keeps the random patch projection, which makes training stable
    c.method.augment = ConfigDict()
    c.method.augment.crop_scale = (0.08, 1.0)  # share of the area
    c.method.augment.brightness = 0.4
    c.method.augment.contrast = 0.4
    c.method.augment.saturation = 0.2
    c.method.augment.hue = 0.1
    c.method.augment.jitter_probability = 0.8
    c.method.augment.grey_probability = 0.2
    c.method.augment.blur_probability = (1.0, 0.1)  # of the two views
    c.method.augment.blur_sigma = (0.1, 2.0)  # pixels of the view
    c.method.augment.solarize_probability = (0.0, 0.2)  # of the two views
    c.method.augment.flip_probability = 0.5
    c.method.knn_k = 20
    c.method.eval_bank = 50_000  # training images that k-NN and the linear probe learn from; 0: all

    c.data = images(image_size=256)

    # 300 epochs of 312 steps, the first 40 warming up; the rate is 1.5e-4 a 256 images
    c.batch_size = 4096
    steps_per_epoch = IMAGENET // c.batch_size
    c.total_steps = 300 * steps_per_epoch
    c.optimizer.warmup_steps = 40 * steps_per_epoch
    c.optimizer.learning_rate = by_batch(c, 1.5e-4, per=256)
    c.optimizer.weight_decay = 0.1
    c.optimizer.decay = "all"
    c.optimizer.schedule = "cosine"
    # learning rate 0 keeps weight decay off them too
    c.optimizer.groups.frozen = ConfigDict(
        {"params": "encoder/(pos_embed|patch_embed)", "learning_rate": 0.0}
    )
    c.panel_steps = 10 * steps_per_epoch
    c.compute.scan_layers = True

    if arg.variant in SIZES:
        c.model.dim, c.model.depth, c.model.num_heads = SIZES[arg.variant]
    elif arg.variant in ("small", "kitchen"):
        _little(c)
        if arg.variant == "kitchen":
            _kitchen(c)
    else:
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(SIZES)}, small, kitchen')
    if arg.runlocal:
        _runlocal(c)
    return c


def _little(c: ConfigDict) -> None:
    """CIFAR-10: two CPU cores, 25 minutes."""
    c.data = images(source="parquet", image_size=32)
    c.data.augment = "none"
    c.model.update(image_size=32, patch_size=8, dim=128, depth=4, num_heads=4)
    c.model.update(stem="conv", head_hidden=512, head_out=128)
    c.method.predictor_hidden = 512
    c.method.stop_grad_conv1 = False
    c.method.augment.crop_scale = (0.2, 1.0)
    c.method.augment.blur_probability = (0.0, 0.0)  # 32 pixels have no detail to lose
    c.method.augment.solarize_probability = (0.0, 0.0)
    c.batch_size = 128
    c.total_steps = 3600
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 300
    c.optimizer.weight_decay = 0.05
    c.optimizer.decay = "matrices"
    c.optimizer.groups.frozen.params = "encoder/pos_embed"
    c.panel_steps = 0
    c.compute.scan_layers = False


def _kitchen(c: ConfigDict) -> None:
    """Drawn dishes: a minute and a half."""
    c.method.momentum = 0.95  # 500 steps are few
    c.method.augment.brightness = 0.2
    c.method.augment.saturation = 0.1  # colour is most of what tells dishes apart
    c.method.augment.hue = 0.02
    c.method.augment.grey_probability = 0.0
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = "none"
    c.data.max_eval_records = 500
    c.model.update(dim=96, depth=3, num_heads=3)
    c.method.eval_bank = 2000
    c.batch_size = 64
    c.total_steps = 500
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 20


def _runlocal(c: ConfigDict) -> None:
    """Any variant, tiny: seconds on a CPU."""
    c.optimizer.learning_rate = float(c.optimizer.learning_rate)  # of the full batch
    c.model.update(image_size=32, patch_size=8, dim=32, depth=2, num_heads=2, head_hidden=32, head_out=16)
    c.method.predictor_hidden = 32
    c.method.eval_bank = 64
    augment = c.data.augment
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = augment
    c.data.max_eval_records = 32
    c.data.num_records = 64
    c.batch_size = 16
    c.total_steps = 4
    c.log_steps = 2
    c.panel_steps = 0
    c.checkpoint_steps = 4
    c.optimizer.warmup_steps = 1
