"""Sources of recipes with photos, and the batches made of them."""

import csv
import gzip
import json
import logging
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from chef_fusion import data, kitchen_sets, recipes, texts, tokenization
from chef_fusion.data import Texts, open_recipes, recipe_dataset
from chef_fusion.tokenization import CaptionTokenizer, LanguageTokenizer
from configs.chef_fusion import sources
from rcg.data import BadRecords
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen


def image_id(i):
    return f"{i:x}".rjust(10, "0") + ".jpg"


def save_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def record(i, partition="train"):
    lines = {"ingredients": [{"text": f"{i} apples (red)"}], "instructions": [{"text": "Bake!"}]}
    return {"id": f"r{i}", "title": f"Pie {i}", "partition": partition, "url": "", **lines}


@pytest.fixture
def recipe1m(tmp_path):
    """Five recipes to train on: 0 with three photos, 1 with one, 2 with none, 3 damaged, 4 not in layer2."""
    layer1 = [record(i) for i in range(5)] + [record(9, "val")]
    photos = {0: [0, 1, 2], 1: [16], 2: [], 3: [48], 9: [99]}
    layer2 = [
        {"id": f"r{i}", "images": [{"id": image_id(p), "url": ""} for p in own]} for i, own in photos.items()
    ]
    (tmp_path / "layer1.json").write_text(json.dumps(layer1))
    (tmp_path / "layer2.json").write_text(json.dumps(layer2))
    detected = {"id": "r1", "ingredients": [{"text": "apple"}, {"text": "noise"}], "valid": [True, False]}
    (tmp_path / "det_ingrs.json").write_text(json.dumps([detected]))
    for i, own in photos.items():
        for p in own:
            name = image_id(p)
            save_image(tmp_path / "images" / ("val" if i == 9 else "train") / "/".join(name[:4]) / name, p)
    (tmp_path / "images/train/0/0/0/0" / image_id(48)).write_bytes(b"\xff\xd8 cut off")
    return tmp_path


def config(path, source="recipe1m", size=16):
    c = sources.recipes(str(path), source, size)
    c.max_bad_fraction = 0.9
    return c


def test_recipe1m(recipe1m, caplog):
    with caplog.at_level(logging.INFO):
        found = open_recipes(config(recipe1m), "train")
    assert "2 recipes without an image" in caplog.text and "5 recipes" in caplog.text
    assert found.num_recipes == 3 and len(found) == 5
    assert [found.of_photo(p) for p in range(5)] == [0, 0, 0, 1, 2]
    assert [found.choose(0, d) for d in (0, 0.34, 0.99)] == [0, 1, 2]
    assert found.text(0) == recipes.caption(found.recipe(0)) and found.recipe(0).title == "Pie 0"
    assert found.recipe(1).detected == ("apple",)
    assert open_recipes(config(recipe1m), "val").num_recipes == 1


def test_photos_that_are_not_there(recipe1m, caplog, monkeypatch):
    """They are counted and left out, though the first of all is one of them."""
    for photo in (0, 16):
        (recipe1m / "images/train/0/0/0/0" / image_id(photo)).unlink()
    found = open_recipes(config(recipe1m), "train")
    assert "2 images that are missing" in caplog.text and "3 recipes without an image" in caplog.text
    assert "2 recipes with an image, 3 images" in caplog.text
    assert [found.recipe(i).title for i in range(found.num_recipes)] == ["Pie 0", "Pie 3"]
    assert [found.name(i)[-14:] for i in range(len(found))] == [image_id(p) for p in (1, 2, 48)]
    # a disk that spells names otherwise, as some do with accents and capitals
    monkeypatch.setattr(data, "_listing", lambda folder: frozenset({"PHOTO.JPG"}))
    assert len(open_recipes(config(recipe1m), "train")) == 3
    monkeypatch.undo()
    shutil.rmtree(recipe1m / "images")
    with pytest.raises(
        UserError, match="no image 0000000000.jpg under .*, nor any of the next 4; looked for"
    ):
        open_recipes(config(recipe1m), "train")


def test_photos_of_json_lines_that_are_not_there(tmp_path, caplog):
    save_image(tmp_path / "a.jpg", 1)
    lines = [{"title": f"Pie {i}", "images": [f"{name}.jpg"]} for i, name in enumerate("bac")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.INFO):
        found = open_recipes(config(tmp_path, "recipe_jsonl"), "train")
    assert found.num_recipes == len(found) == 1 and found.recipe(0).title == "Pie 1"
    assert "3 recipes, 2 images that are missing, 2 recipes without an image" in caplog.text
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="no recipe with an image .*3 images that are missing"):
        open_recipes(config(tmp_path, "recipe_jsonl"), "train")


def test_photos_of_json_lines_lie_with_the_file(tmp_path, caplog):
    (tmp_path / "recipes").mkdir()
    save_image(tmp_path / "a.jpg", 1)
    lines = [{"title": "Pie", "images": [name]} for name in ("../a.jpg", str(tmp_path / "a.jpg"))]
    (tmp_path / "recipes" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="2 images outside the file's folder"):
        open_recipes(config(tmp_path / "recipes", "recipe_jsonl"), "train")
    save_image(tmp_path / "recipes" / "b.jpg", 1)
    inside = str(tmp_path / "recipes" / "b.jpg")
    lines += [{"title": "Soup", "images": ["../a.jpg", inside]}, {"title": "Salad", "images": [""]}]
    (tmp_path / "recipes" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.INFO):
        found = open_recipes(config(tmp_path / "recipes", "recipe_jsonl"), "train")
    assert [found.name(i) for i in range(len(found))] == [inside]
    assert "3 images outside the file's folder" in caplog.text


def test_what_a_data_set_says_wrongly_is_counted(recipe1m, caplog):
    wrong = [
        {"id": "r0", "ingredients": [{"text": "leek"}, {}, "salt", {"text": 3}], "valid": [True] * 4},
        {"id": ["r1"], "ingredients": 5},
        {"id": "r3", "ingredients": None, "valid": 1},
    ]
    (recipe1m / "det_ingrs.json").write_text(json.dumps(wrong))
    with caplog.at_level(logging.INFO):
        found = open_recipes(config(recipe1m), "train")
    assert found.recipe(0).detected == ("leek",) and found.recipe(2).detected == ()
    assert "3 detected ingredients that are no text" in caplog.text


def test_an_epoch_shows_each_recipe_once_by_a_photo_drawn_anew(recipe1m):
    c = config(recipe1m)
    dataset = recipe_dataset(lambda split: open_recipes(c, split), c, lambda r, split: Texts(r, None, None))
    iterator = iter(dataset("train", 3, 0, 0, 1))
    chosen, bad = set(), BadRecords(open_recipes(c, "train"), 0.9)
    for _ in range(12):
        batch = next(iterator)
        bad.update(batch["bad"], batch["bad_index"])
        assert set(batch["recipe"]) <= {0, 1} and len(batch["recipe"]) == 3  # 2 is damaged: another for it
        chosen |= {int(p) for p, r in zip(batch["label"], batch["recipe"], strict=True) if r == 0}
    assert chosen == {0, 1, 2}
    again = iter(dataset("train", 3, 0, 0, 1))
    for _ in range(5):
        next(again)
    state, ahead = again.get_state(), [next(again)["label"] for _ in range(4)]
    fresh = iter(dataset("train", 3, 0, 0, 1))
    fresh.set_state(state)
    assert all(np.array_equal(next(fresh)["label"], labels) for labels in ahead)
    assert bad.state()["bad"] == [4]


def test_two_shards_are_one_batch(recipe1m):
    c = config(recipe1m)
    dataset = recipe_dataset(lambda split: open_recipes(c, split), c, lambda r, split: Texts(r, None, None))
    whole = iter(dataset("train", 4, 0, 0, 1))
    halves = [iter(dataset("train", 2, 0, i, 2)) for i in range(2)]
    for _ in range(4):
        one, parts = next(whole)["label"], [next(half)["label"] for half in halves]
        assert np.array_equal(one, np.concatenate(parts))


def _read(held, numbers):
    return [held[i] for i in numbers]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_workers_see_one_copy_of_the_recipes(shared_memory, monkeypatch):
    if not shared_memory:
        monkeypatch.delattr("os.memfd_create", raising=False)
        true = os.path.exists
        monkeypatch.setattr(os.path, "exists", lambda path: not path.startswith("/proc/") and true(path))
    records = [{"title": f"Pie {i} \ud83d", "words": "x" * 100} for i in range(1000)]
    held = data.Packed(iter(records))
    assert held[7] == {"title": "Pie 7 ?", "words": "x" * 100} and len(held) == 1000
    assert held.only([3, 5])[1]["title"] == "Pie 5 ?"
    if shared_memory and hasattr(os, "memfd_create"):
        assert len(pickle.dumps(held)) < 20_000  # where each begins and ends
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (held.only([3, 5]), [0, 1])) == [held[3], held[5]]
    empty = data.Packed(iter(()))
    assert len(empty) == len(pickle.loads(pickle.dumps(empty))) == 0


def test_published_tsv(recipe1m, shared):
    with open(recipe1m / "train.tsv", "w", newline="") as f:
        writer = csv.writer(f, delimiter="\t")
        writer.writerow(["caption", "image"])
        writer.writerow(
            [recipes.caption(recipes.Recipe('The "best" pie', ("1 apple",), ("bake.",))), image_id(0)]
        )
    found = open_recipes(config(recipe1m, "recipe_tsv"), "train")
    assert found.num_recipes == 1 and found.recipe(0).title == 'The "best" pie'
    assert found.name(0).endswith(f"0/0/0/0/{image_id(0)}")
    for case in json.loads((shared / "golden/chef_fusion/dataset_paths.json").read_text()):
        assert data._image_path("", "{nested}", "train", case["image"]) == case["path"]
    # a caption that is no recipe is all told
    (recipe1m / "train.tsv").write_text(f"\ufeffcaption\timage\nJust  soup\t{image_id(0)}\n")
    found = open_recipes(config(recipe1m, "recipe_tsv"), "train")
    assert found.recipe(0).title == found.target_text(0, "visible") == "Just soup"
    (recipe1m / "train.tsv").write_text("caption image\na b\n")
    with pytest.raises(UserError, match="not caption and image with a tab"):
        open_recipes(config(recipe1m, "recipe_tsv"), "train")


def test_rows_of_a_tsv_that_say_too_little_are_counted(recipe1m, caplog):
    rows = [
        ("Soup", image_id(0)),
        ("", image_id(1)),
        ("Pie",),
        ("Pie", ""),
        ("Pie", "../a.jpg"),
        ("Pie", "0000.png"),
    ]
    text = "\n".join("\t".join(row) for row in [("caption", "image"), *rows])
    (recipe1m / "train.tsv").write_text(text)
    with caplog.at_level(logging.INFO):
        assert open_recipes(config(recipe1m, "recipe_tsv"), "train").num_recipes == 1
    for count in (
        "6 recipes, 1 rows without a caption",
        "3 recipes without an image",  # none named, twice, and one that is missing
        "1 images with a name that is no file's",
        "1 images that are missing",
        "1 recipes with an image",
    ):
        assert count in caplog.text


@pytest.mark.parametrize(
    "held, message",
    [
        ("caption\timage\nsoup\tabcde.jpg\n".encode("utf-16"), "train.tsv is no text in UTF-8 after line 0"),
        (b"caption\timage\nsoup\tabcde.jpg\n\xff\n", "train.tsv is no text in UTF-8"),
        (
            b'caption\timage\n"soup' + b"x" * 2**24,
            "after line 1: field larger than .* is a quotation mark open",
        ),
        (b"caption\timage\n", r"no recipe with an image in the split \"train\" \(nothing\)"),
        (b"", "has the columns None, not caption and image"),
    ],
)
def test_damaged_tsv(tmp_path, held, message):
    (tmp_path / "train.tsv").write_bytes(held)
    with pytest.raises(UserError, match=message):
        open_recipes(config(tmp_path, "recipe_tsv"), "train")


def write_pies(path, numbers, **more):
    """Pies as a file of JSON lines or a TSV, with one photo for all."""
    save_image(path.parent / "abcde.jpg", 0)
    if path.suffix == ".tsv":
        rows = [f"{recipes.TITLE} Pie {i} {recipes.INGREDIENTS} ['salt']\tabcde.jpg" for i in numbers]
        path.write_text("\n".join(["caption\timage", *rows]))
    else:
        pies = [{"title": f"Pie {i}", "images": ["abcde.jpg"]} | more for i in numbers]
        path.write_text("\n".join(map(json.dumps, pies)))


def pies(path, split, **fields):
    c = config(path, "recipe_tsv" if path.suffix == ".tsv" else "recipe_jsonl")
    c.update(fields)
    found = open_recipes(c, split)
    return [int(found.recipe(i).title.removeprefix("Pie ")) for i in range(found.num_recipes)]


@pytest.mark.parametrize(
    "name", ["recipes.jsonl", "latest_retrieval.jsonl", "train-test.jsonl", "recipes.tsv"]
)
def test_of_a_file_of_no_split_every_tenth_record_is_held_out(tmp_path, caplog, name):
    write_pies(tmp_path / name, range(25))
    assert pies(tmp_path / name, "train") == [i for i in range(25) if i % 10]
    assert "25 without a partition (every 10th kept from training)" in caplog.text
    for split in ("eval", "val", "test", "holiday"):
        assert pies(tmp_path / name, split) == [0, 10, 20]
    assert pies(tmp_path / name, "train", train_split="fold1", eval_split="fold2") == pies(
        tmp_path / name, "train"
    )


def test_a_file_is_of_the_split_in_its_name(tmp_path, caplog):
    for number, name in enumerate(
        ("train", "Validation_2", "latest", "retrieval", "fold1", "fold12", "train_small")
    ):
        write_pies(tmp_path / f"{name}.jsonl", [number])
    assert pies(tmp_path, "train") == [0, 6] and pies(tmp_path, "val") == [1]
    assert not caplog.text
    assert pies(tmp_path, "train", train_split="fold1") == [4]
    assert pies(tmp_path, "train", train_split="train_small") == [6]
    with pytest.raises(UserError, match=r'holds no .jsonl file of the split "test"; call one test.jsonl'):
        pies(tmp_path, "test")
    assert pies(tmp_path / "train.jsonl", "train") == [0]
    with pytest.raises(UserError, match=r'no recipe .* in the split "val" \(1 of another split\)'):
        pies(tmp_path / "train.jsonl", "val")
    with pytest.raises(UserError, match="of another split"):
        pies(tmp_path / "fold1.jsonl", "eval", train_split="fold1", eval_split="fold2")


def test_a_record_is_of_the_split_that_it_names(tmp_path):
    write_pies(tmp_path / "train.jsonl", range(3), partition="val")
    assert pies(tmp_path / "train.jsonl", "val") == [0, 1, 2]
    with pytest.raises(UserError, match="3 of another split"):
        pies(tmp_path / "train.jsonl", "train")
    (tmp_path / "all.tsv").write_text(
        f"caption\timage\tpartition\n{recipes.TITLE} Pie 7 {recipes.INGREDIENTS} ['a']\tabcde.jpg\ttest\n"
    )
    assert pies(tmp_path / "all.tsv", "test") == [7]
    with pytest.raises(UserError, match="1 of another split"):
        pies(tmp_path / "all.tsv", "train")


def test_json_lines(tmp_path):
    save_image(tmp_path / "photos/a.jpg", 1)
    good = {"title": "Soup", "ingredients": ["1 leek"], "instructions": ["Boil."], "images": ["photos/a.jpg"]}
    lines = [good, good | {"images": []}, good | {"images": ["../../etc/passwd"]}]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as f:
        f.write("\n".join(map(json.dumps, lines)))
    found = open_recipes(config(tmp_path, "recipe_jsonl"), "train")
    assert found.num_recipes == 1 and found.recipe(0).ingredients == ("1 leek",)
    (tmp_path / "val.jsonl").write_text(json.dumps(good) + "\n{oops\n")
    with pytest.raises(UserError, match=r"val.jsonl, line 2 is no JSON"):
        open_recipes(config(tmp_path, "recipe_jsonl"), "val")
    (tmp_path / "val.jsonl").write_text(json.dumps({"images": ["photos/a.jpg"]}))
    with pytest.raises(UserError, match=r"line 1: it has no title"):
        open_recipes(config(tmp_path, "recipe_jsonl"), "val")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "layer2.json").unlink(), "can't read .*layer2.json"),
        (lambda root: (root / "layer1.json").write_text("[{"), "layer1.json is damaged"),
        (lambda root: (root / "layer1.json").write_text("[3]"), "no list of objects"),
        (lambda root: (root / "layer2.json").write_text("[]"), "no recipe with an image"),
        (lambda root: (root / "images").rename(root / "pictures"), "no image 0000000000.jpg under"),
    ],
)
def test_damaged_recipe1m(recipe1m, damage, message):
    damage(recipe1m)
    with pytest.raises(UserError, match=message):
        open_recipes(config(recipe1m), "train")
    with pytest.raises(UserError, match='split "holiday"|can\'t read|damaged|no list'):
        open_recipes(config(recipe1m), "holiday")


def test_image_ids_stay_in_their_folder(recipe1m):
    hostile = ["../../../../etc/passwd", "/etc/passwd", "a/b.jpg", "....jpg", "x", 3, None, "ab\0cd.jpg"]
    layer2 = [{"id": "r0", "images": [{"id": name} for name in [*hostile, image_id(0)]]}]
    (recipe1m / "layer2.json").write_text(json.dumps(layer2))
    found = open_recipes(config(recipe1m), "train")
    assert len(found) == 1 and found.name(0).endswith(image_id(0))


def test_kitchen_recipes():
    c = config("", "recipes_kitchen")
    c.num_records = 100
    found = kitchen_sets.open_recipes(c, "train")
    assert found.num_recipes == 100 and found[3]["image"].shape == (16, 16, 3)
    assert recipes.parse(found.text(3)).title == found.recipe(3).title
    assert set(found.recipe(3).detected)
    assert kitchen_sets.open_recipes(c, "val").num_recipes == 64


def test_texts_are_packed_whole_and_in_windows(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": f"text {i} " * (i % 7 + 1)}) for i in range(40))
    )
    c = sources.texts(str(tmp_path))
    c.eval_every = 10
    train, held_out = texts.open_texts(c, "train"), texts.open_texts(c, "eval")
    assert len(train) == 36 and len(held_out) == 4 and held_out[1].startswith("text 10")
    stream = texts.packed(train, lambda batch: [[len(word) for word in text.split()] for text in batch], 2)
    assert (stream == 2).sum() >= 36
    settings = {"split": "train", "batch_size": 4, "seed": 0, "shard_index": 0, "shard_count": 1}
    windows = iter(texts.token_batches(stream, 8, **settings))
    count = (len(stream) - 1) // 8
    seen = np.concatenate([next(windows)["tokens"] for _ in range(-(-count // 4))])
    assert seen.shape[1] == 8
    starts = {tuple(stream[i : i + 8]) for i in range(len(stream) - 7)}
    assert all(tuple(row) in starts for row in seen)
    one_pass = list(iter(texts.token_batches(stream, 8, **settings | {"split": "eval"})))
    mask = np.concatenate([b["mask"] for b in one_pass]) > 0
    tokens = np.concatenate([b["tokens"] for b in one_pass])[mask]
    assert np.array_equal(tokens.ravel(), stream[: len(stream) // 8 * 8])
    c.path = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="no .jsonl file"):
        texts.open_texts(c, "train")


def test_texts_have_two_splits(tmp_path):
    lines = ['{"text": "held"}', '{"text": "one \\ud83d"}', '{"text": "two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    c = sources.texts(str(tmp_path))
    assert list(texts.open_texts(c, "train")) == ["one ?", "two"] and list(texts.open_texts(c, "val")) == [
        "held"
    ]
    for wanted, split in (("train", "eval"), ("test", "eval")):
        c.eval_split = wanted
        if wanted == "train":
            assert len(texts.open_texts(c, split)) == 2
        else:
            with pytest.raises(UserError, match='texts have the splits train and val, not "test"'):
                texts.open_texts(c, split)


def test_texts_for_the_test_are_never_trained_on(tmp_path):
    """A language model for a set of recipes must not have read those that are asked about."""

    def write(name, number, **fields):
        lines = [json.dumps({"text": f"{name} {i}"} | fields) for i in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    for name in ("train", "val", "test", "latest"):
        write(name, 10)
    write("one", 4, partition="test")
    write("two", 4, partition="Validation")
    c = sources.texts(str(tmp_path))
    c.eval_every = 5
    train, held_out = (list(texts.open_texts(c, split)) for split in ("train", "val"))
    assert {text.split()[0] for text in train} == {"train", "latest"} and len(train) == 16
    assert sum(text.startswith(("val", "two")) for text in held_out) == 14 and len(held_out) == 18
    c.path = str(tmp_path / "test.jsonl")
    with pytest.raises(UserError, match="no documents of the split train; 10 are of others"):
        texts.open_texts(c, "train")


def test_a_kind_of_target_text_that_there_is_not(recipe1m):
    c = config(recipe1m)
    c.target_text = "visibel"
    dataset = recipe_dataset(lambda split: open_recipes(c, split), c, lambda r, split: Texts(r, None, None))
    with pytest.raises(UserError, match='target_text "visibel" is not one of caption, visible'):
        dataset("train", 4, 0, 0, 1)


def test_special_tokens_that_are_needed(tmp_path):
    language, _ = tiny_kitchen.tokenizers(tmp_path)
    held = tokenization.load(language)
    for missing, reads in (("bos", CaptionTokenizer), ("eos", CaptionTokenizer)):
        setattr(held, f"{missing}_token", None)
        held.save_pretrained(tmp_path / missing)
        with pytest.raises(UserError, match=f"has no {missing} token"):
            reads.load(str(tmp_path / missing))
        held = tokenization.load(language)
    held.pad_token = held.bos_token
    held.save_pretrained(tmp_path / "padded")
    with pytest.raises(UserError, match="one token as bos and pad"):
        LanguageTokenizer.load(str(tmp_path / "padded"), 560, 3)


def test_a_tokenizer_that_is_not_given_or_not_there():
    with pytest.raises(UserError, match="no tokenizer is given: set config.data.tokenizer"):
        tokenization.load("")
    with pytest.raises(UserError, match="no tokenizer at /nowhere"):
        tokenization.load("/nowhere")


def test_tokenizers_of_ones_own(tmp_path):
    language, caption = tiny_kitchen.tokenizers(tmp_path)
    lm = LanguageTokenizer.load(language, 560, 3)
    assert (lm.bos, lm.pad, lm.eos) == (2, 1, 2)
    for text in (*tiny_kitchen.texts(5), "Crème brûlée — ½ cup, 湯\n"):
        ids = lm.ids(text, bos=True)
        assert ids[0] == 2 and max(ids) < 560 and lm.text(ids) == text
    captions = CaptionTokenizer.load(caption, 12)
    rows = captions(["Tomato SOUP", "", "a b c d e f g h i j k l m n o p"])
    begin, end = captions.tokenizer.bos_token_id, captions.tokenizer.eos_token_id
    assert rows.shape == (3, 12) and (rows[:, 0] == begin).all() and (rows[:, -1] == end).all()
    assert (rows[1, 1:] == end).all() and begin == captions.vocabulary - 2
    assert captions.tokenizer.decode(rows[0], skip_special_tokens=True).strip() == "tomato soup"
    assert np.array_equal(captions(["tomato   soup"])[0], rows[0])


ANY_TEXT = (
    "Tomato soup",
    "Crème brûlée — ½ cup, 湯\x01",
    "it's 350F",
    "<s> x </s> <|endoftext|>",
    " a  b",
    "",
)


@pytest.mark.parametrize("kind, slow", [("opt", "GPT2Tokenizer"), ("clip", "CLIPTokenizer")])
def test_a_tokenizers_folder_is_opts_or_clips(tmp_path, kind, slow):
    import transformers

    folder, bare = tmp_path / "made", tmp_path / "bare"
    tokenization.train(kind, iter(tiny_kitchen.texts()), 560, str(folder))
    files = {"merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"}
    assert {file.name for file in folder.iterdir()} == files
    made = tokenization.load(str(folder))
    assert made.vocab_size == len(json.loads((folder / "vocab.json").read_text())) == 560
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    old = getattr(transformers, slow).from_pretrained(bare)
    for text in ANY_TEXT:
        ids, plain = made(text)["input_ids"], made(text, add_special_tokens=False)["input_ids"]
        assert ids == old(text)["input_ids"]
        if kind == "opt":
            assert ids == [2, *plain]
            assert ids == LanguageTokenizer(made, 560, 3).ids(text, bos=True)
        else:
            assert ids == [558, *plain, 559]
            assert ids == list(CaptionTokenizer(made, len(ids))([text])[0])


def test_every_byte_is_a_token_of_either_kind(tmp_path):
    """Whatever the tokenizer was taught: no text is refused, none becomes another."""
    language, caption = tiny_kitchen.tokenizers(tmp_path)
    made = CaptionTokenizer.load(caption, 77).tokenizer
    for text in ("crème brûlée", "½", "湯", "ñ \x7f", "çà"):
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert max(ids) < 558 and made.decode(ids).split() == text.split()
    with pytest.raises(UserError, match="needs at least 514 tokens, not 513"):
        tokenization.train("clip", [], 513, str(tmp_path / "small"))
    assert tokenization.train("opt", [], 260, str(tmp_path / "small")) == 260


def test_real_recipes(shared):
    """Every recipe of the real set opens, reads and fits its text form."""
    total = 0
    for split, expected in (("train", 261), ("val", 31), ("test", 37)):
        found = open_recipes(config(shared / "data/recipes"), split)
        assert found.num_recipes == expected
        for i in range(found.num_recipes):
            parsed = recipes.parse(found.text(i))
            cleaned = recipes.clean(found.recipe(i))
            assert parsed.ingredients == cleaned.ingredients and parsed.instructions == cleaned.instructions
            total += 1
    print(f"{total} captions parse back to their recipes")


def test_of_two_tsv_files_none_is_chosen_in_silence(recipe1m):
    for name in ("train.tsv", "training_more.tsv"):
        (recipe1m / name).write_text(f"caption\timage\nsoup\t{image_id(0)}\n")
    with pytest.raises(UserError, match="holds 2 .tsv files of the split train; name one"):
        open_recipes(config(recipe1m, "recipe_tsv"), "train")
    assert open_recipes(config(recipe1m / "train.tsv", "recipe_tsv"), "train").num_recipes == 1
