"""MoCo v3: trains the encoder by contrasting two views of each image (Chen et al. 2021, algorithm 1).

A query encoder with a predictor, and a momentum encoder that follows the query encoder. Each query is to
find the key of the other view of its image among the keys of the whole global batch.

Against the official code: views are cut from the loader's square images, see also `rcg/augment.py`; both
views run through the transformer together, which only the statistics of a convolutional stem can notice.
With gradient accumulation the negatives are those of a micro-batch.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from rcg import augment, data, encoders, metrics
from rcg.encoders import vit
from rcg.errors import UserError
from rcg.experiment import Experiment, compute_options, to_unit, whole

Array = jax.Array
PIXELS_SIZE = 32  # the pixel baseline compares pictures of at most this side


def contrast(queries: Array, keys: Array, temperature: float) -> tuple[Array, Array]:
    """InfoNCE with in-batch negatives.

    Args:
      queries, keys: [B, C]; row i of one belongs to row i of the other. Normalised here.

    Returns:
      (2 * temperature * cross-entropy, the share of queries that rank their own key first).
    """
    logits = _unit(queries) @ _unit(keys).T / temperature  # [B, B]
    own = jnp.arange(len(logits))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()
    return 2 * temperature * loss, (logits.argmax(-1) == own).mean()


def momentum_at(step: Array, start: float, total_steps: int) -> Array:
    """From `start` to 1 by half a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1)))


def representation_std(representations: Array) -> Array:
    """How widely unit vectors [B, C] are spread: 1 evenly over all directions, 0 collapsed to a point."""
    return _unit(representations).std(0).mean() * representations.shape[-1] ** 0.5


def experiment(config: ConfigDict, components: Mapping[str, Any], source: Any) -> Experiment:
    """See `Experiment`. Trains from images alone: needs no component.

    Raises:
      UserError: settings that contradict each other.
    """
    del components
    architecture = {"arch": "moco_v3", **config.model.to_dict()}
    encoder = encoders.build(architecture, **compute_options(config.compute))
    method, size = config.method, encoder.image_size
    predictor = vit.Head(method.predictor_hidden, encoder.head_out, 2, encoder.dtype)
    augmentation = method.augment.to_dict()
    total_steps = config.total_steps * config.optimizer.accumulation_steps
    _check_frozen(config)

    def init(rng):
        encoder_key, predictor_key = jax.random.split(rng)
        network = encoder.init(encoder_key, jnp.zeros((1, size, size, 3)))
        head = predictor.init(predictor_key, jnp.zeros((1, encoder.head_out)))
        params = {"encoder": _separate_qkv(network["params"]), "predictor": head["params"]}
        extra = {
            "step": jnp.zeros((), jnp.int32),
            "batch_stats": {"encoder": network["batch_stats"], "predictor": head["batch_stats"]},
            "momentum": jax.tree.map(
                jnp.copy, {"params": params["encoder"], "batch_stats": network["batch_stats"]}
            ),
        }
        return params, extra

    def project(params, batch_stats, views):
        """[B, S, S, 3] each -> (the heads' outputs of both views, new statistics)."""
        variables = {"params": params, "batch_stats": batch_stats}
        # views side by side, so that a batch split over devices stays where it is
        pairs = encoders.normalise(jnp.stack(views, 1)).reshape(-1, size, size, 3)
        tokens, new = encoder.apply(variables, pairs, True, method="features", mutable=["batch_stats"])
        tokens = tokens.reshape(-1, 2, encoder.dim)
        outputs = []
        for i in range(2):
            variables = variables | new
            z, new = encoder.apply(variables, tokens[:, i], True, method="project", mutable=["batch_stats"])
            outputs.append(z)
        return outputs, new["batch_stats"]

    def predict(params, batch_stats, projections):
        outputs = []
        for z in projections:
            variables = {"params": params, "batch_stats": batch_stats}
            q, new = predictor.apply(variables, z, True, mutable=["batch_stats"])
            outputs.append(q)
            batch_stats = new["batch_stats"]
        return outputs, batch_stats

    def loss(params, extra, frozen, batch, rng):
        stats, step = extra["batch_stats"], extra["step"]
        momentum = momentum_at(step, method.momentum, total_steps)
        # once an update, not once for each of its parts
        rate = jnp.where(step % config.optimizer.accumulation_steps == 0, momentum, 1.0)
        slow = jax.tree.map(
            lambda old, new: rate * old + (1 - rate) * jax.lax.stop_gradient(new),
            extra["momentum"]["params"],
            params["encoder"],
        )
        query_params = params["encoder"]
        if method.stop_grad_conv1:
            query_params = query_params | {"patch_embed": jax.lax.stop_gradient(query_params["patch_embed"])}
        views = augment.two_views(rng, to_unit(batch["image"]), size, augmentation)
        (z1, z2), encoder_stats = project(query_params, stats["encoder"], views)
        (q1, q2), predictor_stats = predict(params["predictor"], stats["predictor"], (z1, z2))
        (k1, k2), slow_stats = project(slow, extra["momentum"]["batch_stats"], views)
        loss1, accuracy1 = contrast(q1, jax.lax.stop_gradient(k2), method.temperature)
        loss2, accuracy2 = contrast(q2, jax.lax.stop_gradient(k1), method.temperature)
        extra = {
            "step": step + 1,
            "batch_stats": {"encoder": encoder_stats, "predictor": predictor_stats},
            "momentum": {"params": slow, "batch_stats": slow_stats},
        }
        values = {
            "loss": loss1 + loss2,
            "contrastive_accuracy": (accuracy1 + accuracy2) / 2,
            "representation_std": representation_std(z1),
            "momentum": momentum,
        }
        return values["loss"], (values, jax.lax.stop_gradient(extra))

    def variables_of(params, extra):
        return {"params": params["encoder"], "batch_stats": extra["batch_stats"]["encoder"]}

    def panels(params, extra, frozen, batch, rng):
        images = to_unit(batch["image"])
        view1, view2 = augment.two_views(rng, images, size, augmentation)
        token = _unit(encoders.features(encoder, variables_of(params, extra), images))
        similarity = token @ token.T - 2 * jnp.eye(len(token))
        nearest = images[similarity.argmax(-1)]
        return {"image": images, "view 1": view1, "view 2": view2, "nearest of the others": nearest}

    def evaluate(params, extra, frozen, rng, put):
        @jax.jit
        def describe(variables, images):
            images = to_unit(images)
            return (
                encoders.features(encoder, variables, images),
                encoders.represent(encoder, variables, images),
                _small_pixels(images),
            )

        def everything(split, limit):
            images, labels = data.eval_arrays(source(split), config.data, limit)

            def run(batch, rows):
                placed = put({"image": batch, "row": rows})
                return (*describe(variables_of(params, extra), placed["image"]), placed["row"])

            return (*_in_batches(run, images, config.batch_size), labels)

        bank_tokens, bank_reps, bank_pixels, bank_labels = everything("train", method.eval_bank)
        tokens, reps, pixels, labels = everything("eval", config.data.max_eval_records)
        samples = {"samples": len(labels), "bank": len(bank_labels)}
        results = {"representation_std": {"value": float(representation_std(reps)), "samples": len(labels)}}
        if len(source("train").label_names) < 2:
            return results  # nothing to classify
        for name, bank, queries in (
            ("knn_accuracy", bank_tokens, tokens),
            ("knn_accuracy_representation", bank_reps, reps),
            ("knn_accuracy_pixels", bank_pixels, pixels),
        ):
            value = metrics.knn_accuracy(bank, bank_labels, queries, labels, k=method.knn_k)
            results[name] = {"value": value, "k": method.knn_k, **samples}
        seed = int(jax.random.randint(rng, (), 0, 2**31 - 1))
        value = metrics.linear_probe_accuracy(bank_tokens, bank_labels, tokens, labels, seed)
        results["linear_probe_accuracy"] = {"value": value, **samples}
        most_common = np.bincount(bank_labels).argmax()
        results["chance_accuracy"] = {"value": float((labels == most_common).mean()), **samples}
        return results

    return Experiment(
        kind="rcg.encoder",
        architecture=architecture,
        init=init,
        loss=loss,
        batch_spec={"image": ((config.data.image_size, config.data.image_size, 3), jnp.uint8)},
        dataset=data.image_dataset(source, config.data),
        panels=panels,
        evaluate=evaluate,
        export=variables_of,
    )


def _unit(x: Array) -> Array:
    """Rows of length 1; a row of zeros stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


def _separate_qkv(params: Any) -> Any:
    """MoCo v3 initialises q, k and v as three Linears: a wider range than one of three times the fan-out."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf * 2**0.5 if name.endswith("qkv/kernel") else leaf

    return jax.tree.map_with_path(one, params)


def _check_frozen(config: ConfigDict) -> None:
    """What gets no gradient must get no weight decay either, and the reverse."""
    frozen = [g.params for g in config.optimizer.groups.values() if g.get("learning_rate") == 0]
    wanted = {"pos_embed": True, "patch_embed/kernel": config.method.stop_grad_conv1}
    for name, want in wanted.items():
        if any(re.search(pattern, f"encoder/{name}") for pattern in frozen) != want:
            raise UserError(
                f"encoder/{name} must {'' if want else 'not '}be in a config.optimizer.groups entry of "
                f"learning_rate 0 (method.stop_grad_conv1 is {config.method.stop_grad_conv1}); set its params"
            )


def _small_pixels(images: Array) -> Array:
    B, S, _, C = images.shape
    if S > PIXELS_SIZE:
        images = jax.image.resize(images, (B, PIXELS_SIZE, PIXELS_SIZE, C), "linear")
    return images.reshape(B, -1)


def _in_batches(function: Any, images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """`function`'s outputs over all images, whole on every process; each process computes its share.

    Args:
      function: (images, their rows in the batch) -> outputs, the last of them the rows again: devices may be
        in another order than processes.
    """
    share, first = batch_size // jax.process_count(), jax.process_index()
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        rows = np.arange(first * share, (first + 1) * share, dtype=np.int32)
        *outputs, read = map(whole, function(padded[rows], rows))
        order = np.argsort(read)[: len(batch)]
        parts.append([x[order] for x in outputs])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
