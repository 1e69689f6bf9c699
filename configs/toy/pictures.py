"""The toy kitchen's pictures, drawn once: `data.pictures` of other configs, which agree in menu and size.

    python -m launch.prepare --config=configs/toy/pictures.py --config.data.menu=short --out=runs/pictures

A dish of 64 px takes a thirtieth of a second to draw, longer than the small CLIP needs to learn from it.
"""

from ml_collections import ConfigDict

from configs.common import images, parse_arg


def get_config(arg: str = "") -> ConfigDict:
    """Has no `arg`."""
    parse_arg(arg)
    c = ConfigDict()
    c.experiment = "chef_fusion.pictures"
    c.data = images(source="kitchen", image_size=64)
    return c
