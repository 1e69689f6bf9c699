"""The stages that both systems have on the toy kitchen."""

from typing import Any

from ml_collections import ConfigDict

from configs.pipeline import stage

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}
MENU = {"data__menu": "short"}  # 12 kinds of dish
DRAWN = {"data__pictures": "pictures"}  # what reads the stage "pictures"


def picture_stage(c: ConfigDict, dishes: int, size: int) -> None:
    """All pictures, drawn once."""
    data = MENU | {"data__num_records": dishes, "data__image_size": size}
    c.stages.pictures = stage(
        "pictures of dishes", "configs/toy/pictures.py", command="prepare", evaluate=False, **data
    )


def rcg_stages(c: ConfigDict, arg: str = "", coded: bool = False, **options: Any) -> None:
    """RCG's chain. coded: MAGE reads a stage "codes" in the pictures' place."""
    options = MENU | options
    variant = f"variant=kitchen{arg}"
    c.stages.encoder = stage("MoCo v3 encoder", f"configs/rcg/moco_v3.py:{variant}", **options)
    c.stages.tokenizer = stage("VQGAN tokenizer", f"configs/rcg/vqgan.py:{variant}", **options)
    c.stages.rdm = stage("RDM", f"configs/rcg/rdm.py:{variant}", {"encoder": "encoder"}, **options)
    mage = f"configs/rcg/mage.py:{variant}"
    if coded:
        computed = {"command": "prepare", "evaluate": False, "batch_size": 64}
        c.stages.codes = stage("tokens and representations", mage, FROZEN, **options | computed)
        options = _cached(options, "codes")
    c.stages.mage = stage("MAGE", mage, FROZEN | {"rdm": "rdm"}, **options)


def rcg_comparisons(c: ConfigDict, arg: str = "", coded: bool = False, **options: Any) -> None:
    """An RDM that is told the kind of dish, and a MAGE that is told nothing. coded: see `rcg_stages`."""
    variant = f"variant=kitchen{arg}"
    options = MENU | options
    told = {"model__num_classes": 12} | options
    rdm = f"configs/rcg/rdm.py:{variant},conditional"
    c.stages.rdm_classes = stage("RDM for kinds of dish", rdm, {"encoder": "encoder"}, **told)
    alone = {"model__conditioning": "none"} | (_cached(options, "codes") if coded else options)
    c.stages.mage_alone = stage("MAGE, told nothing", f"configs/rcg/mage.py:{variant}", FROZEN, **alone)


def _cached(options: dict[str, Any], stage_name: str) -> dict[str, Any]:
    """The options of a stage that reads what `stage_name` computed."""
    return options | {"prepared": options.get("prepared", {}) | {"data__cache": stage_name}}


def chef_stages(
    c: ConfigDict,
    arg: str,
    dishes: int,
    vocabulary: int,
    told: int,
    drawn: bool = False,
    coded: bool = False,
) -> None:
    """ChefFusion's tokenizers, backbones and joints, the judge, and RCG's RDM for recipes.

    Args:
      dishes: how many pictures to train on. told: of how many dishes the language model reads.
      drawn: whether there is a stage "pictures".
      coded: the UNet reads a stage "latents" in the pictures' place.
    """
    small = f"variant=small{arg}"
    texts = {"data__source": "kitchen_texts", "data__num_records": told} | MENU
    dish = MENU | {"data__num_records": dishes, "data__max_eval_records": 512}
    recipes = {"data__source": "recipes_kitchen", **dish}
    made = DRAWN if drawn else {}
    tokenizer = {"command": "prepare", "vocab_size": vocabulary, "evaluate": False, **texts}
    learn = "configs/chef_fusion/tokenizer.py:kind="
    c.stages.words = stage("tokenizer of texts", f"{learn}opt", **tokenizer)
    c.stages.captions = stage("tokenizer of captions", f"{learn}clip", **tokenizer)
    c.stages.lm = stage(
        "language model",
        f"configs/chef_fusion/opt.py:{small}",
        prepared={"data__tokenizer": "words"},
        model__vocab_size=vocabulary,
        **texts,
    )
    c.stages.clip = stage(
        "CLIP",
        f"configs/chef_fusion/clip.py:{small}",
        prepared={"data__tokenizer": "captions"} | made,
        model__text__vocab_size=vocabulary,
        **recipes,
    )
    c.stages.judge = stage(
        "judge of pictures",
        f"configs/chef_fusion/judge.py:{arg.removeprefix(',')}",
        prepared=made,
        **recipes,
    )
    c.stages.vae = stage(
        "autoencoder",
        f"configs/chef_fusion/vae.py:{small}",
        prepared=made,
        data__source="kitchen",
        **dish,
    )
    unet = f"configs/chef_fusion/stable_diffusion.py:{small}"
    before, reads = {"clip": "clip", "vae": "vae"}, {"prepared": made, **recipes}
    if coded:
        computed = {"command": "prepare", "evaluate": False, "batch_size": 64}
        c.stages.latents = stage("latents", unet, before, **reads | computed)
        reads = _cached(reads, "latents")
    c.stages.sd = stage("Stable Diffusion's UNet", unet, before, **reads)
    c.stages.recipe_rdm = stage(
        "RDM for recipes",
        f"configs/chef_fusion/recipe_rdm.py:variant=kitchen{arg}",
        {"encoder": "encoder", "stable_diffusion": "sd"},
        prepared=made,
        data__num_records=dishes,
        **MENU,
    )
    c.stages.joints = stage(
        "ChefFusion",
        f"configs/chef_fusion/joints.py:{small}",
        {"lm": "lm", "vision": "clip", "stable_diffusion": "sd"}
        | {"judge": "judge", "rdm": "recipe_rdm", "mage": "mage", "tokenizer": "tokenizer"},
        prepared=made,
        model__image_first=vocabulary,
        # a small network needs to be told more plainly when a picture is wanted
        method__decision_loss="token",
        method__decision_scale=1.0,
        method__rescale_rows=False,
        **recipes | {"data__source": "kitchen_talk"},
    )
