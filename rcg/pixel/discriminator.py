"""The patch discriminator of VQGAN training and its hinge losses (VQGAN section 3.2; pix2pix's PatchGAN).

GroupNorm stands where taming-transformers has BatchNorm: no running statistics, nothing depends on the
batch or on how it is split.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg.layers import Array, Dtype, torch_linear_init


class PatchDiscriminator(nn.Module):
    """Says of each patch whether it is real.

    Attributes:
      ch: channels of the first layer; they double per layer, up to 8 times.
      num_layers: halvings of the resolution. 3 sees 70 px patches (256 px images), 2 sees 34 px.
      num_groups: of the GroupNorms; divides `ch`.
    """

    ch: int = 64
    num_layers: int = 3
    num_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[B, S, S, 3] in [0, 1] -> logits, float32 [B, s, s]; s = S / 2^num_layers - 2."""
        conv = functools.partial(
            nn.Conv, kernel_size=(4, 4), padding=1, dtype=self.dtype, kernel_init=torch_linear_init
        )
        x = conv(self.ch, strides=2, name="conv_0")((2 * images - 1).astype(self.dtype))
        x = nn.leaky_relu(x, 0.2)
        for i in range(1, self.num_layers + 1):
            strides = 2 if i < self.num_layers else 1
            x = conv(self.ch * min(2**i, 8), strides=strides, use_bias=False, name=f"conv_{i}")(x)
            x = nn.GroupNorm(self.num_groups, dtype=self.dtype, name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return conv(1, name="conv_out")(x)[..., 0].astype(jnp.float32)


def discriminator_loss(real: Array, fake: Array) -> Array:
    """Hinge loss of the logits of real and reconstructed images."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def generator_loss(fake: Array) -> Array:
    return -fake.mean()


def adversary(
    discriminator: PatchDiscriminator,
    params: Any,
    distance: Callable[[Array], Array],
    images: Array,
    made: Array,
    weight: float,
    adaptive: bool,
) -> tuple[Array, Array, Array]:
    """What stands between a decoder and its discriminator.

    Args:
      distance: of reconstructions, what the decoder is to make small beside.
      adaptive: `weight` is relative to the distance, measured where both meet: at the reconstruction (taming
        compares gradients at the decoder's last layer instead).

    Returns:
      (weight of the decoder's loss, the decoder's loss, the discriminator's).
    """
    fixed = jax.lax.stop_gradient

    def judge(params: Any, images: Array) -> Array:
        return discriminator.apply({"params": params}, images)

    def fooled(made: Array) -> Array:
        return generator_loss(judge(fixed(params), made))

    if adaptive:
        at = fixed(made)
        near, far = (jnp.linalg.norm(jax.grad(f)(at).ravel()) for f in (distance, fooled))
        weight *= jnp.clip(near / (far + 1e-6), 0, 1e4)
    caught = discriminator_loss(judge(params, images), judge(params, fixed(made)))
    return fixed(jnp.float32(weight)), fooled(made), caught
