"""Images from folders, Parquet, TFDS or memory, as deterministic, resumable batches (Grain).

A source gives raw records by index; `image_batches` decodes, augments, shuffles, shards and batches them.
Order and augmentation are functions of (seed, epoch, index) alone. A record that can't be decoded is
replaced by the next one that can; how many were passed over travels in the batch, so that every process and
every resumed run counts the same.
"""

import glob
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageFile, ImageOps

from rcg.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AUGMENTATIONS = ("center_crop", "random_crop_flip", "flip", "none")
MAX_PIXELS = 2**27  # a larger picture is taken for a decompression bomb
MAX_PROBES = 64


class Source(Protocol):
    """Raw records by index."""

    label_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes or uint8 [H, W, 3], "label": int}."""

    def name(self, index: int) -> str:
        """What to call the record in a message."""


class ImageFolder:
    """Pictures under a folder, in the order of their paths; the first level of sub-folders is the label.

    Raises:
      UserError: no such folder, or no picture in it.
    """

    def __init__(self, path: str):
        if not os.path.isdir(path):
            raise UserError(f"data.path {path} is not a folder")
        found = sorted(os.path.join(d, f) for d, _, files in os.walk(path) for f in files)
        self._files = [f for f in found if f.lower().endswith(EXTENSIONS)]
        if not self._files:
            raise UserError(f"no images under {path} ({len(found)} other files); it takes {EXTENSIONS}")
        parts = [os.path.relpath(f, path).split(os.sep) for f in self._files]
        classes = sorted({p[0] for p in parts if len(p) > 1})
        self.label_names = tuple(classes) or ("all",)
        self._labels = [classes.index(p[0]) if len(p) > 1 else 0 for p in parts]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self._files[index], "rb") as f:
            return {"image": f.read(), "label": self._labels[index]}

    def name(self, index: int) -> str:
        return self._files[index]


class ParquetImages:
    """Parquet files with a column of image bytes (or Hugging Face's {bytes, path}) and maybe of labels.

    Raises:
      UserError: no such file or column.
    """

    def __init__(self, files: Sequence[str], image: str = "image", label: str = "label"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._arguments = (tuple(files), image, label)
        try:
            tables = [pq.read_table(f, memory_map=True) for f in files]
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{', '.join(files)}: not readable as Parquet ({error})") from error
        if image not in tables[0].column_names:
            raise UserError(f'{files[0]} has no column "{image}"; there are: {tables[0].column_names}')
        table = pa.concat_tables(tables)
        self._images = table[image]
        if pa.types.is_struct(self._images.type):
            self._images = pa.chunked_array([c.field("bytes") for c in self._images.chunks])
        labels = table[label].to_pylist() if label in table.column_names else [0] * len(table)
        names = sorted(set(labels))
        self.label_names = tuple(str(n) for n in names)
        index = {name: i for i, name in enumerate(names)}
        self._labels = np.array([index[x] for x in labels], np.int32)
        self._files = files

    def __reduce__(self):  # worker processes map the files anew instead of receiving their bytes
        return type(self), self._arguments

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index].as_py() or b"", "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return f"row {index} of {', '.join(self._files)}"


class TfdsImages:
    """A prepared TFDS data set in array_record format, read without TensorFlow.

    Raises:
      UserError: the package or the data set is missing, or it is in another format.
    """

    def __init__(self, name: str, split: str):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError("data.source=tfds needs: pip install 'chef-fusion[tfds]'") from error
        self._name = f"{name}[{split}]"
        try:
            builder = tfds.builder(name, file_format="array_record")
            self._records = builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except Exception as error:  # tfds raises many kinds
            raise UserError(
                f"TFDS {self._name} can't be read ({' '.join(str(error).split())[:200]}); prepare it with "
                f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
            ) from error
        label = builder.info.features.get("label")
        self.label_names = tuple(getattr(label, "names", None) or ("all",))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return {"image": record["image"], "label": int(record.get("label", 0))}

    def name(self, index: int) -> str:
        return f"record {index} of {self._name}"


class ArraySource:
    """Images already in memory, uint8 [N, H, W, 3]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self._images = images
        self._labels = np.zeros(len(images), np.int32) if labels is None else labels
        self.label_names = tuple(str(i) for i in range(int(self._labels.max(initial=0)) + 1))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return f"image {index}"


def open_source(data: ConfigDict, split: str) -> Source:
    """The source that `config.data` names. `split` "train" or "eval", or a split's own name; a folder
    without split sub-folders serves for both.

    Raises:
      UserError: nothing there, and what is there instead.
    """
    split = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    if data.source == "tfds":
        return TfdsImages(data.path, split)
    if not data.path:
        raise UserError("data.path is empty; name the images: --config.data.path=...")
    if not os.path.exists(data.path):
        raise UserError(f"data.path {data.path} does not exist")
    if data.source == "parquet":
        if os.path.isfile(data.path):
            return ParquetImages([data.path])
        files = sorted(
            glob.glob(os.path.join(glob.escape(data.path), f"**/{split}*.parquet"), recursive=True)
        )
        if not files:
            raise UserError(
                f"no {split}*.parquet under {data.path}; it has {sorted(os.listdir(data.path))[:8]}"
            )
        return ParquetImages(files)
    inner = os.path.join(data.path, split)
    return ImageFolder(inner if os.path.isdir(inner) else data.path)


class DecodeError(ValueError):
    """These bytes are no picture we can read."""


def decode(image: bytes | np.ndarray) -> Image.Image:
    """Encoded bytes or uint8 [H, W, 3] -> upright RGB picture; transparency goes on white, 16 bits are
    scaled to 8, an animation gives its first frame.

    Raises:
      DecodeError: truncated, empty, not a picture, or of absurd size.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        picture = Image.open(io.BytesIO(image))
        if picture.width * picture.height > MAX_PIXELS:
            raise DecodeError(f"{picture.width} x {picture.height} pixels")
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            values = np.asarray(picture, np.float64)
            picture = Image.fromarray(
                (values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8)
            )
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error
        raise DecodeError(str(error) or type(error).__name__) from error


def resize_short_side(picture: Image.Image, size: int) -> np.ndarray:
    """torchvision's Resize(size, BICUBIC) -> uint8 [H, W, 3], the shorter side `size`."""
    w, h = picture.size
    if min(w, h) != size:
        wide, tall = (int(size * w / h), size) if h <= w else (size, int(size * h / w))
        picture = picture.resize((wide, tall), Image.BICUBIC)
    return np.asarray(picture, np.uint8)


def crop(image: np.ndarray, size: int, top: int, left: int) -> np.ndarray:
    return image[top : top + size, left : left + size]


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """torchvision's CenterCrop."""
    h, w, _ = image.shape
    return crop(image, size, round((h - size) / 2), round((w - size) / 2))


class _Load:
    """index -> {"image", "label", "bad", "bad_index"}, decoded with the short side at its final size.

    Keeps what it decoded while it fits in `cache_bytes`; a copy in a worker process starts empty.
    """

    def __init__(self, source: Source, data: ConfigDict, replace: bool):
        self._source, self._size, self._replace = source, data.image_size, replace
        self._cache_bytes = data.cache_mb * 2**20
        self._cache: dict[int, np.ndarray | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}

    def _pixels(self, index: int, record: dict[str, Any]) -> np.ndarray | None:
        if index in self._cache:
            return self._cache[index]
        try:
            image = resize_short_side(decode(record["image"]), self._size)
        except DecodeError:
            image = None
        self._cache_bytes -= 0 if image is None else image.nbytes
        if self._cache_bytes > 0:
            self._cache[index] = image
        return image

    def __call__(self, index: int) -> dict[str, Any]:
        bad, bad_index, n = 0, -1, len(self._source)
        for probe in range(min(n, MAX_PROBES) if self._replace else 1):
            at = (int(index) + probe) % n
            record = self._source[at]
            image = self._pixels(at, record)
            if image is not None:
                break
            bad, bad_index = bad + 1, at
        else:
            if self._replace:
                raise UserError(
                    f"{bad} records in a row can't be decoded, last {self._source.name(bad_index)}"
                )
            image, record = np.zeros((self._size, self._size, 3), np.uint8), {"label": 0}
        return {
            "image": image,
            "label": np.int32(record["label"]),
            "bad": np.int32(bad),
            "bad_index": np.int32(bad_index),
        }


class _Augment(grain.transforms.RandomMap):
    """The paper's augmentations of one image, from the generator Grain hands over."""

    def __init__(self, data: ConfigDict):
        self._size, self._kind, self._padding = data.image_size, data.augment, data.crop_padding

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image, size = element["image"], self._size
        if self._kind == "random_crop_flip":
            if self._padding:
                pad = self._padding
                image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
            h, w, _ = image.shape
            image = crop(image, size, int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1)))
        else:
            image = center_crop(image, size)
        if self._kind in ("random_crop_flip", "flip") and rng.random() < 0.5:
            image = image[:, ::-1]
        return element | {"image": np.ascontiguousarray(image)}


def image_batches(
    source: Source,
    data: ConfigDict,
    *,
    split: str,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Batches of {"image": uint8 [B, S, S, 3], "label": int32 [B], ...}.

    "train": endless, reshuffled each epoch, augmented as `data.augment` says; "bad" and "bad_index"
    (int32 [B]) tell how many undecodable records were passed over for each, and the last of them.
    "eval": one pass in order over at most `data.max_eval_records`, centre crops; the last batch is padded,
    and `mask` (float32 [B]) is 0 there and for records that can't be decoded.

    Raises:
      UserError: an unknown augmentation, or fewer records than a batch.
    """
    if data.augment not in AUGMENTATIONS:
        raise UserError(f'data.augment "{data.augment}" is not one of {", ".join(AUGMENTATIONS)}')
    if split == "train":
        if len(source) < batch_size * shard_count:
            raise UserError(
                f"{len(source)} training images are fewer than a batch of {batch_size * shard_count}; "
                "lower batch_size"
            )
        dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
        dataset = dataset.slice(slice(shard_index, None, shard_count))
        dataset = dataset.map(_Load(source, data, replace=True)).random_map(_Augment(data))
        batches = dataset.batch(batch_size, drop_remainder=True).to_iter_dataset()
        if data.workers:
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
        return batches

    count = min(len(source), data.max_eval_records or len(source))
    load = _Load(source, data, replace=False)

    def example(index: int) -> dict[str, Any]:
        element = load(min(index, count - 1))
        good = index < count and element["bad"] == 0
        image = center_crop(element["image"], data.image_size)
        return {"image": image, "label": element["label"], "mask": np.float32(good)}

    group = batch_size * shard_count
    dataset = grain.MapDataset.range(-(-count // group) * group)
    dataset = dataset.slice(slice(shard_index, None, shard_count)).map(example)
    return dataset.batch(batch_size).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def eval_arrays(source: Source, data: ConfigDict, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The decodable ones of the first `limit` (0: all) records, centre-cropped uint8 [N, S, S, 3], and their
    labels, int32 [N]."""
    load = _Load(source, data, replace=False)
    images, labels = [], []
    for index in range(min(len(source), limit or len(source))):
        element = load(index)
        if element["bad"] == 0:
            images.append(center_crop(element["image"], data.image_size))
            labels.append(element["label"])
    return np.stack(images), np.array(labels, np.int32)


class BadRecords:
    """Counts and names the records that could not be decoded; too many stop the run."""

    MINIMUM = 200  # records seen before the fraction is judged

    def __init__(self, source: Source, max_fraction: float):
        self._source, self._max = source, max_fraction
        self._seen = self._bad = 0
        self._named: set[int] = set()

    def update(self, bad: np.ndarray, bad_index: np.ndarray) -> None:
        """Takes a batch's fields.

        Raises:
          UserError: the bad fraction exceeds `config.data.max_bad_fraction`.
        """
        self._seen += len(bad)
        self._bad += int(bad.sum())
        for index in sorted({int(i) for i in bad_index if i >= 0} - self._named):
            self._named.add(index)
            print(f"skipped, can't be decoded: {self._source.name(index)}", file=sys.stderr)
        if self._bad > self._max * self._seen and self._seen >= min(self.MINIMUM, len(self._source)):
            raise UserError(
                f"{self._bad} of {self._seen} records can't be decoded, more than "
                f"config.data.max_bad_fraction {self._max}; the last: {self._source.name(max(self._named))}"
            )

    def state(self) -> dict[str, Any]:
        return {"seen": self._seen, "bad": self._bad, "named": sorted(self._named)}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen, self._bad, self._named = state["seen"], state["bad"], set(state["named"])
