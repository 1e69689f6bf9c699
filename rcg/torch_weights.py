"""Published PyTorch weights <-> our variables: one table of names per network, read both ways.

A network states its table beside its code, as a list of `Rule`s. Importing uses each array of the
file once and fills each leaf of ours once; whatever is missing, unused or misshapen is listed in one
error. Each transform has an exact inverse, so export after import is the identity, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util

from rcg.errors import UserError

Variables = Mapping[str, Any]
HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Rule(NamedTuple):
    """`ours` ("params/head/kernel") holds what the file calls `theirs` ("head.weight")."""

    ours: str
    theirs: str
    transform: str = "same"


class Transform(NamedTuple):
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


TRANSFORMS = {
    "same": Transform(lambda a: a, lambda a: a),
    "linear": Transform(lambda a: a.T, lambda a: a.T),  # (out, in) <-> (in, out)
    "conv": Transform(  # OIHW <-> HWIO
        lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
    ),
    "count": Transform(  # torch counts in int64, which JAX does not hold by default
        lambda a: a.astype(np.int32), lambda a: a.astype(np.int64)
    ),
}


def dense(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    """Rules of a torch Linear."""
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", "linear")]
    return rules + [Rule(f"{ours}/bias", f"{theirs}.bias")] * bias


def conv(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    """Rules of a torch Conv2d."""
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", "conv")]
    return rules + [Rule(f"{ours}/bias", f"{theirs}.bias")] * bias


def norm(ours: str, theirs: str) -> list[Rule]:
    """Rules of an affine LayerNorm or GroupNorm."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many blocks `prefix.0.`, `prefix.1.`, ... there are among `names`."""
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in names if name.startswith(f"{prefix}.")}
    return len(numbers)


def derive(like: Variables, rename: Callable[[str], str]) -> list[Rule]:
    """The table of a network whose modules are named as the file's.

    Args:
      like: our variables, maybe abstract: one rule for each.
      rename: a module's path, "down_blocks_0/conv_in" -> its name in the file.
    """
    table = []
    for path, leaf in traverse_util.flatten_dict(like, sep="/").items():
        module, _, kind = path.removeprefix("params/").rpartition("/")
        transform = {("kernel", 2): "linear", ("kernel", 4): "conv"}.get((kind, len(leaf.shape)), "same")
        theirs = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
        table.append(Rule(path, f"{rename(module)}.{theirs}", transform))
    return table


def import_variables(
    arrays: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    like: Variables,
    source: str,
    widen: bool = False,
    keep_half: bool = False,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Our variables from a file's arrays.

    Args:
      arrays: the file's name -> array; each name must be used.
      rules: the network's table.
      like: our variables or their `jax.eval_shape`: names, shapes and dtypes to fill.
      source: what to call the file in an error.
      widen: lets half-precision arrays in, as float32; otherwise they are misfits.
      keep_half: lets them in as they are.
      place: (our name, array) -> what to hold of it, such as an array on a device; called as each array
        is read, so that no second one need be in memory.

    Raises:
      UserError: listing each missing, unused and misshapen array.
    """
    want = traverse_util.flatten_dict(like, sep="/")
    unused, got, problems = set(arrays), {}, []
    for rule in rules:
        if rule.theirs not in arrays:
            problems.append(f"missing {rule.theirs}")
            continue
        unused.discard(rule.theirs)
        array = TRANSFORMS[rule.transform].to_ours(np.asarray(arrays[rule.theirs]))
        if rule.ours in want:
            leaf = want[rule.ours]
            if array.shape != tuple(leaf.shape):
                problems.append(f"{rule.theirs} has shape {array.shape}, expected {tuple(leaf.shape)}")
            half = array.dtype in HALF and leaf.dtype == np.float32
            if half and widen:
                array = array.astype(np.float32)
            elif array.dtype != leaf.dtype and not (half and keep_half):
                hint = "; --widen takes it" * half
                problems.append(f"{rule.theirs} is {array.dtype}, expected {leaf.dtype}{hint}")
        got[rule.ours] = array if place is None or problems else place(rule.ours, array)
    problems += [f"unused {name}" for name in sorted(unused)]
    problems += [f"no rule fills {name}" for name in sorted(set(want) - set(got))]
    problems += [f"no place for {name}" for name in sorted(set(got) - set(want))]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" * (len(problems) > 20))
        raise UserError(f"{source} does not hold this network: {shown}")
    return traverse_util.unflatten_dict(got, sep="/")


def export_variables(variables: Variables, rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The published layout, name -> array: the inverse of `import_variables`."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {
        rule.theirs: np.asarray(TRANSFORMS[rule.transform].to_theirs(np.asarray(flat[rule.ours])), order="C")
        for rule in rules
    }
