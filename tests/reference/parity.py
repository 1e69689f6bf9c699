"""How near our numbers come to recorded or other implementations' ones."""

from typing import Any

import numpy as np


def close(name: str, ours: Any, theirs: Any, limit: float) -> None:
    """Prints and asserts the largest difference, relative to the largest value of theirs."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, expected {theirs.shape}"
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    print(f"{name}: {error:.1e} (limit {limit:.0e})")
    assert error <= limit, f"{name}: {error:.2e} > {limit:.0e}"


def under(vectors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}
