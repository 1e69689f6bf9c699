"""ArrayRecord shards hold what their source held, whoever wrote them and however often they were cut off."""

import numpy as np
import pytest
from PIL import Image

from rcg.data import ArraySource, ImageFolder, array_records, image_batches
from rcg.data.array_records import ArrayRecordImages
from rcg.data.decode import decode
from rcg.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for i in range(25):
        file = path / ("a", "b", "c")[i % 3] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (9, 11, 3), np.uint8)).save(file)
    return path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".array_record"}


def test_shards_hold_the_source(folder, tmp_path):
    source = ImageFolder(str(folder))
    about = array_records.write(source, str(tmp_path), "train", 4)
    held = ArrayRecordImages(str(tmp_path), "train")
    assert len(held) == 25 == about["records"] and held.label_names == ("a", "b", "c")
    assert all(held[i] == source[i] for i in range(25))  # bytes and label


@pytest.mark.parametrize("workers", [0, 2])
def test_whoever_writes_them_they_are_the_same(folder, tmp_path, workers):
    source = ImageFolder(str(folder))
    array_records.write(source, str(tmp_path / "one"), "train", 3)
    done = []

    def cut_off(count):
        done.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        array_records.write(source, str(tmp_path / "two"), "train", 3, workers, cut_off)
    with pytest.raises(UserError, match='no split "train"'):
        ArrayRecordImages(str(tmp_path / "two"), "train")
    first = tmp_path / "two/train-00000-of-00003.array_record"
    at = first.stat().st_mtime_ns
    array_records.write(source, str(tmp_path / "two"), "train", 3, workers)
    assert first.stat().st_mtime_ns == at
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # damage is found when they are made again, and mended
    first.write_bytes(first.read_bytes()[:-1] + b"\0\0")
    array_records.write(source, str(tmp_path / "two"), "train", 3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_of_other_names_are_refused(folder, tmp_path):
    """Records in the same number under other names, or classes that changed their order."""
    source = ImageFolder(str(folder))
    array_records.write(source, str(tmp_path), "train", 2)

    class Other:
        label_names = ("a", "c", "b")

        def __len__(self):
            return len(source)

        def __getitem__(self, i):
            return source[i]

        def name(self, i):
            return source.name(i)

    with pytest.raises(UserError, match="holds shards of other records"):
        array_records.write(Other(), str(tmp_path), "train", 2)
    renamed = Other()
    renamed.label_names = source.label_names
    renamed.name = lambda i: source.name(i) if i == 0 else f"other {i}"
    with pytest.raises(UserError, match="holds shards of other records"):
        array_records.write(renamed, str(tmp_path), "train", 2)
    assert array_records.write(source, str(tmp_path), "train", 2)["records"] == len(source)


def test_training_from_shards_is_training_from_files(folder, tmp_path):
    from configs.common import images

    source = ImageFolder(str(folder))
    array_records.write(source, str(tmp_path), "train", 2)
    data = images(image_size=8)
    data.update(augment="random_crop_flip", workers=2, cache_mb=0)
    batches = [
        iter(image_batches(s, data, split="train", batch_size=4, seed=1))
        for s in (source, ArrayRecordImages(str(tmp_path), "train"))
    ]
    for _ in range(8):
        one, other = map(next, batches)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    for iterator in batches:
        iterator.close()


def test_drawn_pictures_become_files(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    array_records.write(ArraySource(drawn, [2, 0, 1]), str(tmp_path), "train", 2)
    held = ArrayRecordImages(str(tmp_path), "train")
    for i in range(3):
        assert np.array_equal(np.asarray(decode(held[i]["image"])), drawn[i])
        assert held[i]["label"] == (2, 0, 1)[i]


def test_what_is_not_there_or_other_is_said(folder, tmp_path):
    source = ImageFolder(str(folder))
    array_records.write(source, str(tmp_path), "train", 2)
    with pytest.raises(UserError, match="shards of other records"):
        array_records.write(source, str(tmp_path), "train", 3)
    with pytest.raises(UserError, match='no split "test" of launch.prepare --shards; there are: train'):
        ArrayRecordImages(str(tmp_path), "test")
    shard = tmp_path / "train-00001-of-00002.array_record"
    held = shard.read_bytes()
    shard.write_bytes(held[: len(held) // 2])
    with pytest.raises(UserError, match="can't be read|should hold"):
        ArrayRecordImages(str(tmp_path), "train")
    shard.unlink()
    with pytest.raises(UserError, match="is missing; run launch.prepare again"):
        ArrayRecordImages(str(tmp_path), "train")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        ArrayRecordImages(str(tmp_path), "train")
