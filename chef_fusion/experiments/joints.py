"""ChefFusion: trains the joints between a frozen OPT, CLIP and Stable Diffusion on photos and recipes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion import generate, judge, kitchen_scores, scoring, targets, tasks
from chef_fusion import model as chef_model
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.data import Texts, recipe_dataset
from chef_fusion.kitchen_sets import KitchenRecipes
from chef_fusion.model import CHOICES, Recipe
from chef_fusion.recipe_rdm import check_told
from rcg import generate as chain
from rcg import rdm
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, to_unit
from rcg.pixel import mage, vqgan

KINDS = {"lm": "opt", "vision": "clip", "stable_diffusion": "stable_diffusion"}
RCG_KINDS = {"rdm": rdm.build, "mage": mage.build, "tokenizer": vqgan.build}
MEASURED_WITH = {"judge": "chef_fusion.judge", "rdm": "rcg.rdm", "mage": "rcg.mage", "tokenizer": "rcg.vqgan"}


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs the components "lm", "vision" and "stable_diffusion", with tokenizers.

    Raises:
      UserError: a component is missing, or does not fit config.model or the others.
    """
    for name, kind in KINDS.items():
        if name not in components or components[name].kind != kind:
            raise UserError(f"needs a component of kind {kind}: --config.components.{name}=<its folder>")
    for name, kind in MEASURED_WITH.items():
        if name in components and components[name].kind != kind:
            raise UserError(f"config.components.{name} is of kind {components[name].kind}, not {kind}")
    if 0 < len(RCG_KINDS.keys() & components.keys()) < len(RCG_KINDS):
        raise UserError("RCG paints with all of components.rdm, mage and tokenizer, or is left out")
    options, method = compute_options(config.compute), config.method
    architecture = resolve(config.model.to_dict(), components)
    if "rdm" in components:
        check_told(components["rdm"].architecture.get("condition_dim", 0), architecture["out_dim"])
    by_name = {name: components[name] for name in (*RCG_KINDS, "stable_diffusion") if name in components}
    chain.check_origins(by_name, stacklevel=3)
    chef = generate.assemble(components, architecture, None, None, options)
    model, sd = chef.model, chef.sd
    recipe = Recipe(**{name: method[name] for name in Recipe._fields})
    for name, allowed in CHOICES.items():
        if getattr(recipe, name) not in allowed:
            raise UserError(
                f'config.method.{name} "{getattr(recipe, name)}" is not one of {", ".join(allowed)}'
            )
    m, length = model.joints.num_image_tokens, config.data.max_tokens
    size, pooled_dim = model.vision.vision.image_size, model.vision.vision.hidden_size
    positions = length + model.joints.num_visual_tokens
    if not m + 2 <= length or positions > model.lm.opt.max_position_embeddings:
        raise UserError(
            f"config.data.max_tokens {length} must be at least {m + 2}, and with the visual tokens at most "
            f"the language model's {model.lm.opt.max_position_embeddings} positions"
        )
    if any(not m + 2 <= edge < length for edge in config.data.length_buckets):
        raise UserError(
            f"config.data.length_buckets {tuple(config.data.length_buckets)} must lie between {m + 2} and "
            f"config.data.max_tokens {length}"
        )
    if config.data.image_size != size:
        raise UserError(
            f"config.data.image_size is {config.data.image_size}, but the vision tower sees {size} px; set "
            "it to that"
        )
    at_once = config.batch_size // config.optimizer.accumulation_steps
    if recipe.concat_captions and at_once % 2:
        raise UserError(
            f"config.method.concat_captions needs an even batch_size / accumulation_steps, not {at_once}"
        )
    if recipe.concat_captions and jax.default_backend() == "cpu" and jax.device_count() > 1:
        # its conditional has collectives in it, on which XLA's CPU devices may wait for ever
        raise UserError("config.method.concat_captions can't run on several CPU devices; use one")
    cached = bool(method.targets)
    shape = (sd.max_tokens, sd.unet.cross_attention_dim)

    def texts(recipes, split):
        generate.needs_tokenizers(chef)
        if recipe.concat_captions and not all(map(recipes.pictured, range(recipes.num_recipes))):
            raise UserError(
                "config.method.concat_captions joins recipes that all have a picture after them, but in this "
                "data some texts have none; set it to 0"
            )
        held = None
        if cached:
            encoder = components["stable_diffusion"].content_hash
            wanted = targets.identity(recipes, config.data.target_text, encoder, shape)
            name = config.data.eval_split if split == "eval" else split
            held = targets.open_targets(method.targets, name, wanted)
        return Texts(
            recipes,
            chef.language,
            chef.captions,
            length,
            config.data.target_text,
            targets=held,
            buckets=config.data.length_buckets,
        )

    dataset = recipe_dataset(source, config.data, texts)

    def init(rng):
        return model.joints.init(rng, jnp.zeros((1, pooled_dim)))["params"], {}

    def with_target(frozen, batch):
        if cached:
            return batch
        states = pipeline.encode_text(sd, frozen["stable_diffusion"], batch["text_ids"])
        return {**batch, "target": jax.lax.stop_gradient(states)}

    def loss(params, extra, frozen, batch, rng):
        batch, variables = with_target(frozen, batch), {"params": params}
        run = functools.partial(chef_model.losses, model, variables, frozen, batch, recipe)
        if not recipe.concat_captions:
            total, parts = run()
        else:  # drawn for the whole batch, for each mode apart
            joined = jax.random.bernoulli(rng, recipe.concat_captions, (2,))
            ways = [(a, b) for a in (False, True) for b in (False, True)]
            branches = [functools.partial(lambda way, _: run(concat=way), way) for way in ways]
            total, parts = jax.lax.switch(2 * joined[0] + joined[1], branches, None)
        row = jnp.linalg.norm(params["image_embeddings"], axis=-1).mean()
        return total, (parts | {"image_row_norm": row}, extra)

    def constrain(params, frozen):
        norm = chef_model.mean_row_norm(model, frozen)
        return chef_model.rescale_rows({"params": params}, norm)["params"]

    def panels(params, extra, frozen, batch, rng):
        """Photos, what plain Stable Diffusion makes of their recipes' target text, what ChefFusion does."""
        variables = {"params": params}
        batch = with_target(frozen, batch)
        _, states = chef_model.generation_states(
            model, frozen, model.rows(variables), batch["tokens"], batch["length"]
        )
        mapped = model.joints.apply(variables, states, method="map")
        negative = pipeline.encode_text(sd, frozen["stable_diffusion"], jnp.asarray(chef.captions([""])))
        made = {"photo": to_unit(batch["image"])}
        for name, embeddings in (("from the text", batch["target"]), ("from the [IMG] states", mapped)):
            painted = pipeline.generate(
                sd, frozen["stable_diffusion"], rng, embeddings, negative, **painting(method)
            )
            made[name] = jax.image.resize(painted, (len(painted), size, size, 3), "linear")
        return made

    fields = ("image", "tokens", "length", "after", "mask", "target" if cached else "text_ids")

    def evaluate(params, extra, frozen, rng, put):
        variables = {"params": params}

        @jax.jit
        def measure(variables, frozen, batch):
            batch = with_target(frozen, batch)
            _, parts = chef_model.losses(model, variables, frozen, batch, recipe)
            counted = batch["mask"] > 0
            words = ((chef_model.caption_labels(model, batch["tokens"]) >= 0) & counted[:, None]).sum()
            pictured = (counted & (batch["after"] == model.joints.image_first)).sum()
            decided = counted.sum() if recipe.decision_loss == "token" else words
            with_another = batch | {"image": batch["image"][chef_model.others(counted)]}
            _, of_another = chef_model.losses(model, variables, frozen, with_another, recipe)
            means = jnp.stack([parts["l_r"], parts["l_p"], parts["l_g"], of_another["l_r"]])
            return means, jnp.stack([words, decided, pictured, words])

        sums, weights, samples = np.zeros(4), np.zeros(4), 0
        for placed, keep, _ in eval_batches(dataset, config, put, fields):
            means, weight = (np.asarray(x, np.float64) for x in measure(variables, frozen, placed))
            sums, weights, samples = sums + means * weight, weights + weight, samples + int(keep.sum())
        l_r, l_p, l_g, of_another = sums / np.maximum(weights, 1)
        values = {"l_r": l_r, "l_p": l_p, "l_g": l_g}
        values["i2t_perplexity"] = np.exp(l_r)
        values["random_perplexity"] = np.exp(of_another)  # of the same texts, after another's photo
        results = {name: {"value": float(v), "samples": samples} for name, v in values.items()}
        if method.eval_samples:
            asked = dataclasses.replace(chef, params=variables, frozen=frozen, rcg=painter(frozen))
            held_out, opinions = source("eval"), None
            if "judge" in components:
                judging = judge.build(components["judge"].architecture, **options)
                opinions = functools.partial(judge.opinions, judging, frozen["judge"])
            results |= scoring.score(
                asked,
                held_out,
                source("train"),
                rng,
                samples=method.eval_samples,
                max_words=method.eval_words,
                painting=painting(method),
                target_text=config.data.target_text,
                judge=opinions,
                rcg=rcg_painting(method),
            )
            if isinstance(held_out, KitchenRecipes):
                settings = tasks.Settings(max_words=method.eval_words, **painting(method))
                asking = dataclasses.replace(asked, rcg=None), held_out, rng, settings
                results |= kitchen_scores.dialogues(
                    *asking, samples=method.eval_samples, judge=opinions, told=config.data.target_text
                )
                results |= kitchen_scores.questions(*asking, samples=method.eval_samples)
        return results

    def painter(frozen):
        """RCG as an image decoder, of the components "rdm", "mage" and "tokenizer"."""
        if not components.keys() >= RCG_KINDS.keys():
            return None
        networks = {}
        for name, build in RCG_KINDS.items():
            made = build(components[name].architecture, **options)
            networks[name] = chain.Network(made, frozen[name], components[name].content_hash)
        return chain.RCG(**networks)

    target = {"target": (shape, jnp.float32)} if cached else {"text_ids": (shape[:1], jnp.int32)}
    return Experiment(
        kind="chef_fusion",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={
            "image": ((size, size, 3), jnp.uint8),
            "tokens": ((length,), jnp.int32),
            "length": ((), jnp.int32),
            "after": ((), jnp.int32),
            **target,
        },
        dataset=dataset,
        panels=panels,
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
        constrain=constrain if recipe.rescale_rows else None,
    )


def rcg_painting(method: ConfigDict) -> dict[str, Any]:
    """How RCG makes pictures."""
    names = ("mage_steps", "temperature", "cfg_scale")
    return {name: method[f"rcg_{name}"] for name in names}


def painting(method: ConfigDict) -> dict[str, Any]:
    """How pictures are made while training and measuring."""
    return {
        "steps": method.sample_steps,
        "scheduler": method.scheduler,
        "cfg_scale": method.cfg_scale,
        "height": method.sample_size,
        "width": method.sample_size,
    }


def resolve(model: Mapping[str, Any], components: Mapping[str, Component]) -> dict[str, Any]:
    """`config.model` -> architecture: what is 0 is as the components have it.

    Raises:
      UserError: a component has not what is needed.
    """
    fields = dict(model)
    lm, sd = components["lm"].architecture, components["stable_diffusion"].architecture
    text = sd["text_encoder"].get("text")
    if not text:
        raise UserError("the stable_diffusion component has no text encoder")
    known = {
        "embed_dim": lm["word_embed_proj_dim"] if "word_embed_proj_dim" in lm else lm.get("hidden_size", 768),
        "num_outputs": text.get("max_position_embeddings", 77),
        "out_dim": text.get("hidden_size", 768),
    }
    return fields | {name: fields.get(name) or value for name, value in known.items()}
