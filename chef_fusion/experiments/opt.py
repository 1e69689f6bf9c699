"""OPT from nothing: next-token prediction on packed recipe text (Zhang et al. 2022, section 2)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chef_fusion import texts, tokenization
from chef_fusion.backbones import opt
from rcg.component import Component
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, eval_batches, whole


def experiment(config: ConfigDict, components: Mapping[str, Component], source: Any) -> Experiment:
    """See `Experiment`. Needs no component; `config.data.tokenizer` is a folder.

    Raises:
      UserError: no tokenizer, or one that does not fit config.model.
    """
    del components
    options = compute_options(config.compute)
    architecture = opt.resolve(config.model.to_dict())
    module, length = opt.build(architecture, **options), config.data.length
    tokenizer = tokenization.load(config.data.tokenizer)
    tokenization.needs_tokens(tokenizer, config.data.tokenizer, "bos")
    if len(tokenizer) > module.vocab_size:
        raise UserError(
            f"the tokenizer {config.data.tokenizer} has {len(tokenizer)} tokens, but config.model.vocab_size "
            f"is {module.vocab_size}; set it to at least that"
        )
    if length > module.max_position_embeddings:
        raise UserError(
            f"config.data.length {length} is more than config.model.max_position_embeddings "
            f"{module.max_position_embeddings}"
        )

    def encode(batch: list[str]) -> list[list[int]]:
        return tokenizer(batch, add_special_tokens=False)["input_ids"]

    @functools.cache
    def stream(split: str) -> np.ndarray:
        return texts.packed(texts.documents(source(split)), encode, tokenizer.bos_token_id)

    def dataset(split, batch_size, seed, shard_index, shard_count):
        shard = {"shard_index": shard_index, "shard_count": shard_count}
        return texts.token_batches(
            stream(split), length, split=split, batch_size=batch_size, seed=seed, **shard
        )

    def init(rng):
        return module.init(rng, jnp.zeros((1, 2), jnp.int32), method="from_ids")["params"], {}

    def token_losses(params, tokens):
        """Losses and hits [B, T - 1] of the next tokens."""
        logits, _ = module.apply({"params": params}, tokens, method="from_ids")
        logits, targets = logits[:, :-1], tokens[:, 1:]
        own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        # the greatest is quick to find, XLA's search for where it is takes a sixth of a step on CPUs
        hits = own >= jax.lax.stop_gradient(logits).max(-1)
        return jax.nn.logsumexp(logits, axis=-1) - own, hits

    def loss(params, extra, frozen, batch, rng):
        losses, hits = token_losses(params, batch["tokens"])
        value = losses.mean()
        return value, ({"loss": value, "accuracy": hits.mean()}, extra)

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def measure(params, tokens):
            losses, hits = token_losses(params, tokens)
            return losses.mean(1), hits.mean(1)

        sums, samples = np.zeros(2), 0
        for placed, keep, _ in eval_batches(dataset, config, put, ("tokens",)):
            found = [whole(x)[keep] for x in measure(params, placed["tokens"])]
            sums += [x.sum() for x in found]
            samples += int(keep.sum())
            if samples >= config.method.eval_sequences:
                break
        if not samples:
            raise UserError(
                f"what is held out of the texts is shorter than one sequence of {length} tokens; hold out "
                "more (of a file every config.data.eval_every-th is), or set a smaller config.data.length"
            )
        about = {"samples": samples, "length": length}
        value, accuracy = sums / samples
        return {
            "token_loss": {"value": float(value)} | about,
            "perplexity": {"value": float(np.exp(value))} | about,
            "token_accuracy": {"value": float(accuracy)} | about,
        }

    return Experiment(
        kind="opt",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"tokens": ((length,), jnp.int32)},
        dataset=dataset,
        panels=lambda params, extra, frozen, batch, rng: {},
        evaluate=evaluate,
        export=lambda params, extra: {"params": params},
        tokenizer=config.data.tokenizer,
    )
