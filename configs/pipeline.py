"""What a pipeline's config is made of."""

from typing import Any

from ml_collections import ConfigDict


def stage(
    title: str,
    config: str,
    components: dict[str, str] | None = None,
    evaluate: bool = True,
    **overrides: Any,
) -> ConfigDict:
    """One experiment of a chain.

    Args:
      config: file and argument, as --config takes them.
      components: name in the experiment's config -> the stage that makes it.
      overrides: fields of the experiment's config; nested ones with "__": `model__dim=128`.
    """
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        *path, last = name.split("__")
        inner = nested
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return ConfigDict(
        {
            "title": title,
            "config": config,
            "components": components or {},
            "evaluate": evaluate,
            "overrides": nested,
        }
    )
