"""MAGE: trains the pixel generator on a frozen tokenizer's tokens, conditioned on a frozen encoder's
representations, on labels (the data's, or clusters of representations), or on nothing (RCG section 3.3)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from rcg import clusters, encoders, features, metrics, rdm
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit
from rcg.pixel import mage, vqgan

SHARDING_RULES = (
    (r"attn/qkv/kernel", ("fsdp", "tensor")),
    (r"attn/proj/kernel", ("tensor", "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
)
KINDS = {
    "tokenizer": "rcg.vqgan",
    "encoder": "rcg.encoder",
    "rdm": "rcg.rdm",
    "clusters": "rcg.kmeans",
    "features": "",  # of several kinds
}


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the components "tokenizer" and "encoder" (which also measures), may use "rdm".
    With "clusters", images are labelled by the nearest cluster of their representation. "features" is what
    measures instead of the encoder: FID-Inception, or another encoder.

    Raises:
      UserError: a component is missing, or does not fit config.model.
    """
    for name in ("tokenizer", "encoder"):
        if name not in components:
            raise UserError(f"rcg.mage needs the component {name}: --config.components.{name}=<its folder>")
    for name, about in components.items():
        if KINDS[name] and about.kind != KINDS[name]:
            raise UserError(f"config.components.{name} is a {about.kind} component, not {KINDS[name]}")
    method, size, options = config.method, config.data.image_size, compute_options(config.compute)
    tokenizer = vqgan.build(components["tokenizer"].architecture, **options)
    encoder = encoders.build(components["encoder"].architecture, **options)
    sampler = rdm.build(components["rdm"].architecture, **options) if "rdm" in components else None
    architecture = mage.resolve(config.model.to_dict())
    module = mage.build(architecture, **options)
    measuring = "features" if "features" in components else "encoder"
    extract = features.extractor(components[measuring], **options)
    groups = clusters.build(components["clusters"].architecture) if "clusters" in components else None
    _check_fit(module, tokenizer, encoder, sampler, groups, size)
    conditioning = module.conditioning

    def tokenize(frozen, images):
        return tokenizer.apply(frozen["tokenizer"], images, method="tokenize")

    def condition(frozen, images, labels):
        if conditioning == "representation":
            return encoders.represent(encoder, frozen["encoder"], images)
        if conditioning == "class" and groups is not None:
            return groups.apply(frozen["clusters"], encoders.represent(encoder, frozen["encoder"], images))
        return labels if conditioning == "class" else None

    reads_labels = conditioning == "class" and groups is None
    dataset = image_dataset(source, config.data, module.num_classes if reads_labels else None)

    def init(rng):
        noise_key, params_key = jax.random.split(rng)
        cond = {"representation": jnp.zeros((1, module.rep_dim)), "class": jnp.zeros(1, jnp.int32)}
        noise = mage.draw_noise(module, noise_key, 1)
        tokens = jnp.zeros((1, module.num_tokens), jnp.int32)
        return module.init(params_key, tokens, cond.get(conditioning), noise)["params"], {}

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

    def decoded(frozen, images):
        made = tokenizer.apply(frozen["tokenizer"], tokenize(frozen, images), method="decode_tokens")
        return jnp.clip(made, 0, 1)

    def panels(params, extra, frozen, batch, rng):
        images = to_unit(batch["image"])
        cond = condition(frozen, images, batch["label"])
        rows = {"image": images, "tokenizer": decoded(frozen, images)}
        for i, key in enumerate(jax.random.split(rng)):
            rows[f"generated {i + 1}"] = paint(params, frozen, cond, len(images), key)
        return rows

    def evaluate(params, extra, frozen, rng, put):
        size, number = config.batch_size, method.eval_samples

        def oracle(params, frozen, batch, rng):
            images = to_unit(batch["image"])
            return paint(params, frozen, condition(frozen, images, batch["label"]), size, rng)

        def from_rdm(params, frozen, batch, rng, cfg_scale=0.0):
            rdm_key, paint_key = jax.random.split(rng)
            labels = batch["label"] if sampler.num_classes else None
            cond = rdm.sample(
                sampler,
                frozen["rdm"],
                rdm_key,
                size,
                labels=labels,
                steps=method.rdm_steps,
                eta=method.eta,
                end=method.ddim_end,
            )
            return paint(params, frozen, cond, size, paint_key, cfg_scale)

        kinds = {"representation": "oracle", "class": "class", "none": "unconditional"}
        kind_of_condition = "clusters" if groups is not None else kinds[conditioning]
        ways = {
            "real": lambda params, frozen, batch, rng: to_unit(batch["image"]),
            "tokenizer": lambda params, frozen, batch, rng: decoded(frozen, to_unit(batch["image"])),
            kind_of_condition: oracle,
        }
        if conditioning == "representation" and sampler is not None:
            ways["generated"] = from_rdm
            if method.cfg_scale:
                ways["generated_guided"] = functools.partial(from_rdm, cfg_scale=method.cfg_scale)
        wanted = [name for name in method.eval_ways.split(",") if name]
        if not set(wanted) <= ways.keys() - {"real"}:
            there = ", ".join(ways.keys() - {"real"})
            raise UserError(f'config.method.eval_ways "{method.eval_ways}": there are here: {there}')
        if wanted:
            ways = {name: ways[name] for name in ("real", *wanted)}

        def seen(way):
            return jax.jit(lambda p, f, b, r: extract(f[measuring], way(p, f, b, r)))

        @jax.jit
        def guess(params, frozen, batch, rng):
            """Sums over the hidden tokens of the batch: loss, hits, tokens."""
            _, aux = losses(params, frozen, batch, rng, train=False)
            hidden = aux["masked"] * batch["mask"][:, None]
            return jnp.stack([(hidden * x).sum() for x in (aux["token_loss"], aux["correct"], 1.0)])

        ways = {name: seen(way) for name, way in ways.items()}
        # each process reads its share; all then hold everything
        whole = functools.partial(multihost_utils.process_allgather, tiled=True)
        processes, index = jax.process_count(), jax.process_index()
        found, logits = {name: [] for name in ways}, {name: [] for name in ways}
        sums, samples = np.zeros(3), 0
        for i, batch in enumerate(dataset("eval", size // processes, config.seed, index, processes)):
            placed, key = put({k: batch[k] for k in ("image", "label", "mask")}), jax.random.fold_in(rng, i)
            keep = whole(batch["mask"]) > 0
            for name, way in ways.items():
                of_images, of_classes = way(params, frozen, placed, key)
                found[name].append(np.asarray(whole(of_images))[keep])
                if of_classes is not None:
                    logits[name].append(np.asarray(whole(of_classes))[keep])
            sums += np.asarray(guess(params, frozen, placed, key))
            samples += int(keep.sum())
            if samples >= number:
                break
        found = {name: np.concatenate(parts)[:number] for name, parts in found.items()}
        real = found.pop("real")

        def frechet(a, b):
            value = metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))
            about = {"features": extract.name, "reference": "eval split"}
            return {"value": value, "samples": len(b), **about}

        metric = extract.metric
        results = {f"{metric}_{name}": frechet(real, made) for name, made in found.items()}
        # of two halves of the real images; fewer samples make the distance larger
        results[f"{metric}_floor"] = frechet(real[::2], real[1::2])
        for name, parts in logits.items():
            if parts:
                score, deviation = metrics.inception_score(np.concatenate(parts)[:number])
                about = {"samples": len(real), "std": deviation, "splits": 10}
                results[f"inception_score_{name}"] = {"value": score} | about
        for name in results:
            if name.endswith("_guided"):
                results[name]["cfg_scale"] = method.cfg_scale
        for name, total in zip(("loss", "accuracy"), sums, strict=False):
            results[f"masked_{name}"] = {"value": float(total / sums[2]), "samples": samples}
        return results

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


def _check_fit(
    module: mage.Mage, tokenizer: vqgan.VQGAN, encoder: Any, sampler: Any, groups: Any, size: int
) -> None:
    tokens = (size >> (len(tokenizer.ch_mult) - 1)) ** 2
    pairs = [
        ("num_tokens", module.num_tokens, f"the tokenizer makes of {size} px", tokens),
        ("codebook_size", module.codebook_size, "the tokenizer has codes", tokenizer.codebook_size),
    ]
    if module.conditioning == "representation":
        pairs.append(("rep_dim", module.rep_dim, "the encoder's representations have", encoder.rep_dim))
        if sampler is not None:
            pairs.append(("rep_dim", module.rep_dim, "the RDM makes", sampler.channels))
    if groups is not None:
        if module.conditioning != "class":
            raise UserError(
                "config.components.clusters is given, but config.model.conditioning is "
                f"{module.conditioning}; set it to class"
            )
        pairs.append(("num_classes", module.num_classes, "there are clusters", groups.num_clusters))
    for field, ours, what, theirs in pairs:
        if ours != theirs:
            raise UserError(f"config.model.{field} is {ours}, but {what} {theirs}; set it to that")
