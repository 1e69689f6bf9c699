"""MAGE: images from representations. Needs a tokenizer and an encoder.

    python -m launch.train --config=configs/rcg/mage.py:variant=large --config.data.path=/data/imagenet \
        --config.components.encoder=runs/encoder/component \
        --config.components.tokenizer=runs/tokenizer/component --workdir=runs/mage

Variants: base, large, huge (the paper's Tables 9 and 10, 256 px), small (32 px, 8 x 8 tokens: two CPU
cores), kitchen (drawn dishes, otherwise as small).
"""

from ml_collections import ConfigDict

from configs.common import by_batch, images, parse_arg, training

VARIANTS = ("base", "large", "huge", "small", "kitchen")
IMAGENET = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., epochs=... (the paper: 200 for ablations, 800 in the end), recipe=code|paper (which
    differ in the augmentation), runlocal."""
    arg = parse_arg(arg, variant="base", epochs=200, recipe="code", runlocal=False)
    if arg.recipe not in ("code", "paper"):
        raise ValueError(f'recipe "{arg.recipe}" is not one of code, paper')
    if arg.variant not in VARIANTS:
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(VARIANTS)}')
    c = training()
    c.experiment = "rcg.mage"
    # folders of components; rdm is for evaluation only and may be left out. Where conditioning is class, the
    # data's labels are taken, or those of clusters (configs/rcg/kmeans.py). features: what measures, instead
    # of the encoder, such as FID-Inception
    c.components = ConfigDict({"tokenizer": "", "encoder": "", "rdm": "", "clusters": "", "features": ""})

    c.model = ConfigDict()
    c.model.variant = arg.variant if arg.variant in ("base", "large", "huge") else "small"  # widths, depths
    c.model.num_tokens = 256  # of one image
    c.model.codebook_size = 1024
    c.model.class_slots = 1000  # unused ids of the published vocabulary
    c.model.conditioning = "representation"  # representation, class, none
    c.model.rep_dim = 256
    c.model.num_classes = 1000  # where conditioning is class
    c.model.rep_drop_prob = 0.1  # for guidance
    c.model.dropout_rate = 0.1
    c.model.mask_ratio_mean = 0.75
    c.model.mask_ratio_std = 0.25
    c.model.label_smoothing = 0.1

    c.method = ConfigDict()
    c.method.mage_steps = 20  # decoding steps of panels and evaluation
    c.method.temperature = 11.0 if arg.variant in ("large", "huge") else 6.0
    c.method.cfg_scale = 0.0  # also measure generation with this guidance; 0: do not
    c.method.rdm_steps = 250
    c.method.eta = 1.0
    c.method.ddim_end = "published"  # published: at the first noise level; clean: at none
    c.method.eval_samples = 10_000
    c.method.eval_ways = ""  # what evaluation paints: "oracle,generated"; "": everything there is
    c.method.reference = ""  # npz of statistics to measure against; "": the eval split's own

    c.data = images(image_size=256)
    c.data.augment = "random_crop_flip" if arg.recipe == "paper" else "center_crop"
    c.data.resize = 0 if arg.recipe == "paper" else 292

    c.batch_size = 4096
    steps_per_epoch = IMAGENET // c.batch_size
    c.total_steps = arg.epochs * steps_per_epoch
    c.optimizer.learning_rate = by_batch(c, 1.5e-4, per=256)
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.05
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 10 * steps_per_epoch
    c.optimizer.clip_norm = 3.0
    c.panel_steps = 5 * steps_per_epoch
    c.compute.scan_layers = True

    if arg.variant in ("small", "kitchen"):
        _little(c)
        if arg.variant == "kitchen":
            _kitchen(c)
    if arg.runlocal:
        _runlocal(c)
    return c


def _little(c: ConfigDict) -> None:
    """CIFAR-10: two CPU cores, an hour."""
    c.model.update(num_tokens=64, codebook_size=256, class_slots=16, rep_dim=128, num_classes=10)
    c.model.dropout_rate = 0.0  # eight epochs leave nothing to regularise
    # measured: less noise makes smoother pictures that are further from the data
    c.method.update(cfg_scale=2.0, eval_samples=2000, rdm_steps=100, temperature=15.0)
    c.data = images(source="parquet", image_size=32)
    c.data.augment = "flip"
    c.data.max_eval_records = 2000
    c.batch_size = 64
    c.total_steps = 6000
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "constant"  # with EMA in its stead a run may be ended early or prolonged
    c.optimizer.warmup_steps = 100
    c.ema.decay = 0.999
    c.panel_steps = 0
    c.compute.scan_layers = False


def _kitchen(c: ConfigDict) -> None:
    """Drawn dishes: three minutes."""
    c.model.update(variant="little", num_classes=16)
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = "flip"
    c.data.max_eval_records = 256
    c.method.update(eval_samples=256, cfg_scale=0.0, temperature=6.0)
    c.batch_size = 16
    c.total_steps = 3000


def _runlocal(c: ConfigDict) -> None:
    """Any variant, tiny: seconds on a CPU."""
    c.optimizer.learning_rate = float(c.optimizer.learning_rate)  # of the full batch
    c.model.update(variant="tiny", num_tokens=64, codebook_size=16, class_slots=4, rep_dim=16, num_classes=16)
    c.method.update(mage_steps=4, rdm_steps=10, eval_samples=32)
    augment = c.data.augment
    c.data = images(source="kitchen", image_size=32)
    c.data.augment = augment
    c.data.update(num_records=64, max_eval_records=32)
    c.batch_size = 16
    c.total_steps = 4
    c.log_steps = 2
    c.panel_steps = 0
    c.checkpoint_steps = 4
    c.optimizer.warmup_steps = 1
    c.compute.scan_layers = False
