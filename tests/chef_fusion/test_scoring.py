"""The tables' figures of answers that are known: a perfect cook, painters who mix up their orders."""

from random import Random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from chef_fusion import kitchen_scores, kitchen_sets, metrics, recipes, scoring, tasks
from chef_fusion.kitchen import ingredients, picture
from chef_fusion.kitchen.talk import question
from rcg.data import decode
from tests.chef_fusion.test_kitchen_talk import data

COUNT = 9  # with a conversation among them, and more than there are without a picture


@pytest.fixture
def held_out():
    return kitchen_sets.open_recipes(data("kitchen_talk", num=32, image_size=16, menu="short"), "val")


@pytest.fixture
def numbers(held_out):
    there = [i for i in range(held_out.num_recipes) if held_out.pictured(i)]
    return [there[i * len(there) // COUNT] for i in range(COUNT)]


@pytest.fixture
def script(held_out, numbers, monkeypatch):
    """All is known by its number: a picture's CLIP vector, a text's states, what is painted of them."""
    photos = {i: decode(held_out[i]["image"]) for i in range(held_out.num_recipes)}
    of_photo = {np.asarray(photo).tobytes(): i for i, photo in photos.items()}
    captions = {i: recipes.caption(held_out.recipe(i)) for i in photos}
    asked = {i: held_out.text(i) for i in photos}
    of_text = {text: i for texts in (asked, captions) for i, text in texts.items()}
    of_text |= {held_out.target_text(i, "visible"): i for i in photos}
    swapped = dict(zip(numbers, numbers[1:] + numbers[:1], strict=True))

    def number(image):
        return of_photo[np.asarray(image).tobytes()]

    def clip_features(chef, images, batch_size=32):
        rows = np.eye(len(photos))[[number(image) for image in images]]
        return rows, rows

    def write(chef, prompts, key, *, max_words, images=None):
        drafts = []
        for prompt in prompts:
            if images is None:
                text = captions[number(prompt[0])].removeprefix(recipes.TITLE)
                drafts.append(SimpleNamespace(text=text))
                continue
            i = of_text[prompt[0]]
            assert prompt[0] == (captions if images.bias > 0 else asked)[i]  # what is to be painted; decided
            comes = images.bias > 0 or chef.always or held_out.pictured(i)
            drafts.append(SimpleNamespace(states=np.full((int(comes), 1, 1), i)))
        return drafts

    def paint(chef, states, key, *, embeddings=None, **unused):
        if embeddings is None:  # the first order it takes for the second
            shown = [numbers[1] if i == numbers[0] else int(i) for i in np.ravel(states)]
            return np.stack([np.asarray(photos[i]) for i in shown])
        return np.stack([np.asarray(photos[swapped[i] if mixed else i]) for i, mixed in embeddings])

    def text_states(chef, texts):  # of whole recipes it paints the next dish
        return [(of_text[text], text in captions.values()) for text in texts]

    def paint_rcg(chef, states, key, **unused):
        return np.stack([np.asarray(photos[swapped.get(int(i), int(i))]) for i in np.ravel(states)])

    def judge(images):
        return zip(*(held_out.read(captions[number(image)]) for image in images), strict=True)

    monkeypatch.setattr(scoring, "clip_features", clip_features)
    monkeypatch.setattr(scoring, "shorten", lambda chef, text: text)
    for name, made in (("write", write), ("paint", paint), ("paint_rcg", paint_rcg)):
        monkeypatch.setattr(scoring.generate, name, made)
    monkeypatch.setattr(scoring.generate, "text_states", text_states)
    rdm = SimpleNamespace(variables={"w": np.zeros(5)})
    chef = SimpleNamespace(sd=True, rcg=SimpleNamespace(rdm=rdm), params={"w": np.zeros(3)}, always=False)
    return chef, lambda images: tuple(map(list, judge(images)))


class OneDamaged(kitchen_sets.KitchenTalk):
    def __getitem__(self, photo):
        return super().__getitem__(photo) if photo else {"image": b"no picture", "label": 0}


def test_every_figure_is_of_its_own_side(held_out, numbers, script):
    chef, judge = script
    photos = OneDamaged(held_out._kitchen)

    def score(chef):
        options = {"samples": COUNT, "painting": {}, "rcg": {}, "target_text": "visible", "judge": judge}
        return scoring.score(chef, held_out, photos, jax.random.key(0), **options)

    results = score(chef)
    found = {name: result["value"] for name, result in results.items()}
    assert found["i2t_sacrebleu"] == pytest.approx(100) and found["i2t_rouge2"] == 1
    assert found["i2t_ingredient_f1"] == found["i2t_base_accuracy"] == 1
    true = {i: held_out.read(recipes.caption(held_out.recipe(i))) for i in range(held_out.num_recipes)}
    kinds, names = zip(*(true[i] for i in numbers), strict=True)
    joints = [numbers[1], *numbers[1:]]
    swapped = numbers[1:] + numbers[:1]
    sides = {"t2i": joints, "target": numbers, "real": numbers, "sd": swapped, "rcg": swapped}
    sides["random"] = joints[1:] + joints[:1]
    for side, shown in sides.items():
        f1 = metrics.set_scores([true[i][1] for i in shown], names)["f1"]
        of_kind = np.mean([true[i][0] == kind for i, kind in zip(shown, kinds, strict=True)])
        assert found[f"{side}_picture_ingredient_f1"] == pytest.approx(f1)
        assert found[f"{side}_picture_base_accuracy"] == pytest.approx(of_kind)
        assert (f1 == 1) == (side in ("target", "real"))
    similar = {side: np.mean(np.equal(shown, numbers)) for side, shown in sides.items() if side != "real"}
    similar["random"] = np.mean(np.equal(np.roll(joints, 1), numbers))
    for side, share in similar.items():
        assert found[f"{side}_clip_similarity"] == pytest.approx(share)
    # the held-out photos are among those to be found, but for the first, which can't be read
    nearest = [i or 1 for i in numbers]  # of none the first
    f1 = metrics.set_scores([true[i][1] for i in nearest], names)["f1"]
    assert found["retrieval_ingredient_f1"] == pytest.approx(f1) and f1 > 0.8
    assert found["random_ingredient_f1"] == pytest.approx(
        metrics.set_scores(names[1:] + names[:1], names)["f1"]
    )
    trained = ["sd_trained_parameters", "t2i_trained_parameters", "rcg_trained_parameters"]
    assert [results[name] for name in trained] == [{"value": value} for value in (0, 3, 8)]
    assert results["t2i_images_per_second"]["samples"] == 8 and results["i2t_rouge2"]["samples"] == COUNT
    decided = [found[n] for n in ("picture_where_wanted", "picture_where_not", "decision_accuracy")]
    assert decided == [1, 0, 1]
    chef.always = True
    results = score(chef)
    found = {name: result["value"] for name, result in results.items()}
    assert results["picture_where_not"]["samples"] < COUNT  # both kinds of text count alike
    assert found["decision_accuracy"] == found["chance_decision_accuracy"] == 0.5
    all_pictured = kitchen_sets.KitchenRecipes(held_out._kitchen)
    found = scoring.decisions(chef, all_pictured, 1, jax.random.key(0))
    assert found["decision_accuracy"]["value"] == found["chance_decision_accuracy"]["value"] == 1


@pytest.mark.parametrize("wrong", [(), (0, 3), tuple(range(COUNT))])
def test_questions_about_photos(held_out, monkeypatch, wrong):
    """One who answers rightly of the dish that is shown, but says too much of some, and paints one."""
    dishes = [held_out.dish(i) for i in range(COUNT)]
    seen = {np.asarray(picture(dish, 16)).tobytes(): i for i, dish in enumerate(dishes)}
    asked = [question(dish, Random(f"question/{i}")) for i, dish in enumerate(dishes)]

    def of(shown, said):
        """The true answer to another dish's question."""
        number = [question for question, _ in asked].index(said)
        about = dishes[shown]
        if said.startswith("What") and "in it" not in said:
            return f"{about.base}."
        if said.startswith(("Is", "Does")):
            return "yes." if any(name in said for name in about.ingredients) else "no."
        return asked[number][1] if shown == number else f"{', '.join(about.ingredients)}."

    def reply_all(chef, talks, key, *, task, settings):
        assert task == "it2t"
        answers = []
        for (turn,) in talks:
            photo, said = turn["content"]
            shown = seen[np.asarray(photo).tobytes()]
            more = next(name for name in ingredients("short") if name not in dishes[shown].ingredients)
            answers.append({"content": [of(shown, said) + f" And {more}." * (shown in wrong)]})
            answers[-1]["content"] += [np.zeros((2, 2, 3))] * (shown == 1)
        return answers

    monkeypatch.setattr(kitchen_scores.tasks, "reply_all", reply_all)
    found = kitchen_scores.questions(
        None, held_out, jax.random.key(0), tasks.Settings(), samples=COUNT, batch_size=4
    )
    assert found["it2t_right"] == {"value": pytest.approx(1 - len(wrong) / COUNT), "samples": COUNT}
    assert found["it2t_pictureless"] == {"value": pytest.approx(1 - 1 / COUNT), "samples": COUNT}
    assert any("in it" in said or "these" in said for said, _ in asked)
    assert found["random_it2t_right"]["value"] < found["it2t_right"]["value"] or wrong
    others = [of((i + 1) % COUNT, said) == answer for i, (said, answer) in enumerate(asked)]
    if not wrong:
        assert found["random_it2t_right"]["value"] == pytest.approx(np.mean(others))
