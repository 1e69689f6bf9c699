"""RDM: trains the representation diffusion model on a frozen encoder's representations (RCG section 3.2)."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcg import diffusion, encoders, metrics, rdm
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit, whole


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
    if module.channels != encoder.rep_dim:
        raise UserError(
            f"config.model.channels is {module.channels}, but the encoder's representations have "
            f"{encoder.rep_dim} values; set it to that"
        )
    diffusion.ddim_tables(module.tables(), method.rdm_steps, method.eta, method.ddim_end)  # can there be such
    conditional = module.num_classes > 0
    dataset = image_dataset(source, config.data, module.num_classes if conditional else None)

    def init(rng):
        x, t, labels = jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
        return module.init(rng, x, t, labels if conditional else None)["params"], {}

    def represent(frozen, batch):
        return encoders.represent(encoder, frozen["encoder"], to_unit(batch["image"]))

    def labels_of(batch):
        return batch["label"] if conditional else None

    def encode(frozen, batch):
        return {"representation": jax.lax.stop_gradient(represent(frozen, batch))}

    def loss(params, extra, frozen, batch, rng):
        t_key, noise_key = jax.random.split(rng)
        x0 = (encode(frozen, batch) if "image" in batch else batch)["representation"]
        t = jax.random.randint(t_key, (len(x0),), 0, module.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        value, aux = rdm.loss(module, {"params": params}, x0, t, noise, labels_of(batch))
        return value, ({"loss": value, "vlb": aux["vlb"]}, extra)

    def sample(params, rng, num, labels):
        return rdm.sample(
            module,
            {"params": params},
            rng,
            num,
            labels=labels,
            steps=method.rdm_steps,
            eta=method.eta,
            end=method.ddim_end,
        )

    def panels(params, extra, frozen, batch, rng):
        real = represent(frozen, batch)
        made = sample(params, rng, len(real), labels_of(batch))
        return {"real": _heat(real), "generated": _heat(made)}

    def evaluate(params, extra, frozen, rng, put):
        size, number = config.batch_size, method.eval_samples or sys.maxsize
        describe = jax.jit(lambda frozen, batch: represent(frozen, batch))
        generate = jax.jit(lambda params, rng, labels: sample(params, rng, size, labels))
        # each process measures its share; all then hold everything
        share, index = size // jax.process_count(), jax.process_index()
        real, labels, made, seen = [], [], [], 0
        for i, batch in enumerate(dataset("eval", share, config.seed, index, jax.process_count())):
            placed = put({k: batch[k] for k in ("image", "label", "mask")})
            keep = whole(placed["mask"]) > 0
            asked = whole(placed["label"])
            real.append(np.asarray(whole(describe(frozen, placed)))[keep])
            labels.append(asked[keep])
            drawn = generate(params, jax.random.fold_in(rng, i), placed["label"] if conditional else None)
            made.append(np.asarray(whole(drawn))[keep])
            seen += keep.sum()
            if seen >= number:
                break
        real, labels, made = (np.concatenate(x)[:number] for x in (real, labels, made))
        noise = np.random.default_rng(config.seed).standard_normal(real.shape)
        noise -= noise.mean(1, keepdims=True)
        noise /= noise.std(1, ddof=1, keepdims=True)

        def distance(a, b):
            return metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))

        about = {"features": "representations", "reference": "eval split"}
        settings = {"rdm_steps": method.rdm_steps, "eta": method.eta, "ddim_end": method.ddim_end}
        whole_set, halves = {"samples": len(real), **about}, {"samples": len(real) // 2, **about}
        results = {
            "rdm_frechet": {"value": distance(real, made), **whole_set, **settings},
            "rdm_frechet_noise": {"value": distance(real, noise), **whole_set},  # knows nothing of the images
            # the distance falls with the number of samples: the floor is to be held against the half
            "rdm_frechet_half": {"value": distance(real[::2], made[1::2]), **halves, **settings},
            "rdm_frechet_floor": {"value": distance(real[::2], real[1::2]), **halves},
        }
        if conditional:
            classes = np.unique(labels)
            means = np.stack([real[labels == c].mean(0) for c in classes])
            for name, points in (("class_accuracy", made), ("class_accuracy_real", real)):
                nearest = (np.square(means).sum(1) - 2 * points @ means.T).argmin(1)  # class mean
                right = float((classes[nearest] == labels).mean())
                results[f"rdm_{name}"] = {"value": right, "samples": len(real)}
        return results

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
        encode=encode,
        encoded_by=("encoder",),
        export=lambda params, extra: {"params": params},
    )


def _heat(representations: jax.Array) -> jax.Array:
    """[N, C] -> [N, H, W, 3]: each value a pixel, blue below zero, red above; three deviations saturate."""
    N, C = representations.shape
    width = 2 ** round(np.log2(C) / 2 + 0.25)
    value = jnp.pad(representations, ((0, 0), (0, -C % width))).reshape(N, -1, width) / 3
    red, blue = jnp.clip(value, 0, 1), jnp.clip(-value, 0, 1)
    return 1 - jnp.stack([blue, jnp.maximum(red, blue), red], axis=-1)
