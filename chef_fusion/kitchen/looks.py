"""How each ingredient looks: one piece of it, painted about one unit in radius into a frame.

`LOOKS` holds what comes in pieces, `DUST` what is scattered fine, `COLOURS` what is spread or poured.
"""

import cmath
import math
from collections.abc import Callable
from random import Random

import numpy as np

from chef_fusion.kitchen.paint import (
    BLOBS,
    CIRCLE,
    DOT,
    DROP,
    EGG,
    FRILL,
    LEAF,
    RING,
    SQUARE,
    Colour,
    Frame,
    dark,
    light,
    mix,
    polar,
    ribbon,
    sector,
    stretch,
    vary,
)

Look = Callable[[Frame, Random], None]

COLOURS: dict[str, Colour] = {
    "tomato sauce": (214, 70, 34),
    "pesto": (92, 134, 44),
    "white sauce": (246, 236, 208),
    "tomato puree": (212, 66, 34),
    "pumpkin puree": (238, 150, 40),
    "pea puree": (142, 178, 70),
    "potato puree": (240, 222, 168),
    "red curry paste": (200, 66, 36),
    "green curry paste": (130, 166, 84),
    "yellow curry paste": (232, 176, 48),
    "miso broth": (222, 180, 110),
    "soy broth": (124, 76, 42),
    "chili broth": (204, 70, 38),
    "ketchup": (204, 30, 24),
    "mustard": (236, 184, 30),
    "mayonnaise": (252, 244, 214),
    "vanilla frosting": (252, 242, 216),
    "chocolate frosting": (112, 66, 44),
    "pink frosting": (246, 164, 184),
    "matcha frosting": (168, 200, 122),
    "chocolate sauce": (72, 36, 24),
    "caramel sauce": (206, 126, 42),
    "maple syrup": (176, 92, 22),
    "custard": (250, 222, 124),
    "chocolate cream": (116, 72, 50),
    "lemon curd": (252, 214, 40),
    "vanilla ice cream": (252, 238, 200),
    "chocolate ice cream": (124, 78, 54),
    "strawberry ice cream": (244, 158, 170),
    "pistachio ice cream": (186, 208, 140),
    "lemon sorbet": (252, 232, 96),
    "chocolate glaze": (92, 50, 34),
    "pink glaze": (248, 142, 176),
    "sugar glaze": (250, 246, 240),
    "blue glaze": (126, 188, 226),
    "sour cream": (254, 252, 246),
    "yogurt": (254, 252, 246),
    "soy sauce": (46, 24, 18),
    "whipped cream": (255, 252, 244),
}


def ball(colour: Colour, gloss: float = 0.5, shape: np.ndarray = CIRCLE) -> Look:
    return lambda f, r: f.solid(shape, vary(r, colour), gloss)


def cube(colour: Colour, edge: float = 0.3, speckle: Colour | None = None) -> Look:
    def paint(f: Frame, r: Random):
        c = vary(r, colour)
        f.shadow(SQUARE, 0.3)
        f.poly(SQUARE - 0.1 * f.light, dark(c, edge))
        f.poly(SQUARE * 0.82 + 0.12 * f.light, c)
        f.poly(SQUARE * 0.5 + 0.2 * f.light, light(c, 0.2))
        if speckle and f.fine > 2:
            for _ in range(4):
                f.poly(DOT * 0.12 + complex(r.uniform(-0.5, 0.5), r.uniform(-0.5, 0.5)), speckle)

    return paint


def cluster(piece: Look, size: float, count: int = 5, spread: float = 0.62) -> Look:
    """A few small pieces close together."""

    def paint(f: Frame, r: Random):
        turn = r.uniform(0, 6.3)
        for k in range(count):
            z = cmath.rect(
                0 if k == 0 else spread * r.uniform(0.85, 1.1), turn + 6.283 * k / max(1, count - 1)
            )
            piece(f.at(z, size, r.uniform(0, 6.3)), r)

    return paint


def disc(rim: Colour, flesh: Colour, inner: float = 0.84) -> Look:
    def paint(f: Frame, r: Random):
        f.shadow(CIRCLE)
        f.poly(CIRCLE, rim)
        f.poly(CIRCLE * inner, vary(r, flesh, 5))
        f.poly(CIRCLE * (inner - 0.2) + 0.06 * f.light, light(flesh, 0.25))

    return paint


def leaves(colour: Colour, count: int, width: float = 1.0, vein: float = 0.3) -> Look:
    """A sprig of pointed leaves."""

    def paint(f: Frame, r: Random):
        for k in range(count):
            angle = 6.283 * k / count + r.uniform(-0.3, 0.3) if count > 1 else 0.0
            leaf = f.at(cmath.rect(0.5, angle) if count > 1 else 0, 0.62 if count > 1 else 1.0, angle)
            c = vary(r, colour, 12)
            leaf.shadow(stretch(LEAF, 1, width))
            leaf.poly(stretch(LEAF, 1, width), dark(c, 0.25))
            leaf.poly(stretch(LEAF, 0.9, width * 0.82) + 0.05 * leaf.light, c)
            if leaf.fine > 2:
                leaf.line(np.array([-0.8 + 0j, 0.8 + 0j]), 0.08, light(c, vein))

    return paint


def pepperoni(f: Frame, r: Random):
    c = vary(r, (158, 34, 34))
    f.solid(CIRCLE, c, 0.0, rim=0.35)
    for _ in range(6 if f.fine > 2 else 2):
        z = cmath.rect(r.uniform(0.15, 0.7), r.uniform(0, 6.3))
        f.poly(DOT * r.uniform(0.07, 0.15) + z, r.choice((light(c, 0.45), light(c, 0.25), dark(c, 0.3))))


MUSHROOM = np.concatenate(
    [
        sector(math.pi, 2 * math.pi, 16)[:-1],
        np.array(
            [
                1 + 0.14j,
                0.86 + 0.24j,
                0.34 + 0.12j,
                0.3 + 0.8j,
                -0.3 + 0.8j,
                -0.34 + 0.12j,
                -0.86 + 0.24j,
                -1 + 0.14j,
            ]
        ),
    ]
)


def mushroom(f: Frame, r: Random):
    c = vary(r, (238, 222, 196))
    f.shadow(MUSHROOM)
    f.poly(MUSHROOM, (142, 104, 74))
    f.poly(MUSHROOM * 0.84 + 0.02j, c)
    f.poly(stretch(sector(math.pi, 2 * math.pi, 10), 0.62, 0.4) + 0.14j, (176, 138, 104))
    f.poly(stretch(SQUARE, 0.2, 0.36) + 0.3j, light(c, 0.4))


def olive(f: Frame, r: Random):
    f.shadow(RING)
    f.poly(RING, (44, 34, 44))
    f.poly(sector(0, 2 * math.pi, 25, 0.84) * 0.6, (110, 92, 70))
    toward = cmath.phase(f.light)
    f.poly(sector(toward - 0.6, toward + 0.6, 8, 0.78) * 0.92, (128, 116, 136))


def strip(colour: Colour) -> Look:
    """A curved strip of pepper."""
    arc = np.exp(1j * np.linspace(-1.15, 1.15, 14)) * 1.1 - 0.75
    taper = 0.2 + 0.26 * np.sin(np.linspace(0.25, math.pi - 0.25, 14))
    outer, inner = ribbon(arc, taper), ribbon(arc * 0.98, taper * 0.4)

    def paint(f: Frame, r: Random):
        c = vary(r, colour)
        f.shadow(outer, 0.15)
        f.poly(outer, dark(c, 0.12))
        f.poly(inner, light(c, 0.4))

    return paint


def onion(f: Frame, r: Random):
    f.shadow(RING)
    for size in (1.0, 0.62):
        f.poly(sector(0, 2 * math.pi, 33, 0.72) * size, (150, 50, 112))
        f.poly(sector(0, 2 * math.pi, 33, 0.78) * size * 0.92, (242, 214, 232))


def ham(f: Frame, r: Random):
    c = vary(r, (242, 158, 156))
    shape = SQUARE * 0.98
    f.shadow(shape)
    f.poly(shape, (250, 220, 208))
    f.poly(shape * 0.86, c)
    f.line(np.array([-0.5 + 0.1j, 0.0 + 0.25j, 0.5 + 0.0j]), 0.14, dark(c, 0.14))
    f.line(np.array([-0.4 - 0.3j, 0.1 - 0.22j, 0.45 - 0.36j]), 0.12, light(c, 0.4))


def pineapple(f: Frame, r: Random):
    c = vary(r, (252, 212, 66))
    wedge = sector(-0.62, 0.62, 12, 0.3) * 1.7 - 1.05
    f.shadow(wedge)
    f.poly(wedge, dark(c, 0.3))
    f.poly(wedge * 0.84, c)
    for a in (-0.36, 0.0, 0.36):
        f.line(np.exp(1j * a) * np.array([0.75, 1.5]) - 1.05, 0.09, (226, 164, 34))


def shrimp(f: Frame, r: Random):
    c = vary(r, (250, 148, 104))
    t = np.linspace(-2.3, 1.5, 18)
    body = ribbon(0.66 * np.exp(1j * t), np.linspace(0.68, 0.34, 18))
    f.shadow(body)
    for a in (1.6, 2.1):
        f.at(0.66 * cmath.rect(1, 1.5), 0.42, a + 0.9).poly(stretch(LEAF, 1, 0.8) + 0.45, (232, 88, 62))
    f.poly(body, dark(c, 0.2))
    f.poly(ribbon(0.68 * np.exp(1j * t), np.linspace(0.5, 0.2, 18)), c)
    for a in np.linspace(-1.9, 1.1, 5):
        f.line(cmath.rect(1, a) * np.array([0.42, 0.94]), 0.09, (255, 214, 190))


def spinach(f: Frame, r: Random):
    c = vary(r, (54, 116, 50), 10)
    shape = stretch(LEAF, 1.1, 1.55)
    f.shadow(shape)
    f.poly(shape, dark(c, 0.3))
    f.poly(shape * 0.88, c)
    f.line(np.array([-1.3 + 0j, 0.8 + 0j]), 0.1, (150, 190, 110))
    if f.fine > 3:
        for x in (-0.4, 0.0, 0.4):
            for side in (0.4j, -0.4j):
                f.line(np.array([x, x + 0.25 + side]), 0.05, (126, 170, 92))


def lettuce(f: Frame, r: Random):
    c = vary(r, (136, 196, 66), 14)
    shape = r.choice(FRILL)
    f.shadow(shape, 0.14)
    f.poly(shape, dark(c, 0.25))
    f.poly(shape * 0.88 + 0.05 * f.light, c)
    f.poly(shape * 0.55 + 0.1 * f.light, light(c, 0.3))
    f.line(np.array([-0.8 + 0j, 0.5 + 0j]), 0.12, (226, 240, 190))
    if f.fine > 3:
        for x, y in ((-0.3, 0.45), (-0.3, -0.45), (0.15, 0.4), (0.15, -0.4)):
            f.line(np.array([x, x + 0.3 + 1j * y]), 0.06, (214, 234, 170))


def cherry_tomato(f: Frame, r: Random):
    c = vary(r, (224, 46, 32))
    f.shadow(CIRCLE)
    f.poly(CIRCLE, dark(c, 0.2))
    f.poly(CIRCLE * 0.86, light(c, 0.1))
    for a in (0.0, 2.09, 4.19):
        f.at(cmath.rect(0.46, a), 0.3, a).poly(stretch(CIRCLE, 0.8, 1.1), (250, 150, 84))
        f.poly(DOT * 0.09 + cmath.rect(0.42, a), (255, 232, 160))
    f.poly(DOT * 0.13 + 0.68 * f.light, (255, 255, 255, 150))


def tomato_slice(f: Frame, r: Random):
    c = vary(r, (222, 52, 38))
    f.shadow(CIRCLE)
    f.poly(CIRCLE, dark(c, 0.15))
    f.poly(CIRCLE * 0.9, light(c, 0.12))
    for k in range(6):
        f.at(cmath.rect(0.54, k * 1.047), 0.22, k * 1.047).poly(stretch(CIRCLE, 1.1, 0.8), (252, 166, 96))


def cucumber(f: Frame, r: Random):
    f.shadow(CIRCLE)
    f.poly(CIRCLE, (52, 112, 56))
    f.poly(CIRCLE * 0.86, vary(r, (214, 236, 168), 5))
    f.poly(CIRCLE * 0.55, (192, 222, 140))
    for k in range(6 if f.fine > 1.5 else 0):
        f.at(cmath.rect(0.36, k * 1.047), 0.13, k * 1.047).poly(LEAF, (240, 248, 214))


def pickle(f: Frame, r: Random):
    f.shadow(CIRCLE)
    f.poly(polar(lambda t: 0.94 + 0.06 * np.cos(12 * t)), (78, 96, 30))
    f.poly(CIRCLE * 0.8, vary(r, (158, 168, 62), 5))
    for k in range(5):
        f.at(cmath.rect(0.36, k * 1.257), 0.16, k * 1.257).poly(LEAF, (204, 206, 122))


def carrot(f: Frame, r: Random):
    c = vary(r, (244, 132, 30))
    f.solid(CIRCLE, c, 0.0, rim=0.2)
    f.poly(polar(lambda t: 0.36 + 0.12 * np.cos(5 * t), 30), (252, 184, 92))


CRESCENT = (
    np.concatenate(
        [
            np.exp(1j * np.linspace(0.25, math.pi - 0.25, 16)),
            1.08 * np.exp(1j * np.linspace(math.pi - 0.6, 0.6, 12)) * 0.72 - 0.1j,
        ]
    )
    - 0.55j
)


def slice_of(skin: Colour, flesh: Colour, heart: Colour) -> Look:
    """A crescent with its skin outside: avocado, peach, mango."""

    def paint(f: Frame, r: Random):
        shape = stretch(CRESCENT, 1.05, 1.3)
        f.shadow(shape)
        f.poly(shape, skin)
        f.poly(stretch(CRESCENT, 0.92, 1.14) - 0.03j, vary(r, flesh, 6))
        f.poly(stretch(CRESCENT, 0.78, 0.72) - 0.14j, heart)

    return paint


def boiled_egg(f: Frame, r: Random):
    f.solid(EGG, (252, 250, 244), 0.0, rim=0.16)
    f.poly(CIRCLE * 0.52 - 0.06, (226, 132, 22))
    f.poly(CIRCLE * 0.43 - 0.06, vary(r, (250, 178, 44), 6))
    f.poly(DOT * 0.12 - 0.06 + 0.22 * f.light, (255, 250, 220))


def fried_egg(f: Frame, r: Random):
    shape = r.choice(BLOBS)
    f.shadow(shape, 0.08)
    f.poly(shape, (226, 196, 140))
    f.poly(shape * 0.95, (254, 252, 246))
    f.poly(shape * 0.7, (255, 255, 255))
    z = complex(r.uniform(-0.12, 0.12), r.uniform(-0.12, 0.12))
    f.at(z, 0.38).solid(CIRCLE, (252, 178, 34), 0.7, 0.08, rim=0.2)


def radish(f: Frame, r: Random):
    f.shadow(CIRCLE)
    f.poly(CIRCLE, (214, 36, 92))
    f.poly(CIRCLE * 0.83, (252, 246, 248))
    for k in range(8 if f.fine > 3 else 0):
        f.line(cmath.rect(1, k * 0.785) * np.array([0.25, 0.66]), 0.05, (244, 216, 226))


CAPSULE = stretch(SQUARE, 1.05, 0.52)


def grilled_chicken(f: Frame, r: Random):
    c = vary(r, (230, 180, 112))
    f.solid(CAPSULE, c, 0.0, rim=0.35)
    for x in (-0.55, 0.0, 0.55):
        f.line(np.array([x - 0.16 - 0.4j, x + 0.16 + 0.4j]), 0.16, (116, 62, 30))


def bean(colour: Colour) -> Look:
    return ball(colour, 0.45, stretch(CIRCLE, 1, 0.64))


def meatball(f: Frame, r: Random):
    c = vary(r, (130, 76, 46))
    f.solid(r.choice(BLOBS), c, 0.25)
    for _ in range(5 if f.fine > 3 else 0):
        f.poly(
            DOT * 0.1 + cmath.rect(r.uniform(0.1, 0.7), r.uniform(0, 6.3)),
            r.choice((dark(c), light(c, 0.25))),
        )


def mince(f: Frame, r: Random):
    for _ in range(5):
        c = vary(r, (124, 68, 40), 18)
        f.at(cmath.rect(r.uniform(0.1, 0.7), r.uniform(0, 6.3)), r.uniform(0.3, 0.45)).solid(
            r.choice(BLOBS), c, 0.0
        )


def broccoli(f: Frame, r: Random):
    c = vary(r, (70, 140, 52), 10)
    f.line(np.array([-0.1 + 0j, 1.1 + 0j]), np.array([0.5, 0.36]), (168, 200, 110))
    for k in range(6):
        z = cmath.rect(0.5, 1.0 + k * 0.86)
        f.at(z - 0.1, 0.44).solid(FRILL[k % 4], vary(r, c, 10), 0.0, 0.2)
    f.at(-0.1, 0.45).solid(FRILL[0], light(c, 0.12), 0.0, 0.1)
    for _ in range(7 if f.fine > 4 else 0):
        f.poly(DOT * 0.06 + cmath.rect(r.uniform(0, 0.7), r.uniform(0, 6.3)) - 0.1, light(c, 0.4))


def bacon(f: Frame, r: Random):
    x = np.linspace(-1.25, 1.25, 22)
    path = x + 0.15j * np.sin(5.5 * x + r.uniform(0, 6))
    f.shadow(ribbon(path, 0.72), 0.15)
    f.poly(ribbon(path, 0.72), (150, 44, 34))
    f.poly(ribbon(path + 0.13j, 0.2), (244, 206, 176))
    f.poly(ribbon(path - 0.22j, 0.12), (236, 180, 150))
    f.poly(ribbon(path - 0.06j, 0.1), (190, 74, 54))


def sausage(f: Frame, r: Random):
    path = 1.9 * np.exp(1j * np.linspace(-0.6, 0.6, 14)) - 1.75
    taper = 0.66 * np.sin(np.linspace(0.35, math.pi - 0.35, 14)) ** 0.4
    c = vary(r, (166, 82, 44))
    f.shadow(ribbon(path, taper))
    f.poly(ribbon(path, taper), dark(c, 0.35))
    f.poly(ribbon(path, taper * 0.76), c)
    for k in (-0.35, 0.0, 0.35):
        f.line(cmath.rect(1, k) * np.array([1.7, 2.1]) - 1.75, 0.12, (90, 38, 22))
    f.poly(ribbon(path[3:9] + 0.12 * f.light, 0.12), (255, 226, 190, 150))


def roast_beef(f: Frame, r: Random):
    shape = r.choice(BLOBS)
    f.shadow(shape)
    f.poly(shape, (96, 50, 34))
    f.poly(shape * 0.84, vary(r, (186, 96, 84)))
    f.poly(shape * 0.52 + 0.05 * f.light, (212, 126, 112))
    f.line(np.array([-0.5 + 0.2j, 0.0 - 0.1j, 0.5 + 0.1j]), 0.08, (236, 186, 170))


def narutomaki(f: Frame, r: Random):
    shape = polar(lambda t: 0.92 + 0.08 * np.cos(10 * t), 60)
    f.shadow(shape)
    f.poly(shape, (232, 222, 218))
    f.poly(shape * 0.92, (255, 252, 250))
    t = np.linspace(0.5, 9.5, 40)
    f.line(0.07 * t * np.exp(1j * t), 0.15, (244, 96, 148))


def nori(f: Frame, r: Random):
    shape = stretch(SQUARE, 0.95, 1.25)
    f.shadow(shape, 0.12)
    f.poly(shape, (22, 40, 32))
    f.poly(shape * 0.9 + 0.04 * f.light, (38, 58, 44))
    for x in (-0.5, 0.0, 0.5):
        f.line(np.array([x - 1j, x + 1j]), 0.05, (54, 78, 58))


def parmesan(f: Frame, r: Random):
    path = np.linspace(-1, 1, 8) + 0.3j * np.sin(np.linspace(0, 3, 8) + r.uniform(0, 1))
    f.shadow(ribbon(path, 0.62), 0.16)
    f.poly(ribbon(path, 0.62), (226, 196, 120))
    f.poly(ribbon(path - 0.04j, 0.48), (254, 240, 188))


def citrus(skin: Colour, flesh: Colour, wedge: bool) -> Look:
    def paint(f: Frame, r: Random):
        half = math.pi if wedge else 2 * math.pi
        body = (lambda s: sector(0, half, 24) * s - 0.4j) if wedge else (lambda s: CIRCLE * s)
        f.shadow(body(1))
        f.poly(body(1), skin)
        f.poly(body(0.88), (255, 246, 224))
        n = 4 if wedge else 8
        for k in range(n):
            a, b = half * k / n, half * (k + 1) / n
            f.poly(sector(a + 0.07, b - 0.07, 6) * 0.8 + (-0.4j if wedge else 0), vary(r, flesh, 5))

    return paint


HEART = polar(lambda t: 0.8 + 0.12 * np.cos(t) ** 3 - 0.1 * np.cos(2 * t) + 0.22 * (np.cos(t / 2) ** 14), 40)


def strawberry(f: Frame, r: Random):
    c = vary(r, (226, 38, 48))
    f.solid(HEART, c, 0.35, rim=0.28)
    for x, y in (
        (-0.35, 0.3),
        (-0.35, -0.3),
        (0.0, 0.0),
        (0.05, 0.45),
        (0.05, -0.45),
        (0.4, 0.2),
        (0.4, -0.2),
    ):
        f.poly(stretch(DOT, 0.08, 0.05) + complex(x, y), (255, 222, 130))
    for a in (-0.9, -0.3, 0.3, 0.9):
        f.at(-0.72, 0.34, math.pi + a).poly(stretch(LEAF, 1, 0.9) - 0.6, (76, 150, 52))


def raspberry(f: Frame, r: Random):
    c = vary(r, (204, 34, 84), 6)
    f.shadow(EGG)
    f.poly(EGG * 0.95, dark(c, 0.4))
    for k in range(7):
        z = cmath.rect(0.6, k * 0.898)
        f.poly(DOT * 0.34 + z, c)
        f.poly(DOT * 0.14 + z + 0.1 * f.light, light(c, 0.4))
    f.poly(DOT * 0.36, light(c, 0.12))
    f.poly(DOT * 0.16, dark(c, 0.5))


def blueberry(f: Frame, r: Random):
    c = vary(r, (66, 80, 148), 8)
    f.solid(CIRCLE, c, 0.3, rim=0.4)
    f.poly(polar(lambda t: 0.3 + 0.12 * np.cos(5 * t), 20), (34, 40, 84))


def cherry(stem: Colour, colour: Colour, gloss: float) -> Look:
    def paint(f: Frame, r: Random):
        f.solid(CIRCLE, vary(r, colour, 6), gloss)
        f.line(np.array([0, 0.25 - 0.7j, 0.7 - 1.35j]), 0.14, stem)

    return paint


def banana(f: Frame, r: Random):
    f.shadow(CIRCLE)
    f.poly(CIRCLE, (240, 200, 80))
    f.poly(CIRCLE * 0.88, vary(r, (254, 240, 186), 4))
    f.poly(CIRCLE * 0.5, (250, 226, 152))
    for k in range(3):
        f.line(cmath.rect(1, k * 2.094 + 0.4) * np.array([0.06, 0.34]), 0.1, (152, 112, 62))


def kiwi(f: Frame, r: Random):
    f.shadow(CIRCLE)
    f.poly(CIRCLE, (122, 96, 52))
    f.poly(CIRCLE * 0.92, vary(r, (128, 184, 48), 6))
    f.poly(CIRCLE * 0.62, (164, 208, 84))
    for k in range(10):
        f.at(cmath.rect(0.46, k * 0.628), 0.1, k * 0.628).poly(stretch(DOT, 1.2, 0.7), (32, 30, 24))
    f.poly(stretch(CIRCLE, 0.3, 0.24), (244, 244, 206))


def almond(f: Frame, r: Random):
    c = vary(r, (206, 150, 92))
    shape = stretch(DROP, 1.1, 0.8)
    f.shadow(shape, 0.14)
    f.poly(shape, (146, 90, 46))
    f.poly(shape * 0.78, light(c, 0.5))


def drop(colour: Colour) -> Look:
    return ball(colour, 0.3, stretch(DROP, 1.15, 0.8))


def coconut(f: Frame, r: Random):
    path = np.exp(1j * np.linspace(0, 2.2, 8)) - complex(0.3, 0.6)
    f.shadow(ribbon(path, 0.5), 0.2)
    f.poly(ribbon(path, 0.5), (232, 224, 210))
    f.poly(ribbon(path, 0.34), (255, 254, 248))


def ring_of(colour: Colour, inside: Colour, thickness: float = 0.55) -> Look:
    """A cut tube: chili, spring onion."""
    ring = sector(0, 2 * math.pi, 25, thickness)

    def paint(f: Frame, r: Random):
        f.shadow(CIRCLE, 0.15)
        f.poly(CIRCLE * 0.8, inside)
        f.poly(ring, vary(r, colour))

    return paint


def cilantro(f: Frame, r: Random):
    c = vary(r, (84, 158, 58), 10)
    f.line(np.array([0, 0.7 + 0.2j, 1.2 + 0.5j]), 0.1, dark(c, 0.1))
    shape = polar(lambda t: 0.72 + 0.2 * np.cos(3 * t) + 0.09 * np.cos(9 * t), 54)
    for z, size in ((-0.4 + 0.4j, 0.55), (-0.3 - 0.5j, 0.55), (-0.75, 0.6)):
        leaf = f.at(z, size, cmath.phase(z))
        leaf.shadow(shape)
        leaf.poly(shape, dark(c, 0.25))
        leaf.poly(shape * 0.8, c)


def butter(f: Frame, r: Random):
    f.poly(BLOBS[3] * 1.3, (250, 218, 96, 170))
    cube((254, 228, 110), 0.22)(f, r)


def whipped_cream(f: Frame, r: Random):
    star = polar(lambda t: 0.88 + 0.12 * np.cos(7 * t), 56)
    f.shadow(star)
    turn = 1.0
    for size in (1.0, 0.76, 0.52, 0.28):
        turn *= cmath.rect(1, 0.45)
        f.poly(
            star * turn * size + 0.1 * (1 - size) * f.light, mix((220, 206, 196), (246, 238, 228), 1 - size)
        )
        f.poly(star * turn * size * 0.88 + (0.1 * (1 - size) + 0.05) * f.light, (255, 252, 246))


def dollop(colour: Colour) -> Look:
    def paint(f: Frame, r: Random):
        f.solid(BLOBS[5], colour, 0.6, rim=0.14)
        t = np.linspace(0.5, 7, 24)
        f.line(0.09 * t * np.exp(1j * t), 0.08, dark(colour, 0.14))

    return paint


def ginger(f: Frame, r: Random):
    for k in range(4):
        petal = f.at(cmath.rect(0.45, k * 1.6), 0.6, k * 1.6)
        petal.shadow(BLOBS[k])
        petal.poly(BLOBS[k], (236, 142, 148))
        petal.poly(BLOBS[k] * 0.8, (254, 196, 192))
        petal.line(np.array([-0.5, 0.1 + 0.2j, 0.5]), 0.1, (240, 158, 160))


def wafer(f: Frame, r: Random):
    stick = stretch(SQUARE, 1.3, 0.3)
    f.shadow(stick, 0.12)
    f.poly(stick, (166, 104, 52))
    f.poly(stretch(SQUARE, 1.28, 0.2) + 0.04 * f.light, (226, 170, 100))
    for x in np.linspace(-1.1, 0.9, 7):
        f.line(np.array([x + 0.26j, x + 0.24 - 0.26j]), 0.09, (128, 72, 36))


def lump(colour: Colour, marks: Colour | None = None) -> Look:
    def paint(f: Frame, r: Random):
        f.solid(r.choice(BLOBS), vary(r, colour), 0.35)
        for _ in range(4 if marks else 0):
            f.line(cmath.rect(0.6, r.uniform(0, 6)) * np.array([0.4, 1.0]), 0.1, marks)

    return paint


def fish(colour: Colour, line: Colour) -> Look:
    def paint(f: Frame, r: Random):
        f.solid(CAPSULE, vary(r, colour, 6), 0.0, rim=0.15)
        for x in (-0.6, -0.2, 0.2, 0.6):
            f.line(np.array([x - 0.36j, x + 0.2, x + 0.36j]), 0.07, line)

    return paint


LOOKS: dict[str, tuple[float, Look]] = {  # size as a fraction of the plate
    "almonds": (0.085, almond),
    "avocado": (0.15, slice_of((70, 104, 40), (196, 214, 110), (232, 232, 158))),
    "bacon": (0.15, bacon),
    "baked beans": (0.13, cluster(bean((212, 104, 46)), 0.42)),
    "banana": (0.12, banana),
    "basil": (0.13, leaves((62, 148, 50), 3, 1.2)),
    "beetroot": (0.085, cube((146, 26, 82), 0.3)),
    "black beans": (0.11, cluster(bean((48, 34, 40)), 0.42)),
    "black olives": (0.075, olive),
    "blueberries": (0.075, blueberry),
    "boiled egg": (0.16, boiled_egg),
    "broccoli": (0.14, broccoli),
    "butter": (0.15, butter),
    "carrot": (0.09, carrot),
    "cheddar": (0.08, cluster(ball((250, 170, 36), 0.0, stretch(SQUARE, 1, 0.24)), 0.75, 5, 0.5)),
    "cherries": (0.09, cherry((96, 122, 50), (150, 18, 40), 0.6)),
    "cherry tomatoes": (0.1, cherry_tomato),
    "chickpeas": (0.1, cluster(ball((230, 190, 122), 0.35, BLOBS[2]), 0.46, 4)),
    "chocolate chips": (0.062, drop((70, 38, 26))),
    "cilantro": (0.13, cilantro),
    "coconut flakes": (0.075, coconut),
    "crab sticks": (0.1, fish((250, 236, 228), (230, 74, 56))),
    "croutons": (0.085, cube((224, 164, 84), 0.4, (164, 98, 40))),
    "cucumber": (0.115, cucumber),
    "feta": (0.08, cube((252, 250, 242), 0.16)),
    "fried egg": (0.34, fried_egg),
    "green pepper": (0.13, strip((76, 152, 50))),
    "grilled chicken": (0.13, grilled_chicken),
    "ground beef": (0.13, mince),
    "ham": (0.12, ham),
    "kiwi": (0.13, kiwi),
    "lettuce": (0.26, lettuce),
    "lime": (0.14, citrus((90, 156, 48), (190, 222, 110), True)),
    "mango": (0.09, cube((254, 178, 44), 0.2)),
    "maraschino cherry": (0.11, cherry((120, 84, 50), (222, 14, 40), 0.8)),
    "meatballs": (0.11, meatball),
    "mint leaves": (0.12, leaves((70, 176, 96), 3, 1.0, 0.5)),
    "mozzarella": (0.12, lump((255, 250, 234))),
    "mushrooms": (0.115, mushroom),
    "narutomaki": (0.14, narutomaki),
    "nori": (0.19, nori),
    "orange slices": (0.15, citrus((246, 140, 26), (254, 178, 58), False)),
    "parmesan": (0.11, parmesan),
    "peach slices": (0.14, slice_of((216, 84, 50), (254, 190, 84), (252, 150, 80))),
    "peas": (0.09, cluster(ball((120, 184, 60), 0.4), 0.42, 4)),
    "pepperoni": (0.13, pepperoni),
    "pickled ginger": (0.17, ginger),
    "pickles": (0.1, pickle),
    "pineapple": (0.12, pineapple),
    "potatoes": (0.11, cube((248, 216, 124), 0.28)),
    "pumpkin seeds": (0.07, drop((96, 122, 54))),
    "radish": (0.1, radish),
    "raspberries": (0.09, raspberry),
    "red cabbage": (0.12, cluster(strip((148, 52, 126)), 0.8, 3, 0.4)),
    "red chili": (0.07, ring_of((216, 30, 26), (252, 190, 150))),
    "red onion": (0.11, onion),
    "red pepper": (0.13, strip((222, 44, 34))),
    "ripe tomato": (0.16, tomato_slice),
    "roast beef": (0.16, roast_beef),
    "salmon": (0.14, fish((252, 142, 98), (255, 204, 172))),
    "sausages": (0.17, sausage),
    "shrimp": (0.125, shrimp),
    "sour cream": (0.16, dollop((254, 252, 246))),
    "spinach": (0.14, spinach),
    "spring onion": (0.07, ring_of((118, 180, 66), (232, 244, 204))),
    "strawberries": (0.12, strawberry),
    "sweetcorn": (0.085, cluster(ball((252, 208, 52), 0.3, SQUARE), 0.4, 4)),
    "tofu": (0.1, cube((246, 232, 196), 0.36)),
    "tuna": (0.14, fish((190, 40, 54), (224, 96, 100))),
    "vanilla ice cream": (0.3, dollop((252, 238, 200))),
    "wafer rolls": (0.2, wafer),
    "wasabi": (0.13, lump((158, 196, 82))),
    "whipped cream": (0.16, whipped_cream),
    "yogurt": (0.2, dollop((254, 252, 246))),
}


def fleck(shape: np.ndarray, *colours: Colour) -> Look:
    def paint(f: Frame, r: Random):
        c = r.choice(colours)
        if f.fine > 1.5:
            f.poly(shape - 0.25 * f.light, dark(c, 0.35))
        f.poly(shape, c)

    return paint


SEED = stretch(DROP, 1.1, 0.8)[::2]
STICK = stretch(SQUARE, 1.3, 0.42)[::2]

DUST: dict[str, tuple[float, int, Look]] = {  # size, pieces per count, look
    "chives": (0.046, 5, fleck(STICK, (74, 146, 52), (112, 176, 72))),
    "parsley": (0.046, 5, fleck(FRILL[1][::3], (48, 128, 44), (86, 164, 60))),
    "powdered sugar": (0.017, 14, fleck(DOT, (255, 255, 255))),
    "rainbow sprinkles": (
        0.04,
        9,
        fleck(
            STICK,
            (238, 60, 90),
            (252, 206, 50),
            (76, 172, 226),
            (110, 196, 90),
            (248, 248, 250),
            (176, 96, 204),
        ),
    ),
    "sesame seeds": (0.034, 8, fleck(SEED, (250, 232, 186), (238, 212, 158))),
    "tobiko": (0.022, 12, fleck(DOT, (250, 110, 24), (252, 146, 46))),
}
