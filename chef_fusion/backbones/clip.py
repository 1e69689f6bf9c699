"""CLIP (Radford et al. 2021): the vision tower that ChefFusion sees with, and the text encoder of Stable
Diffusion, whose outputs it learns to imitate.

Equal to transformers' CLIPModel and its halves. `architecture` is {"vision": fields or None, "text": fields
or None, "projection_dim": 0 without projection heads, "logit_scale": whether there is one}; the fields are
config.json's own.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from chef_fusion.backbones.attention import Attention, attention_rules, causal_mask
from rcg.data.decode import DecodeError, center_crop, decode, resize_short_side
from rcg.errors import UserError
from rcg.layers import Array, Dtype, Stack, gelu, layer_norm, linear
from rcg.torch_weights import Rule, dense, norm

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SHARDING_RULES = (
    (r"token_embedding", ("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|fc1)/kernel", ("fsdp", "tensor")),
    (r"(out_proj|fc2)/kernel", ("tensor", "fsdp")),
)
BARE = {"vision": "patch_embedding", "text": "token_embedding"}  # by what a tower alone is known
ACTIVATIONS = {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x), "gelu": gelu}


class EncoderLayer(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x))."""

    num_heads: int
    mlp_dim: int
    hidden_act: str = "quick_gelu"
    eps: float = 1e-5
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """[B, T, W] -> [B, T, W]; mask: see `Attention`."""
        project = functools.partial(linear, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        attn = Attention(self.num_heads, attention=self.attention, dtype=self.dtype, name="self_attn")
        x = x + attn(layer_norm(self.eps, self.dtype, "layer_norm1")(x), mask)[0]
        h = layer_norm(self.eps, self.dtype, "layer_norm2")(x)
        h = ACTIVATIONS[self.hidden_act](project(self.mlp_dim, name="fc1")(h))
        return x + project(x.shape[-1], name="fc2")(h)


class Tower(nn.Module):
    """What both towers have in common. The defaults are the vision tower's of ViT-L/14."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: Dtype = jnp.float32
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"

    def stack(self) -> Stack:
        layer = functools.partial(
            EncoderLayer,
            num_heads=self.num_attention_heads,
            mlp_dim=self.intermediate_size,
            hidden_act=self.hidden_act,
            eps=self.layer_norm_eps,
            attention=self.attention,
            dtype=self.dtype,
        )
        return Stack(layer, self.num_hidden_layers, self.scan_layers, self.remat)


class VisionTower(Tower):
    """ViT with a class token."""

    image_size: int = 224
    patch_size: int = 14

    def setup(self):
        W, P = self.hidden_size, self.patch_size
        init = nn.initializers.normal(0.02)
        self.class_embedding = self.param("class_embedding", init, (W,))
        self.patch_embedding = nn.Conv(
            W, (P, P), P, padding="VALID", use_bias=False, dtype=self.dtype, kernel_init=init
        )
        self.position_embedding = self.param("position_embedding", init, (1 + (self.image_size // P) ** 2, W))
        self.pre_layrnorm = layer_norm(self.layer_norm_eps, self.dtype, "pre_layrnorm")  # sic
        self.layers = self.stack()
        self.post_layernorm = layer_norm(self.layer_norm_eps, self.dtype, "post_layernorm")

    def __call__(self, pixels: Array) -> tuple[Array, Array]:
        """Normalised images [B, S, S, 3] -> (all tokens [B, 1 + N, W], not normalised; pooled [B, W]).

        Raises:
          ValueError: S is not image_size.
        """
        B, S = len(pixels), self.image_size
        if pixels.shape[1:] != (S, S, 3):
            raise ValueError(f"images {pixels.shape}, expected [B, {S}, {S}, 3]")
        x = self.patch_embedding(pixels.astype(self.dtype)).reshape(B, -1, self.hidden_size)
        first = jnp.broadcast_to(self.class_embedding.astype(x.dtype), (B, 1, self.hidden_size))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding.astype(x.dtype)
        x = self.layers(self.pre_layrnorm(x), None)
        return x, self.post_layernorm(x[:, 0])


class TextTower(Tower):
    """A causal transformer over token ids. Its padding is attended to, as where it was trained."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 2  # 2 stands for "the largest id", as in the first published configs

    def setup(self):
        init = nn.initializers.normal(0.02)
        W = self.hidden_size
        self.token_embedding = self.param("token_embedding", init, (self.vocab_size, W))
        self.position_embedding = self.param("position_embedding", init, (self.max_position_embeddings, W))
        self.layers = self.stack()
        self.final_layer_norm = layer_norm(self.layer_norm_eps, self.dtype, "final_layer_norm")

    def __call__(self, ids: Array) -> tuple[Array, Array]:
        """[B, T] -> (all states after the last LN [B, T, W]; that of the end token [B, W]).

        Raises:
          ValueError: more tokens than there are positions.
        """
        T = ids.shape[1]
        if T > self.max_position_embeddings:
            raise ValueError(
                f"{T} tokens, but this text encoder has {self.max_position_embeddings} positions"
            )
        x = (jnp.asarray(self.token_embedding)[ids] + self.position_embedding[:T]).astype(self.dtype)
        x = self.final_layer_norm(self.layers(x, causal_mask(T, T)))
        end = ids if self.eos_token_id == 2 else ids == self.eos_token_id
        return x, x[jnp.arange(len(x)), end.argmax(1)]


class CLIP(nn.Module):
    """One tower or both, with or without their projections into the common space."""

    vision: VisionTower | None = None
    text: TextTower | None = None
    projection_dim: int = 0
    logit_scale: bool = False
    dtype: Dtype = jnp.float32

    def setup(self):
        if self.projection_dim:
            head = functools.partial(linear, self.projection_dim, use_bias=False, dtype=self.dtype)
            if self.vision is not None:
                self.visual_projection = head(kernel_init=nn.initializers.normal(0.02))
            if self.text is not None:
                self.text_projection = head(kernel_init=nn.initializers.normal(0.02))
        if self.logit_scale:
            self.scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def encode_image(self, pixels: Array) -> tuple[Array, Array]:
        """Normalised images -> the vision tower's (tokens, pooled); see `VisionTower`."""
        return self.vision(pixels)

    def encode_text(self, ids: Array) -> tuple[Array, Array]:
        """Token ids -> the text tower's (states, pooled); see `TextTower`."""
        return self.text(ids)

    def image_features(self, pixels: Array) -> Array:
        """Normalised images [B, S, S, 3] -> [B, projection_dim], not normalised, float32."""
        return self.visual_projection(self.vision(pixels)[1]).astype(jnp.float32)

    def text_features(self, ids: Array) -> Array:
        """Token ids [B, T] -> [B, projection_dim], not normalised, float32."""
        return self.text_projection(self.text(ids)[1]).astype(jnp.float32)

    def __call__(self, pixels: Array | None, ids: Array | None) -> list[Array]:
        """Everything there is of both inputs; what `init` runs."""
        found = []
        if self.vision is not None:
            found.append(self.image_features(pixels) if self.projection_dim else self.vision(pixels)[1])
        if self.text is not None:
            found.append(self.text_features(ids) if self.projection_dim else self.text(ids)[1])
        return found


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """The published image processor up to the crop: an RGB image -> uint8 [size, size, 3].

    Short side to `size` (bicubic), centre crop with odd margins rounded down.
    """
    return center_crop(resize_short_side(image, size), size, down=True)


def to_image(image: Image.Image | np.ndarray) -> Image.Image:
    """PIL's, upright and in RGB as training sees it, of an image that is PIL's or [H, W, 3], uint8 or in
    [0, 1].

    Raises:
      UserError: it can't be used.
    """
    if isinstance(image, np.ndarray) and image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    try:
        return decode(image)
    except DecodeError as error:
        raise UserError(f"an image can't be used ({error})") from error


def to_pixels(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """`prepare` of an image in any of the forms of `to_image`."""
    return prepare(to_image(image), size)


def normalise(images: Array) -> Array:
    """[..., 3], uint8 or in [0, 1] -> CLIP's mean 0 and std 1, float32."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) * np.float32(1 / 255)
    return (images.astype(jnp.float32) - MEAN) / STD


VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
)
TEXT_FIELDS = (*VISION_FIELDS[:6], "vocab_size", "max_position_embeddings", "eos_token_id")


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> CLIP:
    """The module of an architecture.

    Raises:
      UserError: no tower, or sizes that do not fit each other.
    """
    options = {"dtype": dtype, "attention": attention, "scan_layers": scan_layers, "remat": remat}
    towers = {}
    for name, tower in (("vision", VisionTower), ("text", TextTower)):
        fields = architecture.get(name)
        towers[name] = made = tower(**fields, **options) if fields else None
        if made is None:
            continue
        if made.hidden_act not in ACTIVATIONS:
            raise UserError(f'CLIP hidden_act "{made.hidden_act}" is not one of {", ".join(ACTIVATIONS)}')
        if made.hidden_size % made.num_attention_heads:
            raise UserError(
                f"CLIP {name} hidden_size {made.hidden_size} is not a multiple of num_attention_heads "
                f"{made.num_attention_heads}"
            )
    if not any(towers.values()):
        raise UserError("a CLIP architecture needs a vision or a text tower")
    others = {k: architecture[k] for k in ("projection_dim", "logit_scale") if k in architecture}
    return CLIP(**towers, **others, dtype=dtype)


def abstract_variables(architecture: Mapping[str, Any]) -> Any:
    """Names, shapes and dtypes of the variables."""
    module = build(architecture)
    side = module.vision.image_size if module.vision else 0
    pixels, ids = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), pixels, ids)


# what a config.json leaves out, where transformers' default is another than ours
OMITTED = {
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
               "num_attention_heads": 12, "patch_size": 32},
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
             "eos_token_id": 49407},
}  # fmt: skip


def architecture_of(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The architecture of a published config.json and the arrays beside it (named as `rules` does)."""
    names = set(names)
    architecture: dict[str, Any] = {}
    size = config.get("projection_dim")
    for tower, module in (("vision", VisionTower), ("text", TextTower)):
        architecture[tower] = None
        if not any(name.startswith(f"{tower}_model.") for name in names):
            continue
        own = config.get(f"{tower}_config", config)
        size = size or own.get("projection_dim")
        wanted = VISION_FIELDS if tower == "vision" else TEXT_FIELDS
        defaults = {f: module.__dataclass_fields__[f].default for f in wanted} | OMITTED[tower]
        architecture[tower] = {f: own.get(f, defaults[f]) for f in wanted}
    projects = {"visual_projection.weight", "text_projection.weight"} & names
    return architecture | {
        "projection_dim": (size or 512) if projects else 0,
        "logit_scale": "logit_scale" in names,
    }


def config_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an architecture, every field of it: transformers' defaults are others than ours."""
    module, size = build(architecture), architecture.get("projection_dim") or 512
    towers = {"vision": (module.vision, VISION_FIELDS), "text": (module.text, TEXT_FIELDS)}
    kinds = {"vision": "CLIPVisionModel", "text": "CLIPTextModel"}
    about = {
        name: {field: getattr(tower, field) for field in fields}
        | {"model_type": f"clip_{name}_model", "projection_dim": size}
        for name, (tower, fields) in towers.items()
        if tower is not None
    }
    if len(about) == 2:
        nested = {f"{name}_config": fields for name, fields in about.items()}
        return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": size} | nested
    ((name, fields),) = about.items()
    suffix = "WithProjection" * bool(architecture.get("projection_dim"))
    return fields | {"architectures": [kinds[name] + suffix]}


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name in `rules`; "" for a buffer that is left out.

    transformers 5 writes a tower alone without "vision_model." or "text_model." before its names.
    """
    names = list(names)
    tower = {f"embeddings.{own}.weight": f"{tower}_model." for tower, own in BARE.items()}
    prefix = next((tower[name] for name in names if name in tower), "")
    return {name: "" if name.endswith("position_ids") else prefix + name for name in names}


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The table of published names."""
    table = []
    for tower in ("vision", "text"):
        fields = architecture.get(tower)
        if not fields:
            continue
        ours, theirs = f"params/{tower}", f"{tower}_model"
        own = ["class_embedding"] if tower == "vision" else []
        table += [Rule(f"{ours}/{name}", f"{theirs}.embeddings.{name}") for name in own]
        positions = "position_embedding"
        table.append(Rule(f"{ours}/{positions}", f"{theirs}.embeddings.{positions}.weight"))
        if tower == "vision":
            patches = f"{theirs}.embeddings.patch_embedding.weight"
            table.append(Rule(f"{ours}/patch_embedding/kernel", patches, "conv"))
            norms = ("pre_layrnorm", "post_layernorm")
        else:
            table.append(Rule(f"{ours}/token_embedding", f"{theirs}.embeddings.token_embedding.weight"))
            norms = ("final_layer_norm",)
        for name in norms:
            table += norm(f"{ours}/{name}", f"{theirs}.{name}")
        for i in range(fields["num_hidden_layers"]):
            layer, published = f"{ours}/layers/{i}", f"{theirs}.encoder.layers.{i}"
            table += attention_rules(f"{layer}/self_attn", f"{published}.self_attn")
            for name in ("layer_norm1", "layer_norm2"):
                table += norm(f"{layer}/{name}", f"{published}.{name}")
            for name in ("fc1", "fc2"):
                table += dense(f"{layer}/{name}", f"{published}.mlp.{name}")
        if architecture.get("projection_dim"):
            head = "visual_projection" if tower == "vision" else "text_projection"
            table += dense(f"params/{head}", head, bias=False)
    if architecture.get("logit_scale"):
        table.append(Rule("params/logit_scale", "logit_scale"))
    return table
