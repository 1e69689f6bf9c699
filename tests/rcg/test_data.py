"""Sources, decoding, augmentation arithmetic, order, shards, resume, bad records."""

import contextlib
import importlib.resources
import io
import json
import pickle
import shutil
import struct
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.common import images
from rcg.data import (
    ArraySource,
    BadRecords,
    ImageFolder,
    ParquetImages,
    TfdsImages,
    eval_arrays,
    image_batches,
    open_source,
)
from rcg.data.decode import DecodeError, Transform, center_crop, decode, mirrored, resized_sides
from rcg.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(seed: int = 0, height: int = 8, width: int = 8) -> bytes:
    return encoded(Image.fromarray(noise(height, width, seed)))


def plain(colour, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (6, 4), colour)


def numbered(count: int) -> ArraySource:
    """Record i is uniformly of colour i and has label i."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    return ArraySource(pixels, np.arange(count))


def settings(size: int = 4, **fields):
    data = images(image_size=size)
    data.update(fields)
    return data


def train(source, data, batch_size=4, seed=0, **more):
    return image_batches(source, data, split="train", batch_size=batch_size, seed=seed, **more)


def take(dataset, count: int) -> list[dict[str, np.ndarray]]:
    with contextlib.closing(iter(dataset)) as iterator:
        return [next(iterator) for _ in range(count)]


def same(a: list, b: list) -> bool:
    return all(
        x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x) for x, y in zip(a, b, strict=True)
    )


# decoding


def png_16_bit(colour_type: int, values: list[int]) -> bytes:
    """A 1 x 1 PNG of 16-bit samples, which Pillow can't write for RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(values)}H", *values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )


def palette() -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


TRANSPARENT_RED = (255, 0, 0, 0)
FRAMES = dict(save_all=True, append_images=[plain((0, 0, 255))])


@pytest.mark.parametrize(
    "data, expected",
    [
        (encoded(plain((10, 200, 30))), (10, 200, 30)),
        (encoded(plain(77, "L")), (77, 77, 77)),
        (encoded(plain(1, "1")), (255, 255, 255)),
        (encoded(palette()), (10, 200, 30)),
        (encoded(palette(), transparency=1), (255, 255, 255)),
        (encoded(plain(TRANSPARENT_RED, "RGBA")), (255, 255, 255)),
        (encoded(plain((255, 0, 0, 51), "RGBA")), (255, 204, 204)),
        (encoded(plain((0, 128), "LA")), (127, 127, 127)),
        (encoded(plain((0, 255, 255, 0), "CMYK"), "TIFF"), (255, 0, 0)),
        (encoded(plain((255, 0, 0)), "GIF", **FRAMES), (255, 0, 0)),
        (encoded(plain((255, 0, 0)), "WEBP", lossless=True, **FRAMES), (255, 0, 0)),
        (encoded(Image.fromarray(np.full((4, 6), 0xABCD, np.uint16))), (0xAB,) * 3),
        (png_16_bit(0, [0xABCD]), (0xAB,) * 3),
        (png_16_bit(2, [0x0AFF, 0xC800, 0x1E01]), (0x0A, 0xC8, 0x1E)),
    ],
)
def test_every_kind_of_image_becomes_rgb(data, expected):
    image = decode(data)
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - expected).max() <= 1


def test_cmyk_jpeg():
    image = np.asarray(decode(encoded(plain((0, 255, 255, 0), "CMYK"), "JPEG", quality=95)))
    assert abs(image.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = noise(4, 6)
    undo = {1: "none", 2: "h", 3: "hv", 4: "v", 5: "t", 6: "tv", 7: "thv", 8: "th"}[orientation]
    stored = upright  # what a camera stores, so that the viewer's turn gives `upright`
    for step in undo if undo != "none" else "":
        stored = {"h": stored[:, ::-1], "v": stored[::-1], "t": stored.swapaxes(0, 1)}[step]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def bomb() -> bytes:
    """A small file that claims 60000 x 60000 pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


BAD = {
    "empty": b"",
    "text": b"<html>404</html>",
    "header_only": b"\x89PNG\r\n\x1a\n",
    "truncated_png": png(0, 64, 64)[:3000],
    "truncated_jpeg": encoded(Image.fromarray(noise(64, 64)), "JPEG")[:-900],
    "bomb": bomb(),
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "strip": encoded(Image.new("RGB", (1, 500))),
    "float": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_bytes_raise_one_error(kind):
    with pytest.raises(DecodeError):
        decode(BAD[kind])


# sizes and offsets


@pytest.mark.parametrize(
    "width, height, short, sides",
    [
        (500, 375, 256, (341, 256)),  # 341.33
        (375, 500, 256, (256, 341)),
        (100, 199, 64, (64, 127)),  # 127.36
        (256, 256, 256, (256, 256)),
        (10, 10, 32, (32, 32)),
    ],
)
def test_resize_truncates_the_long_side(width, height, short, sides):
    assert resized_sides(width, height, short) == sides
    assert Transform(short, short, "random").prepare(noise(height, width)).shape[:2] == sides[::-1]


@pytest.mark.parametrize("length, offset", [(32, 0), (33, 0), (34, 1), (35, 2), (37, 2), (117, 42)])
def test_center_crop_rounds_half_to_even(length, offset):
    image = np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None], (length, 32, 3))
    assert center_crop(image, 32)[:, 0, 0].tolist() == list(range(offset, offset + 32))


def test_center_crop_equals_resize_then_crop():
    image = noise(50, 75)
    got = Transform(32, 36).prepare(image)
    whole = np.asarray(Image.fromarray(image).resize((54, 36), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(got, whole[2:34, 11:43])


@pytest.mark.parametrize("height, width", [(8, 8), (8, 13), (11, 8)])
def test_random_crop_reaches_each_offset_alike(height, width):
    transform = Transform(8, 8, "random")
    image = np.stack(np.broadcast_arrays(*np.indices((height, width)), 0), -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    corners = [tuple(transform.finish(image, rng.random(3))[0, 0, :2].tolist()) for _ in range(1200)]
    counts = {corner: corners.count(corner) for corner in corners}
    expected = (height - 7) * (width - 7)
    assert len(counts) == expected
    assert min(counts.values()) > 0.7 * 1200 / expected


@pytest.mark.parametrize("draw, first", [(0.0, -2), (0.999, 2)])
def test_padding_mirrors_the_border(draw, first):
    transform, image = Transform(6, 6, "random", padding=2), noise(6, 6)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = padded[first + 2 : first + 8, first + 2 : first + 8]
    np.testing.assert_array_equal(transform.finish(image, np.array([draw, draw, 0.9])), expected)
    assert mirrored(np.arange(-2, 8), 6).tolist() == [2, 1, 0, 1, 2, 3, 4, 5, 4, 3]


def test_flip_half_of_the_time():
    image, transform = noise(4, 4), Transform(4, 4, flip=True)
    np.testing.assert_array_equal(transform.finish(image, np.array([0, 0, 0.49])), image[:, ::-1])
    np.testing.assert_array_equal(transform.finish(image, np.array([0, 0, 0.5])), image)


@pytest.mark.parametrize(
    "fields", [{"augment": "crop"}, {"resize": 3}, {"augment": "random_crop_flip", "crop_padding": 4}]
)
def test_settings_that_do_not_fit_are_refused(fields):
    with pytest.raises(UserError, match="config.data"):
        train(numbered(4), settings(4, **fields))


# order


def test_an_epoch_visits_each_record_once_and_is_reshuffled():
    batches = take(train(numbered(12), settings(), batch_size=4), 9)
    epochs = np.concatenate([b["label"] for b in batches]).reshape(3, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs.tolist())
    assert not (epochs[0] == epochs[1]).all()
    assert all((b["image"][:, 0, 0, 0] == b["label"]).all() for b in batches)


def test_seed_decides_everything():
    source = ArraySource(list(noise(40, 10).reshape(10, 4, 10, 3)), np.arange(10))
    data = settings(augment="random_crop_flip")
    one, two, other = (take(train(source, data, seed=s), 6) for s in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


def test_shards_are_disjoint_complete_and_cropped_as_one():
    """Each number of shards sees the same global batches, row by row."""
    source = ArraySource(list(noise(80, 10).reshape(20, 4, 10, 3)), np.arange(20))
    data = settings(augment="random_crop_flip")
    whole = take(train(source, data, batch_size=4), 10)
    shards = [take(train(source, data, batch_size=2, shard_index=i, shard_count=2), 10) for i in range(2)]
    for one, first, second in zip(whole, *shards, strict=True):
        for field in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([first[field], second[field]]), one[field])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(workers, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(13):
        (folder / f"{i:02}.png").write_bytes(b"broken" if i == 5 else png(i, 8, 11))
    source, settled = ImageFolder(str(tmp_path)), settings(8, augment="random_crop_flip")
    dataset = train(
        source, settings(8, augment="random_crop_flip", workers=workers, cache_mb=0), batch_size=3
    )
    with contextlib.closing(iter(dataset)) as iterator:
        expected = [next(iterator) for _ in range(4)]
        state = json.loads(json.dumps(iterator.get_state()))
        expected += [next(iterator) for _ in range(5)]
    with contextlib.closing(iter(dataset)) as iterator:
        iterator.set_state(state)
        rest = [next(iterator) for _ in range(5)]
    assert same(rest, expected[4:])
    assert {type(v) for b in expected for v in b.values()} == {np.ndarray}
    assert sum(b["bad"].sum() for b in expected) >= 2
    # neither processes nor the memory of decoded records change what comes
    assert same(expected, take(train(source, settled, batch_size=3), 9))


def test_decoded_once_if_it_fits():
    class Counting(ArraySource):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    source, other = (Counting([png(i) for i in range(6)]) for _ in range(2))
    take(train(source, settings(8)), 12)
    assert source.reads < 12  # two threads may meet at a record that ends one epoch and starts the next
    take(train(other, settings(8, cache_mb=0)), 12)
    assert other.reads >= 48


# evaluation


def test_eval_is_one_padded_pass_in_order():
    batches = list(image_batches(numbered(10), settings(), split="eval", batch_size=4, seed=0))
    assert np.concatenate([b["label"] for b in batches]).tolist() == [*range(10), 0, 0]
    assert np.concatenate([b["mask"] for b in batches]).tolist() == [1] * 10 + [0] * 2


def test_eval_shards_have_as_many_batches_and_count_each_record_once():
    def shard(i):
        options = dict(split="eval", batch_size=2, seed=0, shard_index=i, shard_count=3)
        return list(image_batches(numbered(7), settings(), **options))

    shards = [shard(i) for i in range(3)]
    assert {len(s) for s in shards} == {2}
    counted = [label for s in shards for b in s for label in b["label"][b["mask"] > 0]]
    assert sorted(counted) == list(range(7))


def test_a_limited_eval_is_spread_over_the_records():
    data = settings(max_eval_records=4)
    (batch,) = image_batches(numbered(20), data, split="eval", batch_size=4, seed=0)
    assert batch["label"].tolist() == [0, 5, 10, 15]
    assert eval_arrays(numbered(20), data, 4)[1].tolist() == [0, 5, 10, 15]


def test_eval_does_not_count_bad_records():
    source = ArraySource([png(0), b"", png(2)], [0, 1, 2])
    (batch,) = image_batches(source, settings(8), split="eval", batch_size=3, seed=0)
    assert batch["mask"].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(batch["image"][1], batch["image"][2])
    pictures, labels = eval_arrays(source, settings(8), 0)
    assert labels.tolist() == [0, 2]
    np.testing.assert_array_equal(pictures[0], noise(8, 8, 0))


# bad records


def test_a_bad_record_is_replaced_by_the_next_good_one(caplog):
    source = ArraySource([png(0), *list(BAD.values())[:2], png(3)], range(4))
    (batch,) = take(train(source, settings(8)), 1)
    rows = {
        (int(a), int(b), int(c))
        for a, b, c in zip(*(batch[k] for k in ("label", "bad", "bad_index")), strict=True)
    }
    assert rows == {(0, 0, -1), (3, 2, 2), (3, 1, 2), (3, 0, -1)}
    bad = BadRecords(source, 0.5)
    for _ in range(3):
        bad.update(batch["bad"], batch["bad_index"])
    named = [record.getMessage().split(": ")[1] for record in caplog.records]
    assert named == ["array row 1", "array row 2"] or named == ["array row 2", "array row 1"]


def test_too_many_bad_records_stop_the_run():
    bad = BadRecords(numbered(100), 0.01)
    for _ in range(30):  # the same one over and over is one
        bad.update(np.array([0, 1]), np.array([-1, 7]))
    with pytest.raises(UserError, match="2 of 100 records.*array row 7, array row 9"):
        bad.update(np.array([1]), np.array([9]))


def test_a_large_set_is_judged_before_its_end():
    bad = BadRecords(ArraySource(np.zeros((100_000, 1, 1, 3), np.uint8)), 0.01)
    indices = np.arange(900) * 7
    few = np.arange(900) % 50 == 0
    bad.update(few.astype(int), np.where(few, indices, -1))  # 2 %, but too early to say
    with pytest.raises(UserError, match="max_bad_fraction 0.01"):
        bad.update(few.astype(int), np.where(few, indices + 10_000, -1))


def test_bad_records_go_on_after_a_resume(caplog):
    first, second = BadRecords(numbered(100), 0.01), BadRecords(numbered(100), 0.01)
    first.update(np.array([1]), np.array([7]))
    second.restore(json.loads(json.dumps(first.state())))
    caplog.clear()
    second.update(np.array([1]), np.array([7]))
    assert not caplog.records
    with pytest.raises(UserError):
        second.update(np.array([1]), np.array([8]))


def test_nothing_but_bad_records():
    with pytest.raises(UserError, match="5 records in a row can't be decoded"):
        take(train(ArraySource([b""] * 5), settings(8)), 1)


def test_a_file_that_vanishes_is_a_bad_record(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    source = ImageFolder(str(tmp_path))
    (tmp_path / "1.png").unlink()
    _, labels = eval_arrays(source, settings(8), 0)
    assert len(labels) == 2


# folders


def write(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))


def test_folder_with_splits_and_classes(tmp_path, caplog):
    write(tmp_path, "train/b/1.PNG", "train/a/deep/er/2.jpg", "train/c/3.webp", "test/c/4.png", "val/d/5.png")
    write(tmp_path, "train/a/notes.txt", "train/a/.hidden.png", "train/.git/6.png", "train/loose.png")
    source = open_source(settings(8, path=str(tmp_path)), "train")
    names = [source.name(i).removeprefix(str(tmp_path)) for i in range(len(source))]
    assert names == ["/train/a/deep/er/2.jpg", "/train/b/1.PNG", "/train/c/3.webp"]
    assert [source[i]["label"] for i in range(3)] == [0, 1, 2]
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        "left out 1 images beside the class folders",
        "left out 1 files that are no images (1 .txt)",
    ]
    test = open_source(settings(8, path=str(tmp_path)), "eval")  # lacks a and b, has the same numbers
    assert test.label_names == source.label_names == ("a", "b", "c", "d")
    assert test[0]["label"] == 2


def test_flat_folder_serves_every_split(tmp_path):
    write(tmp_path, "1.png", "2.jpeg")
    source = open_source(settings(8, path=str(tmp_path)), "train")
    assert [source[i]["label"] for i in range(len(source))] == [0, 0]
    assert source.label_names == ("all",)


@pytest.mark.parametrize(
    "files, path, split, message",
    [
        (["a/1.png"], "nowhere", "train", "does not exist"),
        (["a/1.txt"], ".", "train", "holds no image files"),
        (["train/a/1.png", "val/a/1.png"], ".", "test", 'no split "test"; there are: train, val'),
        (["a/1.png"], "a/1.png", "train", "is not a folder"),
    ],
)
def test_wrong_folders(tmp_path, files, path, split, message):
    write(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        open_source(settings(8, path=str(tmp_path / path)), split)


def test_no_path():
    with pytest.raises(UserError, match="config.data.path is empty"):
        open_source(settings(8), "train")


# Parquet


def table(labels, kind=None, first=0):
    cells = [png(first + i) for i in range(len(labels))]
    return pa.table({"image": [kind(c) for c in cells] if kind else cells, "label": labels})


@pytest.mark.parametrize("kind", [None, lambda data: {"bytes": data, "path": "x.png"}])
def test_parquet_rows(tmp_path, kind):
    pq.write_table(table(list("cabacab"), kind), tmp_path / "x.parquet", row_group_size=2)
    source = open_source(settings(8, source="parquet", path=str(tmp_path / "x.parquet")), "train")
    source = pickle.loads(pickle.dumps(source))
    assert [source.label_names[source[i]["label"]] for i in range(len(source))] == list("cabacab")
    assert [source[i]["image"] for i in (6, 0, 3)] == [png(6), png(0), png(3)]
    assert source.name(5).endswith("x.parquet row 5")


def test_parquet_folder_numbers_labels_over_all_files(tmp_path):
    pq.write_table(table(["b", "a"]), tmp_path / "train-0.parquet")
    pq.write_table(table(["c"], first=2), tmp_path / "train-1.parquet")
    pq.write_table(table(["d", "c"]), tmp_path / "test.parquet")
    data = settings(8, source="parquet", path=str(tmp_path))
    source, test = open_source(data, "train"), open_source(data, "eval")
    assert source.label_names == test.label_names == ("a", "b", "c", "d")
    assert [source[i]["label"] for i in range(3)] == [1, 0, 2]
    assert [test[i]["label"] for i in range(2)] == [3, 2]
    assert source.name(2).endswith("train-1.parquet row 0")
    with pytest.raises(UserError, match='no split "dev".*test.parquet, train-0.parquet'):
        open_source(data, "dev")


def test_parquet_class_names_of_hugging_face(tmp_path):
    about = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}}}
    rows = table([1, 0]).replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(rows, tmp_path / "x.parquet")
    source = ParquetImages(str(tmp_path / "x.parquet"))
    assert source.label_names == ("cat", "dog", "eel")
    assert source[0]["label"] == 1


def test_parquet_keeps_few_row_groups(tmp_path):
    pq.write_table(table(list(range(20))), tmp_path / "x.parquet", row_group_size=2)
    source = ParquetImages(str(tmp_path / "x.parquet"), keep_bytes=3 * 2 * len(png()))
    for i in range(20):
        assert source[i]["image"] == png(i)
    assert 1 <= len(source._cache) <= 3


def test_parquet_null_image_is_a_bad_record(tmp_path):
    pq.write_table(pa.table({"image": [png(0), None], "label": [0, 1]}), tmp_path / "x.parquet")
    source = ParquetImages(str(tmp_path / "x.parquet"))
    assert eval_arrays(source, settings(8), 0)[1].tolist() == [0]


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"img": [b""], "label": [0]},
            'no column "image"; there are: img, label: set config.data.image_column',
        ),
        ({"image": [b""], "fine": [0]}, 'no column "label".*"" for none'),
        ({"image": ["a.png"], "label": [0]}, "holds string, not the bytes"),
        ({"image": [b""], "label": [0.5]}, "not numbers or names"),
        ({"image": [b"", b""], "label": [0, None]}, "1 rows without label"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_wrong_parquet(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        ParquetImages(str(tmp_path / "x.parquet"))


def test_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        ParquetImages(str(tmp_path / "x.parquet"))


def test_real_parquet(shared):
    data = settings(32, source="parquet", path=str(shared / "data/cifar10"))
    source = open_source(data, "eval")
    assert (len(source), len(source.label_names)) == (5000, 10)
    pictures, labels = eval_arrays(source, data, 50)
    assert pictures.shape == (50, 32, 32, 3) and sorted(set(labels.tolist())) == list(range(10))


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny data set in ArrayRecord format; the path of its version folder."""
    pytest.importorskip("array_record")
    tfds = pytest.importorskip("tensorflow_datasets")

    class Colours(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(names=["x", "y"]),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"image": io.BytesIO(png(i)), "label": i % 2}

    builder = Colours(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    with pytest.MonkeyPatch.context() as patch:  # TFDS imports this backport without asking for it
        patch.setitem(sys.modules, "importlib_resources", importlib.resources)
        builder.download_and_prepare()
    return str(builder.data_path)


def test_tfds_records(prepared):
    source = pickle.loads(pickle.dumps(open_source(settings(8, source="tfds", path=prepared), "train")))
    assert source.label_names == ("x", "y") and len(source) == 4
    pictures, labels = eval_arrays(source, settings(8), 0)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    assert {p.tobytes() for p in pictures} == {noise(8, 8, i).tobytes() for i in range(4)}


def test_wrong_tfds(prepared, monkeypatch):
    with pytest.raises(UserError, match='no split "test"; there are: train'):
        TfdsImages(prepared, "test")
    with pytest.raises(UserError, match='no feature "picture"; there are: image, label'):
        TfdsImages(prepared, "train", "picture")
    with pytest.raises(UserError, match="can't open"):
        TfdsImages("no_such_data_set_at_all", "train")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install"):
        TfdsImages(prepared, "train")


def test_tfds_in_a_format_that_takes_tensorflow(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "colours" / "1.0.0")
    about = tmp_path / "colours" / "1.0.0" / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="is in tfrecord format.*file_format='array_record'"):
        TfdsImages(str(about.parent), "train")


def test_tfds_not_prepared(tmp_path, monkeypatch):
    pytest.importorskip("array_record")
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="download_and_prepare"):
        TfdsImages("mnist", "train")


def test_bad_records_of_several_shards_are_joined():
    """Each shard sees its own; what was seen before they started counts once."""
    shards = [BadRecords(numbered(100), 0.5) for _ in range(2)]
    for shard in shards:
        shard.restore({"seen": 50, "bad": [3]})
    shards[0].update(np.array([0, 1]), np.array([-1, 7]))
    shards[1].update(np.array([0, 1]), np.array([-1, 9]))
    joined = shards[0].joined([shard.state() for shard in shards])
    assert joined == {"seen": 50 + 3 + 3, "bad": [3, 7, 9]}
    assert joined == shards[1].joined([shard.state() for shard in shards])


def test_labels_that_stand_for_none(tmp_path):
    pq.write_table(table([-1, -1]), tmp_path / "test.parquet")
    pq.write_table(table([0, 1]), tmp_path / "train.parquet")
    data = settings(8, source="parquet", path=str(tmp_path))
    assert len(open_source(data, "train")) == 2
    with pytest.raises(UserError, match='"label" has labels below 0, which stand for none'):
        open_source(data, "eval")
    data.label_column = ""
    assert open_source(data, "eval")[0]["label"] == 0


def test_splits_of_any_name_share_their_classes(tmp_path):
    write(tmp_path, "learn/a/1.png", "learn/b/2.png", "hold/b/3.png")
    data = settings(8, path=str(tmp_path), train_split="learn", eval_split="hold")
    assert open_source(data, "train").label_names == open_source(data, "eval").label_names == ("a", "b")
    assert open_source(data, "eval")[0]["label"] == 1
