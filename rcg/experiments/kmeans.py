"""k-means over a frozen encoder's representations: fits the labels of RCG's clustering ablation.

Nothing follows a gradient: the centres are running means over batches, see `rcg.clusters`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcg import clusters, encoders
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit, whole


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the component "encoder".

    Raises:
      UserError: no encoder, or one whose representations have another size than config.model.dim.
    """
    if "encoder" not in components or components["encoder"].kind != "rcg.encoder":
        raise UserError("rcg.kmeans needs an encoder: --config.components.encoder=<folder of a component>")
    method, size = config.method, config.data.image_size
    encoder = encoders.build(components["encoder"].architecture, **compute_options(config.compute))
    architecture = config.model.to_dict()
    module = clusters.build(architecture)
    if module.dim != encoder.rep_dim:
        raise UserError(
            f"config.model.dim is {module.dim}, but the encoder's representations have {encoder.rep_dim} "
            "values; set it to that"
        )
    dataset = image_dataset(source, config.data)

    def init(rng):
        first = jax.random.normal(rng, (module.num_clusters, module.dim))
        return {}, {"state": clusters.init(first), "calls": jnp.zeros((), jnp.int32)}

    def represent(frozen, images):
        return encoders.represent(encoder, frozen["encoder"], to_unit(images))

    def loss(params, extra, frozen, batch, rng):
        points = represent(frozen, batch["image"])
        chosen, squared = clusters.nearest(points, clusters.centres(extra["state"]))
        n = extra["calls"] + 1
        decay = jnp.minimum(method.decay, n / (10 + n))  # the first means are over few batches
        # late centres would have no time left to find their place
        calls = config.total_steps * config.optimizer.accumulation_steps
        revive_below = jnp.where(n < calls // 2, clusters.REVIVE_BELOW, 0.0)
        state = clusters.update(extra["state"], points, chosen, rng, decay, revive_below)
        used = jnp.zeros(module.num_clusters).at[chosen].add(1) > 0
        value = squared.mean()
        return value, ({"loss": value, "clusters_in_batch": used.mean()}, {"state": state, "calls": n})

    def export(params, extra):
        usage = extra["state"]["usage"]
        fitted = {"centres": clusters.centres(extra["state"]), "shares": usage / usage.sum()}
        return {"params": fitted}

    def panels(params, extra, frozen, batch, rng):
        """Images in the order of their clusters: neighbours should be alike."""
        chosen, _ = clusters.nearest(represent(frozen, batch["image"]), clusters.centres(extra["state"]))
        return {"by cluster": to_unit(batch["image"][jnp.argsort(chosen)])}

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def assign(extra, frozen, batch):
            return clusters.nearest(represent(frozen, batch["image"]), clusters.centres(extra["state"]))

        processes, index = jax.process_count(), jax.process_index()
        chosen, squared, labels = [], [], []
        for batch in dataset("eval", config.batch_size // processes, config.seed, index, processes):
            placed = put({k: batch[k] for k in ("image", "label", "mask")})
            keep = whole(placed["mask"]) > 0
            cluster, distance = assign(extra, frozen, placed)
            chosen.append(np.asarray(whole(cluster))[keep])
            squared.append(np.asarray(whole(distance))[keep])
            labels.append(whole(placed["label"])[keep])
        chosen, squared, labels = map(np.concatenate, (chosen, squared, labels))
        # purity: how often an image has the label that is the commonest in its cluster
        table = np.zeros((module.num_clusters, labels.max() + 1))
        np.add.at(table, (chosen, labels), 1)
        values = {
            "kmeans_distance": squared.mean(),
            "kmeans_purity": table.max(1).sum() / len(chosen),
            "kmeans_purity_chance": table.sum(0).max() / len(chosen),
            "clusters_used": (table.sum(1) > 0).mean(),
        }
        return {name: {"value": float(v), "samples": len(chosen)} for name, v in values.items()}

    return Experiment(
        kind="rcg.kmeans",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)},
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=export,
    )
