"""The official PyTorch code (LTH14/rcg) as the other side of a comparison. Only the benchmark imports this.

Needs torch and a checkout; `shims` is a folder with modules that stand in for what the checkout imports
and current packages lack (timm 0.3.2, pretrained_enc without its checkpoints, ...). Every function
returns one repetition: the same work, shapes and dtype as ours, run eagerly as the official scripts do.
"""

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rcg.data import cores
from rcg.errors import UserError

Repetition = Callable[[], Any]


class Official:
    """The checkout at `path`, importable.

    Raises:
      UserError: no torch, or nothing there.
    """

    def __init__(self, path: str, shims: str = ""):
        try:
            import torch
        except ImportError as error:
            raise UserError(f"--peer needs torch ({error}); install the torch extra") from error
        self.path = os.path.abspath(path)
        if not os.path.isdir(os.path.join(self.path, "rdm")):
            raise UserError(f"--peer={path} is no checkout of LTH14/rcg: it has no folder rdm")
        sys.path[:0] = [os.path.abspath(shims), self.path] if shims else [self.path]
        self.torch = torch
        self.cuda = torch.cuda.is_available() and jax.default_backend() == "gpu"
        if not self.cuda and jax.default_backend() != "cpu":
            here = jax.default_backend()
            raise UserError(f"--peer can't use this {here}: install torch for it, or set JAX_PLATFORMS=cpu")
        torch.set_num_threads(cores())
        if not self.cuda:  # the code calls .cuda() everywhere
            to = torch.Tensor.to

            def to_here(self, *args, **kwargs):
                moved = args and isinstance(args[0], torch.device) and args[0].type == "cuda"
                return self if moved else to(self, *args, **kwargs)

            torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
            torch.Tensor.to = to_here

    def _import(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"the peer's {name} does not import ({error}); see --peer_shims") from error

    def _build(self, factory: Callable[[], Any]) -> Any:
        """A module of theirs, on the device. Built from within the checkout: it reads relative paths."""
        with contextlib.chdir(self.path), open(os.devnull, "w") as f, contextlib.redirect_stdout(f):
            module = factory()
        return module.cuda() if self.cuda else module

    def _repetition(self, function: Callable[[], Any], train: bool, autocast: bool) -> Repetition:
        torch = self.torch

        def run():
            cast = torch.autocast("cuda", torch.bfloat16) if autocast and self.cuda else None
            with torch.set_grad_enabled(train), cast or contextlib.nullcontext():
                function()
            if self.cuda:
                torch.cuda.synchronize()

        return run

    def _update(self, model: Any, groups: list[dict], clip: float, **adamw) -> Callable[[Any], None]:
        """Backward, gradient norm and AdamW, as NativeScalerWithGradNormCount does them."""
        torch = self.torch
        optimizer = torch.optim.AdamW(groups, **adamw)

        def update(loss):
            optimizer.zero_grad()
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            else:
                grads = [p.grad.detach() for p in model.parameters() if p.grad is not None]
                torch.norm(torch.stack([torch.norm(g, 2.0) for g in grads]), 2.0)
            optimizer.step()
            return loss.item()

        return update

    def _rdm(self, fields: dict[str, Any]) -> Any:
        rdm = self._import("rdm.models.diffusion.ddpm")
        size = {
            "in_channels": fields["in_channels"],
            "out_channels": fields["in_channels"],
            "time_embed_dim": fields["time_embed_dim"],
            "model_channels": fields["width"],
            "bottleneck_channels": fields["bottleneck"],
            "num_res_blocks": fields["depth"],
        }
        return self._build(
            lambda: rdm.RDM(
                linear_start=0.0015,
                linear_end=0.0195,
                num_timesteps_cond=1,
                timesteps=1000,
                cond_stage_key="class_label",
                image_size=1,
                channels=fields["in_channels"],
                cond_stage_trainable=True,
                conditioning_key="crossattn",
                parameterization="x0",
                unet_config={
                    "target": "rdm.modules.diffusionmodules.latentmlp.SimpleMLP",
                    "params": size,
                },
                cond_stage_config={
                    "target": "rdm.modules.encoders.modules.ClassEmbedder",
                    "params": {"embed_dim": 512, "n_classes": 1, "key": "class_label"},
                },
            )
        )

    def rdm_train(self, fields: dict[str, Any], batch_size: int) -> Repetition:
        """Loss on given representations, gradient, EMA, AdamW on everything."""
        torch, model = self.torch, self._rdm(fields).train()
        update = self._update(model, [{"params": list(model.parameters())}], 0.0, lr=5e-4, weight_decay=0.01)
        x = torch.randn(batch_size, fields["in_channels"], 1, 1).cuda()
        labels = torch.zeros(batch_size, dtype=torch.long).cuda()

        def step():
            loss, _ = model(x, {"class_label": labels})
            model.model_ema(model.model)
            update(loss)

        return self._repetition(step, True, False)

    def rdm_ddim(self, fields: dict[str, Any], batch_size: int, steps: int) -> Repetition:
        torch, model = self.torch, self._rdm(fields).eval()
        sampler = self._import("rdm.models.diffusion.ddim").DDIMSampler(model)
        labels = torch.zeros(batch_size, dtype=torch.long).cuda()
        shape = (fields["in_channels"], 1, 1)

        def sample():
            with model.ema_scope():
                cond = model.get_learned_conditioning({"class_label": labels})
                sampler.sample(steps, batch_size, shape, conditioning=cond, eta=1.0, verbose=False)

        return self._repetition(sample, False, False)

    def _mage(self, fields: dict[str, Any]) -> Any:
        mage = self._import("pixel_generator.mage.models_mage")
        sizes = ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        return self._build(
            lambda: mage.MaskedGenerativeEncoderViT(
                **{name: fields[name] for name in sizes},
                norm_layer=functools.partial(self.torch.nn.LayerNorm, eps=1e-6),
                mask_ratio_mu=0.75,
                rep_drop_prob=0.1,
                vqgan_ckpt_path=None,
            )
        )

    def mage_train(self, fields: dict[str, Any], batch_size: int) -> Repetition:
        """Given tokens and representations; clipped AdamW with decay on matrices."""
        torch, model = self.torch, self._mage(fields).train()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        plain = [p for n, p in trained.items() if p.ndim == 1 or n.endswith(".bias")]
        decayed = [p for n, p in trained.items() if not (p.ndim == 1 or n.endswith(".bias"))]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}]
        update = self._update(model, groups, 3.0, lr=1.5e-4, betas=(0.9, 0.95))
        rep = torch.randn(batch_size, 256).cuda()
        images = torch.zeros(batch_size, 1).cuda()  # tells the device only
        tokens = torch.randint(0, 1024, (batch_size, 16, 16)).cuda()
        model.vqgan.encode = lambda x: (tokens, None, (None, None, tokens.clone()))

        def step():
            latent, target, dropped, masked = model.forward_encoder(images, rep, None)
            logits = model.forward_decoder(latent, dropped, masked)
            loss = model.forward_loss(target, logits, masked)
            with torch.autocast("cuda", enabled=False):
                update(loss)

        return self._repetition(step, True, True)

    def mage_generate(self, fields: dict[str, Any], batch_size: int, steps: int) -> Repetition:
        """Tokens only: the VQGAN decoder is left out."""
        torch, model = self.torch, self._mage(fields).eval()
        rep = torch.randn(batch_size, 256).cuda()
        model.vqgan.decode = lambda z: z
        return self._repetition(lambda: model.gen_image(batch_size, steps, 6.0, sampled_rep=rep), False, True)

    def _vqgan(self, fields: dict[str, Any]) -> Any:
        vqgan = self._import("pixel_generator.mage.taming.models.vqgan")
        config = {
            "double_z": False,
            "z_channels": fields["z_channels"],
            "resolution": fields["resolution"],
            "in_channels": 3,
            "out_ch": 3,
            "ch": fields["ch"],
            "ch_mult": list(fields["ch_mult"]),
            "num_res_blocks": fields["num_res_blocks"],
            "attn_resolutions": [16],
        }
        return self._build(
            lambda: vqgan.VQModel(config, fields["codebook_size"], fields["z_channels"]).eval()
        )

    def vqgan_encode(self, fields: dict[str, Any], batch_size: int) -> Repetition:
        model, side = self._vqgan(fields), fields["resolution"]
        images = self.torch.rand(batch_size, 3, side, side).cuda()
        return self._repetition(lambda: model.encode(images), False, True)

    def vqgan_decode(self, fields: dict[str, Any], batch_size: int) -> Repetition:
        model = self._vqgan(fields)
        side = fields["resolution"] // 2 ** (len(fields["ch_mult"]) - 1)
        numbers = np.random.default_rng(0).integers(0, fields["codebook_size"], (batch_size * side**2,))
        tokens = self.torch.tensor(numbers).cuda()
        shape = (batch_size, side, side, fields["z_channels"])
        return self._repetition(
            lambda: model.decode(model.quantize.get_codebook_entry(tokens, shape)), False, True
        )
