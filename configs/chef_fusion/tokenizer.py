"""A byte-level BPE tokenizer of one's own texts, in the folder layout of OPT's or CLIP's.

    python -m launch.prepare --config=configs/chef_fusion/tokenizer.py:kind=opt --out=runs/words \
        --config.data.path=recipes.jsonl.gz,cookbooks/
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import texts
from configs.common import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: kind=opt or clip."""
    arg = parse_arg(arg, kind="opt")
    if arg.kind not in ("opt", "clip"):
        raise ValueError(f'kind "{arg.kind}" is not one of opt, clip')
    c = ConfigDict()
    c.experiment = "chef_fusion.tokenizer"
    c.kind = arg.kind  # opt: for a language model; clip: for a text encoder, in lower case
    c.vocab_size = 50265 if arg.kind == "opt" else 49408  # at most, special tokens included
    c.data = texts()
    return c
