"""A classifier of pictures of dishes: the kind of dish, and which ingredients can be seen.

It is trained on real pictures alone and has no part in making any, so that it can say whether a made picture
shows what was asked for.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chef_fusion.backbones.clip import to_pixels
from chef_fusion.backbones.stable_diffusion.vae import Conv, ResnetBlock
from rcg.layers import Array, Dtype, GroupNorm, linear


class Judge(nn.Module):
    """Convolutions, a level for each width at half the resolution of the one before.

    Attributes:
      begin_at_half: the first level, too, is at half the resolution: a quarter of the work.
    """

    image_size: int
    bases: tuple[str, ...]
    ingredients: tuple[str, ...]
    widths: tuple[int, ...] = (32, 64, 128, 192)
    num_groups: int = 8
    begin_at_half: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """[B, S, S, 3] in [0, 1] -> float32 logits of the bases [B, N] and of each ingredient [B, M]."""
        x = (2 * images - 1).astype(self.dtype)
        for i, width in enumerate(self.widths):
            first = i == 0
            kernel = (4, 4) if first and self.begin_at_half else (3, 3)
            stride = 1 if first and not self.begin_at_half else 2
            x = Conv(width, kernel, strides=stride, padding=1, dtype=self.dtype, name=f"conv_{i}")(x)
            x = ResnetBlock(width, self.num_groups, self.dtype, name=f"resnet_{i}")(x)
        x = GroupNorm(self.num_groups, 1e-6, True, self.dtype, name="norm")(x)
        # what covers much of the plate, and what is seen in one place
        x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        names = len(self.bases), len(self.ingredients)
        kinds = linear(names[0], dtype=self.dtype, name="bases_head")(x)
        # most dishes lack most ingredients
        rare = nn.initializers.constant(-2.5)
        present = linear(names[1], dtype=self.dtype, bias_init=rare, name="ingredients_head")(x)
        return kinds.astype(jnp.float32), present.astype(jnp.float32)


def build(architecture: Mapping[str, Any], *, dtype: Dtype = jnp.float32, **unused: Any) -> Judge:
    """The module of an architecture: Judge's fields."""
    del unused
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
    return Judge(**fields, dtype=dtype)


@functools.partial(jax.jit, static_argnames="module")
def _logits(module: Judge, variables: Any, images: Array) -> tuple[Array, Array]:
    return module.apply(variables, images)


def opinions(
    module: Judge, variables: Any, images: Sequence[np.ndarray], batch_size: int = 64
) -> tuple[list[str], list[frozenset[str]]]:
    """The base and the ingredients (probability above a half) of images, uint8 or in [0, 1], of any size."""
    bases: list[str] = []
    ingredients: list[frozenset[str]] = []
    for first in range(0, len(images), batch_size):
        part = [to_pixels(image, module.image_size) for image in images[first : first + batch_size]]
        padded = np.zeros((batch_size, *part[0].shape), np.float32)
        padded[: len(part)] = np.stack(part).astype(np.float32) / 255
        kinds, present = (np.asarray(x)[: len(part)] for x in _logits(module, variables, padded))
        bases += [module.bases[i] for i in kinds.argmax(-1)]
        ingredients += [frozenset(np.array(module.ingredients)[row > 0].tolist()) for row in present]
    return bases, ingredients
