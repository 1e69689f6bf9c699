"""Scores of text and pictures, against the recorded ones of the published code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from chef_fusion import metrics
from chef_fusion.experiments.judge import soften


@pytest.mark.parametrize("way", ["truncated", "untruncated"])
def test_scores_are_the_recorded_ones(shared, way):
    held = json.loads((shared / "golden/chef_fusion/metrics.json").read_text())
    cut = [metrics.cut_at_first_period(text) for text in held["hypotheses"]]
    assert cut == held["hypotheses_cut"]
    hypotheses, references = cut if way == "truncated" else held["hypotheses"], held["references"]
    theirs = held["scores"][way]
    ours = {
        "sacrebleu_correct": metrics.sacrebleu_score(hypotheses, references),
        "sacrebleu_as_in_repository": metrics.sacrebleu_as_published(hypotheses, references),
    }
    ours |= {f"bleu{n}": metrics.bleu(hypotheses, references, n) for n in (1, 2, 3, 4)}
    for kind in ("rouge1", "rouge2", "rougeL"):
        ours |= {f"{kind}_{name}": v for name, v in metrics.rouge(hypotheses, references, kind).items()}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        print(f"{name}: {ours[name]:.6f}, theirs {value:.6f}")
        assert ours[name] == pytest.approx(value, rel=1e-5), name


def test_the_published_figure_scores_one_text():
    """Why it is reported apart: all texts but the first can be nonsense."""
    references = [
        "mix flour and sugar in a large bowl",
        "boil the pasta in salted water",
        "grill it until brown",
    ]
    nonsense = [references[0], "x", "y"]
    assert metrics.sacrebleu_as_published(nonsense, references) == pytest.approx(100)
    assert metrics.sacrebleu_score(nonsense, references) < 60


def test_sets():
    found, wanted = [frozenset("ab"), frozenset()], [frozenset("bc"), frozenset("d")]
    assert metrics.set_scores(found, wanted) == {"precision": 0.5, "recall": 1 / 3, "f1": 2 / 5}
    assert metrics.set_scores([frozenset()], [frozenset()])["f1"] == 0


def test_nearest_goes_by_direction():
    keys = np.array([[1.0, 0], [0, 5], [-1, 0]])
    assert list(metrics.nearest(np.array([[3.0, 1], [0, 0.1], [-2, 1]]), keys)) == [0, 1, 2]
    np.testing.assert_allclose(metrics.cosine([[1, 0], [2, 2]], [[0, 1], [1, 1]]), [0, 1], atol=1e-12)


def test_a_judge_learns_from_pictures_out_of_focus():
    images = np.random.default_rng(0).random((3, 12, 16, 3), np.float32)
    made = np.asarray(soften(jnp.asarray(images), jnp.array([0.0, 0.7, 1.5])))
    assert np.array_equal(made[0], images[0])
    for sigma, image, soft in ((0.7, images[1], made[1]), (1.5, images[2], made[2])):
        expected = gaussian_filter(image, (sigma, sigma, 0), mode="nearest", radius=4)
        np.testing.assert_allclose(soft, expected, atol=1e-5)
