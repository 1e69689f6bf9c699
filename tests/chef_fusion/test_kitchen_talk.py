"""What is said in the kitchen: changes of dishes, conversations, and how they become training examples."""

import dataclasses
from random import Random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from chef_fusion import kitchen, kitchen_scores, kitchen_sets, tasks, tokenization
from chef_fusion.data import Texts, recipe_dataset
from chef_fusion.kitchen import talk
from chef_fusion.tokenization import LanguageTokenizer
from configs.chef_fusion import sources
from launch import prepare
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen

DISHES = 200


def data(source="kitchen_talk", num=64, **fields):
    c = sources.recipes("", source, tiny_kitchen.SIZE)
    c.num_records = num
    c.update(fields)
    return c


@pytest.mark.parametrize("menu", ["long", "short"])
def test_a_change_changes_one_thing(menu):
    kinds = set()
    for i in range(DISHES):
        dish = kitchen.dish(0, i, "train", menu)
        change = talk.change(dish, Random(i), lambda d: kitchen.partition(d) == "train")
        if change is None:
            continue
        before, after = set(dish.ingredients), set(change.dish.ingredients)
        assert before - after == {change.gone} - {""} and after - before == {change.come} - {""}
        assert (change.dish.base, change.dish.style) == (dish.base, dish.style)
        assert kitchen.partition(change.dish) == "train"
        assert change.dish.menu == menu and after <= set(kitchen.ingredients(menu))
        assert kitchen.read(change.said)[1] == {change.gone, change.come} - {""}
        for name in before & after:  # what stays is as much as it was
            assert change.dish.count(name) == dish.count(name)
        kinds.add((bool(change.gone), bool(change.come)))
    assert kinds == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize("menu", ["long", "short"])
def test_a_changed_recipe_keeps_its_words(menu):
    """All but what was changed: who leaves out an ingredient keeps the other lines, measures and remarks."""
    seen = 0
    for i in range(DISHES):
        dish = kitchen.dish(0, i, menu=menu)
        change = talk.change(dish, Random(i))
        if change is None:
            continue
        before, after = (
            [line["text"] for line in kitchen.recipe(made)["ingredients"]] for made in (dish, change.dish)
        )
        named = {change.gone, change.come}
        kept = [[line for line in lines if not named & kitchen.read(line)[1]] for lines in (before, after)]
        assert kept[0] == kept[1]
        assert len(before) - len(kept[0]) == bool(change.gone)
        assert len(after) - len(kept[1]) == bool(change.come)
        seen += 1
    assert seen > DISHES // 2


def test_what_is_taught_most_is_asked_most():
    dishes = [kitchen.dish(0, i, menu="short") for i in range(DISHES)]
    omitted = {
        kinds: sum(
            bool(made and made.gone and not made.come)
            for made in (talk.change(dish, Random(i), kinds=kinds) for i, dish in enumerate(dishes))
        )
        for kinds in (("omit", "swap", "add"), talk.TAUGHT)
    }
    assert omitted[talk.TAUGHT] > 1.2 * omitted["omit", "swap", "add"]


def test_one_in_the_place_of_another():
    dish = kitchen.Dish("pizza", ("pesto", "ham"), (0, 2), kitchen.dish(0, 0).style)
    changed = kitchen.instead(dish, "ham", "mushrooms")
    assert changed.ingredients == ("pesto", "mushrooms") and changed.amounts == (0, 2)
    with pytest.raises(UserError, match="does not take the place"):
        kitchen.instead(dish, "ham", "basil")
    with pytest.raises(UserError, match=r'can\'t take "pesto" for "ham"'):
        kitchen.instead(dish, "ham", "pesto")


@pytest.mark.parametrize("menu", ["long", "short"])
def test_questions_have_true_answers(menu):
    for i in range(DISHES):
        dish = kitchen.dish(0, i, menu=menu)
        said, answer = talk.question(dish, Random(i))
        if answer in ("yes.", "no."):
            (asked,) = kitchen.read(said)[1]
            assert asked in kitchen.ingredients(menu)
            assert (asked in dish.ingredients) == (answer == "yes.")
        elif "ingredients" in said or "in it" in said:
            assert kitchen.read(answer)[1] <= set(dish.ingredients)
        else:
            assert kitchen.read(answer)[0] == dish.base


@pytest.mark.parametrize("menu", ["short", "long"])
def test_a_plan_lists_what_each_wish_leaves(menu):
    lengths = set()
    for i in range(DISHES):
        dish = kitchen.dish(0, i, menu=menu)
        (asked, first), *later = talk.plan(dish, Random(i), lambda made: kitchen.partition(made) == "train")
        assert kitchen.read(asked) == kitchen.read(first) == (dish.base, frozenset(dish.ingredients))
        had = kitchen.read(first)[1]
        for said, answer in later:
            base, has = kitchen.read(answer)
            assert base == dish.base and len(had - has) <= 1 and len(has - had) <= 1
            assert had ^ has == kitchen.read(said)[1]  # what is named, and nothing else, changed
            had = has
        lengths.add(len(later))
    assert 4 in lengths


def test_the_picture_is_of_what_was_said_last():
    found = kitchen_sets.open_recipes(data(num=DISHES), "train")
    changed = 0
    for i in range(DISHES):
        dish, text = found.dish(i), found.text(i)
        assert kitchen.read(found.target_text(i, "visible"))[1] == set(dish.ingredients)
        if found.pictured(i):
            assert kitchen.read(text[text.rindex("This is food title") :])[1] == set(dish.ingredients)
            assert kitchen.partition(dish) == "train"
        assert np.array_equal(found[i]["image"], kitchen.draw(dish, tiny_kitchen.SIZE))
        changed += text.count("Q: ") == 2
    assert changed > DISHES // 24


@pytest.mark.parametrize(
    "chef",
    ["true", "stubborn", "without pictures", "without second pictures", "without changes in pictures"],
)
def test_conversations_are_scored_as_they_went(chef, monkeypatch):
    """Scripted chefs, and a judge that knows each picture."""
    held_out = kitchen_sets.open_recipes(data("recipes_kitchen", 8 * DISHES, menu="short"), "val")
    cases = kitchen_scores.script(held_out, 64)
    shown = {}

    def paint(dish):
        image = kitchen.picture(dish, tiny_kitchen.SIZE)
        shown[image.tobytes()] = dish.base, frozenset(dish.ingredients)
        return image

    def reply_all(_, talks, key, **options):
        answers = []
        for said in talks:
            dish, _, changed = next(case for case in cases if case[1] == said[0]["content"])
            second = len(said) > 1
            assert not second or said[2]["content"] == changed.said
            told = changed.dish if second and chef != "stubborn" else dish
            content = [f"The {told.base}: {', '.join(told.ingredients)}"]
            if chef != "without pictures" and not (second and "second" in chef):
                content.append(paint(dish if "changes" in chef else told))
            answers.append({"role": "assistant", "content": content})
        return answers

    for _, _, changed in cases:
        paint(changed.dish)

    def by_itself(chef, states, key, *, embeddings, **settings):
        """A painter that does as it is told every other time."""
        asked = [kitchen_sets.recipe_of(c.dish) for _, _, c in cases]
        assert embeddings == [kitchen_sets.target_text(recipe, "visible") for recipe in asked]
        assert settings == how.paint()
        return [paint(c.dish if i % 2 else dish) for i, (dish, _, c) in enumerate(cases)]

    how = tasks.Settings(cfg_scale=2.0)
    monkeypatch.setattr(kitchen_scores.tasks, "reply_all", reply_all)
    monkeypatch.setattr(kitchen_scores.generate, "text_states", lambda chef, texts: texts)
    monkeypatch.setattr(kitchen_scores.generate, "paint", by_itself)
    found = kitchen_scores.dialogues(
        SimpleNamespace(sd="a painter" if chef == "true" else None),
        held_out,
        jax.random.key(0),
        how,
        samples=64,
        judge=lambda images: (
            [shown[i.tobytes()][0] for i in images],
            [shown[i.tobytes()][1] for i in images],
        ),
    )
    scores = {name: result["value"] for name, result in found.items()}
    right = scores["dialogue_recipe"], scores["dialogue_picture"], scores["dialogue_both"]
    assert right == {
        "true": (1, 1, 1),
        "stubborn": (0, 0, 0),
        "without pictures": (1, 0, 0),
        "without second pictures": (1, 0, 0),
    }.get(chef, (1, 0, 0))
    assert scores["dialogue_first"] == scores["true_dialogue_picture"] == 1
    assert scores["dialogue_unchanged"] == (chef == "stubborn")
    assert scores["dialogue_pictured"] == (chef in ("true", "stubborn", "without changes in pictures"))
    assert scores["unchanged_dialogue_recipe"] == scores["unchanged_dialogue_both"] == 0
    assert scores["random_dialogue_recipe"] < 0.2 and scores["random_dialogue_picture"] < 0.2
    assert scores.get("target_dialogue_picture") == (len(cases) // 2 / len(cases) if chef == "true" else None)
    kinds = [found[f"{kind}_dialogue_recipe"] for kind in ("omissions", "swaps", "additions")]
    assert sum(kind["samples"] for kind in kinds) == len(cases)
    assert all(kind["value"] == right[0] for kind in kinds)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder, _ = tiny_kitchen.tokenizers(tmp_path_factory.mktemp("tokenizers"))
    return LanguageTokenizer.load(folder, tiny_kitchen.VOCABULARY, 3)


def test_what_comes_after_the_words(language):
    found = kitchen_sets.open_recipes(data(), "train")
    batch = Texts(found, language, None, max_tokens=400)({"label": np.arange(16)})
    wanted = [tiny_kitchen.VOCABULARY if found.pictured(i) else language.newline for i in range(16)]
    assert batch["after"].tolist() == wanted
    assert language.text([language.newline]) == "\n"


def test_length_buckets(language):
    """A batch is of one bucket and no longer than that; an epoch still has every recipe once."""
    c, made = data(num=64, max_eval_records=8), []

    def texts(recipes, split):
        made.append(Texts(recipes, language, None, max_tokens=400, buckets=(120, 220)))
        return made[-1]

    found = kitchen_sets.open_recipes(c, "train")
    dataset = recipe_dataset(lambda split: found, c, texts)
    stream = iter(dataset("train", 4, 0, 0, 1))
    seen, widths = [], set()
    for _ in range(64 // 4):
        batch = next(stream)
        width = batch["tokens"].shape[1]
        widths.add(width)
        ends = [tokens[length - 3] for tokens, length in zip(batch["tokens"], batch["length"], strict=True)]
        assert ends == [tiny_kitchen.VOCABULARY] * 4  # nothing was cut off
        lower = {120: 0, 220: 120, 400: 220}[width]
        assert (batch["length"] > lower).all() and (batch["length"] <= width).all()
        seen += batch["recipe"].tolist()
    assert widths == {120, 220, 400}
    sizes = [len(group) for group in made[-1].alike]
    if not any(size % 4 for size in sizes):
        assert sorted(seen) == list(range(64))
    assert len(set(seen)) > 50
    assert next(iter(dataset("eval", 4, 0, 0, 1)))["tokens"].shape == (4, 400)
    # two shards take their batches from the same buckets
    shards = [iter(dataset("train", 2, 0, i, 2)) for i in range(2)]
    for _ in range(10):
        one, other = (next(shard) for shard in shards)
        assert one["tokens"].shape == other["tokens"].shape
        assert not set(one["recipe"]) & set(other["recipe"])
    # also where all that one of them has drawn stands in for bad photos
    edges, of_short, of_long = made[-1]._edges, *(made[-1].alike[b][0] for b in (0, 2))
    rows = {"label": np.array([of_long, of_long]), "bad": np.array([3, 1])}
    rows["bad_index"] = (np.array([of_short, of_short]) + rows["bad"] - 1) % len(found)
    assert made[-1](rows)["tokens"].shape == (2, edges[0])


def test_a_tokenizer_of_ones_own(tmp_path, monkeypatch):
    out = str(tmp_path / "words")
    argv = ["prepare", "--config=configs/chef_fusion/tokenizer.py:kind=opt", f"--out={out}"]
    argv += ["--config.data.source=kitchen_texts", "--config.data.num_records=64", "--config.vocab_size=400"]
    monkeypatch.setattr("sys.argv", argv)
    assert prepare.main(argv) == 0
    made = tokenization.load(out)
    text = kitchen_sets.open_texts(data("kitchen_texts"), "train")[0]
    assert len(made) == 400 and made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    assert prepare.main(argv) == 0  # again: replaced whole
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds more than a tokenizer"):
        prepare.main([*argv[:2], *argv[3:], f"--out={tmp_path / 'mine'}"])
    assert (tmp_path / "mine/notes.txt").read_text() == "keep me"


def test_a_tokenizer_never_takes_the_place_of_weights(tmp_path, monkeypatch):
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("x")
    argv = ["prepare", "--config=configs/chef_fusion/tokenizer.py:kind=opt", f"--out={tmp_path}"]
    argv += ["--config.data.source=kitchen_texts", "--config.vocab_size=400"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(UserError, match="holds more than a tokenizer"):
        prepare.main(argv)
    assert (tmp_path / "model.safetensors").exists()


def test_pictures_drawn_once(tmp_path, monkeypatch):
    out = str(tmp_path / "pictures")
    argv = ["prepare", "--config=configs/toy/pictures.py", f"--out={out}", "--config.data.menu=short"]
    argv += ["--config.data.num_records=32", "--config.data.image_size=16"]
    monkeypatch.setattr("sys.argv", argv)
    assert prepare.main(argv) == 0
    told = {"num": 32, "menu": "short", "image_size": 16}
    wishes = (12, 13, 28, 29)  # here a second wish is pictured, which was not drawn before
    for split in ("val", "train"):
        plain = kitchen_sets.open_recipes(data(**told), split)
        kept = kitchen_sets.open_recipes(data(**told, pictures=out), split)
        for i in (0, 5, *wishes):
            assert (kept[i]["image"] == plain[i]["image"]).all()
            assert (kept[i]["image"] == kitchen.draw(kept.dish(i), 16)).all()
    for i in wishes:
        assert plain.dish(i) != kitchen.dish(0, i, "train", "short") or plain.text(i).count("Q: ") == 1
    turns = [plain.text(i).count("Q: ") for i in range(32)]
    assert [max(turns[i::16]) for i in (0, 10, 11, 12, 13, 14)] == [0, 0, 1, 2, 2, 1]
    # they are read, not drawn again
    rows = np.load(f"{out}/train.images.npy", mmap_mode="r+")
    rows[3] = 7
    rows.flush()
    assert (kitchen_sets.open_recipes(data(**told, pictures=out), "train")[3]["image"] == 7).all()
    with pytest.raises(UserError, match="are of other data .menu, first of train differ"):
        kitchen_sets.open_recipes(data(**told | {"menu": "long"}, pictures=out), "train")
    with pytest.raises(UserError, match="are of other data .size"):
        kitchen_sets.open_recipes(data(**told | {"image_size": 32}, pictures=out), "train")
    with pytest.raises(UserError, match="holds 32 pictures of the split train, not 33"):
        kitchen_sets.open_recipes(data(**told | {"num": 33}, pictures=out), "train")
    assert prepare.main(argv) == 0  # the damaged file is drawn anew
    assert (np.load(f"{out}/train.images.npy")[3] != 7).any()
    more = [*argv[:4], "--config.data.num_records=40", argv[-1]]
    monkeypatch.setattr("sys.argv", more)
    assert prepare.main(more) == 0
    assert len(np.load(f"{out}/train.images.npy")) == 40


def test_what_was_painted_is_of_the_dish_but_may_be_wrong():
    dish = kitchen.dish(0, 3, "train")
    notes = [talk.painted(dish, Random(i)) for i in range(200)]
    shown = [note.removeprefix(f"{dish.base}: ").split(", ") for note in notes]
    on_base = {name for _, _, names in dish.groups for name in names}
    assert all(set(names) <= on_base and len(names) == len(set(names)) for names in shown)
    right = np.mean([len(set(names) & set(dish.ingredients)) / len(dish.ingredients) for names in shown])
    assert 0.6 < right < 0.9
    trained = set()
    for i in range(200):
        told = talk.painted(dish, Random(i), lambda d: trained.add(d) or kitchen.partition(d) == "train")
        names = told.removeprefix(f"{dish.base}: ").split(", ")
        shown = dataclasses.replace(dish, ingredients=tuple(names), amounts=(1,) * len(names))
        assert kitchen.partition(shown) == "train"
    assert any(kitchen.partition(d) != "train" for d in trained)
