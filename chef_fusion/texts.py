"""Text for the language model: recipes and prose from JSON lines, packed into sequences of one length."""

import glob
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from chef_fusion import recipes
from chef_fusion.data import SPLIT_NAMES, RecipeSet, json_lines, says
from chef_fusion.recipes import Recipe
from rcg.data import Share
from rcg.errors import UserError

logger = logging.getLogger(__name__)

HELD_OUT = "val"


class Documents(Sequence):
    """Texts to read, each a document of its own."""

    label_names: tuple[str, ...] = ()

    def __init__(self, texts: Sequence[str], origin: str):
        self._texts, self._origin = texts, origin

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> str:
        return self._texts[i]

    def name(self, i: int) -> str:
        return f"{self._origin}, document {i}"


def open_texts(data: ConfigDict, split: str) -> Documents:
    """The documents of a split: JSON lines whose records have "text", or title, ingredients and instructions.

    `data.path`: files, folders or patterns, with commas between them. What says that it is for validation or
    for the test, in a record's "partition" or the file's name, is never trained on; the former is for
    evaluation, and with it every `data.eval_every`-th of a file's other documents.

    Raises:
      UserError: nothing there, no such split, or a record that is neither.
    """
    if data.eval_every < 1:
        raise UserError(f"config.data.eval_every {data.eval_every} is below 1")
    files: list[str] = []
    for part in filter(None, data.path.split(",")):
        part = os.path.expanduser(part)
        found = sorted(
            glob.glob(os.path.join(glob.escape(part), "*.jsonl*")) if os.path.isdir(part) else glob.glob(part)
        )
        if not found:
            raise UserError(f"config.data.path: no .jsonl file at {part}")
        files += found
    if not files:
        raise UserError("config.data.path is empty; give it .jsonl files of texts or recipes")
    wanted = data.eval_split if split == "eval" else split
    trained = wanted in ("train", data.train_split)
    if not trained and wanted != HELD_OUT:
        raise UserError(f'texts have the splits train and {HELD_OUT}, not "{wanted}"')
    texts: list[str] = []
    elsewhere = 0
    for path in files:
        by_name = [name for name in SPLIT_NAMES if says(path, name)]
        by_name = by_name[0] if len(by_name) == 1 else ""
        if by_name in ("val", "test") and trained:
            logger.warning("%s is not trained on, as its name says %s", path, by_name)
        others = itertools.count()
        for number, record in json_lines(path):
            own = str(record.get("partition") or by_name).lower()
            kept = next((name for name in ("val", "test") if own in SPLIT_NAMES[name]), "")
            if not kept:
                kept = HELD_OUT if next(others) % data.eval_every == 0 else "train"
            if kept == ("train" if trained else HELD_OUT):
                texts.append(_document(record, path, number))
            else:
                elsewhere += 1
    if not texts:
        wanted = "train" if trained else HELD_OUT
        raise UserError(
            f"config.data.path {data.path} holds no documents of the split {wanted}; {elsewhere} are of "
            "others, by their partition, their file's name or config.data.eval_every"
        )
    return Documents(texts, data.path)


def _document(record: dict[str, Any], path: str, number: int) -> str:
    try:
        text = record.get("text")
        text = text if isinstance(text, str) else recipes.caption(Recipe.of(record))
        return text.encode(errors="replace").decode()  # half a surrogate pair is no text
    except ValueError as error:
        raise UserError(f'{path}, line {number} has no "text" and is no recipe: {error}') from error


def documents(found: Documents | RecipeSet) -> Documents:
    """Of a set of recipes the captions."""
    if isinstance(found, Documents):
        return found
    if not isinstance(found, RecipeSet):
        raise UserError("config.data.source has no texts; take texts, kitchen_texts, or one of recipes")
    return Documents([found.text(i) for i in range(found.num_recipes)], found.name(0))


def packed(documents: Documents, encode: Callable[[list[str]], list[list[int]]], bos: int) -> np.ndarray:
    """All documents' tokens in a row, each after a bos: int32 [N]."""
    parts = []
    for first in range(0, len(documents), 1000):
        batch = [documents[i] for i in range(first, min(first + 1000, len(documents)))]
        for ids in encode(batch):
            parts += [np.array([bos], np.int32), np.array(ids, np.int32)]
    return np.concatenate(parts)


def token_batches(
    stream: np.ndarray,
    length: int,
    *,
    split: str,
    batch_size: int,
    seed: int,
    shard_index: int,
    shard_count: int,
) -> grain.IterDataset:
    """Windows of `length` tokens from a packed stream.

    "train": endless, an epoch is every window once in a new order, cut at a new offset. "eval": one pass.

    Returns:
      A dataset of {"tokens": int32 [B, length], "bad", "bad_index"}; "eval" adds "mask" [B].
    """
    count = (len(stream) - 1) // length if split == "train" else -(-len(stream) // length)
    if count < 1:
        raise UserError(f"{len(stream)} tokens of text are less than one sequence of {length}")

    def load(elements: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        rows = np.zeros((len(elements), length), np.int32)
        mask = np.zeros(len(elements), np.float32)
        for row, (window, offset) in enumerate(elements):
            if window < 0:
                continue
            part = stream[window * length + offset :][:length]
            rows[row, : len(part)] = part
            mask[row] = len(part) == length
        none = np.zeros(len(elements), np.int32)
        batch = {"tokens": rows, "bad": none, "bad_index": none - 1}
        return batch if split == "train" else batch | {"mask": mask}

    if split == "train":
        spare = min(length, len(stream) - count * length)
        elements = grain.MapDataset.range(count).seed(seed % 2**32).shuffle().repeat(None)
        elements = elements.random_map(lambda i, rng: (i, int(rng.integers(spare))))
    else:
        rows = -(-count // (batch_size * shard_count)) * batch_size * shard_count
        elements = grain.MapDataset.source([(i if i < count else -1, 0) for i in range(rows)])
    batches = elements.batch(batch_size * shard_count, batch_fn=list).map(Share(shard_index, batch_size))
    return batches.map(load).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
