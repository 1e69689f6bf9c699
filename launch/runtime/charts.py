"""Inline SVG for the report: curves with axes, and the diagram of the method.

Colours are CSS variables of the page (`launch/runtime/page.py`), so that a chart follows light and dark.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 26
Point = tuple[float, float]


def short(value: float) -> str:
    """For an axis or a table: "0.0312", "4.56", "12k", "3.4M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(0.9995 * size, 1e4):  # which rounds to one of it
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(low: float, high: float, log: bool, count: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    if log:
        digits = (1, 2, 5) if high / low < 100 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        inside = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        return inside[:: -(-len(inside) // (count + 1))] or [low, high]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def running_mean(points: Sequence[Point], width: int) -> list[Point]:
    """Means of `width` neighbours on either side, narrower at the ends: no lag."""
    values = [v for _, v in points]
    smooth = []
    for i, (step, _) in enumerate(points):
        reach = min(width, i, len(points) - 1 - i)
        window = values[i - reach : i + reach + 1]
        smooth.append((step, sum(window) / len(window)))
    return smooth


def curve(name: str, points: Sequence[Point]) -> str:
    """(step, value) pairs -> an SVG chart; logarithmic where values span more than a factor of 30.

    Values that are not finite are left out and counted. Many points are drawn thin, with their running
    mean on top.
    """
    finite = [(s, v) for s, v in points if math.isfinite(v)]
    lost = len(points) - len(finite)
    lost_note = f" ({lost} not finite)" if lost else ""
    if not finite:
        return f'<p class="quiet">{escape(name)}: no finite value yet{lost_note}</p>'
    steps, values = zip(*finite, strict=True)
    low, high = min(values), max(values)
    log = low > 0 and high / low > 30
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - max(abs(low) * 0.1, 1e-3), high + max(abs(high) * 0.1, 1e-3)
    first, last = min(0, steps[0]), max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        place = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)

    def line(points: Sequence[Point], kind: str) -> str:
        stride = max(1, len(points) // 400)
        kept = [*points[:-1:stride], points[-1]]
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in kept)
        return f'<polyline class="{kind}" points="{path}"/>'

    parts = []
    for tick in ticks(low, high, log):
        at = y(tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in ticks(first, last, False):
        anchor = "end" if x(tick) > WIDTH - RIGHT - 16 else "middle"
        at = x(tick) + (RIGHT if anchor == "end" else 0)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    if len(finite) > 40:
        smooth = running_mean(finite, len(finite) // 40)
        parts += [line(finite, "raw"), line(smooth, "curve")]
        finite = smooth
    else:
        parts.append(line(finite, "curve"))
    end = finite[-1]
    parts.append(f'<circle class="end" cx="{x(end[0]):.1f}" cy="{y(end[1]):.1f}" r="3.5"/>')
    label = f"{name}: {short(values[0])} at step {steps[0]}, {short(values[-1])} at step {steps[-1]}"
    scale = ", log scale" if log else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(name)}</b>'
        f"<span>{values[0]:.3g} → {values[-1]:.3g}{scale}{lost_note}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def bars(name: str, values: Sequence[tuple[str, float]]) -> str:
    """(label, value) pairs -> an SVG chart of horizontal bars from zero; values are not negative."""
    line, letter = 24, 6.2  # of a letter's width at most
    start = max(150, min(WIDTH - 120, 16 + letter * max((len(label) for label, _ in values), default=0)))
    high = max((v for _, v in values if math.isfinite(v)), default=1) or 1
    parts = []
    for i, (label, value) in enumerate(values):
        y, finite = i * line + 6, math.isfinite(value)
        wide = max((WIDTH - start - 60) * value / high, 1) if finite else 0
        parts.append(f'<text x="{start - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="bar" x="{start}" y="{y}" width="{wide:.1f}" height="{line - 8}" rx="3"/>')
        shown = short(value) if finite else "not finite"
        parts.append(f'<text x="{start + wide + 6:.1f}" y="{y + 12}">{shown}</text>')
    label = "; ".join(f"{label} {value:.4g}" for label, value in values)
    return (
        f'<figure class="chart"><figcaption><b>{escape(name)}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {line * len(values) + 8}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg></figure>'
    )


# ---- the diagram: two lanes of three tiles, joined by the networks

TILE, GAP, LANE_TOP = 84, 104, 4
LANE_WIDTH, LANE_HEIGHT = 3 * TILE + 2 * GAP, TILE + 54


def _picture(x: float, uri: str, masked: bool = False) -> str:
    if uri:
        inside = (
            f'<image href="{uri}" x="{x}" y="{LANE_TOP}" width="{TILE}" height="{TILE}" '
            f'preserveAspectRatio="xMidYMid slice" clip-path="inset(0 round 10px)"/>'
        )
    else:  # a plate
        cx, cy = x + TILE / 2, LANE_TOP + TILE / 2
        inside = (
            f'<circle class="plate" cx="{cx}" cy="{cy}" r="32"/>'
            f'<circle class="dish" cx="{cx}" cy="{cy}" r="21"/>'
        )
    if masked:
        cell = TILE / 6
        hidden = [(i, j) for i in range(6) for j in range(6) if (7 * i + 11 * j + i * j) % 10 < 7]
        inside += "".join(
            f'<rect class="hidden" x="{x + j * cell:.1f}" y="{LANE_TOP + i * cell:.1f}" '
            f'width="{cell:.1f}" height="{cell:.1f}"/>'
            for i, j in hidden
        )
    return f'<g clip-path="inset(0 round 10px)">{inside}</g>{_frame(x)}'


def _frame(x: float) -> str:
    return f'<rect class="frame" x="{x}" y="{LANE_TOP}" width="{TILE}" height="{TILE}" rx="10"/>'


def _noise(x: float) -> str:
    cell, parts = TILE / 12, []
    for i in range(144):
        shade = math.modf(abs(math.sin(i * 12.9898 + 4.1) * 43758.5453))[0]
        parts.append(
            f'<rect x="{x + i % 12 * cell:.1f}" y="{LANE_TOP + i // 12 * cell:.1f}" width="{cell + 0.3:.1f}" '
            f'height="{cell + 0.3:.1f}" class="noise" opacity="{shade:.2f}"/>'
        )
    return f'<g clip-path="inset(0 round 10px)">{"".join(parts)}</g>{_frame(x)}'


def _representation(x: float, phase: float) -> str:
    """Signed bars: a list of numbers, seen."""
    parts, middle = [], LANE_TOP + TILE / 2
    for i in range(11):
        height = 27 * math.sin(1.9 * i + phase) * math.cos(0.7 * i + 2 * phase)
        top = middle - max(height, 0)
        parts.append(
            f'<rect class="{"up" if height > 0 else "down"}" x="{x + 10.5 + 5.9 * i:.1f}" y="{top:.1f}" '
            f'width="4" height="{max(abs(height), 1.5):.1f}" rx="1.5"/>'
        )
    return "".join(parts) + _frame(x)


def _network(x: float, name: str) -> str:
    """An arrow from tile to tile, with the network's name on it; `x` is where it starts."""
    y, wide = LANE_TOP + TILE / 2, 76
    left = x + (GAP - wide) / 2
    return (
        f'<line class="arrow" x1="{x + 3}" x2="{left}" y1="{y}" y2="{y}"/>'
        f'<line class="arrow" x1="{left + wide}" x2="{x + GAP - 8}" y1="{y}" y2="{y}"/>'
        f'<path class="head" d="M{x + GAP - 9},{y - 4.5} l7,4.5 l-7,4.5 z"/>'
        f'<rect class="network" x="{left}" y="{y - 15}" width="{wide}" height="30" rx="15"/>'
        f'<text class="name" x="{left + wide / 2}" y="{y + 4.5}" text-anchor="middle">{name}</text>'
    )


def _lane(label: str, tiles: Sequence[str], networks: Sequence[str], captions: Sequence[str]) -> str:
    starts = [i * (TILE + GAP) for i in range(3)]
    parts = [*tiles]
    parts += [_network(start + TILE, name) for start, name in zip(starts, networks, strict=False)]
    anchors, places = ("start", "middle", "end"), (0, LANE_WIDTH / 2, LANE_WIDTH)
    for anchor, place, caption in zip(anchors, places, captions, strict=True):
        for row, text in enumerate(caption.split("\n")):
            y = LANE_TOP + TILE + 21 + 17 * row
            parts.append(f'<text x="{place}" y="{y}" text-anchor="{anchor}">{text}</text>')
    return (
        f'<svg class="lane" viewBox="-2 0 {LANE_WIDTH + 4} {LANE_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def learning_lane(photo: str = "") -> str:
    """What is trained; `photo` is a data URI."""
    second, third = TILE + GAP, 2 * (TILE + GAP)
    return _lane(
        "Learning: the encoder turns a picture into a representation; MAGE fills in the hidden parts from it",
        (_picture(0, photo), _representation(second, 0.9), _picture(third, photo, masked=True)),
        ("Encoder", "MAGE"),
        ("a real picture", "its representation,\nwhich RDM learns", "hidden parts,\nto be filled in"),
    )


def creating_lane(sample: str = "") -> str:
    """What makes a new picture; `sample` is a data URI."""
    second, third = TILE + GAP, 2 * (TILE + GAP)
    return _lane(
        "Creating: RDM turns noise into a new representation, and MAGE paints a picture for it",
        (_noise(0), _representation(second, 2.3), _picture(third, sample)),
        ("RDM", "MAGE"),
        ("pure noise", "a new representation,\nof no real picture", "a new picture"),
    )
