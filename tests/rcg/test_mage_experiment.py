"""MAGE as an experiment, on a chain of tiny untrained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.rcg.mage import get_config
from rcg import component, encoders, metrics, statistics
from rcg.data import ArraySource
from rcg.errors import UserError
from rcg.experiment import to_unit
from rcg.experiments import mage
from rcg.pixel import mage as painter
from rcg.pixel import vqgan
from tests.rcg import tiny_chain

SIZE = tiny_chain.SIZE
NAMES = ("encoder", "tokenizer", "rdm")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tiny_chain.build(tmp_path_factory.mktemp("chain"), only=NAMES)
    return {name: component.load(str(folder / name / "component")) for name in NAMES}


def settings(**model):
    config = get_config("variant=small,runlocal")
    config.model.update(num_tokens=16, codebook_size=16, rep_dim=tiny_chain.REP, **model)
    config.data.image_size = SIZE
    config.method.update(eval_samples=20, rdm_steps=2, mage_steps=2, cfg_scale=0.0)
    config.batch_size = 16
    return config


def make(chain, config):
    images = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 3), np.uint8)
    source = ArraySource(images, np.arange(24) % 3, ("a", "b", "c"))
    return mage.experiment(config, chain, lambda split: source)


def test_trains_shows_and_measures(chain):
    exp = make(chain, settings())
    frozen = {name: about.variables for name, about in chain.items()}
    params, extra = jax.jit(exp.init)(jax.random.key(0))
    batch = next(iter(exp.dataset("train", 16, 0, 0, 1)))
    batch = {name: jnp.asarray(batch[name]) for name in exp.batch_spec}

    def loss(params, frozen):
        return exp.loss(params, extra, frozen, batch, jax.random.key(1))[0]

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), allow_int=True)
    value, (grads, frozen_grads) = jax.jit(differentiate)(params, frozen)
    assert abs(value - np.log(16)) < 0.5
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not any(np.asarray(g).astype(bool).any() for g in jax.tree.leaves(frozen_grads))

    rows = jax.jit(exp.panels)(params, extra, frozen, batch, jax.random.key(2))
    assert set(rows) == {"image", "tokenizer", "generated 1", "generated 2"}
    for images in rows.values():
        assert images.shape == (16, SIZE, SIZE, 3) and 0 <= images.min() and images.max() <= 1
    assert (rows["generated 1"] != rows["generated 2"]).any()

    put = lambda b: jax.tree.map(jnp.asarray, b)  # noqa: E731
    results = exp.evaluate(params, extra, frozen, jax.random.key(0), put)
    distances = {"frechet_tokenizer", "frechet_oracle", "frechet_generated", "frechet_floor"}
    assert results.keys() == distances | {"masked_loss", "masked_accuracy"}
    assert all(np.isfinite(r["value"]) for r in results.values())
    assert results["frechet_generated"]["samples"] == 20 and results["frechet_floor"]["samples"] == 10
    assert results["masked_loss"]["samples"] == 24  # 20 were asked for, batches are whole
    assert 0 <= results["masked_accuracy"]["value"] <= 1 and abs(results["masked_loss"]["value"] - 2.77) < 0.5


class Classifying:
    """An encoder that also tells classes, as FID-Inception does."""

    name, metric = "class token", "frechet"

    def __init__(self, about):
        self.module = encoders.build(about.architecture)

    def __call__(self, variables, images):
        found = encoders.features(self.module, variables, images)
        return found, 3 * found[:, :5]


@pytest.fixture
def measured(chain, monkeypatch):
    """(config, exp, arguments of its evaluation but the last, `put`); no RDM: all is quickly drawn."""
    monkeypatch.setattr(mage.features, "extractor", lambda about, **options: Classifying(about))
    config = settings()
    parts = {name: chain[name] for name in ("encoder", "tokenizer")}
    exp = make(parts, config)
    params, extra = jax.jit(exp.init)(jax.random.key(0))
    frozen = {name: about.variables for name, about in parts.items()}
    return config, exp, (params, extra, frozen, jax.random.key(3), lambda b: jax.tree.map(jnp.asarray, b))


def test_sums_measure_what_all_features_at_once_do(chain, measured, tmp_path):
    config, exp, given = measured
    params, _, frozen, rng, put = given
    tokenizer = vqgan.build(chain["tokenizer"].architecture)
    encoder = encoders.build(chain["encoder"].architecture)
    module = painter.build(exp.architecture)
    extract = jax.jit(lambda images: Classifying(chain["encoder"])(frozen["encoder"], images))

    @jax.jit
    def draw(images, key):
        tokens = tokenizer.apply(frozen["tokenizer"], images, method="tokenize")
        cond = encoders.represent(encoder, frozen["encoder"], images)
        options = dict(num=16, steps=2, temperature=config.method.temperature)
        drawn = painter.generate(module, {"params": params}, key, cond, **options)
        decode = lambda t: tokenizer.apply(frozen["tokenizer"], t, method="decode_tokens")  # noqa: E731
        return {"tokenizer": jnp.clip(decode(tokens), 0, 1), "oracle": jnp.clip(decode(drawn), 0, 1)}

    found = {name: [] for name in ("real", "tokenizer", "oracle")}
    for i, batch in enumerate(exp.dataset("eval", 16, 0, 0, 1)):
        images = to_unit(jnp.asarray(batch["image"]))
        for name, made in ({"real": images} | draw(images, jax.random.fold_in(rng, i))).items():
            found[name].append([np.asarray(x)[batch["mask"] > 0] for x in extract(made)])
    found = {k: [np.concatenate(x)[:20] for x in zip(*parts, strict=True)] for k, parts in found.items()}

    def distance(a, b):
        return metrics.frechet_distance(*metrics.gaussian(a), *metrics.gaussian(b))

    real = found["real"][0]
    want = {f"frechet_{k}": distance(real, found[k][0]) for k in ("tokenizer", "oracle")}
    want["frechet_floor"] = distance(real[::2], real[1::2])
    want |= {f"inception_score_{k}": metrics.inception_score(logits)[0] for k, (_, logits) in found.items()}
    results = exp.evaluate(*given)
    for name, value in want.items():
        error = abs(results[name]["value"] / value - 1)
        print(f"{name}: {value:.6g}, off by {error:.1e}")
        assert error < 1e-6 and value > 0.01
    assert results.keys() == want.keys() | {"masked_loss", "masked_accuracy"}
    assert results["inception_score_real"]["samples"] == 20

    # statistics from a file, in place of the eval split's
    others = np.random.default_rng(0).normal(size=(50, 16))
    reference = str(tmp_path / "others.npz")
    statistics.save(reference, *metrics.gaussian(others), 50, Classifying.name)
    config.method.update(reference=reference, eval_ways="oracle")
    against = exp.evaluate(*given)
    got = against["frechet_oracle"]
    assert got["value"] == pytest.approx(distance(others, found["oracle"][0]), rel=1e-6)
    assert (got["reference"], got["reference_samples"], got["samples"]) == ("others.npz", 50, 20)
    assert against["frechet_floor"] == results["frechet_floor"]
    statistics.save(reference, *metrics.gaussian(others), 50, "FID-Inception")
    with pytest.raises(UserError, match="are of FID-Inception, not of class token"):
        exp.evaluate(*given)


def test_an_evaluation_cut_off_goes_on(measured, tmp_path, monkeypatch):
    config, exp, given = measured
    config.batch_size = 8  # three batches
    config.method.update(eval_samples=24, eval_ways="tokenizer")
    *arguments, put = given
    whole, partial = exp.evaluate(*given), str(tmp_path / "sums.npz")
    monkeypatch.setattr(mage, "SAVE_EVERY", 1)
    placed = []

    def fails(batch):
        placed.append(batch)
        if len(placed) == 3:
            raise KeyboardInterrupt
        return put(batch)

    with pytest.raises(KeyboardInterrupt):
        exp.evaluate(*arguments, fails, partial=partial)
    del placed[2:]
    assert exp.evaluate(*arguments, lambda b: placed.append(b) or put(b), partial=partial) == whole
    assert len(placed) == 3  # the last batch alone came again


@pytest.mark.parametrize(
    "model, message",
    [
        (dict(num_tokens=64), f"num_tokens is 64, but the tokenizer makes of {SIZE} px 16"),
        (dict(rep_dim=9), "rep_dim is 9"),
    ],
)
def test_components_that_do_not_fit(chain, model, message):
    config = settings()
    config.model.update(**model)
    with pytest.raises(UserError, match=message):
        make(chain, config)


@pytest.mark.parametrize(
    "section, fields, says",
    [
        ("model", {"variant": "larg"}, 'variant "larg" is not one of'),
        ("model", {"conditioning": "rep"}, 'conditioning "rep" is not one of'),
        ("method", {"mage_steps": 0}, r"mage_steps 0 is not in 1\.\."),
        ("method", {"rdm_steps": 0}, "steps"),
        ("method", {"ddim_end": "cleen"}, 'DDIM end "cleen" is not one of'),
    ],
)
def test_settings_are_looked_at_before_training(chain, section, fields, says):
    config = settings()
    config[section].update(fields)
    with pytest.raises(UserError, match=says):
        make(chain, config)


def test_missing_and_wrong_components(chain):
    with pytest.raises(UserError, match="needs the component tokenizer"):
        make({"encoder": chain["encoder"]}, settings())
    with pytest.raises(UserError, match=r"is a rcg\.encoder component"):
        make(chain | {"tokenizer": chain["encoder"]}, settings())


def test_too_few_classes(chain):
    exp = make(chain, settings(conditioning="class", num_classes=2))
    with pytest.raises(UserError, match="num_classes is 2, but the images have 3 classes"):
        exp.dataset("train", 16, 0, 0, 1)


@pytest.mark.parametrize("variant, batch, rate", [("base", 4096, 2.4e-3), ("large", 4096, 2.4e-3)])
def test_paper_recipe(variant, batch, rate):
    """Tables 9 and 10."""
    config = get_config(f"variant={variant},epochs=800")
    assert config.batch_size == batch and config.total_steps == 800 * 312
    assert config.optimizer.warmup_steps == 10 * 312
    np.testing.assert_allclose(config.optimizer.learning_rate, rate)
