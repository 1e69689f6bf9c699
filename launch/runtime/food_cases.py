"""The benchmark's cases of ChefFusion's networks, and the same work in transformers, diffusers and torch.

The peers are what users of those libraries run: eager, float32 on a CPU, the libraries' own attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chef_fusion import decoding, model
from chef_fusion.backbones import clip, opt
from chef_fusion.backbones.stable_diffusion import unet, vae
from chef_fusion.decoding import ImageDecision, LanguageModel
from launch.runtime.benchmarking import Work, compiled
from rcg.errors import UserError

Repetition = Callable[[], Any]
PROMPT, WORDS = 32, 64  # tokens of the decoding case
TINY_OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_OPT |= {"word_embed_proj_dim": 32, "vocab_size": 256}
TINY_UNET = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 32}
TINY_VAE = {"block_out_channels": (16, 16, 16, 16), "norm_num_groups": 8}
TINY_VISION = {"image_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY_VISION |= {"num_attention_heads": 2, "patch_size": 14}
LARGE_VISION = {"image_size": 224, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
LARGE_VISION |= {"num_attention_heads": 16, "patch_size": 14}


def libraries() -> Any:
    """torch, transformers and diffusers.

    Raises:
      UserError: one of them is missing.
    """
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"--libraries needs torch, transformers and diffusers ({error})") from error
    return torch, transformers, diffusers


def random_variables(abstract: Any, dtype: Any) -> Any:
    """Normal draws of deviation 0.02 for every array, ones for scales."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, dtype)
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02), dtype)

    return jax.tree.map_with_path(fill, abstract)


def _opt_fields(setting: Any) -> dict[str, Any]:
    return TINY_OPT if setting.size == "tiny" else opt.resolve({"variant": "125m"})


def _opt_flops(m: opt.OPT, tokens: int, pairs: float) -> float:
    weights = m.num_hidden_layers * (4 * m.hidden_size**2 + 2 * m.hidden_size * m.ffn_dim)
    return 2 * weights * tokens + 4 * m.num_hidden_layers * m.hidden_size * pairs


def opt_decode(setting: Any) -> Work:
    """PROMPT tokens, then WORDS more, greedily, on cached keys and values."""
    fields, batch = _opt_fields(setting), setting.pick(1, 16, 2)
    module = opt.build(fields, dtype=setting.options["dtype"])
    lm = LanguageModel(module)
    variables = random_variables(opt.abstract_variables(fields), module.dtype)
    ids = jnp.asarray(np.random.default_rng(0).integers(4, module.vocab_size, (batch, PROMPT)))
    mask, seen = jnp.ones((batch, PROMPT), bool), jnp.zeros((batch, 0), bool)
    settings, never = decoding.sampling(), jnp.full((batch, 1), -1)
    key, words, images = jax.random.key(0), jnp.full(batch, WORDS), ImageDecision()

    def whole(variables: Any, ids: jax.Array) -> jax.Array:
        embedded = lm.embed(variables, None, ids)
        state = decoding.start(lm, variables, None, embedded, mask, seen, room=WORDS)
        return decoding.advance(
            lm, variables, None, state, key, WORDS, words, never, settings, images, pad_id=1
        ).tokens

    run, seconds = compiled(whole, variables, ids)
    head = 2 * module.vocab_size * module.word_embed_proj_dim * (WORDS + 1)
    flops = batch * (_opt_flops(module, PROMPT + WORDS, (PROMPT + WORDS) ** 2 / 2) + head)
    return Work(lambda: jax.block_until_ready(run(variables, ids)), seconds, batch * WORDS, flops)


def their_opt(setting: Any) -> Any:
    torch, transformers, _ = libraries()
    torch.manual_seed(0)
    return torch, transformers.OPTForCausalLM(transformers.OPTConfig(**_opt_fields(setting))).eval()


def their_opt_decode(setting: Any, use_cache: bool = True) -> Repetition:
    """Without a cache every token runs all before it again, as the original ChefFusion's decoding does."""
    torch, model = their_opt(setting)
    ids = torch.randint(4, model.config.vocab_size, (setting.pick(1, 16, 2), PROMPT))
    options = {"do_sample": False, "max_new_tokens": WORDS, "min_new_tokens": WORDS, "use_cache": use_cache}

    def run() -> None:
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=1, **options)

    return run


def opt_backward(setting: Any) -> Work:
    """Forward and backward of the next-token loss, to the input embeddings of a frozen model."""
    fields, shape = _opt_fields(setting), (setting.pick(4, 16, 2), setting.pick(128, 304, 16))
    module = opt.build(fields, dtype=setting.options["dtype"])
    variables = random_variables(opt.abstract_variables(fields), module.dtype)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(4, module.vocab_size, shape))
    x = jnp.asarray(rng.standard_normal((*shape, module.word_embed_proj_dim)), module.dtype)

    def loss(x: jax.Array, variables: Any, ids: jax.Array) -> jax.Array:
        hidden, _ = module.apply(variables, x)
        logits = module.apply(variables, hidden[:, :-1], method="logits")
        own = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - own).mean()

    run, seconds = compiled(jax.grad(loss), x, variables, ids)
    tokens = shape[0] * shape[1]
    flops = 2 * _opt_flops(module, tokens, tokens * shape[1] / 2)
    flops += 4 * tokens * module.vocab_size * module.word_embed_proj_dim
    return Work(lambda: jax.block_until_ready(run(x, variables, ids)), seconds, shape[0], flops)


def their_opt_backward(setting: Any) -> Repetition:
    torch, model = their_opt(setting)
    model.requires_grad_(False)
    shape = (setting.pick(4, 16, 2), setting.pick(128, 304, 16))
    ids = torch.randint(4, model.config.vocab_size, shape)
    x = torch.randn(*shape, model.config.word_embed_proj_dim, requires_grad=True)

    def run() -> None:
        x.grad = None
        model(inputs_embeds=x, labels=ids, use_cache=False).loss.backward()

    return run


def generation_train(setting: Any) -> Work:
    """l_p and the [IMG] states of the generation mode, and the gradient of the [IMG] rows: the words run
    without gradient. `opt_backward` is as many tokens with it."""
    fields, (B, T) = _opt_fields(setting), (setting.pick(4, 16, 2), setting.pick(128, 304, 24))
    module = opt.build(fields, dtype=setting.options["dtype"])
    variables = random_variables(opt.abstract_variables(fields), module.dtype)
    V, E = module.vocab_size, module.word_embed_proj_dim
    joints = model.Joints(embed_dim=E, image_first=V)
    m = joints.num_image_tokens
    chef = model.ChefFusion(LanguageModel(module, V), clip.CLIP(), joints)
    rng, length = np.random.default_rng(0), jnp.full(B, T)
    words = rng.integers(4, V, (B, T - m))
    tokens = jnp.asarray(np.concatenate([words, np.broadcast_to(V + np.arange(m), (B, m))], axis=1))
    weight, table = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((B, m, E), (m, E)))

    def loss(table: jax.Array, variables: Any, tokens: jax.Array) -> jax.Array:
        rows, frozen = decoding.Rows(table, table), {"lm": variables}
        hidden, states = model.generation_states(chef, frozen, rows, tokens, length)
        labels = model.generation_labels(chef, tokens)[:, 1 : hidden.shape[1] + 1]
        total, count = model.cross_entropy(chef, frozen, rows, hidden, labels)
        return total / count + (states.astype(jnp.float32) * weight).mean()

    run, seconds = compiled(jax.value_and_grad(loss), table, variables, tokens)
    flops = _opt_flops(module, B * T, B * T**2 / 2) + _opt_flops(module, B * m, B * m * T)
    flops += 2 * B * T * V * E
    return Work(lambda: jax.block_until_ready(run(table, variables, tokens)), seconds, B, flops)


def their_generation_train(setting: Any) -> Repetition:
    """The whole sequence is differentiated, as the original does."""
    torch, network = their_opt(setting)
    network.requires_grad_(False)
    (B, T), m = (setting.pick(4, 16, 2), setting.pick(128, 304, 24)), 8
    frozen = network.get_input_embeddings().weight
    V, E = frozen.shape
    ids, weight = torch.randint(4, V, (B, T - m)), torch.randn(B, m, E)
    table = torch.randn(m, E, requires_grad=True)
    labels = torch.cat([ids[:, 1:], torch.full((B, 1), V)], 1)

    def run() -> None:
        table.grad = None
        inputs = torch.cat([frozen[ids], table.expand(B, m, E)], 1)
        hidden = network.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        words = hidden[:, :-m]
        logits = torch.cat([words @ frozen.T, words @ table.T], -1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        (loss + (hidden[:, -m:] * weight).mean()).backward()

    return run


def _unet_inputs(setting: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng, side = np.random.default_rng(0), setting.pick(64, 64, 8)
    x = rng.standard_normal((2, side, side, 4)).astype(np.float32)
    return x, rng.standard_normal((2, 77, width)).astype(np.float32)


def sd_unet(setting: Any) -> Work:
    """One call for a pair (without and with text) of latents of a 512 px picture, text included."""
    fields = TINY_UNET if setting.size == "tiny" else {}
    module = unet.build(fields, dtype=setting.options["dtype"])
    variables = random_variables(unet.abstract_variables(fields), module.dtype)
    x, context = (jnp.asarray(a) for a in _unet_inputs(setting, module.cross_attention_dim))
    t = jnp.array([500.0, 500.0])
    run, seconds = compiled(module.apply, variables, x, t, context)
    flops = 0.0 if setting.size == "tiny" else 1323e9
    return Work(lambda: jax.block_until_ready(run(variables, x, t, context)), seconds, 1, flops)


def their_unet(setting: Any) -> Repetition:
    torch, _, diffusers = libraries()
    fields = dict(TINY_UNET) if setting.size == "tiny" else {"cross_attention_dim": 768}
    model = diffusers.UNet2DConditionModel(**fields, attention_head_dim=8, sample_size=64).eval()
    x, context = _unet_inputs(setting, fields["cross_attention_dim"])
    x, context, t = torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(context), torch.tensor([500, 500])

    def run() -> None:
        with torch.no_grad():
            model(x, t, encoder_hidden_states=context)

    return run


def sd_vae_decode(setting: Any) -> Work:
    """Latents to a picture of 512 px."""
    fields, side = (TINY_VAE if setting.size == "tiny" else {}), setting.pick(64, 64, 8)
    module = vae.build(fields, dtype=setting.options["dtype"])
    variables = random_variables(vae.abstract_variables(fields), module.dtype)
    z = jnp.asarray(np.random.default_rng(0).standard_normal((1, side, side, 4)), jnp.float32)
    run, seconds = compiled(functools.partial(module.apply, method="decode"), variables, z)
    flops = 0.0 if setting.size == "tiny" else 2504e9
    return Work(lambda: jax.block_until_ready(run(variables, z)), seconds, 1, flops)


def their_vae_decode(setting: Any) -> Repetition:
    torch, _, diffusers = libraries()
    fields = TINY_VAE if setting.size == "tiny" else {"block_out_channels": (128, 256, 512, 512)}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = diffusers.AutoencoderKL(**fields, **kinds, layers_per_block=2, latent_channels=4).eval()
    z = torch.randn(1, 4, *[setting.pick(64, 64, 8)] * 2)

    def run() -> None:
        with torch.no_grad():
            model.decode(z)

    return run


def mapper_train(setting: Any) -> Work:
    """Forward and backward of ChefFusion's mapper."""
    batch, width = setting.pick(16, 16, 2), 32 if setting.size == "tiny" else 4096
    module = model.Mapper(hidden_dim=32 if setting.size == "tiny" else 512, dtype=setting.options["dtype"])
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, 8, width)), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), x, x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(module.apply(params, x, jnp.zeros_like(x))).mean()

    run, seconds = compiled(jax.grad(loss), params, x)
    r = module.hidden_dim
    each = 4 * (12 * r**2 * 8 + 14 * r**2 * 77 + 2 * r**2 * 8) + r * (8 * width + 77 * 768)
    return Work(lambda: jax.block_until_ready(run(params, x)), seconds, batch, 6.0 * batch * each)


def their_mapper_train(setting: Any) -> Repetition:
    torch, _, _ = libraries()
    tiny = setting.size == "tiny"
    batch, width, r = setting.pick(16, 16, 2), 32 if tiny else 4096, 32 if tiny else 512
    nn = torch.nn
    into, out = nn.Linear(width, r), nn.Linear(r, 768)
    queries = nn.Parameter(torch.randn(1, 77, r))
    body = nn.Transformer(
        batch_first=True,
        norm_first=True,
        d_model=r,
        num_encoder_layers=4,
        num_decoder_layers=4,
        dim_feedforward=4 * r,
        dropout=0.0,
        nhead=4,
    )
    x = torch.randn(batch, 8, width)
    parameters = [queries, *into.parameters(), *out.parameters(), *body.parameters()]

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        out(body(into(x), queries.repeat(batch, 1, 1))).square().mean().backward()

    return run


def clip_forward(setting: Any) -> Work:
    """The vision tower on photos of 224 px."""
    tower = TINY_VISION if setting.size == "tiny" else LARGE_VISION
    fields, batch = {"vision": tower, "text": None}, setting.pick(2, 64, 2)
    module = clip.build(fields, dtype=setting.options["dtype"])
    variables = random_variables(clip.abstract_variables(fields), module.dtype)
    side = tower["image_size"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, side, side, 3)), jnp.float32)
    run, seconds = compiled(functools.partial(module.apply, method="encode_image"), variables, x)
    tokens, W = 1 + (side // tower["patch_size"]) ** 2, tower["hidden_size"]
    layer = 2 * (4 * W**2 + 2 * W * tower["intermediate_size"]) + 4 * W * tokens
    flops = batch * tower["num_hidden_layers"] * tokens * layer
    return Work(lambda: jax.block_until_ready(run(variables, x)), seconds, batch, float(flops))


def their_clip_forward(setting: Any) -> Repetition:
    torch, transformers, _ = libraries()
    tower = TINY_VISION if setting.size == "tiny" else LARGE_VISION
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**tower)).eval()
    x = torch.randn(setting.pick(2, 64, 2), 3, tower["image_size"], tower["image_size"])

    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


# name -> (our work, the libraries', the goal of ours / theirs on a CPU)
CASES = {
    "opt_decode": (opt_decode, their_opt_decode, 0.6),
    "opt_decode_uncached": (opt_decode, functools.partial(their_opt_decode, use_cache=False), 0.1),
    "opt_backward": (opt_backward, their_opt_backward, 1.0),
    "generation_train": (generation_train, their_generation_train, 0.5),
    "sd_unet": (sd_unet, their_unet, 1.05),
    "sd_vae_decode": (sd_vae_decode, their_vae_decode, 1.05),
    "mapper_train": (mapper_train, their_mapper_train, 1.0),
    "clip_forward": (clip_forward, their_clip_forward, 1.0),
}
