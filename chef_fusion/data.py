"""Recipes with photos: where they come from, and how they become batches.

A set holds recipes that have at least one photo. Photos are records of `rcg.data`, so they are decoded,
skipped if damaged, counted and put in order as all images are; what a batch says of a recipe is looked up by
its photo.
"""

import csv
import dataclasses
import functools
import gzip
import itertools
import json
import logging
import mmap
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import grain
import numpy as np
from ml_collections import ConfigDict

from chef_fusion import recipes
from chef_fusion.recipes import Recipe
from chef_fusion.tokenization import CaptionTokenizer, LanguageTokenizer
from rcg import json_files
from rcg.data import image_batches
from rcg.errors import UserError

logger = logging.getLogger(__name__)

# where images of a split may lie; nested: a/b/c/d/abcd....jpg
IMAGE_FOLDERS = ("images/{split}/{nested}", "images/{nested}", "{split}/{nested}", "{nested}")
IMAGE_FOLDERS += ("images/{file}", "{file}")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}


class Packed(Sequence):
    """Many small JSON records in one block of memory: a third of what they take as Python objects. On Linux
    data workers see the same block."""

    def __init__(self, records: Iterator[Any]):
        self._file = _in_memory()
        ends = [0]
        for record in records:
            # half a surrogate pair, which JSON can hold, is no text: "?"
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            ends.append(ends[-1] + self._file.write(text.encode(errors="replace")))
        self._file.flush()
        self._block = _mapped(self._file) if ends[-1] else b""
        self._first, self._end = np.array(ends[:-1], int), np.array(ends[1:], int)

    def __getstate__(self) -> dict[str, Any]:
        held = {k: v for k, v in self.__dict__.items() if k not in ("_file", "_block")}
        place = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        shared = os.path.exists(place)
        return held | ({"place": (place, _which(self._file))} if shared else {"bytes": bytes(self._block)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        (place, which), block = state.pop("place", ("", None)), state.pop("bytes", b"")
        self.__dict__ |= state
        self._file = open(place, "rb") if place else _in_memory()
        if place and _which(self._file) != which:
            raise RuntimeError(
                f"{place} is gone: the process that read these recipes has ended or let them go"
            )
        if block:
            self._file.write(block)
            self._file.flush()
        self._block = _mapped(self._file) if os.fstat(self._file.fileno()).st_size else b""

    def __len__(self) -> int:
        return len(self._end)

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return json.loads(self._block[self._first[i] : self._end[i]])

    def only(self, numbers: Sequence[int]) -> "Packed":
        """These records alone."""
        found = object.__new__(Packed)
        found.__dict__ |= self.__dict__
        found._first, found._end = self._first[np.array(numbers, int)], self._end[np.array(numbers, int)]
        return found


def _in_memory() -> IO[bytes]:
    try:
        return open(os.memfd_create("recipes"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return tempfile.TemporaryFile()


def _which(file: IO[bytes]) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino


def _mapped(file: IO[bytes]) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class RecipeSet:
    """Recipes and their photos, which are records of their own: a `rcg.data.Source`, `label` their number."""

    def __init__(self, records: Sequence[Any], photos: Sequence[Sequence[str]]):
        """records: in a form of `Recipe.of`, or {"caption": ...}; photos: of each, at least one path."""
        if not len(records):
            raise UserError("no recipe with a photo in this split")
        self._records = records
        self._first = np.cumsum([0, *map(len, photos)])
        self._paths = [path for own in photos for path in own]
        self.label_names: tuple[str, ...] = ()

    @property
    def num_recipes(self) -> int:
        return len(self._records)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, photo: int) -> dict[str, Any]:
        with open(self._paths[photo], "rb") as f:
            return {"image": f.read(), "label": photo}

    def name(self, photo: int) -> str:
        return self._paths[photo]

    def choose(self, recipe: int, draw: float) -> int:
        """One of a recipe's photos; draw: uniform in [0, 1), 0 for the first."""
        first, end = self._first[recipe], self._first[recipe + 1]
        return int(first + int(draw * (end - first)))

    def of_photo(self, photo: int) -> int:
        """The recipe of a photo."""
        return int(np.searchsorted(self._first, photo, "right")) - 1

    def recipe(self, i: int) -> Recipe:
        """Of a caption that does not parse all of it is the title."""
        record = self._records[i]
        if "caption" in record:
            return recipes.parse(record["caption"]) or Recipe(" ".join(record["caption"].split()), (), ())
        return Recipe.of(record)

    def text(self, i: int) -> str:
        """What the language model is to read and write of recipe i."""
        record = self._records[i]
        return record["caption"] if "caption" in record else recipes.caption(Recipe.of(record))

    def target_text(self, i: int, kind: str) -> str:
        """What the image generator's text encoder is told of recipe i; see `recipes.TARGETS`."""
        return self.text(i) if kind == "caption" else recipes.TARGETS[kind](self.recipe(i))

    def pictured(self, i: int) -> bool:
        """Whether a picture comes after the text of recipe i; else the answer just ends."""
        return True

    def read(self, text: str) -> tuple[str | None, frozenset[str]]:
        """What a written recipe is about, to be scored: (kind of dish, where there are such; names of its
        ingredients)."""
        found = recipes.parse(text)
        return None, recipes.ingredient_names(found) if found else frozenset()


def open_recipes(data: ConfigDict, split: str) -> RecipeSet:
    """The recipes of one split, as `config.data` says.

    Recipe1M names the split of each recipe, and so may the records of other files ("partition"). Else the
    file's name says it ("train" as a word of its own, not as in "strainer"). Of a file that says nothing
    every tenth record is kept from training: "val" and "test" are both those. Recipes without a photo on the
    disk are left out; the log says how many.

    Args:
      split: "train" and "eval" stand for `data.train_split` and `data.eval_split`; or a split's own name.

    Raises:
      UserError: nothing there, or nothing with photos.
    """
    split = {"train": data.train_split, "eval": data.eval_split}.get(split, split)
    path = os.path.expanduser(data.path)
    if not path or not os.path.exists(path):
        raise UserError(f'config.data.path "{data.path}" does not exist; give it the recipes to read')
    read = {"recipe1m": _recipe1m, "recipe_tsv": _tsv, "recipe_jsonl": _jsonl}[data.source]
    return read(path, split, data)


def _items(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, one at a time.

    Raises:
      UserError: damaged, or no list of objects.
    """
    import ijson

    try:
        with open(path, "rb") as f:
            for item in ijson.items(f, "item", use_float=True):
                if not isinstance(item, dict):
                    raise UserError(f"{path} is no list of objects, as Recipe1M's layers are")
                yield item
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error


def _names(split: str) -> tuple[str, ...]:
    return SPLIT_NAMES.get(split, (split,))


def _image_path(root: str, pattern: str, split: str, name: str) -> str:
    nested = os.path.join(*name[:4], name)
    return os.path.join(root, pattern.format(split=split, nested=nested, file=name))


def _locate(root: str, split: str, photos: list[list[str]]) -> list[list[str]]:
    """The paths of photos whose names are given, by the first of IMAGE_FOLDERS that one of a hundred is in.

    Raises:
      UserError: none of them is in any.
    """
    examples = list(itertools.islice(itertools.chain.from_iterable(photos), 100))
    for name, folder, pattern in itertools.product(examples, _names(split), IMAGE_FOLDERS):
        if os.path.exists(_image_path(root, pattern, folder, name)):
            return [[_image_path(root, pattern, folder, name) for name in own] for own in photos]
    others = f", nor any of the next {len(examples) - 1}" if len(examples) > 1 else ""
    tried = _image_path(root, IMAGE_FOLDERS[0], split, examples[0])
    raise UserError(f"no image {examples[0]} under {root}{others}; looked for {tried} and the like")


def _listing(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: no name that a folder can have
        return frozenset()


def _there(paths: list[list[str]]) -> list[list[str]]:
    """Those of the photos that are there. Each folder is listed once: Recipe1M has about ten photos in one,
    and a network disk is asked once for them all."""
    listing = functools.cache(_listing)

    def there(path: str) -> bool:
        folder, name = os.path.split(path)
        names = listing(folder)
        # a disk may spell a name in other letters than the one it is found by
        return name in names or (bool(names) and os.path.exists(path))

    return [[path for path in own if there(path)] for own in paths]


USUAL = ("recipes", "recipes with an image", "images", "of another split")  # the rest is worth a warning


def _recipe_set(
    root: str, split: str, records: Packed, paths: list[list[str]], counts: Counter[str]
) -> RecipeSet:
    """The recipes that have a photo on the disk; says how many recipes and photos there are, and are not.

    Raises:
      UserError: none has.
    """
    named = sum(map(len, paths))
    paths = _there(paths)
    kept = [i for i, own in enumerate(paths) if own]
    counts["images that are missing"] = named - sum(map(len, paths))
    counts["recipes without an image"] += len(records) - len(kept)
    counts["recipes with an image"], counts["images"] = len(kept), sum(map(len, paths))
    said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    if not kept:
        raise UserError(
            f'{root} holds no recipe with an image in the split "{split}" ({said or "nothing"}); a record is '
            "of the split that it names as its partition, else of the one in its file's name"
        )
    unusual = any(n and what not in USUAL for what, n in counts.items())
    logger.log(logging.WARNING if unusual else logging.INFO, "%s, %s: %s", root, split, said)
    return RecipeSet(records.only(kept), [paths[i] for i in kept])


def _safe(name: Any) -> bool:
    """Whether an image's id is a file name that stays in its folder."""
    return (
        isinstance(name, str)
        and len(name) > 4
        and not set(name[:4]) & set("./\\")
        and not ("/" in name or "\\" in name or "\0" in name)
    )


def _id(item: dict[str, Any]) -> str:
    found = item.get("id")
    return found if isinstance(found, str) else ""


def _list(item: dict[str, Any], name: str) -> list[Any]:
    found = item.get(name)
    return found if isinstance(found, list) else []


def _recipe1m(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """Recipe1M's own layout: layer1.json, layer2.json, maybe det_ingrs.json; images by their ids' digits."""
    images: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for item in _items(os.path.join(root, "layer2.json")):
        found = [i.get("id") for i in _list(item, "images") if isinstance(i, dict)]
        good = [name for name in found if _safe(name)]
        counts["images with an id that is no file name"] += len(found) - len(good)
        if good and _id(item):
            images[_id(item)] = good
    detected: dict[str, list[str]] = {}
    extra = os.path.join(root, "det_ingrs.json")
    if os.path.exists(extra):
        for item in _items(extra):
            if _id(item) not in images:
                continue
            pairs = zip(_list(item, "ingredients"), _list(item, "valid"), strict=False)
            texts = [i.get("text") if isinstance(i, dict) else None for i, valid in pairs if valid]
            names = [text for text in texts if isinstance(text, str)]
            counts["detected ingredients that are no text"] += len(texts) - len(names)
            detected[_id(item)] = names
    names = _names(split)
    photos: list[list[str]] = []
    partitions: Counter[str] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for item in _items(os.path.join(root, "layer1.json")):
            partitions[str(item.get("partition"))] += 1
            if item.get("partition") not in names:
                continue
            counts["recipes"] += 1
            own = images.get(_id(item))
            if not own:
                counts["recipes without an image"] += 1
                continue
            try:
                recipe = Recipe.of(item)
            except ValueError:
                counts["records that are no recipes"] += 1
                continue
            photos.append(own)
            known = detected.get(recipe.id)
            yield recipe.record() | {"id": recipe.id} | ({"detected": known} if known else {})

    packed = Packed(records())
    if not len(packed):
        there = " ".join(", ".join(sorted(partitions)).split())[:200] or "nothing"
        raise UserError(f'{root} has no recipe with an image in the split "{split}"; splits there: {there}')
    return _recipe_set(root, split, packed, _locate(root, split, photos), counts)


# --- splits of files

KEPT = 10  # of the records that no split is named for, every tenth is not trained on


def says(path: str, split: str) -> bool:
    """Whether a file's name holds one of the split's as a word of its own: "latest" does not hold "test"."""
    names = "|".join(map(re.escape, _names(split)))
    # nor does fold12 hold fold1
    found = re.search(rf"(?<![^\W\d_])({names})(?![^\W\d_]|(?<=\d)\d)", os.path.basename(path), re.I)
    return found is not None


def _files_of_split(root: str, split: str, *endings: str) -> list[str]:
    """The file itself, or those in a folder whose names say the split.

    Raises:
      UserError: none does.
    """
    if os.path.isfile(root):
        return [root]
    try:
        there = sorted(name for name in os.listdir(root) if name.endswith(endings))
    except OSError as error:
        raise UserError(f"can't read {root}: {error.strerror}") from error
    found = [os.path.join(root, name) for name in there if says(name, split)]
    if not found:
        raise UserError(
            f'{root} holds no {endings[0]} file of the split "{split}"; '
            f"call one {_names(split)[0]}{endings[0]}, or name a file of all splits as the path"
        )
    return found


def _belongs(path: str, split: str, data: ConfigDict, counts: Counter[str]) -> Callable[[Any], bool]:
    """Whether the next record of a file is of the split, by what it says of its partition.

    A record that says nothing is of the split that the file's name says. Where that says none, or several,
    every tenth such record is kept from training, and is of all splits but that for training.
    """
    known = dict.fromkeys((*SPLIT_NAMES, data.train_split, data.eval_split, split))
    said = [name for name in known if says(path, name)]
    # train_small.jsonl is of the split train_small, if there is one
    said = [name for name in said if not any(name != other and says(other, name) for other in said)]
    by_name = says(path, split) if len(said) == 1 else None
    training = split == data.train_split
    numbers = itertools.count()

    def belongs(partition: Any) -> bool:
        found = by_name
        if partition not in (None, ""):
            found = str(partition).lower() in map(str.lower, _names(split))
        elif by_name is None:
            counts[f"without a partition (every {KEPT}th kept from training)"] += 1
            found = (next(numbers) % KEPT > 0) == training
        counts["recipes" if found else "of another split"] += 1
        return found

    return belongs


def _rows(path: str) -> Iterator[dict[str, str | None]]:
    """The rows of a TSV.

    Raises:
      UserError: can't be read, or has no columns caption and image.
    """
    csv.field_size_limit(2**24)
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = csv.DictReader(f, delimiter="\t")
            if not {"caption", "image"} <= set(rows.fieldnames or ()):
                columns = str(rows.fieldnames)[:200]
                raise UserError(f"{path} has the columns {columns}, not caption and image with a tab between")
            yield from rows
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 after line {rows.line_num}; save it as that") from error
    except csv.Error as error:
        raise UserError(f"{path}, after line {rows.line_num}: {error}; is a quotation mark open?") from error


def _tsv(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """The published code's form: <split>.tsv with the columns caption and image, maybe partition; images by
    their names' first four characters under a folder of the split's name."""
    files = _files_of_split(root, split, ".tsv")
    if len(files) > 1:
        raise UserError(f"{root} holds {len(files)} .tsv files of the split {split}; name one as the path")
    counts: Counter[str] = Counter()
    belongs = _belongs(files[0], split, data, counts)
    photos: list[list[str]] = []

    def records() -> Iterator[dict[str, Any]]:
        for row in _rows(files[0]):
            if not belongs(row.get("partition")):
                continue
            if not row["caption"]:
                counts["rows without a caption"] += 1
            elif not row["image"]:
                counts["recipes without an image"] += 1
            elif not _safe(row["image"]):
                counts["images with a name that is no file's"] += 1
            else:
                photos.append([row["image"]])
                yield {"caption": row["caption"]}

    packed = Packed(records())
    folder = os.path.dirname(os.path.abspath(files[0]))
    return _recipe_set(files[0], split, packed, _locate(folder, split, photos) if photos else [], counts)


def _jsonl(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """JSON lines (.jsonl, maybe .gz) of title, ingredients, instructions, images (paths below the
    file's folder), and maybe partition, the split's name."""
    photos: list[list[str]] = []
    counts: Counter[str] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for path in _files_of_split(root, split, ".jsonl", ".jsonl.gz"):
            folder = os.path.dirname(os.path.abspath(path))
            belongs = _belongs(path, split, data, counts)
            for number, record in json_lines(path):
                if not belongs(record.get("partition")):
                    continue
                named = record.get("images") or record.get("image") or []
                named = named if isinstance(named, list) else [named]
                given = [n for n in named if isinstance(n, str) and n]
                paths = [os.path.normpath(os.path.join(folder, n)) for n in given]
                own = [p for p in paths if p.startswith(os.path.join(folder, ""))]
                counts["images outside the file's folder"] += len(paths) - len(own)
                if not own:
                    counts["recipes without an image"] += 1
                    continue
                try:
                    recipe = Recipe.of(record)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: {error}") from error
                photos.append(own)
                yield recipe.record() | {"id": recipe.id, "detected": list(recipe.detected)}

    packed = Packed(records())
    return _recipe_set(root, split, packed, photos, counts)


def json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a .jsonl or .jsonl.gz file.

    Raises:
      UserError: naming the line that is none.
    """
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    record = json_files.parse(line)
                except json_files.NotJSON as error:
                    raise UserError(f"{path}, line {number} is no JSON ({error})") from error
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number} is no JSON object")
                yield number, record
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} can't be read ({error})") from error


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a batch of photos is told of their recipes.

    Attributes:
      targets: [N recipes, L, D] of the text encoder, computed beforehand; None: the batch has the ids it is
        computed from.
      buckets: lengths below `max_tokens`: a batch for training has examples of up to one of them, and is no
        longer than that.
    """

    recipes: RecipeSet
    language: LanguageTokenizer | None
    captions: CaptionTokenizer | None
    max_tokens: int = 300
    target_text: str = "caption"
    targets: Any = None
    buckets: Sequence[int] = ()

    @property
    def _edges(self) -> tuple[int, ...]:
        return (*sorted(self.buckets), self.max_tokens)

    @functools.cached_property
    def _bucket_of(self) -> np.ndarray:
        """The bucket of each recipe."""
        texts = (self.recipes.text(i) for i in range(self.recipes.num_recipes))
        needed = [len(self.language.ids(text)) + 1 + self.language.num_image_tokens for text in texts]
        return np.searchsorted(self._edges[:-1], needed)

    @property
    def alike(self) -> list[np.ndarray]:
        """The recipes of each bucket."""
        if not self.buckets:
            return []
        return [np.flatnonzero(self._bucket_of == b) for b in range(len(self._edges))]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds "recipe" int32 [B]; with `language` "tokens" [B, max_tokens], "length" [B] and "after" [B],
        the token that follows the words: [IMG0], or a new line where no picture comes; with `captions`
        "text_ids" [B, 77], or "target" [B, 77, D]."""
        numbers = [self.recipes.of_photo(photo) for photo in batch["label"]]
        found: dict[str, np.ndarray] = {"recipe": np.array(numbers, np.int32)}
        if self.language is not None:
            longest = self.max_tokens
            if self.buckets and "mask" not in batch:
                # not of what stands in for a bad photo, but of that: other processes' batches are as long
                skipped = zip(batch["label"], batch["bad"], batch["bad_index"], strict=True)
                drawn = [(at - bad + 1) % len(self.recipes) if bad else photo for photo, bad, at in skipped]
                longest = max(self._edges[self._bucket_of[self.recipes.of_photo(i)]] for i in drawn)
            made = [self.language.example(self.recipes.text(i), longest) for i in numbers]
            found["tokens"] = np.stack([row for row, _ in made])
            found["length"] = np.array([length for _, length in made], np.int32)
            ends = (self.language.newline, self.language.image_first)
            found["after"] = np.array([ends[self.recipes.pictured(i)] for i in numbers], np.int32)
        if self.targets is not None:
            found["target"] = np.stack([self.targets[i] for i in numbers]).astype(np.float32)
        elif self.captions is not None:
            found["text_ids"] = self.captions(
                [self.recipes.target_text(i, self.target_text) for i in numbers]
            )
        return batch | found


def recipe_dataset(
    source: Callable[[str], RecipeSet], data: ConfigDict, texts: Callable[[RecipeSet, str], Texts]
) -> Callable[..., grain.IterDataset]:
    """An experiment's `dataset`: (split, batch_size, seed, shard_index, shard_count) -> batches of photos and
    what `texts(recipes, split)` adds. An epoch has one photo of each recipe, drawn anew each time."""

    @functools.cache
    def made(split: str) -> Texts:
        return texts(source(split), split)

    def dataset(
        split: str, batch_size: int, seed: int, shard_index: int, shard_count: int
    ) -> grain.IterDataset:
        found = source(split)
        if not isinstance(found, RecipeSet):
            raise UserError(
                f'config.data.source "{data.source}" has no recipes; take one of recipe1m, recipe_tsv, '
                "recipe_jsonl, recipes_kitchen, kitchen_talk (a judge: of the last two)"
            )
        if data.get("target_text", "caption") not in recipes.TARGETS:
            kinds = ", ".join(recipes.TARGETS)
            raise UserError(f'config.data.target_text "{data.target_text}" is not one of {kinds}')
        told = made(split)
        batches = image_batches(
            found,
            data,
            split=split,
            batch_size=batch_size,
            seed=seed,
            shard_index=shard_index,
            shard_count=shard_count,
            records=found.num_recipes,
            choose=found.choose,
            alike=told.alike if split == "train" and isinstance(told, Texts) else (),
        )
        return batches.map(told)

    return dataset
