"""Scores a ChefFusion on held-out dishes in the form of the paper's Tables 1 and 2, each beside baselines."""

import functools
import time
from collections.abc import Callable, Sequence
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

RETRIEVABLE = 2**15  # training photos to find the nearest in
Judge = Callable[[list[Any]], tuple[Sequence[str], Sequence[frozenset[str]]]]


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


def photos_of(found: RecipeSet, numbers: Sequence[int]) -> tuple[list[Any], list[int]]:
    """The first photo of each recipe, and whose they are: damaged ones are left out."""
    images, kept = [], []
    for i in numbers:
        try:
            images.append(decode(found[found.choose(i, 0.0)]["image"]))
            kept.append(i)
        except (DecodeError, OSError):
            continue
    return images, kept


def pooled_of(chef: Chef, found: RecipeSet, numbers: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """CLIP's pooled vectors [N, D] of the recipes' first photos, and whose they are; all photos at once would
    not fit into memory."""
    parts, owners = [], []
    for first in range(0, len(numbers), 32):
        photos, whose = photos_of(found, numbers[first : first + 32])
        if photos:
            parts.append(clip_features(chef, photos)[0])
            owners += whose
    if not owners:
        raise UserError("no training recipe has a photo that can be read")
    return np.concatenate(parts), owners


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
    target_text: str = "caption",
    judge: Judge | None = None,
    rcg: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Photos to recipes (greedy), recipes to pictures, and the [IMG] decision.

    Args:
      samples: at most so many held-out recipes, evenly spaced.
      painting: see `generate.paint`; None: no pictures.
      target_text: what the joints learnt to stand for, see `recipes.TARGETS`.
      rcg: settings of `rcg.generate.generate_from`, where RCG paints too.
      judge: images -> (kind of dish, ingredients) of each, as `RecipeSet.read` names them.

    Returns:
      name -> {"value", "samples"}. `i2t_*`: recipes written from photos; `retrieval_*`: the recipe of the
      nearest of at most RETRIEVABLE training photos; `random_*`: that of another held-out photo.
      `t2i_clip_similarity`: of generated with real pictures; `sd_...` of those that the image generator
      makes by itself of the same recipe, as far as its text encoder reads; `target_...`, where the target
      text is another, of those that it makes of that: what the joints imitate, so all they can reach;
      `rcg_...` of those that RCG makes of the same [IMG] states;
      `random_...` of those that the joints make of another recipe. `*_trained_parameters`: what was trained
      over the frozen networks, the joints, for RCG also its RDM; of no samples. `decision_accuracy`: see
      `decisions`. Where dishes are of kinds, `*_base_accuracy`; with a judge also of pictures, `real_...`
      being what the judge itself is worth.
    """
    recipes_there = [i for i in range(held_out.num_recipes) if held_out.pictured(i)]
    count = min(samples, len(recipes_there))
    numbers = [recipes_there[i * len(recipes_there) // count] for i in range(count)]
    images, numbers = photos_of(held_out, numbers)
    if len(numbers) < 2:
        raise UserError("fewer than two held-out recipes have a photo that can be read")
    references = [recipes.caption(held_out.recipe(i)) for i in numbers]
    bases, wanted = zip(*(held_out.read(text) for text in references), strict=True)
    results: dict[str, float] = {}
    own: dict[str, dict[str, Any]] = {}  # with another number of samples

    def put_base(prefix: str, found: Sequence[str | None]) -> None:
        if any(bases):
            right = [ours == theirs for ours, theirs in zip(found, bases, strict=True)]
            results[f"{prefix}_base_accuracy"] = float(np.mean(right))

    def put(prefix: str, hypotheses: Sequence[str]) -> None:
        kinds, names = zip(*map(held_out.read, hypotheses), strict=True)
        scores = metrics.text_scores(hypotheses, references, names, wanted)
        results.update({f"{prefix}_{name}": value for name, value in scores.items()})
        put_base(prefix, kinds)

    written = []
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        part += part[:1] * (batch_size - len(part))  # one program for all batches
        prompts = [[image, recipes.TITLE] for image in part]
        drafts = generate.write(chef, prompts, key, max_words=max_words)
        written += [recipes.TITLE + draft.text for draft in drafts]
    written = written[: len(images)]
    put("i2t", written)
    results["i2t_parsed"] = float(np.mean([recipes.parse(text) is not None for text in written]))

    pooled, projected = clip_features(chef, images)
    known = min(RETRIEVABLE, training.num_recipes)
    theirs, owners = pooled_of(chef, training, [i * training.num_recipes // known for i in range(known)])
    closest = metrics.nearest(pooled, theirs)
    put("retrieval", [recipes.caption(training.recipe(owners[i])) for i in closest])
    put("random", references[1:] + references[:1])

    if painting is not None and chef.sd is not None:
        states = np.concatenate([d.states for d in _draw(chef, references, key, batch_size, True)])
        made = generate.paint(chef, states, key, **painting)
        trained = parameters(chef.params)
        own["t2i_trained_parameters"], own["sd_trained_parameters"] = {"value": trained}, {"value": 0}
        own["t2i_images_per_second"] = speed(lambda: generate.paint(chef, states[:8], key, **painting))
        told = {"sd": references, "target": [held_out.target_text(i, target_text) for i in numbers]}
        if told["target"] == references:
            del told["target"]
        sides = {"t2i": made} | {
            name: generate.paint(chef, None, key, embeddings=generate.text_states(chef, words), **painting)
            for name, words in told.items()
        }
        for name, side in sides.items():
            features = clip_features(chef, list(side))[1]
            results[f"{name}_clip_similarity"] = float(metrics.cosine(features, projected).mean())
            if name == "t2i":
                other = float(metrics.cosine(np.roll(features, 1, axis=0), projected).mean())
                results["random_clip_similarity"] = other
        own |= decisions(chef, held_out, samples, key, batch_size)
        sides["real"] = images
        if chef.rcg is not None:
            sides["rcg"] = generate.paint_rcg(chef, states, key, **rcg)
            of_rcg = clip_features(chef, list(sides["rcg"]))[1]
            results["rcg_clip_similarity"] = float(metrics.cosine(of_rcg, projected).mean())
            run = functools.partial(generate.paint_rcg, chef, states[:8], key, **rcg)
            own["rcg_images_per_second"] = speed(run)
            own["rcg_trained_parameters"] = {"value": trained + parameters(chef.rcg.rdm.variables)}
        opinions = {name: judge(list(side)) for name, side in sides.items()} if judge else {}
        if opinions:
            opinions["random"] = tuple([*part[1:], part[0]] for part in opinions["t2i"])
        for name, (kinds, seen) in opinions.items():
            put_base(f"{name}_picture", kinds)
            scores = metrics.set_scores(seen, wanted).items()
            results |= {f"{name}_picture_ingredient_{score}": value for score, value in scores}
    return {name: {"value": value, "samples": len(numbers)} for name, value in results.items()} | own


def parameters(variables: Any) -> int:
    """How many numbers there are in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def speed(run: Callable[[], Sequence[Any]]) -> dict[str, Any]:
    """How many images a second a program makes, compiled; the median of three runs."""
    made, seconds = run(), []
    for _ in range(3):
        started = time.perf_counter()
        made = run()
        seconds.append(time.perf_counter() - started)
    return {"value": len(made) / float(np.median(seconds)), "samples": len(made)}


def _draw(chef: Chef, texts: list[str], key: jax.Array, batch_size: int, force: bool) -> list[generate.Draft]:
    """What comes after whole texts if a picture must come, or may."""
    drafts: list[generate.Draft] = []
    decision = ImageDecision(bias=np.inf if force else 0.0, ends=True)
    for first in range(0, len(texts), batch_size):
        prompts = [[shorten(chef, text)] for text in texts[first : first + batch_size]]
        padded = prompts + prompts[:1] * (batch_size - len(prompts))  # one program for all batches
        drafts += generate.write(chef, padded, key, max_words=1, images=decision)[: len(prompts)]
    return drafts


def decisions(
    chef: Chef, held_out: RecipeSet, samples: int, key: jax.Array, batch_size: int = 16
) -> dict[str, dict[str, Any]]:
    """Whether pictures come exactly where they should, after at most `samples` true texts of either kind
    (`decision_accuracy`); `chance_decision_accuracy` is that of always painting."""
    results, right = {}, []
    for should, name in ((True, "picture_where_wanted"), (False, "picture_where_not")):
        there = [i for i in range(held_out.num_recipes) if held_out.pictured(i) == should]
        count = min(samples, len(there))
        texts = [held_out.text(there[i * len(there) // count]) for i in range(count)]
        came = [len(d.states) > 0 for d in _draw(chef, texts, key, batch_size, False)]
        right.append([c == should for c in came])
        if came:
            results[name] = {"value": float(np.mean(came)), "samples": count}
    accuracy = float(np.mean([np.mean(r) for r in right if r]))
    chance, count = 1 / len([r for r in right if r]), sum(map(len, right))
    results["decision_accuracy"] = {"value": accuracy, "samples": count}
    return results | {"chance_decision_accuracy": {"value": chance, "samples": count}}


def shorten(chef: Chef, text: str) -> str:
    """The text, cut where the language model's context ends."""
    room = chef.context - 2 - 2 * chef.model.joints.num_image_tokens
    ids = chef.language.ids(text)
    return text if len(ids) <= room else chef.language.text(ids[:room])
