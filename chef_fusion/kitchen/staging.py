"""What every picture shares: the table, plates and bowls, and how ingredients are laid out on them."""

import cmath
import math
from collections.abc import Iterable, Sequence
from random import Random

import numpy as np

from chef_fusion.kitchen.looks import DUST, LOOKS
from chef_fusion.kitchen.menu import PLATES, SURFACES, Dish
from chef_fusion.kitchen.paint import (
    BLOBS,
    CIRCLE,
    DOT,
    SLAB,
    SQUARE,
    Colour,
    Frame,
    Painter,
    dark,
    light,
    polar,
    ribbon,
    sector,
    stretch,
    vary,
)

GOLDEN = 2.399963  # radians; steps by it never line up
DISC = polar(lambda t: 1 + 0 * t, 90)  # for what is large


def chance(dish: Dish, what: str) -> Random:
    """Random numbers for one part of the picture, whatever the other parts are."""
    return Random(f"{dish.style.seed}/{what}")


def stage(p: Painter, dish: Dish, radius: float, low: float, high: float, y: float = 0.0, turn=True) -> Frame:
    """The plane the dish stands on; the camera's squash lies between `low` and `high`."""
    s = dish.style
    squash = low + (high - low) * s.tilt
    return p.frame(s.x, s.y + y, radius * s.scale, squash, s.rotation if turn else 0.0)


def table(p: Painter, dish: Dish):
    s, r = dish.style, chance(dish, "table")
    low, high = SURFACES[s.surface][s.tone]
    p.fill(None, low, high, s.surface, r, zoom=r.uniform(0.9, 1.3), turn=s.table_rotation)
    if s.prop == "napkin":
        x, y = r.choice((-0.66, 0.66)), r.choice((-0.66, 0.66))
        cloth = p.frame(x, y, 0.6, 1, s.rotation)
        body, accent = PLATES[(s.plate + 3) % len(PLATES)]
        p.soft(cloth.points(SLAB) - p.light * 0.012 * p.width, (20, 10, 10), 110, 0.012 * p.width)
        cloth.poly(SLAB, body)
        for at in (-0.8, -0.68, 0.68, 0.8):
            cloth.line(np.array([at - 0.98j, at + 0.98j]), 0.05, accent)
            cloth.line(np.array([at * 1j - 0.98, at * 1j + 0.98]), 0.05, (*accent, 150))
    elif s.prop == "crumbs":
        for _ in range(24):
            crumb = p.frame(r.uniform(-1, 1), r.uniform(-1, 1), r.uniform(0.005, 0.012))
            crumb.shadow(DOT, 0.6)
            crumb.poly(DOT, vary(r, (222, 186, 136), 20))
    elif s.prop == "cutlery" and dish.base not in ("ramen", "sushi"):
        cutlery(p, dish)


def cutlery(p: Painter, dish: Dish):
    """A fork on the left and a knife on the right."""
    handle = stretch(SQUARE, 0.055, 0.5) + 0.5j
    tines = [stretch(SQUARE, 0.022, 0.26) + x - 0.72j for x in (-0.075, 0, 0.075)]
    fork = [handle, stretch(SQUARE, 0.035, 0.4) - 0.1j, stretch(SQUARE, 0.1, 0.14) - 0.42j, *tines]
    knife = [handle, np.array([-0.06 + 0.1j, -0.06 - 0.95j, 0.06 - 0.75j, 0.075 + 0.1j])]
    for x, parts in ((-0.93, fork), (0.93, knife)):
        f = p.frame(x + dish.style.x / 2, 0.05, 0.62)
        for part in parts:
            p.polygon(f.points(part) - 0.05 * f.scale * p.light, (20, 12, 12, 60))
        for part in parts:
            f.poly(part, (206, 208, 214))
        f.poly(stretch(SQUARE, 0.018, 0.46) + 0.5j - 0.015, (246, 248, 252))


def chopsticks(p: Painter, dish: Dish):
    f = p.frame(dish.style.x, dish.style.y, 0.85)
    for k in (0.0, 0.09):
        stick, width = np.array([0.42 + k - 1.3j, 1.2 + k * 2.2 + 0.2j]), np.array([0.035, 0.055])
        p.polygon(f.points(ribbon(stick, width)) - 0.05 * f.scale * p.light, (20, 10, 10, 80))
        f.line(stick, width, (132, 48, 36))
        f.line(stick + 0.006 * p.light, width * 0.4, (186, 92, 70))


def ground(f: Frame, shape: np.ndarray, depth: float = 0.1, alpha: int = 120):
    """The soft shadow of something that stands on what is there."""
    f.p.soft(f.points(shape * 1.01) - f.p.light * depth * f.scale, (22, 10, 12), alpha, 0.05 * f.scale)


def plate(f: Frame, dish: Dish, well: float = 0.74):
    body, accent = PLATES[dish.style.plate]
    ground(f, CIRCLE)
    f.poly(DISC, dark(body, 0.3))
    f.poly(DISC * 0.985, light(body, 0.2), h=0.02)
    f.poly(DISC * 0.965 - 0.01 * f.light, body, h=0.02)
    rim(f, dish.style.rim, accent, well)
    f.poly(DISC * well, dark(body, 0.16))
    f.poly(DISC * (well - 0.015) - 0.012 * f.light, light(body, 0.15))
    f.poly(DISC * (well - 0.04) - 0.012 * f.light, dark(body, 0.03))
    toward = cmath.phase(f.light)
    f.poly(sector(toward - 0.5, toward + 0.5, 12, 0.965) * 0.95, (255, 255, 255, 120))


def rim(f: Frame, pattern: str, accent: Colour, well: float):
    middle, wide = (well + 0.97) / 2, 0.97 - well
    if pattern in ("band", "double"):
        f.poly(sector(0, 2 * math.pi, 91, 0.95) * 0.96, accent)
    if pattern == "double":
        f.poly(sector(0, 2 * math.pi, 91, 0.97) * (well + 0.25 * wide), accent)
    elif pattern == "dots":
        for k in range(24):
            f.poly(DOT * min(0.035, 0.3 * wide) + cmath.rect(middle, k * math.pi / 12), accent)
    elif pattern == "ticks":
        for k in range(28):
            f.line(
                cmath.rect(1, k * math.pi / 14) * np.array([middle - 0.28 * wide, middle + 0.3 * wide]),
                0.025,
                accent,
            )
    elif pattern == "scallop":
        t = np.linspace(0, 2 * math.pi, 129)
        f.line((middle + 0.18 * wide * np.cos(16 * t)) * np.exp(1j * t), min(0.03, 0.22 * wide), accent)


def bowl(f: Frame, dish: Dish, fill: Colour, level: float = 0.84) -> Frame:
    """A deep bowl filled with `fill`; returns the plane of what is in it, its radius one."""
    body, accent = PLATES[dish.style.plate]
    ground(f, CIRCLE, 0.16)
    f.poly(DISC, dark(body, 0.35))
    f.poly(DISC * 0.99, body, h=0.03)
    top = f.at(0, 1, 0, 0.03)
    rim(top, dish.style.rim, accent, 0.9)
    top.poly(DISC * 0.92, dark(body, 0.32))
    f.poly(DISC * 0.9 - 0.025 * f.light, dark(body, 0.12), h=0.02)
    inside = f.at(0, level)
    inside.poly(DISC, dark(fill, 0.22))
    inside.poly(DISC * 0.97, fill)
    glow = inside.points(CIRCLE * 0.8 - 0.12 * f.light)
    f.p.soft(glow, light(fill, 0.25), 120, 0.12 * f.scale, inside.points(CIRCLE * 0.97))
    toward = cmath.phase(f.light)
    for angle in (toward, toward + math.pi):
        top.poly(sector(angle - 0.5, angle + 0.5, 12, 0.97) * 0.975, (255, 255, 255, 110))
    return inside


def board(f: Frame, r: Random):
    """A round wooden board with a handle."""
    handle = stretch(SQUARE, 0.26, 0.1) + 1.14
    for part in (DISC, handle):
        ground(f, part, 0.06)
    for part in (handle, DISC):
        f.poly(part, (112, 72, 42))
    for part in (handle, DISC * 0.985):
        f.p.fill(f.points(part, h=0.025), (164, 112, 68), (214, 162, 108), "wood", r, 1.2, 0.5)
    f.poly(DOT * 0.035 + 1.27, (92, 58, 36), h=0.025)


def stand(f: Frame, dish: Dish, size: float):
    """What an upright dish stands on: a plate or a board."""
    if dish.style.plate % 3 == 1:
        board(f.at(0, size * 0.95, 0.4), chance(dish, "board"))
    else:
        plate(f.at(0, size), dish, 0.8)


# Placing ingredients

SLOTS = 41  # prime, so that a stride visits every slot


def places(dish: Dish, names: Sequence[str], reach: float) -> list[tuple[str, complex]]:
    """A spot in a disc for every piece of `names`, evenly spread and mixed.

    The spots are those of a sunflower. Each ingredient walks them in strides from a start of its own, so
    taking one away leaves nearly all the others where they are. Big pieces come first: small ones lie
    on top.
    """
    r = chance(dish, "slots")
    turn = r.uniform(0, 6.3)
    spots = [
        cmath.rect(reach * math.sqrt((k + 0.5) / SLOTS), turn + k * GOLDEN)
        + 0.035 * complex(r.gauss(0, 1), r.gauss(0, 1))
        for k in range(SLOTS)
    ]
    walks = {}
    for name in names:
        start = chance(dish, f"slots of {name}").randrange(SLOTS)
        walks[name] = [(start + 7 * k) % SLOTS for k in range(SLOTS)]
    left = {name: dish.count(name) for name in names}
    free, placed = set(range(SLOTS)), []
    for step in range(2 * SLOTS):
        for name in names:
            k = walks[name][step % SLOTS]
            if left[name] and (k in free or step >= SLOTS):  # a second round shares slots
                free.discard(k)
                left[name] -= 1
                placed.append((name, spots[k] + (0.05 if step >= SLOTS else 0)))
    return sorted(placed, key=lambda item: -LOOKS[item[0]][0])


def piece(f: Frame, name: str, z: complex, r: Random, size: float = 1.0, angle: float | None = None):
    """One piece of `name` lying at `z`, turned at random unless an angle is given."""
    if angle is None:
        angle = r.uniform(0, 2 * math.pi)
    LOOKS[name][1](f.at(z, size * LOOKS[name][0], angle), r)


def standing(
    f: Frame, name: str, z: complex, h: float, r: Random, size: float = 1.0, angle: float | None = None
):
    """One piece of `name` facing the camera at height `h` over `z`."""
    if angle is None:
        angle = r.uniform(0, 2 * math.pi)
    LOOKS[name][1](f.up(z, size * LOOKS[name][0], angle, h), r)


def scatter(f: Frame, dish: Dish, names: Iterable[str], reach: float, size: float = 1.0):
    """Pieces and flecks over a disc of radius `reach`."""
    names = list(names)
    for name, z in places(dish, [name for name in names if name in LOOKS], reach):
        piece(f, name, z, chance(dish, f"{name} {z:.3f}"), size)
    for name in names:
        if name in DUST:
            dust(f, dish, name, reach, min(size, 1.15))


def dust(f: Frame, dish: Dish, name: str, reach: float, size: float = 1.0, core: float = 0.0, h: float = 0.0):
    """Something fine over a ring from radius `core` to `reach`."""
    grain, number, look = DUST[name]
    r = chance(dish, name)
    if name == "powdered sugar":
        f.p.soft(f.points(BLOBS[7] * reach * 0.7, h), (255, 255, 255), 120, 0.14 * f.scale)
    for _ in range(round(number * (1.5 + dish.count(name)))):
        z = cmath.rect(core + (reach - core) * math.sqrt(r.random()), r.uniform(0, 6.3))
        look(f.at(z, grain * size, r.uniform(0, 6.3), h), r)


def heaps(f: Frame, dish: Dish, names: Sequence[str], ring: float, size: float, turn=0.0, span=2 * math.pi):
    """Each ingredient together in its own corner, as on ramen or in a pan."""
    for i, name in enumerate(names):
        r = chance(dish, f"heap of {name}")
        centre = cmath.rect(ring, turn + span * (i + 0.5) / len(names))
        count, grain = dish.count(name), LOOKS[name][0] * size
        lean = r.uniform(0, 6.3)
        for k in range(count):
            # two pieces touch at a distance of their radius or so: about 40 % of each overlaps
            away = 0 if count == 1 else 0.72 * grain * math.sqrt(count) * math.sqrt((k + 0.5) / count) * 1.25
            piece(f, name, centre + cmath.rect(away, lean + k * GOLDEN), r, size)


def pool(f: Frame, colour: Colour, shape: np.ndarray):
    """A sauce spread on what lies below."""
    f.shadow(shape, 0.03)
    f.poly(shape, dark(colour, 0.2))
    f.poly(shape * 0.96 + 0.01 * f.light, colour)
    lit = f.points(shape * 0.45 + 0.25 * f.light)
    f.p.soft(lit, light(colour, 0.45), 110, 0.1 * f.scale, f.points(shape * 0.96))


def lobes(r: Random, angles: np.ndarray, count: int, width: float, low: float, high: float) -> np.ndarray:
    """How far a sauce has run down at each of `angles` between 0 and pi: drops of random length."""
    down = np.zeros_like(angles)
    for k in range(count):
        middle = (k + 0.5 + r.uniform(-0.25, 0.25)) * math.pi / count
        down = np.maximum(down, r.uniform(low, high) * np.exp(-(((angles - middle) / width) ** 4)))
    return down


def drips(f: Frame, colour: Colour, radius: float, h: float, r: Random, length: float):
    """A sauce on top of an upright round, running down its front."""
    t = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    down = np.maximum(0.16, lobes(r, t, 9, 0.13, 0.3, 1.0)) * length * np.sin(t).clip(0) ** 0.4
    edge = f.points(radius * np.exp(1j * t), h) - f.lift * down
    f.p.polygon(edge - f.lift * 0.025, (30, 14, 14, 70))
    f.p.polygon(edge, dark(colour, 0.12))
    f.poly(DISC * radius * 0.98, colour, h=h)
    f.p.soft(
        f.points(CIRCLE * radius * 0.4 + 0.3 * radius * f.light, h), light(colour, 0.5), 110, 0.06 * f.scale
    )
    f.poly(sector(0.9, 2.1, 12, 0.95) * radius * 0.97, light(colour, 0.3), h=h)


def strands(f: Frame, r: Random, colour: Colour, reach: float, count: int, width: float, wave: float = 0.0):
    """Noodles in loose nests."""
    t = np.linspace(0, 1, 13 if not wave and f.p.size <= 128 else 24 if f.p.size <= 128 else 64)
    for _ in range(count):
        radius, turn = r.uniform(0.2, 0.6) * reach, r.uniform(0, 6.3)
        centre = cmath.rect(r.uniform(0, reach - radius), r.uniform(0, 6.3))
        path = centre + radius * np.exp(1j * (turn + t * r.uniform(2.2, 4.2))) * (1 + 0.2 * t)
        if wave:
            path = path + wave * cmath.rect(1, turn) * np.sin(26 * t)
        c = vary(r, colour, 10)
        f.line(path - 0.4 * width * f.light, width * 1.25, dark(c, 0.34))
        f.line(path, width, c)
        if f.fine * width > 2:
            f.line(path + 0.2 * width * f.light, width * 0.3, light(c, 0.5))
