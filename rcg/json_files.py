"""JSON that others wrote: read in bounds, and refused in one line where it is none."""

import json
import math
import os
from collections import Counter
from typing import Any

from rcg.errors import UserError

MAX_BYTES = 2**26  # of a file that describes something; data come in lines or are streamed


class NotJSON(ValueError):
    """Text that is no JSON, or such that no program would write it."""


def _whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise NotJSON(f'"{name[:60]}" is in it twice')
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJSON(f"{text[:20]} is no number that can be held")
    return number


def _constant(text: str) -> Any:
    raise NotJSON(f"{text} is no JSON")


def _unbounded(text: str) -> Any:
    return None if text == "-Infinity" else _constant(text)


def parse(text: str | bytes, unbounded: bool = False) -> Any:
    """What the text says.

    Args:
      unbounded: lets in -Infinity, as Python writes a bound that is none: as null.

    Raises:
      NotJSON: no JSON; a name twice in an object; a number that is none; nested too deeply.
    """
    constant = _unbounded if unbounded else _constant
    try:
        return json.loads(text, object_pairs_hook=_whole, parse_float=_finite, parse_constant=constant)
    except RecursionError as error:
        raise NotJSON("it is nested too deeply") from error
    except NotJSON:
        raise
    except ValueError as error:  # also bytes that are no text, and numbers of thousands of digits
        raise NotJSON(" ".join(str(error).split())[:200]) from error


def read(path: str, advice: str, unbounded: bool = False) -> dict[str, Any]:
    """The object that a file holds.

    Args:
      advice: what to do if it can't be read, for the error. unbounded: see `parse`.

    Raises:
      UserError: can't be read, too large, no JSON, or no object.
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise NotJSON(f"it is larger than {MAX_BYTES // 2**20} MiB")
        with open(path, "rb") as f:
            found = parse(f.read(), unbounded)
        if not isinstance(found, dict):
            raise NotJSON("it holds no object")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; {advice}") from error
    except NotJSON as error:
        raise UserError(f"{path} is damaged ({error}); {advice}") from error
    return found
