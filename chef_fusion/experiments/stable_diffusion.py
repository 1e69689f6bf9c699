"""The denoising UNet from nothing, in the latents of a frozen autoencoder, told by a frozen CLIP text encoder
(Rombach et al. 2022): noise prediction, texts dropped now and then for guidance, EMA; errors may be weighed
by timestep (Min-SNR, Hang et al. 2023)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion.backbones import clip
from chef_fusion.backbones.stable_diffusion import pipeline, schedulers, vae
from chef_fusion.data import Texts, recipe_dataset
from chef_fusion.tokenization import CaptionTokenizer
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit, whole


def snr_weights(alphas_cumprod: jax.Array, gamma: float) -> jax.Array:
    """How much a timestep's error of the noise counts [T]: min(SNR, gamma) / SNR, which takes weight from
    timesteps of little noise (Hang et al. 2023, section 3.4). gamma 0: all alike."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return jnp.minimum(snr, gamma) / snr if gamma else jnp.ones_like(snr)


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the components "clip", with its tokenizer, and "vae".

    Raises:
      UserError: a component is missing, or networks do not fit each other.
    """
    for name in ("clip", "vae"):
        if name not in components or components[name].kind != name:
            raise UserError(f"needs a component of kind {name}: --config.components.{name}=<its folder>")
    method, size, options = config.method, config.data.image_size, compute_options(config.compute)
    text_architecture = components["clip"].architecture | {"vision": None, "projection_dim": 0}
    text_architecture["logit_scale"] = False
    channels = vae.build(components["vae"].architecture).latent_channels
    architecture = {
        "text_encoder": text_architecture,
        "unet": config.model.to_dict() | {"in_channels": channels, "out_channels": channels},
        "vae": components["vae"].architecture,
        "scheduler": dict(schedulers.DEFAULTS),
    }
    sd = pipeline.build(architecture, **options)
    architecture["unet"]["sample_size"] = size // sd.vae.factor
    multiple = sd.vae.factor * 2 ** (len(sd.unet.block_out_channels) - 1)
    if size % multiple:
        raise UserError(f"config.data.image_size {size} is not a multiple of {multiple}")
    about = components["clip"].architecture
    if not about.get("vision") or not about.get("projection_dim", 1):
        raise UserError(
            "the component clip lacks its vision tower or its projections, by which pictures are measured; "
            "convert the whole CLIP"
        )
    words = components["clip"].tokenizer or config.data.tokenizer
    tokenizer = CaptionTokenizer.load(words, sd.max_tokens)
    dataset = recipe_dataset(
        source,
        config.data,
        lambda recipes, split: Texts(recipes, None, tokenizer, target_text=config.data.target_text),
    )
    nothing = jnp.asarray(tokenizer([""]))
    if method.snr_gamma < 0:
        raise UserError(
            f"config.method.snr_gamma {method.snr_gamma} is below 0; at 0 all timesteps count alike"
        )
    acp = jnp.asarray(schedulers.alphas_cumprod())
    weights = snr_weights(acp, method.snr_gamma)

    def init(rng):
        side = size // sd.vae.factor
        x = jnp.zeros((1, side, side, sd.unet.in_channels))
        context = jnp.zeros((1, 1, sd.unet.cross_attention_dim))
        return sd.unet.init(rng, x, jnp.zeros(1), context)["params"], {}

    def states(frozen, ids):
        variables = {"params": {"text": frozen["clip"]["params"]["text"]}}
        return sd.text_encoder.apply(variables, ids, method="encode_text")[0].astype(jnp.float32)

    def encode(frozen, batch):
        images = 2 * to_unit(batch["image"]) - 1
        mean, logvar = sd.vae.apply(frozen["vae"], images, method="encode")
        return jax.lax.stop_gradient({"mean": mean, "logvar": logvar})

    def noise_loss(params, frozen, batch, rng):
        """Squared errors [B] of the noise predicted at drawn timesteps, and what they count [B]."""
        keys = jax.random.split(rng, 4)
        made = encode(frozen, batch) if "image" in batch else batch
        mean, logvar = made["mean"], made["logvar"]
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(keys[0], mean.shape)
        latents = latents * sd.vae.scaling_factor
        context = jax.lax.stop_gradient(states(frozen, batch["text_ids"]))
        dropped = jax.random.uniform(keys[1], (len(mean), 1, 1)) < method.drop_text
        context = jnp.where(dropped, jax.lax.stop_gradient(states(frozen, nothing)), context)
        t = jax.random.randint(keys[2], (len(mean),), 0, len(acp))
        noise = jax.random.normal(keys[3], latents.shape)
        a = acp[t][:, None, None, None]
        noised = jnp.sqrt(a) * latents + jnp.sqrt(1 - a) * noise
        found = sd.unet.apply({"params": params}, noised, t, context)
        return jnp.square(found - noise).mean((1, 2, 3)), weights[t]

    def loss(params, extra, frozen, batch, rng):
        errors, counts = noise_loss(params, frozen, batch, rng)
        value = (counts * errors).mean()
        return value, ({"loss": value, "noise_loss": errors.mean()}, extra)

    def paint(params, frozen, ids, rng):
        variables = {"params": {"unet": params, "vae": frozen["vae"]["params"]}}
        return pipeline.generate(
            sd,
            variables,
            rng,
            states(frozen, ids),
            states(frozen, nothing),
            steps=method.sample_steps,
            scheduler=method.scheduler,
            cfg_scale=method.cfg_scale,
            height=size,
            width=size,
        )

    def panels(params, extra, frozen, batch, rng):
        images = to_unit(batch["image"])
        made, _ = sd.vae.apply(frozen["vae"], 2 * images - 1, method="encode")
        made = sd.vae.apply(frozen["vae"], made, method="decode") / 2 + 0.5
        rows = {"photo": images, "autoencoder": jnp.clip(made, 0, 1)}
        return rows | {"from its text": paint(params, frozen, batch["text_ids"], rng)}

    def evaluate(params, extra, frozen, rng, put):
        scored = clip.build(components["clip"].architecture, **options)

        def seen(frozen, images):
            wanted = scored.vision.image_size
            images = jax.image.resize(images, (len(images), wanted, wanted, 3), "cubic")
            found = scored.apply(frozen["clip"], clip.normalise(images), method="image_features")
            return found / jnp.linalg.norm(found, axis=-1, keepdims=True)

        @jax.jit
        def measure(params, frozen, batch, rng):
            real = seen(frozen, to_unit(batch["image"]))
            made = seen(frozen, paint(params, frozen, batch["text_ids"], rng))
            return noise_loss(params, frozen, batch, rng)[0], real, made

        found = []
        for i, (placed, keep, _) in enumerate(eval_batches(dataset, config, put, ("image", "text_ids"))):
            rows = measure(params, frozen, placed, jax.random.fold_in(rng, i))
            noise, real, made = (whole(x)[keep] for x in rows)
            found.append([noise, (real * made).sum(-1), (real * np.roll(made, 1, 0)).sum(-1)])
            if sum(len(f[0]) for f in found) >= method.eval_samples:
                break
        losses, own, other = (np.concatenate(side) for side in zip(*found, strict=True))
        values = {"noise_loss": losses, "clip_similarity": own, "clip_similarity_of_others": other}
        return {name: {"value": float(v.mean()), "samples": len(v)} for name, v in values.items()}

    def compose(variables, frozen):
        parts = {"text_encoder": {"text": frozen["clip"]["params"]["text"]}, "vae": frozen["vae"]["params"]}
        return {"params": {"unet": variables["params"], **parts}}

    return Experiment(
        kind="stable_diffusion",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={
            "image": ((size, size, 3), jnp.uint8),
            "text_ids": ((tokenizer.length,), jnp.int32),
        },
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        encode=encode,
        encoded_by=("vae",),
        export=lambda params, extra: {"params": params},
        compose=compose,
        tokenizer=words,
    )
