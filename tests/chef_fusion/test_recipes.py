"""Recipes as text: the published cleaning, captions, and back."""

import itertools
import json

import numpy as np
import pytest

from chef_fusion import kitchen, recipes
from chef_fusion.recipes import Recipe
from chef_fusion.tokenization import example


def test_cleaning_and_caption_are_the_published_ones(shared):
    for case in json.loads((shared / "golden/chef_fusion/recipe_text.json").read_text()):
        raw = Recipe(case["title"], tuple(case["ingredients_raw"]), tuple(case["instructions_raw"]))
        cleaned = recipes.clean(raw)
        assert list(cleaned.ingredients) == case["ingredients"]
        assert list(cleaned.instructions) == case["instructions"]
        assert recipes.caption(raw) == case["caption"]
        back = recipes.parse(case["caption"])
        assert back.title == case["title"] and list(back.ingredients) == case["ingredients"]
        assert list(back.instructions) == case["instructions"]


def test_examples_are_the_published_ones(golden):
    vectors = golden("chef_fusion/dataset_tokens")
    length = int(vectors["in/max_len"])
    for ids, tokens, caption_len in zip(
        vectors["in/caption_ids"], vectors["out/tokens"], vectors["out/caption_len"], strict=True
    ):
        words = ids[(ids >= 0) & (ids < 90)]
        row, used = example(words, length, 2, 1, 90, 8)
        np.testing.assert_array_equal(row, tokens)
        assert used == caption_len


def test_what_is_cut_off_still_parses():
    whole = recipes.caption(Recipe("Pie, it's good", ("2 apples", "1 cup sugar"), ("mix.", "bake it.")))
    for end in range(whole.index("[") + 1, len(whole)):
        found = recipes.parse(whole[:end])
        assert found is None or found.title == "Pie, it's good"
    assert recipes.parse(whole[: whole.index("bake") + 3]).instructions == ("mix.", "bak")
    for nonsense in (
        "",
        "hello",
        "This is food title:",
        "[" * 5000,
        "This is ingredient: This is instruction:",
    ):
        assert recipes.parse(nonsense) is None


@pytest.mark.parametrize(
    "line, name",
    [
        ("2 cups chopped onions, or more", "onions"),
        ("300 g bread dough", "bread dough"),
        ("a drizzle of olive oil", "olive oil"),
        ("1/2 cup tomato sauce, more if you like", "tomato sauce"),
        ("7 strips of green pepper", "green pepper"),
        ("Winter Melon: 300 g", "winter melon"),
        ("400g (15 oz) potatoes (firm/waxy)", "potatoes"),
        ("3 onions (medium size)", "onions"),
        ("apple", "apple"),
        ("an orange", "orange"),
        ("1 large egg", "egg"),
        ("", ""),
    ],
)
def test_ingredient_names(line, name):
    assert recipes.ingredient_name(line) == name


def test_names_of_the_kitchen_are_found():
    """In the kitchen's own lines the names are those of what is on the plate, up to the staples."""
    source = kitchen.KitchenSource(200)
    missed = total = 0
    for i in range(200):
        found = recipes.ingredient_names(Recipe.of(source.recipe(i)))
        wanted = recipes.ingredient_names(Recipe("x", (), (), detected=source.dish(i).ingredients))
        missed, total = missed + len(wanted - found), total + len(wanted)
    print(f"{missed} of {total} names missed")
    assert missed / total < 0.02


def test_visible_text_leaves_out_what_is_not_seen():
    recipe = Recipe(
        "Tomato Pizza", ("300 g bread dough", "1 tsp salt", "3 tomatoes", "2 slices of ham"), ("bake.",)
    )
    assert recipes.visible_text(recipe) == "Tomato Pizza: tomatoes, ham"
    assert recipes.visible_text(Recipe("Water", ("1 l water",), ())) == "Water"


def test_prompts_are_beginnings_of_captions():
    recipe = Recipe("Soup", ("1 leek (big)", "Salt & pepper"), ("Boil!",))
    whole = recipes.caption(recipe)
    for given in (("Soup",), ("Soup", recipe.ingredients), ("Soup", recipe.ingredients, recipe.instructions)):
        assert whole.startswith(recipes.prompt(*given))
    assert whole == recipes.prompt("Soup", recipe.ingredients, recipe.instructions)


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)))
def test_a_prompt_says_all_that_is_given_and_what_is_to_be_written(given):
    """Ingredients for a title and steps are no beginning of a caption, but can be asked for."""
    recipe = recipes.clean(Recipe("Soup", ("1 leek", "salt"), ("boil!",)))
    parts = recipe.title, recipe.ingredients, recipe.instructions
    told = [part if known else None for part, known in zip(parts, given, strict=True)]
    prompt = recipes.prompt(*told)
    marks = (recipes.TITLE, recipes.INGREDIENTS, recipes.INSTRUCTIONS)
    for mark, part, known in zip(marks, parts, given, strict=True):
        text = f"{mark} {part if isinstance(part, str) else list(part)}"
        assert (text in prompt) == known
    if sum(given) == 2:
        mark, part = next((m, p) for m, p, known in zip(marks, parts, given, strict=True) if not known)
        answer = f" {part if isinstance(part, str) else list(part)}"
        assert prompt.endswith(mark) and recipes.parse(prompt + answer) == recipe
    if not all(given):
        first = given.index(False)
        assert prompt.endswith(marks[first]) and not any(prompt.count(m) > 1 for m in marks)
        assert prompt == f"{recipes.prompt(*told, asking=False)} {marks[first]}".strip()


def test_words_around_a_caption_are_no_part_of_it():
    recipe = Recipe("Pie", ("2 apples",), ("bake it.", "eat."))
    caption = recipes.caption(recipe)
    assert recipes.parse(f"Sure. {caption}") == recipe
    assert recipes.parse(f"Sure: {caption} Enjoy! ['yes']") == recipe
    assert recipes.parse(f"{caption} {recipes.caption(Recipe('Cake', ('flour',), ('stir.',)))}") == recipe
    assert recipes.parse(caption.removeprefix(recipes.TITLE)) == recipe
    assert recipes.parse(f"{recipes.TITLE} {caption}") == recipe
    cut = caption[: caption.index(recipes.INSTRUCTIONS) + 7]
    assert recipes.parse(cut) == Recipe("Pie", ("2 apples",), ())


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"title": 3},
        {"title": " "},
        {"title": "x", "ingredients": "salt"},
        {"title": "x", "ingredients": [{}]},
    ],
)
def test_records_that_are_no_recipes(record):
    with pytest.raises(ValueError):
        Recipe.of(record)
