"""What a ChefFusion makes of a few held-out dishes, as files for a report: gallery.json and pictures.

photos      [{"photo", "written", "true"}]: recipes from photos
pictures    [{"text", "images": {who made it: file}}]: pictures from recipes
dialogues   [[{"role", "text", "pictures"}]]: conversations, in the toy kitchen
"""

import dataclasses
import json
import os
from random import Random
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import rcg
from chef_fusion import generate, judge, recipes, scoring, tasks
from chef_fusion.decoding import ImageDecision
from chef_fusion.experiments.joints import painting, rcg_painting
from chef_fusion.kitchen import partition
from chef_fusion.kitchen.talk import change, wish
from chef_fusion.kitchen_sets import KitchenRecipes
from launch.runtime import registry
from launch.runtime.images import grid, save_png
from rcg import component
from rcg import generate as chain

SHOWN = 8  # pictures of a kind of dish


def make(run: str, config: ConfigDict, out: str, num: int, seed: int = 0) -> None:
    """Of `num` held-out dishes, evenly spaced.

    Args:
      run: the folder of a run that trained joints, config: its config.
    """
    method, named = config.method, config.components
    painter = {name: named[name] for name in ("rdm", "mage", "tokenizer") if named[name]}
    chef = generate.load(run)
    if len(painter) == 3:
        second = generate.load(run, image_decoder="rcg", rcg=painter)
        chef = dataclasses.replace(chef, rcg=second.rcg)
    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    held_out = open_source(config.data, "eval")
    there = [i for i in range(held_out.num_recipes) if held_out.pictured(i)]
    count = min(num, len(there))
    numbers = [there[i * len(there) // count] for i in range(count)]
    photos, numbers = scoring.photos_of(held_out, numbers)
    key, words = jax.random.key(seed), method.eval_words
    os.makedirs(out, exist_ok=True)

    def keep(image: Any, name: str) -> str:
        save_png(os.path.join(out, name), np.asarray(image))
        return name

    made: dict[str, list[Any]] = {"photos": [], "pictures": [], "dialogues": []}
    prompts = [[photo, recipes.TITLE] for photo in photos]
    drafts = generate.write(chef, prompts, key, max_words=words)
    for i, (photo, draft, number) in enumerate(zip(photos, drafts, numbers, strict=True)):
        made["photos"].append(
            {
                "photo": keep(photo, f"photo_{i:02d}.png"),
                "written": recipes.TITLE + draft.text,
                "true": recipes.caption(held_out.recipe(number)),
            }
        )

    texts = [recipes.caption(held_out.recipe(i)) for i in numbers]
    forced = ImageDecision(bias=np.inf, ends=True)
    prompts = [[scoring.shorten(chef, text)] for text in texts]
    states = np.concatenate(
        [d.states for d in generate.write(chef, prompts, key, max_words=1, images=forced)]
    )
    told = generate.text_states(chef, [held_out.target_text(i, config.data.target_text) for i in numbers])
    options = painting(method)
    sides = {
        "photo": photos,
        "ChefFusion": generate.paint(chef, states, key, **options),
        "Stable Diffusion by target text": generate.paint(chef, None, key, embeddings=told, **options),
    }
    if chef.rcg is not None:
        sides["ChefFusion by RCG"] = generate.paint_rcg(chef, states, key, **rcg_painting(method))
    for i, text in enumerate(texts):
        files = {
            name: keep(side[i], f"picture_{i:02d}_{j}.png") for j, (name, side) in enumerate(sides.items())
        }
        made["pictures"].append({"text": text, "images": files})

    if isinstance(held_out, KitchenRecipes):
        settings = tasks.Settings(max_words=words, **painting(method))
        by_itself = dataclasses.replace(chef, rcg=None)
        for i, number in enumerate(numbers):
            talk = _conversation(by_itself, held_out.dish(number), Random(f"gallery/{number}"), key, settings)
            for j, message in enumerate(talk):
                parts = message["pictures"]
                message["pictures"] = [keep(p, f"talk_{i:02d}_{j}_{n}.png") for n, p in enumerate(parts)]
            made["dialogues"].append(talk)
    with open(os.path.join(out, "gallery.json"), "w", encoding="utf-8") as f:
        json.dump(made | {"seed": seed}, f, indent=2, ensure_ascii=False)


def classes(workdir: str, judging: str, out: str, num: int, seed: int = 0, **settings: Any) -> None:
    """`num` pictures of each kind of dish by RCG with a class-conditional RDM, and what a judge (a run's
    folder) says of them: grid.png (a few of each kind), samples.json, results.json."""
    model = rcg.load(workdir, class_conditional=True)
    held = component.load(os.path.join(judging, "component"), "chef_fusion.judge")
    module = judge.build(held.architecture)
    labels = np.repeat(np.arange(chain.num_classes(model)), num)
    images = np.asarray(rcg.generate(model, jax.random.key(seed), len(labels), labels, **settings))
    named, _ = judge.opinions(module, held.variables, list(images))
    right = [module.bases[label] == name for label, name in zip(labels, named, strict=True)]
    os.makedirs(out, exist_ok=True)
    shown = images[np.arange(len(images)) % num < SHOWN]
    save_png(os.path.join(out, "grid.png"), grid(shown, min(num, SHOWN)))
    about = {"samples": len(labels), "seed": seed} | settings
    with open(os.path.join(out, "samples.json"), "w") as f:
        json.dump({"task": "class_conditional"} | about, f, indent=2)
    results = {"class_picture_base_accuracy": {"value": float(np.mean(right))} | about}
    results["class_picture_base_chance"] = {"value": 1 / len(module.bases), "samples": len(labels)}
    with open(os.path.join(out, "results.json"), "w") as f:
        json.dump(results, f, indent=2)


def _conversation(
    chef: generate.Chef, dish: Any, r: Random, key: jax.Array, settings: tasks.Settings
) -> list[dict[str, Any]]:
    """A dish is asked for, then changed."""
    own = partition(dish)
    changed = change(dish, r, lambda other: partition(other) == own)
    messages: list[dict[str, Any]] = []
    for said in [wish(dish, r), *([changed.said] if changed else [])]:
        messages.append({"role": "user", "content": [said]})
        answer = tasks.reply(chef, messages, key, task="dialogue", settings=settings)
        messages.append({"role": "assistant", "content": answer["content"]})
    return [
        {
            "role": message["role"],
            "text": " ".join(part for part in message["content"] if isinstance(part, str)),
            "pictures": [part for part in message["content"] if not isinstance(part, str)],
        }
        for message in messages
    ]
