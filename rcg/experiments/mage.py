"""MAGE: trains the pixel generator on a frozen tokenizer's tokens, conditioned on a frozen encoder's
representations, on labels (the data's, or clusters of representations), or on nothing (RCG section 3.3)."""

import functools
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rcg import clusters, diffusion, encoders, features, rdm, statistics
from rcg.component import Component
from rcg.data import image_dataset
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit, whole
from rcg.pixel import mage, vqgan

SPLITS = 10  # of the Inception Score
SAVE_EVERY = 50  # batches of an evaluation
HALVES = (0, 1)
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
    if not 1 <= method.mage_steps <= module.num_tokens:
        raise UserError(f"config.method.mage_steps {method.mage_steps} is not in 1..{module.num_tokens}")
    if sampler is not None:
        if sampler.condition_dim:
            raise UserError("config.components.rdm is told recipes; MAGE is measured with one that is not")
        diffusion.ddim_tables(sampler.tables(), method.rdm_steps, method.eta, method.ddim_end)  # can they be
    conditioning = module.conditioning

    def tokenize(frozen, images):
        return tokenizer.apply(frozen["tokenizer"], images, method="tokenize")

    def condition(frozen, images, labels):
        if conditioning == "representation":
            return encoders.represent(encoder, frozen["encoder"], images)
        if conditioning == "class" and groups is not None:
            return groups.apply(frozen["clusters"], encoders.represent(encoder, frozen["encoder"], images))
        return labels if conditioning == "class" else None

    by_images = conditioning == "representation" or groups is not None  # what MAGE is told comes from them
    reads_labels = conditioning == "class" and groups is None
    dataset = image_dataset(source, config.data, module.num_classes if reads_labels else None)

    def init(rng):
        noise_key, params_key = jax.random.split(rng)
        cond = {"representation": jnp.zeros((1, module.rep_dim)), "class": jnp.zeros(1, jnp.int32)}
        noise = mage.draw_noise(module, noise_key, 1)
        tokens = jnp.zeros((1, module.num_tokens), jnp.int32)
        return module.init(params_key, tokens, cond.get(conditioning), noise)["params"], {}

    def encode(frozen, batch):
        images = to_unit(batch["image"])
        made = {"tokens": tokenize(frozen, images)}
        if by_images:
            made["condition"] = condition(frozen, images, None)
        return jax.lax.stop_gradient(made)

    def losses(params, frozen, batch, rng, train):
        made = encode(frozen, batch) if "image" in batch else batch
        tokens = made["tokens"]
        cond = made["condition"] if by_images else condition(frozen, None, batch["label"])
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

    def evaluate(params, extra, frozen, rng, put, partial=""):
        """`partial`: file for the sums so far; where it is there, the evaluation goes on from it."""
        size, number = config.batch_size, method.eval_samples or sys.maxsize

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
            counted = aux["masked"] * batch["mask"][:, None]
            return jnp.stack([(counted * x).sum() for x in (aux["token_loss"], aux["correct"], 1.0)])

        ways = {name: seen(way) for name, way in ways.items()}
        reference, given = method.get("reference", ""), None  # a run of before has no such field
        if reference:
            pixels = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
            dim = jax.eval_shape(extract, frozen[measuring], pixels)[0].shape[1]
            given = statistics.load(reference, dim, extract.name)
        records = len(source("eval"))
        splits = statistics.split_of(min(number, config.data.max_eval_records or records, records), SPLITS)

        # each process reads its share; all then hold the sums over everything
        processes, index = jax.process_count(), jax.process_index()
        batches = iter(dataset("eval", size // processes, config.seed, index, processes))
        sums, hidden, step, samples = statistics.Sums(), np.zeros(3), 0, 0
        if partial and os.path.exists(partial):
            sums, about = statistics.Sums.load(partial)
            hidden, step, samples = about["hidden"], int(about["step"]), int(about["samples"])
            batches.set_state(json.loads(str(about["state"])))
        while samples < number and (batch := next(batches, None)) is not None:
            placed = put({k: batch[k] for k in ("image", "label", "mask")})
            key = jax.random.fold_in(rng, step)
            good = np.flatnonzero(whole(placed["mask"]) > 0)
            keep = good[: number - samples]
            places = samples + np.arange(len(keep))  # among all that are measured
            for name, way in ways.items():
                of_images, of_classes = way(params, frozen, placed, key)
                of_images = whole(of_images)[keep]
                if name == "real":  # the floor is of its halves
                    for half in HALVES:
                        sums.add(f"real {half}", of_images[places % 2 == half])
                else:
                    sums.add(name, of_images)
                if of_classes is not None:
                    sums.add_logits(name, whole(of_classes)[keep], splits[places], SPLITS)
            hidden += np.asarray(guess(params, frozen, placed, key))
            step, samples = step + 1, samples + len(good)
            if partial and step % SAVE_EVERY == 0 and index == 0:
                state = json.dumps(batches.get_state())
                sums.save(partial, hidden=hidden, step=step, samples=samples, state=state)
        halves = [sums.moments.pop(f"real {half}") for half in HALVES]
        measured = halves[0] + halves[1]
        real, about = measured.gaussian(), {"features": extract.name}
        split = held_against = {"reference": "eval split"}
        if given is not None:
            real = given[:2]
            held_against = {"reference": os.path.basename(reference), "reference_samples": given[2]}

        metric, results = extract.metric, {}
        for name, made in sums.moments.items():
            value = statistics.distance(real, made.gaussian())
            results[f"{metric}_{name}"] = {"value": value, "samples": made.n} | about | held_against
        # of two halves of the real images; fewer samples make the distance larger
        floor = statistics.distance(*(half.gaussian() for half in halves))
        results[f"{metric}_floor"] = {"value": floor, "samples": halves[1].n} | about | split
        for name, classes in sums.classes.items():
            score, deviation = classes.score()
            told = {"samples": measured.n, "std": deviation, "splits": SPLITS}
            results[f"inception_score_{name}"] = {"value": score} | told
        for name in results:
            if name.endswith("_guided"):
                results[name]["cfg_scale"] = method.cfg_scale
        for name, total in zip(("loss", "accuracy"), hidden, strict=False):
            results[f"masked_{name}"] = {"value": float(total / hidden[2]), "samples": samples}
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
        resumes_evaluation=True,
        encode=encode,
        encoded_by=("tokenizer", *(["encoder"] if by_images else []), *(["clusters"] if groups else [])),
        export=lambda params, extra: {"params": params},
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
