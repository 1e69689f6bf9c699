"""CLIP from nothing: photos and texts of recipes, each to find the other in a batch (Radford et al. 2021)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion.backbones import clip
from chef_fusion.data import Texts, recipe_dataset
from chef_fusion.tokenization import CaptionTokenizer
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, whole

RANKED = 1024  # pictures at once


def ranked(images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of features [N, D]: (how many texts are nearer to each picture than its own [N]; how near that
    is [N])."""
    ranks, own = [], []
    for first in range(0, len(images), RANKED):  # of all at once there may be no room for the matrix
        similarity = images[first : first + RANKED] @ texts.T
        own.append(np.diagonal(similarity, first))
        ranks.append((similarity > own[-1][:, None]).sum(1))
    return np.concatenate(ranks), np.concatenate(own)


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs no component; `config.data.tokenizer` is a folder.

    Raises:
      UserError: no tokenizer, or one that does not fit config.model.
    """
    del components
    options = compute_options(config.compute)
    model = config.model.to_dict()
    architecture = {"vision": model["vision"], "text": model["text"]}
    architecture |= {"projection_dim": model["projection_dim"], "logit_scale": True}
    module, size = clip.build(architecture, **options), config.data.image_size
    if size != module.vision.image_size:
        raise UserError(
            f"config.data.image_size is {size}, but config.model.vision.image_size {module.vision.image_size}"
        )
    tokenizer = CaptionTokenizer.load(config.data.tokenizer, module.text.max_position_embeddings)
    if tokenizer.vocabulary > module.text.vocab_size:
        raise UserError(
            f"the tokenizer {config.data.tokenizer} has {tokenizer.vocabulary} tokens, but "
            f"config.model.text.vocab_size is {module.text.vocab_size}; set it to at least that"
        )
    dataset = recipe_dataset(
        source,
        config.data,
        lambda recipes, split: Texts(recipes, None, tokenizer, target_text=config.data.target_text),
    )

    def init(rng):
        pixels = jnp.zeros((1, size, size, 3))
        params = module.init(rng, pixels, jnp.zeros((1, tokenizer.length), jnp.int32))["params"]
        return params, {}

    def features(params, batch):
        """Both sides' unit vectors [B, D]."""
        variables, pixels = {"params": params}, clip.normalise(batch["image"])
        images = module.apply(variables, pixels, method="image_features")
        texts = module.apply(variables, batch["text_ids"], method="text_features")
        return [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)]

    def loss(params, extra, frozen, batch, rng):
        images, texts = features(params, batch)
        scale = jnp.exp(params["logit_scale"])
        logits = scale * images @ texts.T
        own = jnp.arange(len(logits))
        both = [-jnp.diagonal(jax.nn.log_softmax(side)).mean() for side in (logits, logits.T)]
        value = sum(both) / 2
        hits = (logits.argmax(1) == own).mean()
        return value, ({"loss": value, "accuracy": hits, "logit_scale": scale}, extra)

    def constrain(params, frozen):
        """The scale is at most 100, as in CLIP's own training."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], jnp.log(100.0))}

    def evaluate(params, extra, frozen, rng, put):
        run, found = jax.jit(features), []
        for placed, keep, _ in eval_batches(dataset, config, put, ("image", "text_ids")):
            found.append([whole(x)[keep] for x in run(params, placed)])
        images, texts = (np.concatenate(side) for side in zip(*found, strict=True))
        rank, own = ranked(images, texts)
        samples = len(rank)
        results = {f"recall_at_{k}": float((rank < k).mean()) for k in (1, 5)}
        results["chance_recall_at_1"] = 1 / samples
        results["similarity_of_pairs"] = float(own.mean())
        everything = float(images.sum(0, np.float64) @ texts.sum(0, np.float64))
        results["similarity_of_others"] = (everything - float(own.sum())) / max(samples * (samples - 1), 1)
        return {name: {"value": value, "samples": samples} for name, value in results.items()}

    return Experiment(
        kind="clip",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={
            "image": ((size, size, 3), jnp.uint8),
            "text_ids": ((tokenizer.length,), jnp.int32),
        },
        dataset=dataset,
        panels=lambda params, extra, frozen, batch, rng: {},
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
        constrain=constrain,
        tokenizer=config.data.tokenizer,
    )
