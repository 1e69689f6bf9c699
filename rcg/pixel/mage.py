"""MAGE, the masked generative transformer, conditioned on a representation (RCG section 3.3, figure 5).

Training hides a random part of an image's tokens and predicts them; generation starts from nothing but
masks and fixes the tokens it is surest of, step by step. Position 0 of the sequence carries the
condition. As the published code: half of the tokens never enter the encoder, and in the decoder each
hidden position starts from the condition's own output, not from a mask embedding.

Departures: generation guides a supplied representation too (there, only one it has sampled itself);
logits exist only for the codebook, the only ones a loss or a sampler reads.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from rcg.errors import UserError
from rcg.layers import Array, Block, Dtype, Stack, dropout, gelu, layer_norm, linear
from rcg.torch_weights import Rule, count_blocks, dense, norm

CONDITIONING = ("representation", "class", "none")

# embed_dim, depth, num_heads, decoder_embed_dim, decoder_depth, decoder_num_heads
VARIANTS = {
    "huge": (1280, 32, 16, 1280, 8, 16),
    "large": (1024, 24, 16, 1024, 8, 16),
    "base": (768, 12, 12, 768, 8, 16),
    "small": (192, 4, 4, 128, 2, 4),
    "little": (128, 4, 4, 96, 1, 4),
    "tiny": (32, 2, 2, 24, 1, 2),
}
SIZES = ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")

normal = nn.initializers.normal(0.02)


class Mage(nn.Module):
    """Tokens of an image, partly hidden, and a condition -> logits over the codebook."""

    num_tokens: int = 256  # of one image
    codebook_size: int = 1024
    # Ids beyond the codebook that the published vocabulary has; one stands for "no condition", the last
    # id of all for a hidden token.
    class_slots: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 768
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: int = 4
    conditioning: str = "representation"  # or class, none
    rep_dim: int = 256
    num_classes: int = 1000
    rep_drop_prob: float = 0.1  # how often training replaces the representation by the learned fake
    dropout_rate: float = 0.1
    # Part of the tokens to hide: a truncated normal. The minimum never enters the encoder.
    mask_ratio_min: float = 0.5
    mask_ratio_max: float = 1.0
    mask_ratio_mean: float = 0.75
    mask_ratio_std: float = 0.25
    label_smoothing: float = 0.1
    dtype: Dtype = jnp.float32
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"

    @property
    def mask_id(self) -> int:
        return self.codebook_size + self.class_slots

    @property
    def num_dropped(self) -> int:
        """Tokens that never enter the encoder in training."""
        return math.ceil(self.num_tokens * self.mask_ratio_min)

    def setup(self):
        if self.conditioning not in CONDITIONING:
            raise ValueError(f'conditioning "{self.conditioning}" is not one of {CONDITIONING}')

        def stack(dim, depth, heads, name):
            block = functools.partial(
                Block, heads, self.mlp_ratio * dim, self.dropout_rate, self.attention, self.dtype
            )
            return Stack(block, depth, self.scan_layers, self.remat, name=name)

        dim, decoder_dim = self.embed_dim, self.decoder_embed_dim
        self.words = self.param("word_embeddings", normal, (self.mask_id + 1, dim))
        self.positions = self.param("position_embeddings", normal, (1 + self.num_tokens, dim))
        self.embed_norm = layer_norm(1e-6, self.dtype, "embed_norm")
        if self.conditioning == "representation":
            self.fake_latent = self.param("fake_latent", normal, (1, self.rep_dim))
            self.latent_prior_proj = linear(dim, dtype=self.dtype, name="latent_prior_proj")
        elif self.conditioning == "class":
            self.class_embeddings = self.param("class_embeddings", normal, (self.num_classes, dim))
        self.blocks = stack(dim, self.depth, self.num_heads, "blocks")
        self.norm = layer_norm(1e-6, self.dtype, "norm")
        self.decoder_embed = linear(decoder_dim, dtype=self.dtype, name="decoder_embed")
        positions = (1, 1 + self.num_tokens, decoder_dim)
        self.decoder_positions = self.param("decoder_position_embeddings", normal, positions)
        self.decoder_blocks = stack(decoder_dim, self.decoder_depth, self.decoder_num_heads, "decoder_blocks")
        self.decoder_norm = layer_norm(1e-6, self.dtype, "decoder_norm")
        self.mlm_fc = linear(dim, dtype=self.dtype, name="mlm_fc")
        self.mlm_norm = layer_norm(1e-5, self.dtype, "mlm_norm")
        self.mlm_bias = self.param("mlm_bias", nn.initializers.zeros, (1, 1, self.mask_id + 1))

    def embed(self, ids: Array, positions: Array, train: bool = False) -> Array:
        """ids [B, T] at `positions` [T] or [B, T] of the sequence (0 is the condition's) -> [B, T, D]."""
        x = self.embed_norm(self.words[ids] + self.positions[positions])
        return dropout(x, self.dropout_rate, self.make_rng("dropout") if train else None)

    def condition(self, cond: Array | None, batch_size: int, train: bool = False) -> Array:
        """What stands at position 0, [B, 1, D].

        Args:
          cond: [B, rep_dim] representations (None: the learned fake), int32 [B] labels, or None.
        """
        if self.conditioning == "none":
            fake_class = self.codebook_size + min(76, self.class_slots - 1)  # 1100 as published
            return self.embed(jnp.full((batch_size, 1), fake_class), jnp.zeros(1, jnp.int32), train)
        if self.conditioning == "class":
            return self.class_embeddings[cond][:, None].astype(self.dtype)
        if cond is None:
            cond = jnp.repeat(self.fake_latent, batch_size, axis=0)
        return self.latent_prior_proj(cond)[:, None]

    def encode(self, cond: Array, x: Array, train: bool = False) -> Array:
        """Condition [B, 1, D] and embedded tokens [B, T, D] -> [B, 1 + T, D]."""
        return self.norm(self.blocks(jnp.concatenate([cond, x], axis=1), train=train))

    def decode(self, latent: Array, source: Array, train: bool = False) -> Array:
        """Logits of every token.

        Args:
          latent: [B, 1 + T, D], the encoder's output.
          source: int32 [B, N], which position of `latent` each token starts from; 0 for hidden ones.

        Returns:
          float32 [B, N, codebook_size].
        """
        x = self.decoder_embed(latent)
        # A product with 0s and 1s: its gradient is another one, where a gather's is a slow scatter.
        x = jnp.concatenate([x[:, :1], jax.nn.one_hot(source, x.shape[1], dtype=x.dtype) @ x], axis=1)
        x = self.decoder_blocks(x + self.decoder_positions.astype(x.dtype), train=train)
        x = self.mlm_norm(gelu(self.mlm_fc(self.decoder_norm(x[:, 1:]))))
        words = jax.lax.stop_gradient(self.words[: self.codebook_size]).astype(x.dtype)
        logits = jnp.einsum("bnd,kd->bnk", x, words, preferred_element_type=jnp.float32)
        return logits + self.mlm_bias[..., : self.codebook_size]

    def predict(self, ids: Array, cond: Array) -> Array:
        """Logits float32 [B, N, codebook_size] for ids [B, N] (hidden ones `mask_id`), nothing dropped,
        given what `condition` made, [B, 1, D]."""
        latent = self.encode(cond, self.embed(ids, 1 + jnp.arange(self.num_tokens)))
        source = jnp.where(ids == self.mask_id, 0, 1 + jnp.arange(self.num_tokens))
        return self.decode(latent, source)

    def __call__(
        self, tokens: Array, cond: Array | None, noise: Mapping[str, Array], train: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of one batch (4.3 of the published recipe).

        Args:
          tokens: int32 [B, N], the tokenizer's.
          cond: as `condition` takes it.
          noise: see `draw_noise`.
          train: dropout, from the "dropout" stream.

        Returns:
          Cross-entropy with label smoothing, a float32 mean over the hidden tokens; and a dict: `ids`,
          `token_loss` and the bools `dropped`, `masked`, `correct` [B, N], `latent`, `logits`, and
          `accuracy`, of the hidden tokens.
        """
        B, N = tokens.shape
        order = jnp.argsort(noise["mask"], axis=1)
        rank = jnp.argsort(order, axis=1)
        dropped = rank < self.num_dropped
        masked = rank < jnp.ceil(N * noise["rate"])
        ids = jnp.where(masked, self.mask_id, tokens)
        kept = jnp.sort(order[:, self.num_dropped :], axis=1)  # [B, T]
        if self.conditioning == "representation":
            cond = jnp.where(noise["drop"][:, None] < self.rep_drop_prob, self.fake_latent, cond)
        x = self.embed(jnp.take_along_axis(ids, kept, axis=1), 1 + kept, train)
        latent = self.encode(self.condition(cond, B, train), x, train)
        logits = self.decode(latent, jnp.where(masked, 0, jnp.cumsum(~dropped, axis=1)), train)

        target = jax.nn.one_hot(tokens, self.codebook_size) * (1 - self.label_smoothing)
        target += self.label_smoothing / self.codebook_size
        loss = -(target * jax.nn.log_softmax(logits)).sum(-1)

        correct = logits.argmax(-1) == tokens

        def over_masked(x):
            return (x * masked).sum() / masked.sum()

        return over_masked(loss), {
            "ids": ids,
            "dropped": dropped,
            "masked": masked,
            "latent": latent,
            "logits": logits,
            "token_loss": loss,
            "correct": correct,
            "accuracy": over_masked(correct),
        }


def draw_noise(module: Mage, key: Array, batch_size: int) -> dict[str, Array]:
    """What one training step draws beside dropout: `mask` U[0, 1) [B, N], whose smallest entries are
    hidden; `rate`, the part of the tokens to hide, one for the whole batch; `drop` U[0, 1) [B], which
    representations are replaced."""
    mask, rate, drop = jax.random.split(key, 3)
    return {
        "mask": jax.random.uniform(mask, (batch_size, module.num_tokens)),
        "rate": mask_ratio(module, jax.random.uniform(rate)),
        "drop": jax.random.uniform(drop, (batch_size,)),
    }


def mask_ratio(module: Mage, u: Array) -> Array:
    """The truncated normal's quantile at `u` in [0, 1]."""
    lo, hi = module.mask_ratio_min, module.mask_ratio_max
    mean, std = module.mask_ratio_mean, module.mask_ratio_std
    below, above = ndtr((jnp.array([lo, hi]) - mean) / std)
    return jnp.clip(mean + std * ndtri(below + u * (above - below)), lo, hi)


def mask_lengths(num_tokens: int, steps: int) -> np.ndarray:
    """How many tokens each decoding step leaves hidden: a cosine, at least one fewer each step, int32."""
    lengths, hidden = [], num_tokens
    for step in range(1, steps + 1):
        hidden = max(1, min(hidden - 1, math.floor(num_tokens * math.cos(math.pi / 2 * step / steps))))
        lengths.append(hidden)
    return np.array(lengths, np.int32)


def generate(
    module: Mage,
    variables: Any,
    key: Array,
    cond: Array | None = None,
    *,
    num: int | None = None,
    steps: int = 20,
    temperature: float = 6.0,
    cfg_scale: float = 0.0,
    noise: Mapping[str, Array] | None = None,
    trace: bool = False,
) -> Any:
    """Tokens of new images by iterative parallel decoding, one program for all steps. jit-able.

    Args:
      cond: [B, rep_dim] representations, int32 [B] labels, or None: the learned fake representation, or
        nothing. Without it `num` says how many.
      temperature: of the noise on the confidences; it falls linearly to 0. Published: 6 (B), 11 (L).
      cfg_scale: guidance away from the fake representation, l_c + w (l_c - l_u) where w rises linearly
        to it at the last step. A Python 0 spares the second half of the batch.
      noise: the draws to use: Gumbel "token" [steps, B, N, K] and "confidence" [steps, B, N].
      trace: also return what each step saw and decided, a dict of arrays [steps, ...].

    Returns:
      int32 [B, N].

    Raises:
      ValueError: guidance of a model that has no fake representation, or no batch size.
    """
    if cond is None and num is None:
        raise ValueError("generate needs cond or num")
    B = num if cond is None else len(cond)
    guided = not (isinstance(cfg_scale, int | float) and cfg_scale == 0)
    if guided and module.conditioning != "representation":
        raise ValueError(f'cfg_scale needs conditioning "representation", not "{module.conditioning}"')
    call = functools.partial(module.apply, variables)
    prefix = call(cond, B, method="condition")
    if guided:
        prefix = jnp.concatenate([prefix, call(None, B, method="condition")])

    def step(carry, x):
        ids, _ = carry
        ratio, hidden, key, noise = x
        token_key, confidence_key = jax.random.split(key)
        logits = raw = call(jnp.concatenate([ids, ids]) if guided else ids, prefix, method="predict")
        if guided:
            logits = raw[:B] + cfg_scale * ratio * (raw[:B] - raw[B:])
        gumbel = jax.random.gumbel(token_key, logits.shape) if noise is None else noise["token"]
        known = ids != module.mask_id
        tokens = jnp.where(known, ids, (logits + gumbel).argmax(-1).astype(jnp.int32))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        log_p = jnp.where(known, jnp.inf, log_p)
        gumbel = jax.random.gumbel(confidence_key, ids.shape) if noise is None else noise["confidence"]
        confidence = log_p + temperature * (1 - ratio) * gumbel
        cutoff = jnp.sort(confidence, axis=1)[:, hidden - 1]
        hide = confidence <= cutoff[:, None]
        seen = {"ids": ids, "raw_logits": raw, "probability": jnp.exp(log_p), "hide": hide}
        return (jnp.where(hide, module.mask_id, tokens), tokens), seen if trace else None

    ratios = np.arange(1, steps + 1, dtype=np.float32) / steps
    xs = (ratios, mask_lengths(module.num_tokens, steps), jax.random.split(key, steps), noise)
    nothing = jnp.full((B, module.num_tokens), module.mask_id, jnp.int32)
    (_, tokens), seen = jax.lax.scan(step, (nothing, nothing), xs)
    return (tokens, seen) if trace else tokens


def resolve(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture with its "variant", a name of `VARIANTS`, spelt out; other fields win over it."""
    fields = dict(architecture)
    variant = fields.pop("variant", None)
    if variant is not None and variant not in VARIANTS:
        raise UserError(f'config.model.variant "{variant}" is not one of {", ".join(VARIANTS)}')
    sizes = VARIANTS[variant] if variant is not None else ()
    return dict(zip(SIZES, sizes, strict=False)) | fields


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> Mage:
    """The module of an architecture: `Mage`'s fields, and "variant" for its sizes."""
    fields = resolve(architecture)
    if fields.get("conditioning", CONDITIONING[0]) not in CONDITIONING:
        raise UserError(f'conditioning "{fields["conditioning"]}" is not one of {", ".join(CONDITIONING)}')
    return Mage(**fields, dtype=dtype, attention=attention, scan_layers=scan_layers, remat=remat)


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """Our variables' names -> those of the published files."""
    module = build(architecture)

    def block(name):
        ours = f"params/{name.replace('.', '/')}"
        return [
            *norm(f"{ours}/norm1", f"{name}.norm1"),
            *dense(f"{ours}/attn/qkv", f"{name}.attn.qkv"),
            *dense(f"{ours}/attn/proj", f"{name}.attn.proj"),
            *norm(f"{ours}/norm2", f"{name}.norm2"),
            *dense(f"{ours}/mlp/fc1", f"{name}.mlp.fc1"),
            *dense(f"{ours}/mlp/fc2", f"{name}.mlp.fc2"),
        ]

    table = [
        Rule("params/word_embeddings", "token_emb.word_embeddings.weight"),
        Rule("params/position_embeddings", "token_emb.position_embeddings.weight"),
        *norm("params/embed_norm", "token_emb.LayerNorm"),
        *norm("params/norm", "norm"),
        *dense("params/decoder_embed", "decoder_embed"),
        Rule("params/decoder_position_embeddings", "decoder_pos_embed_learned"),
        *norm("params/decoder_norm", "decoder_norm"),
        *dense("params/mlm_fc", "mlm_layer.fc"),
        *norm("params/mlm_norm", "mlm_layer.ln"),
        Rule("params/mlm_bias", "mlm_layer.bias"),
    ]
    if module.conditioning == "representation":
        table += [Rule("params/fake_latent", "fake_latent")]
        table += dense("params/latent_prior_proj", "latent_prior_proj")
    elif module.conditioning == "class":
        table += [Rule("params/class_embeddings", "class_emb.weight")]
    for i in range(module.depth):
        table += block(f"blocks.{i}")
    for i in range(module.decoder_depth):
        table += block(f"decoder_blocks.{i}")
    return table


# What the published files have besides: MAE's leftovers, which no forward pass reads.
LEFTOVERS = {
    "cls_token": "same",
    "mask_token": "same",
    "pos_embed": "same",
    "decoder_pos_embed": "same",
    "token_emb.position_ids": "count",
    "patch_embed.proj.weight": "same",
    "patch_embed.proj.bias": "same",
    "decoder_pred.weight": "same",
    "decoder_pred.bias": "same",
}


def leftover_rules() -> list[Rule]:
    """`LEFTOVERS`, kept in a collection of their own so that exporting gives back the whole file."""
    return [Rule(f"published/{name}", name, how) for name, how in LEFTOVERS.items()]


def leftover_shapes(architecture: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Shapes and dtypes of those leftovers; patches are of 16 pixels."""
    module = build(architecture)
    tokens, dim, decoder_dim = module.num_tokens + 1, module.embed_dim, module.decoder_embed_dim
    shapes = {
        "cls_token": (1, 1, dim),
        "mask_token": (1, 1, decoder_dim),
        "pos_embed": (1, tokens, dim),
        "decoder_pos_embed": (1, tokens, decoder_dim),
        "token_emb.position_ids": (1, tokens),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "decoder_pred.weight": (768, decoder_dim),
        "decoder_pred.bias": (768,),
    }
    kinds = {"same": jnp.float32, "count": jnp.int32}
    return {name: jax.ShapeDtypeStruct(shapes[name], kinds[LEFTOVERS[name]]) for name in names}


def fresh_leftovers(architecture: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Leftovers for a model that has none, so that the official code, which wants them, loads it: zeros, and
    the positions' numbers."""
    shapes = leftover_shapes(architecture, LEFTOVERS)
    made = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    ids = "token_emb.position_ids"
    return made | {ids: np.arange(made[ids].size, dtype=np.int32)[None]}


def architecture_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of the model whose published arrays these are, from their names and shapes. Heads
    leave no trace in them: they are those of the size of this width, or None."""
    vocabulary, dim = arrays["token_emb.word_embeddings.weight"].shape
    decoder_dim = arrays["decoder_embed.weight"].shape[0]
    heads = {sizes[0]: sizes[2] for sizes in VARIANTS.values()}
    decoder_heads = {sizes[3]: sizes[5] for sizes in VARIANTS.values()}
    fields = {
        "num_tokens": arrays["token_emb.position_embeddings.weight"].shape[0] - 1,
        "codebook_size": vocabulary - Mage.class_slots - 1,
        "embed_dim": dim,
        "depth": count_blocks(arrays, "blocks"),
        "num_heads": heads.get(dim),
        "decoder_embed_dim": decoder_dim,
        "decoder_depth": count_blocks(arrays, "decoder_blocks"),
        "decoder_num_heads": decoder_heads.get(decoder_dim),
        "conditioning": "none",
    }
    if "latent_prior_proj.weight" in arrays:
        rep_dim = arrays["latent_prior_proj.weight"].shape[1]
        fields |= {"conditioning": "representation", "rep_dim": rep_dim}
    elif "class_emb.weight" in arrays:
        fields |= {"conditioning": "class", "num_classes": arrays["class_emb.weight"].shape[0]}
    return fields
