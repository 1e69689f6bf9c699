"""The layers of a burger or sandwich, seen from the side."""

import cmath
import math
from collections.abc import Iterable
from random import Random

import numpy as np

from chef_fusion.kitchen.looks import COLOURS, LOOKS
from chef_fusion.kitchen.menu import Dish
from chef_fusion.kitchen.paint import BLOBS, CIRCLE, SQUARE, Colour, Frame, dark, light, mix
from chef_fusion.kitchen.staging import chance, lobes

TURN = np.linspace(0, 2 * math.pi, 90, endpoint=False)

# thickness, colour, colour of the crumbs in it
PATTIES: dict[str, tuple[float, Colour, Colour]] = {
    "beef patty": (0.24, (104, 58, 38), (70, 36, 24)),
    "crispy chicken": (0.24, (226, 150, 58), (252, 206, 120)),
    "veggie patty": (0.22, (126, 132, 66), (226, 120, 44)),
}
# thickness, folds around, the underside, the edge, the upper side
FOLDED: dict[str, tuple[float, int, Colour, Colour, Colour]] = {
    "avocado": (0.14, 7, (82, 120, 44), (178, 204, 96), (232, 234, 160)),
    "bacon": (0.14, 13, (122, 34, 28), (164, 56, 42), (240, 200, 170)),
    "grilled chicken": (0.17, 6, (132, 76, 36), (232, 184, 118), (246, 214, 160)),
    "ham": (0.12, 9, (196, 112, 112), (244, 160, 160), (255, 216, 206)),
    "mozzarella": (0.13, 5, (222, 206, 168), (255, 250, 236), (255, 254, 248)),
    "roast beef": (0.14, 11, (104, 56, 40), (172, 92, 78), (214, 134, 118)),
    "salmon": (0.13, 6, (206, 104, 66), (252, 144, 100), (255, 200, 166)),
}
# thickness, colour
GREENS: dict[str, tuple[float, Colour]] = {
    "lettuce": (0.15, (136, 198, 66)),
    "spinach": (0.13, (54, 118, 50)),
}
# thickness, what the shadow between the slices looks like, how much larger than on a plate
SLICED: dict[str, tuple[float, Colour, float]] = {
    "boiled egg": (0.15, (186, 176, 158), 2.0),
    "cucumber": (0.14, (44, 84, 48), 2.6),
    "fried egg": (0.1, (250, 248, 240), 2.3),
    "pickles": (0.14, (82, 92, 34), 2.7),
    "pineapple": (0.14, (196, 150, 44), 3.0),
    "radish": (0.14, (150, 40, 80), 2.6),
    "red onion": (0.13, (110, 44, 88), 3.0),
    "ripe tomato": (0.15, (140, 34, 28), 2.4),
}
CHEESE, SAUCE = 0.08, 0.06


def thickness(dish: Dish, names: Iterable[str]) -> float:
    """Height of a stack."""
    total = 0.0
    for name in names:
        if name in PATTIES:
            total += PATTIES[name][0] * dish.count(name)
        elif name in FOLDED or name in GREENS or name in SLICED:
            total += (FOLDED.get(name) or GREENS.get(name) or SLICED[name])[0]
        else:
            total += CHEESE if name == "cheddar" else SAUCE
    return total


def layer(f: Frame, outline: np.ndarray, name: str, h: float, dish: Dish) -> float:
    """Paints one layer at height `h` over `outline`, a shape about the origin; returns the height on top."""
    r = chance(dish, f"layer {name}")
    radius = np.interp(TURN, *_by_angle(outline), period=2 * math.pi)
    edge = radius * np.exp(1j * TURN)
    if name in PATTIES:
        for _ in range(dish.count(name)):
            _patty(f, outline, name, h, r)
            h += PATTIES[name][0]
        return h
    if name in FOLDED:
        _folded(f, edge, name, h, r)
        return h + FOLDED[name][0]
    if name in GREENS:
        tall, colour = GREENS[name]
        lead = r.uniform(0, 6.3)
        ruffle = edge * (1.1 + 0.05 * np.cos(13 * TURN + lead))
        droop = 0.07 + 0.07 * np.cos((13 if name == "lettuce" else 8) * TURN + 1)
        f.poly(ruffle, dark(colour, 0.4), h - 0.06)
        f.poly(ruffle, dark(colour, 0.16), h + 0.06 - droop)
        f.poly(ruffle * 0.96, colour, h + 0.1 - droop)
        f.poly(ruffle * 0.9, light(colour, 0.18), h + 0.12)
        return h + tall
    if name == "cheddar":
        _cheese(f, outline, h, r)
        return h + CHEESE
    if name in SLICED:
        tall, between, size = SLICED[name]
        f.prism(outline * 0.94, h, tall, dark(between, 0.2), between)
        count = 1 if name == "fried egg" else 2 + dish.amounts[dish.ingredients.index(name)]
        _slices(f, name, count, h + 0.35 * tall, r, size, 0.62 if count < 3 else 0.74)
        if name == "fried egg":  # the yolk has slid to where it is seen
            f.up(0.94j + r.uniform(-0.3, 0.3), 0.17, 0, h + 0.06).solid(CIRCLE, (252, 178, 34), 0.7, 0.08)
        return h + tall
    colour = COLOURS[name]
    down = (0.02 + lobes(r, TURN, 6, 0.14, 0.12, 0.3)) * np.sin(TURN).clip(0) ** 0.5
    f.p.polygon(f.points(edge * 1.02, h + 0.05) - f.lift * down, colour)
    f.poly(outline, light(colour, 0.15), h + 0.06)
    return h + SAUCE


def _by_angle(outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.angle(outline) % (2 * math.pi), np.abs(outline)


def _patty(f: Frame, outline: np.ndarray, name: str, h: float, r: Random):
    tall, colour, crumb = PATTIES[name]
    wall = f.prism(outline * 1.04, h, tall, dark(colour, 0.25), colour)
    f.p.fill(wall, dark(colour, 0.4), light(colour, 0.06), "crumb", r, 0.5)
    for k in range(16):
        at = f.up(
            cmath.rect(1.02, r.uniform(0.15, 3.0)), 0.045, r.uniform(0, 3), h + r.uniform(0.15, 0.85) * tall
        )
        at.poly(BLOBS[k], crumb if name != "veggie patty" or k % 2 else (84, 150, 60))
    f.poly(outline * 1.02, colour, h + tall)


def _folded(f: Frame, edge: np.ndarray, name: str, h: float, r: Random):
    tall, folds, under, side, top = FOLDED[name]
    bump = 0.035 * np.cos(folds * TURN + r.uniform(0, 6.3))
    f.poly(edge * 1.07, under, h - 0.03 + bump)
    f.poly(edge * 1.07, side, h + 0.35 * tall + bump)
    if name == "bacon":
        f.poly(edge * 1.07, top, h + 0.55 * tall + bump)
        f.poly(edge * 1.07, (150, 46, 36), h + 0.75 * tall + bump)
    f.poly(edge * 1.05, top, h + tall + 0.7 * bump)
    f.poly(edge, side, h + 1.1 * tall + 0.4 * bump)
    if name == "grilled chicken":
        for k in range(8, 45, 6):
            char = f.up(edge[k] * 1.06, 0.1, 0, h + 0.08)
            char.line(np.array([-0.3 - 0.7j, 0.3 + 0.7j]), 0.4, (112, 60, 30))


def _cheese(f: Frame, outline: np.ndarray, h: float, r: Random):
    """A slice with its corners hanging over."""
    colour, turn = (252, 178, 40), r.uniform(-0.2, 0.2)
    f.prism(outline * 1.03, h, 0.07, dark(colour, 0.15), colour)
    for k in range(3):
        a = math.pi / 2 + (k - 1) * 0.95 + turn
        at = [
            f.point(cmath.rect(1.05, a + d), h + 0.07 - drop)
            for d, drop in ((-0.36, 0), (0, 0.27), (0.36, 0))
        ]
        f.p.polygon(np.array(at), mix(colour, (236, 146, 20), 0.25 * (k % 2)))
    f.poly(SQUARE * cmath.rect(0.9, math.pi / 4 + turn), light(colour, 0.1), h + 0.08)


def _slices(f: Frame, name: str, count: int, h: float, r: Random, size: float, reach: float):
    """Slices lying in the front, tilted out so that their faces show."""
    for k in sorted(range(count), key=lambda k: -abs(k - (count - 1) / 2)):
        x = 0 if count == 1 else reach * (2 * k / (count - 1) - 1)
        face = f.up(complex(x, 0.34 + 0.36 * math.sqrt(1 - x * x)), size * LOOKS[name][0], 0, h)
        face.b, face.a = 0.24 * face.a, 0.76 * face.a
        LOOKS[name][1](face, r)
