"""All of ChefFusion from nothing, on one's own recipes, texts and photos.

    python -m launch.pipeline --config=configs/chef_fusion/whole.py:source=recipe_jsonl --workdir=runs/mine \
        --config.paths.recipes=/data/recipes --config.paths.texts=/data/books --config.paths.images=/data/food

recipes: with photos, for CLIP, Stable Diffusion and the joints. texts: .jsonl files for the language model
and the tokenizers. images: a folder of photos for the autoencoder, and for RCG; without train/ and test/ in
it, what is measured is measured on the training photos. Sizes are the small ones, for 64 px; on an
accelerator take more of everything, as `--config.stages.lm.config=configs/chef_fusion/opt.py:variant=125m`.

With `rcg` RCG's networks are trained, too, and can paint for the chef (`--image_decoder=rcg`). With
`runlocal` all is tiny, minutes on a laptop. With vocabulary=0 the tokenizers are given, as folders of files:
`--set=lm.data.tokenizer=<OPT's>` and `--set=clip.data.tokenizer=<CLIP's>`.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.pipeline import stage


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: source=recipe1m|recipe_jsonl|recipe_tsv, vocabulary=... (of both tokenizers), rcg, runlocal."""
    arg = parse_arg(arg, source="recipe1m", vocabulary=16_384, rcg=False, runlocal=False)
    runlocal = ",runlocal" * arg.runlocal
    small = f"variant=small{runlocal}"
    c = ConfigDict()
    c.name = "whole"
    c.title = "ChefFusion on recipes of one's own"
    c.description = "Recipes from photos and photos of recipes, every network trained here."
    c.path = ""
    c.paths = ConfigDict({"recipes": "", "texts": "", "images": ""})
    c.stages = ConfigDict()
    recipes = {"path": "recipes", "data__source": arg.source}
    if arg.vocabulary:
        learn = "configs/chef_fusion/tokenizer.py:kind="
        tokenizer = {"command": "prepare", "path": "texts", "vocab_size": arg.vocabulary, "evaluate": False}
        c.stages.words = stage("tokenizer of texts", f"{learn}opt", **tokenizer)
        c.stages.captions = stage("tokenizer of captions", f"{learn}clip", **tokenizer)
        words = {"prepared": {"data__tokenizer": "words"}, "model__vocab_size": arg.vocabulary}
        captions = {"prepared": {"data__tokenizer": "captions"}, "model__text__vocab_size": arg.vocabulary}
        image_first = {"model__image_first": arg.vocabulary}
    else:
        words = captions = {"data__tokenizer": ""}
        image_first = {}  # as published
    c.stages.lm = stage("language model", f"configs/chef_fusion/opt.py:{small}", path="texts", **words)
    c.stages.clip = stage("CLIP", f"configs/chef_fusion/clip.py:{small}", **captions, **recipes)
    c.stages.vae = stage("autoencoder", f"configs/chef_fusion/vae.py:{small}", path="images")
    c.stages.sd = stage(
        "Stable Diffusion's UNet",
        f"configs/chef_fusion/stable_diffusion.py:{small}",
        {"clip": "clip", "vae": "vae"},
        **recipes,
    )
    painter = {}
    if arg.rcg:
        _rcg(c, runlocal, recipes)
        painter = {"rdm": "recipe_rdm", "mage": "mage", "tokenizer": "tokenizer"}
    c.stages.joints = stage(
        "ChefFusion",
        f"configs/chef_fusion/joints.py:{small}",
        {"lm": "lm", "vision": "clip", "stable_diffusion": "sd"} | painter,
        **image_first,
        **recipes,
    )
    c.order = (
        *(("words", "captions") if arg.vocabulary else ()),
        *("lm", "clip", "vae", "sd"),
        *(("encoder", "tokenizer", "rdm", "mage", "recipe_rdm") if arg.rcg else ()),
        "joints",
    )
    c.samples = ConfigDict()
    c.samples.gallery = ConfigDict({"task": "gallery", "stage": "joints", "num": 8})
    if arg.rcg:
        c.samples.generate = ConfigDict({"task": "generate", "num": 64})
    return c


def _rcg(c: ConfigDict, runlocal: str, recipes: dict[str, str]) -> None:
    """RCG's chain, of the toy kitchen's sizes, and the RDM that is told a recipe."""
    kitchen = f"variant=kitchen{runlocal}"
    size = {} if runlocal else {"data__image_size": 64}
    photos = {"path": "images", "data__source": "folder"}
    c.stages.encoder = stage("MoCo v3 encoder", f"configs/rcg/moco_v3.py:{kitchen}", **size, **photos)
    deeper = {} if runlocal else {"model__ch_mult": (1, 1, 1, 1)}  # 8 x 8 tokens
    c.stages.tokenizer = stage("VQGAN", f"configs/rcg/vqgan.py:{kitchen}", **deeper, **size, **photos)
    frozen = {"encoder": "encoder"}
    c.stages.rdm = stage("RDM", f"configs/rcg/rdm.py:{kitchen}", frozen, **size, **photos)
    seen = frozen | {"tokenizer": "tokenizer", "rdm": "rdm"}
    c.stages.mage = stage("MAGE", f"configs/rcg/mage.py:{kitchen}", seen, **size, **photos)
    c.stages.recipe_rdm = stage(
        "RDM for recipes",
        f"configs/chef_fusion/recipe_rdm.py:{kitchen}",
        frozen | {"stable_diffusion": "sd"},
        **size,
        **recipes,
    )
