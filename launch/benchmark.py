"""Measures train and sample steps of the networks: `python -m launch.benchmark --cases=rdm_train,mage_train`

Each case compiles its program, then repeats it: seconds (median and spread), examples/s, FLOP/s and their
share of the best matrix product seen on this device in this run and dtype. Random weights and inputs:
what is measured does not depend on them. Train steps are the trainer's own, optimiser, EMA and metrics
included, from cached representations and tokens; sampling is one program per call.

With `--peer`, a checkout of the official PyTorch code (LTH14/rcg) does the same work in turn with ours, with
`--libraries` transformers and diffusers do that of ChefFusion's networks; the ratio is ours / theirs, pair by
pair: below 1 we are faster.

With `--config` of an experiment on images it measures how fast they are read instead, `--records` of them:

    python -m launch.benchmark --config=configs/rcg/mage.py --config.data.path=photos --records=50000

Runs on CPU in float32 at sizes for a laptop, on accelerators in bfloat16 at those of the papers.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from configs.common import training
from configs.rcg import moco_v3 as moco_v3_config
from launch.runtime import cli, food_cases, reading
from launch.runtime.benchmarking import Peak, Work, compiled, measure, spread
from launch.runtime.optimizer import make_optimizer
from launch.runtime.registry import EXPERIMENTS, resolve
from launch.runtime.step import init_state, make_train_step, root_key
from rcg import rdm
from rcg.errors import UserError
from rcg.experiment import Experiment
from rcg.pixel import mage, vqgan

SIZES = ("base", "large", "tiny")
RDM = {"base": {}, "large": {}, "tiny": {"width": 64, "bottleneck": 64, "time_dim": 32, "depth": 2}}
VQGAN = {"base": {}, "large": {}, "tiny": {"ch": 32, "ch_mult": (1, 1, 2), "z_channels": 16}}
RNG = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where, and how large: all a case may depend on."""

    size: str
    accelerator: bool

    @property
    def options(self) -> dict[str, Any]:
        """How networks are built: stacks scanned on accelerators, where unrolled ones compile for long."""
        dtype = jnp.bfloat16 if self.accelerator else jnp.float32
        return {"dtype": dtype, "scan_layers": self.accelerator}

    def pick(self, cpu: int, accelerator: int, tiny: int) -> int:
        """A batch size, or a number of steps."""
        return tiny if self.size == "tiny" else accelerator if self.accelerator else cpu

    @property
    def mage(self) -> dict[str, Any]:
        fields = mage.resolve({"variant": self.size})
        return fields | ({"num_tokens": 256, "codebook_size": 1024} if self.size == "tiny" else {})

    @property
    def image_size(self) -> int:
        return 32 if self.size == "tiny" else 256


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      make: compiles our side.
      peer: (Official, Setting) -> one repetition of theirs; None: there is nothing to compare with.
      library: Setting -> the same, of transformers or diffusers.
      ratio: the goal on a CPU, ours / theirs.
      seconds: the goal for a repetition on one H200, by size.
    """

    make: Callable[[Setting], Work]
    peer: Callable[[Any, Setting], Callable[[], Any]] | None = None
    library: Callable[[Setting], Callable[[], Any]] | None = None
    ratio: float | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def bare_experiment(init: Callable, loss: Callable) -> Experiment:
    """What the trainer's step needs. init: rng -> params; loss: (params, batch, rng) -> scalar."""

    def experiment_loss(params, extra, frozen, batch, rng):
        value = loss(params, batch, rng)
        return value, ({"loss": value}, extra)

    unused = dict.fromkeys(("dataset", "panels", "evaluate", "export"))
    return Experiment("", {}, lambda rng: (init(rng), {}), experiment_loss, {}, **unused)


def train_work(config: ConfigDict, experiment: Experiment, batch: dict, flops: float) -> Work:
    """The trainer's own step on one batch, again and again."""
    optimizer_for = functools.partial(make_optimizer, config)
    first, _, optimizer = init_state(experiment, optimizer_for, config, {}, batch)
    key = root_key(config)
    held = [jax.jit(first)(key)]
    step = make_train_step(experiment, optimizer, config)
    step, seconds = compiled(step, held[0], {}, batch, key, donate=(0,))

    def run():
        held.append(step(held.pop(), {}, batch, key))
        jax.block_until_ready(held[0])

    return Work(run, seconds, len(jax.tree.leaves(batch)[0]), flops)


def random_variables(module: Any, *example: Any, **method: str) -> Any:
    """As a sampler holds them: in the module's dtype."""
    variables = jax.jit(functools.partial(module.init, **method))(RNG, *example)
    return jax.tree.map(lambda x: x.astype(module.dtype), variables)


def sample_work(call: Callable, args: tuple, examples: int, flops: float) -> Work:
    run, seconds = compiled(call, *args)
    return Work(lambda: jax.block_until_ready(run(*args)), seconds, examples, flops)


# --- RDM. A linear layer costs 2 inputs x outputs; a train step three times the forward pass.


def rdm_module(setting: Setting) -> rdm.RDM:
    return rdm.build(RDM[setting.size], **setting.options)


def rdm_flops(m: rdm.RDM) -> tuple[float, float]:
    """Forward FLOPs of one example: (what depends on x, what depends only on the timestep)."""
    of_x = 4 * m.channels * m.width + m.depth * 4 * m.width * m.bottleneck
    of_time = 2 * m.time_dim * (m.width + m.time_dim + m.depth * m.bottleneck)
    return of_x, of_time


def rdm_config(batch_size: int) -> ConfigDict:
    """The published recipe's optimiser and EMA."""
    c = training()
    c.batch_size = batch_size
    c.optimizer.update(learning_rate=5.12e-4, weight_decay=0.01, decay="all")
    c.ema.decay = 0.9999
    return c


def rdm_train(setting: Setting) -> Work:
    module, batch_size = rdm_module(setting), setting.pick(64, 512, 8)
    example = jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32)

    def loss(params, batch, rng):
        x0 = batch["representation"]
        time_key, noise_key = jax.random.split(rng)
        t = jax.random.randint(time_key, (len(x0),), 0, module.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        return rdm.loss(module, {"params": params}, x0, t, noise)[0]

    batch = {"representation": jax.random.normal(RNG, (batch_size, module.channels))}
    flops = 3 * batch_size * sum(rdm_flops(module))

    def init(rng):
        return module.init(rng, *example)["params"]

    return train_work(rdm_config(batch_size), bare_experiment(init, loss), batch, flops)


def ddim_steps(setting: Setting) -> int:
    return setting.pick(50, 250, 5)


def rdm_ddim(setting: Setting) -> Work:
    module, batch_size, steps = rdm_module(setting), setting.pick(16, 256, 2), ddim_steps(setting)
    variables = random_variables(module, jnp.zeros((1, module.channels)), jnp.zeros(1, jnp.int32))
    of_x, of_time = rdm_flops(module)

    def call(variables, key):
        return rdm.sample(module, variables, key, batch_size, steps=steps)

    return sample_work(call, (variables, RNG), batch_size, steps * (batch_size * of_x + of_time))


def official_rdm(setting: Setting) -> dict[str, Any]:
    m = rdm_module(setting)
    return {
        "in_channels": m.channels,
        "width": m.width,
        "bottleneck": m.bottleneck,
        "time_embed_dim": m.time_dim,
        "depth": m.depth,
    }


# --- MAGE. A transformer layer costs 24 dim^2 a token and 4 dim a pair of tokens (QK^T and the sum of V).


def mage_flops(m: mage.Mage, visible: int) -> float:
    """Forward FLOPs of one image when the encoder sees `visible` tokens besides the condition."""

    def stack(tokens, dim, depth):
        return depth * tokens * (24 * dim**2 + 4 * tokens * dim)

    dim, decoder_dim = m.embed_dim, m.decoder_embed_dim
    encoder = stack(1 + visible, dim, m.depth)
    decoder = stack(1 + m.num_tokens, decoder_dim, m.decoder_depth)
    between = 2 * (1 + visible) * dim * decoder_dim
    head = 2 * m.num_tokens * dim * (decoder_dim + m.codebook_size)
    return encoder + between + decoder + head


def mage_config(batch_size: int) -> ConfigDict:
    """The published recipe's optimiser."""
    c = training()
    c.batch_size = batch_size
    c.optimizer.update(learning_rate=1.5e-4, b2=0.95, weight_decay=0.05, clip_norm=3.0)
    return c


def mage_example(module: mage.Mage) -> tuple:
    noise = mage.draw_noise(module, RNG, 1)
    return jnp.zeros((1, module.num_tokens), jnp.int32), jnp.zeros((1, module.rep_dim)), noise


def mage_train(setting: Setting) -> Work:
    module, batch_size = mage.build(setting.mage, **setting.options), setting.pick(4, 256, 2)

    def loss(params, batch, rng):
        noise_key, dropout = jax.random.split(rng)
        noise = mage.draw_noise(module, noise_key, batch_size)
        args = batch["tokens"], batch["representation"], noise, True
        return module.apply({"params": params}, *args, rngs={"dropout": dropout})[0]

    batch = {
        "tokens": jax.random.randint(RNG, (batch_size, module.num_tokens), 0, module.codebook_size),
        "representation": jax.random.normal(RNG, (batch_size, module.rep_dim)),
    }
    flops = 3 * batch_size * mage_flops(module, module.num_tokens - module.num_dropped)

    def init(rng):
        return module.init(rng, *mage_example(module))["params"]

    return train_work(mage_config(batch_size), bare_experiment(init, loss), batch, flops)


def decode_steps(setting: Setting) -> int:
    return setting.pick(4, 20, 2)


def mage_generate(setting: Setting) -> Work:
    """Tokens from given representations."""
    module, batch_size = mage.build(setting.mage, **setting.options), setting.pick(1, 64, 2)
    steps = decode_steps(setting)
    representations = jax.random.normal(RNG, (batch_size, module.rep_dim))

    def call(variables, key, representations):
        return mage.generate(module, variables, key, representations, steps=steps)

    args = random_variables(module, *mage_example(module)), RNG, representations
    return sample_work(call, args, batch_size, steps * batch_size * mage_flops(module, module.num_tokens))


# --- VQGAN. A convolution costs 2 kernel^2 inputs x outputs a pixel; ours spares some of the upsampling
# ones' work, which is counted in full.


def vqgan_module(setting: Setting) -> vqgan.VQGAN:
    return vqgan.build(VQGAN[setting.size], **setting.options)


def vqgan_flops(m: vqgan.VQGAN, image_size: int) -> tuple[float, float]:
    """Of one image: (encoder with quantisation, decoder)."""

    def block(inputs, outputs):
        return 18 * inputs * outputs + 18 * outputs**2 + (inputs != outputs) * 2 * outputs**2

    widths = [m.ch * mult for mult in m.ch_mult]
    pixels = [image_size**2 // 4**i for i in range(len(widths))]
    last, middle = pixels[-1], 2 * block(widths[-1], widths[-1])
    encoder = 54 * m.ch * pixels[0] + last * (middle + 2 * m.z_channels * (widths[-1] + m.codebook_size))
    decoder = 54 * m.ch * pixels[0] + last * (middle + 18 * m.z_channels * widths[-1])
    for i, width in enumerate(widths):
        rest = (m.num_res_blocks - 1) * block(width, width)
        encoder += pixels[i] * (block(widths[max(i - 1, 0)], width) + rest)
        decoder += pixels[i] * (block(widths[min(i + 1, len(widths) - 1)], width) + rest)
        decoder += (i > 0) * 18 * width**2 * 4 * pixels[i]
    return encoder, decoder


def vqgan_encode(setting: Setting) -> Work:
    module, batch_size, side = vqgan_module(setting), setting.pick(1, 64, 2), setting.image_size
    variables = random_variables(module, jnp.zeros((1, side, side, 3)))

    def call(variables, images):
        return module.apply(variables, images, method="tokenize")

    images = jax.random.uniform(RNG, (batch_size, side, side, 3))
    return sample_work(call, (variables, images), batch_size, batch_size * vqgan_flops(module, side)[0])


def vqgan_decode(setting: Setting) -> Work:
    module, batch_size, side = vqgan_module(setting), setting.pick(1, 64, 2), setting.image_size
    variables = random_variables(module, jnp.zeros((1, side, side, 3)))

    def call(variables, tokens):
        return module.apply(variables, tokens, method="decode_tokens")

    num_tokens = (side // 2 ** (len(module.ch_mult) - 1)) ** 2
    tokens = jax.random.randint(RNG, (batch_size, num_tokens), 0, module.codebook_size)
    return sample_work(call, (variables, tokens), batch_size, batch_size * vqgan_flops(module, side)[1])


def official_vqgan(setting: Setting) -> dict[str, Any]:
    m = vqgan_module(setting)
    names = ("ch", "ch_mult", "num_res_blocks", "z_channels", "codebook_size")
    return {name: getattr(m, name) for name in names} | {"resolution": setting.image_size}


# --- MoCo v3. Two views; each passes the encoder being trained and, forward only, its momentum twin.


def moco_train(setting: Setting) -> Work:
    """Augmentation included."""
    variant = "runlocal" if setting.size == "tiny" else f"variant={setting.size}"
    config = moco_v3_config.get_config(variant)
    config.batch_size = batch_size = setting.pick(8, 256, 4)
    config.compute.scan_layers = setting.accelerator
    experiment = resolve(EXPERIMENTS, config.experiment, "config.experiment")(config, {}, None)
    side, m = config.data.image_size, config.model
    images = jax.random.randint(RNG, (batch_size, side, side, 3), 0, 256).astype(jnp.uint8)

    patches = (m.image_size // m.patch_size) ** 2
    tokens, hidden, out = 1 + patches, m.head_hidden, m.head_out
    encoder = m.depth * tokens * ((8 + 4 * m.mlp_ratio) * m.dim**2 + 4 * tokens * m.dim)
    encoder += 2 * patches * 3 * m.patch_size**2 * m.dim
    encoder += 2 * (m.dim * hidden + hidden**2 + hidden * out)
    predictor = 2 * 2 * out * config.method.predictor_hidden
    flops = 2 * batch_size * (4 * encoder + 3 * predictor)
    return train_work(config, experiment, {"image": images}, flops)


# --- The whole way from noise to image: RDM, MAGE and the VQGAN decoder in one program.


def rcg_generate(setting: Setting) -> Work:
    prior, pixels = rdm_module(setting), mage.build(setting.mage, **setting.options)
    tokenizer = vqgan_module(setting)
    batch_size, steps, rdm_steps = setting.pick(1, 64, 1), decode_steps(setting), ddim_steps(setting)
    variables = {
        "rdm": random_variables(prior, jnp.zeros((1, prior.channels)), jnp.zeros(1, jnp.int32)),
        "mage": random_variables(pixels, *mage_example(pixels)),
        "tokenizer": random_variables(
            tokenizer, jnp.zeros((1, 16, 16, tokenizer.z_channels)), method="decode"
        ),
    }

    def call(variables, key):
        rdm_key, mage_key = jax.random.split(key)
        cond = rdm.sample(prior, variables["rdm"], rdm_key, batch_size, steps=rdm_steps)
        tokens = mage.generate(pixels, variables["mage"], mage_key, cond, steps=steps)
        return tokenizer.apply(variables["tokenizer"], tokens, method="decode_tokens")

    of_x, of_time = rdm_flops(prior)
    image_size = 16 * 2 ** (len(tokenizer.ch_mult) - 1)
    flops = steps * mage_flops(pixels, pixels.num_tokens) + vqgan_flops(tokenizer, image_size)[1]
    flops *= batch_size
    flops += rdm_steps * (batch_size * of_x + of_time)
    return sample_work(call, (variables, RNG), batch_size, flops)


CASES = {
    "rdm_train": Case(
        rdm_train,
        lambda o, s: o.rdm_train(official_rdm(s), s.pick(64, 512, 8)),
        ratio=0.55,
        seconds={"base": 1.3e-3},
    ),
    "rdm_ddim": Case(
        rdm_ddim,
        lambda o, s: o.rdm_ddim(official_rdm(s), s.pick(16, 256, 2), ddim_steps(s)),
        ratio=0.7,
        seconds={"base": 60e-3},
    ),
    "mage_train": Case(
        mage_train,
        lambda o, s: o.mage_train(s.mage, s.pick(4, 256, 2)),
        ratio=1.0,
        seconds={"large": 0.275},
    ),
    "mage_generate": Case(
        mage_generate,
        lambda o, s: o.mage_generate(s.mage, s.pick(1, 64, 2), decode_steps(s)),
        ratio=0.85,
    ),
    "vqgan_encode": Case(
        vqgan_encode,
        lambda o, s: o.vqgan_encode(official_vqgan(s), s.pick(1, 64, 2)),
        ratio=0.95,
    ),
    "vqgan_decode": Case(
        vqgan_decode,
        lambda o, s: o.vqgan_decode(official_vqgan(s), s.pick(1, 64, 2)),
        ratio=0.85,
    ),
    "moco_train": Case(moco_train),
    "rcg_generate": Case(rcg_generate, seconds={"base": 0.38, "large": 0.80}),
} | {
    name: Case(make, library=library, ratio=ratio)
    for name, (make, library, ratio) in food_cases.CASES.items()
}


def chosen(names: str) -> list[str]:
    """The cases a comma-separated list, or "all", stands for.

    Raises:
      UserError: a case that does not exist, with the nearest that does.
    """
    if names == "all":
        return list(CASES)
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if name not in CASES:
            near = get_close_matches(name, CASES, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(CASES)}"
            raise UserError(f'--cases: "{name}" is unknown; {hint}')
    if not wanted:
        raise UserError(f"--cases is empty; there are: {', '.join(CASES)}, or all")
    return wanted


def benchmark(
    names: list[str], size: str, repeats: int, official: Any = None, libraries: bool = False
) -> dict[str, Any]:
    """Measures cases, each with at least `repeats` repetitions; returns what goes into the JSON file."""
    setting = Setting(size, jax.default_backend() != "cpu")
    dtype = setting.options["dtype"]
    peak = Peak(dtype, setting.pick(2048, 8192, 256))
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "dtype": jnp.dtype(dtype).name,
        "size": size,
        "jax": jax.__version__,
    }
    if official is not None:
        results["torch"] = official.torch.__version__
    if libraries:
        found = food_cases.libraries()
        results |= {module.__name__: module.__version__ for module in found}
    cases: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        work = case.make(setting)
        runs = {"ours": work.run}
        if official is not None and case.peer is not None:
            runs["peer"] = case.peer(official, setting)
        elif libraries and case.library is not None:
            runs["peer"] = case.library(setting)
        times = measure(runs, repeats, between=peak)
        seconds = spread(times["ours"])
        cases[name] = {
            "seconds": seconds,
            "compile_seconds": work.compile_seconds,
            "examples": work.examples,
            "examples_per_second": work.examples / seconds["median"],
            "flops": work.flops,
            "flops_per_second": work.flops / seconds["median"],
            "repeats": repeats,
        }
        if "peer" in times:
            pairs = zip(times["ours"], times["peer"], strict=True)
            cases[name]["peer_seconds"] = spread(times["peer"])
            cases[name]["ratio"] = spread([ours / peer for ours, peer in pairs])
        if "H200" in jax.devices()[0].device_kind and size in case.seconds:  # whose goals they are
            cases[name]["goal_seconds"] = case.seconds[size]
        elif not setting.accelerator and size == "base" and case.ratio and "peer" in times:
            cases[name]["goal_ratio"] = case.ratio
        print(line(name, cases[name], peak.flops), flush=True)
        del work, runs
    for result in cases.values():
        result["share_of_peak"] = result["flops_per_second"] / peak.flops
    return results | {"peak_flops_per_second": peak.flops, "cases": cases}


def columns(result: dict[str, Any], peak: float) -> dict[str, str]:
    """What a person reads of one result."""
    seconds, ratio = result["seconds"], result.get("ratio")
    goal = "-"
    if "goal_seconds" in result:
        goal = f"{_seconds(result['goal_seconds'])} {_verdict(seconds['median'], result['goal_seconds'])}"
    elif "goal_ratio" in result:
        goal = f"{result['goal_ratio']:.2f} {_verdict(ratio['median'], result['goal_ratio'])}"
    median, low, high = (_seconds(seconds[name]) for name in ("median", "min", "max"))
    return {
        "median (min..max)": f"{median} ({low}..{high})",
        "compile": _seconds(result["compile_seconds"]),
        "examples/s": f"{result['examples_per_second']:.4g}",
        "TFLOP/s": f"{result['flops_per_second'] / 1e12:.3g}",
        "of peak": f"{result['flops_per_second'] / peak:.0%}",
        "peer": _seconds(result["peer_seconds"]["median"]) if ratio else "-",
        "ratio (min..max)": f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})"
        if ratio
        else "-",
        "goal": goal,
    }


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def _verdict(value: float, goal: float) -> str:
    return "met" if value <= goal else "missed"


def line(name: str, result: dict[str, Any], peak: float) -> str:
    return f"{name:14} " + "  ".join(f"{k} {v}" for k, v in columns(result, peak).items() if v != "-")


def markdown(results: dict[str, Any]) -> str:
    """A table for a README, with what it was measured on."""
    rows = [
        {"case": name} | columns(result, results["peak_flops_per_second"])
        for name, result in results["cases"].items()
    ]
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row[k] for k in head] for row in rows)]
    about = (
        f"{results['device']}, {results['dtype']}, size {results['size']}, jax {results['jax']}"
        + (f", torch {results['torch']}" if "torch" in results else "")
        + f"; peak {results['peak_flops_per_second'] / 1e12:.3g} TFLOP/s"
    )
    return "\n".join([about, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def read(config: ConfigDict, records: int, out: str) -> int:
    """Measures how fast a config's images are read."""
    found = reading.measure(config, records)
    early, end, highest = (f"{found['memory_mib'][k]:.0f}" for k in ("early", "end", "highest"))
    print(
        f"{config.data.source}: {found['records']} records in {found['seconds']:.1f} s, "
        f"{found['records_per_second']:.0f} a second; each of {found['cores']} core(s) "
        f"{found['records_per_second_and_core']:.0f}, "
        f"{found['decoded_mb_per_second_and_core']:.1f} MB decoded; "
        f"memory {early} MiB early, {end} at the end, {highest} at most"
    )
    if out:
        with open(out, "w") as f:
            json.dump(found, f, indent=2)
    return 0


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        text = functools.partial(flags.DEFINE_string, flag_values=values)
        text("cases", "all", f"comma-separated: {', '.join(CASES)}; or all")
        flags.DEFINE_enum("size", "base", SIZES, "of the networks, as in the papers", flag_values=values)
        flags.DEFINE_integer("repeats", 5, "repetitions of each case", 1, flag_values=values)
        text("peer", "", "a checkout of LTH14/rcg to compare with; needs torch")
        text("peer_shims", "", "a folder of modules that stand in for packages it needs")
        text("out", "", "JSON file for the results")
        compare = "compare ChefFusion's networks with transformers and diffusers"
        flags.DEFINE_bool("libraries", False, compare, flag_values=values)
        flags.DEFINE_bool("markdown", False, "print a table at the end", flag_values=values)
        cli.define_config(values)
        flags.DEFINE_integer("records", 20_000, "with --config: how many to read", 1, flag_values=values)

    values = cli.parse(argv, define, __doc__)
    of_cases = ("cases", "size", "repeats", "peer", "peer_shims", "libraries", "markdown")
    for name in of_cases if values.config else ("records",):
        if values[name].present:
            raise UserError(
                f"--{name} has no meaning with{'' if values.config else 'out'} --config; see --help"
            )
    folder = os.path.dirname(os.path.abspath(values.out))
    if values.out and not os.path.isdir(folder):
        raise UserError(f"--out={values.out}: there is no folder {folder}")
    if values.config:
        return read(values.config, values.records, values.out)
    names = chosen(values.cases)
    backend = jax.default_backend()
    if values.libraries and backend != "cpu":
        raise UserError(
            f"--libraries compares on the CPU, where theirs run: set JAX_PLATFORMS=cpu, not {backend}"
        )
    official = None
    if values.peer:
        from launch.runtime.official import Official

        official = Official(values.peer, values.peer_shims)
    elif values.peer_shims:
        raise UserError("--peer_shims without --peer has no use; give --peer=<checkout of LTH14/rcg>")
    results = benchmark(names, values.size, values.repeats, official, values.libraries)
    if values.markdown:
        print(f"\n{markdown(results)}")
    if values.out:
        with open(values.out, "w") as f:
            json.dump(results, f, indent=2)
    return 0


if __name__ == "__main__":
    cli.run(main)
