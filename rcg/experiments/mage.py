"""MAGE: trains the pixel generator on a frozen tokenizer's tokens, conditioned on a frozen encoder's
representations, on class labels, or on nothing (RCG section 3.3)."""

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
from rcg.pixel import mage, vqgan

SHARDING_RULES = (
    (r"attn/qkv/kernel", ("fsdp", "tensor")),
    (r"attn/proj/kernel", ("tensor", "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
)
KINDS = {"tokenizer": "rcg.vqgan", "encoder": "rcg.encoder", "rdm": "rcg.rdm"}


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the components "tokenizer" and "encoder" (which also measures), may use "rdm".

    Raises:
      UserError: a component is missing, or does not fit config.model.
    """
    for name in ("tokenizer", "encoder"):
        if name not in components:
            raise UserError(f"rcg.mage needs the component {name}: --config.components.{name}=<its folder>")
    for name, about in components.items():
        if about.kind != KINDS[name]:
            raise UserError(f"config.components.{name} is a {about.kind} component, not {KINDS[name]}")
    method, size, options = config.method, config.data.image_size, compute_options(config.compute)
    tokenizer = vqgan.build(components["tokenizer"].architecture, **options)
    encoder = encoders.build(components["encoder"].architecture, **options)
    sampler = rdm.build(components["rdm"].architecture, **options) if "rdm" in components else None
    architecture = mage.resolve(config.model.to_dict())
    module = mage.build(architecture, **options)
    _check_fit(module, tokenizer, encoder, sampler, size)
    by_representation = module.conditioning == "representation"

    def tokenize(frozen, images):
        return tokenizer.apply(frozen["tokenizer"], images, method="tokenize")

    def condition(frozen, images, labels):
        if by_representation:
            return encoders.represent(encoder, frozen["encoder"], images)
        return labels if module.conditioning == "class" else None

    def init(rng):
        noise_key, params_key = jax.random.split(rng)
        cond = {"representation": jnp.zeros((1, module.rep_dim)), "class": jnp.zeros(1, jnp.int32)}
        noise = mage.draw_noise(module, noise_key, 1)
        tokens = jnp.zeros((1, module.num_tokens), jnp.int32)
        return module.init(params_key, tokens, cond.get(module.conditioning), noise)["params"], {}

    def losses(params, frozen, batch, rng, train):
        images = to_unit(batch["image"])
        tokens = jax.lax.stop_gradient(tokenize(frozen, images))
        cond = jax.lax.stop_gradient(condition(frozen, images, batch["label"]))
        noise_key, dropout_key = jax.random.split(rng)
        noise = mage.draw_noise(module, noise_key, len(tokens))
        return module.apply(
            {"params": params}, tokens, cond, noise, train=train, rngs={"dropout": dropout_key}
        )

    def loss(params, extra, frozen, batch, rng):
        value, aux = losses(params, frozen, batch, rng, True)
        return value, ({"loss": value, "accuracy": aux["accuracy"]}, extra)

    def paint(params, frozen, cond, num, rng, cfg_scale=0.0):
        tokens = mage.generate(
            module,
            {"params": params},
            rng,
            cond,
            num=num,
            steps=method.mage_steps,
            temperature=method.temperature,
            cfg_scale=cfg_scale,
        )
        made = tokenizer.apply(frozen["tokenizer"], tokens, method="decode_tokens")
        return jnp.clip(made, 0, 1)

    def panels(params, extra, frozen, batch, rng):
        images = to_unit(batch["image"])
        cond, num = condition(frozen, images, batch["label"]), len(images)
        tokens = tokenizer.apply(frozen["tokenizer"], tokenize(frozen, images), method="decode_tokens")
        rows = {"image": images, "tokenizer": jnp.clip(tokens, 0, 1)}
        for i, key in enumerate(jax.random.split(rng)):
            rows[f"generated {i + 1}"] = paint(params, frozen, cond, num, key)
        return rows

    def evaluate(params, extra, frozen, rng, put):
        size = config.batch_size

        @jax.jit
        def look(frozen, images):
            return encoders.features(encoder, frozen["encoder"], images)

        @jax.jit
        def masked(params, frozen, batch, rng):
            value, aux = losses(params, frozen, batch, rng, False)
            return value, aux["accuracy"]

        def oracle(params, frozen, batch, rng):
            images = to_unit(batch["image"])
            return paint(params, frozen, condition(frozen, images, batch["label"]), len(images), rng)

        def from_rdm(params, frozen, batch, rng, cfg_scale=0.0):
            rdm_key, paint_key = jax.random.split(rng)
            labels = batch["label"] if sampler.num_classes else None
            cond = rdm.sample(
                sampler, frozen["rdm"], rdm_key, size, labels=labels, steps=method.rdm_steps, eta=method.eta
            )
            return paint(params, frozen, cond, size, paint_key, cfg_scale)

        def guided(*arguments):
            return from_rdm(*arguments, cfg_scale=method.cfg_scale)

        names = {"representation": "oracle", "class": "class", "none": "unconditional"}
        ways = {names[module.conditioning]: oracle}
        if by_representation and sampler is not None:
            ways |= {"generated": from_rdm}
            if method.cfg_scale:
                ways["generated_guided"] = guided
        ways = {name: jax.jit(lambda *a, f=f: look(a[1], f(*a))) for name, f in ways.items()}
        real, made, sums = [], {name: [] for name in ways}, np.zeros(2)
        for i, batch in enumerate(dataset("eval", size, config.seed, 0, 1)):
            if i * size >= method.eval_samples:
                break
            keep = batch["mask"] > 0
            placed, key = put(batch), jax.random.fold_in(rng, i)
            real.append(np.asarray(look(frozen, to_unit(placed["image"])))[keep])
            sums += keep.sum() * np.array([float(x) for x in masked(params, frozen, placed, key)])
            for name, way in ways.items():
                made[name].append(np.asarray(way(params, frozen, placed, key))[keep])
        real = np.concatenate(real)

        def distance(a, b):
            return metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))

        about = {"samples": len(real), "features": "encoder's class token", "reference": "eval split"}
        results = {
            f"frechet_{name}": {"value": distance(real, np.concatenate(features)), **about}
            for name, features in made.items()
        }
        if "frechet_generated_guided" in results:
            results["frechet_generated_guided"]["cfg_scale"] = method.cfg_scale
        half = {"value": distance(real[::2], real[1::2]), **about, "samples": len(real) // 2}
        results["frechet_floor"] = half  # of two halves of the real images
        results["masked_loss"] = {"value": sums[0] / len(real), "samples": len(real)}
        results["masked_accuracy"] = {"value": sums[1] / len(real), "samples": len(real)}
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

    return Experiment(
        kind="rcg.mage",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)},
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
        sharding_rules=SHARDING_RULES,
    )


def _check_fit(module: mage.Mage, tokenizer: vqgan.VQGAN, encoder: Any, sampler: Any, size: int) -> None:
    tokens = (size >> (len(tokenizer.ch_mult) - 1)) ** 2
    pairs = [
        ("num_tokens", module.num_tokens, f"the tokenizer makes of {size} px", tokens),
        ("codebook_size", module.codebook_size, "the tokenizer has codes", tokenizer.codebook_size),
    ]
    if module.conditioning == "representation":
        pairs.append(("rep_dim", module.rep_dim, "the encoder's representations have", encoder.head_out))
        if sampler is not None:
            pairs.append(("rep_dim", module.rep_dim, "the RDM makes", sampler.channels))
    for field, ours, what, theirs in pairs:
        if ours != theirs:
            raise UserError(f"config.model.{field} is {ours}, but {what} {theirs}; set it to that")
