"""The layers shared by the models: attention, the transformer block, the stack, position tables.

Flax linen, NHWC, parameters in float32, compute in `dtype`; normalisations, softmax and attention
logits in float32. Initialisation follows the published PyTorch code.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

Array = jax.Array
Dtype = Any
# of a `Block`'s matrices, over the mesh: (regex on the path, axis names)
SHARDING_RULES = (
    (r"attn/qkv/kernel", ("fsdp", "tensor")),
    (r"attn/proj/kernel", ("tensor", "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
)

# torch.nn.Linear's default: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for the weight and, with the fan of the
# weight, for the bias.
torch_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nn.initializers.xavier_uniform()


def layer_norm(eps: float, dtype: Dtype, name: str) -> nn.LayerNorm:
    """Two-pass variance: the one-pass form loses digits that parity needs."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, w: Array, dims: Any, precision: Any = None) -> Array:
    """[..., D] @ [D, M] for `nn.Dense`, with the weight's gradient as x^T g.

    By JAX's own rule it is (g^T x)^T: on CPU that copies g, and with it recomputes the sum of all later
    blocks' gradients that g is, a fifth of MAGE's training step.
    """
    return jax.lax.dot_general(x, w, dims, precision)


def _product_backward(dims, precision, saved, g):
    x, w = saved
    dx = jax.lax.dot_general(g, w, (((g.ndim - 1,), (1,)), ((), ())), precision)
    x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    return dx, jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), precision)


_product.defvjp(lambda x, w, *options: (_product(x, w, *options), (x, w)), _product_backward)
linear = functools.partial(nn.Dense, dot_general=_product, kernel_init=xavier_uniform)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """The exact (erf) form, which all published weights were trained with. Its gradient is computed from x
    alone: two transcendentals again cost less than two more arrays kept from the forward pass."""
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype))


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) * np.asarray((2 * np.pi) ** -0.5, x.dtype)
    return (g * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def random_words(rng: Array, shape: tuple[int, ...], first: Array | int = 0) -> Array:
    """uint32 words, each a hash of the key and of its own index, counted row-major from `first`.

    For dropout, where threefry would cost a fifth of a training step: two rounds of a 32-bit mixer fuse
    into whatever consumes them, are cheaper to draw again than to keep, and are the same on every mesh.
    `rng` is a key, or its uint32 words.
    """
    if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.key_data(rng)
    x = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        x = x * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = (x + jnp.uint32(first)) * np.uint32(0x9E3779B9) + rng[0]
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD) ^ rng[-1]
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)


def dropout(x: Array, rate: float, rng: Array | None, first: Array | int = 0) -> Array:
    """Inverted dropout; off when `rng` is None. `first`: x's place in a larger array, see `random_words`."""
    if rate == 0.0 or rng is None:
        return x
    keep = random_words(rng, x.shape, first) >= np.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def attention(q: Array, k: Array, v: Array, mask: Array | None = None, **options: Any) -> Array:
    """`attend` on [B, T, H, D]: q; k, v: [B, S, H, D]. Returns [B, T, H, D] in q's dtype."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, H, T, D]
    return attend(q, k, v, mask, **options).swapaxes(1, 2)


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    impl: str = "auto",
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
) -> Array:
    """Multi-head softmax(q k^T / sqrt(D)) v.

    Args:
      q: [B, H, T, D]; k, v: [B, H, S, D].
      mask: bool, [B or 1, 1, T or 1, S]: which keys a query sees; None: all. A query that sees none gets
        their mean ("fused" counts a key more where S is odd).
      impl: "einsum" (plain), "mapped" (a head at a time, whose scores stay in cache: fastest on one CPU),
        "fused" (the device's fused kernel, no dropout), or "auto". The draws of dropout are the same.

    Returns:
      [B, H, T, D] in q's dtype.
    """
    B, H, T, D = q.shape
    drop = dropout_rng is not None and dropout_rate > 0
    if impl == "auto":
        backend = jax.default_backend()
        half = q.dtype in (jnp.bfloat16, jnp.float16)
        if backend == "gpu" and half and not drop and D % 8 == 0 and D <= 128 and T > 1:
            impl = "fused"
        else:
            one = jax.device_count() == 1  # the heads of several devices can't be taken in turn
            impl = "mapped" if backend == "cpu" and one and T > 1 else "einsum"
    if drop and impl == "fused":
        raise ValueError('attention dropout needs impl "einsum" or "mapped", not "fused"')
    if impl == "fused":
        implementation = "cudnn" if jax.default_backend() == "gpu" else None
        # JAX's cuDNN has no gradient at odd lengths, masked or not
        S, more = k.shape[2], [T % 2, k.shape[2] % 2, k.shape[2] % 2]
        lengths = (None, None)
        if mask is None and S % 2:  # of each row, also under vmap, where a constant would lack an axis
            each = q[:, 0, 0, 0] == k[:, 0, 0, 0]
            lengths = tuple(jnp.where(each, n, n).astype(jnp.int32) for n in (T + T % 2, S))
        q, k, v = (
            jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, n), (0, 0), (0, 0)))
            for x, n in zip((q, k, v), more, strict=True)
        )
        if mask is not None:
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], T, S))  # which cuDNN does not do by itself
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, T % 2), (0, S % 2)))
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            query_seq_lengths=lengths[0],
            key_value_seq_lengths=lengths[1],
            implementation=implementation,
        )
        return out[:, :T].swapaxes(1, 2)
    q = q * np.asarray(D**-0.5, q.dtype)
    if impl == "mapped":
        flat = (x.reshape(B * H, -1, D) for x in (q, k, v))
        words = jax.random.key_data(dropout_rng) if drop else jnp.zeros(2, jnp.uint32)
        rows = None if mask is None else mask[:, 0]  # [B or 1, T or 1, S]
        return _mapped_attention(*flat, rows, words, dropout_rate if drop else 0.0).reshape(B, H, T, D)
    if impl == "einsum":
        logits = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, HIDDEN)
        weights = jax.nn.softmax(logits, axis=-1)
        weights = dropout(weights, dropout_rate, dropout_rng).astype(v.dtype)
        return jnp.einsum("bhts,bhsd->bhtd", weights, v)
    raise ValueError(f'unknown attention impl "{impl}"; use auto, einsum, mapped or fused')


HIDDEN = np.float32(-1e30)  # the score of a key that must not be seen: finite, so that no row is NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _mapped_attention(q: Array, k: Array, v: Array, mask: Array | None, rng: Array, rate: float) -> Array:
    """One head at a time; q: [B * H, T, D], already scaled; mask: [B or 1, T or 1, S]. The backward pass
    computes the scores again."""
    return _mapped_forward(q, k, v, mask, rng, rate)[0]


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _each_head(one_head: Callable[..., Any], mask: Array | None, *xs: Array) -> Any:
    """Maps over the heads; `one_head` also gets the index of its scores' first element among all, and its
    mask."""
    heads, T, S = len(xs[0]), xs[0].shape[1], xs[1].shape[1]
    first = np.arange(heads, dtype=np.uint32) * np.uint32(T * S)
    if mask is None:
        return jax.lax.map(lambda x: one_head(x[0], None, *x[1:]), (first, *xs))
    row = np.arange(heads, dtype=np.int32) // (heads // len(mask))  # of one image all heads in a row
    return jax.lax.map(lambda x: one_head(x[0], mask[x[1]], *x[2:]), (first, row, *xs))


def _seen(scores: Array, mask: Array | None) -> Array:
    return scores if mask is None else jnp.where(mask, scores, HIDDEN)


def _mapped_forward(q, k, v, mask, rng, rate):
    T, D = q.shape[1:]
    query_chunk = T
    if T * k.shape[1] > 2**21:  # scores that leave the cache
        query_chunk = next((n for n in (1024, 512) if T % n == 0), T)
    chunks = T // query_chunk

    def one_head(first, mask, q, k, v):
        def one_chunk(x):
            first, q, *own = x
            scores = _seen(_dot(q, k.T), own[0] if own else mask)
            top = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            weights = dropout(weights, rate, rng, first).astype(v.dtype)
            return (_dot(weights, v) / total).astype(q.dtype), top + jnp.log(total)

        if chunks == 1:
            return one_chunk((first, q))
        at = first + np.arange(chunks, dtype=np.uint32) * np.uint32(query_chunk * len(k))
        own = () if mask is None or len(mask) == 1 else (mask.reshape(chunks, -1, mask.shape[-1]),)
        out, norm = jax.lax.map(one_chunk, (at, q.reshape(chunks, -1, D), *own))
        return out.reshape(T, D), norm.reshape(T, 1)

    out, norm = _each_head(one_head, mask, q, k, v)
    return out, (q, k, v, mask, rng, out, norm)


def _mapped_backward(rate, saved, g):
    q, k, v, mask, rng, out, norm = saved

    def one_head(first, mask, q, k, v, out, norm, g):
        weights = jnp.exp(_seen(_dot(q, k.T), mask) - norm)
        d_weights = dropout(_dot(g, v.T), rate, rng, first)
        d_scores = weights * (d_weights - (g * out).sum(-1, keepdims=True, dtype=jnp.float32))
        weights, d_scores = dropout(weights, rate, rng, first).astype(q.dtype), d_scores.astype(q.dtype)
        grads = _dot(d_scores, k), _dot(d_scores.T, q), _dot(weights.T, g)
        return tuple(x.astype(q.dtype) for x in grads)

    return *_each_head(one_head, mask, q, k, v, out, norm, g), None, None


_mapped_attention.defvjp(_mapped_forward, _mapped_backward)


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> Array:
    """2-D convolution, to be an `nn.Conv`'s. On one CPU device, where there are more output channels than
    pixels, the product of patches and kernel: two to three times as fast there, and the patches are few.

    Args:
      x: [B, H, W, C]; kernel: [h, w, C, D]; padding: before and after, of rows and of columns (or a name).
      options: `lax.conv_general_dilated`'s.

    Returns:
      [B, H', W', D].
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    plain = functools.partial(jax.lax.conv_general_dilated, **options | {"dimension_numbers": numbers})
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or isinstance(padding, str):
        return plain(x, kernel, strides, padding)
    out = jax.eval_shape(lambda x, kernel: plain(x, kernel, strides, padding), x, kernel)
    (B, H, W, D), (h, w, C, _) = out.shape, kernel.shape
    dilated = any(n != 1 for name in ("lhs_dilation", "rhs_dilation") for n in options.get(name) or ())
    grouped = options.get("feature_group_count", 1) != 1
    if h * w == 1 or B * H * W >= D or dilated or grouped:
        return plain(x, kernel, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sh, sw = strides
    seen = [x[:, i : i + sh * H : sh, j : j + sw * W : sw] for i in range(h) for j in range(w)]
    patches = jnp.concatenate([part[:, :H, :W] for part in seen], axis=-1)  # [B, H', W', h w C]
    return jnp.dot(patches, kernel.reshape(h * w * C, D), precision=options.get("precision"))


class GroupNorm(nn.Module):
    """GroupNorm, maybe with swish after it; statistics in float32 in one pass over x."""

    num_groups: int
    eps: float = 1e-6
    swish: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        B, H, W, C = x.shape
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        x = x.astype(jnp.float32)
        per_group = functools.partial(jnp.reshape, shape=(B, self.num_groups, -1))
        mean = per_group(x.mean((1, 2))).mean(-1)  # [B, G]
        square = per_group(jnp.square(x).mean((1, 2))).mean(-1)
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.eps)
        mean, inverse = (jnp.repeat(v, C // self.num_groups, axis=1) for v in (mean, inverse))  # [B, C]
        gain = inverse * scale
        x = x * gain[:, None, None] + (bias - mean * gain)[:, None, None]
        return (nn.swish(x) if self.swish else x).astype(self.dtype)


class UpsampleConv(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution, in half the time.

    An output pixel sees only 2x2 distinct input pixels. So the kernel's taps on one input pixel are
    summed beforehand, which leaves a 2x2 convolution for each of the four positions in a doubled pixel.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, 2 H, 2 W, C]."""
        B, H, W, C = x.shape
        kernel = self.param("kernel", torch_linear_init, (3, 3, C, C))
        bias = self.param("bias", nn.initializers.zeros, (C,)).astype(self.dtype)

        def folded(taps: Array, position: int) -> Array:  # [3, ...] -> [2, ...]
            first, middle, last = taps
            return jnp.stack([first + middle, last] if position else [first, middle + last])

        def position(p: int, q: int) -> Array:
            taps = folded(kernel, p).swapaxes(0, 1)
            taps = folded(taps, q).swapaxes(0, 1)
            padding = ((1 - p, p), (1 - q, q))
            return convolution(x, taps.astype(self.dtype), (1, 1), padding)

        rows = [jnp.stack([position(p, q) for q in (0, 1)], axis=3) for p in (0, 1)]  # [B, H, W, 2, C]
        return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, C) + bias


class SelfAttention(nn.Module):
    """timm's Attention: one qkv projection, output projection, dropout after both."""

    num_heads: int
    dropout_rate: float = 0.0
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, T, D] -> [B, T, D]; with `train`, draws from the "dropout" stream."""
        B, T, D = x.shape
        qkv = linear(3 * D, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(B, T, 3, self.num_heads, -1), 2, 0)  # [B, T, H, D/H]
        drop = train and self.dropout_rate > 0
        rng = self.make_rng("dropout") if drop else None
        out = attention(
            q,
            k,
            v,
            impl=self.attention,
            dropout_rate=self.dropout_rate,
            dropout_rng=rng,
        )
        out = linear(D, dtype=self.dtype, name="proj")(out.reshape(B, T, D))
        return dropout(out, self.dropout_rate, self.make_rng("dropout") if drop else None)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after both."""

    mlp_dim: int
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        drop = train and self.dropout_rate > 0
        h = linear(self.mlp_dim, dtype=self.dtype, name="fc1")(x)
        h = dropout(gelu(h), self.dropout_rate, self.make_rng("dropout") if drop else None)
        h = linear(x.shape[-1], dtype=self.dtype, name="fc2")(h)
        return dropout(h, self.dropout_rate, self.make_rng("dropout") if drop else None)


class Block(nn.Module):
    """Pre-norm transformer block (ViT): x + attn(LN(x)), then x + mlp(LN(x))."""

    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.0
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, T, D] -> [B, T, D]."""
        attn = SelfAttention(self.num_heads, self.dropout_rate, self.attention, self.dtype, name="attn")
        mlp = Mlp(self.mlp_dim, self.dropout_rate, self.dtype, name="mlp")
        x = x + attn(layer_norm(1e-6, self.dtype, "norm1")(x), train)
        return x + mlp(layer_norm(1e-6, self.dtype, "norm2")(x), train)


def over_devices(x: Array) -> Array:
    """x with its first axis split over the batch axes of the mesh that is traced for, if there is one.

    Said of what passes between layers, it makes a layer whose weights are split over "fsdp" gather those,
    not its batch.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = tuple(name for name in ("data", "fsdp") if name in sizes)
    if not axes or len(x) % int(np.prod([sizes[name] for name in axes])):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_layers(
    body: Callable[[Array, Any], tuple[Array, Any]],
    x: Array,
    layers: list[Any],
    *,
    scan: bool = False,
    remat: str = "none",
) -> tuple[Array, list[Any]]:
    """x through `body(x, layer) -> (x, out)` for each of `layers`, like pytrees. Returns (x, the outs).

    `scan` stacks them inside the program and compiles one body: compile time does not grow with depth,
    right for accelerators; unrolled (the default) spares the copy of each layer's weights, right for CPUs.
    `remat`: one of REMAT_POLICIES.
    """
    inner = body

    def body(x, layer):
        x, out = inner(over_devices(x), layer)
        return over_devices(x), out

    if REMAT_POLICIES[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    outs = []
    if scan:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        x, out = jax.lax.scan(body, x, stacked)
        return x, [jax.tree.map(lambda leaf, i=i: leaf[i], out) for i in range(len(layers))]
    for layer in layers:
        x, out = body(x, layer)
        outs.append(out)
    return x, outs


class Stack(nn.Module):
    """`depth` blocks of one kind in a row.

    Parameters always lie per layer ("0/attn/...", "1/attn/..."), so a checkpoint does not know how the
    stack was run (see `run_layers`). Scanned and unrolled give the same numbers, dropout included.
    """

    block: Callable[..., nn.Module]  # e.g. functools.partial(Block, num_heads=12, mlp_dim=3072)
    depth: int
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, *args: Any, train: bool = False) -> Array:
        """`args`: what every block also takes, such as a mask."""
        layers = [self.block(name=str(i)) for i in range(self.depth)]
        if self.is_initializing():
            for layer in layers:
                x = layer(x, *args)
            return x
        params = [layer.variables["params"] for layer in layers]
        rngs = None
        if self.has_rng("dropout") and train:
            rngs = jax.random.split(self.make_rng("dropout"), self.depth)
        block = self.block(parent=None)
        options = {"train": True} if train else {}

        def body(x, layer):
            params, rng = layer
            rngs = None if rng is None else {"dropout": rng}
            return block.apply({"params": params}, x, *args, rngs=rngs, **options), None

        each = [(p, None if rngs is None else rngs[i]) for i, p in enumerate(params)]
        return run_layers(body, x, each, scan=self.scan, remat=self.remat)[0]


def sincos_2d(dim: int, grid: int, *, rows_first: bool, cls_token: bool = True) -> np.ndarray:
    """Fixed 2-D sine-cosine position table, [(1 +) grid * grid, dim], cells row-major.

    MoCo v3 puts the row's coordinates first, MAE (MAGE, DiT) the column's. The class token's row is zero.
    """
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    cell = np.arange(grid)[:, None] * omega  # [grid, dim / 4]
    wave = np.concatenate([np.sin(cell), np.cos(cell)], axis=1)  # [grid, dim / 2]
    rows, cols = np.repeat(wave, grid, axis=0), np.tile(wave, (grid, 1))
    table = np.concatenate([rows, cols] if rows_first else [cols, rows], axis=1)
    return np.concatenate([np.zeros((int(cls_token), dim)), table]).astype(np.float32)
