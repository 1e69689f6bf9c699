"""What images are compared by: FID-Inception's pooled features, or an encoder's class token."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg import encoders, inception
from rcg.component import Component
from rcg.errors import UserError

Array = jax.Array


class Extractor(NamedTuple):
    """`module` and what its features are called; `metric` is the Frechet distance's name in them."""

    module: nn.Module
    kind: str
    name: str
    metric: str

    def __call__(self, variables: Mapping[str, Any], images: Array) -> tuple[Array, Array | None]:
        """[B, H, W, 3] in [0, 1] -> (features [B, D], logits [B, classes] or None), float32.

        Inception sees what a PNG file would hold: values cut off, not rounded, to whole ones of 255.
        """
        if self.kind == "rcg.inception":
            return self.module.apply(variables, jnp.floor(jnp.clip(images, 0, 1) * 255))
        return encoders.features(self.module, variables, images), None


def extractor(about: Component, **options: Any) -> Extractor:
    """The extractor that a component is; `options` as `compute_options` gives them.

    Raises:
      UserError: it is neither an encoder nor FID-Inception.
    """
    if about.kind == "rcg.inception":
        # float32 always: published values are
        return Extractor(inception.build({}), about.kind, "FID-Inception, 2048 values", "fid")
    if about.kind == "rcg.encoder":
        module = encoders.build(about.architecture, **options)
        # which encoder: others of the same size have another space
        name = f"encoder {about.content_hash[:12]}'s class token"
        return Extractor(module, about.kind, name, "frechet")
    raise UserError(f"features come from rcg.inception or rcg.encoder components, not from {about.kind}")
