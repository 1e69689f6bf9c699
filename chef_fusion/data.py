"""Recipes with photos: where they come from, and how they become batches.

A set holds recipes that have at least one photo. Photos are records of `rcg.data`, so they are decoded,
skipped if damaged, counted and put in order as all images are; what a batch says of a recipe is looked up by
its photo.
"""

import csv
import dataclasses
import functools
import glob
import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test",)}


class Packed(Sequence):
    """Many small JSON records in one block of memory: a third of what they take as Python objects."""

    def __init__(self, records: Iterator[Any]):
        block, ends = bytearray(), [0]
        for record in records:
            block += json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return json.loads(self._block[self._ends[i] : self._ends[i + 1]])


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
        """Raises UserError if all there is of it is a caption that does not parse."""
        record = self._records[i]
        if "caption" in record:
            found = recipes.parse(record["caption"])
            if found is None:
                raise UserError(f"caption {i} does not parse as a recipe: {record['caption'][:80]}")
            return found
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


def _find_images(root: str, split: str, example: str) -> str:
    """The pattern of IMAGE_FOLDERS by which an image is found under `root`."""
    for name in SPLIT_NAMES.get(split, (split,)):
        for pattern in IMAGE_FOLDERS:
            if os.path.exists(_image_path(root, pattern, name, example)):
                return pattern.replace("{split}", name)
    return ""


def _image_path(root: str, pattern: str, split: str, name: str) -> str:
    nested = os.path.join(*name[:4], name)
    return os.path.join(root, pattern.format(split=split, nested=nested, file=name))


def _safe(name: Any) -> bool:
    """Whether an image's id is a file name that stays in its folder."""
    return (
        isinstance(name, str)
        and len(name) > 4
        and not set(name[:4]) & set("./\\")
        and not ("/" in name or "\\" in name or "\0" in name)
    )


def _recipe1m(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """Recipe1M's own layout: layer1.json, layer2.json, maybe det_ingrs.json; images by their ids' digits."""
    images: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for item in _items(os.path.join(root, "layer2.json")):
        found = [i.get("id") for i in item.get("images") or () if isinstance(i, dict)]
        good = [name for name in found if _safe(name)]
        counts["images with an id that is no file name"] += len(found) - len(good)
        if good and isinstance(item.get("id"), str):
            images[item["id"]] = good
    detected: dict[str, list[str]] = {}
    extra = os.path.join(root, "det_ingrs.json")
    if os.path.exists(extra):
        for item in _items(extra):
            if item.get("id") in images:
                pairs = zip(item.get("ingredients") or (), item.get("valid") or (), strict=False)
                detected[item["id"]] = [i["text"] for i, valid in pairs if valid]
    names = SPLIT_NAMES.get(split, (split,))
    photos: list[list[str]] = []
    partitions: Counter[str] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for item in _items(os.path.join(root, "layer1.json")):
            partitions[str(item.get("partition"))] += 1
            if item.get("partition") not in names:
                continue
            counts["recipes"] += 1
            own = images.get(item.get("id", ""))
            if not own:
                counts["recipes without an image"] += 1
                continue
            try:
                recipe = Recipe.of(item)
            except (ValueError, AttributeError):
                counts["records that are no recipes"] += 1
                continue
            photos.append(own)
            known = detected.get(item["id"])
            yield recipe.record() | {"id": recipe.id} | ({"detected": known} if known else {})

    packed = Packed(records())
    if not len(packed):
        there = ", ".join(sorted(partitions)) or "nothing"
        raise UserError(f'{root} has no recipe with an image in the split "{split}"; splits there: {there}')
    first = photos[0][0]
    pattern = _find_images(root, split, first)
    if not pattern:
        tried = _image_path(root, IMAGE_FOLDERS[0], split, first)
        raise UserError(f"no image {first} under {root}; looked for {tried} and the like")
    paths = [[_image_path(root, pattern, split, name) for name in own] for own in photos]
    _log(root, split, counts | Counter({"with images": len(packed), "images": sum(map(len, paths))}))
    return RecipeSet(packed, paths)


def _files_of_split(root: str, split: str, pattern: str) -> list[str]:
    """The file itself, or those in a folder whose names match with a name of the split."""
    if os.path.isfile(root):
        return [root]
    names = SPLIT_NAMES.get(split, (split,))
    found = {f for n in names for f in glob.glob(os.path.join(glob.escape(root), pattern.format(n)))}
    return sorted(found)


def _log(root: str, split: str, counts: Counter[str]) -> None:
    logger.info("%s, %s: %s", root, split, ", ".join(f"{n} {what}" for what, n in counts.items() if n))


def _tsv(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """The published code's form: <split>.tsv with the columns caption and image; images by their names' first
    four characters under a folder of the split's name."""
    files = _files_of_split(root, split, "*{}*.tsv")
    if not files:
        raise UserError(f'{root} holds no .tsv file of the split "{split}"')
    if len(files) > 1:
        raise UserError(f"{root} holds {len(files)} .tsv files of the split {split}; name one as the path")
    folder = os.path.dirname(os.path.abspath(files[0]))
    captions, images = [], []
    csv.field_size_limit(2**24)
    with open(files[0], newline="", encoding="utf-8") as f:
        rows = csv.DictReader(f, delimiter="\t")
        if rows.fieldnames is None or not {"caption", "image"} <= set(rows.fieldnames):
            raise UserError(
                f"{files[0]} has the columns {rows.fieldnames}, not caption and image with a tab between them"
            )
        for row in rows:
            if row["caption"] and _safe(row["image"]):
                captions.append({"caption": row["caption"]})
                images.append(row["image"])
    if not captions:
        raise UserError(f"{files[0]} holds no rows")
    pattern = _find_images(folder, split, images[0])
    if not pattern:
        raise UserError(
            f"no image {images[0]} under {folder}, neither nested by its first four characters nor flat"
        )
    paths = [[_image_path(folder, pattern, split, name)] for name in images]
    return RecipeSet(Packed(iter(captions)), paths)


def _jsonl(root: str, split: str, data: ConfigDict) -> RecipeSet:
    """JSON lines (.jsonl, maybe .gz) of title, ingredients, instructions, images (paths beside the file)."""
    files = _files_of_split(root, split, "*{}*.jsonl*")
    if not files:
        raise UserError(f'{root} holds no .jsonl file of the split "{split}"')
    photos: list[list[str]] = []
    counts: Counter[str] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for path in files:
            folder = os.path.dirname(os.path.abspath(path))
            for number, record in json_lines(path):
                if record.get("partition", split) not in SPLIT_NAMES.get(split, (split,)):
                    continue
                counts["recipes"] += 1
                named = record.get("images") or ([record["image"]] if record.get("image") else [])
                own = [os.path.normpath(os.path.join(folder, n)) for n in named if isinstance(n, str)]
                own = [p for p in own if p.startswith(folder + os.sep)]
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
    _log(root, split, counts)
    if not len(packed):
        raise UserError(f'{root} holds no recipe with an image in the split "{split}"')
    return RecipeSet(packed, photos)


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
    except (OSError, EOFError, UnicodeDecodeError) as error:
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
                longest = max(self._edges[self._bucket_of[i]] for i in numbers)
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
        found, told = source(split), made(split)
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
