"""OPT, the language model, from recipe text alone.

    python -m launch.train --config=configs/chef_fusion/opt.py:variant=small --workdir=runs/lm \
        --config.data.path=recipes.jsonl.gz,cookbooks/ --config.data.tokenizer=<folder of an OPT tokenizer>

Variants: 125m to 66b (the published sizes; of their training recipe the learning rate, the sequence length
and the optimiser), small (1.8M parameters besides the embeddings: half an hour on two cores).
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import texts
from configs.common import parse_arg, training

# learning rates of the OPT paper's table 1
RATES = {
    "125m": 6e-4,
    "350m": 3e-4,
    "1.3b": 2e-4,
    "2.7b": 1.6e-4,
    "6.7b": 1.2e-4,
    "13b": 1e-4,
    "30b": 1e-4,
    "66b": 0.8e-4,
}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="125m", runlocal=False)
    if arg.variant not in (*RATES, "small"):
        raise ValueError(f'variant "{arg.variant}" is not one of {", ".join(RATES)}, small')
    c = training()
    c.experiment = "chef_fusion.opt"
    c.model = ConfigDict()
    c.model.variant = arg.variant if arg.variant in RATES else ""  # sizes that the fields below do not give
    c.model.vocab_size = 50272
    c.model.max_position_embeddings = 2048
    c.method = ConfigDict({"eval_sequences": 200})  # how many are measured
    c.data = texts()
    c.data.length = 2048  # tokens of a sequence
    c.batch_size = 256
    c.total_steps = 100_000
    c.optimizer.learning_rate = RATES.get(arg.variant, 2e-3)
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip_norm = 1.0
    c.optimizer.schedule = "cosine"
    c.optimizer.min_learning_rate = 0.1 * c.optimizer.get_oneway_ref("learning_rate")
    c.optimizer.warmup_steps = 2000
    if arg.variant == "small" or arg.runlocal:
        c.model.variant = ""
        sizes = {"hidden_size": 192, "ffn_dim": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
        c.model.update(sizes | {"word_embed_proj_dim": 192})
        c.data.length = 512  # a position that was not trained means nothing to what is built on it
        c.model.max_position_embeddings = c.data.get_oneway_ref("length")
        c.batch_size = 8
        c.total_steps = 1000
        c.optimizer.name, c.optimizer.muon_scale = "muon", 3.0
        c.optimizer.warmup_steps = 50
        c.checkpoint_steps = 200
    if arg.runlocal:
        sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "word_embed_proj_dim": 32}
        c.model.update(sizes | {"max_position_embeddings": 512})
        c.data.length = 64
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.method.eval_sequences = 8
        c.log_steps = 2
    return c
