"""Scores a ChefFusion on held-out dishes in the form of the paper's Tables 1 and 2, each beside baselines."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chef_fusion import generate, metrics, recipes
from chef_fusion.backbones import clip
from chef_fusion.data import RecipeSet
from chef_fusion.decoding import ImageDecision
from chef_fusion.generate import Chef
from rcg.data import DecodeError, decode
from rcg.errors import UserError


@functools.partial(jax.jit, static_argnames="vision")
def _features(vision: clip.CLIP, variables: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    pixels = clip.normalise(pixels)
    _, pooled = vision.apply(variables, pixels, method="encode_image")
    if not vision.projection_dim:
        return pooled.astype(jnp.float32), pooled.astype(jnp.float32)
    return pooled.astype(jnp.float32), vision.apply(variables, pixels, method="image_features")


def clip_features(chef: Chef, images: list[Any], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """CLIP's pooled vectors and, where it has the head, their projections (else the same again), [N, D]."""
    pooled, projected = [], []
    for first in range(0, len(images), batch_size):
        part = [generate.to_pixels(chef, image) for image in images[first : first + batch_size]]
        padded = np.zeros((batch_size, *part[0].shape), np.uint8)
        padded[: len(part)] = np.stack(part)
        rows = _features(chef.model.vision, chef.frozen["vision"], padded)
        pooled.append(np.asarray(rows[0])[: len(part)])
        projected.append(np.asarray(rows[1])[: len(part)])
    return np.concatenate(pooled), np.concatenate(projected)


def photos_of(found: RecipeSet, numbers: list[int]) -> tuple[list[Any], list[int]]:
    """The first photo of each recipe, and whose they are: damaged ones are left out."""
    images, kept = [], []
    for i in numbers:
        try:
            images.append(decode(found[found.choose(i, 0.0)]["image"]))
            kept.append(i)
        except (DecodeError, OSError):
            continue
    return images, kept


def score(
    chef: Chef,
    held_out: RecipeSet,
    training: RecipeSet,
    key: jax.Array,
    *,
    samples: int = 64,
    max_words: int = 256,
    batch_size: int = 16,
    painting: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Photos to recipes (greedy), recipes to pictures, and the [IMG] decision.

    Args:
      samples: at most so many held-out recipes, evenly spaced, and eight times as many training photos to
        retrieve from.
      painting: see `generate.paint`; None: no pictures.

    Returns:
      name -> {"value", "samples"}. `i2t_*`: recipes written from photos; `retrieval_*`: the recipe of the
      nearest training photo; `random_*`: that of another held-out photo. `t2i_clip_similarity`: of generated
      with real pictures, `sd_...` of those that the image generator makes of the text by itself, `random_...`
      of another recipe's.
    """
    count = min(samples, held_out.num_recipes)
    numbers = [i * held_out.num_recipes // count for i in range(count)]
    images, numbers = photos_of(held_out, numbers)
    if len(numbers) < 2:
        raise UserError("fewer than two held-out recipes have a photo that can be read")
    references = [recipes.caption(held_out.recipe(i)) for i in numbers]
    wanted = [recipes.ingredient_names(held_out.recipe(i)) for i in numbers]

    def names_in(text: str) -> frozenset[str]:
        found = recipes.parse(text)
        return recipes.ingredient_names(found) if found else frozenset()

    results: dict[str, float] = {}

    def put(prefix: str, hypotheses: list[str], found: list[frozenset[str]]) -> None:
        scores = metrics.text_scores(hypotheses, references, found, wanted)
        results.update({f"{prefix}_{name}": value for name, value in scores.items()})

    written = []
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        part += part[:1] * (batch_size - len(part))  # one program for all batches
        prompts = [[image, recipes.TITLE] for image in part]
        drafts = generate.write(chef, prompts, key, max_words=max_words)
        written += [recipes.TITLE + draft.text for draft in drafts]
    written = written[: len(images)]
    put("i2t", written, [names_in(text) for text in written])
    results["i2t_parsed"] = float(np.mean([recipes.parse(text) is not None for text in written]))

    pooled, projected = clip_features(chef, images)
    known = min(8 * samples, training.num_recipes)
    theirs, owners = photos_of(training, [i * training.num_recipes // known for i in range(known)])
    closest = metrics.nearest(pooled, clip_features(chef, theirs)[0])
    found = [training.recipe(owners[i]) for i in closest]
    put("retrieval", [recipes.caption(r) for r in found], [recipes.ingredient_names(r) for r in found])
    put("random", references[1:] + references[:1], wanted[1:] + wanted[:1])

    if painting is not None and chef.sd is not None:
        texts = [held_out.text(i) for i in numbers]
        forced = ImageDecision(bias=np.inf, ends=True)
        states, decided = [], []
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            part += part[:1] * (batch_size - len(part))
            prompts = [[shorten(chef, text)] for text in part]
            states += [d.states[0] for d in generate.write(chef, prompts, key, max_words=1, images=forced)]
            free = generate.write(chef, prompts, key, max_words=1, images=ImageDecision(ends=True))
            decided += [len(d.states) for d in free]
        states, decided = np.stack(states[: len(texts)]), decided[: len(texts)]
        results["picture_after_recipe"] = float(np.mean(decided))
        made = generate.paint(chef, states, key, **painting)
        plain = generate.paint(chef, None, key, embeddings=generate.text_states(chef, texts), **painting)
        mine, other = (clip_features(chef, list(side))[1] for side in (made, plain))
        results["t2i_clip_similarity"] = float(metrics.cosine(mine, projected).mean())
        results["sd_clip_similarity"] = float(metrics.cosine(other, projected).mean())
        results["random_clip_similarity"] = float(metrics.cosine(np.roll(mine, 1, axis=0), projected).mean())
    return {name: {"value": value, "samples": len(numbers)} for name, value in results.items()}


def shorten(chef: Chef, text: str) -> str:
    """The text, cut where the language model's context ends."""
    room = chef.context - 2 - 2 * chef.model.joints.num_image_tokens
    ids = chef.language.ids(text)
    return text if len(ids) <= room else chef.language.text(ids[:room])
