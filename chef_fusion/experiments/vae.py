"""The autoencoder of Stable Diffusion from nothing: reconstruction, a discriminator, a little KL (Rombach et
al. 2022).

The exported network's latents have a standard deviation of 1 / 0.18215, as the published one's: the UNet's
usual scaling makes them unit. The scale is folded into the convolutions around the latents, which changes
nothing else.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion.backbones.stable_diffusion import vae
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit, whole
from rcg.pixel import lpips
from rcg.pixel.discriminator import PatchDiscriminator, adversary


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. May use the component "perceptual" (kind rcg.lpips).

    Raises:
      UserError: sizes that do not fit each other, or another kind of component.
    """
    if "perceptual" in components and components["perceptual"].kind != "rcg.lpips":
        kind = components["perceptual"].kind
        raise UserError(f"config.components.perceptual is a {kind} component; rcg.lpips is needed")
    method, size, options = config.method, config.data.image_size, compute_options(config.compute)
    architecture = config.model.to_dict()
    module = vae.build(architecture, **options)
    if size % module.factor:
        raise UserError(
            f"config.data.image_size {size} is not a multiple of {module.factor} pixels per latent"
        )
    perceptual = lpips.build({}, **options) if "perceptual" in components else None
    adversarial = method.adversarial_weight > 0
    discriminator = PatchDiscriminator(**method.discriminator.to_dict(), dtype=options["dtype"])
    dataset = image_dataset(source, config.data)

    def init(rng):
        image, (key, discriminator_key) = jnp.zeros((1, size, size, 3)), jax.random.split(rng)
        params = dict(module.init(key, image)["params"])
        if adversarial:
            params["discriminator"] = discriminator.init(discriminator_key, image)["params"]
        return params, {"square": jnp.float32(1.0), "calls": jnp.zeros((), jnp.int32)}

    def encode(params, images):
        return module.apply({"params": params}, 2 * images - 1, method="encode")

    def decode(params, latents):
        return module.apply({"params": params}, latents, method="decode") / 2 + 0.5

    def distance(frozen, images, made):
        """What the decoder is to make small, and its terms."""
        terms = {"l1": jnp.abs(made - images).mean(), "l2": jnp.square(made - images).mean()}
        near = method.l1_weight * terms["l1"] + method.l2_weight * terms["l2"]
        if perceptual:
            terms["perceptual"] = perceptual.apply(frozen["perceptual"], images, made).mean()
            near += method.perceptual_weight * terms["perceptual"]
        return near, terms

    def against(params, frozen, images, made):
        return adversary(
            discriminator,
            params,
            lambda m: distance(frozen, images, m)[0],
            images,
            made,
            method.adversarial_weight,
            adaptive=True,
        )

    def loss(params, extra, frozen, batch, rng):
        images = to_unit(batch["image"])
        mean, logvar = encode(params, images)
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape)
        made = decode(params, latents)
        near, terms = distance(frozen, images, made)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
        value = near + method.kl_weight * kl
        if adversarial:
            step = extra["calls"] // config.optimizer.accumulation_steps
            weight, fooled, caught = jax.lax.cond(
                step >= method.adversarial_start_step,
                against,
                lambda *_: (jnp.float32(0),) * 3,
                *(params["discriminator"], frozen, images, made),
            )
            value += weight * fooled + caught
            terms |= {"adversarial_weight": weight, "generator": fooled, "discriminator": caught}
        # running second moment of the latents, for the scale of the export
        rate = jnp.maximum(0.01, 1 / (1 + extra["calls"]))
        square = extra["square"] + rate * (
            jax.lax.stop_gradient(jnp.square(latents).mean()) - extra["square"]
        )
        metrics = {**terms, "loss": value, "kl": kl, "psnr": -10 * jnp.log10(terms["l2"])}
        return value, (metrics, {"square": square, "calls": extra["calls"] + 1})

    def export(params, extra):
        kept = {name: value for name, value in params.items() if name != "discriminator"}
        return {"params": scaled(kept, jnp.sqrt(extra["square"]) * module.scaling_factor)}

    def reconstruct(params, batch):
        images = to_unit(batch["image"])
        return images, jnp.clip(decode(params, encode(params, images)[0]), 0, 1)

    def panels(params, extra, frozen, batch, rng):
        images, made = reconstruct(params, batch)
        return {"original": images, "reconstruction": made}

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def measure(params, batch):
            images, made = reconstruct(params, batch)
            return jnp.square(images - made).mean((1, 2, 3)), jnp.abs(images - made).mean((1, 2, 3))

        found = []
        for placed, keep, _ in eval_batches(dataset, config, put, ("image",)):
            found.append([whole(x)[keep] for x in measure(params, placed)])
        l2, l1 = (np.concatenate(side) for side in zip(*found, strict=True))
        values = {"reconstruction_mse": l2.mean(), "reconstruction_l1": l1.mean()}
        values["reconstruction_psnr"] = -10 * np.log10(l2.mean())
        return {name: {"value": float(v), "samples": len(l2)} for name, v in values.items()}

    return Experiment(
        kind="vae",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": ((size, size, 3), jnp.uint8)},
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=export,
    )


def scaled(params: Mapping[str, Any], by: jax.Array) -> dict[str, Any]:
    """The same autoencoder with latents divided by `by`: the two convolutions around them take it up."""
    channels = params["post_quant_conv"]["kernel"].shape[2]
    into = jnp.concatenate([jnp.full(channels, 1 / by), jnp.ones(channels)])
    shift = jnp.concatenate([jnp.zeros(channels), jnp.full(channels, -2 * jnp.log(by))])
    quant, post = params["quant_conv"], params["post_quant_conv"]
    return {
        **params,
        "quant_conv": {"kernel": quant["kernel"] * into, "bias": quant["bias"] * into + shift},
        "post_quant_conv": {"kernel": post["kernel"] * by, "bias": post["bias"]},
    }
