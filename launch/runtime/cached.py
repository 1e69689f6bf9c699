"""What frozen networks make of the training images, computed by `launch.prepare` and read by training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from rcg.component import Component
from rcg.data import encoded
from rcg.data.pipeline import training_loader
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options


def wanted(
    config: ConfigDict, experiment: Experiment, components: Mapping[str, Component], source: Any, views: int
) -> dict[str, Any]:
    """What a cache for this config must be of: the images, what becomes of them, the networks."""
    made_by = {f"component {name}": components[name].content_hash for name in experiment.encoded_by}
    made_by |= {"experiment": config.experiment, "dtype": str(compute_options(config.compute)["dtype"])}
    if training_loader(source, config.data)[1].crop == "random":
        made_by["crops"] = f"of seed {config.seed}"
    return encoded.identity(config.data, source, views, made_by)


def from_cache(
    experiment: Experiment,
    config: ConfigDict,
    components: Mapping[str, Component],
    source: Callable[[str], Any],
) -> Experiment:
    """The experiment, its training split read from `config.data.cache`, which is looked at first.

    Raises:
      UserError: an experiment that has nothing to cache; when data are read, a cache of something else.
    """
    if experiment.encode is None:
        raise UserError(f"config.data.cache: {config.experiment} has nothing that is computed beforehand")
    images = experiment.dataset

    def dataset(split: str, *where: int) -> Any:
        if split == "train":
            _, transform = training_loader(source(split), config.data)
            views = encoded.views_held(config.data.cache, transform)
            encoded.check(config.data.cache, wanted(config, experiment, components, source(split), views))
        return images(split, *where)

    return dataclasses.replace(experiment, dataset=dataset)
