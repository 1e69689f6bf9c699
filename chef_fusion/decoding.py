"""The decoding loop: text, and the [IMG] decision, a token at a time on cached keys and values.

`start` runs the prompt, `advance` writes up to so many tokens: each is one compiled program, for a batch of
prompts padded on the left to a bucket of lengths, so that another length does not compile again. All rows
and all settings but the kind of sampling go through the same program.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from chef_fusion.backbones.attention import KeysValues, flat
from chef_fusion.backbones.opt import OPT
from rcg.errors import UserError

Array = jax.Array
Variables = Mapping[str, Any]
NEVER = -jnp.inf
BUCKETS = tuple(2**i for i in range(4, 15))


class Rows(NamedTuple):
    """The [IMG] tokens' rows [m, E] of the embeddings and of the head, one and the same if tied."""

    inputs: Array
    head: Array


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """OPT whose vocabulary may go on with [IMG] tokens: ids from `image_first` on are `rows`, trained apart
    from the frozen table. Rows of the table from there on are not used."""

    opt: OPT
    image_first: int | None = None

    def embed(self, variables: Variables, rows: Rows | None, ids: Array) -> Array:
        """Token ids [...] -> embeddings [..., E]."""
        if rows is None:
            return self.opt.apply(variables, ids, method="embed")
        offset = ids - self.image_first
        words = self.opt.apply(variables, jnp.where(offset < 0, ids, 0), method="embed")
        images = rows.inputs.astype(words.dtype)[jnp.clip(offset, 0, len(rows.inputs) - 1)]
        return jnp.where((offset < 0)[..., None], words, images)

    def logits(self, variables: Variables, rows: Rows | None, hidden: Array) -> Array:
        """Last hidden states [..., E] -> float32 [..., V], with `rows` V = image_first + their number."""
        words = self.opt.apply(variables, hidden, method="logits")
        if rows is None:
            return words
        head = rows.head.astype(hidden.dtype)
        images = jnp.einsum("...e,me->...m", hidden, head, preferred_element_type=jnp.float32)
        return jnp.concatenate([words[..., : self.image_first], images], axis=-1)


class Sampling(flax.struct.PyTreeNode):
    """How the next token is chosen; see `sampling`."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    greedy: bool = flax.struct.field(pytree_node=False)
    truncated: bool = flax.struct.field(pytree_node=False)
    penalised: bool = flax.struct.field(pytree_node=False)


def sampling(
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0
) -> Sampling:
    """Greedy at temperature 0; else of the `top_k` likeliest tokens (0: all) the fewest whose probabilities
    sum to more than `top_p`. `repetition_penalty` above 1 makes what was said already less likely (CTRL's).

    Raises:
      UserError: a value out of its range.
    """
    finite = math.isfinite(temperature) and math.isfinite(repetition_penalty)
    if not finite or temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or repetition_penalty <= 0:
        raise UserError(
            f"temperature {temperature} and top_k {top_k} must be at least 0, top_p {top_p} in (0, 1], "
            f"repetition_penalty {repetition_penalty} above 0, all of them finite"
        )
    kinds = temperature == 0, top_k > 0 or top_p < 1, repetition_penalty != 1
    return Sampling(float(temperature), int(top_k), float(top_p), float(repetition_penalty), *kinds)


class ImageDecision(flax.struct.PyTreeNode):
    """When [IMG0] may come, and how easily. Of its followers none is ever chosen: they follow by themselves.

    Attributes:
      bias: added to the logit of [IMG0]; -inf forbids pictures, +inf asks for one at once.
      scale: above 1, the published code's knob: the logit of [IMG0] becomes its absolute value times this.
      min_words: tokens before the first picture may come.
      max_images: no more than this many. ends: the last of them ends the text.
      at_end: a picture comes, whatever its logit, where the text would end without one.
      follow: the others follow the first; off only to do as the published code does with batches.
    """

    bias: float = 0.0
    scale: float = 1.0
    min_words: int = 0
    max_images: int = 1
    ends: bool = False
    at_end: bool = False
    follow: bool = flax.struct.field(pytree_node=False, default=True)


class State(flax.struct.PyTreeNode):
    """A batch of B texts being written.

    Attributes:
      cache: each layer's keys and values [B * H, S, D]; the first `filled` are there.
      visible: bool [B, S]: not padding. positions: int32 [B], of the next token.
      logits: float32 [B, V], of the next token.
      tokens: int32 [B, N], the first `count` of them written; `hidden`: the last hidden state that each had
        as an input, [B, N, E].
      length: int32 [B], how many of them are a row's own: after its end comes padding.
      seen: bool [B, V], for the repetition penalty; [B, 0] without.
      words, images: int32 [B], free choices and pictures so far. run: int32 [B], the [IMG] token that must
        come next; 0: none. done: bool [B]; complete: bool [B], and not because there was no more room.
    """

    cache: list[KeysValues]
    filled: Array
    visible: Array
    positions: Array
    logits: Array
    tokens: Array
    hidden: Array
    count: Array
    length: Array
    seen: Array
    words: Array
    images: Array
    run: Array
    done: Array
    complete: Array


def bucket(length: int, limit: int) -> int:
    """The least usual length that is at least `length`, but no more than `limit`."""
    return min(next((b for b in BUCKETS if b >= length), limit), limit)


@functools.partial(jax.jit, static_argnames=("lm", "room"))
def start(
    lm: LanguageModel,
    variables: Variables,
    rows: Rows | None,
    embeddings: Array,
    mask: Array,
    seen: Array,
    *,
    room: int,
) -> State:
    """Runs the prompts.

    Args:
      rows: of the [IMG] tokens; None: a plain language model.
      embeddings: [B, T, E], padded on the left. mask: bool [B, T], False for padding.
      seen: bool [B, V], tokens of the prompts, or [B, 0] without a repetition penalty.
      room: N, how many tokens can be written.
    """
    B, T, E = embeddings.shape
    hidden, kept = lm.opt.apply(variables, embeddings, mask)
    cache = [tuple(jnp.pad(flat(x), ((0, 0), (0, room), (0, 0))) for x in pair) for pair in kept]
    none = jnp.zeros(B, jnp.int32)
    return State(
        cache=cache,
        filled=jnp.int32(T),
        visible=jnp.pad(mask.astype(bool), ((0, 0), (0, room)), constant_values=True),
        positions=mask.sum(1).astype(jnp.int32),
        logits=lm.logits(variables, rows, hidden[:, -1]),
        tokens=jnp.zeros((B, room), jnp.int32),
        hidden=jnp.zeros((B, room, E), hidden.dtype),
        count=jnp.int32(0),
        length=none,
        seen=seen,
        words=none,
        images=none,
        run=none,
        done=jnp.zeros(B, bool),
        complete=jnp.zeros(B, bool),
    )


def decide(lm: LanguageModel, state: State, images: ImageDecision) -> Array:
    """The logits [B, V] of the free choice after the rules for [IMG] tokens, before sampling."""
    logits, first = state.logits, lm.image_first
    if first is None:
        return logits
    image = logits[:, first]
    image = jnp.where(images.scale > 1, jnp.abs(image) * images.scale, image) + images.bias
    allowed = (state.words >= images.min_words) & (state.images < images.max_images)
    image = jnp.where(allowed, image, NEVER)
    others = jnp.full_like(logits[:, first + 1 :], NEVER)
    return jnp.concatenate([logits[:, :first], image[:, None], others], axis=1)


def distribution(logits: Array, settings: Sampling) -> Array:
    """Logits [B, V] -> log-weights of what is left to choose from, -inf for the rest."""
    logits = logits / settings.temperature
    if not settings.truncated:
        return logits
    ranked = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    ranked = jnp.where((settings.top_k > 0) & (rank >= settings.top_k), NEVER, ranked)
    weights = jax.nn.softmax(ranked, axis=-1)
    kept = (jnp.cumsum(weights, axis=-1) - weights <= settings.top_p) & (ranked > NEVER)
    least = jnp.where(kept, ranked, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, NEVER, logits)


def choose(logits: Array, seen: Array, keys: Array, settings: Sampling) -> Array:
    """int32 [B], one token a row; keys: [B]."""
    if settings.penalised:
        penalty = jnp.where(logits < 0, settings.repetition_penalty, 1 / settings.repetition_penalty)
        logits = jnp.where(seen, logits * penalty, logits)
    if settings.greedy:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, distribution(logits, settings)).astype(jnp.int32)


def feed(
    lm: LanguageModel,
    variables: Variables,
    rows: Rows | None,
    state: State,
    chosen: Array,
    images: ImageDecision,
    stop: Array,
    pad_id: int,
) -> State:
    """Writes a token a row and runs it: what must follow an [IMG0] goes before what was chosen.

    Args:
      chosen: int32 [B]. stop: int32 [B, n], tokens that end a row, -1 for none.
    """
    forced = state.run > 0
    token = jnp.where(forced, (lm.image_first or 0) + state.run, chosen)
    token = jnp.where(state.done, pad_id, token)
    run, pictures = state.run, state.images
    if rows is not None:
        begins = (token == lm.image_first) & ~state.done
        pictures = pictures + begins
        following = jnp.where(begins, 1, jnp.where(forced, state.run + 1, 0))
        run = jnp.where(following < len(rows.inputs), following, 0) * images.follow
    embedded = lm.embed(variables, rows, token)[:, None]
    S = state.visible.shape[1]
    reached = jnp.arange(S) <= state.filled
    hidden, cache = lm.opt.apply(
        variables,
        embedded,
        (state.visible & reached)[:, None, None],
        positions=state.positions[:, None],
        past=state.cache,
        index=state.filled,
    )
    hidden = hidden[:, 0]
    own = ~state.done
    stopped = own & ~forced & (token[:, None] == stop).any(1)
    seen = state.seen
    if seen.shape[1]:
        seen = seen.at[jnp.arange(len(token)), token].max(own)
    return state.replace(
        cache=cache,
        filled=state.filled + 1,
        positions=state.positions + 1,
        logits=lm.logits(variables, rows, hidden),
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.count, 1),
        hidden=jax.lax.dynamic_update_slice_in_dim(state.hidden, hidden[:, None], state.count, 1),
        count=state.count + 1,
        length=state.length + own,
        seen=seen,
        words=state.words + (own & ~forced),
        images=pictures,
        run=run,
        done=state.done | stopped,
        complete=state.complete | stopped,
    )


@functools.partial(jax.jit, static_argnames=("lm", "pad_id"), donate_argnums=3)
def advance(
    lm: LanguageModel,
    variables: Variables,
    rows: Rows | None,
    state: State,
    key: Array,
    limit: Array | int,
    max_words: Array,
    stop: Array,
    settings: Sampling,
    images: ImageDecision,
    *,
    pad_id: int = 1,
) -> State:
    """Writes until `limit` tokens are there, or every row is done.

    Args:
      key: with the row's number and its count of tokens it decides a draw.
      limit: of the batch; `max_words`: int32 [B], free choices a row may make (an [IMG0] with what must
        follow counts as one).
      stop: int32 [B, n], see `feed`.
    """

    def ended(state: State) -> State:
        free = state.run == 0
        pictured = free & images.ends & (state.images >= images.max_images)
        full = free & (state.words >= max_words)
        whole = ~state.done & pictured & ~(full & images.at_end)  # there the picture came for want of room
        return state.replace(done=state.done | pictured | full, complete=state.complete | whole)

    def go_on(state: State) -> Array:
        return (state.count < jnp.minimum(limit, state.tokens.shape[1])) & ~state.done.all()

    def body(state: State) -> State:
        rows_keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), state.count))
        keys = rows_keys(jnp.arange(len(state.done)))
        chosen = choose(decide(lm, state, images), state.seen, keys, settings)
        if lm.image_first is not None:
            last = (chosen[:, None] == stop).any(1) | (state.words + 1 >= max_words)
            missing = images.at_end & last & (state.images < images.max_images)
            chosen = jnp.where(missing, lm.image_first, chosen)
        return ended(feed(lm, variables, rows, state, chosen, images, stop, pad_id))

    return jax.lax.while_loop(go_on, body, ended(state))
