"""The tables' figures of answers that are known: a perfect cook, painters who mix up their orders."""

from random import Random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from chef_fusion import kitchen_scores, kitchen_sets, metrics, recipes, scoring, tasks
from chef_fusion.kitchen import picture
from chef_fusion.kitchen.talk import question
from rcg.data import decode
from tests.chef_fusion.test_kitchen_talk import data

COUNT = 6


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
    of_text = {held_out.text(i): i for i in photos} | {text: i for i, text in captions.items()}
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
            comes = images.bias > 0 or chef.always or held_out.pictured(i)
            drafts.append(SimpleNamespace(states=np.full((int(comes), 1, 1), i)))
        return drafts

    def paint(chef, states, key, *, embeddings=None, **unused):
        if embeddings is None:
            return np.stack([np.asarray(photos[int(i)]) for i in np.ravel(states)])
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


def test_every_figure_is_of_its_own_side(held_out, numbers, script):
    chef, judge = script

    def score(chef):
        options = {"samples": COUNT, "painting": {}, "rcg": {}, "target_text": "visible", "judge": judge}
        return scoring.score(chef, held_out, held_out, jax.random.key(0), **options)

    results = score(chef)
    found = {name: result["value"] for name, result in results.items()}
    for name in ("i2t", "retrieval"):  # the held-out photos are among those to be found
        assert found[f"{name}_sacrebleu"] == pytest.approx(100) and found[f"{name}_rouge2"] == 1
        assert found[f"{name}_ingredient_f1"] == found[f"{name}_base_accuracy"] == 1
    true = [held_out.read(recipes.caption(held_out.recipe(i))) for i in numbers]
    names = [there for _, there in true]
    mixed = metrics.set_scores(names[1:] + names[:1], names)["f1"]
    of_kind = np.mean([a[0] == b[0] for a, b in zip(true, true[1:] + true[:1], strict=True)])
    assert mixed < 1
    for side, right in {"t2i": 1, "target": 1, "real": 1, "sd": 0, "rcg": 0, "random": 0}.items():
        if side != "real":
            assert found[f"{side}_clip_similarity"] == right
        assert found[f"{side}_picture_ingredient_f1"] == (1 if right else pytest.approx(mixed))
        assert found[f"{side}_picture_base_accuracy"] == (1 if right else pytest.approx(of_kind))
    assert found["random_ingredient_f1"] == pytest.approx(mixed)
    trained = [found[f"{name}_trained_parameters"] for name in ("sd", "t2i", "rcg")]
    assert trained == [0, 3, 8] and "samples" not in results["rcg_trained_parameters"]
    assert results["t2i_images_per_second"]["samples"] == COUNT == results["i2t_rouge2"]["samples"]
    decided = [found[n] for n in ("picture_where_wanted", "picture_where_not", "decision_accuracy")]
    assert decided == [1, 0, 1]
    chef.always = True
    found = {name: result["value"] for name, result in score(chef).items()}
    assert found["decision_accuracy"] == found["chance_decision_accuracy"] == 0.5


@pytest.mark.parametrize("wrong", [(), (0, 3)])
def test_questions_about_photos(held_out, monkeypatch, wrong):
    """One who answers rightly of the dish that is shown, but for some, and paints one of them."""
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
            answers.append({"content": ["nothing" if shown in wrong else of(shown, said)]})
            answers[-1]["content"] += [np.zeros((2, 2, 3))] * (shown == 1)
        return answers

    monkeypatch.setattr(kitchen_scores.tasks, "reply_all", reply_all)
    found = kitchen_scores.questions(
        None, held_out, jax.random.key(0), tasks.Settings(), samples=COUNT, batch_size=4
    )
    assert found["it2t_right"] == {"value": pytest.approx(1 - len(wrong) / COUNT), "samples": COUNT}
    assert found["it2t_pictureless"]["value"] == pytest.approx(1 - 1 / COUNT)
    assert found["random_it2t_right"]["value"] < found["it2t_right"]["value"] or wrong
    others = [of((i + 1) % COUNT, said) == answer for i, (said, answer) in enumerate(asked)]
    if not wrong:
        assert found["random_it2t_right"]["value"] == pytest.approx(np.mean(others))
