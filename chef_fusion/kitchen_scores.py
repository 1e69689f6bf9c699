"""Scripted conversations in the toy kitchen: does a second wish change the recipe and the picture?"""

from random import Random
from typing import Any

import jax
import numpy as np

from chef_fusion import tasks
from chef_fusion.generate import Chef
from chef_fusion.kitchen import read
from chef_fusion.kitchen.talk import change, wish
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
      are just the first one's.
    """
    cases = []
    for i in range(held_out.num_recipes):
        dish, r = held_out.dish(i), Random(f"dialogue/{i}")
        changed = change(dish, r)
        if changed:
            cases.append((dish, wish(dish, r), changed))
    cases = cases[:samples]
    firsts, recipes, pictures, unchanged = [], [], [], []
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
                    said = answer["content"] or ["..."]
                    talk += [
                        {"role": "assistant", "content": said},
                        {"role": "user", "content": changed.said},
                    ]
                first = [_words(answer) for answer in answers]
        for before, answer, (dish, _, changed) in zip(first, answers, part, strict=False):
            named, wanted = read(_words(answer)), frozenset(changed.dish.ingredients)
            firsts.append(set_scores([read(before)[1]], [frozenset(dish.ingredients)])["f1"])
            unchanged.append(named[1] == read(before)[1])
            recipes.append(
                named[0] == changed.dish.base
                and changed.gone not in named[1]
                and changed.come in named[1] | {""}
                and set_scores([named[1]], [wanted])["f1"] >= 0.8
            )
            made = [part for part in answer["content"] if not isinstance(part, str)]
            seen = judge(made[:1])[1][0] if judge and made else None
            pictures.append(seen is not None and changed.gone not in seen and changed.come in seen | {""})
    found = {"first": firsts, "recipe": recipes, "unchanged": unchanged}
    if judge:
        found |= {"picture": pictures, "both": np.logical_and(recipes, pictures)}
    return {
        f"dialogue_{name}": {"value": float(np.mean(values)), "samples": len(cases)}
        for name, values in found.items()
    }


def _words(answer: dict[str, Any]) -> str:
    return " ".join(part for part in answer["content"] if isinstance(part, str))
