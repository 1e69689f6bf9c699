"""Messages in, messages out: every task, the picture decision, batches, streaming, what is missing."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

import chef_fusion
from chef_fusion import decoding, generate, recipes, tasks
from chef_fusion.decoding import ImageDecision
from rcg.data import decode
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen

KEY = jax.random.key(0)
QUICK = tasks.Settings(max_words=12, steps=2, scheduler="dpmpp", cfg_scale=2.0, height=16, width=16)
PHOTO = tiny_kitchen.photo()


@pytest.fixture(scope="module")
def chef(tmp_path_factory):
    return chef_fusion.load(tiny_kitchen.build(tmp_path_factory.mktemp("chef")))


def user(*content):
    return [{"role": "user", "content": list(content)}]


def test_every_task_answers(chef):
    title = f"{recipes.TITLE} Tomato Pizza"
    asked = {
        "t2t": user(title),
        "i2t": user(PHOTO),
        "it2t": user(PHOTO, "What is on it?"),
        "t2i": user(title),
        "t2ti": user(title),
        "dialogue": user("What can I cook with peas?"),
    }
    assert asked.keys() == tasks.TASKS.keys()
    for task, messages in asked.items():
        made = chef_fusion.reply(chef, messages, KEY, task=task, settings=QUICK)
        assert made["role"] == "assistant" and made["task"] == task
        pictures = [part for part in made["content"] if not isinstance(part, str)]
        assert len(pictures) == (task == "t2i") or task in ("t2ti", "it2t", "dialogue")
        assert all(p.shape == (16, 16, 3) and p.dtype == np.uint8 for p in pictures)


def test_what_messages_look_like_says_the_task():
    words, photo, recipe = "Is it spicy?", PHOTO, f"{recipes.TITLE} Soup"
    assert tasks.task_of(user(photo)) == "i2t"
    assert tasks.task_of(user(photo, words)) == "it2t"
    assert tasks.task_of(user(recipe)) == "t2ti"
    assert tasks.task_of(user(words)) == "dialogue"
    assert (
        tasks.task_of([*user(photo), {"role": "assistant", "content": "Soup."}, *user(words)]) == "dialogue"
    )


def test_a_conversation_keeps_its_photos_in_place():
    turns = [*user(PHOTO, "What is it?"), {"role": "assistant", "content": ["Soup.", PHOTO]}, *user("Hot?")]
    parts = tasks.prompt_of(turns, "dialogue")
    shown = ["photo" if not isinstance(part, str) else part for part in parts]
    assert shown == ["photo", "Q: What is it?\nA:", " Soup.", "photo", "\n", "Q: Hot?\nA:"]
    turns[1] = {"role": "assistant", "content": [PHOTO, "Soup.", PHOTO, "Pie."]}
    shown = ["photo" if not isinstance(part, str) else part for part in tasks.prompt_of(turns, "dialogue")]
    assert shown[2:] == [" ", "photo", " Soup.", "photo", " Pie.", "\n", "Q: Hot?\nA:"]


def test_pictures_are_forced_and_forbidden(chef):
    messages = user(f"{recipes.TITLE} Pea Soup")
    forced = dataclasses.replace(QUICK, pictures="force")
    made = chef_fusion.reply(chef, messages, KEY, task="t2ti", settings=forced)
    plain = chef_fusion.reply(chef, messages, KEY, task="t2t", settings=QUICK)
    assert [isinstance(part, str) for part in made["content"]] == [True, False]
    assert not made["complete"]  # the words would have gone on
    # the text is what it would have been, but for its last token, in whose place the picture comes
    assert plain["content"][0].startswith(made["content"][0]) and len(made["content"][0]) > 4
    at_once = chef_fusion.reply(chef, messages, KEY, task="t2i", settings=forced)
    assert [isinstance(part, str) for part in at_once["content"]] == [False]
    for bias in (0.0, 1e9):
        forbidden = dataclasses.replace(QUICK, pictures="forbid", image_bias=bias)
        made = chef_fusion.reply(chef, messages, KEY, task="t2ti", settings=forbidden)
        assert all(isinstance(part, str) for part in made["content"])
    eager = dataclasses.replace(QUICK, image_bias=1e9)
    made = chef_fusion.reply(chef, messages, KEY, task="t2ti", settings=eager)
    assert not isinstance(made["content"][-1], str)


def test_a_text_that_was_cut_off_is_not_complete(chef):
    eager = dataclasses.replace(QUICK, image_bias=1e9)
    for settings, complete in ((QUICK, False), (eager, True)):
        made = chef_fusion.reply(chef, user(f"{recipes.TITLE} Soup"), KEY, task="t2ti", settings=settings)
        assert made["complete"] is complete
    shortest = dataclasses.replace(QUICK, max_words=1)
    made = chef_fusion.reply(chef, user(f"{recipes.TITLE} Soup"), KEY, task="t2i", settings=shortest)
    assert made["complete"]  # the picture is all that was asked for
    written = generate.write(chef, [["Soup"]], KEY, max_words=3)[0]
    assert len(written.ids) == 3 and not written.complete
    # greedy, so the same words until the first that stops
    varied = {"max_words": 12, "settings": decoding.sampling(repetition_penalty=5.0)}
    written = generate.write(chef, [["Soup"]], KEY, **varied)[0]
    ids = list(written.ids)
    again = [i for i in sorted(set(ids)) if chef.language.ids(chef.language.text([i])) == [i]]
    assert len(again) > 1
    for token in again:
        stop = [chef.language.text([token])]
        stopped = generate.write(chef, [["Soup"]], KEY, **varied, stop=stop)[0]
        assert list(stopped.ids) == ids[: ids.index(token) + 1] and stopped.complete


def test_several_pictures_have_room(chef):
    """Each is of m tokens, of which one is a choice."""
    m = chef.model.joints.num_image_tokens
    images = ImageDecision(bias=np.inf, max_images=4)
    draft = generate.write(chef, [["Soup"]], KEY, max_words=28, images=images)[0]
    assert len(draft.states) == 4 and len(draft.ids) == 28 + 4 * (m - 1)


def test_text_goes_on_between_pictures(chef):
    """As many as are allowed, where the model wants them; the last ends the answer."""
    eager = dataclasses.replace(QUICK, image_bias=30.0, max_words=40)
    for most in (1, 3):
        settings = dataclasses.replace(eager, max_pictures=most)
        content = chef_fusion.reply(chef, user("Soup"), KEY, task="t2ti", settings=settings)["content"]
        assert sum(not isinstance(part, str) for part in content) == most and not isinstance(content[-1], str)
    for task, wrong in (
        ("t2ti", {"max_pictures": 0}),
        ("t2ti", {"max_pictures": 2, "pictures": "force"}),
        ("t2i", {"max_pictures": 2}),
    ):
        with pytest.raises(UserError, match="max_pictures"):
            settings = dataclasses.replace(QUICK, **wrong)
            chef_fusion.reply(chef, user("Soup"), KEY, task=task, settings=settings)


def test_a_photo_is_seen_as_training_sees_it(chef):
    """Upright, with white behind it, of 16 bits the upper 8; whether from a file or opened by Pillow."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 4), np.uint8)
    turned = Image.fromarray(pixels[..., :3])
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 2**16, (20, 30), np.uint16))
    for image, options in (
        (turned, {"exif": turned.getexif()}),
        (Image.fromarray(pixels), {}),
        (deep, {}),
    ):
        held = io.BytesIO()
        image.save(held, "PNG", **options)
        wanted = generate.to_pixels(chef, decode(held.getvalue()))
        found = generate.to_pixels(chef, Image.open(io.BytesIO(held.getvalue())))
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(UserError, match="an image can't be used"):
        chef_fusion.reply(chef, user(np.zeros((2, 500, 3), np.uint8)), KEY, settings=QUICK)


def test_an_image_alone_is_a_message(chef):
    for photo in (PHOTO, Image.fromarray(PHOTO)):
        one = tasks.prompt_of([{"role": "user", "content": photo}], "i2t")
        assert len(one) == 2 and one[0] is photo
    with pytest.raises(UserError, match="last message must be the user's"):
        chef_fusion.reply(chef, [{"role": "assistant", "content": []}], KEY, settings=QUICK)
    with pytest.raises(UserError, match="no component 'sd'; there are joints"):
        chef_fusion.load({"joints": "a", "lm": "b", "vision": "c", "sd": "d"})


def test_a_picture_forced_where_nothing_paints_is_refused(chef):
    writer = dataclasses.replace(chef, sd=None, rcg=None)
    forced = dataclasses.replace(QUICK, pictures="force")
    with pytest.raises(UserError, match="this needs pictures"):
        chef_fusion.reply(writer, user(PHOTO), KEY, task="i2t", settings=forced)


def test_a_conversation_goes_on_after_an_empty_answer(chef):
    turns = [*user("What is it?"), {"role": "assistant", "content": []}, *user("And now?")]
    assert tasks.prompt_of(turns, "dialogue") == ["Q: What is it?\nA:", " ", "\n", "Q: And now?\nA:"]
    assert chef_fusion.reply(chef, turns, KEY, settings=QUICK)["task"] == "dialogue"
    with pytest.raises(UserError, match="the prompt is empty"):
        tasks.prompt_of([*turns[:2], *user("")], "dialogue")


def test_a_picture_may_begin_from_a_photo(chef):
    messages = user(PHOTO, f"{recipes.TITLE} Pea Soup")
    many = dataclasses.replace(QUICK, steps=20)
    made = {}
    for strength in (0.05, 0.5, 1.0):
        settings = dataclasses.replace(many, strength=strength)
        made[strength] = chef_fusion.reply(chef, messages, KEY, task="t2i", settings=settings)["content"][0]
    assert made[0.05].shape == (16, 16, 3)
    assert len({picture.tobytes() for picture in made.values()}) == 3
    # of two photos, and the same [IMG] states, two pictures
    states = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
    options = {"steps": 20, "scheduler": "dpmpp", "height": 16, "width": 16}
    photos = [PHOTO, 255 - PHOTO]
    one, other = (generate.paint(chef, states, KEY, photos=[p], strength=0.5, **options) for p in photos)
    assert np.abs(one.astype(int) - other).mean() > 1
    for strength, task, said in ((0.0, "t2i", "must be above 0"), (0.5, "it2t", "needs the task t2i")):
        settings = dataclasses.replace(QUICK, strength=strength)
        with pytest.raises(UserError, match=said):
            chef_fusion.reply(chef, messages, KEY, task=task, settings=settings)


def test_without_photos_the_image_encoder_does_not_run(chef, monkeypatch):
    generate._embed.clear_cache()
    monkeypatch.setattr(type(chef.model), "see", None)  # would be no function to call
    generate.write(chef, [["Pea soup"]], KEY, max_words=2)
    with pytest.raises(TypeError):
        generate.write(chef, [[PHOTO, "Pea soup"]], KEY, max_words=2)


def test_a_run_of_image_tokens_is_whole_and_its_states_are_those_of_one_pass(chef):
    prompt = [PHOTO, f"{recipes.TITLE} Pizza"]
    images = ImageDecision(bias=np.inf, min_words=4, max_images=2)
    draft = generate.write(chef, [prompt], KEY, max_words=8, images=images)[0]
    first, m = chef.model.joints.image_first, chef.model.joints.num_image_tokens
    run = list(range(first, first + m))
    assert list(draft.ids[4 : 4 + m]) == run and list(draft.ids[4 + m : 4 + 2 * m]) == run
    assert sum(i >= first for i in draft.ids) == 2 * m and len(draft.pieces) == 3
    state, *_ = generate.begin(chef, [prompt], 8, decoding.sampling())
    rows = chef.model.rows(chef.params)
    ids = generate.prompt_ids(chef, prompt)
    visual = chef.model.see(chef.params, chef.frozen, generate.to_pixels(chef, PHOTO)[None])[0]
    lm, variables = chef.model.lm, chef.frozen["lm"]
    parts = [visual[t[1]] if isinstance(t, tuple) else lm.embed(variables, rows, np.array(t)) for t in ids]
    parts += list(lm.embed(variables, rows, np.array(draft.ids)))
    hidden, _ = lm.opt.apply(variables, np.stack(parts)[None])
    np.testing.assert_allclose(draft.states[0], hidden[0, len(ids) + 4 :][:m], rtol=2e-4, atol=2e-5)
    expected = lm.logits(variables, rows, hidden)[0, len(ids) - 1, :first]
    np.testing.assert_allclose(state.logits[0, :first], expected, rtol=2e-4, atol=2e-4)


def test_a_batch_answers_as_one_by_one(chef):
    prompts = [[PHOTO, "This is"], ["This is food title: a long one indeed"], [PHOTO, PHOTO, "x"]]
    together = generate.write(chef, prompts, KEY, max_words=6)
    for prompt, draft in zip(prompts, together, strict=True):
        alone = generate.write(chef, [prompt], KEY, max_words=6)[0]
        assert alone.ids == draft.ids


def test_a_stream_ends_as_the_whole(chef):
    settings = decoding.sampling(temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.2)
    options = {"max_words": 20, "settings": settings, "images": ImageDecision(max_images=2)}
    *parts, last = generate.stream(chef, [["This is food"]], KEY, chunk=3, **options)
    whole = generate.write(chef, [["This is food"]], KEY, **options)[0]
    assert last[0].ids == whole.ids and last[0].pieces == whole.pieces
    assert len(parts) > 3 and all(last[0].ids[: len(p[0].ids)] == p[0].ids for p in parts)


def test_another_length_compiles_nothing_again(chef):
    generate.write(chef, [["This is food title: one"]], KEY, max_words=5)
    before = decoding.start._cache_size(), decoding.advance._cache_size()
    generate.write(chef, [["This is food title: one two"]], KEY, max_words=7)
    assert before == (decoding.start._cache_size(), decoding.advance._cache_size())


def test_pictures_depend_on_the_seed_and_the_negative(chef):
    states = np.random.default_rng(0).standard_normal((3, 3, 16)).astype(np.float32)
    options = {"steps": 2, "scheduler": "euler", "height": 16, "width": 32}
    one = generate.paint(chef, states, KEY, **options)
    assert one.shape == (3, 16, 32, 3) and np.array_equal(one, generate.paint(chef, states, KEY, **options))
    assert not np.array_equal(one, generate.paint(chef, states, jax.random.key(1), **options))
    assert not np.array_equal(one, generate.paint(chef, states, KEY, negative="onion", **options))
    with pytest.raises(UserError, match="both must be multiples of 4"):
        generate.paint(chef, states, KEY, steps=1, height=18, width=16)


def test_images_of_any_form_are_seen_alike(chef):
    as_pil = Image.fromarray(PHOTO)
    as_float = PHOTO / 255.0
    pixels = [generate.to_pixels(chef, image) for image in (PHOTO, as_pil, as_float)]
    assert all(np.array_equal(pixels[0], other) for other in pixels[1:])
    assert generate.to_pixels(chef, as_pil.convert("L")).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "task, content, message",
    [
        ("i2t", [], "needs an image"),
        ("i2t", ["words"], "needs an image"),
        ("it2t", [PHOTO], "needs text"),
        ("t2i", [PHOTO], "needs text"),
        ("t2t", ["  "], "the prompt is empty"),
        ("dialogue", [7], "holds text and images, not int"),
        ("juggle", ["x"], "is not one of t2t"),
        ("t2t", ["pea soup " * 200], "context is 160; shorten it"),
    ],
)
def test_what_is_missing_is_said(chef, task, content, message):
    with pytest.raises(UserError, match=message):
        chef_fusion.reply(chef, user(*content), KEY, task=task, settings=QUICK)


def test_networks_that_do_not_fit(tmp_path):
    from rcg import component

    paths = tiny_kitchen.build(tmp_path)
    with pytest.raises(UserError, match="needs the component vision"):
        chef_fusion.load({k: v for k, v in paths.items() if k != "vision"})
    joints = component.load(paths["joints"])
    for fields, message in (
        ({"embed_dim": 8}, "embed_dim is 8, but the language model's"),
        ({"image_first": 300}, r"the tokenizer has \d+ tokens, but \[IMG0\] is number 300"),
        ({"image_first": 9999}, "has only 560 rows before it"),
        ({"out_dim": 5}, "set them to that"),
    ):
        other = dataclasses.replace(joints, architecture=joints.architecture | fields)
        component.save(str(tmp_path / "other"), other)
        with pytest.raises(UserError, match=message):
            chef_fusion.load(paths | {"joints": str(tmp_path / "other")})
    about = dataclasses.replace(joints, provenance={"components": {"lm": "0" * 64}})
    component.save(str(tmp_path / "other"), about)
    with pytest.raises(UserError, match="were trained on another lm"):
        chef_fusion.load(paths | {"joints": str(tmp_path / "other")})
