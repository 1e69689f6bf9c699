"""Where images come from: random-access records of an encoded (or drawn) image and its label."""

import bisect
import itertools
import json
import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from glob import escape, glob
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from rcg.data.decode import DecodeError
from rcg.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split()
)
SPLITS = ("train", "val", "valid", "validation", "dev", "test", "eval")


class Source(Protocol):
    """Records by index. Must pickle: worker processes get a copy each."""

    label_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": a file's bytes or uint8 [H, W, 3], "label": int}.

        Raises:
          DecodeError, OSError: this record can't be read.
        """
        ...

    def name(self, index: int) -> str:
        """How to find the record: a path, a row."""
        ...


def open_source(data: ConfigDict, split: str) -> Source:
    """The records of one split, as `config.data` says.

    Args:
      split: "train" and "eval" stand for `data.train_split` and `data.eval_split`; or a split's own name.

    Raises:
      UserError: nothing at the path, no such split or column, nothing in it.
    """
    split = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    if not data.path:
        raise UserError(f'config.data.path is empty; give it the {data.source} to read "{split}" from')
    path = os.path.expanduser(data.path)
    if data.source == "tfds":
        return TfdsImages(path, split, data.image_column, data.label_column)
    if not os.path.exists(path):
        raise UserError(f"config.data.path {path} does not exist")
    if data.source == "folder":
        return ImageFolder(path, split, splits=(data.train_split, data.eval_split))
    if data.source == "parquet":
        return ParquetImages(path, split, data.image_column, data.label_column)
    if data.source == "array_record":
        from rcg.data.array_records import ArrayRecordImages

        return ArrayRecordImages(path, split)
    known = "folder, parquet, tfds, array_record"
    raise UserError(f'config.data.source = "{data.source}" is unknown; there are: {known}')


def _listed(names: Iterable[str]) -> str:
    """For an error: what there is, cut short."""
    names = sorted(names)
    return (", ".join(names[:10]) + ", ..." * (len(names) > 10)) or "nothing"


class ArraySource:
    """Images that are in memory already: uint8 [N, H, W, 3], or a sequence of images or of files' bytes."""

    def __init__(
        self,
        images: Sequence[Any],
        labels: Sequence[int] | None = None,
        label_names: Sequence[str] | None = None,
    ):
        self._images = images
        self._labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels, np.int32)
        if len(self._labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(self._labels)} labels")
        count = int(self._labels.max(initial=-1)) + 1
        self.label_names = tuple(label_names or map(str, range(count)))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return f"array row {index}"


UNLABELLED = "which stand for none: set config.data.eval_split, or config.data.label_column to ''"


class ImageFolder:
    """Image files under `path/<split>`, or under `path` if that has no splits.

    The folders right below are the classes, in alphabetical order over all splits; files lie in them at
    any depth. Without such folders every label is 0. Hidden files and folders are left out, and those of the
    files right below that `leave_out` names. `splits`: what splits are called, besides the usual names.
    """

    def __init__(
        self, path: str, split: str = "", leave_out: Collection[str] = (), splits: Collection[str] = ()
    ):
        self._splits = {split, *SPLITS, *splits}
        self._root = self._find(path, split)
        self._files, others = self._walk()
        self._files = [name for name in self._files if name not in leave_out]
        loose = [os.sep not in name for name in self._files]
        if self._files and all(loose):
            self.label_names, self._labels = ("all",), np.zeros(len(self._files), np.int32)
        else:
            if any(loose):
                logger.warning("%s: left out %d images beside the class folders", self._root, sum(loose))
            self._files = [name for name in self._files if os.sep in name]
            self.label_names = self._classes(path, split)
            number = {name: i for i, name in enumerate(self.label_names)}
            self._labels = np.array([number[name.split(os.sep)[0]] for name in self._files], np.int32)
        if others:
            kinds = ", ".join(f"{count} {kind or 'without ending'}" for kind, count in others.most_common(5))
            logger.warning("%s: left out %d files that are no images (%s)", self._root, others.total(), kinds)
        if not self._files:
            raise UserError(f"{self._root} holds no image files ({_listed(EXTENSIONS)})")

    @staticmethod
    def _find(path: str, split: str) -> str:
        if not os.path.isdir(path):
            raise UserError(f'{path} is not a folder; config.data.source = "folder" needs one')
        if not split:
            return path
        if os.path.isdir(os.path.join(path, split)):
            return os.path.join(path, split)
        folders = [entry.name for entry in os.scandir(path) if entry.is_dir()]
        if set(folders) & set(SPLITS):
            raise UserError(f'{path} has no split "{split}"; there are: {_listed(folders)}')
        return path

    def _classes(self, path: str, split: str) -> tuple[str, ...]:
        """Over all splits: a class that one split lacks must not shift the labels of the others."""
        roots = {self._root}
        if self._root != path:
            roots |= {os.path.join(path, other) for other in self._splits}
        entries = (entry for root in roots if os.path.isdir(root) for entry in os.scandir(root))
        return tuple(sorted({e.name for e in entries if e.is_dir() and not _hidden(e.name)}))

    def _walk(self) -> tuple[list[str], Counter]:
        files, others, visited = [], Counter(), set()
        for folder, below, names in os.walk(self._root, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = sorted(name for name in below if not _hidden(name) and real not in visited)
            for name in names if real not in visited else ():
                kind = os.path.splitext(name)[1].lower()
                if kind in EXTENSIONS and not _hidden(name):
                    files.append(os.path.relpath(os.path.join(folder, name), self._root))
                elif not _hidden(name):
                    others[kind] += 1
            visited.add(real)
        return sorted(files), others

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.name(index), "rb") as file:
            return {"image": file.read(), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class ParquetImages:
    """Rows of Parquet files: `path` itself, or `<split>*.parquet` in it, in its `data/` or `<split>/`.

    The image column holds a file's bytes, or Hugging Face's {bytes, path}; the label column whole numbers
    or names (sorted over all files of the folder). Row groups are read when needed, and
    those used last are kept, up to `keep_bytes` in each process. `label_column` "" makes every label 0.
    """

    def __init__(
        self,
        path: str,
        split: str = "",
        image_column: str = "image",
        label_column: str = "label",
        keep_bytes: int = 2**29,
    ):
        self._files, all_files = self._find(path, split)
        self._image_column = image_column
        self._budget = keep_bytes
        self._groups: list[tuple[str, int]] = []  # (file, its row group)
        sizes, bytes_total = [], 0
        for file in self._files:
            parquet = self._open(file)
            self._check_columns(file, parquet.schema_arrow, label_column)
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                self._groups.append((file, group))
                sizes.append(about.num_rows)
                columns = (about.column(i) for i in range(about.num_columns))
                own = (c for c in columns if c.path_in_schema.split(".")[0] == image_column)
                bytes_total += sum(c.total_uncompressed_size for c in own)
        self._ends = list(itertools.accumulate(sizes))
        if not self._ends or not self._ends[-1]:
            raise UserError(f"{path} has no rows")
        if bytes_total > max(self._budget, 2**25 * len(self._groups)):
            logger.warning(
                "%s: each random access may read one of %d large row groups; rewrite it with smaller ones",
                path,
                len(self._groups),
            )
        self.label_names, self._labels = self._read_labels(label_column, all_files)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, Any] = OrderedDict()  # row group -> its image column

    @staticmethod
    def _find(path: str, split: str) -> tuple[list[str], list[str]]:
        if os.path.isfile(path):
            return [path], [path]
        everything = [f for d in ("", "data", "*") for f in glob(os.path.join(escape(path), d, "*.parquet"))]
        patterns = (f"{split}*.parquet", f"data/{split}*.parquet", f"{split}/*.parquet")
        for pattern in patterns:
            found = sorted(glob(os.path.join(escape(path), pattern)))
            if found:
                return found, sorted(set(everything))
        there = {os.path.relpath(file, path) for file in everything}
        raise UserError(f'{path} has no split "{split}" ({split}*.parquet); there are: {_listed(there)}')

    @staticmethod
    def _open(file: str) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} can't be read as Parquet: {reason}") from error

    def _whole_column(self, file: str, column: str) -> Any:
        import pyarrow as pa

        try:
            return self._open(file).read([column]).column(0)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f'{file}: column "{column}" can\'t be read ({reason}); download it again'
            ) from error

    def _check_columns(self, file: str, schema: Any, label_column: str) -> None:
        import pyarrow.types as types

        wanted = {"image_column": self._image_column} | (
            {"label_column": label_column} if label_column else {}
        )
        for field, column in wanted.items():
            if column not in schema.names:
                raise UserError(
                    f'{file} has no column "{column}"; there are: {", ".join(schema.names)}: set '
                    f"config.data.{field}" + (' ("" for none)' if field == "label_column" else "")
                )
        kind = schema.field(self._image_column).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (types.is_binary(kind) or types.is_large_binary(kind)):
            raise UserError(
                f'{file}: column "{self._image_column}" holds {kind}, not the bytes of image files; '
                "set config.data.image_column"
            )

    def _read_labels(self, column: str, all_files: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
        import pyarrow as pa
        import pyarrow.types as types

        if not column:
            return ("all",), np.zeros(len(self), np.int32)
        schema = self._open(self._files[0]).schema_arrow
        values = pa.chunked_array(
            [c for file in self._files for c in self._whole_column(file, column).chunks],
            schema.field(column).type,
        )
        if values.null_count:
            raise UserError(f'{self._files[0]}: column "{column}" has {values.null_count} rows without label')
        if types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if types.is_integer(values.type) or types.is_boolean(values.type):
            labels = values.to_numpy().astype(np.int32)
            if labels.min(initial=0) < 0:
                raise UserError(f'{self._files[0]}: column "{column}" has labels below 0, {UNLABELLED}')
            names = _class_names(schema, column) or map(str, range(int(labels.max()) + 1))
            return tuple(names), labels
        if not (types.is_string(values.type) or types.is_large_string(values.type)):
            raise UserError(f'{self._files[0]}: column "{column}" holds {values.type}, not numbers or names')
        names = set(values.unique().to_pylist())
        for file in set(all_files) - set(self._files):
            parquet = self._open(file)
            if column in parquet.schema_arrow.names:
                names |= set(self._whole_column(file, column).unique().to_pylist()) - {None}
        ordered = sorted(names)
        number = {name: i for i, name in enumerate(ordered)}
        return tuple(ordered), np.array([number[v] for v in values.to_pylist()], np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[int, int]:
        """Row group, and the row in it."""
        group = bisect.bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _column(self, group: int) -> Any:
        import pyarrow as pa

        with self._lock:
            if group not in self._cache:
                file, number = self._groups[group]
                try:
                    table = self._open(file).read_row_group(number, [self._image_column])
                except (pa.ArrowException, OSError, UserError) as error:
                    reason = " ".join(str(error).split())[:200]
                    raise DecodeError(f"{file}, row group {number}: {reason}") from error
                self._cache[group] = table.column(0)
                while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > self._budget:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, row = self._locate(index)
        image = self._column(group)[row].as_py()
        if isinstance(image, dict):
            where, image = image.get("path"), image["bytes"]
            if image is None and where:
                folder = os.path.dirname(self._groups[group][0])
                with open(os.path.join(folder, where), "rb") as file:
                    image = file.read()
        if image is None:
            raise DecodeError("no image in this row")
        return {"image": image, "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        group, row = self._locate(index)
        first = next(i for i, (file, _) in enumerate(self._groups) if file == self._groups[group][0])
        return f"{self._groups[group][0]} row {index - (self._ends[first - 1] if first else 0)}"


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of a Hugging Face ClassLabel, kept in the file's metadata."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None


class TfdsImages:
    """A prepared TFDS data set in ArrayRecord format, read without TensorFlow.

    Args:
      name: as TFDS knows it ("cifar10", "imagenet2012:5.1.0"; under TFDS_DATA_DIR), or the folder of a
        prepared version.
      split: a TFDS split, slices ("train[:90%]") included.
    """

    def __init__(self, name: str, split: str, image_column: str = "image", label_column: str = "label"):
        self._arguments = (name, split, image_column, label_column)
        self._source, info = self._open()
        self.label_names = ("all",)
        if label_column:
            feature = info.features[label_column]
            if not np.issubdtype(np.dtype(feature.np_dtype), np.integer):
                raise UserError(f'TFDS "{name}": the feature "{label_column}" is no number; name another')
            self.label_names = tuple(getattr(feature, "names", None) or ())

    def _open(self) -> tuple[Any, Any]:
        name, split, image_column, label_column = self._arguments
        try:
            import array_record  # noqa: F401
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f'config.data.source = "tfds" needs a package that is missing ({error.name}); install it: '
                'pip install "chef-fusion[tfds]"'
            ) from error
        prepare = (
            f'prepare it: python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
            "file_format='array_record').download_and_prepare()\""
        )
        try:
            if os.path.isdir(name):
                builder = tfds.builder_from_directory(name)
            else:
                builder = tfds.builder(name, file_format="array_record")
        except Exception as error:  # its own errors, and TensorFlow's absence in many forms
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'TFDS can\'t open "{name}": {first_line}') from error
        if not builder.info.splits:
            raise UserError(f'TFDS has "{name}", but not prepared in {builder.data_dir}; {prepare}')
        if split.split("[")[0] not in builder.info.splits:
            raise UserError(
                f'TFDS "{name}" has no split "{split}"; there are: {_listed(builder.info.splits)}'
            )
        for column in filter(None, (image_column, label_column)):
            if column not in builder.info.features:
                there = _listed(builder.info.features)
                raise UserError(f'TFDS "{name}" has no feature "{column}"; there are: {there}')
        if getattr(builder.info.file_format, "value", "array_record") != "array_record":
            raise UserError(
                f'TFDS "{name}" in {builder.data_dir} is in {builder.info.file_format.value} format, which '
                f"takes TensorFlow to read; {prepare}"
            )
        decoders = {image_column: tfds.decode.SkipDecoding()}
        try:
            return builder.as_data_source(split, decoders=decoders), builder.info
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'TFDS can\'t read "{name}" ({first_line}); {prepare}') from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_source"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._source, _ = self._open()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, _, image_column, label_column = self._arguments
        record = self._source[index]
        label = int(record[label_column]) if label_column else 0
        if label < 0:
            raise UserError(f"{self.name(index)} has the label {label}, {UNLABELLED}")
        return {"image": record[image_column], "label": label}

    def name(self, index: int) -> str:
        return f"{self._arguments[0]} {self._arguments[1]} record {index}"
