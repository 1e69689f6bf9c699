"""Scripted conversations in the toy kitchen, does a second wish change the recipe and the picture? And
questions about photos of its dishes."""

from collections import defaultdict
from random import Random
from typing import Any

import jax
import numpy as np

from chef_fusion import generate, tasks
from chef_fusion.generate import Chef
from chef_fusion.kitchen import Dish, partition, picture, read
from chef_fusion.kitchen.talk import Change, change, question, wish
from chef_fusion.kitchen_sets import KitchenRecipes, recipe_of, target_text
from chef_fusion.metrics import set_scores
from chef_fusion.scoring import Judge


def script(held_out: KitchenRecipes, samples: int) -> list[tuple[Dish, str, Change]]:
    """At most `samples` dishes with the wish for them and the change that follows."""
    cases = []
    for i in range(held_out.num_recipes):
        dish, r = held_out.dish(i), Random(f"dialogue/{i}")
        own = partition(dish)
        changed = change(dish, r, lambda other, own=own: partition(other) == own)
        if changed:
            cases.append((dish, wish(dish, r), changed))
    return cases[:samples]


def dialogues(
    chef: Chef,
    held_out: KitchenRecipes,
    key: jax.Array,
    settings: tasks.Settings,
    *,
    samples: int = 64,
    batch_size: int = 16,
    judge: Judge | None = None,
    told: str = "visible",
) -> dict[str, dict[str, Any]]:
    """A dish is asked for, then changed: "now without cheese", "with olives instead".

    Args:
      told: what the joints learnt to stand for, see `recipes.TARGETS`.

    Returns:
      `dialogue_first`: F1 of the first answer's ingredients. `dialogue_pictured`: how often both answers end
      in exactly one picture. `dialogue_recipe`: how often the second answer
      names the same dish, not what has gone, what has come, and all ingredients with an F1 of at least 0.8.
      `dialogue_picture`, with a judge: how often a picture came in which it sees the same, with an F1 of at
      least 0.5. `dialogue_both`: both at once. `dialogue_unchanged`: how often the second recipe's
      ingredients are just the first one's. `omissions_...`, `swaps_...` and `additions_dialogue_...`: of the
      cases of a kind. By the same rules `unchanged_dialogue_...`: the first answer, given again;
      `random_dialogue_...`: the true recipe and real picture of another case; `true_dialogue_picture`: the
      real picture of what was asked for; `target_dialogue_picture`: what the image generator makes by itself
      of the true target text, all that the joints can reach.
    """
    cases, size = script(held_out, samples), held_out[0]["image"].shape[0]
    if not cases:
        return {}
    found: dict[str, list[Any]] = defaultdict(list)
    firsts: list[dict[str, Any]] = []
    seconds: list[dict[str, Any]] = []
    for start in range(0, len(cases), batch_size):
        part = cases[start : start + batch_size]
        padded = part + part[:1] * (batch_size - len(part))
        talks = [[{"role": "user", "content": asked}] for _, asked, _ in padded]
        for turn, said in enumerate((firsts, seconds)):
            answers = tasks.reply_all(
                chef, talks, jax.random.fold_in(key, 2 * start + turn), task="dialogue", settings=settings
            )
            said += answers[: len(part)]
            if turn == 0:
                for talk, answer, (_, _, changed) in zip(talks, answers, padded, strict=True):
                    talk += [answer, {"role": "user", "content": changed.said}]
    wanted = [changed for _, _, changed in cases]
    written = [[read(_words(answer)) for answer in said] for said in (firsts, seconds)]
    for (dish, _, _), first, second in zip(cases, *written, strict=True):
        found["dialogue_first"].append(set_scores([first[1]], [frozenset(dish.ingredients)])["f1"])
        found["dialogue_unchanged"].append(first[1] == second[1])
    both_turns = zip(firsts, seconds, strict=True)
    found["dialogue_pictured"] = [all(map(_ends_in_picture, said)) for said in both_turns]
    true = [(changed.dish.base, frozenset(changed.dish.ingredients)) for changed in wanted]
    of_another = true[1:] + true[:1]
    for name, said in (("", written[1]), ("unchanged_", written[0]), ("random_", of_another)):
        found[f"{name}dialogue_recipe"] = [
            _right(*x, changed, 0.8) for x, changed in zip(said, wanted, strict=True)
        ]
    if judge:
        real = [picture(changed.dish, size) for changed in wanted]
        painted = [[_picture(answer) for answer in said] for said in (firsts, seconds)]
        sides = {"": painted[1], "unchanged_": painted[0], "random_": real[1:] + real[:1], "true_": real}
        if chef.sd is not None:
            texts = [target_text(recipe_of(changed.dish), told) for changed in wanted]
            states = generate.text_states(chef, texts)
            sides["target_"] = generate.paint(chef, None, key, embeddings=states, **settings.paint())
        for name, side in sides.items():
            seen = iter(zip(*judge([image for image in side if image is not None]), strict=True))
            found[f"{name}dialogue_picture"] = [
                image is not None and _right(*next(seen), changed, 0.5)
                for image, changed in zip(side, wanted, strict=True)
            ]
        for name in ("", "unchanged_", "random_"):
            both = found[f"{name}dialogue_recipe"], found[f"{name}dialogue_picture"]
            found[f"{name}dialogue_both"] = [a and b for a, b in zip(*both, strict=True)]
    kinds = [_kind(changed) for changed in wanted]
    for column in [name for name in found if name.startswith("dialogue_")]:
        for kind, value in zip(kinds, found[column], strict=True):
            found[f"{kind}_{column}"].append(value)
    return {name: {"value": float(np.mean(values)), "samples": len(values)} for name, values in found.items()}


def questions(
    chef: Chef,
    held_out: KitchenRecipes,
    key: jax.Array,
    settings: tasks.Settings,
    *,
    samples: int = 64,
    batch_size: int = 16,
) -> dict[str, dict[str, Any]]:
    """Questions about photos of at most `samples` held-out dishes: what it is, what is in it, whether
    something is.

    Returns:
      `it2t_right`: how often the answer names the dish, exactly the ingredients, or says yes or no rightly;
      `random_it2t_right`: the same after the next dish's photo. `it2t_pictureless`: how often no picture
      came, as none should.
    """
    dishes = [held_out.dish(i) for i in range(min(samples, held_out.num_recipes))]
    size = held_out[0]["image"].shape[0]
    photos = [picture(dish, size) for dish in dishes]
    asked = [question(dish, Random(f"question/{i}")) for i, dish in enumerate(dishes)]
    found: dict[str, list[bool]] = defaultdict(list)
    for prefix, shown in (("", photos), ("random_", photos[1:] + photos[:1])):
        talks = [
            [{"role": "user", "content": [photo, said]}]
            for photo, (said, _) in zip(shown, asked, strict=True)
        ]
        for start in range(0, len(talks), batch_size):
            part, true = talks[start : start + batch_size], asked[start : start + batch_size]
            padded = part + part[:1] * (batch_size - len(part))
            answers = tasks.reply_all(
                chef, padded, jax.random.fold_in(key, start), task="it2t", settings=settings
            )
            for answer, (_, wanted) in zip(answers[: len(part)], true, strict=True):
                said, names = _words(answer), read(wanted)[1]
                found[f"{prefix}it2t_right"].append(said == wanted or bool(names) and read(said)[1] == names)
                if not prefix:
                    found["it2t_pictureless"].append(_picture(answer) is None)
    return {name: {"value": float(np.mean(values)), "samples": len(values)} for name, values in found.items()}


def _ends_in_picture(answer: dict[str, Any]) -> bool:
    """With exactly one, which is last."""
    pictures = [not isinstance(part, str) for part in answer["content"]]
    return sum(pictures) == 1 and pictures[-1]


def _kind(changed: Change) -> str:
    return ("swaps" if changed.come else "omissions") if changed.gone else "additions"


def _right(base: str | None, named: frozenset[str], changed: Change, f1: float) -> bool:
    return (
        base == changed.dish.base
        and changed.gone not in named
        and changed.come in named | {""}
        and set_scores([named], [frozenset(changed.dish.ingredients)])["f1"] >= f1
    )


def _picture(answer: dict[str, Any]) -> Any:
    """The first; None without one."""
    return next((part for part in answer["content"] if not isinstance(part, str)), None)


def _words(answer: dict[str, Any]) -> str:
    return " ".join(part for part in answer["content"] if isinstance(part, str))
