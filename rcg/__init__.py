"""RCG: images -> representations -> images.

    import jax, rcg

    model = rcg.load("runs/photos")
    images = rcg.generate(model, jax.random.key(0), num=16)

The names below come from `rcg/generate.py`, which is imported when one is first used.
"""

import importlib
from typing import Any

__all__ = ["RCG", "generate", "interpolate", "load", "paint", "reconstruct", "represent"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module("rcg.generate")
    return module if name == "generate" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
