"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
SIZES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}
WITH_OPERANDS = ("all-gather-start", "collective-permute-start")  # what these give back has both
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")
_OPERATION = re.compile(r"=\s+(.*?)\s([a-z\-]+)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"?known_trip_count"?:?\s*\{\s*"?n"?\s*:\s*"?(\d+)')
_CALLED = re.compile(r"(?:to_apply|body|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")


def _bytes(shapes: str) -> int:
    return sum(
        SIZES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _SHAPE.findall(shapes)
    )


def _results(shapes: str) -> str:
    """Of "(operands, results, maybe counters)" the results."""
    each = [match[0] for match in _SHAPE.finditer(shapes)]
    counters = sum(shape in ("u32[]", "s32[]") for shape in each)
    values = len(each) - counters
    return " ".join(each[values // 2 : values])


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective, on one device, in one run of the program.

    What a loop does counts as often as it runs, where that is known when it is compiled; of branches all.

    Args:
      text: of a compiled program, `compiled.as_text()`.
    """
    own: dict[str, Counter[str]] = {}
    called: dict[str, list[tuple[str, int]]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and not line.startswith(" "):
            name = head[1]
            entry = name if line.startswith("ENTRY") else entry
            own[name], called[name] = Counter(), []
            continue
        found = _OPERATION.search(line)
        if not name or not found:
            continue
        shapes, operation = found[1], found[2]
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            own[name][kind] += _bytes(_results(shapes) if operation in WITH_OPERANDS else shapes)
        if operation == "fusion":
            continue
        trips = _TRIPS.search(line) if operation == "while" else None
        times = int(trips[1]) if trips else 1
        called[name] += [(other, times) for other in _CALLED.findall(line) if kind not in KINDS]
        for several, one in _BRANCHES.findall(line):
            called[name] += [(other.strip().lstrip("%"), 1) for other in (several or one).split(",")]

    def total(name: str) -> Counter[str]:
        whole = Counter(own.get(name, {}))
        for other, times in called.get(name, ()):
            for kind, size in total(other).items():
                whole[kind] += times * size
        return whole

    return dict(total(entry))
