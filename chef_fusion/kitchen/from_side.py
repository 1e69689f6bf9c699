"""Bases seen from the side: burger, sandwich, cake, pancakes, tacos, sundae."""

import cmath
import math

import numpy as np

from chef_fusion.kitchen.looks import COLOURS, DUST, LOOKS
from chef_fusion.kitchen.menu import PLATES, Dish
from chef_fusion.kitchen.paint import (
    BLOBS,
    CIRCLE,
    SLAB,
    SQUARE,
    Frame,
    Painter,
    dark,
    light,
    mix,
    polar,
    ribbon,
    stretch,
)
from chef_fusion.kitchen.stack import layer, thickness
from chef_fusion.kitchen.staging import (
    DISC,
    GOLDEN,
    chance,
    drips,
    dust,
    ground,
    lobes,
    piece,
    plate,
    stage,
    stand,
    standing,
)

BURGER_ORDER = (
    "lettuce beef_patty crispy_chicken veggie_patty cheddar fried_egg bacon ripe_tomato pineapple "
    "pickles red_onion avocado ketchup mustard mayonnaise"
).split()


def burger(p: Painter, dish: Dish):
    fillings = (name for name in dish.ingredients if name != "sesame seeds")
    names = sorted(fillings, key=lambda name: BURGER_ORDER.index(name.replace(" ", "_")))
    height = 0.96 + thickness(dish, names)
    radius = min(0.64, 1.42 / (height + 0.8))
    f = stage(p, dish, radius, 0.3, 0.42, 0.46 * radius * height, turn=False)
    stand(f, dish, 1.38)
    bun = (222, 150, 74)
    ground(f, CIRCLE * 0.98, 0.1, 140)
    f.prism(DISC * 0.94, 0.0, 0.1, dark(bun, 0.3))
    f.prism(DISC * 0.98, 0.08, 0.16, bun, light(bun, 0.4))
    f.prism(DISC * 0.97, 0.22, 0.05, light(bun, 0.5), (252, 226, 176))
    h = 0.27
    for name in names:
        h = layer(f, CIRCLE * 0.98, name, h, dish)
    f.poly(DISC * 0.97, (250, 222, 170), h)
    f.prism(DISC * 0.98, h, 0.06, light(bun, 0.35), bun)
    # the lid: the front half of its edge below, a dome above
    lid = f.up(0, 1.0, 0, h + 0.05)
    tall = abs(f.lift) / f.scale
    x = np.linspace(-1, 1, 40)
    front = np.exp(1j * np.linspace(0, math.pi, 30))[1:-1]
    squash = math.sqrt(1 - tall**2)
    dome = (
        np.concatenate([x - 0.62j * tall * (1 - np.abs(x) ** 2.6) ** 0.62, stretch(front, 1, squash)]) * 0.99
    )
    lid.poly(dome, dark(bun, 0.22))
    inner = dome * 0.97 - 0.012j
    lid.poly(inner, bun)
    clip, spot = lid.points(inner), 0.3 * p.light.real - 0.3j * tall
    p.soft(lid.points(stretch(CIRCLE, 0.5, 0.2) + spot), (255, 222, 156), 210, 0.1 * f.scale, clip)
    p.soft(lid.points(stretch(CIRCLE, 0.16, 0.05) + spot - 0.1j), (255, 250, 232), 190, 0.03 * f.scale, clip)
    for name in dish.of(3):
        r = chance(dish, name)
        grain, _, look = DUST[name]
        for _ in range(16 + 8 * dish.count(name)):
            z = cmath.rect(math.sqrt(r.random()), r.uniform(0, math.pi))
            look(
                lid.at(
                    complex(0.82 * z.real, -tall * (0.06 + 0.46 * z.imag)), grain * 1.7, r.uniform(-0.9, 0.9)
                ),
                r,
            )


def sandwich(p: Painter, dish: Dish):
    names = sorted(dish.ingredients, key=lambda n: (n in dish.of(2), chance(dish, f"order {n}").random()))
    height = 0.56 + thickness(dish, names)
    radius = min(0.64, 1.42 / (height + 1.1))
    f = stage(p, dish, radius, 0.42, 0.52, 0.44 * radius * height, turn=False)
    stand(f, dish, 1.42)
    r = chance(dish, "bread")
    bread = SLAB * cmath.rect(0.94, math.pi / 4 + r.uniform(-0.25, 0.25))
    crust, crumb = (186, 118, 58), (252, 232, 190)
    ground(f, bread, 0.1, 140)
    p.fill(f.prism(bread, 0, 0.24, crust, crumb), dark(crust, 0.2), light(crust, 0.2), "crumb", r, 0.6)
    f.poly(bread * 0.96, crumb, 0.24)
    outline = bread[np.argsort(np.angle(bread) % (2 * math.pi))] * 0.98
    h = 0.24
    for name in names:
        h = layer(f, outline, name, h, dish)
    p.fill(f.prism(bread, h, 0.24, crust), dark(crust, 0.2), light(crust, 0.25), "crumb", r, 0.6)
    h += 0.24
    p.fill(f.points(bread * 0.99, h), (206, 142, 76), (226, 164, 96), "crumb", r, 0.6)
    p.fill(f.points(bread * 0.88, h), (232, 188, 126), (254, 236, 196), "crumb", r, 0.5)
    p.soft(f.points(bread * 0.5, h), (214, 150, 80), 110, 0.2 * f.scale, f.points(bread * 0.86, h))
    pick = f.up(0, 1, 0, h)
    pick.line(np.array([0, -0.5j]), 0.035, (232, 206, 150))
    pick.poly(np.array([-0.5j, 0.3 - 0.42j, -0.3j]), PLATES[dish.style.plate][1])


def cake(p: Painter, dish: Dish):
    f = stage(p, dish, 0.66, 0.42, 0.54, 0.27, turn=False)
    stand(f, dish, 1.3)
    r = chance(dish, "base")
    colour, sponge, tall = COLOURS[dish.of(0)[0]], (240, 200, 124), 0.74
    ground(f, CIRCLE, 0.12, 140)
    wall = f.prism(DISC, 0, tall, dark(colour, 0.14))
    bright = math.copysign(1, p.light.real)
    for side, tint, alpha in ((-bright, dark(colour, 0.5), 120), (bright, light(colour, 0.5), 110)):
        stripe = np.array([0.5, 1.1, 1.1, 0.5]) * side + 0.6j
        p.soft(f.points(stripe, np.array([-0.5, -0.5, 1.5, 1.5])), tint, alpha, 0.16 * f.scale, wall)
    f.poly(DISC, light(colour, 0.1), h=tall)
    f.poly(DISC * 0.96, colour, h=tall)
    for name in dish.of(2):
        drips(
            f,
            COLOURS[name],
            0.99,
            tall,
            chance(dish, name),
            0.36 + 0.1 * dish.amounts[dish.ingredients.index(name)],
        )
    # a slice is out, away from the light: the two cut faces show the layers
    a, b = sorted((math.pi / 2 + bright * 0.1, math.pi / 2 + bright * 0.95))
    arc = 1.02 * np.exp(1j * np.linspace(a, b, 12))
    f.p.polygon(
        np.concatenate([f.points(np.append(0j, arc), tall), f.points(arc[::-1], 0)]), dark(sponge, 0.3)
    )
    f.poly(np.append(0j, arc), dark(PLATES[dish.style.plate][0], 0.2))
    for angle, shade in ((a, 0.0), (b, 0.16)):
        for low, high, tint in ((0.0, 1.0, colour), (0.06, 0.44, sponge), (0.53, 0.92, sponge)):
            out = cmath.rect(0.98 if tint is sponge else 1.005, angle)
            face = np.array([0, out, out, 0])
            f.p.polygon(f.points(face, tall * np.array([low, low, high, high])), dark(tint, shade))
    fruits, number = dish.of(1), 15
    rest = 2 * math.pi - (b - a)
    ring = [
        (cmath.rect(0.78, b + 0.2 + (rest - 0.4) * k / (number - 1)), fruits[k % len(fruits)])
        for k in range(number)
    ]
    for z, name in sorted(ring, key=lambda item: item[0].imag):
        standing(f, name, z, tall + 0.07, r, 1.25 * min(1.35, 0.105 / LOOKS[name][0]), r.uniform(-1.9, -1.2))
    for name in dish.of(3):
        q = chance(dish, name)
        number = (3, 4, 6)[dish.amounts[-1]] if name not in DUST else DUST[name][1] * (6 + dish.count(name))
        if name in LOOKS and LOOKS[name][0] < 0.1:
            number *= 3
        for k in range(number):
            z = cmath.rect(0.58 * math.sqrt((k + 0.5) / number), b + 0.3 + (rest - 0.6) * ((0.618 * k) % 1))
            if name in DUST:
                DUST[name][2](f.at(z, 0.045, q.uniform(0, 6.3), tall), q)
            else:
                standing(f, name, z, tall + 0.03, q, max(1.4, 0.12 / LOOKS[name][0]))


def pancakes(p: Painter, dish: Dish):
    f = stage(p, dish, 0.64, 0.42, 0.56, 0.22, turn=False)
    stand(f, dish, 1.42)
    r = chance(dish, "base")
    ground(f, CIRCLE * 0.98, 0.1, 140)
    h = 0.0
    for _ in range(4 + dish.style.plate % 2):
        cake = DISC * r.uniform(0.92, 0.98) + r.uniform(-0.04, 0.04)
        f.prism(cake * 0.97, h, 0.05, (160, 92, 40))
        f.prism(cake, h + 0.025, 0.05, (206, 134, 62))
        f.prism(cake, h + 0.06, 0.06, (250, 218, 150))
        f.prism(cake, h + 0.11, 0.05, (222, 152, 76), (202, 128, 58))
        h += 0.17
    f.poly(cake, (236, 182, 106), h)
    p.fill(f.points(cake * 0.93, h), (188, 112, 48), (218, 146, 72), "crumb", r, 0.5)
    name, q = dish.of(0)[0], chance(dish, dish.of(0)[0])
    drips(f, COLOURS[name], 0.84, h, q, 0.5 + 0.1 * dish.amounts[0])
    fruits = dish.of(1)
    around = []
    for name, start, step in zip(fruits, (0.4, math.pi - 0.4), (0.32, -0.32), strict=False):
        number = 2 + dish.amounts[dish.ingredients.index(name)]
        around += [(cmath.rect(1.14, start + step * k), name, 0.08) for k in range(number)]
    on_top = [
        (cmath.rect(0.58, 0.5 + 2 * math.pi * k / 7), fruits[k % len(fruits)], h + 0.06) for k in range(7)
    ]
    for spots in (around, on_top):
        for z, name, height in sorted(spots, key=lambda item: item[0].imag):
            standing(f, name, z, height, r, 1.45, r.uniform(-2.1, -1.1))
    for name in dish.of(2):
        LOOKS[name][1](
            f.up(0, {"butter": 0.23, "whipped cream": 0.32, "vanilla ice cream": 0.36}[name], 0.3, h + 0.14),
            r,
        )
    for name in dish.of(3):
        q = chance(dish, name)
        if name in DUST:
            dust(f, dish, name, 0.9, 1.5, h=h + 0.05)
            continue
        for k in range(3 if LOOKS[name][0] > 0.1 else 5 + dish.count(name)):
            z = cmath.rect(0.34 + 0.3 * q.random(), 1.0 + k * GOLDEN)
            standing(f, name, z, h + 0.1, q, max(1.4, 0.12 / LOOKS[name][0]))


def tacos(p: Painter, dish: Dish):
    f = stage(p, dish, 0.92, 0.5, 0.62, 0.18, turn=False)
    plate(f, dish, 0.8)
    lean = (dish.style.rotation - math.pi) / 30
    for number, (z, size, angle) in enumerate(((0.12 - 0.36j, 0.7, 0.1), (-0.12 + 0.34j, 0.74, -0.06))):
        _taco(f.up(z, size, angle + lean, 0.12), dish, number)
    if "lime" in dish.ingredients:
        q = chance(dish, "lime")
        for k in range(dish.count("lime")):
            piece(f, "lime", cmath.rect(0.74, 0.3 + 0.44 * k), q, 1.6)


SHELL = stretch(
    np.concatenate(
        [
            np.exp(1j * np.linspace(math.pi, 2 * math.pi, 40)),
            [1 + 0.07j, 0.8 + 0.16j, -0.8 + 0.16j, -1 + 0.07j],
        ]
    ),
    1.0,
    0.8,
)


def _taco(f: Frame, dish: Dish, number: int):
    """A folded shell: its back, the filling that looks out over the front, the front."""
    colour, r = (244, 196, 100), chance(dish, f"filling {number}")
    f.p.soft(f.points(stretch(CIRCLE, 1.0, 0.16) + 0.16j), (40, 20, 16), 150, 0.05 * f.scale)
    f.at(0.06 - 0.2j).poly(SHELL, dark(colour, 0.4))
    f.at(0.06 - 0.2j).poly(SHELL * 0.95, dark(colour, 0.22))
    names, total = dish.of(0) + dish.of(1), 16
    for k in range(total):
        name = names[(k + number) % len(names)]
        angle = math.pi * (1.04 + 0.92 * (k + 0.5) / total)
        at = complex(0.93 * math.cos(angle), 0.78 * math.sin(angle) - 0.1)
        turn = angle + r.uniform(-0.6, 0.6) + math.pi / 2
        LOOKS[name][1](f.at(at, min(0.22, max(0.19, 1.6 * LOOKS[name][0])), turn), r)
    for name in dish.of(2):
        q = chance(dish, f"{name} {number}")
        if name == "sour cream":
            x = np.linspace(-0.62, 0.62, 40)
            path = x - 1j * (0.8 * np.sqrt(1 - x * x) + 0.06) + 0.07j * np.sin(24 * x)
            f.line(path + 0.02j, 0.15, (206, 200, 190))
            f.line(path, 0.12, (255, 254, 250))
        elif name != "lime":
            count = 3 + dish.count(name)
            for k in range(count):
                angle = math.pi * (1.12 + 0.76 * (k + 0.5) / count)
                at = complex(0.92 * math.cos(angle), 0.78 * math.sin(angle) - 0.08)
                LOOKS[name][1](f.at(at, LOOKS[name][0] * 1.7, q.uniform(0, 6.3)), q)
    f.shadow(SHELL, 0.03)
    f.poly(SHELL, dark(colour, 0.2))
    inner = SHELL * 0.955 + 0.005j
    f.poly(inner, colour)
    lit = f.points(stretch(CIRCLE, 0.4, 0.3) - 0.35j + 0.25 * f.p.light)
    f.p.soft(lit, (255, 232, 168), 190, 0.1 * f.scale, f.points(inner))
    for _ in range(12):
        at = cmath.rect(0.85 * math.sqrt(r.random()), math.pi * (1 + r.random()))
        f.poly(BLOBS[3] * r.uniform(0.02, 0.05) + complex(at.real, at.imag * 0.8), (206, 140, 58, 150))


def sundae(p: Painter, dish: Dish):
    f = stage(p, dish, 0.58, 0.3, 0.42, 0.72, turn=False)
    plate(f.at(0, 1.05), dish, 0.8)
    scoops, toppings, r = dish.of(0), dish.of(2), chance(dish, "base")
    glass = f.up(0, 1.0)
    mouth = -1.0j
    side = np.array([0.1 - 0.26j, 0.3 - 0.34j, 0.52 - 0.58j, 0.66 - 0.82j, 0.74 + mouth])
    back, front = (stretch(np.exp(1j * np.linspace(0, s * math.pi, 20)), 0.74, 0.15) + mouth for s in (-1, 1))
    glass.poly(stretch(DISC, 0.5, 0.16) + 0.02j, (206, 226, 236))
    glass.poly(stretch(DISC, 0.44, 0.12), (236, 246, 250))
    glass.poly(stretch(SQUARE, 0.08, 0.16) - 0.14j, (198, 220, 232))
    glass.poly(np.concatenate([side, back, -side.conj()[::-1]]), (196, 220, 230))
    if "wafer rolls" in toppings:
        for k in range(dish.count("wafer rolls")):
            LOOKS["wafer rolls"][1](
                glass.at(complex(0.44 - 0.2 * k, -1.8 + 0.05 * k), 0.5, -1.2 - 0.14 * k), r
            )
    spots = ((-0.36 + mouth - 0.17j, 0.43), (0.36 + mouth - 0.17j, 0.43), (mouth - 0.52j, 0.44))
    for k, (z, size) in enumerate(spots):
        _scoop(glass.at(z, size), dish, k)
    lower = mix(COLOURS[scoops[-1]], (214, 232, 240), 0.25)
    glass.poly(np.concatenate([side, front, -side.conj()[::-1]]), (*lower, 225))
    glass.poly(np.concatenate([side[:3], -side.conj()[:3][::-1]]) * 0.97, (*COLOURS[scoops[0]], 235))
    glass.poly(
        ribbon(np.array([-0.18 - 0.4j, -0.42 - 0.64j, -0.58 - 0.93j]), np.array([0.03, 0.08, 0.08])),
        (255, 255, 255, 150),
    )
    glass.line(stretch(front - mouth, 0.99, 1) + mouth, 0.035, (246, 252, 255))
    for name in toppings:
        q, count = chance(dish, name), dish.count(name) + 3
        for k in range(0 if name == "wafer rolls" else count if name in LOOKS else count * DUST[name][1]):
            z, size = spots[(0, 2, 1)[k % 3]]
            at = z + size * cmath.rect(
                0.8 * math.sqrt(q.uniform(0.1, 1)), -math.pi / 2 + q.uniform(-1.5, 1.5)
            )
            if name in DUST:
                DUST[name][2](glass.at(at, 0.075, q.uniform(0, 6.3)), q)
            else:
                piece(glass, name, at, q, max(1.7, 0.13 / LOOKS[name][0]), q.uniform(-2.1, -1.0))
    crown = mouth - 0.95j
    for name in sorted(dish.of(3), key=("whipped cream", "mint leaves", "maraschino cherry").index):
        q = chance(dish, name)
        if name == "whipped cream":
            LOOKS[name][1](glass.at(crown + 0.02j, 0.36), q)
            crown -= 0.24j
        elif name == "mint leaves":
            LOOKS[name][1](glass.at(crown + 0.22 + 0.04j, 0.3, -0.6), q)
        else:
            LOOKS[name][1](glass.at(crown - 0.04j, 0.2), q)


def _scoop(f: Frame, dish: Dish, k: int):
    scoops, r = dish.of(0), chance(dish, f"scoop {k}")
    colour = COLOURS[scoops[k % len(scoops)]]
    body = polar(lambda t: 1.0 + 0.05 * np.cos(9 * t + k) * (np.sin(t) > -0.3) + 0.03 * np.cos(17 * t), 72)
    f.shadow(body, 0.1)
    f.poly(body, dark(colour, 0.24))
    inner = f.points(body * 0.95 + 0.03 * f.p.light)
    f.p.fill(inner, dark(colour, 0.07), light(colour, 0.22), "crumb", r, 0.7)
    f.p.soft(f.points(CIRCLE * 0.36 + 0.36 * f.p.light), light(colour, 0.6), 170, 0.2 * f.scale, inner)
    for name in dish.of(1):
        sauce, q = COLOURS[name], chance(dish, f"{name} {k}")
        t = np.linspace(0, 2 * math.pi, 90, endpoint=False)
        run = np.maximum(0.12, lobes(q, t, 6, 0.2, 0.2, 0.6)) * np.sin(t).clip(0) ** 0.4
        cap = 0.9 * np.cos(t) + 1j * (np.where(np.sin(t) < 0, 0.62 * np.sin(t), run) - 0.36)
        f.poly(cap, dark(sauce, 0.1))
        f.poly(cap * 0.93 + 0.01j, sauce)
        f.poly(stretch(CIRCLE, 0.2, 0.08) - 0.66j + 0.25 * f.p.light, light(sauce, 0.5))
