import numpy as np
import pytest
import scipy.linalg

from rcg import metrics
from rcg.errors import UserError


def clusters(rng, n, num_classes=5, dim=16, spread=0.3):
    """Labelled points around unit corners."""
    labels = rng.integers(0, num_classes, n)
    return np.eye(dim)[labels] + rng.normal(0, spread, (n, dim)), labels


def test_frechet_distance_against_sqrtm():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (400, 12)) @ rng.normal(0, 1, (12, 12))
    b = rng.normal(0.5, 2, (300, 12))
    m1, c1, m2, c2 = *metrics.gaussian(a), *metrics.gaussian(b)
    np.testing.assert_allclose(c1, np.cov(a, rowvar=False))
    want = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    got = metrics.frechet_distance(m1, c1, m2, c2)
    print(f"frechet: {abs(got / want - 1):.1e}")
    assert got == pytest.approx(want, rel=1e-9)
    assert got == pytest.approx(metrics.frechet_distance(m2, c2, m1, c1), rel=1e-9)


def test_frechet_distance_of_fewer_samples_than_dimensions():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (10, 40))
    m, c = metrics.gaussian(x)
    assert metrics.frechet_distance(m, c, m, c) == pytest.approx(0, abs=1e-5)
    # a shift costs its squared length, a doubled scale tr(C) (1 + 4 - 2 * 2)
    assert metrics.frechet_distance(m, c, m + 0.5, c) == pytest.approx(40 * 0.25, abs=1e-5)
    assert metrics.frechet_distance(m, c, m, 4 * c) == pytest.approx(np.trace(c), rel=1e-6)


def test_gaussian_refuses_one_sample():
    with pytest.raises(UserError, match=r"features \(1, 3\) are too few"):
        metrics.gaussian(np.zeros((1, 3)))


@pytest.mark.parametrize("score", [metrics.knn_accuracy, metrics.linear_probe_accuracy])
def test_accuracy_on_separable_data_and_on_noise(score):
    rng = np.random.default_rng(2)
    train, test = clusters(rng, 1000), clusters(rng, 701)
    assert score(*train, *test) > 0.95
    noise = rng.normal(0, 1, (1000, 16)), rng.integers(0, 5, 1000)
    assert abs(score(*noise, rng.normal(0, 1, (701, 16)), rng.integers(0, 5, 701)) - 0.2) < 0.06
    assert score(*train, *test) == score(*train, *test)


def test_knn_is_by_cosine_and_weighted():
    """Lengths do not count, and one near neighbour outvotes two far ones."""
    bank = np.array([[10.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels = np.array([0, 1, 1])
    assert metrics.knn_accuracy(bank, labels, np.array([[0.1, 0.01]]), np.array([0]), k=3) == 1.0
    assert metrics.knn_accuracy(bank, labels, np.array([[0.0, 9.0]]), np.array([1]), k=20) == 1.0


def test_psnr():
    a = np.full((2, 4, 4, 3), 0.5)
    assert metrics.psnr(a, a + 0.1) == pytest.approx(20)
    assert metrics.psnr(a, a) == float("inf")
