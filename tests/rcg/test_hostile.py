"""Whatever a file holds, its reader ends soon and says in one line what is wrong. FUZZ=n: n files each."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chef_fusion import data as recipe_data
from configs.chef_fusion import sources
from rcg import component, json_files, weight_files
from rcg.data import DecodeError, ParquetImages, array_records, decode
from rcg.data.sources import ArraySource
from rcg.errors import UserError

TRIES = int(os.environ.get("FUZZ", 40))
fuzz = settings(
    max_examples=TRIES,
    deadline=10_000,
    database=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = {kind: picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")}


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Bytes changed, cut out, doubled or put in at a few places."""
    held = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(held) - 1, 0)))
        count = draw(st.integers(1, 40))
        how = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        if how == "change" and held:
            held[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del held[at : at + count]
        elif how == "double":
            held[at:at] = held[at : at + count]
        elif how == "insert":
            held[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            del held[at:]
    return bytes(held)


def one_line(error: Exception) -> None:
    assert "\n" not in str(error) and len(str(error)) < 2000


@fuzz
@given(st.data(), st.sampled_from(sorted(PICTURES)))
def test_pictures(given_data, kind):
    try:
        image = decode(given_data.draw(damaged(PICTURES[kind])))
        assert image.mode == "RGB"
    except DecodeError as error:
        one_line(error)


@fuzz
@given(st.binary(max_size=200))
def test_what_is_no_picture(held):
    with pytest.raises(DecodeError):
        decode(held)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is of this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (65_000, 65_000), (0, 5)])
def test_picture_bombs(size):
    with pytest.raises(DecodeError) as caught:
        decode(bomb(*size))
    one_line(caught.value)


@fuzz
@given(st.data())
def test_weights(tmp_path_factory, given_data):
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    weight_files.write(str(path), {"a": np.arange(6.0), "b.c": np.ones((2, 3), np.float32)})
    path.write_bytes(given_data.draw(damaged(path.read_bytes())))
    try:
        arrays = weight_files.read(str(path))
        for name in arrays:
            assert np.asarray(arrays[name]).nbytes < 2**20
    except UserError as error:
        one_line(error)


HOSTILE = {
    "deep": "[" * 200_000,
    "deep object": '{"a":' * 100_000,
    "huge number": '{"format": ' + "9" * 10_000 + "}",
    "infinite": '{"format": 1e999}',
    "no number": '{"format": NaN}',
    "many, one twice": "{" + "".join(f'"{i}":0,' for i in range(300_000)) + '"0":0}',
    "twice": '{"format": 1, "format": 2}',
    "a list": "[1, 2]",
    "nothing": "",
    "no text": "\udcff",
    "half": '{"format": 1, "kind',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json(name, tmp_path):
    path = tmp_path / "component.json"
    path.write_bytes(HOSTILE[name].encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        json_files.read(str(path), "make it again")
    one_line(caught.value)
    with pytest.raises(UserError) as caught:
        component.describe(str(tmp_path))
    one_line(caught.value)


@pytest.mark.parametrize("changes", [
    {"format": "one"}, {"format": 99}, {"kind": 5}, {"architecture": "wide"}, {"architecture": [1]},
    {"provenance": None}, {"content_hash": {}},
])  # fmt: skip
def test_a_component_that_says_nonsense(changes, tmp_path):
    component.save(str(tmp_path / "c"), component.Component("rcg.rdm", {}, {"params": {"a": np.ones(3)}}))
    about = tmp_path / "c/component.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        component.describe(str(tmp_path / "c"), "rcg.mage")
    one_line(caught.value)
    with pytest.raises(UserError) as caught:
        component.describe(str(tmp_path / "c"))
    one_line(caught.value)


@fuzz
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_json_that_is_some_comes_back(value):
    assert json_files.parse(json.dumps(value)) == value


JUNK = (None, True, -1, 1e300, "", "x", "\ud800", "a\0b", "../..", [], [[1]], {}, {"a": 1})


def with_junk(whole):
    """All that becomes of a value of JSON if one place in it holds something else."""
    yield from JUNK
    places = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    for at, part in places:
        for other in with_junk(part):
            held = dict(whole) if isinstance(whole, dict) else list(whole)
            held[at] = other
            yield held


def read_recipes(folder, source: str) -> int:
    """How many there are, or 0 if they are refused."""
    try:
        found = recipe_data.open_recipes(sources.recipes(str(folder), source, 16), "train")
        assert all(
            os.path.realpath(found.name(i)).startswith(str(folder) + os.sep) for i in range(len(found))
        )
        assert all(isinstance(found.text(i), str) for i in range(found.num_recipes))
        found.text(0).encode()
        return found.num_recipes
    except UserError as error:
        one_line(error)
        return 0


LINE = {"title": "Pie", "ingredients": ["1 apple"], "instructions": ["bake"], "images": ["a.png"]}


def write_lines(folder, lines) -> bytes:
    (folder / "a.png").write_bytes(PICTURES["PNG"])
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (folder / "train.jsonl").read_bytes()


@fuzz
@given(st.data())
def test_recipes(tmp_path_factory, given_data):
    folder = tmp_path_factory.mktemp("recipes")
    whole = write_lines(folder, [LINE] * 3)
    assert read_recipes(folder, "recipe_jsonl") == 3
    (folder / "train.jsonl").write_bytes(given_data.draw(damaged(whole)))
    read_recipes(folder, "recipe_jsonl")


def test_recipes_of_anything(tmp_path):
    read = []
    for line in with_junk(LINE):
        write_lines(tmp_path, [line, LINE])
        read.append(read_recipes(tmp_path, "recipe_jsonl"))
    assert set(read) == {0, 1, 2}


TABLE = "caption\timage\n" + "".join(f'"This is food title: Pie {i}"\tabcdef.jpg\n' for i in range(3))


@fuzz
@given(st.data())
def test_tables_of_recipes(tmp_path_factory, given_data):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "abcdef.jpg").write_bytes(PICTURES["JPEG"])
    (folder / "train.tsv").write_text(TABLE)
    assert read_recipes(folder, "recipe_tsv") == 3
    (folder / "train.tsv").write_bytes(given_data.draw(damaged(TABLE.encode())))
    read_recipes(folder, "recipe_tsv")


LAYERS = {
    "layer1.json": [
        {
            "id": "r1",
            "title": "Pie",
            "partition": "train",
            "ingredients": [{"text": "1 apple"}],
            "instructions": [{"text": "bake"}],
        }
    ],
    "layer2.json": [{"id": "r1", "images": [{"id": "abcdef.jpg", "url": ""}]}],
    "det_ingrs.json": [{"id": "r1", "ingredients": [{"text": "apple"}], "valid": [True]}],
}


def write_layers(folder) -> None:
    (folder / "a/b/c/d").mkdir(parents=True)
    (folder / "a/b/c/d/abcdef.jpg").write_bytes(PICTURES["JPEG"])
    for name, layer in LAYERS.items():
        (folder / name).write_text(json.dumps(layer))


@pytest.mark.parametrize("which", LAYERS)
@fuzz
@given(given_data=st.data())
def test_recipe1m(tmp_path_factory, given_data, which):
    folder = tmp_path_factory.mktemp("recipe1m")
    write_layers(folder)
    assert read_recipes(folder, "recipe1m") == 1
    (folder / which).write_bytes(given_data.draw(damaged((folder / which).read_bytes())))
    read_recipes(folder, "recipe1m")


@pytest.mark.parametrize("which", LAYERS)
def test_recipe1m_of_anything(tmp_path, which):
    write_layers(tmp_path)
    read = []
    for held in with_junk(LAYERS[which]):
        (tmp_path / which).write_text(json.dumps(held))
        read.append(read_recipes(tmp_path, "recipe1m"))
    assert set(read) == {0, 1}


def read_all(source) -> None:
    for i in range(len(source)):
        try:
            decode(source[i]["image"])
        except DecodeError as error:
            one_line(error)


@fuzz
@given(st.data())
def test_parquet(tmp_path_factory, given_data):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    pq.write_table(pa.table({"image": [PICTURES["PNG"]] * 4, "label": [0, 1, 0, 1]}), path)
    path.write_bytes(given_data.draw(damaged(path.read_bytes())))
    try:
        read_all(ParquetImages(str(path)))
    except UserError as error:
        one_line(error)


@fuzz
@given(st.data())
def test_array_records(tmp_path_factory, given_data):
    folder = tmp_path_factory.mktemp("records")
    array_records.write(ArraySource([PICTURES["PNG"]] * 5), str(folder), "train", 1)
    path = folder / "train-00000-of-00001.array_record"
    path.write_bytes(given_data.draw(damaged(path.read_bytes())))
    try:
        read_all(array_records.ArrayRecordImages(str(folder), "train"))
    except UserError as error:
        one_line(error)
