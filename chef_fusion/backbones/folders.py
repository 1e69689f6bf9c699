"""The folders that transformers and diffusers publish networks in: config.json beside files of weights.

Arrays are read when used, one at a time, whether they lie in one file or in shards, so that a network larger
than the host's memory passes through it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rcg import json_files, weight_files
from rcg.errors import UserError

# what a folder may call its weights, best first: safetensors needs no PyTorch
STEMS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
SHARD_BYTES = 5 * 10**9


class Weights(Mapping):
    """The arrays of a folder by name; a shard is opened when something of it is first asked for, and closed
    when another one is."""

    def __init__(self, folder: str, shard_of: Mapping[str, str]):
        self._folder, self._shard_of = folder, dict(shard_of)
        self._open: tuple[str, Mapping[str, np.ndarray]] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        shard = self._shard_of[name]
        if self._open is None or self._open[0] != shard:
            self._open = None
            self._open = shard, weight_files.read(os.path.join(self._folder, shard))
        try:
            return self._open[1][name]
        except KeyError:
            raise UserError(
                f"{os.path.join(self._folder, shard)} does not hold {name}, though the index says so; "
                "download it again"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shard_of, key=lambda name: self._shard_of[name]))

    def __len__(self) -> int:
        return len(self._shard_of)


class Renamed(Mapping):
    """Arrays under other names."""

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]):
        """names: new -> old."""
        self._arrays, self._names = arrays, dict(names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_json(path: str, unbounded: bool = False) -> dict[str, Any]:
    """See `json_files.read`. Raises UserError: not there, or no JSON object."""
    if not os.path.exists(path):
        raise UserError(f"no file {path}; is this the folder of a published model?")
    return json_files.read(path, "download it again", unbounded)


def open_weights(folder: str) -> Weights:
    """The arrays of a folder.

    Raises:
      UserError: no weights there, or a shard that the index names is missing.
    """
    for stem in STEMS:
        index = os.path.join(folder, f"{stem}.index.json")
        if os.path.exists(index):
            shard_of = read_json(index).get("weight_map")
            if not isinstance(shard_of, dict) or not shard_of:
                raise UserError(f"{index} has no weight_map; download it again")
            for name, shard in shard_of.items():
                if not isinstance(shard, str) or os.path.basename(shard) != shard:
                    raise UserError(f"{index}: {name} is not in a file of this folder, but in {shard!r}")
            shards = sorted(set(shard_of.values()))
            missing = [s for s in shards if not os.path.isfile(os.path.join(folder, s))]
            if missing:
                raise UserError(
                    f"{folder} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing[:5])}; "
                    "download them"
                )
            return Weights(folder, shard_of)
        if os.path.isfile(os.path.join(folder, stem)):
            names = weight_files.read(os.path.join(folder, stem))
            return Weights(folder, dict.fromkeys(names, stem))
    raise UserError(f"{folder} holds no weights; looked for {', '.join(STEMS[:4])} and shards of them")


def write(
    folder: str,
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    stem: str = "model",
    config_name: str = "config.json",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config and arrays as transformers and diffusers do, in shards if there is more than one's worth.

    The index, or the only file, comes last: a folder cut off half-way is noticed.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, config_name), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    shards: list[list[str]] = [[]]
    held = total = 0
    for name, array in arrays.items():
        if shards[-1] and held + array.nbytes > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += array.nbytes
        total += array.nbytes
    about = {"format": "pt"}  # transformers asks for it
    if len(shards) == 1:
        weight_files.write(os.path.join(folder, f"{stem}.safetensors"), arrays, about)
        return
    shard_of = {}
    for i, names in enumerate(shards):
        shard = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_files.write(os.path.join(folder, shard), {name: arrays[name] for name in names}, about)
        shard_of |= dict.fromkeys(names, shard)
    with open(os.path.join(folder, f"{stem}.safetensors.index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": shard_of}, f, indent=2)


def fetch(source: str, subfolders: Iterable[str] = ("",)) -> str:
    """The local folder of `source`: a folder, or "owner/name" of the Hugging Face hub, which is downloaded.

    Only config, tokenizer and weights are, of safetensors and pickles only the former if there are any. Where
    the hub can't be reached it is what an earlier call has downloaded.

    Raises:
      UserError: neither; or the download failed.
    """
    if os.path.isdir(source):
        return source
    if os.path.exists(source) or source.count("/") != 1 or source.startswith((".", "/")):
        raise UserError(f"{source} is neither a folder nor owner/name on the Hugging Face hub")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # the base of what the HTTP library raises: which one that is, and whether it is an OSError, has changed
    failures = (*HfHubHTTPError.__bases__, OSError)
    subfolders, unreachable = list(subfolders), None
    try:  # unlike the list of files this is not asked for again and again while there is no connection
        about = HfApi().model_info(source)
        wanted = choose_files([file.rfilename for file in about.siblings or ()], subfolders)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{source} is neither a folder nor on the Hugging Face hub ({_line(error)})"
        ) from error
    except failures as error:  # weights that are not there will be missed when they are read
        unreachable, wanted = error, [os.path.join(folder, "config.json") for folder in subfolders]
    try:
        return snapshot_download(source, allow_patterns=wanted, local_files_only=unreachable is not None)
    except failures as error:
        reason = _line(unreachable or error)
        raise UserError(f"{source} can't be downloaded ({reason}); try again, or name a folder") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def choose_files(there: Iterable[str], subfolders: Iterable[str] = ("",)) -> list[str]:
    """Which files of a repository to download: of each subfolder the JSON files, the tokenizer, and the
    weights in the best form there is."""
    there, wanted = list(there), []
    for sub in subfolders:
        prefix = f"{sub}/" if sub else ""
        own = [f for f in there if f.startswith(prefix) and "/" not in f[len(prefix) :]]
        wanted += [f for f in own if f.endswith(".json") and ".index." not in f]
        wanted += [f for f in own if f[len(prefix) :] in TOKENIZER_FILES and f not in wanted]
        for stem in STEMS:
            name, ending = stem.rsplit(".", 1)
            whole = [f for f in own if f == prefix + stem or f == f"{prefix}{stem}.index.json"]
            if whole:
                if whole[0].endswith(".index.json"):
                    whole += [f for f in own if f.startswith(f"{prefix}{name}-") and f.endswith(ending)]
                wanted += whole
                break
    return wanted
