"""Two sets of images held against each other: Frechet distance, Inception Score, precision and recall.

Images stream through the network a batch at a time, over all devices and processes; the sums are saved on
the way, so that a run that was cut off goes on where it was.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.common import images as image_fields
from launch.runtime import mesh as meshes
from launch.runtime.progress import Progress
from rcg import component, metrics, statistics
from rcg.data import ArraySource, ImageFolder, decode, image_batches, open_source
from rcg.errors import UserError
from rcg.experiment import whole
from rcg.features import Extractor, extractor

SPLITS = 10  # of the Inception Score
SAVE_EVERY = 50  # batches
# what numpy raises for a damaged npz, or for what is none
UNREADABLE = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass
class Seen:
    """What went by of one set."""

    moments: statistics.Moments
    classes: statistics.ClassMoments | None
    kept: np.ndarray  # [n, D], the first features, for precision and recall


def open_set(path: str, source: str = "", split: str = "", column: str = "image") -> Any:
    """A source of images: a folder, an npz with arr_0 (the ADM suite's), or a data set. Of a folder that
    `launch.sample` wrote, its samples, not the grid of them.

    Raises:
      UserError: nothing of the kind there.
    """
    if source:
        data = image_fields(path, source)
        data.image_column, data.label_column = column, ""
        try:
            return open_source(data, split or "test")
        except UserError as error:
            raise UserError(
                f"--reference={path}: {error}; see --reference_column, --reference_split"
            ) from error
    if os.path.isdir(path):
        sampled = os.path.exists(os.path.join(path, "samples.json"))
        return ImageFolder(path, split, leave_out=("grid.png",) if sampled else ())
    try:
        with np.load(path) as file:
            if "arr_0" not in file:
                raise UserError(f"{path} holds no images: it has no array arr_0")
            return ArraySource(file["arr_0"])
    except UNREADABLE as error:
        raise UserError(f"{path} is neither a folder of images nor an npz of them ({error})") from error


def own_size(source: Any) -> int:
    """The side of the first image, which all must have.

    Raises:
      UserError: it is not square, or not there.
    """
    if not len(source):
        raise UserError("there are no images to measure")
    image = source[0]["image"]
    width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else decode(image).size
    if height != width:
        raise UserError(f"{source.name(0)} is {width} x {height}; give --image_size to resize and crop")
    return height


class Gatherer:
    """Runs images through an extractor."""

    def __init__(self, features: str, batch_size: int, dtype: Any = None):
        self.mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        shards = self.mesh.size
        self.batch_size = -(-batch_size // shards) * shards
        self.component = component.load(features, sharding=meshes.replicated(self.mesh))
        self.extract: Extractor = extractor(self.component)
        scale = np.float32(255)
        self.program = jax.jit(lambda v, image: self.extract(v, image.astype(np.float32) / scale))

    @property
    def dim(self) -> int:
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
        return jax.eval_shape(self.program, self.component.variables, image)[0].shape[1]

    def gather(
        self, path: str, source: Any, image_size: int, keep: int, scores: bool, partial: str = ""
    ) -> Seen:
        """Sums over all images of `source`, which is at `path`; the first `keep` features are kept.

        Args:
          partial: file for the sums so far; a run that finds one of the same images goes on from there.
        """
        data = image_fields("the images", image_size=image_size or own_size(source))
        # each process reads its rows of a batch; all then hold everything
        processes, index = jax.process_count(), jax.process_index()
        share, shard = self.batch_size // processes, {"shard_index": index, "shard_count": processes}
        batches = image_batches(source, data, split="eval", batch_size=share, seed=0, **shard)
        iterator, total = iter(batches), -(-len(source) // self.batch_size)
        splits = statistics.split_of(len(source), SPLITS)
        identity = self._identity(path, source, data, keep)
        seen, step = None, 0
        if partial and os.path.exists(partial):
            seen, step, state = _read_partial(partial, identity)
            if seen is not None:
                iterator.set_state(state)
        sharding = meshes.batch_sharding(self.mesh)
        with Progress(total, self.batch_size, step) as progress:
            for batch in iterator:
                read = (step * processes + index) * share + np.arange(share, dtype=np.int32)
                about = {"image": batch["image"], "mask": batch["mask"], "record": read}
                placed = meshes.place_batch(about, sharding)
                found, logits = self.program(self.component.variables, placed["image"])
                record = whole(placed["record"])
                order = np.argsort(record)  # as the source has them, whichever process read what
                good = order[whole(placed["mask"])[order] > 0]
                found = whole(found)[good]
                if seen is None:
                    classes = None
                    if logits is not None and scores:
                        classes = statistics.ClassMoments.empty(SPLITS, logits.shape[1])
                    seen = Seen(statistics.Moments.empty(found.shape[1]), classes, found[:0])
                seen.moments.add(found)
                if seen.classes is not None:
                    seen.classes.add(whole(logits)[good], splits[record[good]])
                if len(seen.kept) < keep:
                    seen.kept = np.concatenate([seen.kept, found])[:keep]
                step += 1
                progress.step(step, {})
                if partial and step % SAVE_EVERY == 0 and index == 0:
                    _write_partial(partial, identity, seen, step, iterator.get_state())
        if seen is None:
            raise UserError("there are no images to measure")
        return seen

    def _identity(self, path: str, source: Any, data: ConfigDict, keep: int) -> str:
        ends = [source.name(0), source.name(len(source) - 1)]
        files = [name for name in (path, *ends) if os.path.isfile(name)]
        written = [[stat.st_size, stat.st_mtime_ns] for stat in map(os.stat, files)]
        origin = [os.path.abspath(path), keep, written]
        said = [origin, len(source), ends, data.image_size, self.batch_size, self.component.content_hash]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _write_partial(path: str, identity: str, seen: Seen, step: int, state: Any) -> None:
    arrays = {
        "n": seen.moments.n,
        "total": seen.moments.total,
        "outer": seen.moments.outer,
        "kept": seen.kept,
    }
    if seen.classes is not None:
        arrays |= {f"class_{k}": v for k, v in dataclasses.asdict(seen.classes).items()}
    with open(path + ".incomplete", "wb") as f:
        np.savez(f, identity=identity, step=step, state=json.dumps(state), **arrays)
    os.replace(path + ".incomplete", path)


def _read_partial(path: str, identity: str) -> tuple[Seen | None, int, Any]:
    """(None, 0, None) if the file is of other images."""
    with np.load(path) as file:
        if str(file["identity"]) != identity:
            return None, 0, None
        moments = statistics.Moments(int(file["n"]), file["total"], file["outer"])
        classes = None
        if "class_counts" in file:
            fields = ("counts", "total", "negentropy")
            classes = statistics.ClassMoments(*(file[f"class_{name}"] for name in fields))
        return Seen(moments, classes, file["kept"]), int(file["step"]), json.loads(str(file["state"]))


def compare(
    images: str,
    reference: str,
    features: str,
    out: str,
    *,
    image_size: int = 0,
    batch_size: int = 64,
    keep: int = 0,
    source: str = "",
    split: str = "",
    column: str = "image",
    save_statistics: str = "",
) -> dict[str, dict[str, Any]]:
    """Measures the images of a folder or npz; the results as for results.json.

    Args:
      reference: npz of statistics, or images like `images`; "" measures what needs none.
      features: folder of an rcg.inception or rcg.encoder component.
      out: folder for the sums of an unfinished run.
      image_size: 0: as they are; else resized to it and cropped.
      keep: images of each set for precision and recall; 0: neither.
      source, split, column: what `reference` is, if it is a data set ("parquet", "tfds", "folder").
      save_statistics: npz to write the statistics of `images` to.
    """
    if 0 < keep <= 3 or keep < 0:
        raise UserError(
            f"--keep={keep}: precision and recall need more than 3 images of each set, 0: neither"
        )
    kept_in = os.path.dirname(os.path.abspath(save_statistics))
    if save_statistics and not os.path.isdir(kept_in):
        raise UserError(f"--save_statistics={save_statistics}: there is no folder {kept_in}")
    os.makedirs(out, exist_ok=True)
    gatherer = Gatherer(features, batch_size)
    name, metric = gatherer.extract.name, gatherer.extract.metric
    made_partial, real_partial = (
        os.path.join(out, f"{which}.partial.npz") for which in ("images", "reference")
    )
    is_statistics = reference.endswith(".npz") and not source and _has_statistics(reference)
    given = statistics.load(reference, gatherer.dim, name) if is_statistics else None
    made = gatherer.gather(images, open_set(images), image_size, keep, True, made_partial)
    gaussian = made.moments.gaussian()
    first = jax.process_index() == 0
    if save_statistics and first:
        statistics.save(save_statistics, *gaussian, made.moments.n, name)
    about = {"samples": made.moments.n, "seed": 0, "step": 0, "features": name}
    results = {}
    real_kept = None
    if reference:
        if given is None:
            held = open_set(reference, source, split, column)
            real = gatherer.gather(reference, held, image_size, keep, False, real_partial)
            given, real_kept = (*real.moments.gaussian(), real.moments.n), real.kept
        elif keep and _has_images(reference):
            held = open_set(reference)
            real_kept = gatherer.gather(reference, held, image_size, keep, False, real_partial).kept
        told = {"reference": os.path.basename(os.path.normpath(reference))}
        told |= {"reference_samples": given[2]} if given[2] else {}  # a file of statistics may not say
        results[metric] = {"value": statistics.distance(given[:2], gaussian)} | about | told
        if keep and real_kept is not None and min(len(real_kept), len(made.kept)) > 3:
            precision, recall = metrics.precision_recall(real_kept, made.kept)
            told = told | {"samples": len(made.kept), "reference_samples": len(real_kept), "k": 3}
            results["precision"] = {"value": precision} | about | told
            results["recall"] = {"value": recall} | about | told
    if made.classes is not None:
        score, deviation = made.classes.score()
        results["inception_score"] = {"value": score, "std": deviation, "splits": SPLITS} | about
    for path in (made_partial, real_partial):
        if first and os.path.exists(path):
            os.remove(path)
    return results


def _names(path: str) -> set[str]:
    try:
        with np.load(path) as file:
            return set(file.files)
    except UNREADABLE as error:
        raise UserError(f"{path} can't be read ({error})") from error


def _has_statistics(path: str) -> bool:
    return {"mu", "sigma"} <= _names(path)


def _has_images(path: str) -> bool:
    return "arr_0" in _names(path)
