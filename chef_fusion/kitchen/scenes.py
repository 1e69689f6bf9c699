"""The picture of a dish."""

import numpy as np

from chef_fusion.kitchen import from_above, from_side
from chef_fusion.kitchen.menu import Dish
from chef_fusion.kitchen.paint import Painter
from chef_fusion.kitchen.staging import table

SCENES = {
    "pizza": from_above.pizza,
    "salad": from_above.salad,
    "soup": from_above.soup,
    "pasta": from_above.pasta,
    "burger": from_side.burger,
    "sandwich": from_side.sandwich,
    "curry": from_above.curry,
    "sushi": from_above.sushi,
    "cake": from_side.cake,
    "pancakes": from_side.pancakes,
    "tacos": from_side.tacos,
    "skillet": from_above.skillet,
    "ramen": from_above.ramen,
    "tart": from_above.tart,
    "sundae": from_side.sundae,
    "doughnuts": from_above.doughnuts,
}


def draw(dish: Dish, size: int) -> np.ndarray:
    """The picture of a dish: uint8 [size, size, 3], `size` from 16 to 1024.

    Raises:
      ValueError: a size out of range.
    """
    if not 16 <= size <= 1024:
        raise ValueError(f"the kitchen draws 16 to 1024 pixels, not {size}")
    painter = Painter(size, dish.style.light)
    table(painter, dish)
    SCENES[dish.base](painter, dish)
    return painter.finish(dish.style.warmth, dish.style.vignette)
