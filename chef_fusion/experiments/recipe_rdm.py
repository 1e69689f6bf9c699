"""Trains the RDM that turns a recipe into the representation of its dish (`chef_fusion.recipe_rdm`)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion import metrics
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.data import Texts, recipe_dataset
from chef_fusion.recipe_rdm import condition
from chef_fusion.tokenization import CaptionTokenizer
from rcg import diffusion, encoders, rdm
from rcg import metrics as image_metrics
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit, whole


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the components "encoder" (kind rcg.encoder) and "stable_diffusion", of which it
    uses the text encoder and its tokenizer.

    Raises:
      UserError: a component is missing, or does not fit config.model.
    """
    for name, kind in (("encoder", "rcg.encoder"), ("stable_diffusion", "stable_diffusion")):
        if name not in components or components[name].kind != kind:
            raise UserError(f"needs a component of kind {kind}: --config.components.{name}=<its folder>")
    method, options = config.method, compute_options(config.compute)
    encoder = encoders.build(components["encoder"].architecture, **options)
    sd = pipeline.build(components["stable_diffusion"].architecture, **options)
    sizes = {"channels": encoder.rep_dim, "condition_dim": 2 * sd.unet.cross_attention_dim}
    architecture = config.model.to_dict() | sizes
    module = rdm.build(architecture, **options)
    diffusion.ddim_tables(module.tables(), method.rdm_steps, method.eta, method.ddim_end)  # can there be such
    words = components["stable_diffusion"].tokenizer or config.data.tokenizer
    tokenizer = CaptionTokenizer.load(words, sd.max_tokens)
    dataset = recipe_dataset(
        source,
        config.data,
        lambda recipes, split: Texts(recipes, None, tokenizer, target_text=config.data.target_text),
    )

    def init(rng):
        x, t = jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32)
        return module.init(rng, x, t, jnp.zeros((1, module.condition_dim)))["params"], {}

    def represent(frozen, batch):
        return encoders.represent(encoder, frozen["encoder"], to_unit(batch["image"]))

    def told(frozen, batch):
        return condition(pipeline.encode_text(sd, frozen["stable_diffusion"], batch["text_ids"]))

    def loss(params, extra, frozen, batch, rng):
        t_key, noise_key = jax.random.split(rng)
        x0, conditions = jax.lax.stop_gradient((represent(frozen, batch), told(frozen, batch)))
        t = jax.random.randint(t_key, (len(x0),), 0, module.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        value, aux = rdm.loss(module, {"params": params}, x0, t, noise, conditions)
        return value, ({"loss": value, "vlb": aux["vlb"]}, extra)

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def measure(params, frozen, batch, rng):
            made = rdm.sample(
                module,
                {"params": params},
                rng,
                len(batch["image"]),
                labels=told(frozen, batch),
                steps=method.rdm_steps,
                eta=method.eta,
                end=method.ddim_end,
            )
            return represent(frozen, batch), made

        found = []
        for i, (placed, keep, _) in enumerate(eval_batches(dataset, config, put, ("image", "text_ids"))):
            rows = measure(params, frozen, placed, jax.random.fold_in(rng, i))
            found.append([whole(x)[keep] for x in rows])
            if sum(len(f[0]) for f in found) >= method.eval_samples:
                break
        real, made = (np.concatenate(side) for side in zip(*found, strict=True))
        gaussians = [statistic for side in (real, made) for statistic in image_metrics.gaussian(side)]
        values = {
            "rdm_frechet": image_metrics.frechet_distance(*gaussians),
            "rdm_cosine": metrics.cosine(made, real).mean(),
            "rdm_cosine_of_others": metrics.cosine(np.roll(made, 1, axis=0), real).mean(),
        }
        return {name: {"value": float(v), "samples": len(real)} for name, v in values.items()}

    return Experiment(
        kind="rcg.rdm",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={
            "image": ((config.data.image_size, config.data.image_size, 3), jnp.uint8),
            "text_ids": ((tokenizer.length,), jnp.int32),
        },
        dataset=dataset,
        panels=lambda params, extra, frozen, batch, rng: {},
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
    )
