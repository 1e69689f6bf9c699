"""LPIPS, the perceptual distance of VGG16 features (arXiv 1801.03924, section 3), version 0.1, "lin".

Published layout: the state dict of `lpips.LPIPS(net="vgg")`, that is `net.slice{1..5}.{layer}.{weight,bias}`
(torchvision's VGG16 convolutions by their place in `features`) and `lin{0..4}.model.1.weight`.
`published` drops what that file holds twice or as constants.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rcg.layers import Array, Dtype, torch_linear_init
from rcg.torch_weights import Rule, conv

# VGG16's stages up to relu{1_2, 2_2, 3_3, 4_3, 5_3}: channels, and each convolution's place in `features`
STAGES = (
    (64, (0, 2)),
    (128, (5, 7)),
    (256, (10, 12, 14)),
    (512, (17, 19, 21)),
    (512, (24, 26, 28)),
)
# of images in [-1, 1]: LPIPS' own rounding of the ImageNet statistics
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, a: Array, b: Array) -> Array:
        """Two batches [B, S, S, 3] in [0, 1], S >= 16 -> distance of each pair, float32 [B]."""
        x = (2 * jnp.concatenate([a, b]) - 1 - jnp.array(SHIFT)) / jnp.array(SCALE)
        x, distance = x.astype(self.dtype), 0.0
        for i, (channels, places) in enumerate(STAGES):
            if i > 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for place in places:
                layer = nn.Conv(
                    channels, (3, 3), dtype=self.dtype, kernel_init=torch_linear_init, name=f"conv_{place}"
                )
                x = nn.relu(layer(x))
            feature = x.astype(jnp.float32)
            # the floor inside the root keeps the gradient of an all-zero feature finite
            norm = jnp.sqrt(jnp.square(feature).sum(-1, keepdims=True) + 1e-20)
            a, b = jnp.split(feature / (norm + 1e-10), 2)
            weight = self.param(f"lin_{i}", nn.initializers.constant(1 / channels), (1, 1, channels, 1))
            distance += (jnp.square(a - b) * weight[0, 0, :, 0].astype(jnp.float32)).sum(-1).mean((1, 2))
        return distance


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> LPIPS:
    """The module; its architecture has no fields."""
    del attention, scan_layers, remat
    return LPIPS(**architecture, dtype=dtype)


def architecture_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """There is one only."""
    del arrays
    return {}


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our names -> those of `lpips.LPIPS(net="vgg")`."""
    del architecture
    table = []
    for i, (_, places) in enumerate(STAGES):
        for place in places:
            table += conv(f"params/conv_{place}", f"net.slice{i + 1}.{place}")
        table.append(Rule(f"params/lin_{i}", f"lin{i}.model.1.weight", "conv"))
    return table


def published(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file's arrays without `lins.*` (lin0..4 again) and `scaling_layer.*` (SHIFT, SCALE)."""
    return {k: v for k, v in arrays.items() if not k.startswith(("lins.", "scaling_layer."))}
