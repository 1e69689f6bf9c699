"""MAGE against the official code's recorded training steps and whole generations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from launch.runtime.optimizer import decay_mask
from rcg import published, rdm
from rcg.layers import sincos_2d
from rcg.pixel import mage, vqgan
from rcg.torch_weights import export_variables, import_variables

ARCHITECTURE = dict(
    codebook_size=64,
    embed_dim=48,
    depth=2,
    num_heads=4,
    decoder_embed_dim=40,
    decoder_depth=2,
    decoder_num_heads=5,
    rep_dim=12,
    rep_drop_prob=0.5,
)
TOKENIZER = dict(ch=32, ch_mult=[1, 2], num_res_blocks=1, z_channels=16, codebook_size=64)


def relative(got, want):
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def recorded(golden, prefix="", name="mage_model"):
    """A file of the official code: name -> array."""
    start = f"param/{prefix}"
    return {k.removeprefix(start): v for k, v in golden(f"rcg/{name}").items() if k.startswith(start)}


def is_other(name):
    """Not MAGE's own: the frozen networks in its file, and what no forward pass reads."""
    return name in mage.LEFTOVERS or name.startswith(("pretrained_encoder.", "vqgan."))


@pytest.fixture(scope="module")
def model(golden):
    module = mage.build(ARCHITECTURE)
    arrays = recorded(golden)
    arrays = {k: a for k, a in arrays.items() if not is_other(k)}
    noise = jax.eval_shape(lambda k: mage.draw_noise(module, k, 2), jax.random.key(0))
    example = (np.zeros((2, 256), np.int32), np.zeros((2, 12), np.float32), noise)
    like = jax.eval_shape(module.init, jax.random.key(0), *example)
    variables = import_variables(arrays, mage.rules(ARCHITECTURE), like, "mage_model")
    back = export_variables(variables, mage.rules(ARCHITECTURE))
    assert back.keys() == arrays.keys() and all((back[k] == arrays[k]).all() for k in arrays)
    return module, variables


@pytest.fixture(scope="module")
def tokenizer(golden):
    module = vqgan.build(TOKENIZER)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), image)
    arrays = recorded(golden, "vqgan.")
    return module, import_variables(arrays, vqgan.rules(TOKENIZER), like, "mage_model")


@pytest.mark.parametrize("case", range(3))
def test_training_step(case, golden, model, tokenizer):
    module, variables = model
    file = golden(f"rcg/mage_train_{case}")
    noise = {
        "mask": file["in/mask_noise"],
        "rate": np.float32(file["in/mask_rate"]),
        "drop": file["in/rep_drop_uniform"],
    }
    image = np.moveaxis(file["in/image_u8"], 1, -1) / np.float32(255)
    tokens = tokenizer[0].apply(tokenizer[1], image, method="tokenize")
    np.testing.assert_array_equal(tokens, file["out/gt_indices"])

    loss_fn = jax.jit(
        jax.value_and_grad(lambda v: module.apply(v, tokens, file["out/rep"], noise), has_aux=True)
    )
    (loss, aux), grads = loss_fn(variables)
    np.testing.assert_array_equal(aux["ids"], file["out/input_ids"][:, 1:])
    np.testing.assert_array_equal(aux["dropped"], file["out/drop_mask"][:, 1:])
    np.testing.assert_array_equal(aux["masked"], file["out/all_mask"][:, 1:])
    got = {"loss": loss, "latent": aux["latent"], "logits": aux["logits"]}
    want = {"loss": file["out/loss"], "latent": file["out/latent"], "logits": file["out/logits"]}
    if case == 0:  # recorded in full: the class position and the whole vocabulary
        want["logits"] = want["logits"][:, 1:, :64]
        want["embeddings"] = file["out/embeddings"]
        ids = file["out/input_ids"].astype(np.int32)
        got["embeddings"] = module.apply(variables, ids, np.arange(257), method="embed")
    errors = {k: relative(got[k], want[k]) for k in want}
    print(f"mage_train_{case}:", {k: f"{v:.1e}" for k, v in errors.items()})
    assert max(errors.values()) < 1e-5

    want = {k.removeprefix("out/grad/"): v for k, v in file.items() if k.startswith("out/grad/")}
    if case == 0:
        grads = export_variables(jax.device_get(grads), mage.rules(ARCHITECTURE))
        extra = want.keys() - grads.keys()
        assert grads.keys() <= want.keys() and all(map(is_other, extra)), extra
        scale = max(np.abs(v).max() for v in want.values())
        errors = {
            k: np.abs(grads[k] - want[k]).max() / max(np.abs(want[k]).max(), 1e-6 * scale) for k in grads
        }
        worst = max(errors, key=errors.get)
        print(f"mage_train_{case}: worst of {len(errors)} gradients {errors[worst]:.1e} ({worst})")
        assert errors[worst] < 1e-4


@pytest.mark.parametrize("cfg", [0, 3])
def test_whole_generation(cfg, golden, model, tokenizer):
    module, variables = model
    file = golden(f"rcg/mage_gen_cfg{cfg}")
    noise = {"token": file["in/cat_gumbel"], "confidence": file["in/conf_gumbel"]}
    generate = jax.jit(
        lambda v, rep: mage.generate(
            module,
            v,
            jax.random.key(0),
            rep,
            steps=len(file["out/mask_len"]),
            temperature=float(file["in/temperature"]),
            cfg_scale=float(file["in/cfg"]),
            noise=noise,
            trace=True,
        )
    )
    tokens, seen = generate(variables, file["out/rep"][:2])
    np.testing.assert_array_equal(mage.mask_lengths(256, 8), file["out/mask_len"][:, 0])
    np.testing.assert_array_equal(seen["ids"], file["out/input_ids"][:, :2, 1:])
    np.testing.assert_array_equal(seen["hide"], file["out/remask"])
    np.testing.assert_array_equal(tokens, file["out/final_ids"])
    known = np.isinf(file["out/selected_probs"])
    np.testing.assert_array_equal(np.isinf(seen["probability"]), known)
    image = jax.jit(lambda v, t: tokenizer[0].apply(v, t, method="decode_tokens"))(tokenizer[1], tokens)
    errors = {
        "raw_logits": relative(seen["raw_logits"][file["out/step_ids"]], file["out/raw_logits"]),
        "probabilities": relative(seen["probability"][~known], file["out/selected_probs"][~known]),
        "image": relative(np.moveaxis(image, -1, 1), file["out/image"]),
    }
    print(f"mage_gen_cfg{cfg}: ids and masks exact,", {k: f"{v:.1e}" for k, v in errors.items()})
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("cfg", [0, 3])
def test_noise_to_image(cfg, golden):
    """The whole chain out of the two published files, from the recorded draws: RDM with its EMA weights,
    MAGE, tokenizer."""
    file = golden(f"rcg/mage_gen_cfg{cfg}")
    heads = {"num_heads": 4, "decoder_num_heads": 5}
    network = {
        "rdm": published.convert("rcg.rdm", recorded(golden, name="mage_rdm"), "rdm"),
        "mage": published.convert("rcg.mage", recorded(golden), "mage", architecture=heads),
        "tokenizer": published.convert("rcg.vqgan", recorded(golden), "mage"),
    }
    modules = {name: published.CODE[about.kind].build(about.architecture) for name, about in network.items()}

    @jax.jit
    def chain(variables):
        noise = {"x_T": file["in/x_T"], "steps": file["in/rdm_noise"]}
        steps, key = int(file["in/rdm_steps"]), jax.random.key(0)
        rep = rdm.sample(modules["rdm"], variables["rdm"], key, 2, steps=steps, noise=noise)
        tokens = mage.generate(
            modules["mage"],
            variables["mage"],
            key,
            rep,
            steps=len(file["out/mask_len"]),
            temperature=float(file["in/temperature"]),
            cfg_scale=float(file["in/cfg"]),
            noise={"token": file["in/cat_gumbel"], "confidence": file["in/conf_gumbel"]},
        )
        image = modules["tokenizer"].apply(variables["tokenizer"], tokens, method="decode_tokens")
        return rep, tokens, image

    rep, tokens, image = chain({name: about.variables for name, about in network.items()})
    np.testing.assert_array_equal(tokens, file["out/final_ids"])
    errors = {
        "representation": relative(rep, file["out/rep"][:2]),
        "image": relative(np.moveaxis(image, -1, 1), file["out/image"]),
    }
    print(f"noise to image, cfg {cfg}: ids exact,", {k: f"{v:.1e}" for k, v in errors.items()})
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("letter, variant", [("b", "base"), ("l", "large")])
def test_weight_decay_falls_on_the_same_tensors(letter, variant, shared):
    path = shared / "reference" / "manifests" / f"rcg_mage_{letter}_wd_groups.json"
    groups = json.loads(path.read_text())
    like = published.abstract_variables("rcg.mage", mage.resolve({"variant": variant}))
    decays = traverse_util.flatten_dict(decay_mask(like["params"], "matrices"), sep="/")
    ours = {True: set(), False: set()}
    for rule in mage.rules({"variant": variant}):
        ours[decays[rule.ours.removeprefix("params/")]].add(rule.theirs)
    assert ours[False] == {name for name in groups["no_decay"] if not is_other(name)}
    assert ours[True] == {name for name in groups["decay"] if not is_other(name)}


@pytest.mark.parametrize("law", ["rcg", "mage"])
def test_mask_ratio_law(law, golden):
    file = golden("rcg/mask_ratio")
    lo, hi, mean, std = map(float, file[f"in/{law}_params"])
    module = mage.build(dict(mask_ratio_min=lo, mask_ratio_max=hi, mask_ratio_mean=mean, mask_ratio_std=std))
    got = mage.mask_ratio(module, jnp.linspace(0, 1, 101))
    error = relative(got, file[f"out/{law}_quantiles"])
    assert module.num_dropped == file[f"out/{law}_num_dropped"]
    draws = np.asarray(mage.mask_ratio(module, (jnp.arange(2**20) + 0.5) / 2**20))
    counts = np.bincount(np.ceil(256 * draws).astype(int), minlength=257) / 2**20
    error_p = np.abs(counts - file[f"out/{law}_num_masked_prob"]).max()
    moments = np.abs(np.array([draws.mean(), draws.std()]) - file[f"out/{law}_mean_std"]).max()
    print(f"mask_ratio {law}: quantiles {error:.1e}, counts {error_p:.1e}, mean and std {moments:.1e}")
    assert error < 1e-5 and error_p < 1e-5 and moments < 1e-5


@pytest.mark.parametrize("dim, grid", [(32, 4), (48, 16)])
def test_sincos_table(dim, grid, golden):
    want = golden("rcg/sincos")[f"out/mae_d{dim}_g{grid}"]
    error = np.abs(sincos_2d(dim, grid, rows_first=False) - want).max()
    print(f"sincos d{dim} g{grid}: {error:.1e}")
    assert error < 1e-6
