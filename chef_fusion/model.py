"""ChefFusion's trained joints between frozen networks, and the losses that train them (paper section 3).

A photo becomes k tokens of the language model by a linear map of CLIP's pooled vector. A picture is asked for
by m [IMG] tokens, whose last hidden states a small encoder-decoder maps to the 77 states of Stable
Diffusion's text encoder. Only these parts train, in float32; OPT, CLIP and Stable Diffusion stay as they are.

Where paper and published code differ (docs/paper_and_code.md), the fields of `Recipe` choose; the defaults
are the code's, which published weights were made with.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from chef_fusion.backbones import clip, opt
from chef_fusion.decoding import LanguageModel, Rows
from rcg.errors import UserError
from rcg.layers import Array, Dtype, attend, layer_norm, linear, torch_linear_init, xavier_uniform
from rcg.torch_weights import Rule, count_blocks, dense, norm

Variables = Mapping[str, Any]
IGNORED = -100  # the label of what is no target
SHARDING_RULES = (
    (r"visual_embeddings/kernel", ("fsdp", "tensor")),
    (r"(in_proj|linear1)/kernel", ("fsdp", "tensor")),
    (r"(out_proj|linear2)/kernel", ("tensor", "fsdp")),
)
EPS = 1e-5  # of torch's LayerNorm


class PackedProjection(nn.Module):
    """A linear map to [q, k, v], or to some of their columns."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, start: int = 0, stop: int | None = None) -> Array:
        kernel = self.param("kernel", xavier_uniform, (x.shape[-1], 3 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (3 * self.width,))
        return x @ kernel[:, start:stop].astype(self.dtype) + bias[start:stop].astype(self.dtype)


class PackedAttention(nn.Module):
    """torch's MultiheadAttention: queries, keys and values side by side in one projection."""

    num_heads: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, memory: Array | None = None) -> Array:
        """[B, T, W], attending to itself or to [B, S, W] -> [B, T, W]."""
        B, T, W = x.shape
        project = PackedProjection(W, self.dtype, name="in_proj")
        if memory is None:
            q, k, v = jnp.split(project(x), 3, axis=-1)
        else:
            q, (k, v) = project(x, stop=W), jnp.split(project(memory, start=W), 2, axis=-1)
        q, k, v = (a.reshape(B, -1, self.num_heads, W // self.num_heads).swapaxes(1, 2) for a in (q, k, v))
        out = attend(q, k, v, impl=self.attention).swapaxes(1, 2).reshape(B, T, W)
        return linear(W, dtype=self.dtype, name="out_proj")(out)


class MapperLayer(nn.Module):
    """Pre-norm: x + SA(LN1 x); in the decoder x + CA(LN2 x, memory); x + FF(LN x)."""

    num_heads: int
    decoder: bool
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, memory: Array | None = None) -> Array:
        W = x.shape[-1]
        attn = functools.partial(PackedAttention, self.num_heads, self.dtype, self.attention)
        norms = functools.partial(layer_norm, EPS, self.dtype)
        # torch re-initialises the matrices, but leaves these biases
        project = functools.partial(linear, dtype=self.dtype, bias_init=_bias_like(W))
        x = x + attn(name="self_attn")(norms("norm1")(x))
        if self.decoder:
            x = x + attn(name="multihead_attn")(norms("norm2")(x), memory)
        h = norms("norm3" if self.decoder else "norm2")(x)
        h = nn.relu(project(4 * W, name="linear1")(h))
        return x + linear(W, dtype=self.dtype, bias_init=_bias_like(4 * W), name="linear2")(h)


def _bias_like(fan_in: int):
    """torch's default for the bias of a Linear of so many inputs."""

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class Mapper(nn.Module):
    """From the m [IMG] states to the states of the image generator's text encoder (GILLMapper).

    The inputs are told apart by content alone: there are no positions.
    """

    num_outputs: int = 77
    out_dim: int = 768
    hidden_dim: int = 512
    num_layers: int = 4
    num_heads: int = 4
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, hidden: Array, embeddings: Array) -> Array:
        """Last hidden states and input embeddings of the [IMG] tokens, [B, m, E] each -> float32
        [B, num_outputs, out_dim]."""
        project = functools.partial(linear, dtype=self.dtype, kernel_init=torch_linear_init)
        layer = functools.partial(MapperLayer, self.num_heads, dtype=self.dtype, attention=self.attention)
        E = hidden.shape[-1]
        x = hidden.astype(self.dtype) + embeddings.astype(self.dtype)
        x = project(self.hidden_dim, bias_init=_bias_like(E), name="fc")(x)
        for i in range(self.num_layers):
            x = layer(decoder=False, name=f"encoder_{i}")(x)
        memory = layer_norm(EPS, self.dtype, "encoder_norm")(x)
        shape = (1, self.num_outputs, self.hidden_dim)
        queries = self.param("query_embs", nn.initializers.normal(1.0), shape)
        y = jnp.broadcast_to(queries.astype(self.dtype), (len(x), *shape[1:]))
        for i in range(self.num_layers):
            y = layer(decoder=True, name=f"decoder_{i}")(y, memory)
        y = layer_norm(EPS, self.dtype, "decoder_norm")(y)
        bias = _bias_like(self.hidden_dim)
        return project(self.out_dim, bias_init=bias, name="model")(y).astype(jnp.float32)


class Joints(nn.Module):
    """Everything that trains.

    Attributes:
      embed_dim: width E of the language model's embeddings.
      image_first: id of [IMG0]; the ids from there on are the [IMG] tokens.
      num_visual_tokens, num_image_tokens: the paper's k and m.
      tied: the rows of the [IMG] tokens in the head are their embeddings.
    """

    embed_dim: int = 4096
    image_first: int = 50266
    num_visual_tokens: int = 4
    num_image_tokens: int = 8
    num_outputs: int = 77
    out_dim: int = 768
    hidden_dim: int = 512
    num_layers: int = 4
    num_heads: int = 4
    tied: bool = True
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        E, init = self.embed_dim, nn.initializers.normal(0.02)
        self.visual_embeddings = nn.Dense(
            self.num_visual_tokens * E, dtype=self.dtype, kernel_init=torch_linear_init
        )
        self.image_embeddings = self.param("image_embeddings", init, (self.num_image_tokens, E))
        if not self.tied:
            self.image_head = self.param("image_head", init, (self.num_image_tokens, E))
        self.mapper = Mapper(
            self.num_outputs,
            self.out_dim,
            self.hidden_dim,
            self.num_layers,
            self.num_heads,
            self.dtype,
            self.attention,
        )

    def visual_tokens(self, pooled: Array) -> Array:
        """CLIP's pooled vectors [B, D] -> [B, k, E]."""
        return self.visual_embeddings(pooled).reshape(len(pooled), self.num_visual_tokens, self.embed_dim)

    def rows(self) -> Rows:
        """The [IMG] tokens' rows of the embeddings and of the head."""
        return Rows(self.image_embeddings, self.image_embeddings if self.tied else self.image_head)

    def map(self, hidden: Array) -> Array:
        """Last hidden states [B, m, E] of a run of [IMG] tokens -> [B, num_outputs, out_dim]."""
        return self.mapper(hidden, jnp.broadcast_to(self.image_embeddings, hidden.shape))

    def __call__(self, pooled: Array) -> Array:
        """What `init` runs."""
        visual = self.visual_tokens(pooled)
        shape = (len(pooled), self.num_image_tokens, self.embed_dim)
        return visual.sum() + self.map(jnp.zeros(shape)).sum() + sum(r.sum() for r in self.rows())


class Recipe(NamedTuple):
    """How the joints are trained, where paper and published code differ. The defaults are the code's.

    Attributes:
      image_loss: l_g, over the 77 states: "distance", the mean Euclidean distance; "squared", its square.
      decision_loss: l_p: "sequence", the mean over all words and [IMG0]; "token", over [IMG0] alone.
      caption_scale, decision_scale, image_scale: weights of l_r, l_p, l_g.
      rescale_rows: after each step every [IMG] row gets the mean norm of the other rows.
      concat_captions: two examples follow one another in a sequence, with this probability a batch.
    """

    image_loss: str = "distance"
    decision_loss: str = "sequence"
    caption_scale: float = 1.0
    decision_scale: float = 0.5
    image_scale: float = 1.0
    rescale_rows: bool = True
    concat_captions: float = 0.0


CHOICES = {"image_loss": ("distance", "squared"), "decision_loss": ("sequence", "token")}


@dataclasses.dataclass(frozen=True)
class ChefFusion:
    """The modules. Of variables, `params` are the joints' ({"params": ...}), `frozen` is a dict of the
    others': "lm", "vision"."""

    lm: LanguageModel
    vision: clip.CLIP
    joints: Joints
    pad_id: int = 1

    def rows(self, params: Variables) -> Rows:
        return self.joints.apply(params, method="rows")

    def see(self, params: Variables, frozen: Variables, images: Array) -> Array:
        """Photos, uint8 or in [0, 1], [B, S, S, 3] -> visual tokens [B, k, E]. CLIP is not differentiated."""
        _, pooled = self.vision.apply(frozen["vision"], clip.normalise(images), method="encode_image")
        return self.joints.apply(params, jax.lax.stop_gradient(pooled), method="visual_tokens")


def build(
    joints: Joints, lm: opt.OPT, vision: clip.CLIP, *, vocabulary: int | None = None, pad_id: int = 1
) -> ChefFusion:
    """The model of modules that fit each other.

    Args:
      vocabulary: how many ids the tokenizer has, without [IMG]; None: not known.

    Raises:
      UserError: a width or a vocabulary that does not fit.
    """
    if joints.embed_dim != lm.word_embed_proj_dim:
        raise UserError(
            f"config.model.embed_dim is {joints.embed_dim}, but the language model's embeddings have "
            f"{lm.word_embed_proj_dim} values; set it to that"
        )
    if vision.vision is None:
        raise UserError("the vision component has no vision tower")
    if joints.image_first > lm.vocab_size:
        raise UserError(
            f"config.model.image_first is {joints.image_first}, but the language model has only "
            f"{lm.vocab_size} rows before it; [IMG] tokens follow the vocabulary without a gap"
        )
    if vocabulary is not None and vocabulary > joints.image_first:
        raise UserError(
            f"the tokenizer has {vocabulary} tokens, but [IMG0] is number {joints.image_first}; set "
            f"config.model.image_first to {vocabulary} or more"
        )
    return ChefFusion(LanguageModel(lm, joints.image_first), vision, joints, pad_id)


# --- sequences. `tokens` [B, T]: bos, words, the m [IMG] ids, padding; `length` [B]: how many are no padding.


def caption_labels(model: ChefFusion, tokens: Array, prefix: int = 0) -> Array:
    """Targets of captioning, [B, k + prefix + T]: bos and the words."""
    is_end = (tokens == model.pad_id) | (tokens >= model.joints.image_first)
    labels = jnp.where(jnp.cumsum(is_end, axis=1) > 0, IGNORED, tokens)
    before = ((0, 0), (model.joints.num_visual_tokens + prefix, 0))
    return jnp.pad(labels, before, constant_values=IGNORED)


def generation_labels(model: ChefFusion, tokens: Array, prefix: int = 0, after: Array | None = None) -> Array:
    """Targets of generation, [B, prefix + T]: bos, the words and [IMG0], or `after` [B] in its place."""
    is_end = (tokens == model.pad_id) | (tokens > model.joints.image_first)
    labels = jnp.where(jnp.cumsum(is_end, axis=1) > 0, IGNORED, tokens)
    if after is not None:
        labels = jnp.where(labels == model.joints.image_first, after[:, None], labels)
    return jnp.pad(labels, ((0, 0), (prefix, 0)), constant_values=IGNORED)


def concatenate(x: Array, used: Array, bos: int) -> Array:
    """Examples 2i and 2i + 1 as one: the first's used part, the second's without its bos, both's rest.

    Args:
      x: [2N, L, ...]. used: int32 [2N], how much of each row is not padding. bos: index of bos in a row.

    Returns:
      [N, 2L - 1, ...].
    """
    L = x.shape[1]
    first, second = used[0::2, None], used[1::2, None]
    at = jnp.arange(2 * L - 1)[None]
    of_second = at - first  # within the second, bos left out
    skipped = of_second + (of_second >= bos)
    rest_1 = at - (second - 1)  # the first's padding
    inside = jnp.where(at < first, at, jnp.where(of_second < second - 1, L + skipped, -1))
    rest = jnp.where(rest_1 < L, rest_1, at + 1)  # then the second's
    index = jnp.where(inside >= 0, inside, rest)
    pairs = x.reshape(len(x) // 2, 2 * L, *x.shape[2:])
    return jax.vmap(lambda row, i: row[i])(pairs, index)


# --- losses


def cross_entropy(
    model: ChefFusion, frozen: Variables, rows: Rows, hidden: Array, labels: Array, most: int = 64
) -> tuple[Array, Array]:
    """Sum over the targets, and their number: hidden [B, T, E] at t predicts labels [B, T] at t.

    The logits of a whole batch would be the largest array of a step: a chunk of at most `most` positions at
    a time is computed, and again for the gradient.
    """
    T = hidden.shape[1]
    chunks = -(-T // most)
    chunk = -(-T // chunks)  # of like lengths: less is padded
    pad = chunks * chunk - T
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, pad)), constant_values=IGNORED)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_chunk(rows, h, y):
        logits = model.lm.logits(frozen["lm"], rows, h)
        counted = y != IGNORED
        own = jnp.take_along_axis(logits, jnp.where(counted, y, 0)[..., None], -1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - own
        return (losses * counted).sum()

    def body(total, i):
        h = jax.lax.dynamic_slice_in_dim(hidden, i * chunk, chunk, 1)
        y = jax.lax.dynamic_slice_in_dim(labels, i * chunk, chunk, 1)
        return total + of_chunk(rows, h, y), None

    total, _ = jax.lax.scan(body, jnp.float32(0), jnp.arange(chunks))
    return total, (labels != IGNORED).sum()


def _mean(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1)


class Sequence(NamedTuple):
    """Inputs of the language model and what they should predict: embeddings [B, L, E], labels [B, L]."""

    embeddings: Array
    labels: Array


def caption_sequence(
    model: ChefFusion,
    frozen: Variables,
    rows: Rows,
    visual: Array,
    tokens: Array,
    prefix: Array | None = None,
) -> Sequence:
    """Visual tokens, prefix, caption."""
    parts = [visual, model.lm.embed(frozen["lm"], rows, tokens)]
    if prefix is not None:
        parts.insert(1, _prefix(model, frozen, prefix, len(tokens)))
    labels = caption_labels(model, tokens, 0 if prefix is None else len(prefix))
    return Sequence(jnp.concatenate([p.astype(parts[-1].dtype) for p in parts], axis=1), labels)


def generation_sequence(
    model: ChefFusion, frozen: Variables, rows: Rows, tokens: Array, prefix: Array | None = None
) -> Sequence:
    """Prefix, caption with its [IMG] tokens."""
    embeddings = model.lm.embed(frozen["lm"], rows, tokens)
    if prefix is not None:
        before = _prefix(model, frozen, prefix, len(tokens))
        embeddings = jnp.concatenate([before, embeddings], axis=1)
    return Sequence(embeddings, generation_labels(model, tokens, 0 if prefix is None else len(prefix)))


def paired_generation(model: ChefFusion, whole: Sequence, tokens: Array, length: Array) -> Sequence:
    """Examples of `generation_sequence`, one after another in pairs. The published code takes targets only up
    to the first [IMG0], so the second example has none."""
    return Sequence(
        concatenate(whole.embeddings, length, 0), generation_labels(model, concatenate(tokens, length, 0))
    )


def _prefix(model: ChefFusion, frozen: Variables, prefix: Array, batch: int) -> Array:
    embedded = model.lm.embed(frozen["lm"], None, prefix)
    return jnp.broadcast_to(embedded, (batch, *embedded.shape))


def sequence_loss(
    model: ChefFusion, frozen: Variables, rows: Rows, sequence: Sequence
) -> tuple[Array, Array]:
    """Mean over the targets of a sequence; also the last hidden states [B, L, E]."""
    hidden, _ = model.lm.opt.apply(frozen["lm"], sequence.embeddings)
    total, count = cross_entropy(model, frozen, rows, hidden[:, :-1], sequence.labels[:, 1:])
    return _mean(total, count), hidden


def image_states(hidden: Array, length: Array, count: int, prefix: int = 0) -> Array:
    """The states of the last `count` of each row's `length` tokens: [B, L, E] -> [B, count, E]."""
    at = prefix + length[:, None] - count + jnp.arange(count)
    return jnp.take_along_axis(hidden, at[..., None], axis=1)


def generation_states(
    model: ChefFusion, frozen: Variables, rows: Rows, tokens: Array, length: Array
) -> tuple[Array, Array]:
    """The last hidden states of the words [B, T - m, E] and of the [IMG] tokens [B, m, E].

    Nothing before the [IMG] tokens depends on what is trained. So the words run without gradient, and only
    the m positions are differentiated, on the words' keys and values: the same numbers and gradients as a
    pass over the whole sequence, for half the work.
    """
    m = model.joints.num_image_tokens
    words, number = tokens[:, :-m], (length - m)[:, None]
    fixed = jax.lax.stop_gradient
    embedded = model.lm.embed(
        frozen["lm"], None, jnp.where(words < model.joints.image_first, words, model.pad_id)
    )
    hidden, past = fixed(model.lm.opt.apply(frozen["lm"], embedded))
    T = words.shape[1]
    before = jnp.broadcast_to((jnp.arange(T) < number)[:, None, None], (len(tokens), 1, m, T))
    own = jnp.broadcast_to(jnp.tril(jnp.ones((m, m), bool)), (len(tokens), 1, m, m))
    run = jnp.broadcast_to(rows.inputs, (len(tokens), *rows.inputs.shape))
    states, _ = model.lm.opt.apply(
        frozen["lm"],
        run,
        jnp.concatenate([before, own], axis=-1),
        positions=number + jnp.arange(m),
        past=past,
    )
    return hidden, states


def image_loss(mapped: Array, target: Array, kind: str = "distance", counted: Array | None = None) -> Array:
    """l_g of states [B, 77, D], see `Recipe`; the mean over the rows that are `counted` [B]."""
    distance = jnp.square(target.astype(jnp.float32) - mapped).sum(-1)
    if kind == "distance":
        distance = jnp.where(distance > 0, jnp.sqrt(jnp.where(distance > 0, distance, 1.0)), 0.0)
    weight = jnp.ones(len(distance)) if counted is None else counted.astype(jnp.float32)
    return (distance.mean(-1) * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def others(counted: Array) -> Array:
    """For each row of a batch another that is `counted` [B], int32 [B]; the same if it is alone."""
    rows = jnp.argsort(~counted, stable=True)  # those that are counted first
    place = jnp.cumsum(counted)  # one after a row's own among them
    return rows[place % jnp.maximum(counted.sum(), 1)]


def losses(
    model: ChefFusion,
    params: Variables,
    frozen: Variables,
    batch: Mapping[str, Array],
    recipe: Recipe,
    concat: tuple[bool, bool] = (False, False),
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum, and l_r, l_p, l_g by name.

    Args:
      batch: "image" [B, S, S, 3], uint8 or in [0, 1]; "tokens" [B, T]; "length" [B]; "target" [B, 77, D];
        maybe "mask" [B], 0 for rows that must not count, and "after" [B], the token that follows the words
        (without `concat`). A row that [IMG0] does not follow has no part in l_g.
      concat: whether the captioning and the generation sequences are joined in pairs.
    """
    counted = batch["mask"] > 0 if "mask" in batch else jnp.ones(len(batch["tokens"]), bool)

    def of_counted(labels: Array) -> Array:
        return jnp.where(counted[:, None], labels, IGNORED)

    rows = model.rows(params)
    visual = model.see(params, frozen, batch["image"])
    tokens, length = batch["tokens"], batch["length"]
    m = model.joints.num_image_tokens

    sequence = caption_sequence(model, frozen, rows, visual, tokens)
    if concat[0]:
        used = model.joints.num_visual_tokens + length - m
        sequence = Sequence(*(concatenate(x, used, model.joints.num_visual_tokens) for x in sequence))
    else:
        sequence = sequence._replace(labels=of_counted(sequence.labels))
    l_r, _ = sequence_loss(model, frozen, rows, sequence)

    if concat[1]:
        whole = generation_sequence(model, frozen, rows, tokens)
        paired = paired_generation(model, whole, tokens, length)
        hidden, _ = model.lm.opt.apply(frozen["lm"], paired.embeddings)
        found = image_states(jnp.repeat(hidden, 2, axis=0), _ends(length), m)
        hidden, labels = hidden[:, :-1], paired.labels[:, 1:]
        decided = labels == model.joints.image_first
    else:
        hidden, found = generation_states(model, frozen, rows, tokens, length)
        after = batch.get("after")
        labels = of_counted(generation_labels(model, tokens, after=after)[:, 1 : hidden.shape[1] + 1])
        if after is not None:
            counted = counted & (after == model.joints.image_first)
        decided = jnp.arange(1, labels.shape[1] + 1) == (length - m)[:, None]
    if recipe.decision_loss == "token":
        labels = jnp.where(decided, labels, IGNORED)
    l_p = _mean(*cross_entropy(model, frozen, rows, hidden, labels))
    mapped = model.joints.apply(params, found, method="map")
    l_g = image_loss(mapped, batch["target"], recipe.image_loss, counted)
    total = recipe.caption_scale * l_r + recipe.decision_scale * l_p + recipe.image_scale * l_g
    return total, {"loss": total, "l_r": l_r, "l_p": l_p, "l_g": l_g}


def _ends(length: Array) -> Array:
    """Where each of paired examples ends in its sequence: the second without its bos."""
    first, second = length[0::2], length[1::2]
    return jnp.stack([first, first + second - 1], axis=1).reshape(-1)


def rescale_rows(params: Variables, mean_norm: Array) -> Variables:
    """Every [IMG] row with this norm, as the published code does after each step."""
    held = dict(params["params"])
    row = held["image_embeddings"]
    held["image_embeddings"] = row * (mean_norm / jnp.linalg.norm(row, axis=-1, keepdims=True))
    return {**params, "params": held}


def mean_row_norm(model: ChefFusion, frozen: Variables) -> Array:
    """The mean norm of the other rows of the language model's embeddings."""
    table = frozen["lm"]["params"]["embed_tokens"][: model.joints.image_first]
    return jnp.linalg.norm(table.astype(jnp.float32), axis=-1).mean()


# --- the published layout (chef_fusion.md, section 2)

FIELDS = ("embed_dim", "image_first", "num_visual_tokens", "num_image_tokens", "num_outputs", "out_dim")
FIELDS += ("hidden_dim", "num_layers", "num_heads", "tied")
MAPPER = "model.gen_text_hidden_fcs.0"


def build_joints(
    architecture: Mapping[str, Any], *, dtype: Dtype = jnp.float32, attention: str = "auto", **unused: Any
) -> Joints:
    """The module of an architecture: Joints' fields; others name what surrounds them.

    Raises:
      UserError: sizes that do not fit each other.
    """
    del unused
    made = Joints(**{k: v for k, v in architecture.items() if k in FIELDS}, dtype=dtype, attention=attention)
    if made.hidden_dim % made.num_heads:
        raise UserError(
            f"mapper hidden_dim {made.hidden_dim} is not a multiple of num_heads {made.num_heads}"
        )
    return made


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The table of published names, of a pruned checkpoint."""
    ours, theirs = "params/mapper", MAPPER
    table = [Rule("params/image_embeddings", "model.input_embeddings.weight")]
    table += dense("params/visual_embeddings", "model.visual_embeddings")
    table += dense(f"{ours}/fc", f"{theirs}.fc") + dense(f"{ours}/model", f"{theirs}.model")
    table.append(Rule(f"{ours}/query_embs", f"{theirs}.query_embs"))
    for stack in ("encoder", "decoder"):
        table += norm(f"{ours}/{stack}_norm", f"{theirs}.tfm.{stack}.norm")
        for i in range(architecture["num_layers"]):
            layer, published = f"{ours}/{stack}_{i}", f"{theirs}.tfm.{stack}.layers.{i}"
            names = ("self_attn",) if stack == "encoder" else ("self_attn", "multihead_attn")
            for name in names:
                table += [
                    Rule(f"{layer}/{name}/in_proj/kernel", f"{published}.{name}.in_proj_weight", "linear"),
                    Rule(f"{layer}/{name}/in_proj/bias", f"{published}.{name}.in_proj_bias"),
                ]
                table += dense(f"{layer}/{name}/out_proj", f"{published}.{name}.out_proj")
            for name in ("linear1", "linear2"):
                table += dense(f"{layer}/{name}", f"{published}.{name}")
            for j in range(1, 3 + (stack == "decoder")):
                table += norm(f"{layer}/norm{j}", f"{published}.norm{j}")
    return table


def abstract_variables(architecture: Mapping[str, Any], pooled_dim: int) -> Any:
    """Names, shapes and dtypes of the variables; pooled_dim: width of CLIP's pooled vector."""
    module = build_joints(architecture)
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, pooled_dim)))


def architecture_of(
    arrays: Mapping[str, Any], image_first: int = 50266, num_heads: int = 4
) -> dict[str, Any]:
    """The architecture of a pruned checkpoint's arrays; what shapes do not tell is as published."""
    rows, E = arrays["model.input_embeddings.weight"].shape
    _, queries, hidden = arrays[f"{MAPPER}.query_embs"].shape
    return {
        "embed_dim": E,
        "image_first": image_first,
        "num_visual_tokens": arrays["model.visual_embeddings.weight"].shape[0] // E,
        "num_image_tokens": rows,
        "num_outputs": queries,
        "out_dim": arrays[f"{MAPPER}.model.weight"].shape[0],
        "hidden_dim": hidden,
        "num_layers": count_blocks(arrays, f"{MAPPER}.tfm.encoder.layers"),
        "num_heads": num_heads,
        "tied": True,
    }
