"""The judge of made pictures: learns from real pictures of dishes which dish it is and what is on it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from chef_fusion import judge
from chef_fusion.data import recipe_dataset
from chef_fusion.kitchen import bases, ingredients
from chef_fusion.kitchen_sets import KitchenRecipes
from chef_fusion.metrics import set_scores
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit, whole


def soften(images: jax.Array, sigma: jax.Array, reach: int = 4) -> jax.Array:
    """Pictures [B, H, W, 3] out of focus: Gaussians of `sigma` [B] pixels, cut at `reach`.

    Made pictures are softer than real ones. To a judge that has seen sharp ones alone that is no dish at all.
    """
    offsets = jnp.arange(-reach, reach + 1)
    weights = jax.nn.softmax(-jnp.square(offsets / jnp.maximum(sigma, 0.1)[:, None]) / 2, axis=-1)
    for axis in (1, 2):
        size = images.shape[axis]
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        wide = jnp.pad(images, pad, mode="edge")
        shifted = [jax.lax.slice_in_dim(wide, k, k + size, axis=axis) for k in range(2 * reach + 1)]
        images = sum(w[:, None, None, None] * x for w, x in zip(weights.T, shifted, strict=True))
    return images


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs no component; reads a source of dishes (`KitchenRecipes`)."""
    del components
    size, options = config.data.image_size, compute_options(config.compute)
    menu = config.data.menu or "long"
    kinds, offered = list(bases(menu)), list(ingredients(menu))
    names = {"bases": kinds, "ingredients": offered}
    architecture = config.model.to_dict() | names | {"image_size": size}
    module = judge.build(architecture, **options)

    def told(dishes, split):
        if not isinstance(dishes, KitchenRecipes):
            raise UserError(
                "a judge learns from the toy kitchen's dishes: config.data.source=recipes_kitchen"
            )

        def add(batch):
            shown = [dishes.dish(i) for i in batch["label"]]
            present = np.zeros((len(shown), len(offered)), np.float32)
            for row, dish in zip(present, shown, strict=True):
                row[[offered.index(name) for name in dish.ingredients]] = 1
            return batch | {
                "base": np.array([kinds.index(dish.base) for dish in shown], np.int32),
                "present": present,
            }

        return add

    dataset = recipe_dataset(source, config.data, told)

    def init(rng):
        return module.init(rng, jnp.zeros((1, size, size, 3)))["params"], {}

    def answers(params, batch):
        return module.apply({"params": params}, to_unit(batch["image"]))

    def loss(params, extra, frozen, batch, rng):
        sigma = jax.random.uniform(rng, (len(batch["image"]),), maxval=config.method.soften)
        images = soften(to_unit(batch["image"]), sigma) if config.method.soften else to_unit(batch["image"])
        of_kinds, present = module.apply({"params": params}, images)
        of_base = optax.softmax_cross_entropy_with_integer_labels(of_kinds, batch["base"]).mean()
        of_each = optax.sigmoid_binary_cross_entropy(present, batch["present"]).sum(-1).mean()
        value = of_base + of_each
        return value, ({"loss": value, "base_loss": of_base, "ingredient_loss": of_each}, extra)

    def evaluate(params, extra, frozen, rng, put):
        run, right, found, wanted = jax.jit(answers), [], [], []
        for placed, keep, _ in eval_batches(dataset, config, put, ("image", "base", "present")):
            of_kinds, present = (whole(x)[keep] for x in run(params, placed))
            base, true = (whole(placed[name])[keep] for name in ("base", "present"))
            right.append(of_kinds.argmax(-1) == base)
            found += [frozenset(np.flatnonzero(row > 0)) for row in present]
            wanted += [frozenset(np.flatnonzero(row)) for row in true]
        values = {"base_accuracy": np.concatenate(right).mean()}
        values |= {f"ingredient_{name}": value for name, value in set_scores(found, wanted).items()}
        return {name: {"value": float(v), "samples": len(found)} for name, v in values.items()}

    return Experiment(
        kind="chef_fusion.judge",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={
            "image": ((size, size, 3), jnp.uint8),
            "base": ((), jnp.int32),
            "present": ((len(offered),), jnp.float32),
        },
        dataset=dataset,
        panels=lambda params, extra, frozen, batch, rng: {},
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
    )
