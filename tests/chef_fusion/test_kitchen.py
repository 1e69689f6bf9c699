"""The toy kitchen: what the recipe says is what is drawn, the same everywhere."""

import hashlib
import pickle
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from chef_fusion.kitchen import (
    BASES,
    INGREDIENTS,
    SPLITS,
    KitchenSource,
    bases,
    dish,
    draw,
    ingredients,
    partition,
    read,
    recipe,
    with_,
    without,
)
from chef_fusion.kitchen.menu import CLASHES, MENU, MENUS
from chef_fusion.kitchen.words import UNITS
from rcg.errors import UserError

DIGEST = """
import hashlib
from chef_fusion.kitchen import dish, draw, recipe
h = hashlib.sha256()
for i in range(24):
    made = dish(5, i)
    h.update(repr(made).encode() + repr(recipe(made)).encode() + draw(made, 48).tobytes())
print(h.hexdigest())
"""


def text_of(record, *fields):
    lines = [line["text"] for field in fields for line in record[field]]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def dishes():
    return [dish(3, i) for i in range(3000)]


@pytest.fixture(scope="module")
def short():
    return [dish(3, i, None, "short") for i in range(3000)]


def test_same_in_every_process():
    digests = {
        subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    h = hashlib.sha256()
    for i in range(23, -1, -1):  # in another order: no dish depends on those before it
        draw(dish(5, i), 48)
    for i in range(24):
        made = dish(5, i)
        h.update(repr(made).encode() + repr(recipe(made)).encode() + draw(made, 48).tobytes())
    assert digests == {h.hexdigest() + "\n"}


def test_recipe_names_exactly_what_is_there(dishes):
    for made in dishes:
        record = recipe(made)
        assert read(record["title"])[0] == made.base
        title = read(record["title"])[1]
        assert title and title <= set(made.ingredients), record["title"]
        for field in ("ingredients", "instructions"):
            text = text_of(record, field)
            assert read(text)[1] == set(made.ingredients), text
        text = text_of(record, "ingredients", "instructions").lower()
        assert all(name in text for name in made.ingredients)


def test_recipe_is_a_recipe1m_record(dishes):
    records = [recipe(made) for made in dishes]
    assert set(records[0]) == {"id", "title", "ingredients", "instructions", "url", "partition"}
    assert len({record["id"] for record in records}) == len(records)
    for made, record in zip(dishes, records, strict=True):
        assert len(record["id"]) == 10 and int(record["id"], 16) >= 0
        assert record["partition"] == partition(made)
        assert 2 <= len(record["instructions"]) and len(made.ingredients) <= len(record["ingredients"])
        assert "{" not in text_of(record, "ingredients", "instructions") + record["title"]


def test_numbers_in_the_recipe_are_the_pieces(dishes):
    made = next(d for d in dishes if d.base == "skillet" and d.count("fried egg") == 3)
    assert "3 fried eggs" in text_of(recipe(made), "ingredients")
    yolks = {}
    for amount in (0, 2):
        egg = with_(made, "fried egg", amount)
        for name in egg.of(1) + egg.of(2):
            egg = without(egg, name) if len(egg.ingredients) > 2 else egg
        yolk = np.abs(draw(egg, 256).astype(int) - (250, 178, 34)).max(-1) < 40
        yolks[amount] = yolk.sum()
    assert yolks[2] > 1.7 * yolks[0] > 0


def test_every_unit_is_of_an_ingredient():
    assert set(UNITS) <= set(ingredients("long"))


def test_read_understands_other_words():
    assert read("Blueberry tart with kiwi")[1] == {"blueberries", "kiwi"}
    assert read("a maraschino cherry and cherry tomatoes")[1] == {"maraschino cherry", "cherry tomatoes"}
    assert read("chickpeas, graham, peach") == (None, frozenset({"chickpeas"}))
    assert read("two veggie patties on a BURGER, no pizza") == ("burger", frozenset({"veggie patty"}))
    for name in INGREDIENTS:
        assert read(name)[1] == {name}


@pytest.mark.parametrize("menu", MENUS)
def test_plausible_and_varied(menu, request):
    dishes = request.getfixturevalue({"long": "dishes"}.get(menu, menu))
    kinds = Counter(made.base for made in dishes)
    assert set(kinds) == set(bases(menu)) and len(kinds) >= 12 and min(kinds.values()) > 100
    used = Counter(name for made in dishes for name in made.ingredients)
    assert set(used) == set(ingredients(menu)) and len(used) >= 40 and min(used.values()) >= 8
    assert {len(made.ingredients) for made in dishes} == set(range(2, 8 if menu == "long" else 7))
    for made in dishes:
        assert not any(pair.issubset(made.ingredients) for pair in CLASHES)
        for low, high, names in bases(menu)[made.base].groups:
            assert low <= sum(name in names for name in made.ingredients) <= high
    assert len({recipe(made)["title"] for made in dishes}) > 0.6 * len(dishes)


def test_the_short_menu_is_of_the_long_one(short):
    assert set(bases("short")) < set(BASES) and set(ingredients("short")) < set(INGREDIENTS)
    for made in short:
        for _, _, names in made.groups:
            assert set(names) <= set(ingredients("short"))
    for name, base in bases("short").items():
        assert base.steps == MENU[name].steps and all(low <= high for low, high, _ in base.groups)
    source = KitchenSource(20, "val", 32, menu="short")
    assert source.label_names == tuple(bases("short")) and source.dish(3).menu == "short"
    with pytest.raises(UserError, match='no menu "lunch"; there are: long, short'):
        KitchenSource(20, "val", 32, menu="lunch")
    with pytest.raises(UserError, match="does not go with it"):
        with_(next(made for made in short if made.base == "pizza"), "pepperoni")


@pytest.mark.parametrize("menu", MENUS)
def test_partitions_share_no_combination(menu, request):
    dishes = request.getfixturevalue({"long": "dishes"}.get(menu, menu))
    seen = {split: set() for split in SPLITS}
    for made in dishes:
        seen[partition(made)].add((made.base, frozenset(made.ingredients)))
    for split in SPLITS:
        drawn = [dish(0, i, split, menu) for i in range(300)]
        assert all(partition(made) == split for made in drawn)
        seen[split] |= {(made.base, frozenset(made.ingredients)) for made in drawn}
        assert {made.base for made in drawn} == set(bases(menu))
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])
    shares = Counter(partition(made) for made in dishes)
    assert 0.75 < shares["train"] / len(dishes) < 0.85


def test_each_ingredient_shows():
    """Taking any one away changes at least 15 of the 4096 pixels clearly, where nothing else moves."""
    changes, i = {}, 0
    while i < 420:
        made = dish(11, i)
        i += 1
        before = None
        for name in made.ingredients:
            if (made.base, name) in changes:
                continue
            try:
                after = without(made, name)
            except UserError:
                others = next(g[2] for g in MENU[made.base].groups if name in g[2])
                other = next((o for o in others if o not in made.ingredients), None)
                if other is None or name in (after := with_(made, other)).ingredients:
                    continue
            before = draw(made, 64).astype(int) if before is None else before
            change = np.abs(before - draw(after, 64)).max(-1) > 24
            changes[made.base, name] = int(change.sum())
    weakest = sorted(changes.items(), key=lambda item: item[1])[:4]
    print(f"{len(changes)} of base x ingredient; fewest changed pixels: {weakest}")
    assert len(changes) > 150 and weakest[0][1] >= 15


def test_editing_a_dish():
    made = next(d for d in (dish(0, i) for i in range(500)) if d.base == "pizza" and len(d.ingredients) == 4)
    absent = next(name for name in MENU["pizza"].groups[2][2] if name not in made.ingredients)
    more = with_(made, absent)
    assert set(more.ingredients) == {*made.ingredients, absent} and more.style == made.style
    assert without(more, absent) == made
    assert (draw(more, 64) != draw(made, 64)).any()
    other = next(sauce for sauce in MENU["pizza"].groups[0][2] if sauce not in made.ingredients)
    swapped = with_(made, other)
    assert other in swapped.ingredients and made.of(0)[0] not in swapped.ingredients
    for wrong in (
        lambda: with_(made, "vanilla ice cream"),
        lambda: without(made, absent),
        lambda: without(made, made.of(0)[0]),
        lambda: dish(0, 0, "training"),
    ):
        with pytest.raises(UserError):
            wrong()


@pytest.mark.parametrize("size", [16, 32, 100, 512])
def test_sizes(size):
    """Every size shows the same dish: shrunk, they agree."""
    for i in range(3):
        image = draw(dish(1, i), size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert image.std() > 15
        if size == 512:
            small = image.reshape(32, 16, 32, 16, 3).mean((1, 3))
            assert np.abs(small - draw(dish(1, i), 32)).mean() < 14
    with pytest.raises(ValueError, match="16 to 1024"):
        draw(dish(1, 0), 8)


def test_every_base_differs_in_the_mean():
    """Nearest centroid on 16-pixel pictures beats chance by far: the label can be seen."""

    def arrays(num, split):
        source = KitchenSource(num, split, 16)
        records = [source[i] for i in range(num)]
        images = np.stack([record["image"].ravel() for record in records]).astype(float)
        return images, np.array([record["label"] for record in records])

    (x, y), (x_test, y_test) = arrays(400, "train"), arrays(120, "test")
    centres = np.stack([x[y == label].mean(0) for label in range(len(BASES))])
    accuracy = (((x_test[:, None] - centres) ** 2).sum(-1).argmin(1) == y_test).mean()
    print(f"nearest centroid: {accuracy:.2f}, chance {1 / len(BASES):.2f}")
    assert accuracy > 0.25


def test_source():
    source = pickle.loads(pickle.dumps(KitchenSource(50, "val", 32, seed=4)))
    assert len(source) == 50 and source.label_names == BASES
    record = source[7]
    assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
    assert BASES[record["label"]] == source.dish(7).base == read(source.recipe(7)["title"])[0]
    assert source.recipe(7)["partition"] == "val"
    assert "7" in source.name(7) and source.name(7) != source.name(8)
    assert (KitchenSource(50, "val", 32, seed=5)[7]["image"] != record["image"]).any()
    with pytest.raises(IndexError):
        source[50]
    with pytest.raises(UserError, match="train, val, test"):
        KitchenSource(5, "validation")
    with pytest.raises(UserError):
        KitchenSource(0)


def test_fast():
    draw(dish(0, 0), 64)
    start = time.process_time()
    KitchenSource(10**9)
    made = [dish(0, i) for i in range(60)]
    assert time.process_time() - start < 0.5
    start = time.process_time()
    for one in made:
        draw(one, 64)
    rate = len(made) / (time.process_time() - start)
    print(f"{rate:.0f} dishes/s at 64 px")
    assert rate > 40  # 150 and more on an idle core
