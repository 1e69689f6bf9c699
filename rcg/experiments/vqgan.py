"""VQGAN: trains the tokenizer from scratch (VQGAN, arXiv 2012.09841, sections 3.1 and 3.2).

The codebook either follows the gradient, as in the official code, or is the running mean of the latents
that chose each code (VQ-VAE, arXiv 1711.00937, appendix A.1). The latter is the default because it may
put a code that nobody chooses onto a latent, which keeps all codes in use from the first steps on.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcg import clusters
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit
from rcg.pixel import lpips, vqgan
from rcg.pixel.discriminator import PatchDiscriminator, adversary

fixed = jax.lax.stop_gradient


def perplexity(counts: jax.Array) -> jax.Array:
    """exp(entropy) of the codes' frequencies, 1..codebook_size: as if that many were used evenly."""
    p = counts / counts.sum()
    return jnp.exp(-jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum())


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. May use the component "perceptual" (kind rcg.lpips).

    Raises:
      UserError: settings that contradict each other.
    """
    method, size, options = config.method, config.data.image_size, compute_options(config.compute)
    architecture = config.model.to_dict()
    module = vqgan.build(architecture, **options)
    _check(config, module, components)
    follows_gradient = method.codebook == "gradient"
    perceptual = lpips.build({}, **options) if "perceptual" in components else None
    adversarial = method.adversarial_weight > 0
    discriminator = PatchDiscriminator(**method.discriminator.to_dict(), dtype=options["dtype"])
    dataset = image_dataset(source, config.data)

    def init(rng):
        image = jnp.zeros((1, size, size, 3))
        model_key, discriminator_key = jax.random.split(rng)
        params = dict(module.init(model_key, image)["params"])
        if adversarial:
            params["discriminator"] = discriminator.init(discriminator_key, image)["params"]
        extra = {"calls": jnp.zeros((), jnp.int32)}
        if not follows_gradient:
            codebook = params.pop("codebook")
            extra["codebook"] = clusters.init(codebook, method.revive_below)
        return params, extra

    def export(params, extra):
        codebook = params["codebook"] if follows_gradient else clusters.centres(extra["codebook"])
        names = ("encoder", "decoder")
        return {"params": {name: params[name] for name in names} | {"codebook": codebook}}

    def distance(frozen, image, reconstruction):
        """What the decoder is to make small, and its terms."""
        difference = reconstruction - image
        terms = {"l1": jnp.abs(difference).mean(), "l2": jnp.square(difference).mean()}
        total = method.l1_weight * terms["l1"] + method.l2_weight * terms["l2"]
        if perceptual:
            terms["perceptual"] = perceptual.apply(frozen["perceptual"], image, reconstruction).mean()
            total += method.perceptual_weight * terms["perceptual"]
        return total, terms

    def against(params, frozen, image, reconstruction):
        return adversary(
            discriminator,
            params,
            lambda r: distance(frozen, image, r)[0],
            image,
            reconstruction,
            method.adversarial_weight,
            method.adaptive_weight,
        )

    def loss(params, extra, frozen, batch, rng):
        image = to_unit(batch["image"])
        variables = export(params, extra)
        step = extra["calls"] // config.optimizer.accumulation_steps
        z = module.apply(variables, image, method="encode")
        indices, z_q = module.apply(variables, z, method="quantize")
        quantizes = step >= method.quantize_start_step
        passed = jnp.where(quantizes, z + fixed(z_q - z), z)  # straight-through
        reconstruction = module.apply(variables, passed, method="decode")

        near, terms = distance(frozen, image, reconstruction)
        codebook = vqgan.codebook_loss(z, z_q, beta=method.beta, legacy=method.legacy_order)
        total = near + jnp.where(quantizes, codebook, 0)
        counts = jnp.zeros(module.codebook_size).at[indices.ravel()].add(1)
        metrics = {
            **terms,
            "reconstruction": near,
            "codebook": codebook,
            "psnr": -10 * jnp.log10(terms["l2"]),
            "perplexity": perplexity(counts),
            "codes_used": (counts > 0).mean(),
        }
        if adversarial:
            weight, fooled, caught = jax.lax.cond(
                step >= method.adversarial_start_step,
                against,
                lambda *_: (jnp.float32(0),) * 3,
                *(params["discriminator"], frozen, image, reconstruction),
            )
            total += weight * fooled + caught
            metrics |= {"adversarial_weight": weight, "generator": fooled, "discriminator": caught}
        extra = extra | {"calls": extra["calls"] + 1}
        if not follows_gradient:
            decay, revive_below = method.codebook_decay, method.revive_below
            extra["codebook"] = clusters.update(
                extra["codebook"], fixed(z), indices, rng, decay, revive_below
            )
        return total, (metrics | {"loss": total}, extra)

    def reconstruct(params, extra, batch):
        image = to_unit(batch["image"])
        reconstruction, indices = module.apply(export(params, extra), image)
        return image, jnp.clip(reconstruction, 0, 1), indices

    def panels(params, extra, frozen, batch, rng):
        image, reconstruction, _ = reconstruct(params, extra, batch)
        return {"original": image, "reconstruction": reconstruction}

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def measure(params, extra, batch):
            image, reconstruction, indices = reconstruct(params, extra, batch)
            each, codes = batch["mask"][:, None], module.codebook_size
            difference = (reconstruction - image).reshape(len(image), -1)
            counts = jnp.zeros(codes).at[indices].add(jnp.broadcast_to(each, indices.shape))
            l1 = (each * jnp.abs(difference)).sum() / difference.shape[-1]
            return l1, (each * jnp.square(difference)).sum() / difference.shape[-1], counts, each.sum()

        l1, l2, counts, samples = 0.0, 0.0, 0.0, 0.0
        for placed, _, _ in eval_batches(dataset, config, put, ("image", "mask")):
            sums = measure(params, extra, placed)
            l1, l2, counts, samples = (
                np.float64(a) + b for a, b in zip((l1, l2, counts, samples), sums, strict=True)
            )
        values = {
            "reconstruction_mse": l2 / samples,
            "reconstruction_l1": l1 / samples,
            "reconstruction_psnr": -10 * np.log10(l2 / samples),  # of the mean error
            "codes_used": (counts > 0).mean(),
            "code_perplexity": perplexity(jnp.array(counts)),
        }
        return {name: {"value": float(value), "samples": int(samples)} for name, value in values.items()}

    return Experiment(
        kind="rcg.vqgan",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)},
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=export,
    )


def _check(config: ConfigDict, module: vqgan.VQGAN, components: Mapping[str, Component]) -> None:
    size, shrinks = config.data.image_size, 2 ** (len(module.ch_mult) - 1)
    if size % shrinks:
        near = max(size // shrinks, 1) * shrinks
        raise UserError(
            f"config.data.image_size {size} is not divisible by {shrinks}, by which {len(module.ch_mult)} "
            f"levels of config.model.ch_mult shrink it; try {near}"
        )
    for mult in module.ch_mult:
        if module.ch * mult % module.num_groups:
            raise UserError(
                f"config.model: {module.ch} x {mult} channels are not divisible by num_groups "
                f"{module.num_groups}"
            )
    if config.method.adversarial_weight > 0:
        patches = config.method.discriminator
        if size // 2**patches.num_layers <= 2:
            raise UserError(
                f"config.method.discriminator.num_layers {patches.num_layers} leaves nothing of {size} px; "
                "take fewer"
            )
        if patches.ch % patches.num_groups:
            raise UserError(
                f"config.method.discriminator.ch {patches.ch} is not divisible by its num_groups "
                f"{patches.num_groups}"
            )
    if config.method.codebook not in ("gradient", "running_mean"):
        raise UserError(f'config.method.codebook "{config.method.codebook}" is not gradient or running_mean')
    if "perceptual" in components and components["perceptual"].kind != "rcg.lpips":
        raise UserError(
            f"config.components.perceptual is a {components['perceptual'].kind} component, but rcg.lpips is "
            "needed here"
        )
