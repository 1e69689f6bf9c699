"""How good are images and representations: Frechet distance, k-NN, linear probe, PSNR.

Host arrays in, Python floats out. Whoever reports a number states its samples, and for the Frechet
distance the feature network and the reference set too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from rcg.errors import UserError


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] -> (mean [D], unbiased covariance [D, D]), float64.

    Raises:
      UserError: fewer than two features.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(f"features {x.shape} are too few to measure a distribution; hold out more images")
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the distance of FID (Heusel et al. 2017).

    The trace of the root comes from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: real
    for singular covariances too (fewer samples than dimensions).
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = root @ cov2 @ root
    trace_root = np.sqrt(np.maximum(np.linalg.eigvalsh((middle + middle.T) / 2), 0)).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * trace_root
    return float(max(distance, 0.0))  # rounding takes it below zero for equal sets


@functools.partial(jax.jit, static_argnames=("k", "num_classes"))
def _vote(bank, bank_labels, queries, k, num_classes, temperature):
    similarity, index = jax.lax.top_k(queries @ bank.T, k)  # [B, k]
    weights = jnp.exp((similarity - 1) / temperature)
    votes = jax.nn.one_hot(bank_labels[index], num_classes) * weights[..., None]
    return votes.sum(1).argmax(-1)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 500,
) -> float:
    """Accuracy of a weighted vote of the k nearest neighbours by cosine (Wu et al. 2018).

    A neighbour of similarity s votes exp(s / temperature). Features [N, ...] are flattened; labels are
    integers from 0.
    """
    bank, queries = jnp.asarray(_unit(train_features)), _unit(test_features)
    bank_labels = jnp.asarray(train_labels)
    num_classes, k = int(np.max(train_labels)) + 1, min(k, len(bank))
    hits = 0
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        padded = np.pad(part, ((0, batch_size - len(part)), (0, 0)))  # one shape, one program
        predicted = np.asarray(_vote(bank, bank_labels, padded, k, num_classes, temperature))[: len(part)]
        hits += int((predicted == np.asarray(test_labels[start : start + batch_size])).sum())
    return hits / len(queries)


def linear_probe_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    seed: int = 0,
    steps: int = 2000,
) -> float:
    """Accuracy of logistic regression on standardised features [N, D]; labels are integers from 0.

    `steps` minibatches of 1024 with Adam and a cosine rate, so the cost does not grow with N.
    """
    x = np.asarray(train_features, np.float32)
    mean, std = x.mean(0), x.std(0) + 1e-6
    labels = np.asarray(train_labels)
    weights = _fit_probe(
        (x - mean) / std, jnp.asarray(labels), jax.random.key(seed), int(labels.max()) + 1, steps
    )
    logits = (np.asarray(test_features, np.float32) - mean) / std @ weights["w"] + weights["b"]
    return float((np.argmax(logits, -1) == np.asarray(test_labels)).mean())


@functools.partial(jax.jit, static_argnames=("num_classes", "steps"))
def _fit_probe(x, labels, key, num_classes, steps):
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(weights, x, labels):
        logits = x @ weights["w"] + weights["b"]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 1e-4 * jnp.sum(weights["w"] ** 2)

    def step(carry, key):
        weights, state = carry
        index = jax.random.randint(key, (min(1024, len(x)),), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(weights, x[index], labels[index]), state)
        return (optax.apply_updates(weights, updates), state), None

    weights = {"w": jnp.zeros((x.shape[1], num_classes)), "b": jnp.zeros(num_classes)}
    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), jax.random.split(key, steps))
    return weights


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], over all of their values; inf if equal."""
    mse = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans et al. 2016): (mean, std) over splits.

    Args:
      logits: [N, classes]; shuffled before splitting, as torch-fidelity does.
    """
    x = np.asarray(logits, np.float64)[np.random.RandomState(seed).permutation(len(logits))]
    log_p = x - scipy.special.logsumexp(x, axis=1, keepdims=True)
    scores = []
    for i in range(splits):
        part = log_p[i * len(x) // splits : (i + 1) * len(x) // splits]
        p = np.exp(part)
        scores.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@functools.partial(jax.jit, static_argnames=("k",))
def _kth_distance(queries, bank, k):
    """Squared distance of each query to the k-th nearest of the bank, itself included."""
    return -jax.lax.top_k(-_squared_distances(queries, bank), k)[0][:, -1]


@jax.jit
def _inside_any(queries, bank, radii):
    return (_squared_distances(queries, bank) <= radii).any(1)


def _squared_distances(a, b):
    dot = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1) - 2 * dot, 0)


def precision_recall(
    real: np.ndarray, made: np.ndarray, k: int = 3, batch_size: int = 1000
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    A set's manifold is the union of balls around its features, each up to the k-th nearest neighbour.
    Precision is the share of `made` [M, D] on the manifold of `real` [N, D], recall the reverse.
    """

    def by_batch(function, queries, *rest):
        parts = []
        for start in range(0, len(queries), batch_size):
            part = queries[start : start + batch_size]
            padded = np.pad(part, ((0, batch_size - len(part)), (0, 0)))  # one shape, one program
            parts.append(np.asarray(function(padded, *rest))[: len(part)])
        return np.concatenate(parts)

    real, made = (np.asarray(x, np.float32) for x in (real, made))
    centre = real.mean(0)  # distances are of differences: smaller numbers lose fewer digits
    real, made = real - centre, made - centre
    balls = {}
    for name, bank in (("real", real), ("made", made)):
        if len(bank) <= k:
            raise ValueError(f"precision and recall need more than {k} images of each set, got {len(bank)}")
        bank = jnp.asarray(bank)
        balls[name] = (
            bank,
            jnp.asarray(by_batch(lambda q, b: _kth_distance(q, b, k + 1), np.asarray(bank), bank)),
        )
    precision = by_batch(_inside_any, made, *balls["real"]).mean()
    recall = by_batch(_inside_any, real, *balls["made"]).mean()
    return float(precision), float(recall)
