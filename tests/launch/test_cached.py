"""Training from what was computed of the images beforehand is training on the images."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chef_fusion.kitchen import KitchenSource
from configs.chef_fusion import stable_diffusion as sd_config
from configs.rcg import mage as mage_config
from configs.rcg import rdm as rdm_config
from launch import prepare
from launch.runtime.setup import prepare as prepare_setup
from launch.train import train
from rcg import cache, component
from rcg.data import encoded
from rcg.data.pipeline import training_loader
from rcg.errors import UserError
from tests.chef_fusion import tiny_kitchen
from tests.rcg import tiny_chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return tiny_chain.build(tmp_path_factory.mktemp("chain"), only=("encoder", "tokenizer"))


def common(c, size=16):
    c.data.update(image_size=size, num_records=64, augment="flip")
    c.total_steps, c.log_steps, c.panel_steps = 8, 1, -1
    c.batch_size, c.checkpoint_steps = 16, 100
    return c


def rdm(chain, tmp_path):
    c = common(rdm_config.get_config("runlocal"))
    c.data.source = "kitchen"
    c.components.encoder = str(chain / "encoder/component")
    c.model.channels = tiny_chain.REP
    return c


def mage(chain, tmp_path):
    c = common(mage_config.get_config("runlocal"))
    c.data.source = "kitchen"
    c.components.update({name: str(chain / f"{name}/component") for name in ("encoder", "tokenizer")})
    c.model.update(variant="tiny", num_tokens=64, codebook_size=16, rep_dim=tiny_chain.REP)
    return c


def diffusion(chain, tmp_path):
    parts = tiny_kitchen.build(tmp_path / "parts")
    held = component.load(parts["stable_diffusion"])
    variables = {"params": jax.device_get(held.variables["params"]["vae"])}
    architecture = held.architecture["vae"]
    only = dataclasses.replace(held, kind="vae", architecture=architecture, variables=variables, tokenizer="")
    component.save(str(tmp_path / "vae"), only)
    c = common(sd_config.get_config("runlocal"), tiny_kitchen.SIZE)
    c.data.source = "recipes_kitchen"
    c.model.update(block_out_channels=(8, 8), attention_blocks=(True, False), cross_attention_dim=16)
    c.model.update(attention_head_dim=2, norm_num_groups=4)
    c.components.update(clip=parts["vision"], vae=str(tmp_path / "vae"))
    return c


def metrics(config, workdir):
    assert train(config, str(workdir)) == 0
    return [json.loads(line) for line in (workdir / "metrics/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("make", [mage, diffusion])
def test_a_loss_takes_what_was_made_of_images_for_them(make, chain, tmp_path):
    setup = prepare_setup(make(chain, tmp_path))
    experiment, frozen = setup.experiment, setup.load_frozen()
    batch = setup.place_inputs(next(iter(experiment.dataset("train", 16, 0, 0, 1))))
    params, extra = jax.jit(experiment.init)(jax.random.key(0))
    made = jax.jit(experiment.encode)(frozen, batch)

    def loss(batch):
        return jax.jit(experiment.loss)(params, extra, frozen, batch, jax.random.key(1))[0]

    given = {name: batch[name] for name in batch if name != "image"} | made
    assert loss(given) == pytest.approx(float(loss(batch)), rel=1e-5)


def test_the_same_losses(chain, tmp_path, monkeypatch):
    config = rdm(chain, tmp_path)
    on_images = metrics(config.copy_and_resolve_references(), tmp_path / "images")
    prepare.prepare(config.copy_and_resolve_references(), str(tmp_path / "cache"))
    config.data.cache = str(tmp_path / "cache")
    monkeypatch.setattr(KitchenSource, "__getitem__", drawn_only_for_evaluation(KitchenSource.__getitem__))
    from_cache = metrics(config, tmp_path / "cached")
    assert not (tmp_path / "images/panels").exists()  # panel_steps is -1
    for one, other in zip(on_images, from_cache, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), one["step"]
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def drawn_only_for_evaluation(draw):
    """Of the training split only the few records that a cache is known by may be drawn."""
    seen = set()

    def counted(self, index):
        if len(self) == 64:
            seen.add(index)
            assert len(seen) <= encoded.PROBES
        return draw(self, index)

    return counted


def test_a_cache_of_something_else_is_refused(chain, tmp_path):
    config = rdm(chain, tmp_path)
    folder = str(tmp_path / "cache")
    prepare.prepare(config.copy_and_resolve_references(), folder)

    def refused(says, **changes):
        other = config.copy_and_resolve_references()
        other.data.cache = folder
        other.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=says):
            train(other, str(tmp_path / says))

    changed = component.load(str(chain / "encoder/component"))
    variables = jax.tree.map(lambda x: np.asarray(x) * 2, changed.variables)
    component.save(str(tmp_path / "other"), dataclasses.replace(changed, variables=variables))
    refused("component encoder of train differ", **{"components.encoder": str(tmp_path / "other")})
    refused("augment of train differ", **{"data.augment": "none"})
    refused("records, images of train differ", **{"data.num_records": 63})
    refused("dtype of train differ", **{"compute.dtype": "bfloat16"})
    refused("holds no cache of the split train", **{"data.cache": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nothing that is computed beforehand"):
        from configs.rcg import vqgan

        prepare.prepare(common(vqgan.get_config("runlocal")), folder)


def test_random_crops_are_kept_as_views(chain, tmp_path):
    config = rdm(chain, tmp_path)
    config.data.update(augment="random_crop_flip", resize=24)
    with pytest.raises(UserError, match="--views=4"):
        prepare.prepare(config.copy_and_resolve_references(), str(tmp_path / "cache"))
    prepare.prepare(config.copy_and_resolve_references(), str(tmp_path / "cache"), views=3)
    held = cache.open_arrays(str(tmp_path / "cache"), "train", {})
    assert held["representation"].shape == (64, 3, tiny_chain.REP) and held["label"].shape == (64,)
    spread = held["representation"].std(axis=1).mean()
    assert spread > 1e-3  # crops differ
    config.data.cache = str(tmp_path / "cache")
    assert metrics(config, tmp_path / "run")[-1]["step"] == 8


def test_views_are_drawn_as_the_augmentation_is():
    data = mage_config.get_config("runlocal").data
    data.update(augment="flip", image_size=8, resize=0)
    _, transform = training_loader(None, data)
    assert encoded.num_views(transform, 0) == 2
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for draw in (0.0, 0.3, 0.5, 0.9):
        draws = np.array([0.1, 0.2, draw])
        view = encoded.view_of(transform, 2, draws)
        made = transform.finish(image, encoded.draws_of(transform, 0, 5, view))
        assert np.array_equal(made, transform.finish(image, draws))


def test_damage_is_found_and_mended(tmp_path):
    calls = []

    def compute(numbers):
        calls.append(numbers)
        return {"x": np.array([[n, n] for n in numbers], np.float32)}

    def write():
        cache.write(str(tmp_path), "train", {"of": "this"}, {"x": ((2,), np.float32)}, 10, compute, 4)

    write()
    assert len(calls) == 3
    write()  # undamaged: nothing to do
    assert len(calls) == 3
    file = tmp_path / "train.x.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    write()
    assert len(calls) == 6
    assert (cache.open_arrays(str(tmp_path), "train", {"of": "this"})["x"][:, 0] == np.arange(10)).all()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="can't be read"):
        cache.open_arrays(str(tmp_path), "train", {})
    with pytest.raises(UserError, match=r"of other data \(of of train differ\)"):
        write()
        cache.open_arrays(str(tmp_path), "train", {"of": "that"})


def test_a_cache_stays_until_the_next_is_whole_and_has_one_writer(tmp_path):
    folder, spec = str(tmp_path), {"x": ((), np.float32)}

    def rows(value, stop=False):
        def compute(numbers):
            if stop:
                raise KeyboardInterrupt
            return {"x": np.full(len(numbers), value, np.float32)}

        return compute

    cache.write(folder, "train", {"of": 1}, spec, 10, rows(1))
    with pytest.raises(KeyboardInterrupt):
        cache.write(folder, "train", {"of": 2}, spec, 10, rows(2, stop=True))
    assert cache.open_arrays(folder, "train", {"of": 1})["x"].tolist() == [1] * 10
    with cache.alone(folder), pytest.raises(UserError, match="another process is writing to"):
        cache.write(folder, "train", {"of": 2}, spec, 10, rows(2))
    cache.write(folder, "train", {"of": 2}, spec, 10, rows(2))
    assert cache.open_arrays(folder, "train", {"of": 2})["x"].tolist() == [2] * 10
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write to"):
        cache.write(str(tmp_path / "file"), "train", {}, spec, 10, rows(1))
