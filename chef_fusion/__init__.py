"""ChefFusion: recipes and food images, both ways.

    import chef_fusion, jax
    from PIL import Image

    chef = chef_fusion.load("runs/chef_fusion")
    photo = Image.open("dinner.jpg")
    answer = chef_fusion.reply(chef, [{"role": "user", "content": [photo]}], jax.random.key(0))

The names below are imported when one is first used.
"""

import importlib
from typing import Any

_PLACES = {
    "Chef": "generate",
    "load": "generate",
    "paint": "generate",
    "write": "generate",
    "Settings": "tasks",
    "reply": "tasks",
    "reply_all": "tasks",
}
__all__ = ["Chef", "Settings", "load", "paint", "reply", "reply_all", "write"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"chef_fusion.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
