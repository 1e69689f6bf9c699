"""The chain put together: noise -> representation -> tokens -> image (RCG figure 2), as compiled programs.

    model = rcg.load("runs/photos")
    images = rcg.generate(model, jax.random.key(0), num=16)

Beside generation: new images with the representation of a given one (figure 6), and images along the line
between two representations (figure 7). Images come back as float32 [N, H, W, 3] in [0, 1].
"""

import functools
import importlib
import os
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcg import component, encoders, rdm
from rcg.component import Component
from rcg.errors import MismatchWarning, UserError
from rcg.experiment import compute_options, to_unit
from rcg.pixel import mage

Array = jax.Array
KINDS = {"encoder": "rcg.encoder", "tokenizer": "rcg.vqgan", "rdm": "rcg.rdm", "mage": "rcg.mage"}
CODE = {"encoder": "rcg.encoders", "tokenizer": "rcg.pixel.vqgan", "rdm": "rcg.rdm", "mage": "rcg.pixel.mage"}
BATCH = 64  # at most this many images in one program, unless asked


class Network(NamedTuple):
    """A module, its variables on the devices, and where they came from."""

    module: nn.Module
    variables: Any
    content_hash: str


class RCG(NamedTuple):
    """What `load` found. Generation needs no encoder, reconstruction and interpolation no RDM."""

    tokenizer: Network
    mage: Network
    rdm: Network | None = None
    encoder: Network | None = None


def find(folder: str, class_conditional: bool = False, conditional: bool = False) -> dict[str, str]:
    """Which components there are in a pipeline's folder: name -> path.

    Looks at `folder/*` and `folder/*/component`. Of several of a kind it takes the one whose folder has the
    component's name; of several RDMs first the one with, or without, classes. RDMs that take condition
    vectors are looked at only if one of those is wanted (`conditional`).

    Raises:
      UserError: no such folder, nothing in it, or several of a kind to choose from.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no folder {folder}; name the one with encoder, tokenizer, rdm and mage in it")
    found: dict[str, dict[str, Component]] = {name: {} for name in KINDS}
    for entry in sorted(os.listdir(folder)):
        for path in (os.path.join(folder, entry, "component"), os.path.join(folder, entry)):
            if os.path.isfile(os.path.join(path, "component.json")):
                about = component.describe(path)
                for name in (n for n, kind in KINDS.items() if kind == about.kind):
                    found[name][path] = about
                break
    chosen = {}
    for name, candidates in found.items():
        if name == "rdm":
            candidates = {
                path: about
                for path, about in candidates.items()
                if (about.architecture.get("condition_dim", 0) > 0) == conditional
            }
            wanted = {
                path: about
                for path, about in candidates.items()
                if (about.architecture.get("num_classes", 0) > 0) == class_conditional
            }
            candidates = wanted or candidates
        named = [p for p in candidates if name in (os.path.basename(p), os.path.basename(os.path.dirname(p)))]
        paths = list(candidates) if len(candidates) == 1 else named[:1] or list(candidates)
        if len(paths) > 1:
            raise UserError(f"{folder} has several {KINDS[name]} components, name one: {', '.join(paths)}")
        if paths:
            chosen[name] = paths[0]
    if not chosen:
        raise UserError(f"no component under {folder}; train or convert some first")
    return chosen


def load(
    source: str | Mapping[str, str],
    *,
    class_conditional: bool = False,
    dtype: str = "auto",
    attention: str = "auto",
    devices: list[jax.Device] | None = None,
) -> RCG:
    """Loads the chain.

    Args:
      source: a pipeline's folder, see `find`, or component name (encoder, tokenizer, rdm, mage) -> path.
      class_conditional: which of several RDMs in a folder.
      dtype: of variables and computation; "auto" is bfloat16 on accelerators.
      devices: batches are split over these, by default all of this process; each has all variables.

    Raises:
      UserError: a component is missing or damaged, or two do not fit each other.
    """
    paths = find(source, class_conditional) if isinstance(source, str) else dict(source)
    unknown, missing = set(paths) - set(KINDS), {"tokenizer", "mage"} - set(paths)
    if unknown:
        raise UserError(f"unknown components {sorted(unknown)}; there are: {', '.join(KINDS)}")
    if missing:
        raise UserError(f"{source if isinstance(source, str) else 'the mapping'} has no {sorted(missing)[0]}")
    mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
    compute = {"dtype": dtype, "attention": attention, "scan_layers": False, "remat": "none"}
    options = compute_options(compute)
    networks, loaded = {}, {}
    for name, path in paths.items():
        sharding = NamedSharding(mesh, PartitionSpec())
        about = component.load(path, KINDS[name], sharding, options["dtype"])
        module = importlib.import_module(CODE[name]).build(about.architecture, **options)
        networks[name], loaded[name] = Network(module, about.variables, about.content_hash), about
    model = RCG(**networks)
    _check_fit(model, loaded)
    return model


def _check_fit(model: RCG, loaded: Mapping[str, Component]) -> None:
    painter, codes = model.mage.module, model.tokenizer.module
    pairs = [("mage", "codebook_size", painter.codebook_size, "tokenizer", codes.codebook_size)]
    if painter.conditioning == "representation":
        sizes = {"rdm": "channels", "encoder": "rep_dim"}
        pairs += [
            ("mage", "rep_dim", painter.rep_dim, name, getattr(network.module, sizes[name]))
            for name in sizes
            if (network := getattr(model, name)) is not None
        ]
    for name, field, ours, other, theirs in pairs:
        if ours != theirs:
            raise UserError(f"{name} has {field} {ours}, but {other} {theirs}: they do not belong together")
    check_origins(loaded, stacklevel=4)


def check_origins(loaded: Mapping[str, Component], stacklevel: int = 2) -> None:
    """Warns (`MismatchWarning`) of a component that was trained on another one than the one of that name, or
    than the rest was, where that one itself is not loaded."""
    known = {name: ("this one", about.content_hash) for name, about in loaded.items()}
    for name, about in loaded.items():
        for other, digest in about.provenance.get("components", {}).items():
            planned = other in loaded and loaded[other].content_hash == component.PLANNED
            if other == "rdm" or planned:  # MAGE is only measured with an RDM
                continue
            who, wanted = known.setdefault(other, (f"{name} was", digest))
            if digest != wanted:
                warnings.warn(
                    f"{name} was trained on another {other} ({digest[:12]}) than {who} ({wanted[:12]}): "
                    "train it again, or expect poor images",
                    MismatchWarning,
                    stacklevel=stacklevel,
                )


def image_size(model: RCG) -> int:
    """Side of the images this chain makes, in pixels."""
    return round(model.mage.module.num_tokens**0.5) * 2 ** (len(model.tokenizer.module.ch_mult) - 1)


def num_classes(model: RCG) -> int:
    """How many classes generation can be asked for; 0 if it is unconditional."""
    painter = model.mage.module
    if painter.conditioning == "representation":
        return model.rdm.module.num_classes if model.rdm else 0
    return painter.num_classes if painter.conditioning == "class" else 0


class _Settings(NamedTuple):
    """What is fixed in a compiled program."""

    modules: tuple[tuple[str, nn.Module], ...]
    mesh: Mesh
    mage_steps: int
    guided: bool
    rdm_steps: int = 0
    eta: float = 0.0
    ddim_end: str = "published"
    same_noise: bool = False


def _split(x: Array, mesh: Mesh) -> Array:
    """The batch over the devices, where it divides."""
    spec = PartitionSpec("data") if len(x) % mesh.size == 0 else PartitionSpec()
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


@functools.partial(jax.jit, static_argnames=("settings",))
def _paint(
    settings: _Settings, variables: Any, key: Array, cond: Array, temperature: Array, cfg_scale: Array
) -> Array:
    """Condition [B, ...] -> images [B, H, W, 3]. An unconditional MAGE looks at nothing but the B."""
    modules = dict(settings.modules)

    def tokens(cond):
        return mage.generate(
            modules["mage"],
            variables["mage"],
            key,
            None if modules["mage"].conditioning == "none" else cond,
            num=len(cond),
            steps=settings.mage_steps,
            temperature=temperature,
            cfg_scale=cfg_scale if settings.guided else 0.0,
        )

    cond = _split(cond, settings.mesh)
    if settings.same_noise:
        ids = jax.vmap(lambda c: tokens(c[None])[0])(cond)
    else:
        ids = tokens(cond)
    ids = _split(ids, settings.mesh)
    images = modules["tokenizer"].apply(variables["tokenizer"], ids, method="decode_tokens")
    return jnp.clip(images.astype(jnp.float32), 0, 1)


@functools.partial(jax.jit, static_argnames=("settings",))
def _generate(
    settings: _Settings, variables: Any, key: Array, labels: Array, temperature: Array, cfg_scale: Array
) -> Array:
    """Labels [B] or conditions [B, D] (what no network reads is ignored) -> images [B, H, W, 3]."""
    modules, cond = dict(settings.modules), _split(labels, settings.mesh)
    rdm_key, mage_key = jax.random.split(key)
    if "rdm" in modules:
        cond = rdm.sample(
            modules["rdm"],
            variables["rdm"],
            rdm_key,
            len(labels),
            labels=cond if modules["rdm"].conditional else None,
            steps=settings.rdm_steps,
            eta=settings.eta,
            end=settings.ddim_end,
        )
    return _paint(settings, variables, mage_key, cond, temperature, cfg_scale)


@functools.partial(jax.jit, static_argnames=("settings",))
def _represent(settings: _Settings, variables: Any, images: Array) -> Array:
    images = to_unit(images) if images.dtype == jnp.uint8 else images
    encoder = dict(settings.modules)["encoder"]
    return encoders.represent(encoder, variables["encoder"], _split(images, settings.mesh))


def _use(model: RCG, names: list[str], **settings: Any) -> tuple[_Settings, dict[str, Any]]:
    """The static and the array arguments of a program that runs these networks."""
    networks = {name: getattr(model, name) for name in names}
    mesh = jax.tree.leaves(model.mage.variables)[0].sharding.mesh
    modules = tuple((name, network.module) for name, network in networks.items())
    return _Settings(modules, mesh, **settings), {n: network.variables for n, network in networks.items()}


def _check(
    model: RCG, task: str, needs: str | None, mage_steps: int, cfg_scale: float, temperature: float
) -> None:
    conditioning = model.mage.module.conditioning
    if needs and conditioning != "representation":
        raise UserError(f"{task} needs a MAGE conditioned on representations, this one's is {conditioning}")
    if needs and getattr(model, needs) is None:
        raise UserError(f"{task} needs the {needs} component, which was not loaded")
    if not 1 <= mage_steps <= model.mage.module.num_tokens:
        raise UserError(f"mage_steps is {mage_steps}, must be in 1..{model.mage.module.num_tokens}")
    if cfg_scale < 0 or temperature < 0:
        raise UserError(f"cfg_scale {cfg_scale} and temperature {temperature} must not be negative")
    if cfg_scale and conditioning != "representation":
        raise UserError(
            f"cfg_scale needs a MAGE conditioned on representations, this one's is {conditioning}"
        )


def starts(num: int, batch_size: int | None = None, shard: tuple[int, int] = (0, 1)) -> range:
    """Where the batches of `num` images begin that are one shard's, (index, count): every count-th."""
    size, (index, count) = min(batch_size or BATCH, num), shard
    return range(index * size, num, size * count)


def _batches(
    program: Any, key: Array, inputs: Array, batch_size: int | None, shard: tuple[int, int] = (0, 1)
) -> Iterator[Array]:
    """`program(key, inputs)` over a shard's batches of one shape, the last one cut to what was asked for. A
    batch is handed out once the next one is under way."""
    size, previous = min(batch_size or BATCH, len(inputs)), None
    for start in starts(len(inputs), batch_size, shard):
        part = inputs[start : start + size]
        padded = np.pad(np.asarray(part), ((0, size - len(part)),) + ((0, 0),) * (part.ndim - 1), mode="edge")
        images = program(jax.random.fold_in(key, start // size), padded)
        if previous is not None:
            yield previous
        previous = images[: len(part)]
    if previous is not None:
        yield previous


def generate_batches(
    model: RCG,
    key: Array,
    num: int,
    labels: Any = None,
    *,
    rdm_steps: int = 250,
    eta: float = 1.0,
    ddim_end: str = "published",
    mage_steps: int = 20,
    temperature: float = 6.0,
    cfg_scale: float = 0.0,
    batch_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Array]:
    """As `generate`, a batch at a time: for more images than fit in memory. Of several processes each can
    make its `shard`, (index, count): together they make what one makes, see `starts`."""
    by_representation = model.mage.module.conditioning == "representation"
    _check(model, "generate", "rdm" if by_representation else None, mage_steps, cfg_scale, temperature)
    if num < 1:
        raise UserError(f"num is {num}, must be at least 1")
    if by_representation and model.rdm.module.condition_dim:
        raise UserError("this RDM is told recipes; see generate_from, or give one that is not")
    classes = num_classes(model)
    label_key, key = jax.random.split(key)
    if labels is None:
        labels = jax.random.randint(label_key, (num,), 0, max(classes, 1))
    elif not classes:
        raise UserError("labels need a class-conditional RDM (or MAGE); these networks know no classes")
    labels = np.asarray(labels, np.int32)
    if labels.shape != (num,):
        raise UserError(f"labels have shape {labels.shape}, expected ({num},): one for each image")
    if labels.min() < 0 or labels.max() >= max(classes, 1):
        raise UserError(f"labels are in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    settings, variables = _use(
        model,
        ["tokenizer", "mage"] + ["rdm"] * by_representation,
        mage_steps=mage_steps,
        guided=cfg_scale > 0,
        rdm_steps=rdm_steps,
        eta=float(eta),
        ddim_end=ddim_end,
    )
    program = lambda key, labels: _generate(settings, variables, key, labels, temperature, cfg_scale)  # noqa: E731
    return _batches(program, key, labels, batch_size, shard)


def generate(model: RCG, key: Array, num: int, labels: Any = None, **settings: Any) -> Array:
    """New images from noise (section 3; with labels, appendix A).

    Args:
      labels: int [num], for a class-conditional RDM; None draws them.
      rdm_steps: DDIM steps (250), eta: their noise, 0..1 (1.0), ddim_end: "published" or "clean", see
        `diffusion.ddim_tables`.
      mage_steps: decoding steps (20), temperature: of their choice of tokens (6.0; the paper's L model: 11).
      cfg_scale: guidance away from "no representation" (0.0, off).
      batch_size: images in one program; draws depend on it when num is larger.

    Returns:
      float32 [num, H, W, 3] in [0, 1].

    Raises:
      UserError: settings or labels that these networks can't take.
    """
    return jnp.concatenate(list(generate_batches(model, key, num, labels, **settings)))


def generate_from(
    model: RCG,
    key: Array,
    conditions: Any,
    *,
    rdm_steps: int = 250,
    eta: float = 1.0,
    ddim_end: str = "published",
    mage_steps: int = 20,
    temperature: float = 6.0,
    cfg_scale: float = 0.0,
    batch_size: int | None = None,
) -> Array:
    """New images, each for the condition vector that an RDM was trained on (appendix A).

    Args:
      conditions: [N, condition_dim]; the others as for `generate`.

    Returns:
      float32 [N, H, W, 3] in [0, 1].

    Raises:
      UserError: an RDM that takes no such vectors, or settings that these networks can't take.
    """
    _check(model, "generate", "rdm", mage_steps, cfg_scale, temperature)
    conditions = np.asarray(conditions, np.float32)
    wanted = model.rdm.module.condition_dim
    if not wanted or conditions.ndim != 2 or conditions.shape[1] != wanted:
        raise UserError(f"conditions have shape {conditions.shape}, but the RDM takes [N, {wanted}]")
    settings, variables = _use(
        model,
        ["tokenizer", "mage", "rdm"],
        mage_steps=mage_steps,
        guided=cfg_scale > 0,
        rdm_steps=rdm_steps,
        eta=float(eta),
        ddim_end=ddim_end,
    )
    program = lambda key, conditions: _generate(settings, variables, key, conditions, temperature, cfg_scale)  # noqa: E731
    return jnp.concatenate(list(_batches(program, key, conditions, batch_size)))


def represent(model: RCG, images: Any) -> Array:
    """Images [N, H, W, 3], uint8 or float in [0, 1] -> standardised representations [N, C].

    Raises:
      UserError: no encoder was loaded, or these are no images.
    """
    if model.encoder is None:
        raise UserError("representations need the encoder component, which was not loaded")
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images have shape {images.shape}, expected [N, H, W, 3]")
    if not len(images) or (jnp.issubdtype(images.dtype, jnp.integer) and images.dtype != jnp.uint8):
        raise UserError(f"{len(images)} images of {images.dtype}, expected some, uint8 or float in [0, 1]")
    settings, variables = _use(model, ["encoder"], mage_steps=0, guided=False)
    program = lambda _, part: _represent(settings, variables, part)  # noqa: E731
    return jnp.concatenate(list(_batches(program, jax.random.key(0), images, None)))


def paint(
    model: RCG,
    key: Array,
    representations: Any,
    *,
    mage_steps: int = 20,
    temperature: float = 6.0,
    cfg_scale: float = 0.0,
    same_noise: bool = False,
    batch_size: int | None = None,
) -> Array:
    """Images for representations [N, C] of any origin; the other arguments as for `generate`.

    `same_noise`: all with the same draws, so that only the representation tells them apart.
    """
    if model.mage.module.conditioning != "representation":
        raise UserError("painting needs a MAGE conditioned on representations")
    _check(model, "paint", None, mage_steps, cfg_scale, temperature)
    representations, width = jnp.asarray(representations), model.mage.module.rep_dim
    if representations.ndim != 2 or representations.shape[1] != width or not len(representations):
        raise UserError(f"representations have shape {representations.shape}, expected [N, {width}]")
    settings, variables = _use(
        model, ["tokenizer", "mage"], mage_steps=mage_steps, guided=cfg_scale > 0, same_noise=same_noise
    )

    def program(batch_key, cond):
        chosen = key if same_noise else batch_key
        return _paint(settings, variables, chosen, cond, temperature, cfg_scale)

    return jnp.concatenate(list(_batches(program, key, representations, batch_size)))


def reconstruct(model: RCG, key: Array, images: Any, num: int = 4, **settings: Any) -> Array:
    """Several images with the representation of each given one (figure 6).

    Args:
      images: [N, H, W, 3], uint8 or float in [0, 1].
      num: how many of each.
      settings: see `paint`.

    Returns:
      float32 [N, num, H, W, 3].
    """
    representations = represent(model, images)
    made = paint(model, key, jnp.repeat(representations, num, axis=0), **settings)
    return made.reshape(len(representations), num, *made.shape[1:])


def interpolate(
    model: RCG,
    key: Array,
    image_a: Any,
    image_b: Any,
    num: int = 8,
    *,
    standardise: bool = False,
    **settings: Any,
) -> Array:
    """Images along the line between two images' representations, ends included (figure 7). All are painted
    with the same draws.

    Args:
      image_a, image_b: [H, W, 3], uint8 or float in [0, 1].
      standardise: bring the mixtures, whose deviation is below 1, back to 1. The paper does not.
      settings: see `paint`.

    Returns:
      float32 [num, H, W, 3], from image_a's representation to image_b's.
    """
    if num < 2:
        raise UserError(f"num is {num}, an interpolation needs at least 2")
    a, b = (represent(model, jnp.asarray(image)[None])[0] for image in (image_a, image_b))
    weight = jnp.linspace(0, 1, num)[:, None]
    mixed = (1 - weight) * a + weight * b
    if standardise:
        mixed = mixed - mixed.mean(-1, keepdims=True)
        mixed = mixed / mixed.std(-1, ddof=1, keepdims=True)
    return paint(model, key, mixed, same_noise=True, **settings)


class _Callable(types.ModuleType):
    """`rcg.generate` is this file and, called, its main function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
