"""The judge of pictures, and RCG as the chef's second image decoder."""

import functools
import json
import shutil
import warnings
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rcg
from chef_fusion import generate, judge, kitchen_scores, kitchen_sets, tasks
from chef_fusion import model as chef
from chef_fusion.kitchen import partition
from chef_fusion.kitchen.talk import change
from configs.chef_fusion import judge as judge_config
from configs.chef_fusion import recipe_rdm as rdm_config
from launch import evaluate, report, sample
from launch.runtime import chef_report, gallery
from launch.runtime.images import grid, save_png
from launch.train import train
from rcg import component, rdm
from rcg.errors import MismatchWarning, UserError
from tests.chef_fusion import tiny_kitchen
from tests.chef_fusion.test_joints import joints, kitchen
from tests.rcg import tiny_chain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that a pipeline's folder may hold: ChefFusion, RCG, the RDM between them, a judge."""
    path = tmp_path_factory.mktemp("all")
    parts = tiny_kitchen.build(path)
    tiny_chain.build(path, rdms=())
    c = kitchen(rdm_config.get_config("runlocal"))
    c.components.update(encoder=str(path / "encoder/component"), stable_diffusion=parts["stable_diffusion"])
    c.total_steps, c.log_steps, c.optimizer.learning_rate = 30, 10, 1e-3
    c.model.update(width=16, bottleneck=16)
    assert train(c, str(path / "recipe_rdm")) == 0
    c = kitchen(judge_config.get_config("runlocal"))
    c.total_steps, c.log_steps, c.optimizer.learning_rate = 90, 10, 1e-2
    assert train(c, str(path / "judge")) == 0
    return path


def lines(workdir):
    with open(workdir / "metrics/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def test_a_judge_that_begins_at_half_the_resolution():
    fields = {"image_size": 16, "bases": ("a", "b"), "ingredients": ("c",), "widths": (8, 16)}
    sizes = {}
    for half in (False, True):
        module = judge.build(fields | {"begin_at_half": half})
        variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        run = functools.partial(module.apply, capture_intermediates=True)
        (kinds, present), seen = jax.eval_shape(run, variables, jnp.zeros((3, 16, 16, 3)))
        assert kinds.shape == (3, 2) and present.shape == (3, 1)
        sizes[half] = [seen["intermediates"][f"conv_{i}"]["__call__"][0].shape[1] for i in range(2)]
    assert sizes == {False: [16, 8], True: [8, 4]}


def test_the_judge_learns(folder):
    found = lines(folder / "judge")
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    evaluate.main(["evaluate", f"--workdir={folder / 'judge'}"])
    results = json.loads((folder / "judge/results.json").read_text())
    assert {"base_accuracy", "ingredient_f1"} <= set(results)
    held = component.load(str(folder / "judge/component"), "chef_fusion.judge")
    module = judge.build(held.architecture)
    photos = [tiny_kitchen.photo(i) for i in range(3)]
    bases, names = judge.opinions(module, held.variables, photos, batch_size=2)
    alone = judge.opinions(module, held.variables, [photos[2] / 255.0], batch_size=4)
    assert (bases[2], names[2]) == (alone[0][0], alone[1][0])
    assert set(bases) <= set(module.bases) and all(n <= set(module.ingredients) for n in names)


def test_rcg_paints_for_the_chef(folder, tmp_path, monkeypatch):
    assert lines(folder / "recipe_rdm")[-1]["loss"] < lines(folder / "recipe_rdm")[0]["loss"]
    evaluate.main(["evaluate", f"--workdir={folder / 'recipe_rdm'}"])
    results = json.loads((folder / "recipe_rdm/results.json").read_text())
    assert -1 <= results["rdm_cosine"]["value"] <= 1 and results["rdm_frechet"]["value"] > 0
    paths = {name: str(folder / name) for name in generate.KINDS}
    loaded = generate.load(paths, image_decoder="rcg", rcg=str(folder))
    assert loaded.sd is None and loaded.paints
    ask = [{"role": "user", "content": "This is food title: Apple Pie"}]
    settings = tasks.Settings(max_words=4, rcg={"mage_steps": 2, "rdm_steps": 5})
    one, again, other = (
        tasks.reply(loaded, ask, jax.random.key(seed), task="t2i", settings=settings)["content"][-1]
        for seed in (0, 0, 1)
    )
    assert one.dtype == np.uint8 and one.shape == (8, 8, 3)
    # what it is told counts, though not for pictures after so little training: weights at random show it
    told = generate.text_states(generate.load(paths), ["soup: noodles", "pizza: basil, ham, olives"])
    heard = []
    with monkeypatch.context() as patched:
        watched = lambda model, key, conditions, **unused: heard.append(conditions) or jnp.zeros(1)  # noqa: E731
        patched.setattr(generate.chain, "generate_from", watched)
        generate.paint_rcg(loaded, None, jax.random.key(0), embeddings=told)
    rng, module = np.random.default_rng(0), loaded.rcg.rdm.module
    variables = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape), loaded.rcg.rdm.variables)
    conditions = np.asarray(heard[0])
    made, same = (
        rdm.sample(module, variables, jax.random.key(0), 2, labels=c, steps=5)
        for c in (conditions, conditions[[0, 0]])
    )
    np.testing.assert_allclose(made[0], same[0], atol=1e-5)
    assert np.abs(made[1] - same[1]).max() > 1e-3

    def learnt_from(of, place, other, digest):
        """A copy of a component that says which other one it was trained on."""
        copied = tmp_path / f"{of}_{digest[0]}"
        shutil.copytree(place, copied)
        about = json.loads((copied / "component.json").read_text())
        about["provenance"] = {"components": {other: digest}}
        (copied / "component.json").write_text(json.dumps(about))
        return str(copied)

    places = {"rdm": folder / "recipe_rdm/component", "mage": folder / "mage/component"}
    for who, place, other in (
        ("mage", places["mage"], "encoder"),
        ("joints", paths["joints"], "stable_diffusion"),
    ):
        for digest in ("0" * 64, "1" * 64):
            strange = learnt_from(who, place, other, digest)
            painter = {name: str(path) for name, path in places.items()} | {who: strange}
            painter["rdm"] = learnt_from(f"rdm_for_{who}_{digest[0]}", places["rdm"], other, "0" * 64)
            painter["tokenizer"] = str(folder / "tokenizer/component")
            joined = paths | {"joints": painter.pop("joints", paths["joints"])}
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", MismatchWarning)
                generate.load(joined, image_decoder="rcg", rcg=painter)
            told = [str(w.message) for w in caught if w.category is MismatchWarning]
            assert len(told) == (digest[0] == "1") and all(f"trained on another {other}" in t for t in told)
    with pytest.raises(UserError, match="load with image_decoder=rcg"):
        generate.paint_rcg(generate.load(paths, images=False), np.zeros((1, 3, 16)), jax.random.key(0))
    plain = tiny_chain.build(tmp_path / "plain")
    with pytest.raises(UserError, match="holds no RDM that was trained on recipes"):
        generate.load(paths, image_decoder="rcg", rcg=str(plain))
    with pytest.raises(UserError, match="needs the folder of RCG's networks"):
        generate.load(paths, image_decoder="rcg")

    out = tmp_path / "out"
    argv = ["sample", "--task=t2i", "--prompt=This is food title: Apple Pie", "--image_decoder=rcg"]
    argv += [f"--components.{name}={path}" for name, path in paths.items()]
    argv += [f"--rcg={folder}", f"--out={out}", "--max_words=4", "--mage_steps=2"]
    assert sample.main(argv) in (0, None)
    assert (out / "picture_00.png").exists()


def test_both_painters_are_scored(folder, tmp_path, monkeypatch):
    talking = []  # who paints in conversations: Stable Diffusion alone, as the table's "ChefFusion"

    def watched(answer):
        return lambda asked, *rest, **options: talking.append(asked.rcg) or answer(asked, *rest, **options)

    monkeypatch.setattr(kitchen_scores.tasks, "reply_all", watched(tasks.reply_all))
    monkeypatch.setattr(gallery.tasks, "reply", watched(tasks.reply))
    c = joints({name: str(folder / name) for name in generate.KINDS}, total_steps=1)
    c.data.source = "kitchen_talk"
    c.data.max_tokens = 150
    c.components.update(judge=str(folder / "judge/component"), rdm=str(folder / "recipe_rdm/component"))
    c.components.update(mage=str(folder / "mage/component"))
    c.components.update(tokenizer=str(folder / "tokenizer/component"))
    c.method.update(eval_samples=4, eval_words=8, sample_steps=2, rcg_mage_steps=2)
    assert train(c, str(tmp_path / "joints")) == 0
    evaluate.main(["evaluate", f"--workdir={tmp_path / 'joints'}"])
    results = json.loads((tmp_path / "joints/results.json").read_text())
    for prefix in ("i2t", "retrieval", "random"):
        for name in ("sacrebleu", "sacrebleu_as_published", "rouge2", "ingredient_f1", "base_accuracy"):
            assert results[f"{prefix}_{name}"]["samples"] == 4
    for name in ("t2i", "sd", "target", "rcg", "random"):
        assert -1 <= results[f"{name}_clip_similarity"]["value"] <= 1
    assert results["i2t_perplexity"]["value"] == pytest.approx(np.exp(results["l_r"]["value"]))
    assert results["random_perplexity"]["value"] != results["i2t_perplexity"]["value"]
    assert set(chef.Recipe._fields) <= set(c.method.keys())  # every choice is a field of the config
    for name in ("t2i", "sd", "target", "rcg", "random", "real"):
        assert 0 <= results[f"{name}_picture_base_accuracy"]["value"] <= 1
        assert 0 <= results[f"{name}_picture_ingredient_f1"]["value"] <= 1
    for name in ("i2t_base_accuracy", "decision_accuracy", "picture_where_wanted", "picture_where_not"):
        assert 0 <= results[name]["value"] <= 1
    for name in ("first", "recipe", "picture", "both", "unchanged"):
        assert results[f"dialogue_{name}"]["samples"] == 4
    of_pictures = ("true_dialogue_picture", "target_dialogue_picture")
    for name in ("unchanged_dialogue_both", "random_dialogue_both", *of_pictures):
        assert 0 <= results[name]["value"] <= 1
    assert results["decision_accuracy"]["samples"] == 8
    assert results["chance_decision_accuracy"]["value"] == 0.5
    for name in ("it2t_right", "random_it2t_right", "it2t_pictureless", "dialogue_pictured"):
        assert 0 <= results[name]["value"] <= 1 and results[name]["samples"] == 4
    assert results["rcg_images_per_second"]["value"] > 0
    trained = {name: results[f"{name}_trained_parameters"]["value"] for name in ("sd", "t2i", "rcg")}
    assert trained["sd"] == 0 < trained["t2i"] < trained["rcg"]
    page = chef_report.tables(results, "joints/results.json")
    assert "word of a classifier" in page and "second wish" in page and "split test" not in page
    plain = {name: results[name] for name in ("t2i_clip_similarity", "decision_accuracy")}
    on_test = {"test/t2i_clip_similarity": {"value": 0.8765, "samples": 7}}
    unjudged = chef_report.tables(plain | on_test, "joints/results.json")
    assert "word of a classifier" not in unjudged and "second wish" not in unjudged
    assert "Pictures from recipes, split test" in unjudged and "0.8765" in unjudged.split("split test")[1]
    assert "RCG" in page and "nearest training photo" in page and "second recipe right" in page

    gallery.make(str(tmp_path / "joints"), c, str(tmp_path / "gallery"), 2)
    made = json.loads((tmp_path / "gallery/gallery.json").read_text())
    assert [len(made[name]) for name in ("photos", "pictures", "dialogues")] == [2, 2, 2]
    assert set(made["pictures"][0]["images"]) == {
        "photo",
        "ChefFusion",
        "Stable Diffusion by target text",
        "ChefFusion by RCG",
    }
    files = [file for one in made["pictures"] for file in one["images"].values()]
    assert all((tmp_path / "gallery" / file).exists() for file in files)
    held_out = kitchen_sets.open_recipes(c.data, "eval")
    asked = {message["text"] for talk in made["dialogues"] for message in talk[2:3]}
    for i in range(held_out.num_recipes):  # a second wish stays among the dishes that were held out
        dish = held_out.dish(i)
        own = partition(dish)
        changed = change(dish, Random(f"gallery/{i}"), lambda d, own=own: partition(d) == own)
        asked -= {changed.said} if changed else set()
    assert not asked
    assert len(talking) > 2 and all(rcg is None for rcg in talking)
    page = chef_report.gallery(str(tmp_path / "gallery"), report.figure)
    assert page.count("data:image/png") >= 2 + 2 * 4 and "Talking" in page


def test_pictures_of_kinds_of_dish_are_judged(folder, tmp_path, monkeypatch):
    """All of them; a few of each kind are shown, a row a kind."""
    monkeypatch.setattr(gallery, "SHOWN", 1)
    chain = tiny_chain.build(tmp_path / "chain", rdms=("rdm_class",))
    gallery.classes(str(chain), str(folder / "judge"), str(tmp_path / "out"), 2, mage_steps=2, rdm_steps=5)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["class_picture_base_accuracy"]["samples"] == 2 * tiny_chain.CLASSES
    model, labels = rcg.load(str(chain), class_conditional=True), np.repeat(np.arange(tiny_chain.CLASSES), 2)
    made = rcg.generate(model, jax.random.key(0), len(labels), labels, mage_steps=2, rdm_steps=5)
    save_png(str(tmp_path / "expected.png"), grid(np.asarray(made)[::2], 1))
    assert (tmp_path / "out/grid.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
