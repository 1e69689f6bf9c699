"""Files of weights, as PyTorch projects publish them: name -> array, read without running code of theirs.

`.safetensors` needs nothing else; `.pth`, `.pt`, `.ckpt`, `.bin`, `.tar` are PyTorch pickles and need the
torch extra. Arrays are read when used, so that a file larger than what is used of it costs no memory.
"""

import argparse
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rcg.errors import UserError

CONTAINERS = ("teacher", "state_dict", "model")  # where checkpoints keep the weights, first match wins
DTYPES = {  # safetensors' names
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")


class _SafeTensors(Mapping):
    """A safetensors file. Arrays are views of the file: what of them is not used is not read, and what was
    used can be dropped from memory."""

    def __init__(self, path: str):
        with safe_open(path, framework="numpy") as file:  # refuses damaged and overlapping entries
            self._names = list(file.keys())
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            self._entries = json.loads(f.read(size))
        self._path, self._start = path, 8 + size

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        entry = self._entries[name]
        if entry["dtype"] not in DTYPES:
            known = ", ".join(DTYPES)
            raise UserError(f"{self._path}: {name} is of type {entry['dtype']}; supported are {known}")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if 0 in shape:
            return np.zeros(shape, dtype)
        offset = self._start + entry["data_offsets"][0]
        # a bfloat16 memmap is none to numpy: map bytes, then look at them so
        held = np.memmap(self._path, np.uint8, "r", offset, (int(np.prod(shape)) * dtype.itemsize,))
        return np.asarray(held).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _torch(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch: install the torch extra (pip install torch)") from error
    return torch


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _read_pickle(path: str) -> dict[str, np.ndarray]:
    torch = _torch(path)
    options = {"map_location": "cpu", "weights_only": True}
    # the official trainers save their command line along with the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            try:
                held = torch.load(path, mmap=True, **options)
            except RuntimeError as error:  # files from before torch 1.6 are no archives
                if "mmap can only be used" not in str(error):
                    raise
                held = torch.load(path, **options)
        except pickle.UnpicklingError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} is damaged, or holds more than weights, which is not run ({reason}); download it "
                "again, or save its state_dict alone"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} can't be read ({reason}); download it again") from error

    def is_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    if isinstance(held, dict):  # beside its state_dict a checkpoint may hold its best accuracy as a tensor
        held = next((held[name] for name in CONTAINERS if isinstance(held.get(name), dict)), held)
    tensors = {str(k): v for k, v in held.items() if is_tensor(v)} if isinstance(held, dict) else {}
    if not tensors:
        names = ", ".join(CONTAINERS)
        raise UserError(f"{path} holds no named arrays, neither at its top nor under {names}")
    return {name: _numpy(tensor.detach()) for name, tensor in tensors.items()}


def read(path: str) -> Mapping[str, np.ndarray]:
    """The arrays of a file, by name.

    Raises:
      UserError: no such file, a damaged or truncated one, one of another format, no torch to read it with.
    """
    if not os.path.isfile(path):
        raise UserError(f"no file {path}")
    if not os.path.getsize(path):
        raise UserError(f"{path} is empty; download it again")
    if path.endswith(".safetensors"):
        try:
            return _SafeTensors(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} can't be read ({error}); download it again") from error
    if path.endswith(PICKLES):
        return _read_pickle(path)
    raise UserError(f"{path} is not one of the known files of weights: .safetensors, {', '.join(PICKLES)}")


def write(path: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or by its name a PyTorch pickle of a "state_dict" (without the metadata);
    whole or not at all."""
    staging = path + ".incomplete"
    if path.endswith(PICKLES):
        torch = _torch(path)
        held = {name: _tensor(np.asarray(array)) for name, array in arrays.items()}
        torch.save({"state_dict": held}, staging)
    else:
        save_file(dict(arrays), staging, metadata=dict(metadata or {}))
    os.replace(staging, path)


def fetch(source: str) -> str:
    """The local path of `source`: a path, or "owner/name/file" of the Hugging Face hub, which is downloaded.

    Raises:
      UserError: neither; or the download failed.
    """
    parts = source.split("/")
    if os.path.exists(source) or len(parts) < 3 or source.startswith((".", "/")):
        return source
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is neither a file nor on the Hugging Face hub ({reason})") from error
