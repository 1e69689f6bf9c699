"""What a pipeline's config is made of."""

from typing import Any

from ml_collections import ConfigDict


def stage(
    title: str,
    config: str,
    components: dict[str, str] | None = None,
    evaluate: bool = True,
    prepared: dict[str, str] | None = None,
    command: str = "train",
    path: str = "",
    **overrides: Any,
) -> ConfigDict:
    """One experiment of a chain.

    Args:
      config: file and argument, as --config takes them.
      components: name in the experiment's config -> the stage that makes it.
      prepared: field of the experiment's config, as in overrides -> the stage whose folder it is.
      command: "train", or "prepare" for what `launch.prepare` makes.
      path: which of the pipeline's `paths` its data are at; "": at its `path`.
      overrides: fields of the experiment's config; nested ones with "__": `model__dim=128`.
    """
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        *outer, last = name.split("__")
        inner = nested
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return ConfigDict(
        {
            "title": title,
            "config": config,
            "command": command,
            "components": components or {},
            "prepared": prepared or {},
            "path": path,
            "evaluate": evaluate,
            "overrides": nested,
        }
    )


def settings(c: ConfigDict, **stages: dict[str, Any]) -> None:
    """Overrides of a pipeline's stages: `settings(c, lm={"total_steps": 100, "model__hidden_size": 64})`."""
    for name, fields in stages.items():
        held = c.stages[name].overrides
        with held.ignore_type():
            held.update(stage("", "", **fields).overrides)
