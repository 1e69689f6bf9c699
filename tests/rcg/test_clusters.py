"""Mini-batch k-means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import clusters

KEY = jax.random.key(0)


def test_rare_centres_start_anew_at_points():
    state = {"usage": jnp.array([1.0, 1.0, 0.1]), "sums": jnp.array([[1.0], [5.0], [0.9]])}
    points = jnp.array([[2.0], [3.0]])
    new = clusters.update(state, points, jnp.array([0, 0]), KEY, decay=0.5)
    centres = clusters.centres(new)[:, 0]
    assert new["usage"].tolist() == pytest.approx([0.5 + 1.5, 0.5, 1.0])
    assert centres[0] == pytest.approx((0.5 * 1 + 0.75 * 5) / 2)  # towards the points' mean, 2.5
    assert centres[1] == pytest.approx(5)  # not chosen, not yet rare
    assert float(centres[2]) in (2.0, 3.0)


def test_nearest_is_brute_force():
    rng = np.random.default_rng(0)
    points, table = rng.normal(size=(50, 7)), rng.normal(size=(9, 7))
    index, squared = clusters.nearest(jnp.asarray(points), jnp.asarray(table))
    all_of_them = np.square(points[:, None] - table).sum(-1)
    assert (index == all_of_them.argmin(1)).all()
    np.testing.assert_allclose(squared, all_of_them.min(1), rtol=1e-5, atol=1e-5)


def test_separate_groups_are_found():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 8)) * 5
    state = clusters.init(jax.random.normal(KEY, (5, 8)))
    step = jax.jit(clusters.update)
    for i in range(60):
        points = jnp.asarray(means[rng.integers(5, size=200)] + rng.normal(size=(200, 8)) * 0.1)
        chosen, _ = clusters.nearest(points, clusters.centres(state))
        state = step(state, points, chosen, jax.random.fold_in(KEY, i), 0.9, 0.1 if i < 40 else 0.0)
    _, squared = clusters.nearest(jnp.asarray(means), clusters.centres(state))
    print("squared distances of the true means to the nearest centre:", squared)
    assert (np.sort(np.asarray(squared))[:4] < 0.05).all()
