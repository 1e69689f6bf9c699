"""OPT (Zhang et al. 2022), 125M to 66B: the language model of ChefFusion.

Pre-norm, or post-norm with projections around the stack (350M); learnt positions, whose first two rows are
offset and padding; the head is tied to the token embeddings. Equal to transformers' OPTForCausalLM without
dropout, which the frozen model never uses. `architecture` is the part of config.json that decides what is
computed, under its own names.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chef_fusion.backbones.attention import Attention, KeysValues, attention_rules, causal_mask
from rcg.errors import UserError
from rcg.layers import Array, Dtype, layer_norm, linear, run_layers
from rcg.torch_weights import Rule, dense, norm

EPS = 1e-5
POSITION_OFFSET = 2  # row 1 of the table is the position of padding, row 2 that of the first token
SHARDING_RULES = (
    (r"embed_tokens|embed_positions", ("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|fc1)/kernel", ("fsdp", "tensor")),
    (r"(out_proj|fc2)/kernel", ("tensor", "fsdp")),
)
# hidden_size, ffn_dim, layers, heads, word_embed_proj_dim: metaseq's table of models
VARIANTS = {
    "125m": (768, 3072, 12, 12, 768),
    "350m": (1024, 4096, 24, 16, 512),
    "1.3b": (2048, 8192, 24, 32, 2048),
    "2.7b": (2560, 10240, 32, 32, 2560),
    "6.7b": (4096, 16384, 32, 32, 4096),
    "13b": (5120, 20480, 40, 40, 5120),
    "30b": (7168, 28672, 48, 56, 7168),
    "66b": (9216, 36864, 64, 72, 9216),
}
# what other config.json fields must be, if they are there, for this code to be the same network
SUPPORTED = {
    "activation_function": ("relu",),
    "enable_bias": (True,),
    "layer_norm_elementwise_affine": (True,),
    "_remove_final_layer_norm": (False,),
    "tie_word_embeddings": (True,),
}


class DecoderLayer(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)); post-norm: LN after each sum."""

    num_heads: int
    ffn_dim: int
    norm_first: bool
    attention: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None, past: KeysValues | None = None, index: Array | None = None
    ) -> tuple[Array, KeysValues]:
        """[B, T, W] -> [B, T, W] and the layer's keys and values; see `Attention`."""
        project = functools.partial(linear, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        norm_1 = layer_norm(EPS, self.dtype, "self_attn_layer_norm")
        norm_2 = layer_norm(EPS, self.dtype, "final_layer_norm")
        attn = Attention(self.num_heads, attention=self.attention, dtype=self.dtype, name="self_attn")
        seen, kept = attn(norm_1(x) if self.norm_first else x, mask, past, index)
        x = x + seen if self.norm_first else norm_1(x + seen)
        h = norm_2(x) if self.norm_first else x
        h = nn.relu(project(self.ffn_dim, name="fc1")(h))
        h = project(x.shape[-1], name="fc2")(h)
        return (x + h if self.norm_first else norm_2(x + h)), kept


class OPT(nn.Module):
    """The decoder and its tied head. The defaults are OPT-125M's."""

    vocab_size: int = 50272
    hidden_size: int = 768
    ffn_dim: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    word_embed_proj_dim: int = 768
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    dtype: Dtype = jnp.float32
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"

    def setup(self):
        init = nn.initializers.normal(0.02)
        projected = self.word_embed_proj_dim != self.hidden_size
        self.embed_tokens = self.param("embed_tokens", init, (self.vocab_size, self.word_embed_proj_dim))
        rows = self.max_position_embeddings + POSITION_OFFSET
        self.embed_positions = self.param("embed_positions", init, (rows, self.hidden_size))
        if projected:
            narrow = functools.partial(linear, use_bias=False, dtype=self.dtype, kernel_init=init)
            self.project_in, self.project_out = narrow(self.hidden_size), narrow(self.word_embed_proj_dim)
        self.layer = functools.partial(
            DecoderLayer,
            num_heads=self.num_attention_heads,
            ffn_dim=self.ffn_dim,
            norm_first=self.do_layer_norm_before,
            attention=self.attention,
            dtype=self.dtype,
        )
        self.layers = [self.layer(name=f"layers_{i}") for i in range(self.num_hidden_layers)]
        if self.do_layer_norm_before:
            self.final_layer_norm = layer_norm(EPS, self.dtype, "final_layer_norm")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def embed(self, ids: Array) -> Array:
        """Token ids [...] -> embeddings [..., word_embed_proj_dim], without positions."""
        return jnp.asarray(self.embed_tokens)[ids].astype(self.dtype)

    def logits(self, hidden: Array) -> Array:
        """Last hidden states [..., word_embed_proj_dim] -> [..., vocab_size], float32."""
        table = self.embed_tokens.astype(self.dtype)
        return jnp.einsum(
            "...e,ve->...v", hidden.astype(self.dtype), table, preferred_element_type=jnp.float32
        )

    def __call__(
        self,
        embeddings: Array,
        mask: Array | None = None,
        *,
        positions: Array | None = None,
        past: list[KeysValues] | None = None,
        index: Array | None = None,
    ) -> tuple[Array, list[KeysValues]]:
        """Embedded tokens -> last hidden states and every layer's keys and values.

        Args:
          embeddings: [B, T, word_embed_proj_dim], see `embed`.
          mask: bool. [B, T]: False is padding, on either side, which nothing sees and which has no position.
            With `past`, [B or 1, 1, T or 1, S]: what each position sees of all keys.
          positions: int32 [B or 1, T], counted from 0, -1 for padding; by default as `mask` says.
          past, index: see `Attention`, per layer.

        Returns:
          [B, T, word_embed_proj_dim], what the head multiplies; [(keys, values)], each [B, H, S, D].

        Raises:
          ValueError: more positions than the table has.
        """
        T = embeddings.shape[1]
        if T > self.max_position_embeddings:
            raise ValueError(f"{T} tokens, but this OPT has {self.max_position_embeddings} positions")
        if past is None:
            seen = causal_mask(T, T)
            if mask is not None:
                counted = jnp.cumsum(mask, axis=1) * mask - 1
                positions = counted if positions is None else positions
                seen = seen & mask[:, None, None, :].astype(bool)
            mask = seen
        if positions is None:
            positions = jnp.arange(T)[None]
        x = embeddings.astype(self.dtype)
        if self.word_embed_proj_dim != self.hidden_size:
            x = self.project_in(x)
        x = x + jnp.asarray(self.embed_positions)[positions + POSITION_OFFSET].astype(self.dtype)
        if self.is_initializing():
            for layer in self.layers:
                x, _ = layer(x, mask)
            kept = []
        else:
            layer = self.layer(parent=None)

            def body(x, of_layer):
                params, past = of_layer
                return layer.apply({"params": params}, x, mask, past, index)

            each = [
                (one.variables["params"], None if past is None else past[i])
                for i, one in enumerate(self.layers)
            ]
            scan = self.scan_layers and past is None
            x, kept = run_layers(body, x, each, scan=scan, remat=self.remat)
        if self.do_layer_norm_before:
            x = self.final_layer_norm(x)
        if self.word_embed_proj_dim != self.hidden_size:
            x = self.project_out(x)
        return x, kept

    def from_ids(self, ids: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """[B, T] token ids, padding mask -> (logits [B, T, vocab_size], hidden states [B, T, E])."""
        hidden, _ = self(self.embed(ids), mask)
        return self.logits(hidden), hidden


FIELDS = (
    "vocab_size",
    "hidden_size",
    "ffn_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "word_embed_proj_dim",
    "max_position_embeddings",
    "do_layer_norm_before",
)


def resolve(model: Mapping[str, Any]) -> dict[str, Any]:
    """`config.model` -> architecture: the sizes of "variant", then whatever else is given.

    Raises:
      UserError: an unknown variant.
    """
    fields = {k: v for k, v in model.items() if v is not None}
    variant = fields.pop("variant", "")
    if variant and variant not in VARIANTS:
        raise UserError(f'OPT variant "{variant}" is not one of {", ".join(VARIANTS)}')
    sizes = {}
    if variant:
        names = ("hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "word_embed_proj_dim")
        sizes = dict(zip(names, VARIANTS[variant], strict=True))
        sizes["do_layer_norm_before"] = variant != "350m"
    return sizes | fields


def build(
    architecture: Mapping[str, Any],
    *,
    dtype: Dtype = jnp.float32,
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
) -> OPT:
    """The module of an architecture: OPT's fields.

    Raises:
      UserError: sizes that do not fit each other.
    """
    module = OPT(**architecture, dtype=dtype, attention=attention, scan_layers=scan_layers, remat=remat)
    if module.hidden_size % module.num_attention_heads:
        raise UserError(
            f"OPT hidden_size {module.hidden_size} is not a multiple of num_attention_heads "
            f"{module.num_attention_heads}"
        )
    return module


def abstract_variables(architecture: Mapping[str, Any]) -> Any:
    """Names, shapes and dtypes of the variables."""
    module = build(architecture)
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda key: module.init(key, ids, method="from_ids"), jax.random.key(0))


def architecture_of(config: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """The architecture that a published config.json describes.

    Raises:
      UserError: it describes another network than OPT.
    """
    del names
    fields = {name: config[name] for name in FIELDS if config.get(name) is not None}
    fields.setdefault("word_embed_proj_dim", fields.get("hidden_size", 768))
    return fields


def config_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says besides the architecture."""
    del architecture
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "activation_function": "relu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }


def canonical(names: list[str]) -> dict[str, str]:
    """Name in the file -> name in `rules`, or "=" and the name of the array that it is a copy of.

    Larger models' files leave out "model."; some hold the tied head again.
    """

    def current(name: str) -> str:
        if name == "lm_head.weight":
            return "=model.decoder.embed_tokens.weight"
        return name if name.startswith("model.") else f"model.{name}"

    return {name: current(name) for name in names}


def rules(architecture: Mapping[str, Any]) -> list[Rule]:
    """The table of published names."""
    module = build(architecture)
    top = "model.decoder"
    table = [
        Rule("params/embed_tokens", f"{top}.embed_tokens.weight"),
        Rule("params/embed_positions", f"{top}.embed_positions.weight"),
    ]
    if module.do_layer_norm_before:
        table += norm("params/final_layer_norm", f"{top}.final_layer_norm")
    if module.word_embed_proj_dim != module.hidden_size:
        for name in ("project_in", "project_out"):
            table += dense(f"params/{name}", f"{top}.{name}", bias=False)
    for i in range(module.num_hidden_layers):
        ours, theirs = f"params/layers_{i}", f"{top}.layers.{i}"
        table += attention_rules(f"{ours}/self_attn", f"{theirs}.self_attn")
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            table += norm(f"{ours}/{name}", f"{theirs}.{name}")
        for name in ("fc1", "fc2"):
            table += dense(f"{ours}/{name}", f"{theirs}.{name}")
    return table
