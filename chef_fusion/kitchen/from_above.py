"""Bases seen from above: pizza, salad, soup, pasta, curry, skillet, ramen, sushi, tart, doughnuts."""

import cmath
import math
from random import Random

import numpy as np

from chef_fusion.kitchen.looks import COLOURS, DUST, LOOKS, lettuce, spinach
from chef_fusion.kitchen.menu import PLATES, Dish
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
    mix,
    polar,
    ribbon,
    sector,
    stretch,
    vary,
)
from chef_fusion.kitchen.staging import (
    DISC,
    GOLDEN,
    board,
    bowl,
    chance,
    chopsticks,
    dust,
    ground,
    heaps,
    piece,
    places,
    plate,
    pool,
    scatter,
    stage,
    strands,
)


def pizza(p: Painter, dish: Dish):
    r = chance(dish, "base")
    f = stage(p, dish, 0.86, 0.8, 1.0)
    if dish.style.plate % 2:
        board(f.at(0, 1.04), r)
    else:
        plate(f.at(0, 1.1), dish)
    crust = polar(lambda t: 0.96 + 0.012 * np.cos(5 * t + 1) + 0.012 * np.cos(8 * t), 80)
    f.shadow(crust, 0.05)
    p.fill(f.points(crust), (176, 108, 52), (232, 174, 100), "crumb", r, 0.6)
    p.soft(f.points(crust * 0.9 + 0.05 * f.light), (252, 214, 146), 150, 0.05 * f.scale, f.points(crust))
    for _ in range(7):
        f.poly(DOT * r.uniform(0.02, 0.045) + cmath.rect(0.9, r.uniform(0, 6.3)), (146, 84, 40, 150))
    sauce, spread = COLOURS[dish.of(0)[0]], polar(lambda t: 0.82 + 0.015 * np.cos(7 * t), 80)
    f.poly(spread, dark(sauce, 0.25))
    p.fill(f.points(spread * 0.976), dark(sauce, 0.14), light(sauce, 0.16), "crumb", r)
    for name in dish.of(1):
        melt = chance(dish, name)
        for k in range(9 + 2 * dish.count(name)):
            z = cmath.rect(0.66 * math.sqrt((k + 0.6) / 22), k * GOLDEN + melt.uniform(-0.2, 0.2))
            spot = f.at(z, melt.uniform(0.12, 0.17), melt.uniform(0, 6.3))
            spot.poly(melt.choice(BLOBS) * 1.08, (244, 200, 110))
            spot.poly(melt.choice(BLOBS), (255, 238, 186))
            spot.poly(BLOBS[k % 16] * 0.5 + 0.25 * spot.light, (255, 250, 224))
    scatter(f, dish, dish.of(2), 0.72, 1.2)
    scatter(f, dish, dish.of(3), 0.68, 1.1)
    for k in range(3):
        f.line(cmath.rect(1, k * math.pi / 3) * np.array([-0.97, 0.97]), 0.012, (70, 30, 20, 90))


def salad(p: Painter, dish: Dish):
    inside = bowl(stage(p, dish, 0.88, 0.82, 1.0), dish, (92, 120, 52), 0.88)
    r = chance(dish, "greens")
    leaf, many, size = (lettuce, 15, 0.36) if dish.of(0)[0] == "lettuce" else (spinach, 26, 0.3)
    many += 3 * dish.amounts[0]
    for k in range(many, 0, -1):
        z = cmath.rect(0.8 * math.sqrt((k - 0.5) / many), k * GOLDEN)
        leaf(inside.at(z, size * r.uniform(0.85, 1.1), r.uniform(0, 6.3)), r)
    scatter(inside, dish, dish.of(1) + dish.of(2), 0.74, 1.32)


def soup(p: Painter, dish: Dish):
    f = stage(p, dish, 0.84, 0.78, 0.98)
    plate(f.at(0, 1.1), dish)
    inside = bowl(f.at(0, 0.94), dish, COLOURS[dish.of(0)[0]], 0.88)
    r, names = chance(dish, "swirl"), dish.of(1) + dish.of(2)
    if "sour cream" in names:
        t = np.linspace(1.4, 16 + 1.5 * dish.amounts[dish.ingredients.index("sour cream")], 100)
        path = 0.036 * t * np.exp(1j * (t + r.uniform(0, 6)))
        inside.line(path, 0.1 * np.sin(np.linspace(0.2, 3.0, 100)), (255, 252, 240))
    for k in range(9):
        spot = cmath.rect(r.uniform(0.4, 0.85), k)
        inside.poly(CIRCLE * r.uniform(0.02, 0.05) + spot, (255, 240, 200, 90))
    scatter(inside, dish, [name for name in names if name != "sour cream"], 0.7, 1.5)


def pasta(p: Painter, dish: Dish):
    f = stage(p, dish, 0.92, 0.8, 1.0)
    plate(f, dish, 0.76)
    r, sauce = chance(dish, "base"), COLOURS[dish.of(0)[0]]
    f.shadow(BLOBS[1] * 0.64, 0.06)
    f.poly(BLOBS[1] * 0.64, (206, 160, 78))
    strands(f, r, mix((246, 214, 128), sauce, 0.12), 0.72, 40, 0.055)
    pool(f, sauce, BLOBS[4] * 0.5)
    strands(f, r, mix((246, 214, 128), sauce, 0.4), 0.54, 8, 0.05)
    scatter(f, dish, dish.of(1), 0.52, 1.15)
    scatter(f, dish, dish.of(2), 0.5, 1.1)


def curry(p: Painter, dish: Dish):
    f = stage(p, dish, 0.9, 0.8, 1.0)
    plate(f, dish, 0.84)
    r = chance(dish, "base")
    sauce = mix(COLOURS[dish.of(0)[0]], (250, 214, 150), 0.1)
    f.poly(DISC * 0.8, dark(sauce, 0.3))
    pool(f, sauce, DISC * 0.78)
    mound = stretch(BLOBS[2], 0.32, 0.62) - 0.46
    f.shadow(mound, 0.07, 70)
    f.poly(mound, (214, 204, 184))
    f.poly(mound * 0.96 + 0.02 * f.light, (246, 242, 230))
    lit = f.points(stretch(CIRCLE, 0.2, 0.42) - 0.48 + 0.06 * f.light)
    p.soft(lit, (255, 255, 252), 200, 0.06 * f.scale)
    grain = stretch(DOT, 0.034, 0.013)
    for _ in range(50):
        z = cmath.rect(math.sqrt(r.random()), r.uniform(0, 6.3))
        at = complex(-0.46 + 0.27 * z.real, 0.54 * z.imag)
        f.poly(grain * cmath.rect(1, r.uniform(0, 3)) + at, r.choice(((255, 255, 252), (222, 214, 196))))
    for name, z in places(dish, dish.of(1), 0.42):
        at = complex(0.28 + 0.8 * z.real, 1.3 * z.imag)
        piece(f, name, at, chance(dish, f"{name} {z:.3f}"), 1.45)
    for name in dish.of(2):
        if name == "yogurt":
            piece(f, name, 0.2 + 0.05j, chance(dish, name), 0.9 + 0.2 * dish.amounts[-1])
        else:
            scatter(f.at(0.2), dish, [name], 0.46, 1.3)


def skillet(p: Painter, dish: Dish):
    f = stage(p, dish, 0.82, 0.84, 1.0)
    handle = ribbon(np.array([0.9 + 0j, 1.2, 1.75]), np.array([0.2, 0.16, 0.22]))
    ground(f, handle, 0.07)
    ground(f, CIRCLE, 0.12)
    f.poly(handle, (24, 24, 28))
    f.poly(
        ribbon(np.array([0.95 + 0j, 1.2, 1.7]), np.array([0.1, 0.08, 0.12])) + 0.015 * f.light, (66, 66, 74)
    )
    f.poly(DISC, (26, 26, 30))
    f.poly(DISC * 0.985, (78, 78, 86), h=0.03)
    f.poly(DISC * 0.93, (20, 20, 24), h=0.03)
    f.poly(DISC * 0.9, (54, 54, 60))
    p.soft(f.points(CIRCLE * 0.5 + 0.3 * f.light), (96, 94, 98), 150, 0.16 * f.scale, f.points(DISC * 0.88))
    eggs, r = dish.count("fried egg"), chance(dish, "egg")
    heaps(f, dish, dish.of(1), 0.5, 1.45, 2.0, 2 * math.pi - (1.6, 2.3, 2.9)[eggs - 1])
    for k in range(eggs):
        angle = 2.0 - (1.6, 2.3, 2.9)[eggs - 1] * (k + 0.5) / eggs
        piece(f, "fried egg", cmath.rect(0.46, angle), r, (1.2, 1.05, 0.95)[eggs - 1])
    scatter(f, dish, dish.of(2), 0.76, 1.4)


def ramen(p: Painter, dish: Dish):
    r = chance(dish, "base")
    inside = bowl(stage(p, dish, 0.9, 0.8, 0.98), dish, COLOURS[dish.of(0)[0]], 0.87)
    for _ in range(12):
        spot = cmath.rect(r.uniform(0.6, 0.9), r.uniform(0, 6.3))
        inside.poly(CIRCLE * r.uniform(0.02, 0.06) + spot, (255, 236, 180, 90))
    strands(inside, r, (250, 226, 154), 0.86, 26, 0.065, 0.035)
    heaps(inside, dish, dish.of(1), 0.5, 1.5, r.uniform(0, 6.3))
    scatter(inside, dish, dish.of(2), 0.62, 1.35)
    chopsticks(p, dish)


FILLINGS: dict[str, tuple[Colour, Colour]] = {  # of a roll, seen from its end: edge, middle
    "salmon": ((250, 132, 88), (255, 190, 156)),
    "tuna": ((176, 30, 50), (206, 66, 80)),
    "avocado": ((112, 148, 56), (206, 220, 120)),
    "cucumber": ((40, 108, 52), (210, 236, 166)),
    "carrot": ((232, 112, 16), (252, 150, 50)),
    "crab sticks": ((228, 60, 50), (255, 240, 234)),
    "tofu": ((206, 160, 92), (252, 240, 210)),
    "red pepper": ((178, 20, 24), (226, 50, 44)),
}


def sushi(p: Painter, dish: Dish):
    f = stage(p, dish, 0.94, 0.84, 1.0, turn=False).at(0, 1, dish.style.rotation / 6 - 0.5)
    body, _ = PLATES[dish.style.plate]
    slab, r = stretch(SLAB, 0.98, 0.74), chance(dish, "base")
    ground(f, slab, 0.08)
    f.poly(slab, dark(body, 0.4))
    p.fill(f.points(slab * 0.985, 0.03), dark(body, 0.06), light(body, 0.12), "slate", r)
    f.poly(slab * 0.9, dark(body, 0.12), h=0.03)
    f.poly(slab * 0.89 - 0.006 * f.light, light(body, 0.05), h=0.03)
    sides = dish.of(3)
    left, step, size = (-0.63, 0.48, 0.25) if sides else (-0.62, 0.62, 0.3)
    for k in range(6):
        at = complex(left + step * (k % 3), (-0.32, 0.32)[k // 3])
        _roll(f.at(at, size, r.uniform(-0.4, 0.4), 0.05), dish, r)
    for name, at in zip(
        sides, (0.74 - 0.34j, 0.74 + 0.34j) if len(sides) > 1 else (0.74 + 0j,), strict=False
    ):
        if name == "soy sauce":
            cup = f.at(at, 0.23, 0, 0.04)
            ground(cup, CIRCLE, 0.2)
            cup.poly(DISC, light(body, 0.4))
            cup.poly(DISC * 0.86, COLOURS[name])
            cup.poly(DOT * 0.16 + 0.4 * cup.light, (255, 240, 220, 130))
        else:
            piece(f.at(at, 1, 0, 0.04), name, 0, chance(dish, name), 1.15)
    if dish.style.prop == "cutlery":
        chopsticks(p, dish)


def _roll(f: Frame, dish: Dish, r: Random):
    f.shadow(CIRCLE, 0.3, 60)
    f.poly(DISC * 1.02 - 0.08 * f.light, (14, 26, 22))
    f.poly(DISC, (34, 54, 42))
    f.poly(DISC * 0.87, (252, 250, 242))
    for _ in range(14 if f.fine > 8 else 0):
        grain = stretch(DOT, 0.1, 0.05) * cmath.rect(1, r.uniform(0, 3))
        f.poly(grain + cmath.rect(r.uniform(0.5, 0.8), r.uniform(0, 6.3)), (230, 224, 208))
    core = dish.of(1)
    for i, name in enumerate(core):
        angle = 2 * math.pi * i / len(core)
        strip = f.at(0, 0.48) if len(core) == 1 else f.at(cmath.rect(0.33, angle), 0.36, angle)
        edge, middle = FILLINGS[name]
        strip.poly(SQUARE, edge)
        strip.poly(SQUARE * 0.66 + 0.08 * strip.light, vary(r, middle, 6))
    for name in dish.of(2):
        grain, number, look = DUST[name]
        for _ in range(number + 2 * dish.count(name)):
            look(
                f.at(cmath.rect(r.uniform(0.55, 0.86), r.uniform(0, 6.3)), 3.4 * grain, r.uniform(0, 6.3)), r
            )


def tart(p: Painter, dish: Dish):
    f = stage(p, dish, 0.84, 0.8, 1.0)
    plate(f.at(0, 1.1), dish)
    r, cream = chance(dish, "base"), COLOURS[dish.of(0)[0]]
    fluted = polar(lambda t: 0.94 + 0.035 * np.cos(30 * t), 180)
    f.shadow(fluted, 0.05)
    f.poly(fluted, (170, 108, 52))
    f.poly(fluted * 0.97, (226, 168, 96), h=0.03)
    for k in range(30):
        f.line(cmath.rect(1, k * math.pi / 15) * np.array([0.8, 0.93]), 0.025, (190, 128, 66))
    f.poly(DISC * 0.83, (176, 116, 60))
    f.poly(DISC * 0.81, dark(cream, 0.14))
    f.poly(DISC * 0.8 - 0.01 * f.light, cream)
    fruits = dish.of(1)
    for ring, radius in enumerate((0.65, 0.39, 0.15)):
        name = fruits[ring % len(fruits)]
        size = min(1.6, 0.15 / LOOKS[name][0])
        room = LOOKS[name][0] * size * (2.25 - 0.15 * dish.amounts[dish.ingredients.index(name)])
        number, turn = max(1, round(2 * math.pi * radius / room)), r.uniform(0, 6.3)
        for k in range(number):
            angle = turn + 2 * math.pi * k / number
            piece(
                f,
                name,
                cmath.rect(radius, angle),
                r,
                size,
                angle + (math.pi / 2 if name == "peach slices" else 0),
            )
    p.soft(f.points(CIRCLE * 0.3 + 0.4 * f.light), (255, 255, 255), 46, 0.12 * f.scale)
    scatter(f, dish, dish.of(2), 0.66, 1.15)


def doughnuts(p: Painter, dish: Dish):
    f = stage(p, dish, 0.92, 0.82, 1.0)
    plate(f, dish, 0.84)
    r = chance(dish, "base")
    if dish.style.plate % 3 == 0:
        _doughnut(f.at(0, 0.88, r.uniform(0, 6.3)), dish, 0)
    else:
        for k in range(3):
            _doughnut(f.at(cmath.rect(0.43, 2 * math.pi * k / 3), 0.48, r.uniform(0, 6.3)), dish, k)


def _doughnut(f: Frame, dish: Dish, number: int):
    glaze, t = COLOURS[dish.of(0)[0]], np.linspace(0, 2 * math.pi, 73)
    ground(f, sector(0, 2 * math.pi, 61, 0.4) * 0.94, 0.1)
    f.poly(sector(0, 2 * math.pi, 61, 0.3) * 0.96, (160, 92, 40))
    f.poly(sector(0, 2 * math.pi, 61, 0.36) * 0.92, (230, 168, 92))
    edge = (0.83 + 0.03 * np.cos(7 * t) + 0.02 * np.cos(11 * t + 1)) * np.exp(1j * t)
    hole = ((0.38 - 0.02 * np.cos(5 * t)) * np.exp(1j * t))[::-1]
    f.poly(np.concatenate([edge * 1.02, hole]), dark(glaze, 0.25))
    f.poly(np.concatenate([edge, hole * 1.04]) + 0.01 * f.light, glaze)
    toward = cmath.phase(f.light)
    f.poly(sector(toward - 0.8, toward + 0.8, 18, 0.9) * 0.74, light(glaze, 0.45))
    f.poly(sector(toward + 2.5, toward + 3.8, 18, 0.9) * 0.5, light(glaze, 0.3))
    for name in dish.of(2):
        if name in COLOURS:
            zigzag = (0.61 + 0.19 * np.sin(13 * t)) * np.exp(1j * t)
            f.line(zigzag + 0.02 * f.light, 0.075, dark(COLOURS[name], 0.3))
            f.line(zigzag, 0.055, COLOURS[name])
    for name in dish.of(1):
        r, count = chance(dish, f"{name} {number}"), dish.count(name)
        if name in DUST:
            grain, many, look = DUST[name]
            for _ in range(many * count // 2 + 14):
                at = cmath.rect(r.uniform(0.45, 0.78), r.uniform(0, 6.3))
                look(f.at(at, grain * 1.6, r.uniform(0, 6.3)), r)
            continue
        start = r.uniform(0, 6.3)
        for k in range(count + 3):
            at = cmath.rect(r.uniform(0.54, 0.68), start + 2 * math.pi * k / (count + 3))
            piece(f, name, at, r, 2.1 if LOOKS[name][0] < 0.07 else 1.6)
    for name in dish.of(2):
        if name in DUST:
            dust(f, dish, name, 0.8, 1.6, 0.4)
