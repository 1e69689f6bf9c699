"""The chain: what it makes, what it refuses, what it depends on."""

import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rcg
from rcg import encoders, rdm
from rcg.errors import MismatchWarning, UserError
from rcg.generate import find, generate_batches, image_size, load
from rcg.pixel import mage
from tests.rcg import tiny_chain

FEW = {"rdm_steps": 5, "mage_steps": 3}
make = functools.partial(rcg.generate, **FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_chain.build(tmp_path_factory.mktemp("chain"), rdms=("rdm", "rdm_class"))


@pytest.fixture(scope="module")
def model(folder):
    return rcg.load(str(folder), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def test_generate_is_a_function_of_its_key(model):
    images = make(model, jax.random.key(0), 4)
    assert images.shape == (4, 8, 8, 3) and images.dtype == jnp.float32
    assert image_size(model) == tiny_chain.SIZE == 8
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    np.testing.assert_array_equal(images, make(model, jax.random.key(0), 4))
    assert np.abs(images - make(model, jax.random.key(1), 4)).max() > 1e-3
    assert np.abs(images[0] - images[1]).max() > 1e-3


def test_generate_is_the_parts_in_a_row(model):
    key = jax.random.key(3)
    _, batch_key = jax.random.split(key)
    rdm_key, mage_key = jax.random.split(jax.random.fold_in(batch_key, 0))
    cond = rdm.sample(model.rdm.module, model.rdm.variables, rdm_key, 4, steps=5, eta=0.5)
    options = {"steps": 3, "temperature": 2.0, "cfg_scale": 1.5}
    ids = mage.generate(model.mage.module, model.mage.variables, mage_key, cond, **options)
    want = model.tokenizer.module.apply(model.tokenizer.variables, ids, method="decode_tokens").clip(0, 1)
    settings = {"rdm_steps": 5, "eta": 0.5, "mage_steps": 3, "temperature": 2.0, "cfg_scale": 1.5}
    np.testing.assert_allclose(rcg.generate(model, key, 4, **settings), want, atol=1e-5)


def test_batches_have_one_shape_and_the_right_count(model):
    from rcg import generate as module

    module._generate.clear_cache()
    parts = list(generate_batches(model, jax.random.key(0), 10, batch_size=4, **FEW))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert module._generate._cache_size() == 1
    assert np.abs(parts[0] - parts[1]).max() > 1e-3


def test_devices_do_not_matter(folder, model):
    a, b = (make(m, jax.random.key(5), 8) for m in (rcg.load(str(folder)), model))
    assert len(a.sharding.device_set) == 8 and len(b.sharding.device_set) == 1
    a, b = np.asarray(a), np.asarray(b)
    print(f"8 devices against 1: {np.abs(a - b).max():.1e}")
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_labels(folder):
    model = load(str(folder), class_conditional=True, devices=jax.devices()[:1])
    assert model.rdm.module.num_classes == tiny_chain.CLASSES
    a = make(model, jax.random.key(0), 3, labels=[0, 1, 2], cfg_scale=0.0)
    b = make(model, jax.random.key(0), 3, labels=[0, 2, 2], cfg_scale=0.0)
    np.testing.assert_array_equal(a[::2], b[::2])
    assert np.abs(a[1] - b[1]).max() > 1e-4
    assert make(model, jax.random.key(0), 3).shape == a.shape  # draws labels itself
    for labels in ([0, 1], [0, 1, 3], [-1, 0, 0]):
        with pytest.raises(UserError, match="labels"):
            make(model, jax.random.key(0), 3, labels=labels)


def test_reconstruct_paints_the_images_own_representation(model, pictures):
    key = jax.random.key(2)
    made = rcg.reconstruct(model, key, pictures, 2, mage_steps=3)
    assert made.shape == (2, 2, 8, 8, 3)
    cond = encoders.represent(model.encoder.module, model.encoder.variables, pictures / np.float32(255))
    np.testing.assert_allclose(rcg.represent(model, pictures), cond, atol=1e-5)
    want = rcg.paint(model, key, np.repeat(cond, 2, axis=0), mage_steps=3)
    np.testing.assert_allclose(made.reshape(want.shape), want, atol=1e-5)
    np.testing.assert_array_equal(
        made, rcg.reconstruct(model, key, pictures / np.float32(255), 2, mage_steps=3)
    )


def test_interpolate(model, pictures):
    key = jax.random.key(2)
    line = rcg.interpolate(model, key, *pictures, 4, mage_steps=3)
    assert line.shape == (4, 8, 8, 3)
    ends = np.repeat(rcg.represent(model, pictures), 2, axis=0)
    ends = rcg.paint(model, key, ends, same_noise=True, mage_steps=3)
    np.testing.assert_allclose(line[::3], ends[::3], atol=1e-5)
    assert np.abs(ends[1] - ends[2]).max() > 1e-3
    # the draws are the same for all: between an image and itself nothing changes
    still = rcg.interpolate(model, key, pictures[0], pictures[0], 4, mage_steps=3)
    assert np.abs(still - still[:1]).max() < 1e-6
    again = rcg.interpolate(model, key, *pictures, 4, mage_steps=3, standardise=True)
    np.testing.assert_allclose(again[0], line[0], atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rdm_steps": 300}, "250 or 500"),
        ({"eta": 2.0}, "eta"),
        ({"mage_steps": 17}, "mage_steps"),
        ({"cfg_scale": -1.0}, "cfg_scale"),
        ({"labels": [0, 0]}, "no classes"),
    ],
)
def test_bad_settings_are_refused(model, settings, message):
    with pytest.raises(UserError, match=message):
        rcg.generate(model, jax.random.key(0), 2, **(FEW | settings))


def test_missing_networks(folder, pictures):
    paths = find(str(folder))
    model = rcg.load({name: paths[name] for name in ("tokenizer", "mage")})
    with pytest.raises(UserError, match="needs the rdm"):
        make(model, jax.random.key(0), 2)
    with pytest.raises(UserError, match="encoder"):
        rcg.reconstruct(model, jax.random.key(0), pictures)
    with pytest.raises(UserError, match="no mage"):
        rcg.load({"tokenizer": paths["tokenizer"]})
    with pytest.raises(UserError, match="unknown components"):
        rcg.load(paths | {"painter": paths["mage"]})
    with pytest.raises(UserError, match="needed here"):
        rcg.load(paths | {"mage": paths["rdm"]})
    with pytest.raises(UserError, match="no folder"):
        rcg.load(str(folder / "nothing"))


def test_networks_that_do_not_fit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_chain, "RDM", tiny_chain.RDM | {"channels": 12})
    monkeypatch.setattr(tiny_chain, "REP", 12)
    monkeypatch.setattr(tiny_chain, "ENCODER", tiny_chain.ENCODER | {"head_out": 12})
    other = tiny_chain.build(tmp_path / "other", rdms=("rdm",), only=("rdm",))
    paths = find(str(folder)) | {"rdm": str(other / "rdm/component")}
    with pytest.raises(UserError, match="rep_dim 8, but rdm 12"):
        rcg.load(paths)


def test_a_retrained_encoder_is_noticed(folder, tmp_path):
    paths = find(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rcg.load(paths)
    copy = tmp_path / "rdm"
    copy.mkdir()
    (copy / "params").symlink_to(folder / "rdm/component/params")
    about = json.loads((folder / "rdm/component/component.json").read_text())
    about["provenance"] = {"components": {"encoder": "0" * 64}}
    (copy / "component.json").write_text(json.dumps(about))
    with pytest.warns(MismatchWarning, match="another encoder"):
        rcg.load(paths | {"rdm": str(copy)})


def test_inputs_of_another_shape_are_refused(model, pictures):
    key = jax.random.key(0)
    for shape in ((tiny_chain.REP,), (2, tiny_chain.REP + 1), (0, tiny_chain.REP)):
        with pytest.raises(UserError, match="representations have shape"):
            rcg.paint(model, key, np.zeros(shape, np.float32), mage_steps=3)
    for images in (pictures.astype(np.int64), pictures[:0]):
        with pytest.raises(UserError, match="expected some, uint8 or float"):
            rcg.represent(model, images)
    other = model._replace(rdm=model.rdm._replace(module=model.rdm.module.clone(condition_dim=4)))
    with pytest.raises(UserError, match="this RDM is told recipes"):
        make(other, key, 2)


def test_representations_do_not_depend_on_the_batch(model, pictures, monkeypatch):
    many = np.concatenate([pictures, 255 - pictures, pictures[::-1]])
    whole = rcg.represent(model, many)
    monkeypatch.setattr("rcg.generate.BATCH", 4)
    np.testing.assert_allclose(rcg.represent(model, many), whole, atol=1e-5)
