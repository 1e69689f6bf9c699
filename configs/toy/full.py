"""Both systems from nothing on the toy kitchen: some hours on two CPU cores, minutes on a GPU.

    python -m launch.pipeline --config=configs/toy/full.py --workdir=runs/full

Trains tokenizers, language model, CLIP, autoencoder and UNet on drawn dishes and what is said of them; RCG's
encoder, tokenizer, RDMs and MAGE; then ChefFusion's joints; and scores all of it on dishes held out.
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
    c.title = "The toy kitchen"
    c.description = "Recipes from pictures and pictures from recipes, every network trained here."
    c.path = ""
    c.order = ("words", "captions", "lm", "clip", "judge", "vae", "sd")
    c.order += ("encoder", "tokenizer", "rdm", "rdm_classes", "mage", "mage_alone", "recipe_rdm", "joints")
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
    _rcg(c, f"variant=kitchen{',runlocal' * arg.runlocal}", dishes)
    c.stages.joints = stage(
        "ChefFusion",
        f"configs/chef_fusion/joints.py:{small}",
        {"lm": "lm", "vision": "clip", "stable_diffusion": "sd"}
        | {"judge": "judge", "rdm": "recipe_rdm", "mage": "mage", "tokenizer": "tokenizer"},
        model__image_first=VOCABULARY,
        **recipes | {"data__source": "kitchen_talk"},
    )
    c.samples = ConfigDict()
    rcg = {"cfg_scale": 2.0, "temperature": 10.0}
    c.samples.generate = ConfigDict({"task": "generate", "num": 64} | rcg)
    c.samples.reconstruct = ConfigDict({"task": "reconstruct", "images": 4, "num": 6} | rcg)
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 8} | rcg)
    c.samples.classes = ConfigDict(
        {"task": "classes", "judge": "judge", "num": 1 if arg.runlocal else 8} | rcg
    )
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": 2 if arg.runlocal else 8})
    if not arg.runlocal:
        _full(c)
    return c


def _rcg(c: ConfigDict, variant: str, dishes: int) -> None:
    """RCG's chain; a painter that is told nothing; an RDM that is told the kind of dish, one the recipe."""
    data = {"data__num_records": dishes}
    frozen = {"encoder": "encoder", "tokenizer": "tokenizer"}
    c.stages.encoder = stage("MoCo v3 encoder", f"configs/rcg/moco_v3.py:{variant}", **data)
    c.stages.tokenizer = stage("VQGAN tokenizer", f"configs/rcg/vqgan.py:{variant}", **data)
    rdm = f"configs/rcg/rdm.py:{variant}"
    c.stages.rdm = stage("RDM", rdm, {"encoder": "encoder"}, **data)
    c.stages.rdm_classes = stage(
        "RDM for kinds of dish", f"{rdm},conditional", {"encoder": "encoder"}, model__num_classes=16, **data
    )
    mage = f"configs/rcg/mage.py:{variant}"
    c.stages.mage = stage("MAGE", mage, frozen | {"rdm": "rdm"}, **data)
    c.stages.mage_alone = stage("MAGE, told nothing", mage, frozen, model__conditioning="none", **data)
    c.stages.recipe_rdm = stage(
        "RDM for recipes",
        f"configs/chef_fusion/recipe_rdm.py:{variant}",
        {"encoder": "encoder", "stable_diffusion": "sd"},
        **data,
    )


def _full(c: ConfigDict) -> None:
    """Pictures of 64 px."""
    steps = {"lm": 1600, "clip": 900, "judge": 2500, "vae": 4000, "sd": 5000, "joints": 2500}
    steps |= {"encoder": 1500, "tokenizer": 3000, "rdm": 1500, "rdm_classes": 1500, "recipe_rdm": 1500}
    steps |= {"mage": 4000, "mage_alone": 4000}
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
    painted = ("tokenizer", "rdm", "rdm_classes", "mage", "mage_alone", "recipe_rdm")
    for name in painted:
        c.stages[name].overrides.data.image_size = 64
    c.stages.tokenizer.overrides.model = ConfigDict({"ch_mult": (1, 1, 1, 1)})  # 8 x 8 tokens
