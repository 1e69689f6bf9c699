"""Scripted conversations in the toy kitchen: does a second wish change the recipe and the picture?"""

from collections import defaultdict
from random import Random
from typing import Any

import jax
import numpy as np

from chef_fusion import tasks
from chef_fusion.generate import Chef
from chef_fusion.kitchen import partition, picture, read
from chef_fusion.kitchen.talk import Change, change, wish
from chef_fusion.kitchen_sets import KitchenRecipes
from chef_fusion.metrics import set_scores
from chef_fusion.scoring import Judge


def dialogues(
    chef: Chef,
    held_out: KitchenRecipes,
    key: jax.Array,
    settings: tasks.Settings,
    *,
    samples: int = 64,
    batch_size: int = 16,
    judge: Judge | None = None,
) -> dict[str, dict[str, Any]]:
    """A dish is asked for, then changed: "now without cheese", "with olives instead".

    Returns:
      `dialogue_first`: F1 of the first answer's ingredients. `dialogue_recipe`: how often the second answer
      names the same dish, not what has gone, what has come, and what stays with an F1 of at least 0.8.
      `dialogue_picture`, with a judge: how often a picture came in which it sees not what has gone and what
      has come. `dialogue_both`: both at once. `dialogue_unchanged`: how often the second recipe's ingredients
      are just the first one's. By the same rules `unchanged_dialogue_...`: the first answer, given again, and
      `true_dialogue_picture`: the real picture of what was asked for.
    """
    cases = []
    for i in range(held_out.num_recipes):
        dish, r = held_out.dish(i), Random(f"dialogue/{i}")
        own = partition(dish)
        changed = change(dish, r, lambda other, own=own: partition(other) == own)
        if changed:
            cases.append((dish, wish(dish, r), changed))
    cases, size = cases[:samples], held_out[0]["image"].shape[0]
    found: dict[str, list[Any]] = defaultdict(list)
    for start in range(0, len(cases), batch_size):
        part = cases[start : start + batch_size]
        padded = part + part[:1] * (batch_size - len(part))
        talks = [[{"role": "user", "content": asked}] for _, asked, _ in padded]
        for turn in range(2):
            answers = tasks.reply_all(
                chef, talks, jax.random.fold_in(key, 2 * start + turn), task="dialogue", settings=settings
            )
            if turn == 0:
                for talk, answer, (_, _, changed) in zip(talks, answers, padded, strict=True):
                    talk += [answer, {"role": "user", "content": changed.said}]
                first = answers
        for before, answer, (dish, _, changed) in zip(first, answers, part, strict=False):
            told = read(_words(before)), read(_words(answer))
            found["dialogue_first"].append(set_scores([told[0][1]], [frozenset(dish.ingredients)])["f1"])
            found["dialogue_unchanged"].append(told[0][1] == told[1][1])
            found["dialogue_recipe"].append(_told_right(*told[1], changed))
            found["unchanged_dialogue_recipe"].append(_told_right(*told[0], changed))
            if judge:
                found["dialogue_picture"].append(_seen_right(judge, answer["content"], changed))
                found["unchanged_dialogue_picture"].append(_seen_right(judge, before["content"], changed))
                real = picture(changed.dish, size)
                found["true_dialogue_picture"].append(_seen_right(judge, [real], changed))
    if judge:
        for name in ("dialogue", "unchanged_dialogue"):
            found[f"{name}_both"] = np.logical_and(found[f"{name}_recipe"], found[f"{name}_picture"])
    return {name: {"value": float(np.mean(values)), "samples": len(cases)} for name, values in found.items()}


def _told_right(base: str | None, named: frozenset[str], changed: Change) -> bool:
    return (
        base == changed.dish.base
        and changed.gone not in named
        and changed.come in named | {""}
        and set_scores([named], [frozenset(changed.dish.ingredients)])["f1"] >= 0.8
    )


def _seen_right(judge: Judge, content: list[Any], changed: Change) -> bool:
    """Of the first picture; without one: no."""
    made = [part for part in content if not isinstance(part, str)]
    seen = judge(made[:1])[1][0] if made else None
    return seen is not None and changed.gone not in seen and changed.come in seen | {""}


def _words(answer: dict[str, Any]) -> str:
    return " ".join(part for part in answer["content"] if isinstance(part, str))
