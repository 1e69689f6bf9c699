"""ChefFusion from nothing on the toy kitchen: three hours on two CPU cores, minutes on a GPU.

    python -m launch.pipeline --config=configs/toy/full.py --workdir=runs/full

Trains tokenizers, language model, CLIP, autoencoder and UNet on drawn dishes and what is said of them, then
ChefFusion's joints, and scores all of it on dishes that were held out.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import stage

VOCABULARY = 1024
DISHES = 20_000


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: runlocal, tiny: minutes on a laptop."""
    arg = parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.name = "full"
    c.title = "ChefFusion on the toy kitchen"
    c.description = "Recipes from pictures and pictures from recipes, every network trained here."
    c.path = ""
    c.order = ("words", "captions", "lm", "clip", "judge", "vae", "sd", "joints")
    c.stages = ConfigDict()
    tiny = "runlocal" if arg.runlocal else ""
    small = f"variant=small{',runlocal' * arg.runlocal}"
    dishes = 64 if arg.runlocal else DISHES
    texts = {"data__source": "kitchen_texts", "data__num_records": dishes}
    recipes = {"data__source": "recipes_kitchen", "data__num_records": dishes, "data__max_eval_records": 512}
    tokenizer = {"command": "prepare", "vocab_size": VOCABULARY, "evaluate": False, **texts}
    c.stages.words = stage("tokenizer of texts", "configs/chef_fusion/tokenizer.py:kind=opt", **tokenizer)
    c.stages.captions = stage(
        "tokenizer of captions", "configs/chef_fusion/tokenizer.py:kind=clip", **tokenizer
    )
    c.stages.lm = stage(
        "language model",
        f"configs/chef_fusion/opt.py:{small}",
        prepared={"data__tokenizer": "words"},
        model__vocab_size=VOCABULARY,
        **texts,
    )
    c.stages.clip = stage(
        "CLIP",
        f"configs/chef_fusion/clip.py:{small}",
        prepared={"data__tokenizer": "captions"},
        model__text__vocab_size=VOCABULARY,
        **recipes,
    )
    c.stages.judge = stage("judge of pictures", f"configs/chef_fusion/judge.py:{tiny}", **recipes)
    c.stages.vae = stage(
        "autoencoder",
        f"configs/chef_fusion/vae.py:{small}",
        data__source="kitchen",
        data__num_records=dishes,
        data__max_eval_records=512,
    )
    c.stages.sd = stage(
        "Stable Diffusion's UNet",
        f"configs/chef_fusion/stable_diffusion.py:{small}",
        {"clip": "clip", "vae": "vae"},
        **recipes,
    )
    c.stages.joints = stage(
        "ChefFusion",
        f"configs/chef_fusion/joints.py:{small}",
        {"lm": "lm", "vision": "clip", "stable_diffusion": "sd", "judge": "judge"},
        model__image_first=VOCABULARY,
        **recipes | {"data__source": "kitchen_talk"},
    )
    c.samples = ConfigDict()
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": 2 if arg.runlocal else 8})
    if not arg.runlocal:
        _full(c)
    return c


def _full(c: ConfigDict) -> None:
    """Three hours in all."""
    steps = {"lm": 1600, "clip": 900, "judge": 2500, "vae": 4000, "sd": 5000, "joints": 2500}
    for name, count in steps.items():
        c.stages[name].overrides.total_steps = count
    lm, clip, vae, sd, joints = (c.stages[n].overrides for n in ("lm", "clip", "vae", "sd", "joints"))
    sizes = {"hidden_size": 256, "ffn_dim": 1024, "word_embed_proj_dim": 256, "num_hidden_layers": 4}
    lm.model.update(ConfigDict(sizes | {"max_position_embeddings": 640}))
    lm.data.length = 512
    # many dishes of one kind in a batch: only their ingredients tell them apart
    clip.batch_size = 128
    clip.model.text.max_position_embeddings = 48
    vae.model = ConfigDict({"block_out_channels": (24, 48, 96)})
    sd.batch_size = 16
    joints.batch_size = 16
    joints.model.num_visual_tokens = 8
    joints.data.max_tokens = 400
    joints.data.length_buckets = (40, 170, 200)
