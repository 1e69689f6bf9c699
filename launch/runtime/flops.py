"""How much arithmetic a program asks for, read from its jaxpr. Fused attention hides in a kernel and counts
nothing: trace with `compute.attention` "einsum" to count it, the same for every backend and mesh."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

# not documented; without it what nothing depends on counts, too
_without_the_dead = getattr(partial_eval, "dce_jaxpr", lambda jaxpr, used: (jaxpr, used))


def program_flops(program: Jaxpr | ClosedJaxpr) -> float:
    """FLOPs, 2 for a multiply-add, of all matrix products and convolutions of one run on all devices.

    The body of a scan counts as often as it runs, that of a loop of unknown length once, of branches the
    dearest. What is computed again in a backward pass counts again; what no output depends on, as the
    gradients of frozen kernels, is left out by the compiler and does not count.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    living, _ = _without_the_dead(jaxpr, [True] * len(jaxpr.outvars))
    return _flops(living)


def _flops(program: Jaxpr | ClosedJaxpr) -> float:
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    kind, params = equation.primitive.name, equation.params
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if kind == "conv_general_dilated":
        kernel, features = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        taps = math.prod(kernel) // kernel[features]
        spread = math.prod(params["lhs_dilation"])  # between the pixels of a dilated image lie zeros
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / spread
    inner = [_flops(jaxpr) for jaxpr in _programs(params)]
    if kind == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0.0) if kind == "cond" else sum(inner)


def _programs(params: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (Jaxpr, ClosedJaxpr)):
                yield one
