"""Prompts of text and pictures in, text and pictures out.

    chef = load("runs/recipes")
    drafts = write(chef, [[photo, "This is food title:"]], jax.random.key(0), max_words=200)
    pictures = paint(chef, drafts[0].states, jax.random.key(1))

A prompt is a list of strings and images. Each image becomes the k tokens of the visual mapper, the first
string gets bos before it, and the pieces follow one another without separators, as in training.
"""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from chef_fusion import decoding
from chef_fusion import model as chef_model
from chef_fusion.backbones import clip, opt
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.decoding import ImageDecision, Sampling
from chef_fusion.recipe_rdm import check_told, condition
from chef_fusion.tokenization import CaptionTokenizer, LanguageTokenizer
from rcg import component, json_files
from rcg import generate as chain
from rcg.errors import MismatchWarning, UserError
from rcg.experiment import compute_options

Array = jax.Array
Part = str | Image.Image | np.ndarray
KINDS = {"joints": "chef_fusion", "lm": "opt", "vision": "clip", "stable_diffusion": "stable_diffusion"}
DECODERS = ("stable_diffusion", "rcg")  # what can paint
NO_IMAGES = ImageDecision(bias=-np.inf, max_images=0)


@dataclasses.dataclass(frozen=True)
class Chef:
    """Everything that answers: modules, the trained joints' `params`, the `frozen` networks' variables by
    name ("lm", "vision", "stable_diffusion"), and the tokenizers. Without `sd` and `rcg`, the image decoders,
    it only writes; without tokenizers, as of networks that are only planned, it does nothing."""

    model: chef_model.ChefFusion
    params: Mapping[str, Any]
    frozen: Mapping[str, Any]
    language: LanguageTokenizer | None
    sd: pipeline.StableDiffusion | None = None
    captions: CaptionTokenizer | None = None
    rcg: chain.RCG | None = None

    @property
    def paints(self) -> bool:
        return self.sd is not None or self.rcg is not None

    @property
    def context(self) -> int:
        """How many tokens fit."""
        return self.model.lm.opt.max_position_embeddings


def find(folder: str) -> dict[str, str]:
    """The components of a run's folder: its own, and those its config names. Of a pipeline's folder, those of
    its stage "joints".

    Raises:
      UserError: no trained joints there.
    """
    for run in (folder, os.path.join(folder, "joints")):
        path = os.path.join(run, "component")
        if os.path.isfile(os.path.join(path, "component.json")):
            break
    else:
        raise UserError(f"{folder} holds no trained ChefFusion (no component, no joints/component)")
    found = {"joints": path}
    config = os.path.join(run, "config.json")
    if os.path.exists(config):
        named = json_files.read(config, "put it back").get("components", {})
        found |= {n: component.moved(place, run) for n, place in named.items() if n in KINDS and place}
    return found


def load(
    source: str | Mapping[str, str],
    *,
    dtype: str = "auto",
    images: bool = True,
    image_decoder: str = "stable_diffusion",
    rcg: str | Mapping[str, str] = "",
) -> Chef:
    """A trained ChefFusion.

    Args:
      source: a run's or a pipeline's folder, see `find`; or component name -> path.
      dtype: of the frozen networks; "auto": bfloat16 on accelerators, float32 on a CPU.
      images: also loads what paints.
      image_decoder: what that is: "stable_diffusion", or "rcg" with an RDM that was trained on recipes.
      rcg: where RCG's networks are, see `rcg.load`; by default in `source`, a pipeline's folder.

    Raises:
      UserError: a component is missing or does not fit the others.
    """
    if image_decoder not in DECODERS:
        raise UserError(f'image_decoder "{image_decoder}" is not one of {", ".join(DECODERS)}')
    paths = dict(find(source) if isinstance(source, str) else source)
    for name in paths.keys() - KINDS.keys():
        raise UserError(f"ChefFusion has no component {name!r}; there are {', '.join(KINDS)}")
    if not images or image_decoder != "stable_diffusion":
        paths.pop("stable_diffusion", None)
    for name in ("joints", "lm", "vision"):
        if name not in paths:
            raise UserError(f"ChefFusion needs the component {name}; give its folder")
    options = compute_options({"dtype": dtype, "attention": "auto"})
    held = {
        name: component.load(path, KINDS[name], dtype=None if name == "joints" else options["dtype"])
        for name, path in paths.items()
    }
    about = held["joints"]
    trained_on = about.provenance.get("components", {})
    for name, made in held.items():
        if name in trained_on and trained_on[name] != made.content_hash:
            raise UserError(
                f"the joints were trained on another {name} than {paths[name]} (content "
                f"{trained_on[name][:12]}, not {made.content_hash[:12]})"
            )
    chef = assemble(
        {name: made for name, made in held.items() if name != "joints"},
        about.architecture,
        about.variables,
        {name: made.variables for name, made in held.items() if name != "joints"},
        options,
    )
    needs_tokenizers(chef)
    if images and image_decoder == "rcg":
        painter = _load_rcg(rcg or source, chef, trained_on.get("stable_diffusion"), dtype)
        chef = dataclasses.replace(chef, rcg=painter)
    return chef


def _load_rcg(source: str | Mapping[str, str], chef: Chef, sd_hash: str | None, dtype: str) -> chain.RCG:
    """RCG's networks; warns where the RDM learnt from another image generator than the joints (its content
    hash; None: not known).

    Raises:
      UserError: no RDM there that is told recipes, or one that is told other states.
    """
    if isinstance(source, Mapping) and not source.keys() <= chain.KINDS.keys():
        raise UserError("image_decoder=rcg needs the folder of RCG's networks: rcg=<folder>")
    paths = chain.find(source, conditional=True) if isinstance(source, str) else dict(source)
    paths.pop("encoder", None)
    if "rdm" not in paths:
        raise UserError(
            f"{source} holds no RDM that was trained on recipes; train configs/chef_fusion/recipe_rdm.py"
        )
    model = chain.load(paths, dtype=dtype)
    check_told(model.rdm.module.condition_dim, chef.model.joints.out_dim)
    learnt = component.describe(paths["rdm"]).provenance.get("components", {}).get("stable_diffusion")
    if learnt and sd_hash and learnt != sd_hash:
        warnings.warn(
            f"the RDM at {paths['rdm']} was trained on another stable_diffusion ({learnt[:12]}) than the "
            f"joints ({sd_hash[:12]}): unless their text encoders are the same, expect poor images",
            MismatchWarning,
            stacklevel=3,
        )
    return model


def assemble(
    components: Mapping[str, component.Component],
    architecture: Mapping[str, Any],
    params: Any,
    frozen: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Chef:
    """The modules and tokenizers of components (maybe abstract) that fit each other.

    Raises:
      UserError: they do not.
    """
    joints = chef_model.build_joints(architecture)  # float32, as they were trained
    images = joints.image_first, joints.num_image_tokens
    place = components["lm"].tokenizer
    language = LanguageTokenizer.load(place, *images) if place else None
    model = chef_model.build(
        joints,
        opt.build(components["lm"].architecture, **options),
        clip.build(components["vision"].architecture, **options),
        vocabulary=language.vocabulary if language else None,
        pad_id=language.pad if language else 1,
    )
    if "stable_diffusion" not in components:
        return Chef(model, params, frozen, language)
    sd = pipeline.build(components["stable_diffusion"].architecture, **options)
    wanted = sd.max_tokens, sd.unet.cross_attention_dim
    if (joints.num_outputs, joints.out_dim) != wanted:
        raise UserError(
            f"config.model.num_outputs and out_dim are {joints.num_outputs} and {joints.out_dim}, but the "
            f"image generator's text states are {wanted[0]} x {wanted[1]}; set them to that"
        )
    place = components["stable_diffusion"].tokenizer
    captions = CaptionTokenizer.load(place, sd.max_tokens) if place else None
    return Chef(model, params, frozen, language, sd, captions)


def needs_tokenizers(chef: Chef) -> None:
    """Raises UserError if a component came without its tokenizer."""
    for name, tokenizer in (("lm", chef.language), ("stable_diffusion", chef.captions)):
        if tokenizer is None and (name == "lm" or chef.sd is not None):
            raise UserError(f"the component {name} has no tokenizer; convert it again with --text_tokenizer")


# --- prompts


def to_pixels(chef: Chef, image: Part) -> np.ndarray:
    """What CLIP sees of an image: uint8 [S, S, 3]."""
    return clip.to_pixels(image, chef.model.vision.vision.image_size)


@functools.partial(jax.jit, static_argnames="model")
def _embed(model: Any, params: Any, frozen: Any, ids: Array, slots: Array, pixels: Array | None) -> Array:
    """ids [B, T]; slots [B, T]: which visual token stands there, -1 for none; pixels [N, S, S, 3]."""
    words = model.lm.embed(frozen["lm"], model.rows(params), ids)
    if pixels is None:
        return words
    visual = model.see(params, frozen, pixels)
    visual = visual.reshape(-1, visual.shape[-1]).astype(words.dtype)
    return jnp.where((slots >= 0)[..., None], visual[jnp.maximum(slots, 0)], words)


def prompt_ids(chef: Chef, prompt: Sequence[Part]) -> list[int | tuple[int, int]]:
    """A prompt's tokens: ids, and (number of the image, number of its visual token)."""
    ids: list[Any] = []
    images, begun = 0, False
    for part in prompt:
        if isinstance(part, str):
            ids += chef.language.ids(part, bos=not begun)
            begun = True
        else:
            ids += [(images, j) for j in range(chef.model.joints.num_visual_tokens)]
            images += 1
    return ids if begun else [*ids, chef.language.bos]


def room(chef: Chef, length: int) -> int:
    """How many words an answer may have after a prompt of `length` tokens."""
    return chef.context - length - chef.model.joints.num_image_tokens


def begin(
    chef: Chef,
    prompts: Sequence[Sequence[Part]],
    max_words: int,
    settings: Sampling,
    max_images: int = 1,
) -> tuple[decoding.State, int, int]:
    """Runs prompts: (state to `decoding.advance` from, how many words may be chosen, how many tokens written:
    of a picture's [IMG] tokens one is chosen).

    Raises:
      UserError: an empty prompt, or one that leaves no room in the context.
    """
    if not prompts or not all(
        any(part != "" if isinstance(part, str) else True for part in p) for p in prompts
    ):
        raise UserError("the prompt is empty; give it text or an image")
    rows = [prompt_ids(chef, prompt) for prompt in prompts]
    longest, m = max(map(len, rows)), chef.model.joints.num_image_tokens
    words = min(max_words, room(chef, longest))
    if words < 1:
        raise UserError(
            f"the prompt has {longest} tokens and an answer needs {m + 1} more, but the language model's "
            f"context is {chef.context}; shorten it"
        )
    T = decoding.bucket(longest, chef.context)
    most = min(words + min(max_images, words) * (m - 1), chef.context - longest)
    more_room = decoding.bucket(most, chef.context)
    k = chef.model.joints.num_visual_tokens
    ids = np.full((len(rows), T), chef.language.pad, np.int32)
    slots = np.full((len(rows), T), -1, np.int32)
    pixels: list[np.ndarray] = []
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        first = len(pixels)
        pixels += [to_pixels(chef, part) for part in prompt if not isinstance(part, str)]
        for t, token in enumerate(row, T - len(row)):
            if isinstance(token, tuple):
                slots[i, t] = (first + token[0]) * k + token[1]
            else:
                ids[i, t] = token
    mask = np.arange(T) >= T - np.array([[len(row)] for row in rows])
    padded = None
    if pixels:  # one program for like numbers of photos
        more = 2 ** math.ceil(math.log2(len(pixels))) - len(pixels)
        padded = np.pad(np.stack(pixels), ((0, more), (0, 0), (0, 0), (0, 0)))
    embeddings = _embed(chef.model, chef.params, chef.frozen, ids, slots, padded)
    vocabulary = chef.model.joints.image_first + m
    seen = np.zeros((len(rows), vocabulary if settings.penalised else 0), bool)
    if settings.penalised:
        for i in range(len(rows)):
            seen[i, ids[i][mask[i] & (slots[i] < 0)]] = True
    state = decoding.start(
        chef.model.lm,
        chef.frozen["lm"],
        chef.model.rows(chef.params),
        embeddings,
        jnp.asarray(mask),
        jnp.asarray(seen),
        room=more_room,
    )
    return state, words, most


@dataclasses.dataclass(frozen=True)
class Draft:
    """What was written for one prompt.

    Attributes:
      ids: its tokens. pieces: its text, cut where pictures come: one more than pictures.
      states: [n, m, E], the last hidden states of each run of [IMG] tokens.
      complete: whether it came to an end by itself, and was not cut off.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    states: np.ndarray
    complete: bool

    @property
    def text(self) -> str:
        """All of its words."""
        return "".join(self.pieces)


def drafts_of(chef: Chef, state: decoding.State) -> list[Draft]:
    """What a state holds so far."""
    tokens, lengths = np.asarray(state.tokens), np.asarray(state.length)
    hidden = np.asarray(state.hidden.astype(jnp.float32))
    first, m = chef.model.joints.image_first, chef.model.joints.num_image_tokens
    drafts = []
    for row in range(len(tokens)):
        ids = tokens[row, : lengths[row]]
        starts = [s for s in np.flatnonzero(ids == first) if s + m <= len(ids)]
        cuts = [0, *(s + m for s in starts)]
        ends = [*starts, len(ids)]
        pieces = tuple(chef.language.text(ids[a:b]) for a, b in zip(cuts, ends, strict=True))
        states = [hidden[row, s : s + m] for s in starts]
        empty = np.zeros((0, m, hidden.shape[-1]), np.float32)
        drafts.append(
            Draft(
                tuple(map(int, ids)), pieces, np.stack(states) if states else empty, bool(state.complete[row])
            )
        )
    return drafts


def stream(
    chef: Chef,
    prompts: Sequence[Sequence[Part]],
    key: Array,
    *,
    max_words: int = 256,
    settings: Sampling | None = None,
    images: ImageDecision = NO_IMAGES,
    stop: Sequence[str] = (),
    chunk: int = 8,
) -> Iterator[list[Draft]]:
    """Writes on, `chunk` tokens at a time, and yields what there is: the last is what `write` returns.

    Args:
      key: what all draws come from. max_words: free choices a text may take, pictures counted as one each.
      stop: texts of one token each that end a text, beside the end-of-text token.

    Raises:
      UserError: see `begin`; a stop text of more than one token.
    """
    settings = settings or decoding.sampling()
    ends = [chef.language.eos]
    for text in stop:
        ids = chef.language.ids(text)
        if len(ids) != 1:
            raise UserError(f"stop text {text!r} is {len(ids)} tokens, not one")
        ends += ids
    state, words, most = begin(chef, prompts, max_words, settings, int(images.max_images))
    rows = chef.model.rows(chef.params)
    stops = jnp.tile(jnp.array(ends, jnp.int32), (len(prompts), 1))
    limit = 0
    while True:
        limit = min(limit + chunk, most)
        state = decoding.advance(
            chef.model.lm,
            chef.frozen["lm"],
            rows,
            state,
            key,
            limit,
            jnp.full(len(prompts), words),
            stops,
            settings,
            images,
            pad_id=chef.language.pad,
        )
        yield drafts_of(chef, state)
        if bool(state.done.all()) or int(state.count) >= most:
            return


def write(chef: Chef, prompts: Sequence[Sequence[Part]], key: Array, **options: Any) -> list[Draft]:
    """A text for each prompt, all in one program; options: see `stream`."""
    *_, drafts = stream(chef, prompts, key, **options, chunk=2**20)
    return drafts


# --- pictures

_SIZES = ("sd", "steps", "scheduler", "height", "width", "strength")


@functools.partial(jax.jit, static_argnames=_SIZES)
def _paint(sd, variables, key, embeddings, negative, cfg_scale, image=None, *, strength=1.0, **sizes):
    return pipeline.generate(
        sd, variables, key, embeddings, negative, cfg_scale=cfg_scale, image=image, strength=strength, **sizes
    )


def _fitted(photo: Part, height: int, width: int) -> np.ndarray:
    """The middle of a photo in [0, 1], [height, width, 3]."""
    whole = ImageOps.fit(clip.to_image(photo), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(whole, np.float32) / 255


@functools.partial(jax.jit, static_argnames="model")
def _map(model: Any, params: Any, states: Array) -> Array:
    return model.joints.apply(params, states, method="map")


@functools.partial(jax.jit, static_argnames="sd")
def _text_states(sd: Any, variables: Any, ids: Array) -> Array:
    return pipeline.encode_text(sd, variables, ids)


def text_states(chef: Chef, texts: Sequence[str]) -> Array:
    """What the image generator's text encoder makes of texts, [N, 77, D]: plain Stable Diffusion's input."""
    needs_images(chef)
    return _text_states(chef.sd, chef.frozen["stable_diffusion"], chef.captions(texts))


def needs_images(chef: Chef) -> None:
    if chef.sd is None:
        raise UserError("this needs pictures, but no stable_diffusion component is loaded")


def paint_rcg(
    chef: Chef, states: Array | None, key: Array, *, embeddings: Array | None = None, **settings: Any
) -> np.ndarray:
    """As `paint`, by RCG: settings as of `rcg.generate.generate_from`."""
    if chef.rcg is None:
        raise UserError("this needs RCG's networks: load with image_decoder=rcg")
    if embeddings is None:
        embeddings = _map(chef.model, chef.params, jnp.asarray(states))
    made = chain.generate_from(chef.rcg, key, condition(embeddings), **settings)
    return np.round(255 * np.asarray(made)).astype(np.uint8)


def paint(
    chef: Chef,
    states: Array | None,
    key: Array,
    *,
    embeddings: Array | None = None,
    negative: str = "",
    steps: int = 50,
    cfg_scale: float = 7.5,
    scheduler: str = "pndm",
    height: int = 0,
    width: int = 0,
    photos: Sequence[Part] = (),
    strength: float = 1.0,
    batch_size: int = 8,
) -> np.ndarray:
    """Pictures of [IMG] states [N, m, E], see `Draft`; or of text states ("embeddings") themselves.

    Args:
      photos: N of them to begin from, with a `strength` below 1: that share of the steps is taken.

    Returns:
      uint8 [N, height, width, 3].
    """
    needs_images(chef)
    if embeddings is None:
        embeddings = _map(chef.model, chef.params, jnp.asarray(states))
    unwanted = text_states(chef, [negative])
    side = (height or chef.sd.default_size, width or chef.sd.default_size)
    begun = np.stack([_fitted(photo, *side) for photo in photos]) if strength < 1 else None
    made = []
    for first in range(0, len(embeddings), batch_size):
        part = embeddings[first : first + batch_size]
        count = len(part)
        more = min(batch_size, len(embeddings)) - count
        part = jnp.pad(part, ((0, more), (0, 0), (0, 0)))
        image = None
        if begun is not None:
            image = np.pad(begun[first : first + batch_size], ((0, more), (0, 0), (0, 0), (0, 0)))
        images = _paint(
            chef.sd,
            chef.frozen["stable_diffusion"],
            jax.random.fold_in(key, first),
            part,
            unwanted,
            cfg_scale,
            image,
            strength=strength,
            steps=steps,
            scheduler=scheduler,
            height=height,
            width=width,
        )
        made.append(np.round(255 * np.asarray(images[:count])).astype(np.uint8))
    return np.concatenate(made) if made else np.zeros((0, *side, 3), np.uint8)
