"""The toy kitchen: dishes drawn from a seed, with recipes that say exactly what is on the plate.

    made = dish(seed=0, index=7)
    image, text = draw(made, 64), recipe(made)
    spicier = with_(made, "red chili")  # what goes with a base: made.groups

The same (seed, index) gives the same dish, picture and words in every process.
"""

from chef_fusion.kitchen.menu import (
    BASES,
    INGREDIENTS,
    SPLITS,
    Dish,
    Style,
    bases,
    dish,
    ingredients,
    instead,
    partition,
    with_,
    without,
)
from chef_fusion.kitchen.scenes import draw
from chef_fusion.kitchen.source import KitchenSource, open_source, picture
from chef_fusion.kitchen.words import read, recipe

__all__ = [
    "BASES",
    "INGREDIENTS",
    "SPLITS",
    "Dish",
    "KitchenSource",
    "Style",
    "bases",
    "dish",
    "draw",
    "ingredients",
    "instead",
    "open_source",
    "partition",
    "picture",
    "read",
    "recipe",
    "with_",
    "without",
]
