"""What a sweep's config is made of: a pipeline, and members that each change some fields of its stages."""

import itertools
from typing import Any

from ml_collections import ConfigDict


def sweep(
    pipeline: ConfigDict, name: str, title: str, members: list[dict[str, Any]], **fields: Any
) -> ConfigDict:
    """The pipeline's config with the sweep's own fields.

    Args:
      pipeline: its stages are trained as far as a member's `measure` needs them, once for all the members
        that agree on everything training reads.
      members: see `member`.
      fields: values for the fields below.
    """
    c = ConfigDict()
    c.name, c.title = name, title
    c.description = ""
    c.path = pipeline.path  # of the data
    c.stages = pipeline.stages
    # stage -> a component's folder to take instead of training the stage
    c.given = ConfigDict(dict.fromkeys(pipeline.stages, ""))
    c.features = ""  # folder of the component that measures images, such as FID-Inception; "": the encoder
    c.members = tuple(ConfigDict(m) for m in members)
    c.metrics = ()  # columns, unless members have a metric of their own
    c.heading = ""  # of the column of the members' own metrics
    c.x = ""  # the field that plots have below; "": the members' names
    c.update(fields)
    return c


def member(name: str, measure: str, metric: str = "", **overrides: Any) -> dict[str, Any]:
    """One row of the table.

    Args:
      measure: the stage whose results it shows; metric: the one result that is this row's.
      overrides: fields of stages, "__" for ".": `mage__model__conditioning="none"`; components by their
        stage's name: `mage__components__clusters="clusters"`.
    """
    flat = {key.replace("__", "."): value for key, value in overrides.items()}
    return {"name": name, "measure": measure, "metric": metric, "overrides": list(flat.items())}


def grid(measure: str, axes: dict[str, tuple], **overrides: Any) -> list[dict[str, Any]]:
    """A member for each combination of the axes' values; axes: "mage.method.cfg_scale" -> values."""
    members = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        name = ", ".join(f"{field.split('.')[-1]} {value}" for field, value in point.items())
        made = member(name, measure, **overrides)
        members.append(made | {"overrides": made["overrides"] + list(point.items())})
    return members
