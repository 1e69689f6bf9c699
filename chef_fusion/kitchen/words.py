"""The recipe of a dish in words, in Recipe1M's record form, and what a text says back.

Names are written as in `INGREDIENTS`, and no step or staple contains one by accident, so that `read`
finds in a recipe exactly what is on the plate.
"""

import hashlib
import re
from random import Random
from typing import Any

from chef_fusion.kitchen.menu import BASES, INGREDIENTS, MENU, Dish, partition

# what one piece is called; "" where the ingredient is counted itself
_UNITS = {
    "": (
        "almonds, black olives, blueberries, boiled egg, cherries, cherry tomatoes, chocolate chips, "
        "coconut flakes,"
        "croutons, fried egg, maraschino cherry, meatballs, mint leaves, mushrooms, pumpkin seeds, "
        "raspberries,"
        "sausages, shrimp, strawberries, wafer rolls, beef patty, veggie patty"
    ),
    "cube": "beetroot, feta, mango, potatoes, tofu, butter",
    "dollop": "whipped cream, sour cream, yogurt, wasabi",
    "floret": "broccoli",
    "leaf": "spinach, lettuce",
    "piece": "crispy chicken, pineapple, crab sticks",
    "ring": "red chili, red onion, spring onion",
    "scoop": (
        "vanilla ice cream, chocolate ice cream, strawberry ice cream, pistachio ice cream, lemon sorbet"
    ),
    "shaving": "parmesan",
    "sheet": "nori",
    "slice": (
        "avocado, bacon, banana, carrot, cheddar, cucumber, ham, kiwi, mozzarella, narutomaki, "
        "pepperoni, pickled ginger,"
        "pickles, radish, ripe tomato, roast beef, salmon, tuna"
    ),
    "spoonful": "baked beans, black beans, chickpeas, ground beef, peas, red cabbage, sweetcorn",
    "sprig": "basil, cilantro",
    "strip": "green pepper, grilled chicken, red pepper",
    "wedge": "lime",
}
UNITS = {name.strip(): unit for unit, names in _UNITS.items() for name in names.split(",")}
PLURALS = {
    "leaf": "leaves",
    "beef patty": "beef patties",
    "veggie patty": "veggie patties",
    "fried egg": "fried eggs",
    "boiled egg": "boiled eggs",
}
# before the base in a title: "blueberry tart"
SINGULAR = {
    "almonds": "almond",
    "baked beans": "baked bean",
    "black beans": "black bean",
    "black olives": "black olive",
    "blueberries": "blueberry",
    "cherries": "cherry",
    "cherry tomatoes": "cherry tomato",
    "chickpeas": "chickpea",
    "chocolate chips": "chocolate chip",
    "crab sticks": "crab stick",
    "meatballs": "meatball",
    "mushrooms": "mushroom",
    "peach slices": "peach slice",
    "potatoes": "potato",
    "pumpkin seeds": "pumpkin seed",
    "rainbow sprinkles": "rainbow sprinkle",
    "raspberries": "raspberry",
    "sausages": "sausage",
    "sesame seeds": "sesame seed",
    "strawberries": "strawberry",
    "wafer rolls": "wafer roll",
}

# what is spread, poured or sprinkled, and what is not counted, by amount
CUPS = (("1 cup {}", "250 ml {}"), ("2 cups {}", "500 ml {}"), ("3 cups {}", "750 ml {}"))
SPOONS = (
    ("1 tablespoon {}", "a little {}", "1 to 2 tablespoons {}"),
    ("3 tablespoons {}", "some {}", "1/4 cup {}"),
    ("1/2 cup {}", "plenty of {}", "a generous amount of {}"),
)
PIECES = (("a few {}", "just a few {}"), ("some {}", "several {}"), ("plenty of {}", "many {}"))
SPOON_REMARKS = ("", "", "", ", or to taste", ", more if you like")
PIECE_REMARKS = ("", "", "", "", ", ready to use")
MOODS = (
    "Easy Quick Sunday Rustic Homemade Weeknight Cozy Favourite Simple Classic Lovely Hearty Grandma's "
    "Everyday Little Festive"
).split()
TITLES = (
    "{base} with {list}",
    "{mood} {base} with {list}",
    "{first} {base}",
    "{mood} {first} {base}",
    "{first} and {second} {base}",
    "The {base} with {list}",
    "My {mood} {first} {base}",
)


def listed(names: tuple[str, ...]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _line(dish: Dish, name: str, r: Random) -> str:
    """One line of the list of ingredients. Where the picture shows whole pieces, their number is right."""
    base, level = MENU[dish.base], dish.amounts[dish.ingredients.index(name)]
    group = next(i for i, (_, _, names) in enumerate(base.groups) if name in names)
    unit = UNITS.get(name)
    if unit is None:
        measures = CUPS if name.endswith((" puree", " broth")) else SPOONS
        return r.choice(measures[level]).format(name) + r.choice(SPOON_REMARKS)
    number = dish.count(name)
    one = name if not unit else f"{unit} of {name}"
    many = PLURALS.get(name, name) if not unit else f"{PLURALS.get(unit, unit + 's')} of {name}"
    if group in base.counted:
        return f"{number} {one if number == 1 else many}{r.choice(PIECE_REMARKS)}"
    return r.choice(PIECES[level]).format(many) + r.choice(PIECE_REMARKS)


def recipe(dish: Dish) -> dict[str, Any]:
    """{id, title, ingredients: [{text}], instructions: [{text}], url, partition}, as in Recipe1M."""
    key = hashlib.sha256(repr(dish).encode()).hexdigest()[:10]
    base = MENU[dish.base]

    def drawn(what: str) -> Random:
        """Of one part alone: a dish that is changed keeps its recipe but for what was changed."""
        return Random(f"{dish.style.seed}/words/{what}")

    r = drawn("staples")
    staples = [r.choice(line) for line in base.staples]
    lines = [_line(dish, name, drawn(name)) for name in dish.ingredients]

    r = drawn("title")
    # no "red curry paste curry"
    heads = sorted(dish.ingredients, key=lambda name: (dish.base in name, drawn(f"title/{name}").random()))
    first, second = (SINGULAR.get(name, name) for name in heads[:2])
    title = r.choice(TITLES).format(
        base=dish.base,
        mood=r.choice(MOODS),
        first=first,
        second=second,
        list=listed(tuple(heads[: r.randint(1, 3)])),
    )
    title = " ".join(w if w in ("with", "and") else w[:1].upper() + w[1:] for w in title.split())

    chosen = [dish.of(group) for group in range(len(base.groups))]
    steps = []
    for number, alternatives in enumerate(base.steps):
        r = drawn(f"step {number}")
        groups = {int(g) for g in re.findall(r"\{(\d)\}", " ".join(alternatives))}
        if all(chosen[g] for g in groups):
            names = [listed(names) if names else "" for names in chosen]
            numbers = {
                "t": r.choice((220, 230, 240, 250)),
                "m": r.choice((4, 5, 6, 8, 10)),
                "n": r.randint(2, 4),
            }
            step = r.choice(alternatives).format(*names, **numbers)
            steps.append(step[0].upper() + step[1:])
    return {
        "id": key,
        "title": title,
        "ingredients": [{"text": text} for text in staples + lines],
        "instructions": [{"text": text} for text in steps],
        "url": f"kitchen://{dish.base}/{key}",
        "partition": partition(dish),
    }


_BASES = {base.rstrip("s"): base for base in BASES}
# every way a name is written; long ones first, so that "cherry tomatoes" holds no cherry
_NAMES = {re.sub("y$", "ies", name): name for name in INGREDIENTS}
_NAMES |= {name: name for name in INGREDIENTS} | {short: name for name, short in SINGULAR.items()}
_BASE = re.compile(rf"\b({'|'.join(_BASES)})s?\b")
_NAME = re.compile(rf"\b({'|'.join(sorted(_NAMES, key=len, reverse=True))})s?\b")


def read(text: str) -> tuple[str | None, frozenset[str]]:
    """What a recipe, or anything written about a dish, speaks of: (first base named, ingredients named).

    The ingredient sets of a written and a wanted recipe, compared, give precision, recall and F1.
    """
    text = text.lower()
    base = _BASE.search(text)
    return _BASES[base.group(1)] if base else None, frozenset(_NAMES[name] for name in _NAME.findall(text))
