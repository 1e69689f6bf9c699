"""What is said about the kitchen's dishes: notes of what is on a plate, questions, and changes of mind."""

import dataclasses
from collections.abc import Callable
from random import Random

from chef_fusion.kitchen.menu import Dish, instead, with_, without
from chef_fusion.kitchen.words import listed
from rcg.errors import UserError

WISHES = ("I would like {}.", "How do I make {}?", "Give me a recipe for {}.", "Tell me how to cook {}.")
OMISSIONS = ("Now without {}.", "Please leave out the {}.", "The same without {}.", "I don't have {}.")
SWAPS = ("With {1} instead of {0}.", "Can I take {1} in place of {0}?", "I have {1}, but no {0}.")
ADDITIONS = ("Add {}.", "And with {} too?", "Now with {} on it.", "I want {} as well.")


@dataclasses.dataclass(frozen=True)
class Change:
    """A wish that turns one dish into another.

    Attributes:
      said: the user's words. dish: what it leads to. gone, come: the ingredient taken away and the one
        that is new; "" for none.
    """

    said: str
    dish: Dish
    gone: str = ""
    come: str = ""


def note(dish: Dish, r: Random) -> str:
    """What is on a plate, in any order: "pizza: basil, tomato sauce"."""
    return f"{dish.base}: {', '.join(_shuffled(dish.ingredients, r))}"


def wish(dish: Dish, r: Random) -> str:
    """The user asks for a dish with all of its ingredients."""
    return r.choice(WISHES).format(f"{dish.base} with {listed(_shuffled(dish.ingredients, r))}")


def change(dish: Dish, r: Random, allowed: Callable[[Dish], bool] = lambda dish: True) -> Change | None:
    """One ingredient taken away, swapped for one of its kind, or added, as `allowed`; None if none can be."""
    for kind in _shuffled(("omit", "swap", "add"), r):
        for name in _shuffled(dish.ingredients, r):
            group = next(names for _, _, names in dish.groups if name in names)
            other = r.choice([n for n in group if n not in dish.ingredients] or [""])
            if kind != "omit" and not other:
                continue
            try:
                if kind == "omit":
                    said = r.choice(OMISSIONS).format(name)
                    made = Change(said, without(dish, name), gone=name)
                elif kind == "swap":
                    said = r.choice(SWAPS).format(name, other)
                    made = Change(said, instead(dish, name, other), gone=name, come=other)
                else:
                    made = Change(r.choice(ADDITIONS).format(other), with_(dish, other), come=other)
                    if len(made.dish.ingredients) == len(dish.ingredients):
                        continue  # it took the place of another
            except UserError:
                continue
            if allowed(made.dish):
                return made
    return None


def question(dish: Dish, r: Random) -> tuple[str, str]:
    """A question about a dish that is seen, and its answer, which needs no picture."""
    kind = r.randrange(3)
    if kind == 0:
        return r.choice(("What dish is this?", "What is on the plate?", "What do I see?")), f"{dish.base}."
    if kind == 1:
        return r.choice(("What is in it?", "Which ingredients are these?")), f"{listed(dish.ingredients)}."
    names = [name for _, _, group in dish.groups for name in group]
    asked = r.choice(dish.ingredients if r.random() < 0.5 else names)
    said = r.choice(("Is there {} in it?", "Does it have {}?")).format(asked)
    return said, "yes." if asked in dish.ingredients else "no."


def _shuffled(names: tuple[str, ...], r: Random) -> tuple[str, ...]:
    return tuple(r.sample(names, len(names)))
