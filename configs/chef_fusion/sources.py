"""Where ChefFusion's experiments read recipes and texts (`chef_fusion/data.py`, `chef_fusion/texts.py`)."""

from ml_collections import ConfigDict

from configs.common import images


def texts(path: str = "", source: str = "texts") -> ConfigDict:
    """Documents for a language model."""
    d = ConfigDict()
    # texts: JSON lines; or the captions of recipe1m, recipe_tsv, recipe_jsonl, recipes_kitchen
    d.source = source
    d.path = path  # for texts: files, folders or patterns, with commas between them
    d.train_split = "train"
    d.eval_split = "val"
    d.eval_every = 50  # texts: every so many documents of a file one is for evaluation only
    d.tokenizer = ""  # folder of the tokenizer's files
    d.length = 2048  # tokens of a sequence
    d.num_records = 2000  # how many dishes the kitchen makes
    d.menu = ""  # of the kitchen: long, short, see configs/common.py
    d.image_size = 64  # not read
    d.max_bad_fraction = 0.01
    return d


def recipes(path: str = "", source: str = "recipe1m", image_size: int = 224) -> ConfigDict:
    """Recipes with photos; `path`: a folder with files of each split (train.jsonl, val.jsonl), or one file of
    all, whose records name theirs as "partition", or of which every tenth is kept for evaluation."""
    d = images(path, source, image_size)  # recipe1m, recipe_tsv, recipe_jsonl, recipes_kitchen
    d.eval_split = "val"
    d.augment = "clip"
    d.target_text = "caption"  # what the image generator is told: caption (the published way), visible
    d.tokenizer = ""  # folder of a caption tokenizer, where no component brings one
    return d
