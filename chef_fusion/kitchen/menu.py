"""What the toy kitchen can cook: bases, ingredients, what goes together, and how a dish is chosen.

There are two menus. The long one has all of it; the short one has twelve bases and those ingredients that are
told apart at a glance, for networks that have minutes to learn.

Everything is decided by (seed, index). The text of a recipe and its picture both follow from a `Dish`
alone, so what is on the plate is exactly what the recipe says.
"""

import dataclasses
import hashlib
import math
from random import Random

from rcg.errors import UserError

MIN_INGREDIENTS, MAX_INGREDIENTS = 2, 7
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Base:
    """A kind of dish. It takes from `low` to `high` ingredients out of each of its `groups`.

    Attributes:
      groups: (low, high, names).
      staples: lines of the ingredient list for what the base itself is made of; alternatives per line.
      steps: alternatives per step; `{0}` stands for the chosen ingredients of group 0. A step about a
        group nothing was chosen from is left out.
      counted: groups whose pieces can be counted in the picture, so that their number is told.
      portion: scales how many pieces of each ingredient there are.
    """

    groups: tuple[tuple[int, int, tuple[str, ...]], ...]
    staples: tuple[tuple[str, ...], ...]
    steps: tuple[tuple[str, ...], ...]
    counted: tuple[int, ...] = ()
    portion: float = 1.0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


# the long menu: all that there is
MENU: dict[str, Base] = {
    "pizza": Base(
        groups=(
            (1, 1, _names("tomato sauce, pesto, white sauce")),
            (0, 1, _names("mozzarella")),
            (
                1,
                3,
                _names(
                    "pepperoni, mushrooms, black olives, red pepper, green pepper, red onion, ham, "
                    "pineapple,"
                    "sweetcorn, shrimp, spinach, cherry tomatoes, feta, bacon"
                ),
            ),
            (0, 1, _names("basil, parmesan, red chili, parsley")),
        ),
        staples=(
            ("1 ball of dough", "300 g bread dough", "1 portion of yeast dough"),
            ("a drizzle of olive oil", "2 teaspoons olive oil", "a pinch of salt"),
        ),
        steps=(
            (
                "Heat the oven to {t} C.",
                "Heat a baking stone to {t} C.",
                "Set the oven to its highest heat, about {t} C.",
            ),
            ("Roll the dough into a circle.", "Stretch the dough by hand into a round base."),
            ("Spread {0} over the dough.", "Cover the base with {0}, leaving the edge free."),
            ("Add {1}.", "Lay {1} on top in an even layer."),
            ("Scatter {2} over it.", "Top with {2}.", "Arrange {2} on the base."),
            (
                "Bake for {m} minutes until the edge is golden.",
                "Bake for about {m} minutes, until crisp and bubbling.",
            ),
            ("Finish with {3} and serve hot.", "Sprinkle with {3} before slicing."),
        ),
        counted=(2, 3),
    ),
    "salad": Base(
        groups=(
            (1, 1, _names("lettuce, spinach")),
            (
                2,
                4,
                _names(
                    "cherry tomatoes, cucumber, carrot, avocado, feta, croutons, boiled egg, radish, "
                    "grilled chicken,"
                    "sweetcorn, black olives, red onion, chickpeas, beetroot, red pepper, shrimp, mozzarella"
                ),
            ),
            (0, 1, _names("sesame seeds, pumpkin seeds, parmesan, almonds")),
        ),
        staples=(
            ("3 tablespoons olive oil", "2 tablespoons olive oil"),
            ("1 tablespoon vinegar", "a splash of vinegar", "salt to taste"),
        ),
        steps=(
            (
                "Wash and dry {0}, then put it in a large bowl.",
                "Fill a wide bowl with {0}.",
                "Tear {0} into the bowl.",
            ),
            ("Prepare {1}.", "Cut {1} into bite-size pieces where needed."),
            ("Arrange everything over the leaves.", "Toss gently together.", "Spread over the greens."),
            (
                "Whisk the oil and vinegar with a little salt and pour over.",
                "Dress with olive oil just before serving.",
            ),
            ("Sprinkle {2} on top.", "Finish with {2}."),
        ),
        counted=(1, 2),
    ),
    "soup": Base(
        groups=(
            (1, 1, _names("tomato puree, pumpkin puree, pea puree, potato puree")),
            (0, 3, _names("croutons, mushrooms, carrot, chickpeas, meatballs, bacon, shrimp, sweetcorn")),
            (1, 2, _names("sour cream, parsley, chives, pumpkin seeds, red chili, basil")),
        ),
        staples=(
            ("1 litre water", "4 cups stock", "800 ml stock"),
            ("1 clove of garlic, crushed", "a pinch of salt", "1 tablespoon olive oil"),
        ),
        steps=(
            (
                "Bring the liquid to a simmer and stir in {0}.",
                "Heat {0} in a large pot and thin it with the liquid.",
            ),
            (
                "Cook for {m} minutes, then season well.",
                "Simmer gently for {m} minutes.",
                "Let it bubble for {m} minutes and blend until smooth.",
            ),
            ("Cook {1} separately and add to the pot.", "Warm {1} through and spoon into the bowls."),
            ("Ladle into bowls.", "Pour into warm bowls."),
            ("Top with {2}.", "Serve with {2}.", "Garnish with {2} and serve at once."),
        ),
        counted=(1, 2),
    ),
    "pasta": Base(
        groups=(
            (1, 1, _names("tomato sauce, pesto, white sauce")),
            (
                1,
                3,
                _names(
                    "meatballs, shrimp, mushrooms, cherry tomatoes, broccoli, peas, bacon, black olives, "
                    "grilled chicken, spinach"
                ),
            ),
            (0, 2, _names("parmesan, basil, parsley, red chili")),
        ),
        staples=(
            ("200 g spaghetti", "250 g spaghetti", "8 oz spaghetti"),
            ("salt for the water", "1 clove of garlic", "1 tablespoon olive oil"),
        ),
        steps=(
            (
                "Boil the spaghetti in salted water for {m} minutes.",
                "Cook the spaghetti until al dente, about {m} minutes.",
            ),
            (
                "Meanwhile cook {1} in a pan.",
                "In a large pan, fry {1} until done.",
                "Prepare {1} on the side.",
            ),
            ("Warm {0} and toss with the spaghetti.", "Stir {0} through the drained spaghetti."),
            ("Pile {1} on top.", "Serve on a plate, crowned with {1}."),
            ("Finish with {2}.", "Scatter {2} over the plate."),
        ),
        counted=(1, 2),
    ),
    "burger": Base(
        groups=(
            (1, 1, _names("beef patty, crispy chicken, veggie patty")),
            (
                1,
                4,
                _names(
                    "lettuce, ripe tomato, cheddar, red onion, pickles, bacon, avocado, fried egg, pineapple"
                ),
            ),
            (0, 1, _names("ketchup, mustard, mayonnaise")),
            (0, 1, _names("sesame seeds")),
        ),
        staples=(
            ("1 soft bun", "1 round bun, split", "1 toasted bun"),
            ("oil for frying", "a pinch of salt"),
        ),
        steps=(
            (
                "Split the bun and toast the cut sides.",
                "Toast the bun in a dry pan.",
                "Warm the bun in the oven.",
            ),
            (
                "Fry the {0} for {m} minutes on each side.",
                "Grill the {0} over high heat until cooked through.",
            ),
            ("Spread {2} on the bun.", "Add plenty of {2}."),
            (
                "Stack {0} with {1}.",
                "Lay {0} on the lower half and pile on {1}.",
                "Build it up: {0}, then {1}.",
            ),
            ("Close with the top half.", "Put the lid on and serve right away."),
            ("The lid carries {3}.", "Brush the lid with water and sprinkle with {3}."),
        ),
        portion=0.45,
        counted=(0,),
    ),
    "sandwich": Base(
        groups=(
            (
                1,
                2,
                _names("ham, roast beef, grilled chicken, salmon, cheddar, boiled egg, bacon, mozzarella"),
            ),
            (1, 3, _names("lettuce, ripe tomato, cucumber, avocado, red onion, pickles, radish, spinach")),
            (0, 1, _names("mustard, mayonnaise, pesto")),
        ),
        staples=(("2 slices of bread", "2 thick slices of white bread", "2 slices of toast"),),
        steps=(
            ("Toast the bread lightly.", "Cut two slices of bread.", "Toast the bread on both sides."),
            ("Spread one slice with {2}.", "Coat the bread with {2}."),
            ("Layer {0} on the first slice.", "Start with {0}."),
            ("Follow with {1}.", "Add {1} on top."),
            ("Cover with the second slice and press gently.", "Close it, hold it with a pick and serve."),
        ),
        portion=0.45,
    ),
    "curry": Base(
        groups=(
            (1, 1, _names("red curry paste, green curry paste, yellow curry paste")),
            (
                1,
                4,
                _names(
                    "grilled chicken, shrimp, chickpeas, potatoes, carrot, peas, tofu, broccoli, red "
                    "pepper, spinach"
                ),
            ),
            (0, 1, _names("cilantro, red chili, lime, yogurt")),
        ),
        staples=(
            ("1 cup rice", "150 g jasmine rice", "1 cup basmati rice"),
            ("1 tin of coconut milk", "1 cup stock", "1 tablespoon oil"),
        ),
        steps=(
            (
                "Steam the rice for {m} minutes.",
                "Cook the rice until fluffy.",
                "Rinse the rice and boil it until soft.",
            ),
            ("Fry {0} in a little oil until fragrant.", "Heat {0} in a wok and loosen it with liquid."),
            ("Add {1} and simmer for {m} minutes.", "Stir in {1} and cook until tender."),
            ("Spoon it beside the rice.", "Serve next to a mound of rice."),
            ("Garnish with {2}.", "Finish with {2}."),
        ),
        portion=0.7,
        counted=(1, 2),
    ),
    "sushi": Base(
        groups=(
            (1, 1, _names("nori")),
            (1, 3, _names("salmon, tuna, avocado, cucumber, carrot, crab sticks, tofu, red pepper")),
            (0, 1, _names("sesame seeds, tobiko, chives")),
            (0, 2, _names("wasabi, pickled ginger, soy sauce")),
        ),
        staples=(
            ("2 cups short grain rice", "300 g short grain rice"),
            ("3 tablespoons rice vinegar", "2 tablespoons rice vinegar"),
        ),
        steps=(
            (
                "Cook the rice, season it with vinegar and let it cool.",
                "Prepare the seasoned rice and fan it cool.",
            ),
            ("Lay {0} on a mat and cover it with rice.", "Press the rice onto {0}."),
            ("Cut {1} into strips and put them in the middle.", "Place {1} along the centre."),
            ("Roll up tightly and slice.", "Roll, then cut with a wet knife."),
            ("Sprinkle {2} on the slices.", "Top the pieces with {2}."),
            ("Serve with {3}.", "Put {3} on the side."),
        ),
        portion=0.5,
    ),
    "cake": Base(
        groups=(
            (1, 1, _names("vanilla frosting, chocolate frosting, pink frosting, matcha frosting")),
            (1, 2, _names("strawberries, blueberries, raspberries, cherries, kiwi, orange slices")),
            (0, 1, _names("chocolate sauce, caramel sauce")),
            (
                0,
                1,
                _names(
                    "rainbow sprinkles, almonds, coconut flakes, mint leaves, chocolate chips, whipped cream"
                ),
            ),
        ),
        staples=(
            ("2 round sponge layers", "1 vanilla sponge, cut in two", "2 layers of sponge"),
            ("1 tablespoon sugar", "1 teaspoon vanilla extract"),
        ),
        steps=(
            ("Bake the sponge for {m} minutes and let it cool.", "Let the baked sponge cool on a rack."),
            (
                "Fill and cover the layers with {0}.",
                "Sandwich the layers with {0} and spread the rest all around.",
            ),
            ("Pour {2} over the top so that it runs down the sides.", "Let {2} drip from the edge."),
            ("Decorate with {1}.", "Arrange {1} on top.", "Crown it with {1}."),
            ("Add {3}.", "Finish with {3}."),
            ("Cut the first slice and serve.", "Chill for an hour before cutting."),
        ),
    ),
    "pancakes": Base(
        groups=(
            (1, 1, _names("maple syrup, chocolate sauce, caramel sauce")),
            (1, 2, _names("strawberries, blueberries, raspberries, banana, peach slices")),
            (0, 1, _names("butter, whipped cream, vanilla ice cream")),
            (0, 1, _names("powdered sugar, almonds, mint leaves, chocolate chips")),
        ),
        staples=(
            ("1 cup flour", "150 g flour", "1 1/2 cups flour"),
            ("1 cup milk", "200 ml milk", "1 1/4 cups milk"),
            ("1 teaspoon baking powder", "a pinch of salt", "1 tablespoon sugar"),
        ),
        steps=(
            ("Whisk flour and milk to a smooth batter.", "Mix the batter and let it rest for {m} minutes."),
            (
                "Fry ladlefuls until golden on both sides.",
                "Cook in a hot pan until bubbles appear, then flip.",
            ),
            ("Stack them high and pour {0} over.", "Pile them on a plate and drench with {0}."),
            ("Put {2} on top.", "Crown the stack with {2}."),
            ("Serve with {1}.", "Place {1} on and around the stack."),
            ("Finish with {3}.", "Dust or scatter {3} over the plate."),
        ),
        portion=0.9,
    ),
    "tacos": Base(
        groups=(
            (1, 1, _names("ground beef, grilled chicken, shrimp, black beans")),
            (
                1,
                3,
                _names(
                    "lettuce, cherry tomatoes, cheddar, avocado, sweetcorn, red onion, radish, red cabbage"
                ),
            ),
            (0, 2, _names("sour cream, cilantro, lime, red chili")),
        ),
        staples=(
            ("2 corn tortillas", "2 crisp corn shells", "2 small tortillas"),
            ("1 teaspoon cumin", "a pinch of salt", "1 tablespoon oil"),
        ),
        steps=(
            ("Warm the shells in the oven.", "Heat the tortillas in a dry pan and fold them."),
            ("Cook {0} with the spices for {m} minutes.", "Fry {0} over high heat."),
            ("Fill the shells with {0}.", "Spoon {0} into the shells."),
            ("Add {1}.", "Pile {1} on top."),
            ("Serve with {2}.", "Finish with {2}."),
        ),
        portion=0.6,
    ),
    "skillet": Base(
        groups=(
            (1, 1, _names("fried egg")),
            (
                1,
                3,
                _names(
                    "bacon, sausages, baked beans, mushrooms, cherry tomatoes, spinach, potatoes, red "
                    "pepper,"
                    "avocado, feta, chickpeas"
                ),
            ),
            (0, 1, _names("parsley, chives, red chili, cilantro")),
        ),
        staples=(("1 tablespoon oil", "a splash of oil"), ("salt", "a pinch of salt", "a little paprika")),
        steps=(
            ("Heat the oil in a heavy pan.", "Set an iron pan over medium heat with the oil."),
            ("Cook {1} for {m} minutes.", "Add {1} and fry until browned."),
            ("Make room and slide in {0}.", "Add {0} and cook until the white is set."),
            ("Season and scatter {2} over.", "Top with {2}."),
            ("Bring the pan to the table.", "Serve straight from the pan."),
        ),
        portion=0.75,
        counted=(0, 1, 2),
    ),
    "ramen": Base(
        groups=(
            (1, 1, _names("miso broth, soy broth, chili broth")),
            (
                2,
                4,
                _names(
                    "boiled egg, nori, roast beef, tofu, sweetcorn, mushrooms, broccoli, carrot, "
                    "shrimp, spinach,"
                    "narutomaki"
                ),
            ),
            (0, 1, _names("spring onion, sesame seeds, red chili, cilantro")),
        ),
        staples=(
            ("150 g wheat noodles", "1 nest of wheat noodles", "1 pack of wheat noodles"),
            ("1 clove of garlic", "1 teaspoon sesame oil", "1 knob of ginger"),
        ),
        steps=(
            ("Bring {0} to the boil.", "Heat {0} in a pot for {m} minutes."),
            ("Cook the noodles until springy and drain them.", "Boil the noodles for {n} minutes."),
            (
                "Put the noodles in a deep bowl and pour over the liquid.",
                "Divide the noodles and ladle the liquid over.",
            ),
            ("Arrange {1} on top.", "Add {1}, each in its own corner.", "Top with {1}."),
            ("Finish with {2}.", "Scatter {2} over the bowl."),
        ),
        portion=0.6,
        counted=(1, 2),
    ),
    "tart": Base(
        groups=(
            (1, 1, _names("custard, chocolate cream, lemon curd")),
            (
                1,
                3,
                _names(
                    "strawberries, blueberries, raspberries, kiwi, peach slices, orange slices, "
                    "cherries, banana, mango"
                ),
            ),
            (0, 1, _names("mint leaves, powdered sugar, almonds, coconut flakes")),
        ),
        staples=(
            ("1 shortcrust pastry case", "250 g sweet shortcrust pastry", "1 ready-made pastry case"),
            ("1 tablespoon sugar", "flour for rolling"),
        ),
        steps=(
            ("Line a fluted tin with the pastry.", "Roll out the pastry and press it into a fluted tin."),
            ("Bake blind at 180 C for {m} minutes.", "Bake the case for {m} minutes and let it cool."),
            ("Fill with {0}.", "Spread {0} in the case."),
            ("Arrange {1} in rings.", "Cover with {1}, working from the edge inwards."),
            ("Decorate with {2}.", "Finish with {2}."),
        ),
    ),
    "sundae": Base(
        groups=(
            (
                1,
                2,
                _names(
                    "vanilla ice cream, chocolate ice cream, strawberry ice cream, pistachio ice "
                    "cream, lemon sorbet"
                ),
            ),
            (0, 1, _names("chocolate sauce, caramel sauce")),
            (
                1,
                2,
                _names(
                    "rainbow sprinkles, almonds, strawberries, banana, wafer rolls, chocolate chips, "
                    "blueberries"
                ),
            ),
            (0, 2, _names("maraschino cherry, whipped cream, mint leaves")),
        ),
        staples=(("1 tall glass, chilled", "1 glass from the freezer"),),
        steps=(
            ("Chill a tall glass.", "Put a glass in the freezer for {m} minutes."),
            ("Fill it with scoops of {0}.", "Scoop {0} into the glass."),
            ("Pour {1} over.", "Drizzle with {1}."),
            ("Add {2}.", "Decorate with {2}."),
            ("Top with {3}.", "Crown with {3} and serve with a long spoon."),
        ),
        portion=0.6,
    ),
    "doughnuts": Base(
        groups=(
            (1, 1, _names("chocolate glaze, pink glaze, sugar glaze, blue glaze")),
            (
                1,
                2,
                _names(
                    "rainbow sprinkles, almonds, coconut flakes, chocolate chips, raspberries, blueberries"
                ),
            ),
            (0, 1, _names("caramel sauce, chocolate sauce, powdered sugar")),
        ),
        staples=(
            ("500 g yeast dough", "1 batch of sweet yeast dough"),
            ("oil for frying", "1 litre oil for frying"),
        ),
        steps=(
            (
                "Cut rings from the dough and let them rise for {m} minutes.",
                "Shape the dough into rings and let rise.",
            ),
            ("Fry until golden on both sides.", "Fry in hot oil, turning once, and drain."),
            ("Dip the tops in {0}.", "Coat with {0}."),
            ("Before it sets, press on {1}.", "Decorate with {1}."),
            ("Finish with {2}.", "Top with {2}."),
        ),
        portion=0.9,
    ),
}

# how many there are of what is large or comes alone; of all else 5, 7 or 9 times the base's portion
COUNTS: dict[str, tuple[int, int, int]] = {
    "boiled egg": (2, 3, 4),
    "broccoli": (3, 4, 5),
    "bacon": (3, 4, 5),
    "beef patty": (1, 1, 2),
    "butter": (1, 1, 1),
    "cilantro": (3, 4, 5),
    "crispy chicken": (1, 1, 2),
    "fried egg": (1, 2, 3),
    "lime": (1, 2, 3),
    "maraschino cherry": (1, 1, 1),
    "narutomaki": (1, 2, 3),
    "nori": (1, 2, 3),
    "roast beef": (2, 3, 4),
    "sausages": (2, 3, 4),
    "veggie patty": (1, 1, 2),
    "wafer rolls": (1, 2, 3),
}

# what could not be told apart on one plate
CLASHES = tuple(
    frozenset(_names(pair))
    for pair in (
        "chocolate frosting, chocolate sauce",
        "chocolate frosting, chocolate chips",
        "chocolate glaze, chocolate sauce",
        "chocolate glaze, chocolate chips",
        "chocolate sauce, chocolate chips",
        "chocolate ice cream, chocolate sauce",
        "chocolate ice cream, chocolate chips",
        "caramel sauce, almonds",
        "vanilla frosting, coconut flakes",
        "vanilla frosting, whipped cream",
        "vanilla ice cream, whipped cream",
        "vanilla ice cream, lemon sorbet",
        "sugar glaze, coconut flakes",
        "sugar glaze, powdered sugar",
        "potato puree, sour cream",
        "white sauce, mozzarella",
        "boiled egg, mayonnaise",
        "mozzarella, mayonnaise",
        "salmon, ham",
        "orange slices, mango",
        "orange slices, peach slices",
        "peach slices, mango",
    )
)


def _short() -> dict[str, Base]:
    kept = _names("pizza, salad, soup, pasta, curry, cake, pancakes, tacos, skillet, ramen, tart, doughnuts")
    offered = _names(
        "tomato sauce, pesto, white sauce, tomato puree, pumpkin puree, pea puree, red curry paste,"
        "green curry paste, yellow curry paste, miso broth, chili broth, lettuce, spinach, mushrooms,"
        "black olives, shrimp, sweetcorn, cherry tomatoes, broccoli, carrot, boiled egg, meatballs, basil,"
        "bacon, potatoes, avocado, peas, sour cream, lime, ground beef, black beans, fried egg,"
        "vanilla frosting, chocolate frosting, pink frosting, strawberries, blueberries, kiwi, banana,"
        "maple syrup, chocolate sauce, custard, chocolate cream, pink glaze, blue glaze, chocolate glaze,"
        "rainbow sprinkles, coconut flakes, almonds, whipped cream, mint leaves"
    )

    def less(low: int, high: int, names: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
        left = tuple(name for name in names if name in offered)
        return low, min(high, len(left)), left

    return {
        name: dataclasses.replace(MENU[name], groups=tuple(less(*group) for group in MENU[name].groups))
        for name in kept
    }


MENUS: dict[str, dict[str, Base]] = {"long": MENU, "short": _short()}


def bases(menu: str) -> dict[str, Base]:
    """What a menu offers.

    Raises:
      UserError: there is no such menu.
    """
    if menu not in MENUS:
        raise UserError(f'config.data.menu: the kitchen has no menu "{menu}"; there are: {", ".join(MENUS)}')
    return MENUS[menu]


def ingredients(menu: str) -> tuple[str, ...]:
    """All ingredients on a menu, by name."""
    groups = [group for base in bases(menu).values() for group in base.groups]
    return tuple(sorted({name for _, _, names in groups for name in names}))


BASES: tuple[str, ...] = tuple(MENU)
INGREDIENTS: tuple[str, ...] = ingredients("long")

SURFACES = {  # (dark, light) colours of the table
    "wood": (
        ((92, 56, 34), (158, 106, 66)),
        ((168, 122, 78), (222, 182, 134)),
        ((190, 184, 174), (236, 232, 224)),
    ),
    "linen": (
        ((196, 182, 158), (238, 228, 208)),
        ((98, 124, 146), (152, 178, 196)),
        ((150, 166, 136), (196, 208, 180)),
    ),
    "marble": (((176, 176, 184), (246, 244, 242)), ((84, 104, 98), (132, 152, 144))),
    "slate": (((44, 48, 54), (86, 92, 100)), ((70, 62, 66), (116, 108, 110))),
    "gingham": (
        ((196, 62, 58), (250, 244, 236)),
        ((70, 112, 168), (246, 248, 250)),
        ((226, 176, 62), (254, 248, 230)),
    ),
    "plain": (
        ((78, 158, 152), (98, 178, 170)),
        ((232, 150, 120), (244, 172, 142)),
        ((150, 142, 196), (170, 162, 212)),
    ),
}
PLATES = (  # (body, accent)
    ((250, 248, 244), (70, 110, 170)),
    ((248, 240, 224), (196, 96, 62)),
    ((250, 250, 250), (210, 170, 80)),
    ((176, 206, 216), (250, 250, 246)),
    ((178, 196, 168), (98, 124, 90)),
    ((214, 132, 98), (246, 226, 202)),
    ((48, 66, 104), (226, 196, 120)),
    ((70, 72, 78), (160, 164, 170)),
    ((240, 206, 200), (196, 92, 104)),
)
RIMS = ("plain", "band", "double", "dots", "ticks", "scallop")
PROPS = ("nothing", "napkin", "cutlery", "crumbs")


@dataclasses.dataclass(frozen=True)
class Style:
    """How a dish is staged: none of it is told by the recipe. Lengths are fractions of half the picture."""

    seed: int  # places the pieces and picks the words
    surface: str
    tone: int  # index into SURFACES[surface]
    plate: int  # index into PLATES
    rim: str
    prop: str
    rotation: float  # radians, of the dish
    table_rotation: float  # radians
    tilt: float  # 0: the base's lowest camera, 1: its highest
    scale: float
    x: float
    y: float
    light: float  # radians: where the light comes from, in the picture
    warmth: float  # -1 cool .. 1 warm
    vignette: float  # 0 .. 1


@dataclasses.dataclass(frozen=True)
class Dish:
    """A dish. `ingredients` follow the order of the base's groups; `amounts` (0, 1, 2) go with them. What
    else could be on it is said by `menu`."""

    base: str
    ingredients: tuple[str, ...]
    amounts: tuple[int, ...]
    style: Style
    menu: str = dataclasses.field(default="long", repr=False)

    @property
    def groups(self) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
        """What its base takes (`Base.groups`), of its menu."""
        return MENUS[self.menu][self.base].groups

    def count(self, ingredient: str) -> int:
        """How many pieces (or spoonfuls, for what is not cut) there are: drawn and written."""
        level = self.amounts[self.ingredients.index(ingredient)]
        if ingredient in COUNTS:
            return COUNTS[ingredient][level]
        return max(2, round((5, 7, 9)[level] * MENU[self.base].portion))

    def of(self, group: int) -> tuple[str, ...]:
        """The ingredients from one group of the base."""
        return tuple(name for name in self.ingredients if name in MENU[self.base].groups[group][2])


def _style(r: Random) -> Style:
    surface = r.choice(tuple(SURFACES))
    return Style(
        seed=r.getrandbits(32),
        surface=surface,
        tone=r.randrange(len(SURFACES[surface])),
        plate=r.randrange(len(PLATES)),
        rim=r.choice(RIMS),
        prop=r.choice(PROPS),
        rotation=r.uniform(0, 2 * math.pi),
        table_rotation=r.choice((0, math.pi / 2)) + r.gauss(0, 0.2),
        tilt=r.random(),
        scale=r.uniform(0.92, 1.06),
        x=r.uniform(-0.06, 0.06),
        y=r.uniform(-0.05, 0.05),
        light=math.radians(r.choice((-1, 1)) * r.uniform(15, 75) - 90),
        warmth=r.uniform(-0.6, 1),
        vignette=r.random(),
    )


def _sample(r: Random, base: Base) -> tuple[str, ...]:
    """A plausible set: drawn anew until its size fits and nothing in it clashes."""
    while True:
        chosen = []
        for low, high, names in base.groups:
            chosen += sorted(r.sample(names, r.randint(low, high)), key=names.index)
        clash = any(pair.issubset(chosen) for pair in CLASHES)
        if MIN_INGREDIENTS <= len(chosen) <= MAX_INGREDIENTS and not clash:
            return tuple(chosen)


def partition(dish: Dish) -> str:
    """ "train" (80 %), "val" or "test", by a hash of (base, set of ingredients): no split shares one."""
    key = "|".join((dish.base, *sorted(dish.ingredients)))
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 10
    return "val" if bucket == 8 else "test" if bucket == 9 else "train"


def dish(seed: int, index: int, split: str | None = None, menu: str = "long") -> Dish:
    """The dish of (seed, index) on a menu; with `split`, one of that partition.

    Raises:
      UserError: a split or a menu that does not exist.
    """
    if split not in (None, *SPLITS):
        raise UserError(f'the kitchen has no split "{split}"; there are: {", ".join(SPLITS)}')
    offered = bases(menu)
    r = Random(f"{seed}/{index}/{split or ''}")
    style, base = _style(r), r.choice(tuple(offered))
    while True:
        chosen = _sample(r, offered[base])
        made = Dish(base, chosen, tuple(r.randrange(3) for _ in chosen), style, menu)
        if split is None or partition(made) == split:
            return made


def with_(dish: Dish, ingredient: str, amount: int = 1) -> Dish:
    """The same dish with `ingredient` too; where the base takes only one of a kind, it replaces it.

    Raises:
      UserError: an ingredient that does not go on this base, or one too many.
    """
    groups = dish.groups
    group = next((i for i, (_, _, names) in enumerate(groups) if ingredient in names), None)
    if group is None:
        offers = ", ".join(sorted(name for _, _, names in groups for name in names))
        raise UserError(f'{dish.base}: "{ingredient}" does not go with it; there are: {offers}')
    amounts = dict(zip(dish.ingredients, dish.amounts, strict=True))
    if groups[group][1] == 1:
        amounts = {name: a for name, a in amounts.items() if name not in groups[group][2]}
    amounts[ingredient] = amount
    if len(amounts) > MAX_INGREDIENTS:
        raise UserError(f"{dish.base}: it already has {MAX_INGREDIENTS} ingredients; take one away first")
    return _ordered(dish, amounts)


def without(dish: Dish, ingredient: str) -> Dish:
    """The same dish without `ingredient`; everything else stays where it is.

    Raises:
      UserError: an ingredient that is not there, or that the base cannot be without.
    """
    if ingredient not in dish.ingredients:
        raise UserError(f'{dish.base}: it has no "{ingredient}"; it has: {", ".join(dish.ingredients)}')
    amounts = dict(zip(dish.ingredients, dish.amounts, strict=True))
    del amounts[ingredient]
    for low, _, names in dish.groups:
        if ingredient in names and sum(name in names for name in amounts) < low:
            raise UserError(f"{dish.base}: it needs at least {low} of: {', '.join(names)}")
    if len(amounts) < MIN_INGREDIENTS:
        raise UserError(f"{dish.base}: a dish keeps at least {MIN_INGREDIENTS} ingredients")
    return _ordered(dish, amounts)


def instead(dish: Dish, ingredient: str, other: str) -> Dish:
    """The same dish with `other` in the place of `ingredient`, one of a kind.

    Raises:
      UserError: the dish has not the one, or has the other, or they are not of a kind.
    """
    if ingredient not in dish.ingredients or other in dish.ingredients:
        raise UserError(
            f'{dish.base}: can\'t take "{other}" for "{ingredient}" in: {", ".join(dish.ingredients)}'
        )
    if not any({ingredient, other} <= set(names) for _, _, names in dish.groups):
        raise UserError(f'{dish.base}: "{other}" does not take the place of "{ingredient}"')
    amounts = dict(zip(dish.ingredients, dish.amounts, strict=True))
    amounts[other] = amounts.pop(ingredient)
    return _ordered(dish, amounts)


def _ordered(dish: Dish, amounts: dict[str, int]) -> Dish:
    order = [name for _, _, names in dish.groups for name in names]
    names = tuple(sorted(amounts, key=order.index))
    return dataclasses.replace(dish, ingredients=names, amounts=tuple(amounts[name] for name in names))
