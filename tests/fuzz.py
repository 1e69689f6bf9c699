"""Fuzzing that is guided by coverage: `pip install atheris`, then

    python -m tests.fuzz <reader> -max_total_time=60

Ends at the first file that makes a reader do anything but read it or refuse it in one line. Readers: json,
component, weights, recipes, table, layer1, layer2, det_ingrs, picture. CI runs `tests/rcg/test_hostile.py`.
"""

import json
import os
import sys
import tempfile

import atheris
import numpy as np

with atheris.instrument_imports(include=["rcg", "chef_fusion"]):
    from chef_fusion import data as recipe_data
    from configs.chef_fusion import sources
    from rcg import component, json_files, weight_files
    from rcg.data import DecodeError, decode
    from rcg.errors import UserError
    from tests.rcg.test_hostile import LAYERS, LINE, PICTURES, TABLE, one_line

FOLDER = tempfile.mkdtemp(prefix="fuzz-")


def write(name: str, held: bytes) -> str:
    path = os.path.join(FOLDER, name)
    with open(path, "wb") as f:
        f.write(held)
    return path


def recipes(source: str) -> None:
    for photo in ("a.png", "abcdef.jpg"):  # a recipe without one is not read
        write(photo, b"")
    found = recipe_data.open_recipes(sources.recipes(FOLDER, source, 16), "train")
    for i in range(len(found)):
        assert os.path.realpath(found.name(i)).startswith(FOLDER)
    for i in range(found.num_recipes):
        assert isinstance(found.text(i), str)


def layer(name: str, held: bytes) -> None:
    for other, value in LAYERS.items():
        write(other, held if other == name else json.dumps(value).encode())
    recipes("recipe1m")


def lines(held: bytes) -> None:
    write("train.jsonl", held)
    recipes("recipe_jsonl")


def table(held: bytes) -> None:
    write("train.tsv", held)
    recipes("recipe_tsv")


def weights(held: bytes) -> None:
    arrays = weight_files.read(write("a.safetensors", held))
    for name in arrays:
        np.asarray(arrays[name])


def about(held: bytes) -> None:
    write("component.json", held)
    component.describe(FOLDER)


READERS = {
    "json": lambda held: json_files.read(write("a.json", held), "make it again"),
    "component": about,
    "weights": weights,
    "recipes": lines,
    "table": table,
    "layer1": lambda held: layer("layer1.json", held),
    "layer2": lambda held: layer("layer2.json", held),
    "det_ingrs": lambda held: layer("det_ingrs.json", held),
    "picture": decode,
}


def seeds(reader: str) -> str:
    """A folder of whole files to begin from."""
    folder = tempfile.mkdtemp(prefix="seeds-")
    path = os.path.join(FOLDER, "seed")
    component.save(path, component.Component("rcg.rdm", {"a": 1}, {"params": {"a": np.ones(3)}}))
    weight_files.write(os.path.join(path, "b.safetensors"), {"a": np.arange(6.0)})
    held = {
        "json": [b'{"a": [1, 2.5, true, null, "b"]}'],
        "component": [open(os.path.join(path, "component.json"), "rb").read()],
        "weights": [open(os.path.join(path, "b.safetensors"), "rb").read()],
        "recipes": [json.dumps(LINE).encode() + b"\n"],
        "table": [TABLE.encode()],
        **{name: [json.dumps(LAYERS[f"{name}.json"]).encode()] for name in ("layer1", "layer2", "det_ingrs")},
        "picture": list(PICTURES.values()),
    }
    for i, one in enumerate(held[reader]):
        with open(os.path.join(folder, str(i)), "wb") as f:
            f.write(one)
    return folder


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz <{'|'.join(READERS)}> [libFuzzer's flags]")
    reader = sys.argv[1]

    def one(held: bytes) -> None:
        try:
            READERS[reader](held)
        except (UserError, DecodeError) as error:
            one_line(error)

    atheris.Setup([sys.argv[0], seeds(reader), *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
