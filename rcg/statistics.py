"""What a Frechet distance needs of a set of images, gathered batch by batch, and kept as a file.

Files are npz with "mu" and "sigma", as the ADM suite's reference batches and pytorch-fid have them; ours
say besides how many images ("n") in which features ("features"). Sums are in float64.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rcg import metrics
from rcg.errors import UserError


@dataclasses.dataclass
class Moments:
    """Sums over features seen so far: `n`, their sum [D], the sum of their outer products [D, D]."""

    n: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    def add(self, features: np.ndarray) -> None:
        """features: [B, D]."""
        x = np.asarray(features, np.float64)
        self.n += len(x)
        self.total += x.sum(0)
        self.outer += x.T @ x

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [D], unbiased covariance [D, D]).

        Raises:
          UserError: of fewer than two images.
        """
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 images, there are {self.n}")
        mean = self.total / self.n
        return mean, (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1)


@dataclasses.dataclass
class ClassMoments:
    """Sums over class probabilities p for the Inception Score, in splits: counts [S], sums of p [S, C] and of
    sum(p log p) [S]. With `split_of` each image's split, the score is that of all logits at once."""

    counts: np.ndarray
    total: np.ndarray
    negentropy: np.ndarray

    @classmethod
    def empty(cls, splits: int, classes: int) -> "ClassMoments":
        return cls(np.zeros(splits), np.zeros((splits, classes)), np.zeros(splits))

    def add(self, logits: np.ndarray, splits: np.ndarray) -> None:
        """logits: [B, C]; splits: int [B]."""
        x = np.asarray(logits, np.float64)
        x -= x.max(1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        p = np.exp(log_p)
        np.add.at(self.counts, splits, 1)
        np.add.at(self.total, splits, p)
        np.add.at(self.negentropy, splits, (p * log_p).sum(1))

    def score(self) -> tuple[float, float]:
        """(mean, std) over the splits that hold images."""
        full = self.counts > 0
        n = self.counts[full]
        mean = self.total[full] / n[:, None]
        scores = np.exp(self.negentropy[full] / n - (mean * np.log(np.maximum(mean, 1e-300))).sum(1))
        return float(scores.mean()), float(scores.std())


@dataclasses.dataclass
class Sums:
    """Sums over several sets of images at once, each under a name."""

    moments: dict[str, Moments] = dataclasses.field(default_factory=dict)
    classes: dict[str, ClassMoments] = dataclasses.field(default_factory=dict)

    def add(self, name: str, features: np.ndarray) -> None:
        """features: [B, D]."""
        self.moments.setdefault(name, Moments.empty(features.shape[1])).add(features)

    def add_logits(self, name: str, logits: np.ndarray, splits: np.ndarray, count: int) -> None:
        """logits: [B, C]; splits: int [B], of `count` there are."""
        self.classes.setdefault(name, ClassMoments.empty(count, logits.shape[1])).add(logits, splits)

    def save(self, path: str, **about: Any) -> None:
        """Writes the sums, and arrays that say how far they are, whole or not at all."""
        arrays = {
            f"{kind}/{name}/{field}": value
            for kind in ("moments", "classes")
            for name, one in getattr(self, kind).items()
            for field, value in vars(one).items()
        }
        with open(path + ".incomplete", "wb") as f:
            np.savez(f, **arrays, **about)
        os.replace(path + ".incomplete", path)

    @classmethod
    def load(cls, path: str) -> tuple["Sums", dict[str, np.ndarray]]:
        """(sums, about) as they were saved."""
        made: dict[tuple[str, str], dict[str, Any]] = {}
        about = {}
        with np.load(path) as file:
            for key in file.files:
                kind, _, rest = key.partition("/")
                if rest:
                    name, field = rest.rsplit("/", 1)
                    made.setdefault((kind, name), {})[field] = file[key]
                else:
                    about[key] = file[key]
        sums = cls()
        for (kind, name), fields in made.items():
            if kind == "moments":
                sums.moments[name] = Moments(**fields | {"n": int(fields["n"])})
            else:
                sums.classes[name] = ClassMoments(**fields)
        return sums, about


def split_of(num: int, splits: int, seed: int = 2020) -> np.ndarray:
    """int [num]: the split that each image falls into when all are shuffled as torch-fidelity does it."""
    place = np.empty(num, int)
    place[np.random.RandomState(seed).permutation(num)] = np.arange(num)
    edges = [(i + 1) * num // splits for i in range(splits)]
    return np.searchsorted(edges, place, side="right")


def save(path: str, mean: np.ndarray, covariance: np.ndarray, n: int, features: str) -> None:
    """Writes our npz, whole or not at all."""
    with open(path + ".incomplete", "wb") as f:
        np.savez(f, mu=mean, sigma=covariance, n=n, features=features)
    os.replace(path + ".incomplete", path)


def load(path: str, dim: int, features: str = "") -> tuple[np.ndarray, np.ndarray, int]:
    """(mean [dim], covariance [dim, dim], number of images, 0 where the file does not say).

    Args:
      features: what the statistics are to be compared with; a file of ours that says otherwise is refused.

    Raises:
      UserError: no such file, no statistics in it, or of another dimension or other features.
    """
    try:
        with np.load(path) as file:
            held = {name: file[name] for name in ("mu", "sigma", "n", "features") if name in file}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"the statistics {path} can't be read ({error})") from error
    return _checked(path, held, dim, features)


def _checked(
    path: str, held: Mapping[str, np.ndarray], dim: int, features: str
) -> tuple[np.ndarray, np.ndarray, int]:
    if not {"mu", "sigma"} <= held.keys():
        raise UserError(f"{path} holds no statistics: it has no arrays mu and sigma")
    mean, covariance = held["mu"].astype(np.float64), held["sigma"].astype(np.float64)
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise UserError(
            f"the statistics {path} have mu {mean.shape} and sigma {covariance.shape}, but the features have "
            f"{dim} values; they were made with another network"
        )
    theirs = str(held.get("features", features))
    if features and theirs != features:
        raise UserError(f"the statistics {path} are of {theirs}, not of {features}; make them anew")
    return mean, covariance, int(held.get("n", 0))


def distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """The Frechet distance of two (mean, covariance)."""
    return metrics.frechet_distance(*a, *b)
