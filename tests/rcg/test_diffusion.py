"""What a schedule and a DDIM run must satisfy, whatever the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import diffusion
from rcg.errors import UserError

TABLES = diffusion.schedule(diffusion.betas())


def test_schedules():
    linear = diffusion.betas("linear", start=1e-4, end=2e-2)
    np.testing.assert_allclose(np.diff(linear), np.full(999, (2e-2 - 1e-4) / 999), rtol=1e-9)
    sqrt = diffusion.betas()
    assert sqrt.dtype == np.float64
    np.testing.assert_allclose(np.diff(np.sqrt(sqrt)), np.diff(np.sqrt(sqrt))[0], rtol=1e-9)
    np.testing.assert_allclose(TABLES["alphas_cumprod"][[0, 499, 999]], [0.9985, 0.115844491, 1.42303974e-4])
    with pytest.raises(UserError, match="cosine"):
        diffusion.betas("cosine")


def test_q_sample_has_the_schedules_moments():
    x0 = jnp.full((200_000, 1), 3.0)
    t = jnp.full(len(x0), 300)
    x = diffusion.q_sample(TABLES, x0, t, jax.random.normal(jax.random.key(0), x0.shape))
    acp = TABLES["alphas_cumprod"][300]
    assert abs(float(x.mean()) - 3 * acp**0.5) < 0.01 and abs(float(x.var()) - (1 - acp)) < 0.01
    image = jnp.ones((2, 4, 4, 3))  # broadcasts over whatever follows the batch axis
    noisy = diffusion.q_sample(TABLES, image, jnp.array([0, 999]), jnp.zeros_like(image))
    np.testing.assert_allclose(noisy[:, 0, 0, 0], TABLES["sqrt_alphas_cumprod"][[0, 999]], rtol=1e-6)


@pytest.mark.parametrize(
    "steps, hint", [(300, "250 or 500"), (1000, "500"), (0, "1"), (-3, "1"), (5000, "500"), (40, None)]
)
def test_which_step_counts_are_usable(steps, hint):
    if hint is None:
        assert len(diffusion.ddim_timesteps(steps)) == steps
        return
    with pytest.raises(UserError, match=hint) as caught:
        diffusion.ddim_timesteps(steps)
    assert str(steps) in str(caught.value)


def test_every_count_is_in_range_or_refused():
    for steps in range(1, 1001):
        try:
            t = diffusion.ddim_timesteps(steps)
        except UserError:
            continue
        assert t[0] == 1 and t[-1] <= 999 and (np.diff(t) > 0).all() and len(t) >= steps


@pytest.mark.parametrize("arguments", [{"eta": 1.5}, {"eta": -0.1}, {"end": "dirty"}])
def test_bad_settings_are_refused(arguments):
    with pytest.raises(UserError):
        diffusion.ddim_tables(TABLES, 10, **arguments)


def toy(x, condition):
    """A nonlinear "network" that uses its step's condition."""
    return jnp.tanh(x * 1.3) + 0.1 * condition


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_scan_is_the_loop_of_the_paper(eta):
    run = diffusion.ddim_tables(TABLES, 20, eta)
    key = jax.random.key(0)
    x_T, noise = jax.random.normal(key, (3, 5)), jax.random.normal(jax.random.key(1), (20, 3, 5))
    conditions = np.linspace(-1, 1, 20, dtype=np.float32)
    got, predicted = diffusion.ddim_sample(toy, x_T, noise, run, conditions, trace=True)
    x, seen = np.asarray(x_T, np.float64), []
    for k, z in zip(reversed(range(20)), np.asarray(noise), strict=True):
        a, prev, sigma = (np.float64(v[k]) for v in (run.alphas, run.alphas_prev, run.sigmas))
        x0 = np.tanh(x * 1.3) + 0.1 * conditions[k]
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + sigma * z
        seen.append(x0)
    np.testing.assert_allclose(got, x, atol=2e-5)
    np.testing.assert_allclose(predicted, seen, atol=2e-5)


def test_eta_decides_whether_noise_matters():
    x_T = jax.random.normal(jax.random.key(0), (2, 4))
    conditions = np.zeros(10, np.float32)

    def sample(eta, seed):
        run = diffusion.ddim_tables(TABLES, 10, eta)
        return diffusion.ddim_sample(toy, x_T, jax.random.key(seed), run, conditions)

    np.testing.assert_array_equal(sample(0.0, 1), sample(0.0, 2))
    np.testing.assert_array_equal(sample(1.0, 1), sample(1.0, 1))
    assert np.abs(sample(1.0, 1) - sample(1.0, 2)).max() > 1e-2


def test_the_end_is_clean_only_when_asked():
    published, clean = (diffusion.ddim_tables(TABLES, 50, 1.0, end) for end in ("published", "clean"))
    assert published.alphas_prev[0] == TABLES["alphas_cumprod"][0] and published.sigmas[0] > 0
    assert clean.alphas_prev[0] == 1 and clean.sigmas[0] == 0
    np.testing.assert_array_equal(clean.alphas_prev[1:], published.alphas_prev[1:])
    x_T = jax.random.normal(jax.random.key(0), (2, 4))
    denoise = lambda x, _: jnp.full_like(x, 0.7)  # noqa: E731
    x = diffusion.ddim_sample(denoise, x_T, jax.random.key(1), clean)
    np.testing.assert_allclose(x, 0.7, atol=1e-5)  # the last prediction itself


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_gaussian_is_sampled_with_its_own_moments(eta):
    """For N(mean, std^2) the best denoiser is linear and known; DDIM with it must return that Gaussian, up
    to what the finite number of steps costs, which is known too."""
    mean, std = 0.5, 0.3
    run = diffusion.ddim_tables(TABLES, 250, eta, "clean")

    def gain(a):
        return np.sqrt(a) * std**2 / (a * std**2 + 1 - a)

    expected = 1.0  # variance, step by step
    for a, prev, sigma in zip(*(v[::-1].astype(np.float64) for v in run[1:]), strict=True):
        of_eps = (1 - np.sqrt(a) * gain(a)) / np.sqrt(1 - a)
        factor = np.sqrt(prev) * gain(a) + np.sqrt(max(1 - prev - sigma**2, 0)) * of_eps
        expected = factor**2 * expected + sigma**2
    assert abs(expected**0.5 - std) < 0.025

    def denoise(x, a):
        return mean + jnp.sqrt(a) * std**2 / (a * std**2 + 1 - a) * (x - jnp.sqrt(a) * mean)

    x_T = jax.random.normal(jax.random.key(0), (20_000,))
    x = jax.jit(lambda x, k: diffusion.ddim_sample(denoise, x, k, run, run.alphas))(x_T, jax.random.key(1))
    print(f"mean {float(x.mean()):.4f} (0.5), std {float(x.std()):.4f} ({expected**0.5:.4f})")
    assert abs(float(x.mean()) - mean) < 0.01 and abs(float(x.std()) - expected**0.5) < 0.005
