"""The toy kitchen's recipes, conversations and texts, as ChefFusion's experiments read them."""

import functools
from random import Random

from ml_collections import ConfigDict

from chef_fusion import recipes
from chef_fusion.data import RecipeSet
from chef_fusion.kitchen import Dish, KitchenSource, open_source, partition, picture, read
from chef_fusion.kitchen import recipe as record_of
from chef_fusion.kitchen.talk import TAUGHT, Change, change, note, painted, plan, question, wish
from chef_fusion.recipes import Recipe
from chef_fusion.texts import Documents


def recipe_of(dish: Dish) -> Recipe:
    """The recipe of a dish, with the names of what is on the plate."""
    return Recipe.of(record_of(dish) | {"detected": list(dish.ingredients)})


def target_text(recipe: Recipe, kind: str) -> str:
    """As `RecipeSet.target_text`; here all of a dish can be seen, broth and sauce too."""
    visible = f"{recipe.title}: {', '.join(recipe.detected)}"
    return visible if kind == "visible" else recipes.caption(recipe)


class KitchenRecipes(RecipeSet):
    """The toy kitchen's dishes, one photo each."""

    def __init__(self, kitchen: KitchenSource):
        self._kitchen = kitchen
        self._first = range(len(kitchen) + 1)
        self.label_names = ()

    @property
    def num_recipes(self) -> int:
        return len(self._kitchen)

    def __len__(self) -> int:
        return len(self._kitchen)

    def __getitem__(self, photo: int) -> dict[str, object]:
        return {"image": self._kitchen[photo]["image"], "label": photo}

    def name(self, photo: int) -> str:
        return self._kitchen.name(photo)

    def choose(self, recipe: int, draw: float) -> int:
        return recipe

    def of_photo(self, photo: int) -> int:
        return int(photo)

    def dish(self, i: int) -> Dish:
        """What the photo of recipe i shows."""
        return self._kitchen.dish(i)

    def recipe(self, i: int) -> Recipe:
        return recipe_of(self.dish(i))

    def text(self, i: int) -> str:
        return recipes.caption(self.recipe(i))

    def target_text(self, i: int, kind: str) -> str:
        return target_text(self.recipe(i), kind)

    def read(self, text: str) -> tuple[str | None, frozenset[str]]:
        return read(text)


class KitchenTalk(KitchenRecipes):
    """The same with conversations: of sixteen records eleven are recipes, one a recipe that was asked for,
    two are recipes that were changed, and two questions about a photo, after which no picture comes."""

    def _random(self, i: int) -> Random:
        return Random(f"{self._kitchen.seed}/{self._kitchen.split}/{i}/talk")

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as long-lived as the set
    def _change(self, i: int) -> Change | None:
        """What the second turn of record i asks for."""
        if i % 16 not in (12, 13):
            return None
        split = self._kitchen.split
        return change(self._kitchen.dish(i), self._random(i), lambda dish: partition(dish) == split)

    def dish(self, i: int) -> Dish:
        changed = self._change(i)
        return changed.dish if changed else self._kitchen.dish(i)

    def __getitem__(self, photo: int) -> dict[str, object]:
        changed = self._change(photo)
        if not changed:
            return super().__getitem__(photo)
        return {"image": picture(changed.dish, self._kitchen.image_size), "label": photo}

    def pictured(self, i: int) -> bool:
        return i % 16 < 14

    def text(self, i: int) -> str:
        first, r = self._kitchen.dish(i), self._random(i)
        caption = recipes.caption(self.recipe(i))
        if i % 16 < 11:
            return caption
        if i % 16 >= 14:
            said, answer = question(first, r)
            return turn(said, answer)
        changed = self._change(i)
        if not changed:
            return turn(wish(first, r), caption)
        before = recipes.caption(recipe_of(first))
        return turn(wish(first, r), before) + "\n" + turn(changed.said, caption)


def turn(said: str, answer: str) -> str:
    """A question and its answer, as `chef_fusion.tasks` puts them to the language model."""
    return f"Q: {said}\nA: {answer}"


def open_recipes(data: ConfigDict, split: str) -> KitchenRecipes:
    """As `kitchen.open_source`; the source "kitchen_talk" has conversations among the recipes."""
    kind = KitchenTalk if data.source == "kitchen_talk" else KitchenRecipes
    return kind(open_source(data, split))


def open_texts(data: ConfigDict, split: str) -> Documents:
    """What a language model of the kitchen reads: recipes, often after a note of what is on the plate (where
    a photo will stand), conversations, and lists of what is on a plate that is changed."""
    kitchen = open_source(data, split)

    def allowed(dish: Dish) -> bool:
        return partition(dish) == kitchen.split

    texts: list[str] = []
    for i in range(len(kitchen)):
        dish = kitchen.dish(i)
        r = Random(f"{kitchen.seed}/{kitchen.split}/{i}/text")
        caption = recipes.caption(recipe_of(dish))
        kind = i % 8
        if kind < 4 or kind == 7:
            texts += [note(dish, r)] * (kind > 0)
            texts.append(caption if kind < 4 else turn(*question(dish, r)) + "\n")
            continue
        texts.append("\n".join(turn(*said) for said in plan(dish, r, allowed)) + "\n")
        said = turn(wish(dish, r), caption)
        changed = change(dish, r, allowed, TAUGHT)
        if changed:
            # where a picture stood: what was said counts, not what was painted
            seen = f" {painted(dish, r, allowed)}" if r.random() < 0.5 else ""
            said += f"{seen}\n" + turn(changed.said, recipes.caption(recipe_of(changed.dish)))
        texts.append(said + "\n")
    return Documents(texts, f"kitchen/{kitchen.split}")
