"""Both systems from nothing on the toy kitchen: two to three hours on two CPU cores.

    python -m launch.pipeline --config=configs/toy/full.py --workdir=runs/full --jobs=2

Trains tokenizers, language model, CLIP, autoencoder and UNet on drawn dishes and what is said of them; RCG's
encoder, tokenizer, RDMs and MAGE; then ChefFusion's joints; and scores all of it on dishes held out.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import settings
from configs.toy.kitchen import DRAWN, chef_stages, picture_stage, rcg_comparisons, rcg_stages


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: runlocal, tiny: minutes on a laptop."""
    arg = parse_arg(arg, runlocal=False)
    tiny, few, many, dishes = (",runlocal", 2, 2, 64) if arg.runlocal else ("", 8, 32, 20_000)
    drawn = not arg.runlocal  # all at one size
    c = ConfigDict()
    c.name = "full"
    c.title = "The toy kitchen"
    c.description = "Recipes from pictures and pictures from recipes, every network trained here."
    c.path = ""
    c.order = (
        *(("pictures",) if drawn else ()),
        "words",
        "captions",
        "lm",
        "clip",
        "vae",
        "latents",
        "sd",
        "encoder",
        "tokenizer",
        "codes",
        "mage_alone",
        "rdm",
        "mage",
        "judge",
        "rdm_classes",
        "recipe_rdm",
        "joints",
    )
    c.stages = ConfigDict()
    if drawn:
        picture_stage(c, dishes, size=64)
    seen = {"prepared": DRAWN} if drawn else {}
    chef_stages(c, tiny, dishes, vocabulary=1024, told=dishes, drawn=drawn, coded=True)
    rcg_stages(c, tiny, coded=True, data__num_records=dishes, **seen)
    rcg_comparisons(c, tiny, coded=True, data__num_records=dishes, **seen)
    rcg = {"cfg_scale": 2.0, "temperature": 10.0}
    c.samples = ConfigDict()
    c.samples.generate = ConfigDict({"task": "generate", "num": 64} | rcg)
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 4, "num": 6} | rcg)
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8} | rcg)
    # of temperatures 1, 3 and 10 and guidance 1, 2 and 3 what the judge knows best, by a little
    told = {"cfg_scale": 2.0, "temperature": 1.0}
    c.samples.classes = ConfigDict({"task": "classes", "judge": "judge", "num": many} | told)
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": few})
    if not arg.runlocal:
        _full(c)
    return c


def _full(c: ConfigDict) -> None:
    """Pictures of 64 px."""
    mage = {
        "total_steps": 4500,
        "batch_size": 32,
        "data__image_size": 64,
        "optimizer__name": "muon",
        "optimizer__muon_scale": 3.0,
        "optimizer__schedule": "cosine",
    }
    settings(
        c,
        lm={
            "total_steps": 1200,
            "log_steps": 20,
            "optimizer__name": "muon",  # named here so that it can be set
            "model__hidden_size": 256,
            "model__ffn_dim": 1024,
            "model__word_embed_proj_dim": 256,
            "model__max_position_embeddings": 512,
            "data__length": 512,
        },
        clip={
            "total_steps": 800,
            "log_steps": 20,
            "optimizer__name": "muon",
            "batch_size": 128,
            "model__text__max_position_embeddings": 48,
        },
        judge={
            "total_steps": 3500,
            "batch_size": 16,
            "model__begin_at_half": True,
            "model__widths": (48, 96, 192),
        },
        vae={
            "total_steps": 1200,
            "optimizer__name": "muon",
            "optimizer__muon_scale": 5.0,
            "model__block_out_channels": (24, 48, 96),
            # four lose small ingredients: the judge finds 81 % of them in the reconstructions, of eight 92 %
            "model__latent_channels": 8,
        },
        # by AdamW: Muon makes a step of so small a UNet 70 % longer. Attention at 16 x 16 makes it 50 %
        # longer, and the noise's error 5 % less after as many steps
        sd={
            "total_steps": 5000,
            "model__attention_blocks": (True, True, True),
            "batch_size": 16,
            "optimizer__learning_rate": 1e-3,
            "method__snr_gamma": 5.0,
        },
        encoder={
            "total_steps": 1200,
            "optimizer__name": "muon",
            "optimizer__muon_scale": 2.0,
            "data__image_size": 64,
        },
        # 8 x 8 tokens; of 1,024 codes MAGE learns too little in its steps
        tokenizer={
            "total_steps": 2500,
            "optimizer__name": "muon",
            "optimizer__muon_scale": 2.0,
            "data__image_size": 64,
            "model__ch_mult": (1, 1, 1, 1),
        },
        # by AdamW: Muon's representations are nearer to the data, and MAGE's pictures of them farther
        rdm={"total_steps": 4000, "data__image_size": 64},
        rdm_classes={"total_steps": 3000, "data__image_size": 64},
        recipe_rdm={"total_steps": 3000, "data__image_size": 64},
        codes={"data__image_size": 64},
        # temperatures: of 6, 10, 12, 15, 20, which differ little from 10 on, and of 3, 6, 10
        mage=mage | {"method__temperature": 15.0, "method__cfg_scale": 1.0},
        mage_alone=mage | {"method__temperature": 10.0},
        joints={
            "total_steps": 2400,
            "optimizer__name": "muon",
            "optimizer__muon_scale": 6.0,
            "optimizer__schedule": "cosine",
            "optimizer__epoch_steps": 0,
            "optimizer__decay_steps": 0,
            "log_steps": 20,
            "batch_size": 16,
            "model__num_visual_tokens": 8,
            "data__max_tokens": 350,
            "data__length_buckets": (40, 150, 185),
            "method__eval_samples": 128,
            "method__rcg_cfg_scale": 2.0,
            "method__rcg_temperature": 10.0,
        },
    )
