"""The whole chain in its tiniest form: train, measure, sample, report; then nothing is left to do."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from ml_collections import ConfigDict

from configs.pipeline import stage
from launch.evaluate import saved_config
from launch.pipeline import Record, pipeline, run_stage, set_fields, stage_config
from launch.runtime import cli
from rcg import component
from rcg.errors import UserError
from tests.launch import several

FROZEN = {"encoder": "encoder", "tokenizer": "tokenizer"}


def tiny() -> ConfigDict:
    c = ConfigDict({"name": "tiny", "title": "Tiny", "description": "A test.", "path": ""})
    c.order = ("encoder", "tokenizer", "codes", "rdm", "mage")
    c.stages = ConfigDict()
    options = {"batch_size": 16, "compute__attention": "einsum"}
    c.stages.encoder = stage("Encoder", "configs/rcg/moco_v3.py:runlocal", evaluate=False, **options)
    c.stages.tokenizer = stage("Tokenizer", "configs/rcg/vqgan.py:variant=small,runlocal", **options)
    c.stages.rdm = stage("RDM", "configs/rcg/rdm.py:runlocal", {"encoder": "encoder"}, **options)
    mage = "configs/rcg/mage.py:runlocal"
    c.stages.codes = stage("Codes", mage, FROZEN, command="prepare", evaluate=False, **options)
    options["prepared"] = {"data__cache": "codes"}
    c.stages.mage = stage("MAGE", mage, FROZEN | {"rdm": "rdm"}, **options)
    c.samples = ConfigDict()
    c.samples.generate = ConfigDict({"task": "generate", "num": 4, "mage_steps": 2, "rdm_steps": 5})
    c.samples.interpolate = ConfigDict({"task": "interpolate", "images": 2, "num": 3, "mage_steps": 2})
    return c.lock()


def test_from_nothing_to_a_report_and_then_nothing_to_do(tmp_path, capfd):
    assert pipeline(tiny(), str(tmp_path)) == 0
    for name in ("tokenizer", "rdm", "mage"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results and all({"value", "samples", "seed", "step"} <= set(r) for r in results.values())
        assert list((tmp_path / name / "panels").glob("*.png"))
    assert len(list((tmp_path / "samples" / "generate").glob("0*.png"))) == 4
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and "MAGE" in page

    before = json.loads((tmp_path / "pipeline.json").read_text())
    capfd.readouterr()
    moved = shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert pipeline(tiny(), str(moved)) == 0
    assert capfd.readouterr().err.count("is complete at step") == 4
    assert json.loads((moved / "pipeline.json").read_text()) == before


TEXTS = {"data__source": "kitchen_texts", "data__num_records": 64}
WORDS = TEXTS | {"command": "prepare", "evaluate": False, "vocab_size": 300}


def texts(arg: str = "") -> ConfigDict:
    c = ConfigDict({"name": "texts", "title": "Texts", "description": "A test.", "path": ""})
    c.order, c.stages, c.samples = ("words", "lm"), ConfigDict(), ConfigDict()
    c.stages.words = stage("Tokenizer", "configs/chef_fusion/tokenizer.py:kind=opt", **WORDS)
    made = {"prepared": {"data__tokenizer": "words"}, "model__vocab_size": 300, **TEXTS}
    c.stages.lm = stage("Language model", "configs/chef_fusion/opt.py:runlocal", **made)
    return c.lock()


def test_a_prepared_stage_is_made_once_and_again_when_its_data_change(tmp_path, capfd):
    c = texts()
    assert pipeline(c, str(tmp_path)) == 0
    assert json.loads((tmp_path / "lm/results.json").read_text())["perplexity"]["value"] > 1
    assert "Language model" in (tmp_path / "report.html").read_text()
    made = (tmp_path / "words/tokenizer.json").stat().st_mtime_ns
    assert pipeline(c, str(tmp_path)) == 0
    assert (tmp_path / "words/tokenizer.json").stat().st_mtime_ns == made
    with c.unlocked():
        c.order = ("words",)
        c.stages.words.overrides.vocab_size = 290
    assert pipeline(c, str(tmp_path)) == 0
    assert (tmp_path / "words/tokenizer.json").stat().st_mtime_ns > made
    assert "290 tokens" in capfd.readouterr().err


def test_what_is_measured_otherwise_is_measured_again_and_not_trained(tmp_path, capfd):
    c = texts()
    with c.unlocked():
        c.stages.lm.overrides.total_steps = 2
    assert pipeline(c, str(tmp_path)) == 0
    set_fields(c, ["lm.method.eval_sequences=1"])
    for lost in (False, True):
        if lost:
            (tmp_path / "lm/results.json").unlink()
        capfd.readouterr()
        assert pipeline(c, str(tmp_path)) == 0
        said = capfd.readouterr().err
        assert "is complete at step 2" in said and "perplexity" in said
        assert (tmp_path / "lm/results.json").exists()
    assert pipeline(c, str(tmp_path)) == 0
    assert "perplexity" not in capfd.readouterr().err
    # nor is anything done again where all of it has been moved to
    moved = shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert saved_config(f"{moved}/lm").data.tokenizer == f"{moved}/words"
    assert pipeline(c, str(moved)) == 0
    said = capfd.readouterr().err
    assert "is complete at step 2" in said and "perplexity" not in said


def test_a_stage_whose_data_are_not_given(tmp_path):
    c = ConfigDict({"name": "x", "title": "X", "description": "", "path": "", "order": ("lm",)})
    c.paths, c.samples, c.stages = ConfigDict({"texts": ""}), ConfigDict(), ConfigDict()
    c.stages.lm = stage("Language model", "configs/chef_fusion/opt.py:runlocal", path="texts")
    with pytest.raises(UserError, match="the stage lm needs data: --config.paths.texts="):
        pipeline(c, str(tmp_path))


def test_what_a_late_stage_lacks_is_told_before_the_first(tmp_path):
    c = tiny()
    with c.unlocked():
        c.stages.mage.overrides.batch_size = 0
    with pytest.raises(UserError, match="batch_size"):
        pipeline(c, str(tmp_path))
    whole = cli.read_config("configs/chef_fusion/whole.py:vocabulary=0,runlocal")
    with whole.unlocked():
        whole.paths.update(recipes="/data", texts="/data", images="/data")
        whole.stages.lm.overrides.data.tokenizer = "/data/opt"
    with pytest.raises(UserError, match="clip needs a tokenizer: --set=clip.data.tokenizer"):
        pipeline(whole, str(tmp_path))
    assert not list(tmp_path.glob("*/"))


def test_stages_apart_and_then_all(tmp_path, capfd):
    config, workdir = texts(), str(tmp_path)
    with config.unlocked():
        config.stages.more = stage("More of them", "configs/chef_fusion/tokenizer.py:kind=opt", **WORDS)
        config.stages.lm.overrides.total_steps = 2
        config.order = ("words", "lm", "more")
    assert pipeline(config, workdir, ["words"]) == 0
    # two that began before either had ended, as two machines'
    other = Record(workdir, config)
    assert pipeline(config, workdir, ["more"]) == 0
    assert not (tmp_path / "lm").exists() and not (tmp_path / "report.html").exists()
    assert run_stage(config, "lm", workdir, other) == 0
    done = [s["name"] for s in json.loads((tmp_path / "pipeline.json").read_text())["stages"]]
    assert done == ["words", "lm", "lm/evaluate", "more"]
    # and two that write at the same moment
    records = [Record(workdir, config) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: records[i % 2].add(f"samples/{i}", i, 1.0, kind="sample"), range(40)))
    assert len(Record(workdir, config).stages) == 4 + 40
    capfd.readouterr()
    assert pipeline(config, workdir) == 0
    assert capfd.readouterr().err.count("is complete at step") == 1
    assert (tmp_path / "report.html").exists()


def test_the_time_of_a_killed_stage_counts(tmp_path, monkeypatch):
    now, metrics = [1000.0], tmp_path / "lm/metrics/metrics.jsonl"
    monkeypatch.setattr("launch.pipeline.time.time", lambda: now[0])
    metrics.parent.mkdir(parents=True)
    Record(str(tmp_path), texts()).begin("lm", str(tmp_path / "lm"))
    metrics.write_text("{}\n")
    os.utime(metrics, (1060, 1060))  # and then it is killed, and again before it writes any
    for now[0] in (2000.0, 3000.0):
        record = Record(str(tmp_path), texts())
        record.begin("lm", str(tmp_path / "lm"))
    now[0] = 3030.0
    record.add("lm", "x", 30.0, kind="train", goes_on=True)
    held = Record(str(tmp_path), texts())
    assert held.stages["lm"]["seconds"] == 90 and not held.unfinished
    assert held.stages["lm"]["spans"] == [[1000, 1060], [2000, 2000], [3000, 3030]]
    held.add("lm", "x", 10.0, kind="train", goes_on=True)
    assert Record(str(tmp_path), texts()).stages["lm"]["seconds"] == 100

    def refuse(*_):
        raise UserError("another optimizer")

    monkeypatch.setattr("launch.pipeline.train", refuse)
    with pytest.raises(UserError, match="another optimizer"):
        run_stage(texts(), "lm", str(tmp_path), held)
    assert not Record(str(tmp_path), texts()).unfinished


def test_any_field_of_a_stage_can_be_set():
    config = cli.read_config("configs/toy/full.py")
    said = ["clip.optimizer.name=adamw", "lm.total_steps=20", "tokenizer.model.ch_mult=(1, 2)"]
    set_fields(config, [*said, "sd.compute.scan_layers=true", "sd.optimizer.learning_rate=1"])
    made = {name: stage_config(config, name, "/runs") for name in ("clip", "lm", "tokenizer", "sd")}
    assert made["clip"].optimizer.name == "adamw" and made["clip"].total_steps > 100
    assert made["lm"].total_steps == 20 and made["tokenizer"].model.ch_mult == (1, 2)
    assert made["sd"].compute.scan_layers is True and made["sd"].optimizer.learning_rate == 1.0
    # also what a stage before would have made
    set_fields(
        config, ["lm.data.tokenizer=/mine", "joints.components.judge=/mine", "vae.data.pictures=/mine"]
    )
    made = {name: stage_config(config, name, "/runs") for name in ("lm", "joints", "vae")}
    assert (
        made["lm"].data.tokenizer == made["joints"].components.judge == made["vae"].data.pictures == "/mine"
    )
    for wrong in ("llm.total_steps=20", "lm.total_steps", "lm=20"):
        with pytest.raises(
            UserError, match="is not <stage>.<field>=<value>; the stages are: pictures, words"
        ):
            set_fields(config, [wrong])
    set_fields(config, ["lm.totl_steps=20"])
    with pytest.raises(UserError, match="no field 'totl_steps'; did you mean .total_steps"):
        stage_config(config, "lm", "/runs")


def test_an_unknown_stage_is_named(tmp_path):
    config = tiny()
    with pytest.raises(UserError, match="the stage mage needs codes, encoder, rdm, not made yet"):
        pipeline(config, str(tmp_path), ["tokenizer", "mage"])
    assert not list(tmp_path.glob("*/"))
    with pytest.raises(
        UserError, match="--stages names .'magge'.; there are: encoder, tokenizer, codes, rdm"
    ):
        pipeline(config, str(tmp_path), ["encoder", "magge"])
    with config.unlocked():
        config.order = ("encoder", "magge")
    with pytest.raises(UserError, match="magge"):
        pipeline(config, str(tmp_path))


def test_stages_side_by_side_end_as_they_do_one_by_one(tmp_path):
    (tmp_path / "texts.py").write_text("from tests.launch.test_pipeline import texts as get_config\n")

    def run(folder, *argv):
        command = [sys.executable, "-m", "launch.pipeline", f"--config={tmp_path / 'texts.py'}"]
        command += [f"--workdir={tmp_path / folder}", "--set=lm.total_steps=3", *argv]
        return subprocess.run(command, capture_output=True, text=True, env=several.environment(devices=1))

    one, two = run("one"), run("two", "--jobs=2")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert "words: done in" in two.stderr and "two/logs/lm.log" in two.stderr
    assert (tmp_path / "two/report.html").exists()
    same = [component.describe(str(tmp_path / folder / "lm/component")) for folder in ("one", "two")]
    assert same[0].content_hash == same[1].content_hash
    wrong = run("two", "--jobs=2", "--set=lm.data.num_records=-1")
    assert wrong.returncode == 2 and wrong.stderr.count("error:") == 1, wrong.stderr
    assert "lm ended with status 2: " in wrong.stderr and "data.num_records: 64 -> -1" in wrong.stderr
