"""Stable Diffusion against recorded vectors and against diffusers in PyTorch."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chef_fusion.backbones import clip, published
from chef_fusion.backbones.stable_diffusion import pipeline, schedulers, unet, vae
from rcg.errors import UserError
from rcg.torch_weights import import_variables
from tests.reference.parity import close, under

CHEF = "chef_fusion"
SPACINGS = schedulers.SUPPORTED["timestep_spacing"]


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def load(module, vectors, config, names=()):
    architecture = module.architecture_of(config, names or list(under(vectors, "param/")))
    like = module.abstract_variables(architecture)
    table = published.rules(module, architecture)
    variables = import_variables(under(vectors, "param/"), table, like, "vector")
    return module.build(architecture), variables


@pytest.fixture(scope="module")
def folder(shared):
    return str(shared / "golden/chef_fusion/hf_sd")


def config_of(folder, part):
    return published.folders.read_json(f"{folder}/{part}/config.json")


def test_unet(golden, folder):
    vectors = golden(f"{CHEF}/sd_unet")
    module, variables = load(unet, vectors, config_of(folder, "unet"))
    x, t, context = nhwc(vectors["in/sample"]), vectors["in/timesteps"], vectors["in/context"]
    embedded = unet.timestep_embedding(jnp.asarray(t), module.block_out_channels[0])
    close("time_proj", embedded, vectors["out/time_proj"], 5e-5)  # torch's float32 exp, times t
    run = jax.jit(functools.partial(module.apply, capture_intermediates=True))
    ours, seen = run(variables, x, jnp.asarray(t), context)
    close("sample", nchw(ours), vectors["out/sample"], 1e-5)
    parts = {"conv_in": "conv_in", "mid": "mid_block"}
    parts |= {f"{way}_{i}": f"{way}_blocks_{i}" for way in ("down", "up") for i in range(4)}
    for theirs, name in parts.items():
        (made,) = seen["intermediates"][name]["__call__"]
        close(theirs, nchw(made), vectors[f"out/{theirs}"], 1e-5)
    (made,) = seen["intermediates"]["time_embedding"]["__call__"]
    close("time_emb", made, vectors["out/time_emb"], 5e-5)


def test_vae(golden, folder):
    vectors = golden(f"{CHEF}/sd_vae")
    module, variables = load(vae, vectors, config_of(folder, "vae"))
    mean, logvar = module.apply(variables, nhwc(vectors["in/image"]), method="encode")
    close("mean", nchw(mean), vectors["out/mean"], 1e-5)
    close("logvar", nchw(logvar), vectors["out/logvar"], 1e-5)
    decoded = module.apply(variables, nhwc(vectors["in/latents"]), method="decode")
    close("decoded", nchw(decoded), vectors["out/decoded"], 1e-5)


def test_text_encoder(golden, folder):
    vectors = golden(f"{CHEF}/sd_text")
    config = config_of(folder, "text_encoder") | {"intermediate_size": 64}
    module, variables = load(clip, vectors, config)
    states, pooled = module.apply(variables, jnp.asarray(vectors["in/input_ids"]), method="encode_text")
    close("last_hidden_state", states, vectors["out/last_hidden_state"], 1e-5)
    close("pooled", pooled, vectors["out/pooled"], 1e-5)


def tiny(module, network, folder):
    """A network of diffusers' or transformers' own, written by it and read by us: (module, variables)."""
    network.save_pretrained(folder)
    architecture, variables, _ = published.import_folder(module, str(folder))
    return module.build(architecture), variables


def compare(ours, theirs, inputs, cotangents):
    """Outputs, and the gradients to the inputs of their sum weighted by the cotangents.

    Args:
      ours, theirs: arrays or tensors in our layout -> list of outputs, in it.
      inputs: name -> array.
    """
    torch = pytest.importorskip("torch")
    given = [torch.tensor(x, requires_grad=True) for x in inputs.values()]
    expected = theirs(*given)
    sum((y * torch.tensor(c)).sum() for y, c in zip(expected, cotangents, strict=True)).backward()

    def weighted(*x):
        found = ours(*x)
        return sum((y * c).sum() for y, c in zip(found, cotangents, strict=True)), found

    argnums = tuple(range(len(inputs)))
    grads, found = jax.jit(jax.grad(weighted, argnums, has_aux=True))(*inputs.values())
    for y, own in zip(expected, found, strict=True):
        close("output", own, y.detach(), 1e-5)
    for name, x, grad in zip(inputs, given, grads, strict=True):
        close(f"gradient to the {name}", grad, x.grad, 1e-4)


def draws(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def test_gradients_of_the_unet(tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    sizes |= {"attention_head_dim": 2, "cross_attention_dim": 12}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    network = diffusers.UNet2DConditionModel(**sizes, down_block_types=down, up_block_types=up)
    module, variables = tiny(unet, network, tmp_path)
    x, context, cotangent = draws((2, 4, 8, 4), (2, 5, 12), (2, 4, 8, 4))
    t = np.array([3, 700])

    def theirs(x, context):
        return [network(x.movedim(-1, 1), torch.tensor(t), context).sample.movedim(1, -1)]

    def ours(x, context):
        return [module.apply(variables, x, t, context)]

    compare(ours, theirs, {"latents": x, "context": context}, [cotangent])


def test_gradients_of_the_vae(tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": (vae.DOWN,) * 2, "up_block_types": (vae.UP,) * 2}
    network = diffusers.AutoencoderKL(**sizes, **kinds)
    module, variables = tiny(vae, network, tmp_path)
    image, latents, *cotangents = draws((2, 8, 16, 3), *[(2, 4, 8, 4)] * 3, (2, 8, 16, 3))

    def theirs(image, latents):
        posterior = network.encode(image.movedim(-1, 1)).latent_dist
        found = posterior.mean, posterior.logvar, network.decode(latents.movedim(-1, 1)).sample
        return [x.movedim(1, -1) for x in found]

    def ours(image, latents):
        moments = module.apply(variables, image, method="encode")
        return [*moments, module.apply(variables, latents, method="decode")]

    compare(ours, theirs, {"image": image, "latents": latents}, cotangents)


def test_gradients_of_the_text_encoder(tmp_path):
    """To the token embeddings: ids have none."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 9, "eos_token_id": 2}
    network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)).eval()
    module, variables = tiny(clip, network, tmp_path)
    ids = np.random.default_rng(0).integers(0, 20, (2, 9))
    table = np.asarray(variables["params"]["text"]["token_embedding"])
    cotangents = draws((2, 9, 16), (2, 16))
    name = next(name for name, _ in network.named_parameters() if "token_embedding" in name)

    def theirs(table):
        found = torch.func.functional_call(network, {name: table}, (torch.tensor(ids),))
        return found.last_hidden_state, found.pooler_output

    def ours(table):
        held = {"params": {"text": variables["params"]["text"] | {"token_embedding": table}}}
        return module.apply(held, jnp.asarray(ids), method="encode_text")

    compare(ours, theirs, {"token embeddings": table}, cotangents)


def test_tables(golden):
    close(
        "alphas_cumprod", schedulers.alphas_cumprod(), golden(f"{CHEF}/sd_tables")["out/alphas_cumprod"], 1e-6
    )


@pytest.mark.parametrize(
    "name, steps",
    [("pndm", 50), ("pndm", 20), ("pndm", 7), ("ddim", 50), ("ddim", 20), ("dpmpp", 20), ("dpmpp", 25)],
)
def test_trajectory(golden, name, steps):
    vectors = golden(f"{CHEF}/sd_{name}_{steps}")
    run, _ = schedulers.plan(name, steps)
    np.testing.assert_array_equal(run.timesteps, vectors["out/timesteps"])
    walk = jax.jit(lambda x, eps: schedulers.sample(lambda _, e: e, x, run, eps, trace=True)[1])
    close(
        "latents", walk(vectors["in/sample"], vectors["in/model_outputs"]), vectors["out/prev_samples"], 1e-4
    )


def test_whole_pipeline_from_its_folder(golden, folder):
    """Safetensors and a legacy .bin; the text encoder is the vector's own."""
    vectors = golden(f"{CHEF}/sd_t2i")
    made = published.read("stable_diffusion", folder)
    sd = pipeline.build(made.architecture)
    text, own = load(clip, vectors, config_of(folder, "text_encoder"))
    variables = {"params": made.variables["params"] | {"text_encoder": own["params"]}}
    states = pipeline.encode_text(sd, variables, jnp.asarray(vectors["in/input_ids"]))
    close("prompt", states[:1], vectors["out/prompt_embeds"], 1e-5)
    close("negative", states[2:3], vectors["out/negative_embeds"], 1e-5)

    @jax.jit
    def generate(variables, states, latents):
        return pipeline.generate(
            sd, variables, jax.random.key(0), states[:1], states[2:3], steps=5, latents=latents, trace=True
        )

    images, steps = generate(variables, states, nhwc(vectors["in/latents"]))
    close("latents", np.moveaxis(np.asarray(steps), -1, 2), vectors["out/latents"], 1e-4)
    close("image", images, vectors["out/image"], 1e-4)


def their_schedulers():
    """diffusers' classes by our names."""
    diffusers = pytest.importorskip("diffusers")
    return {
        "pndm": diffusers.PNDMScheduler,
        "ddim": diffusers.DDIMScheduler,
        "dpmpp": diffusers.DPMSolverMultistepScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }


def their_scheduler(name, folder, steps, strength, **fields):
    """diffusers' scheduler as made of v1's config and `fields`, and the timesteps of a run."""
    kinds = their_schedulers()
    config = kinds["pndm"].from_pretrained(folder, subfolder="scheduler").config
    scheduler = kinds[name].from_config(config, **fields)
    scheduler.set_timesteps(steps)
    skipped = max(steps - int(steps * strength), 0)
    if skipped and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler, scheduler.timesteps[skipped * scheduler.order :]


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize(
    "steps, strength, spacing",
    [(1, 1.0, ""), (2, 1.0, ""), (3, 1.0, ""), (30, 1.0, ""), (30, 0.6, ""), (10, 0.2, "")]
    + [(s, r, spacing) for s, r in ((7, 1.0), (48, 1.0), (20, 0.5)) for spacing in SPACINGS],
)
def test_schedulers_are_those_of_diffusers(folder, name, steps, strength, spacing):
    """A whole walk, with a network that is a formula, from noise or from noised clean latents."""
    torch = pytest.importorskip("torch")
    fields = {"timestep_spacing": spacing} if spacing else {}
    scheduler, timesteps = their_scheduler(name, folder, steps, strength, **fields)
    rng = np.random.default_rng(steps)
    clean, noise = rng.standard_normal((2, 1, 2, 3)).astype(np.float32)

    x = torch.tensor(noise) * scheduler.init_noise_sigma
    if strength < 1:
        x = scheduler.add_noise(torch.tensor(clean)[None], torch.tensor(noise)[None], timesteps[:1])[0]
    for t in timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.sin(2 * scaled) + float(t) / 1000, t, x).prev_sample

    run, start = schedulers.plan(name, steps, fields, strength)
    np.testing.assert_allclose(run.timesteps, timesteps, rtol=1e-6)
    begin = start.signal * clean + start.noise * noise if strength < 1 else start.pure * noise
    ours = schedulers.sample(lambda x, t: jnp.sin(2 * x) + t / 1000, begin, run, run.timesteps)
    close(f"{name}, {steps} steps of {strength}", ours, x.numpy(), 1e-4)


@pytest.mark.parametrize("name", ["pndm", "ddim", "dpmpp"])
def test_effective_configurations(shared, golden, name):
    """What diffusers makes of v1's config, every field of it written out, is computed as it is without."""
    config = json.loads((shared / f"golden/{CHEF}/sd_scheduler_configs.json").read_text())[name]
    published.check_config(config, schedulers.SUPPORTED, "config")
    assert config == config | schedulers.DEFAULTS
    run, _ = schedulers.plan(name, 20, config)
    np.testing.assert_array_equal(run.timesteps, golden(f"{CHEF}/sd_{name}_20")["out/timesteps"])


@pytest.mark.parametrize("name", ["pndm", "dpmpp", "euler"])
def test_a_folder_with_a_scheduler_that_diffusers_saved(folder, tmp_path, name):
    """Every field written out: it is read, its spacing heeded by every sampler, and written again."""
    shutil.copytree(folder, tmp_path / "sd")
    scheduler, _ = their_scheduler(name, folder, 7, 1.0, timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path / "sd/scheduler")
    made = published.read("stable_diffusion", str(tmp_path / "sd"))
    assert made.architecture["scheduler"] == schedulers.DEFAULTS | {"timestep_spacing": "trailing"}
    published.write(made, str(tmp_path / "again"))
    held = [json.loads((tmp_path / kind / published.SCHEDULER).read_text()) for kind in ("sd", "again")]
    held[0].pop("lambda_min_clipped", None)
    assert held[0] == held[1]
    index = json.loads((tmp_path / "again/model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", held[0]["_class_name"]]
    for ours, theirs in their_schedulers().items():
        scheduler = theirs.from_pretrained(tmp_path / "again", subfolder="scheduler")
        scheduler.set_timesteps(7)
        run, _ = schedulers.plan(ours, 7, made.architecture["scheduler"])
        np.testing.assert_array_equal(run.timesteps, scheduler.timesteps)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("timestep_spacing", "cubic", "supported is 'leading' or 'linspace' or 'trailing'"),
        ("use_karras_sigmas", True, "supported is False"),
        ("thresholding", True, "supported is False"),
        ("solver_order", 3, "supported is 2"),
        ("solver_type", "heun", "supported is 'midpoint'"),
        ("final_sigmas_type", "sigma_min", "supported is 'zero'"),
        ("beta_schedule", "squaredcos_cap_v2", "supported is 'scaled_linear'"),
    ],
)
def test_a_scheduler_that_is_not_computed(folder, tmp_path, field, value, says):
    shutil.copytree(folder, tmp_path / "sd")
    file = tmp_path / "sd" / published.SCHEDULER
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=f"scheduler_config.json: {field} is {value!r}; {says}"):
        published.read("stable_diffusion", str(tmp_path / "sd"))


def test_image_to_image_is_that_of_diffusers(folder):
    """The whole loop with diffusers' own networks of the same folder."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    made = published.read("stable_diffusion", folder)
    sd = pipeline.build(made.architecture)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    decoder = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    steps, strength = 5, 0.6
    scheduler, timesteps = their_scheduler("dpmpp", folder, steps, strength)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, 11, 32)).astype(np.float32)
    latents = rng.standard_normal((2, 4, 8, 16)).astype(np.float32)
    image = rng.uniform(size=(2, 3, 64, 128)).astype(np.float32)

    with torch.no_grad():
        clean = decoder.encode(torch.tensor(2 * image - 1)).latent_dist.mean * 0.18215
        x = scheduler.add_noise(clean, torch.tensor(latents), timesteps[:1])
        context = torch.tensor(np.concatenate([np.repeat(states[2:], 2, 0), states[:2]]))
        for t in timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            uncond, cond = theirs(both, t, encoder_hidden_states=context).sample.chunk(2)
            x = scheduler.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
        expected = (decoder.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1).numpy()

    @jax.jit
    def paint(variables, negative, cfg_scale):
        settings = {"steps": steps, "scheduler": "dpmpp", "strength": strength, "cfg_scale": cfg_scale}
        begun = {"latents": nhwc(latents), "image": nhwc(image)}
        return pipeline.generate(sd, variables, None, states[:2], negative, **begun, **settings)

    close("image", nchw(paint(made.variables, states[2:], 3.0)), expected, 1e-3)
    # guidance of at most 1 is the text alone, as in diffusers: never only what should not be seen
    plain = paint(made.variables, states[2:], 1.0)
    np.testing.assert_array_equal(paint(made.variables, states[:1], 0.0), plain)
    assert np.abs(paint(made.variables, states[2:], 2.0) - plain).max() > 1e-4
