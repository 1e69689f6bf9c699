"""CLIP from photos of dishes and their recipes.

    python -m launch.train --config=configs/chef_fusion/clip.py:variant=small --workdir=runs/clip \
        --config.data.path=<recipes> --config.data.tokenizer=<folder of a CLIP tokenizer>

Variants: large (ViT-L/14, the published towers), small (64 px, 3M parameters besides the token embeddings).
"""

from ml_collections import ConfigDict

from configs.chef_fusion.sources import recipes
from configs.common import parse_arg, training

LARGE = {
    "vision": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "projection_dim": 768,
}
SMALL = {
    "vision": {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
    "projection_dim": 128,
}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: variant=..., runlocal."""
    arg = parse_arg(arg, variant="large", runlocal=False)
    if arg.variant not in ("large", "small"):
        raise ValueError(f'variant "{arg.variant}" is not one of large, small')
    c = training()
    c.experiment = "chef_fusion.clip"
    small = arg.variant == "small" or arg.runlocal
    c.model = ConfigDict(SMALL if small else LARGE)
    c.model.text.vocab_size = 49408
    c.model.text.max_position_embeddings = 77
    c.method = ConfigDict()
    c.data = recipes(image_size=c.model.vision.image_size)
    c.data.target_text = "visible"
    c.batch_size = 1024
    c.total_steps = 50_000
    c.optimizer.learning_rate = 4e-4  # the CLIP paper's, ViT-L/14
    c.optimizer.b2, c.optimizer.eps = 0.98, 1e-6
    c.optimizer.weight_decay = 0.2
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 2000
    if small:
        c.batch_size = 64
        c.total_steps = 400
        c.optimizer.learning_rate = 5e-4
        c.optimizer.name, c.optimizer.muon_scale = "muon", 4.0
        c.optimizer.clip_norm = 1.0
        c.optimizer.warmup_steps = 50
        c.checkpoint_steps = 100
    if arg.runlocal:
        c.model.vision.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        c.model.text.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        c.batch_size = 8
        c.total_steps = 4
        c.optimizer.warmup_steps = 1
        c.log_steps = 2
    return c
