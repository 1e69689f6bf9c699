"""Multi-head attention as OPT and CLIP publish it: separate projections with biases, and keys and values that
can come from an earlier pass."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rcg.layers import Array, Dtype, attend, linear
from rcg.torch_weights import Rule, dense

KeysValues = tuple[Array, Array]  # each [B, H, S, D]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def flat(x: Array) -> Array:
    """[B, H, S, D] -> [B * H, S, D], a cache's form: XLA's matrix products take it as it is. In another form
    the update would be done twice, for the product and for the cache, on two copies of the whole."""
    return x.reshape(-1, *x.shape[2:])


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v between the positions of x, and of the past."""

    num_heads: int
    init_std: float = 0.02
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None, past: KeysValues | None = None, index: Array | None = None
    ) -> tuple[Array, KeysValues]:
        """[B, T, W] -> [B, T, W] and the keys and values.

        Args:
          mask: bool, [B or 1, 1, T or 1, S], S the number of keys in all.
          past: keys and values of earlier positions. Without `index`, x's own follow them. With it they are
            a cache, [B * H, S, D] each, which x's own are written into, from `index` on.
        """
        B, T, W = x.shape
        project = functools.partial(
            linear, dtype=self.dtype, kernel_init=nn.initializers.normal(self.init_std)
        )
        q, k, v = (
            project(W, name=name)(x).reshape(B, T, self.num_heads, -1).swapaxes(1, 2)  # [B, H, T, D]
            for name in PROJECTIONS[:3]
        )
        if past is None:
            kept = k, v
        elif index is None:
            kept = k, v = tuple(jnp.concatenate(pair, axis=2) for pair in zip(past, (k, v), strict=True))
        else:
            kept = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, flat(new), index, axis=1)
                for old, new in zip(past, (k, v), strict=True)
            )
            k, v = (x.reshape(B, self.num_heads, -1, x.shape[-1]) for x in kept)
        out = attend(q, k, v, mask, impl=self.attention).swapaxes(1, 2).reshape(B, T, W)
        return project(W, name="out_proj")(out), kept


def attention_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules of one `Attention`, which files call `theirs`."""
    return [rule for name in PROJECTIONS for rule in dense(f"{ours}/{name}", f"{theirs}.{name}")]


def causal_mask(num_queries: int, num_keys: int) -> Array:
    """bool [1, 1, T, S]: the last query sees all keys, each before it one less."""
    keys = jnp.arange(num_keys) - (num_keys - num_queries)
    return (keys <= jnp.arange(num_queries)[:, None])[None, None]
