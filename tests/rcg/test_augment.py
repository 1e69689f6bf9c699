import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcg import augment

OFF = dict(jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0, flip_probability=0.0)
WHOLE = OFF | dict(crop_scale=(1.0, 1.0))


def pictures(n=4, size=16):
    """Smooth random pictures, [n, size, size, 3] in [0, 1]."""
    coarse = jax.random.uniform(jax.random.key(0), (n, 4, 4, 3))
    return jax.image.resize(coarse, (n, size, size, 3), "linear")


def many(n, **settings):
    """`n` views of one picture."""
    keys = jax.random.split(jax.random.key(1), n)
    return jax.jit(jax.vmap(lambda k: augment.view(k, pictures(1)[0], 16, **settings)))(keys)


def test_two_views():
    settings = dict(blur_probability=(1.0, 0.1), solarize_probability=(0.0, 0.2), crop_scale=(0.2, 1.0))
    run = jax.jit(lambda key: augment.two_views(key, pictures(8, 24), 16, settings))
    a, b = run(jax.random.key(3))
    for v in (a, b):
        assert v.shape == (8, 16, 16, 3) and v.dtype == jnp.float32
        assert v.min() >= -1e-6 and v.max() <= 1 + 1e-6
    assert np.abs(a - b).mean() > 0.01
    again = run(jax.random.key(3))
    np.testing.assert_array_equal(a, again[0])
    assert not np.array_equal(a, run(jax.random.key(4))[0])


def test_everything_off_is_the_identity():
    # of boxes with the whole area only the square one fits: mostly the fallback is taken
    np.testing.assert_allclose(many(8, **WHOLE), np.tile(pictures(1), (8, 1, 1, 1)), atol=1e-5)


def test_flip_happens_at_its_rate():
    views = many(400, **WHOLE | {"flip_probability": 0.3})
    mirrored = np.abs(views - pictures(1)[:, :, ::-1]).max((1, 2, 3)) < 1e-5
    assert 0.2 < mirrored.mean() < 0.4


@pytest.mark.parametrize("name", ["jitter", "grey", "blur", "solarize"])
def test_each_change_happens_at_its_rate(name):
    views = many(400, **WHOLE | {f"{name}_probability": 0.4})
    changed = np.abs(views - pictures(1)).max((1, 2, 3)) > 1e-4
    assert 0.28 < changed.mean() < 0.52


def test_crop_finds_its_box():
    """A linear ramp stays linear: its slope is the box's size, its middle the box's place."""
    ramp = jnp.broadcast_to(jnp.arange(64.0)[None, :, None] / 64, (64, 64, 3))
    draws = jax.random.uniform(jax.random.key(0), (500, 23))
    crop = jax.jit(jax.vmap(lambda u: augment.random_resized_crop(u, ramp, 16, (0.25, 0.5))))
    row = np.asarray(crop(draws))[:, 8, :, 0]
    width = (row[:, 12] - row[:, 4]) * 16 / 8  # share of the image's width
    assert width.min() > np.sqrt(0.25 * 3 / 4) - 0.02 and width.max() < np.sqrt(0.5 * 4 / 3) + 0.02
    middle = row[:, 7:9].mean(1)
    assert middle.min() < 0.35 and middle.max() > 0.65 and abs(middle.mean() - 0.49) < 0.03


def test_blur_keeps_flat_areas_and_widens_points():
    flat = jnp.full((9, 9, 3), 0.3)
    np.testing.assert_allclose(augment.gaussian_blur(flat, 1.5), flat, atol=1e-6)
    point = jnp.zeros((17, 17, 3)).at[8, 8].set(1.0)
    blurred = augment.gaussian_blur(point, 1.0)
    assert blurred[8, 8, 0] == pytest.approx(1 / (2 * np.pi), rel=1e-3)


def test_hue_is_hsvs():
    colors = np.random.default_rng(0).uniform(0, 1, (50, 3)).astype(np.float32)
    colors[:3] = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 0]]
    got = augment.shift_hue(jnp.asarray(colors), 0.23)
    for color, shifted in zip(colors, got, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*map(float, color))
        np.testing.assert_allclose(shifted, colorsys.hsv_to_rgb((h + 0.23) % 1, s, v), atol=1e-5)
