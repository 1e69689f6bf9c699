"""MoCo v3's two augmentations (Chen et al. 2021, section 4.1; BYOL's), as functions of a key.

They run on the device, inside the train step: crop, flip and blur are small matrix products, the rest is
elementwise. Against the original's PIL operations: crop boxes are not rounded to whole pixels, and colour
jitter always goes brightness, contrast, saturation, hue instead of in a random order.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def two_views(key: Array, images: Array, size: int, settings: Mapping[str, Any]) -> tuple[Array, Array]:
    """Two independent random views of each image.

    Args:
      images: [B, H, W, 3], float in [0, 1].
      size: side of the views.
      settings: fields of `view`; those that differ between the views are pairs.

    Returns:
      Two arrays [B, size, size, 3], float32 in [0, 1].
    """
    views = []
    for i, view_key in enumerate(jax.random.split(key)):
        own = {
            k: v[i] if k in ("blur_probability", "solarize_probability") else v for k, v in settings.items()
        }
        one = functools.partial(view, size=size, **own)
        views.append(jax.vmap(one)(jax.random.split(view_key, len(images)), images))
    return views[0], views[1]


def view(
    key: Array,
    image: Array,
    size: int,
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    jitter_probability: float = 0.8,
    grey_probability: float = 0.2,
    blur_probability: float = 1.0,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize_probability: float = 0.0,
    flip_probability: float = 0.5,
) -> Array:
    """One random view of one image, [H, W, 3] in [0, 1] -> [size, size, 3]. Probability 0 costs nothing.

    Args:
      crop_scale: share of the image's area that is kept.
      brightness, contrast, saturation: factors are drawn from 1 - x .. 1 + x.
      hue: shifts are drawn from -x .. x, in turns.
      blur_sigma: of the Gaussian, in pixels of the view.
    """
    # one draw for everything: generators are what compiles slowly and costs time on small images
    crop, color, apply, sigma = jnp.split(jax.random.uniform(key, (32,)), [23, 27, 31])

    def sometimes(which: int, probability: float, changed: Array, x: Array) -> Array:
        return jnp.where(apply[which] < probability, changed, x) if probability > 0 else x

    x = random_resized_crop(crop, image.astype(jnp.float32), size, crop_scale, flip_probability)
    jittered = color_jitter(color, x, brightness, contrast, saturation, hue)
    x = sometimes(0, jitter_probability, jittered, x)
    x = sometimes(1, grey_probability, jnp.broadcast_to(grey(x), x.shape), x)
    if blur_probability > 0:
        blurred = gaussian_blur(x, _between(sigma[0], *blur_sigma))
        x = sometimes(2, blur_probability, blurred, x)
    return sometimes(3, solarize_probability, jnp.where(x < 0.5, x, 1 - x), x)


def _between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def random_resized_crop(
    u: Array,
    image: Array,
    size: int,
    scale: tuple[float, float],
    flip_probability: float = 0.0,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """A box of random area, shape and place, resized (bilinear, antialiased), perhaps mirrored.

    As torchvision: of ten boxes the first that fits in, else the whole image's middle. u: [23], uniform
    in [0, 1).
    """
    H, W, _ = image.shape
    area = H * W * _between(u[:10], *scale)
    shape = jnp.exp(_between(u[10:20], np.log(ratio[0]), np.log(ratio[1])))
    h, w = jnp.sqrt(area / shape), jnp.sqrt(area * shape)
    fits = (h <= H) & (w <= W)
    first = jnp.argmax(fits)
    side = jnp.minimum(jnp.minimum(H, W / ratio[0]), jnp.minimum(W, H * ratio[1]))
    h = jnp.where(fits.any(), h[first], jnp.minimum(H, side))
    w = jnp.where(fits.any(), w[first], jnp.minimum(W, side))
    place = jnp.where(fits.any(), u[20:22], 0.5)
    rows = _resize_matrix(place[0] * (H - h), h, H, size)
    cols = _resize_matrix(place[1] * (W - w), w, W, size)
    cols = jnp.where(u[22] < flip_probability, cols[::-1], cols)
    return jnp.einsum("hH,HWc,wW->hwc", rows, image, cols)


def _resize_matrix(start: Array, length: Array, n_in: int, n_out: int) -> Array:
    """[n_out, n_in]: samples start .. start + length by a triangle as wide as the coarser of both grids."""
    step = length / n_out
    centre = start + (jnp.arange(n_out) + 0.5) * step
    distance = jnp.abs(centre[:, None] - (jnp.arange(n_in) + 0.5))
    weights = jnp.maximum(1 - distance / jnp.maximum(step, 1), 0)
    return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)


def gaussian_blur(image: Array, sigma: Array) -> Array:
    """[H, W, 3], by a Gaussian of `sigma` pixels that is cut and renormalised at the border."""

    def matrix(n):
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
        return weights / weights.sum(1, keepdims=True)

    return jnp.einsum("hH,HWc,wW->hwc", matrix(image.shape[0]), image, matrix(image.shape[1]))


def grey(image: Array) -> Array:
    """[..., 3] -> luma [..., 1]."""
    return (image * LUMA).sum(-1, keepdims=True)


def color_jitter(
    u: Array, image: Array, brightness: float, contrast: float, saturation: float, hue: float
) -> Array:
    """torchvision's ColorJitter of [H, W, 3] in [0, 1], in the order of its arguments. u: [4], in [0, 1)."""
    u = 2 * u - 1

    def blend(a, b, factor):
        return jnp.clip(b + (a - b) * factor, 0, 1)

    x = jnp.clip(image * (1 + brightness * u[0]), 0, 1)
    x = blend(x, grey(x).mean(), 1 + contrast * u[1])
    x = blend(x, grey(x), 1 + saturation * u[2])
    return shift_hue(x, hue * u[3]) if hue > 0 else x


def shift_hue(image: Array, shift: Array) -> Array:
    """Turns the hue of [..., 3] by `shift` turns; value and saturation of HSV stay."""
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    chroma = value - image.min(-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        value == r, (g - b) / safe, jnp.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    k = (sixth + 6 * shift)[..., None] + jnp.array([5.0, 3.0, 1.0])
    k = k - 6 * jnp.floor(k / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
