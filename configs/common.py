"""Fields every experiment has, and the argument of a config file.

--config=configs/rcg/mage.py:variant=large,runlocal --config.optimizer.learning_rate=1e-3
"""

from ml_collections import ConfigDict, FieldReference


def parse_arg(arg: str, **defaults) -> ConfigDict:
    """`"variant=large,runlocal"` -> ConfigDict, typed by `defaults`; a bare name means True.

    Raises:
      ValueError: a name that is not among the defaults, or a value of another type.
    """
    parsed = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f'config argument "{name}" is unknown; there are: {", ".join(defaults)}')
        kind = type(defaults[name])
        if kind is bool:
            if value not in ("", "true", "false"):
                raise ValueError(f'config argument "{item}": {name} is true or false')
            parsed[name] = value != "false"
        else:
            parsed[name] = kind(value)
    return parsed


def by_batch(c: ConfigDict, rate: float, per: int = 1) -> FieldReference:
    """The learning rate that is `rate` for `per` examples: follows the batch size until it is set itself."""
    return c.get_oneway_ref("batch_size").to_float() * rate / per


def training() -> ConfigDict:
    """The trainer's own fields; experiments add `model`, `data`, `components` and their method's."""
    c = ConfigDict()
    c.experiment = ""  # a name of launch/runtime/registry.py
    c.seed = 0  # decides initialisation, data order, augmentation and every draw of every step
    c.batch_size = 256  # global, over all devices and processes
    c.total_steps = 1000
    c.log_steps = 50  # metrics are means over this many steps
    c.panel_steps = 0  # PNG panels; 0: at the end only; -1: none
    c.evaluate_steps = 0  # 0: never during training
    c.checkpoint_steps = 500
    c.keep_checkpoints = 2
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: the rest of the devices
    c.compute = ConfigDict()
    c.compute.dtype = "auto"  # auto: bfloat16 on accelerators, float32 on CPU
    c.compute.attention = "auto"  # auto, einsum, mapped, fused
    c.compute.scan_layers = False  # True: one compiled body per stack, for deep models on accelerators
    c.compute.remat = "none"  # none, dots, full
    c.dropout_rng = "threefry"  # threefry: the same draws on every mesh; rbg: faster
    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw; muon: for the kernels of layers, AdamW for all else
    c.optimizer.learning_rate = 1e-3  # absolute, at the peak
    c.optimizer.muon_scale = 1.0  # the kernels' learning rate is so many times that of the rest
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.0
    c.optimizer.decay = "matrices"  # matrices: not 1-D arrays and biases; all: everything
    # constant; cosine: half a period, to min_learning_rate; step: times decay_factor every decay_steps
    c.optimizer.schedule = "constant"
    c.optimizer.min_learning_rate = 0.0
    c.optimizer.decay_steps = 0
    c.optimizer.decay_factor = 0.1
    c.optimizer.epoch_steps = 0  # the schedule stands still on every n-th step, as GILL's; 0: never
    c.optimizer.warmup_steps = 0  # linear, from 0
    c.optimizer.clip_norm = 0.0  # global norm over a parameter group; 0: off
    c.optimizer.accumulation_steps = 1  # micro-batches per step
    # name -> {"params": regex on the path, and any of the fields above}: groups with settings of
    # their own. Learning rate 0 freezes a group.
    c.optimizer.groups = ConfigDict()
    c.ema = ConfigDict()
    c.ema.decay = 0.0  # 0: no EMA
    c.ema.warmup = True  # min(decay, (1 + n) / (10 + n)), as LitEma
    c.ema.params = ".*"  # regex on the path; other parameters are used raw
    c.profile = ConfigDict({"start_step": 0, "steps": 0})  # steps > 0 writes a trace to workdir/profile
    c.compilation_cache = ""  # folder, "off"; "": $JAX_COMPILATION_CACHE_DIR, else beside the workdir
    return c


def images(path: str = "", source: str = "folder", image_size: int = 256) -> ConfigDict:
    """Where images come from and how they become training input (`rcg/data.py`)."""
    d = ConfigDict()
    d.source = source  # folder, parquet, tfds, array_record, kitchen: launch/runtime/registry.py
    d.path = path  # folder, file, or TFDS name
    d.train_split = "train"
    d.eval_split = "test"
    d.image_column = "image"  # parquet, tfds: bytes of image files
    d.label_column = "label"  # parquet, tfds: whole numbers or names; "": no labels
    d.image_size = image_size
    d.augment = "center_crop"  # center_crop, random_crop_flip (the paper's), flip, none
    d.resize = 0  # short side before cropping, in training; 0: image_size
    d.crop_padding = 0  # pixels of reflected border around an image before its random crop
    d.num_records = 2000  # how many dishes the kitchen draws for training
    d.menu = ""  # of the kitchen: long (also ""; 16 kinds of dish, 118 ingredients), short (12 and 51)
    d.pictures = ""  # of the kitchen: folder of launch.prepare with its pictures, drawn once
    d.workers = 0  # decoding processes; 0: threads
    d.cache_mb = 512  # a training set that fits in this, decoded and resized, is decoded only once
    d.cache = ""  # folder of launch.prepare: what frozen networks make of the training images
    d.max_bad_fraction = 0.01  # more undecodable records than this stop the run
    d.max_eval_records = 0  # 0: all
    return d
