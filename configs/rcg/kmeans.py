"""k-means over representations: labels for MAGE without labels (RCG's clustering ablation).

    python -m launch.train --config=configs/rcg/kmeans.py:variant=large --config.data.path=/data/imagenet \
        --config.components.encoder=runs/encoder/component --workdir=runs/clusters

    python -m launch.train --config=configs/rcg/mage.py --config.model.conditioning=class \
        --config.components.clusters=runs/clusters/component ...

Variants: base, large (ImageNet, 1000 clusters), small (32 px images on two CPU cores), kitchen (drawn
dishes).
"""

from ml_collections import ConfigDict

from configs.common import images, parse_arg, training

VARIANTS = ("base", "large", "small", "kitchen")


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="base", runlocal=False)
    if arg.variant not in VARIANTS:
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(VARIANTS)}')
    c = training()
    c.experiment = "rcg.kmeans"
    c.components = ConfigDict({"encoder": ""})  # folder of the frozen encoder's component

    c.model = ConfigDict()
    c.model.num_clusters = 1000
    c.model.dim = 256  # size of the representation

    c.method = ConfigDict()
    c.method.decay = 0.99  # share of the centres' running means that stays per step

    c.data = images(image_size=256)
    c.batch_size = 4096
    c.total_steps = 600  # two passes over ImageNet
    c.checkpoint_steps = 100

    if arg.variant in ("small", "kitchen"):
        c.model.update(dim=128, num_clusters=10 if arg.variant == "small" else 16)
        c.data = images(source="parquet" if arg.variant == "small" else "kitchen", image_size=32)
        c.batch_size = 1000
        c.total_steps = 150
    if arg.runlocal:
        c.model.update(num_clusters=4, dim=16)
        c.data = images(source="kitchen", image_size=32)
        c.data.update(num_records=64, max_eval_records=32)
        c.batch_size = 16
        c.total_steps = 8
        c.log_steps = 2
        c.checkpoint_steps = 4
    return c
