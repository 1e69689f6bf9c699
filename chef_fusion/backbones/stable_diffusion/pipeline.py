"""From text states to pictures: Stable Diffusion v1.x's networks and the loop around them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from chef_fusion.backbones import clip
from chef_fusion.backbones.stable_diffusion import schedulers, unet, vae
from chef_fusion.backbones.stable_diffusion.unet import UNet
from chef_fusion.backbones.stable_diffusion.unet import build as build_unet
from chef_fusion.backbones.stable_diffusion.vae import VAE
from chef_fusion.backbones.stable_diffusion.vae import build as build_vae
from rcg.errors import UserError

Array = jax.Array
Variables = Mapping[str, Any]
SHARDING_RULES = unet.SHARDING_RULES + clip.SHARDING_RULES + vae.SHARDING_RULES


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """The modules. Variables are {"params": {"text_encoder", "unet", "vae"}}, each a network's own params."""

    text_encoder: clip.CLIP
    unet: UNet
    vae: VAE
    scheduler: tuple[tuple[str, Any], ...] = ()  # scheduler_config.json's fields

    @property
    def max_tokens(self) -> int:
        return self.text_encoder.text.max_position_embeddings

    @property
    def default_size(self) -> int:
        """The side of the pictures it was trained on; where its config does not say, v1's, or small
        networks' 64."""
        if self.unet.sample_size:
            return self.unet.sample_size * self.vae.factor
        return 512 if self.unet.block_out_channels[0] >= 320 else 64


def build(architecture: Mapping[str, Any], **options: Any) -> StableDiffusion:
    """The modules of an architecture: {"text_encoder", "unet", "vae", "scheduler"}.

    Raises:
      UserError: networks that do not fit each other.
    """
    made = StableDiffusion(
        clip.build(architecture["text_encoder"], **options),
        build_unet(architecture["unet"], **options),
        build_vae(architecture["vae"], **options),
        tuple(sorted(architecture.get("scheduler", {}).items())),
    )
    if made.text_encoder.text is None:
        raise UserError("the text encoder of this Stable Diffusion has no text tower")
    width = made.text_encoder.text.hidden_size
    if width != made.unet.cross_attention_dim:
        raise UserError(
            f"the text encoder's states have {width} values, but the UNet's cross_attention_dim is "
            f"{made.unet.cross_attention_dim}"
        )
    if made.vae.latent_channels != made.unet.in_channels:
        raise UserError(
            f"the VAE's latents have {made.vae.latent_channels} channels, but the UNet takes "
            f"{made.unet.in_channels}"
        )
    return made


def _of(variables: Variables, part: str) -> Variables:
    return {"params": variables["params"][part]}


def encode_text(sd: StableDiffusion, variables: Variables, ids: Array) -> Array:
    """Token ids [B, max_tokens] -> what the UNet attends to, [B, max_tokens, D], float32: all states after
    the last LayerNorm, padding's too."""
    states, _ = sd.text_encoder.apply(_of(variables, "text_encoder"), ids, method="encode_text")
    return states.astype(jnp.float32)


def planned(
    sd: StableDiffusion, scheduler: str, steps: int, strength: float, height: int, width: int
) -> tuple[schedulers.Plan, schedulers.Start, int, int]:
    """The plan of a picture's steps, where it starts, and its sizes; see `generate`.

    Raises:
      UserError: sizes or steps that do not fit, an unknown scheduler.
    """
    height, width = height or sd.default_size, width or sd.default_size
    multiple = sd.vae.factor * 2 ** (len(sd.unet.block_out_channels) - 1)
    if height % multiple or width % multiple:
        raise UserError(f"a picture of {height} x {width} px: both must be multiples of {multiple}")
    return *schedulers.plan(scheduler, steps, dict(sd.scheduler), strength), height, width


def generate(
    sd: StableDiffusion,
    variables: Variables,
    key: Array,
    embeddings: Array,
    negative: Array,
    *,
    steps: int = 50,
    cfg_scale: float | Array = 7.5,
    scheduler: str = "pndm",
    height: int = 0,
    width: int = 0,
    image: Array | None = None,
    strength: float = 1.0,
    latents: Array | None = None,
    trace: bool = False,
) -> Any:
    """Pictures of text states; one program when jitted with the sizes and names static.

    Args:
      key: what the first noise is drawn from; each picture's depends on the key and its row alone.
      embeddings: [B, S, D], from `encode_text`, or ChefFusion's mapper.
      negative: [1 or B, S, D]: the states of the empty text, or of what should not be seen.
      steps, scheduler: see `schedulers.plan`.
      cfg_scale: noise = of negative + cfg_scale (of text - of negative); at most 1: of the text alone, as in
        diffusers.
      height, width: pixels, multiples of 8 times the VAE's factor (64 for v1); 0: `default_size`.
      image: [B, height, width, 3] in [0, 1] to begin from, with a `strength` below 1: from the mean of what
        the VAE makes of it, where diffusers draws.
      latents: the first noise itself, [B, height / 8, width / 8, 4], standard normal.
      trace: also return the latents after each call of the UNet.

    Returns:
      [B, height, width, 3] in [0, 1], float32.

    Raises:
      UserError: sizes that do not fit, an unknown scheduler.
    """
    B, factor = len(embeddings), sd.vae.factor
    if image is not None:
        height, width = image.shape[1:3]
    elif latents is not None:
        height, width = (side * factor for side in latents.shape[1:3])
    run, start, height, width = planned(sd, scheduler, steps, strength, height, width)
    shape = (height // factor, width // factor, sd.unet.in_channels)
    if latents is None:
        rows = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(B))
        latents = jax.vmap(lambda k: jax.random.normal(k, shape))(rows)
    if image is not None:
        clean, _ = sd.vae.apply(_of(variables, "vae"), 2 * image - 1, method="encode")
        x = start.signal * clean * sd.vae.scaling_factor + start.noise * latents
    else:
        x = start.pure * latents

    unet = _of(variables, "unet")
    both = jnp.concatenate([jnp.broadcast_to(negative, embeddings.shape), embeddings])
    contexts = sd.unet.apply(unet, both, method="from_context")
    times = sd.unet.apply(unet, jnp.asarray(run.timesteps), method="from_time")  # [N, C] each

    def noise_of(x, times):
        x = jnp.concatenate([x, x])
        of_time = [t[None] for t in times]
        uncond, cond = jnp.split(sd.unet.apply(unet, x, of_time, contexts, method="denoise"), 2)
        return jnp.where(cfg_scale > 1, uncond + cfg_scale * (cond - uncond), cond)

    x = schedulers.sample(noise_of, x, run, times, trace)
    x, steps_seen = x if trace else (x, None)
    images = decode(sd, variables, x)
    return (images, steps_seen) if trace else images


def decode(sd: StableDiffusion, variables: Variables, latents: Array) -> Array:
    """The UNet's latents [B, h, w, 4] -> pictures [B, H, W, 3] in [0, 1]."""
    images = sd.vae.apply(_of(variables, "vae"), latents / sd.vae.scaling_factor, method="decode")
    return jnp.clip(images / 2 + 0.5, 0, 1)
