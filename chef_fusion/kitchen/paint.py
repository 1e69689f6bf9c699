"""A canvas that draws many shaded shapes quickly: supersampled, then averaged down.

A point is a complex number and a shape an array of them, y down. A `Frame` maps the plane of a plate,
or of one piece on it, to pixels; `A z + B conj(z) + C` is every affine map.
"""

import cmath
import functools
import math
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, ...]


def mix(a: Colour, b: Colour, t: float) -> Colour:
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )


def dark(colour: Colour, t: float = 0.3) -> Colour:
    return mix(colour, (46, 20, 24), t)


def light(colour: Colour, t: float = 0.3) -> Colour:
    return mix(colour, (255, 252, 238), t)


def vary(r: Random, colour: Colour, amount: float = 9) -> Colour:
    d = r.uniform(-amount, amount)
    return tuple(min(255, max(0, round(c + d + r.uniform(-amount, amount) / 3))) for c in colour)


# Shapes, about one unit in radius.


def polar(radius, n: int = 48) -> np.ndarray:
    t = np.arange(n) * (2 * math.pi / n)
    return radius(t) * np.exp(1j * t)


def stretch(shape: np.ndarray, x: float, y: float) -> np.ndarray:
    return shape.real * x + 1j * shape.imag * y


def ribbon(path: np.ndarray, width) -> np.ndarray:
    """The outline of a band along `path`; `width` is a number or one per point."""
    ends = np.concatenate([path[:1], path, path[-1:]])
    step = ends[2:] - ends[:-2]
    normal = 1j * step / np.maximum(np.abs(step), 1e-9) * (0.5 * width)
    return np.concatenate([path + normal, (path - normal)[::-1]])


@functools.lru_cache
def sector(a: float, b: float, n: int = 14, inner: float = 0.0) -> np.ndarray:
    """A slice of pie between the angles a and b, or of a ring where `inner` > 0."""
    arc = np.exp(1j * np.linspace(a, b, n))
    return np.concatenate([arc, inner * arc[::-1] if inner else np.zeros(1)])


CIRCLE = polar(lambda t: 1 + 0 * t, 36)
DOT = CIRCLE[::3]
RING = sector(0, 2 * math.pi, 33, 0.5)
OVAL = stretch(CIRCLE, 1, 0.68)
EGG = polar(lambda t: 0.86 + 0.14 * np.cos(t), 36) * 1.02
SQUARE = polar(lambda t: 1 / (np.abs(np.cos(t)) ** 5 + np.abs(np.sin(t)) ** 5) ** 0.2, 32)
SLAB = polar(lambda t: 1 / (np.abs(np.cos(t)) ** 8 + np.abs(np.sin(t)) ** 8) ** 0.125, 128)
_t = np.linspace(0, math.pi, 14)
LEAF = np.concatenate(
    [-np.cos(_t) + 0.5j * np.sin(_t) ** 1.3, (-np.cos(_t) - 0.5j * np.sin(_t) ** 1.3)[::-1]]
)
DROP = CIRCLE.real + 0.8j * CIRCLE.imag * np.sin(np.arange(36) * math.pi / 36) ** 1.1
FRILL = tuple(
    polar(
        lambda t, k=k: 0.86 + 0.09 * np.cos(9 * t + k) + 0.06 * np.cos(14 * t) + 0.1 * np.cos(2 * t + 2 * k),
        72,
    )
    for k in range(4)
)


def _blob(k: int) -> np.ndarray:
    r = Random(k)
    waves = [(j, r.uniform(0.02, 0.24) / j, r.uniform(0, 6.3)) for j in range(2, 7)]
    return polar(lambda t: 1 + sum(a * np.cos(j * t + phase) for j, a, phase in waves), 40)


BLOBS = tuple(_blob(k) for k in range(16))


# Textures: 512 x 512 grey pictures, coloured as they are used.


def _noise(r: np.random.Generator, *sizes: tuple[int, int]) -> np.ndarray:
    """Smooth noise in about [-1, 1]: random grids of `sizes` (rows, columns), blown up and averaged."""
    total = np.zeros((512, 512), np.float32)
    for k, (rows, columns) in enumerate(sizes):
        grid = Image.fromarray(r.uniform(-1, 1, (rows, columns)).astype(np.float32))
        total += np.asarray(grid.resize((512, 512), Image.Resampling.BICUBIC)) * 0.6**k
    return total


@functools.lru_cache
def texture(name: str) -> Image.Image:
    r = np.random.Generator(np.random.PCG64(7))
    y, x = np.mgrid[0:512, 0:512].astype(np.float32) / 512
    if name == "wood":
        plank = np.floor(y * 5)
        tone = r.uniform(-0.5, 0.5, 6)[plank.astype(int)]
        seam = np.abs(y * 5 - np.round(y * 5)) < 0.018
        rings = np.sin(60 * y + 5 * _noise(r, (10, 2), (20, 4)) + 9 * plank)
        value = 0.25 + 0.5 * tone + 0.3 * rings + 0.5 * _noise(r, (256, 6), (128, 12)) - 1.6 * seam
    elif name == "linen":
        weave = np.sin(2 * math.pi * 85 * x) * np.sin(2 * math.pi * 85 * y)
        value = 0.5 * _noise(r, (512, 9)) + 0.5 * _noise(r, (9, 512)) + 0.3 * weave + 0.2
    elif name == "marble":
        fold = _noise(r, (3, 3), (7, 7), (15, 15), (40, 40))
        veins = np.abs(np.sin(7 * (x + 0.6 * y) + 3.2 * fold))
        value = 0.9 - 1.5 * np.exp(-9 * veins) * (0.6 + 0.4 * _noise(r, (4, 4))) + 0.2 * fold
    elif name == "slate":
        value = 0.8 * _noise(r, (6, 4), (24, 10), (90, 30), (300, 120))
    elif name == "gingham":
        stripe_x, stripe_y = (x * 16 % 2 < 1), (y * 16 % 2 < 1)
        value = 1.0 - stripe_x * 1.0 - stripe_y * 1.0 + 0.08 * _noise(r, (256, 256))
    elif name == "crumb":
        value = 0.5 * _noise(r, (8, 8), (30, 30), (90, 90)) + 0.25
    else:  # plain
        value = 0.5 * _noise(r, (3, 3), (100, 100))
    return Image.fromarray(np.clip(127.5 + 127.5 * value, 0, 255).astype(np.uint8))


@functools.lru_cache(4096)
def _ramp(a: int, b: int) -> list[int]:
    return [round(a + (b - a) * i / 255) for i in range(256)]


def _coloured(grey: Image.Image, low: Colour, high: Colour) -> Image.Image:
    return Image.merge("RGB", [grey.point(_ramp(a, b)) for a, b in zip(low, high, strict=True)])


class Painter:
    """The canvas of one picture of `size` pixels, with its light."""

    def __init__(self, size: int, light_angle: float):
        self.size = size
        self.supersampling = 4 if size <= 48 else 3 if size <= 256 else 2
        self.width = size * self.supersampling
        self.light = cmath.rect(1, light_angle)  # towards the light, y down
        self.image = Image.new("RGB", (self.width, self.width))
        self.canvas = ImageDraw.Draw(self.image, "RGBA")

    def frame(self, x: float, y: float, scale: float, squash: float = 1.0, rotation: float = 0.0) -> "Frame":
        """A plane seen from above (`squash` 1) down to edge-on (0); lengths in half pictures."""
        unit = self.width / 2
        spin = cmath.rect(scale * unit, rotation)
        return Frame(
            self,
            spin * (1 + squash) / 2,
            spin.conjugate() * (1 - squash) / 2,
            unit * complex(1 + x, 1 + y),
            -1j * scale * unit * math.sqrt(1 - squash**2),
        )

    def polygon(self, pixels: np.ndarray, colour: Colour):
        """Fills a polygon given in pixels of the canvas; a fourth colour component is opacity."""
        self.canvas.polygon(_flat(pixels), fill=colour)

    def fill(
        self, pixels: np.ndarray | None, low: Colour, high: Colour, name: str, r: Random, zoom=1.0, turn=0.0
    ):
        """Fills a polygon (None: everything) with a texture between two colours."""
        x0, y0, x1, y1 = (0, 0, self.width, self.width) if pixels is None else self._box(pixels, 1)
        if x1 <= x0 or y1 <= y0:
            return
        grid = 512 / self.width * 0.66 / zoom
        c, s = math.cos(turn) * grid, math.sin(turn) * grid
        mx, my = (x1 - x0) / 2, (y1 - y0) / 2
        slack = max(0.0, 256 - grid * math.hypot(mx, my))
        cx, cy = 256 + r.uniform(-slack, slack), 256 + r.uniform(-slack, slack)
        sampling = Image.Resampling.BILINEAR if self.size > 128 else Image.Resampling.NEAREST
        matrix = (c, s, cx - c * mx - s * my, -s, c, cy + s * mx - c * my)
        grey = texture(name).transform((x1 - x0, y1 - y0), Image.Transform.AFFINE, matrix, sampling)
        mask = None
        if pixels is not None:
            mask = Image.new("L", grey.size)
            ImageDraw.Draw(mask).polygon(_flat(pixels - complex(x0, y0)), fill=255)
        self.image.paste(_coloured(grey, low, high), (x0, y0), mask)

    def soft(
        self, pixels: np.ndarray, colour: Colour, alpha: int, blur: float, clip: np.ndarray | None = None
    ):
        """Paints a polygon with blurred edges (`blur` in pixels of the canvas), inside `clip` if given."""
        k = 4  # the mask is drawn this much smaller: blurred anyway
        x0, y0, x1, y1 = self._box(pixels if clip is None else clip, 3 * blur if clip is None else 1)
        w, h = -(-(x1 - x0) // k), -(-(y1 - y0) // k)
        if w <= 0 or h <= 0:
            return
        mask = Image.new("L", (w, h))
        ImageDraw.Draw(mask).polygon(_flat((pixels - complex(x0, y0)) / k), fill=alpha)
        mask = mask.filter(ImageFilter.GaussianBlur(blur / k)).resize(
            (w * k, h * k), Image.Resampling.BILINEAR
        )
        if clip is not None:
            inside = Image.new("L", mask.size)
            ImageDraw.Draw(inside).polygon(_flat(clip - complex(x0, y0)), fill=255)
            mask = ImageChops.multiply(mask, inside)
        self.image.paste(colour, (x0, y0, x0 + w * k, y0 + h * k), mask)

    def finish(self, warmth: float, vignette: float) -> np.ndarray:
        """Averages down and lights the picture: uint8 [size, size, 3]."""
        pixels = np.asarray(self.image.reduce(self.supersampling), np.float32)
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size * 2 - 1
        x, y = axis[None, :], axis[:, None]
        gain = 1.02 + 0.09 * (x * self.light.real + y * self.light.imag)
        gain = gain - (0.05 + 0.13 * vignette) * (x * x + y * y) ** 1.5 / 2
        tint = np.array([1 + 0.045 * warmth, 1 + 0.01 * warmth, 1 - 0.06 * warmth], np.float32)
        return np.clip(pixels * (gain[..., None] * tint) + 0.5, 0, 255).astype(np.uint8)

    def _box(self, pixels: np.ndarray, margin: float) -> tuple[int, int, int, int]:
        x, y = pixels.real, pixels.imag
        return (
            max(0, int(x.min() - margin)),
            max(0, int(y.min() - margin)),
            min(self.width, int(x.max() + margin) + 1),
            min(self.width, int(y.max() + margin) + 1),
        )


def _flat(pixels: np.ndarray) -> list[float]:
    return np.ascontiguousarray(pixels, np.complex128).view(np.float64).tolist()


class Frame:
    """A plane in the picture. `lift` is what a unit of height above it does to a pixel."""

    __slots__ = ("p", "a", "b", "c", "lift", "scale")

    def __init__(self, p: Painter, a: complex, b: complex, c: complex, lift: complex):
        self.p, self.a, self.b, self.c, self.lift = p, a, b, c, lift
        self.scale = abs(a) + abs(b)  # pixels of the canvas per unit, across

    @property
    def fine(self) -> float:
        """Final pixels per unit: whether detail is worth drawing."""
        return self.scale / self.p.supersampling

    @property
    def light(self) -> complex:
        """Towards the light, in this frame."""
        w = self.a.conjugate() * self.p.light - self.b * self.p.light.conjugate()
        return w / abs(w)

    def point(self, z: complex, h: float = 0.0) -> complex:
        return self.a * z + self.b * z.conjugate() + self.c + self.lift * h

    def points(self, shape: np.ndarray, h=0.0) -> np.ndarray:
        out = self.a * shape + (self.c + self.lift * h)
        return out + self.b * shape.conj() if self.b else out

    def at(self, z: complex, size: float = 1.0, angle: float = 0.0, h: float = 0.0) -> "Frame":
        """A smaller plane lying in this one."""
        turn = cmath.rect(size, angle)
        return Frame(
            self.p, self.a * turn, self.b * turn.conjugate(), self.point(complex(z), h), self.lift * size
        )

    def up(self, z: complex, size: float = 1.0, angle: float = 0.0, h: float = 0.0) -> "Frame":
        """A plane facing the camera, standing at `z`."""
        return Frame(self.p, cmath.rect(self.scale * size, angle), 0, self.point(complex(z), h), 0)

    def poly(self, shape: np.ndarray, colour: Colour, h=0.0):
        if self.scale < 22 and len(shape) > 20 and isinstance(h, float):
            shape = shape[::2]  # too small for so many corners
        self.p.canvas.polygon(_flat(self.points(shape, h)), fill=colour)

    def shadow(self, shape: np.ndarray, depth: float = 0.22, alpha: int = 46):
        """A shadow of `shape` on what lies below, away from the light."""
        pixels = self.points(shape[::2] if self.scale < 22 and len(shape) > 20 else shape)
        away = -self.p.light * depth * self.scale
        self.p.polygon(pixels + away, (36, 16, 16, alpha))
        if self.fine > 3:
            self.p.polygon(pixels + 0.5 * away, (36, 16, 16, alpha))

    def solid(
        self, shape: np.ndarray, colour: Colour, gloss: float = 0.4, depth: float = 0.22, rim: float = 0.3
    ):
        """A rounded thing: shadow, darker rim, body, lit side, highlight."""
        self.shadow(shape, depth)
        self.poly(shape, dark(colour, rim))
        toward = self.light
        self.poly(shape * 0.86 + toward * 0.06, colour)
        if self.fine > 2.5:
            self.poly(shape * 0.56 + toward * 0.2, light(colour, 0.16))
        if gloss and self.fine > 1.5:
            self.poly(DOT * 0.15 + toward * 0.46, (255, 255, 250, round(255 * gloss)))

    def line(self, path: np.ndarray, width, colour: Colour):
        self.poly(ribbon(path, width), colour)

    def prism(self, shape: np.ndarray, h: float, height: float, side: Colour, top: Colour | None = None):
        """A convex `shape` raised from `h` by `height`, with its wall in front."""
        low, high = self.points(shape, h), self.points(shape, h + height)
        left, right = low[low.real.argmin()], low[low.real.argmax()]
        slope = (right - left).imag / max((right - left).real, 1e-9)
        front = low.imag > left.imag + slope * (low.real - left.real)
        wall = np.where(front, low, high)
        self.p.polygon(wall, side)
        if top is not None:
            self.p.polygon(high, top)
        return wall
