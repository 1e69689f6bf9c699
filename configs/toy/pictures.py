"""The toy kitchen's pictures, drawn once: a config of `data.pictures` reads them.

python -m launch.prepare --config=configs/toy/pictures.py --out=runs/pictures
"""

from ml_collections import ConfigDict

from configs.common import images, parse_arg


def get_config(arg: str = "") -> ConfigDict:
    parse_arg(arg)
    c = ConfigDict()
    c.experiment = "chef_fusion.pictures"
    c.data = images(source="kitchen", image_size=64)
    return c
