"""RDM: trains the representation diffusion model on a frozen encoder's representations (RCG section 3.2)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcg import encoders, metrics, rdm
from rcg.component import Component
from rcg.data import image_batches
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit

SHARDING_RULES = (
    (r"(in_proj|emb_proj|context_proj)/kernel", ("fsdp", "tensor")),
    (r"res_blocks_\d+/out_proj/kernel", ("tensor", "fsdp")),
)


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the component "encoder".

    Raises:
      UserError: no encoder, or one whose representations have another size than config.model.channels.
    """
    if "encoder" not in components or components["encoder"].kind != "rcg.encoder":
        raise UserError("rcg.rdm needs an encoder: --config.components.encoder=<folder of a component>")
    method, options = config.method, compute_options(config.compute)
    encoder = encoders.build(components["encoder"].architecture, **options)
    architecture = config.model.to_dict()
    module = rdm.build(architecture, **options)
    if module.channels != encoder.head_out:
        raise UserError(
            f"config.model.channels is {module.channels}, but the encoder's representations have "
            f"{encoder.head_out} values; set it to that"
        )
    conditional = module.num_classes > 0

    def init(rng):
        x, t, labels = jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
        return module.init(rng, x, t, labels if conditional else None)["params"], {}

    def represent(frozen, batch):
        return encoders.represent(encoder, frozen["encoder"], to_unit(batch["image"]))

    def labels_of(batch):
        return batch["label"] if conditional else None

    def loss(params, extra, frozen, batch, rng):
        t_key, noise_key = jax.random.split(rng)
        x0 = jax.lax.stop_gradient(represent(frozen, batch))
        t = jax.random.randint(t_key, (len(x0),), 0, module.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        value, aux = rdm.loss(module, {"params": params}, x0, t, noise, labels_of(batch))
        return value, ({"loss": value, "vlb": aux["vlb"]}, extra)

    def sample(params, rng, num, labels):
        return rdm.sample(
            module, {"params": params}, rng, num, labels=labels, steps=method.rdm_steps, eta=method.eta
        )

    def panels(params, extra, frozen, batch, rng):
        real = represent(frozen, batch)
        made = sample(params, rng, len(real), labels_of(batch))
        return {"real": _heat(real), "generated": _heat(made)}

    def evaluate(params, extra, frozen, rng, put):
        size, number = config.batch_size, method.eval_samples
        describe = jax.jit(lambda batch: represent(frozen, batch))
        real, labels = [], []
        for batch in dataset("eval", size, config.seed, 0, 1):
            keep = np.asarray(batch["mask"]) > 0
            on_device = put({k: batch[k] for k in ("image", "label")})
            real.append(np.asarray(describe(on_device))[keep])
            labels.append(batch["label"][keep])
        real, labels = np.concatenate(real)[:number], np.concatenate(labels)[:number]

        generate = jax.jit(lambda rng, labels: sample(params, rng, size, labels))
        made = []
        for i in range(-(-len(real) // size)):
            asked = np.resize(labels[i * size : (i + 1) * size], size) if conditional else None
            made.append(np.asarray(generate(jax.random.fold_in(rng, i), asked)))
        made = np.concatenate(made)[: len(real)]

        def distance(a, b):
            return metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))

        about = {"samples": len(real), "rdm_steps": method.rdm_steps, "eta": method.eta}
        results = {
            "rdm_frechet": {"value": distance(real, made), "features": "representations", **about},
            "rdm_frechet_floor": {  # of as many real ones as can be held against each other
                "value": distance(real[::2], real[1::2]),
                "features": "representations",
                "samples": len(real) // 2,
            },
        }
        if conditional:
            means = np.stack([real[labels == c].mean(0) for c in np.unique(labels)])
            for name, points in (("class_accuracy", made), ("class_accuracy_real", real)):
                nearest = np.square(points[:, None] - means).sum(-1).argmin(1)
                right = float((np.unique(labels)[nearest] == labels).mean())
                results[f"rdm_{name}"] = {"value": right, "samples": len(real)}
        return results

    def dataset(split, batch_size, seed, shard_index, shard_count):
        return image_batches(
            source(split),
            config.data,
            split=split,
            batch_size=batch_size,
            seed=seed,
            shard_index=shard_index,
            shard_count=shard_count,
        )

    image = ((config.data.image_size, config.data.image_size, 3), jnp.uint8)
    return Experiment(
        kind="rcg.rdm",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": image, "label": ((), jnp.int32)},
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
        sharding_rules=SHARDING_RULES,
    )


def _heat(representations: jax.Array) -> jax.Array:
    """[N, C] -> [N, H, W, 3]: each value a pixel, blue below zero, red above; three deviations saturate."""
    N, C = representations.shape
    width = 2 ** round(np.log2(C) / 2 + 0.25)
    value = jnp.pad(representations, ((0, 0), (0, -C % width))).reshape(N, -1, width) / 3
    red, blue = jnp.clip(value, 0, 1), jnp.clip(-value, 0, 1)
    return 1 - jnp.stack([blue, jnp.maximum(red, blue), red], axis=-1)
