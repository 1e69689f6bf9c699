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


LINE = {"title": "Pie", "ingredients": ["1 apple"], "instructions": ["bake"], "images": ["a.png"]}


@fuzz
@given(st.data())
def test_recipes(tmp_path_factory, given_data):
    folder = tmp_path_factory.mktemp("recipes")
    whole = "".join(json.dumps(LINE | {"title": f"Pie {i}"}) + "\n" for i in range(3)).encode()
    (folder / "train.jsonl").write_bytes(given_data.draw(damaged(whole)))
    config = sources.recipes(str(folder), "recipe_jsonl", 16)
    try:
        found = recipe_data.open_recipes(config, "train")
        assert all(found.name(i).startswith(str(folder) + os.sep) for i in range(len(found)))
        assert all(isinstance(found.text(i), str) for i in range(found.num_recipes))
    except UserError as error:
        one_line(error)


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
    "layer2.json": [{"id": "r1", "images": [{"id": "abcdef.jpg"}]}],
}


@fuzz
@given(st.data(), st.sampled_from(sorted(LAYERS)))
def test_recipe1m(tmp_path_factory, given_data, which):
    folder = tmp_path_factory.mktemp("recipe1m")
    (folder / "a/b/c/d").mkdir(parents=True)
    (folder / "a/b/c/d/abcdef.jpg").write_bytes(PICTURES["JPEG"])
    for name, layer in LAYERS.items():
        (folder / name).write_text(json.dumps(layer))
    (folder / which).write_bytes(given_data.draw(damaged((folder / which).read_bytes())))
    try:
        found = recipe_data.open_recipes(sources.recipes(str(folder), "recipe1m", 16), "train")
        assert all(os.path.realpath(found.name(i)).startswith(str(folder)) for i in range(len(found)))
    except UserError as error:
        one_line(error)


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
