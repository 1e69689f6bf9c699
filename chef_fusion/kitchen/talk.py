"""What is said about the kitchen's dishes: notes of what is on a plate, questions, and changes of mind."""

import dataclasses
from collections.abc import Callable
from random import Random

from chef_fusion.kitchen.menu import Dish, instead, with_, without
from chef_fusion.kitchen.words import listed
from rcg.errors import UserError

WISHES = ("I would like {}.", "How do I make {}?", "Give me a recipe for {}.", "Tell me how to cook {}.")
OMISSIONS = ("Now without {}.", "Please leave out the {}.", "The same without {}.", "I don't have {}.")
PLANS = ("What goes into {}?", "I will make {}. What do I need?", "List what is in {}.")
SWAPS = ("With {1} instead of {0}.", "Can I take {1} in place of {0}?", "I have {1}, but no {0}.")
ADDITIONS = ("Add {}.", "And with {} too?", "Now with {} on it.", "I want {} as well.")
# what is hardest to learn is told most
TAUGHT = ("omit", "omit", "omit", "swap", "swap", "add")
RIGHTLY = 0.6  # how often a picture shows an ingredient as it was told, of a painter that still learns


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


def painted(dish: Dish, r: Random, allowed: Callable[[Dish], bool] = lambda dish: True) -> str:
    """A note of a picture made of a dish: in place of an ingredient it may show another of its kind, where
    that is a dish that is `allowed`."""
    names = (name if r.random() < RIGHTLY else r.choice(_kind(dish, name)) for name in dish.ingredients)
    seen = tuple(dict.fromkeys(names))
    shown = dataclasses.replace(dish, ingredients=seen, amounts=(1,) * len(seen))
    return note(shown if allowed(shown) else dish, r)


def wish(dish: Dish, r: Random) -> str:
    """The user asks for a dish with all of its ingredients."""
    return r.choice(WISHES).format(f"{dish.base} with {listed(_shuffled(dish.ingredients, r))}")


def change(
    dish: Dish,
    r: Random,
    allowed: Callable[[Dish], bool] = lambda dish: True,
    kinds: tuple[str, ...] = ("omit", "swap", "add"),
) -> Change | None:
    """One ingredient taken away, swapped for one of its kind, or added, as `allowed`; None if none can be.
    What is more often among `kinds` is tried first more often."""
    for kind in _shuffled(kinds, r):
        for name in _shuffled(dish.ingredients, r):
            other = r.choice([n for n in _kind(dish, name) if n not in dish.ingredients] or [""])
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


def plan(
    dish: Dish, r: Random, allowed: Callable[[Dish], bool] = lambda dish: True, changes: int = 4
) -> list[tuple[str, str]]:
    """A dish that is asked for and changed again and again: (what is said, what is then on the plate).

    Little else than the changes: what a wish does to a list is learnt from far fewer words than whole recipes
    have.
    """

    def plate() -> str:
        return f"{dish.base}: {', '.join(dish.ingredients)}."  # in a recipe's order

    turns = [(r.choice(PLANS).format(f"{dish.base} with {listed(_shuffled(dish.ingredients, r))}"), plate())]
    for _ in range(changes):
        changed = change(dish, r, allowed, TAUGHT)
        if changed:
            dish = changed.dish
            turns.append((changed.said, plate()))
    return turns


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


def _kind(dish: Dish, ingredient: str) -> tuple[str, ...]:
    """The ingredients that may stand for this one."""
    return next(names for _, _, names in dish.groups if ingredient in names)


def _shuffled(names: tuple[str, ...], r: Random) -> tuple[str, ...]:
    return tuple(r.sample(names, len(names)))
