"""Every config builds; mistakes are told before any device work, in one line."""

import errno
import json
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from chef_fusion.kitchen import bases
from configs.common import parse_arg, training
from launch import benchmark, pipeline, prepare, sample, sweep, train
from launch.pipeline import stage_config
from launch.runtime import cli
from launch.runtime.config import save_or_compare, validate
from rcg.errors import MismatchWarning, UserError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = [f"configs/rcg/{name}.py" for name in ("moco_v3", "vqgan", "kmeans", "rdm", "mage")]
CHEF = ("opt", "clip", "vae", "stable_diffusion", "joints", "judge", "recipe_rdm")
EXPERIMENTS += [f"configs/chef_fusion/{name}.py" for name in CHEF]
PIPELINES = ["configs/rcg/cifar10.py", "configs/rcg/folder.py"]
PIPELINES += [
    "configs/rcg/folder.py:variant=small",
    "configs/toy/demo.py:rcg",
    "configs/toy/demo.py",
    "configs/toy/full.py",
    "configs/toy/full.py:runlocal",
    "configs/chef_fusion/whole.py",
    "configs/chef_fusion/whole.py:source=recipe_jsonl,vocabulary=0,rcg",
    "configs/chef_fusion/whole.py:rcg,runlocal",
]


def config(**overrides):
    made = training()
    made.experiment = "rcg.rdm"
    made.update_from_flattened_dict(overrides)
    return made


def test_argument_is_typed_and_strict():
    assert parse_arg("variant=large,runlocal", variant="small", runlocal=False).runlocal is True
    with pytest.raises(ValueError, match="varriant"):
        parse_arg("varriant=large", variant="small")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("experiment", "rcg.rmd", 'did you mean "rcg.rdm"'),
        ("batch_size", 250, "try 248 or 256"),
        ("mesh.data", 3, "8 devices"),
        ("compute.remat", "all", "none, full, dots"),
        ("ema.decay", 1.0, "ema.decay"),
        ("optimizer.warmup_steps", 10**6, "total_steps"),
        ("log_steps", 0, "at least 1"),
        ("optimizer.schedule", "step", "needs decay_steps"),
        ("keep_checkpoints", 0, "keep_checkpoints is 0, must be at least 1"),
        ("optimizer.accumulation_steps", 0, "accumulation_steps is 0, must be at least 1"),
        ("seed", -1, "seed is -1, must be in 0..4294967295"),
    ],
)
def test_fields_are_checked_together(field, value, says):
    with pytest.raises(UserError, match=re.escape(says)):
        validate(config(**{field: value}), 8)


def test_each_process_reads_rows_of_its_own(monkeypatch):
    """A tensor axis beyond one process would leave two of them with the same rows to read."""
    monkeypatch.setattr("jax.process_count", lambda: 4)
    validate(config(**{"mesh.data": 4, "mesh.tensor": 2}), 8)
    with pytest.raises(UserError, match="leaves 2 shards of a batch for 4 processes"):
        validate(config(**{"mesh.data": 2, "mesh.tensor": 4}), 8)


def test_other_networks_at_the_same_paths_are_refused(tmp_path):
    c = ConfigDict({"experiment": "rcg.mage", "components": {"encoder": "runs/e", "rdm": "runs/r"}})

    def contents(encoder, rdm):
        return {"components.encoder": encoder * 40, "components.rdm": rdm * 40}

    save_or_compare(c, str(tmp_path), contents("a", "b"))
    save_or_compare(c, str(tmp_path), contents("a", "c"))  # only measured with
    with pytest.raises(UserError, match="trained on another encoder than is now at runs/e"):
        save_or_compare(c, str(tmp_path), contents("d", "c"))
    c.components.encoder = "elsewhere/e"
    with pytest.raises(UserError, match="components.encoder: 'runs/e' -> 'elsewhere/e'"):
        save_or_compare(c, str(tmp_path), contents("d", "c"))
    save_or_compare(c, str(tmp_path), contents("a", "c"))  # the same one, moved
    save_or_compare(ConfigDict({"experiment": "rcg.rdm"}), str(tmp_path), begun=False)  # nothing to lose


def test_resuming_another_model_is_refused_with_a_diff(tmp_path):
    save_or_compare(config(), str(tmp_path))
    save_or_compare(config(total_steps=5000, **{"mesh.fsdp": 8}), str(tmp_path))
    with pytest.raises(UserError, match="batch_size: 256 -> 64"):
        save_or_compare(config(batch_size=64), str(tmp_path))


def test_a_temperature_is_free_on_resume_only_where_sampling_alone_reads_it(tmp_path):
    for name, experiment, fails in (("mage", "rcg.mage", False), ("moco", "rcg.moco_v3", True)):
        c = ConfigDict({"experiment": experiment, "method": {"temperature": 1.0}})
        (tmp_path / name).mkdir()
        save_or_compare(c, str(tmp_path / name))
        c.method.temperature = 2.0
        with pytest.raises(UserError, match="temperature: 1.0 -> 2.0") if fails else nullcontext():
            save_or_compare(c, str(tmp_path / name))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["--config=configs/rcg/rdm.py:runlocal", "--config.optimiser.b1=0.5"],
            "no field 'optimiser'; did you mean \"optimizer\"?",
        ),
        (["--config=configs/rcg/rdm.py:runlocal", "--config.batch_size.x=1"], "no field 'batch_size.x'"),
        (["--config=configs/rcg/vqgan.py", "--config.model.ch_mult[9]=1"], "index out of range"),
        (["--config=configs/rcg/rdm.py:runlocal", "--config.ema.x.y=1"], "no field 'x'"),
        (["--config=configs/rcg/rdm.py:runlocal", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/rcg/nothing.py"], "nothing.py"),
        (["--config=configs/rcg/rdm.py:rnlocal"], "rnlocal"),
        (["--workdri=x"], "workdri"),
        ([], "--config"),
    ],
)
def test_a_typo_is_one_line_and_status_2(argv, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said and said.strip().count("\n") == 0, said


@pytest.mark.parametrize("workdir", ["file", "file/below"])
def test_what_the_machine_refuses_is_one_line(workdir, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("no folder")
    argv = ["pipeline", "--config=configs/toy/full.py:runlocal", f"--workdir={tmp_path / workdir}"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.run(pipeline.main)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and str(tmp_path / "file") in said and said.count("\n") == 0, said


def test_a_full_disk_is_one_line_if_it_is_known_which_file(capsys):
    place = ["/runs/component"]

    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", *place)

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said == "failed: /runs/component: No space left on device\n"
    place.clear()
    with pytest.raises(OSError, match="No space left"):
        cli.run(main)


def test_networks_that_did_not_learn_together_are_one_line(monkeypatch, capsys):
    def main(argv):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("mage was trained on another encoder", MismatchWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)

    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    said = capsys.readouterr().err
    assert not ended.value.code and said == "warning: mage was trained on another encoder\n"
    assert others == ["something else"]


def test_what_is_wrong_in_a_config_file_is_told_with_its_place(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('def get_config(arg=""):\n    return {}["colour"]\n')
    argv = [sys.executable, "-m", "launch.train", f"--config={path}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip().endswith("mine.py, line 2: KeyError: 'colour'")


@pytest.mark.parametrize(
    "module, flags", [(train, ("config", "workdir", "dry_run", "devices")), (sample, ("image", "strength"))]
)
def test_help_lists_the_flags(module, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        module.main(["it", "--help"])
    shown = capsys.readouterr().out
    assert not ended.value.code and all(re.search(rf"--(\[no\])?{flag}:", shown) for flag in flags)


def test_a_stages_override_that_is_no_field():
    with pytest.raises(UserError, match="has no field 'optimizer.lerning_rate'; did you mean .learning_rate"):
        cli.read_config("configs/rcg/rdm.py", {"optimizer.lerning_rate": 1.0})


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_every_config_gives_its_variants(path):
    assert cli.read_config(f"{path}:runlocal").total_steps < cli.read_config(path).total_steps


@pytest.mark.parametrize("path", PIPELINES)
def test_every_stage_of_a_pipeline_is_a_valid_config(path):
    config = cli.read_config(path, {"path": "/data"})
    for name in config.get("paths", {}):
        config.paths[name] = f"/data/{name}"
    for stage in config.stages.values():
        if stage.overrides.get("data", {}).get("tokenizer") == "":
            stage.overrides.data.tokenizer = "/data/tokenizer"
    for name in config.order:
        stage = stage_config(config, name, "/runs")
        if config.stages[name].command == "train":
            validate(stage, 1)
        assert stage.data.path == f"/data/{config.stages[name].path}".rstrip("/")
        assert stage.data.source == "folder" or not path.startswith("configs/rcg/folder.py")
        needed = {*config.stages[name].prepared.values(), *config.stages[name].components.values()}
        assert needed <= set(config.order[: config.order.index(name)])
        for field, made_by in config.stages[name].prepared.items():
            assert stage[field.split("__")[0]][field.split("__")[1]] == f"/runs/{made_by}"
        if "data__cache" in config.stages[name].prepared:  # computed of what this stage would read
            made = stage_config(config, config.stages[name].prepared.data__cache, "/runs")
            assert stage.data.to_dict() | {"cache": ""} == made.data.to_dict()
        if "menu" in stage.data and path.startswith("configs/toy/"):  # all stages cook the same
            assert stage.data.menu == "short"
            if stage.experiment == "rcg.rdm":
                assert stage.model.num_classes in (0, len(bases("short")))
        for component, made_by in config.stages[name].components.items():
            assert stage.components[component] == f"/runs/{made_by}/component"
        if stage.get("experiment") == "rcg.mage":
            made = stage_config(config, "tokenizer", "/runs")
            side = stage.data.image_size >> (len(made.model.ch_mult) - 1)
            assert (stage.model.num_tokens, stage.model.codebook_size) == (side**2, made.model.codebook_size)
        if stage.get("experiment") == "chef_fusion.joints" and "runlocal" not in path:
            # of positions that the language model never saw it knows nothing
            read = stage_config(config, "lm", "/runs").data.length
            assert stage.data.max_tokens + stage.model.num_visual_tokens <= read
    prepared = {name for name in config.order if config.stages[name].command == "prepare"}
    assert prepared <= {by for stage in config.stages.values() for by in stage.prepared.values()}, "unread"


@pytest.mark.parametrize(
    "file, rate", [("rdm.py", 1e-6 * 64), ("mage.py:variant=large", 1.5e-4 / 4), ("moco_v3.py", 1.5e-4 / 4)]
)
def test_the_learning_rate_follows_the_batch_until_it_is_set(file, rate):
    file = f"configs/rcg/{file}"
    assert cli.read_config(file, {"batch_size": 64}).optimizer.learning_rate == pytest.approx(rate)
    for fields in ({"optimizer.learning_rate": 0.5, "batch_size": 64}, {"optimizer.learning_rate": 0.5}):
        assert cli.read_config(file, fields).optimizer.learning_rate == 0.5


@pytest.mark.parametrize("field, value", [("epoch_steps", 5), ("name", "muon"), ("muon_scale", 2.0)])
def test_a_field_that_an_older_version_did_not_have_is_off_in_its_runs(tmp_path, field, value):
    save_or_compare(config(), str(tmp_path))
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["optimizer"][field]
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=f"{field}: None -> '?{value}"):
        save_or_compare(config(**{f"optimizer.{field}": value}), str(tmp_path))
    save_or_compare(config(), str(tmp_path))


@pytest.mark.parametrize(
    "command, file, says",
    [
        (train, "configs/toy/demo.py", "is of no experiment; it is for launch.pipeline"),
        (train, "configs/sweeps/guidance.py", "is of no experiment; it is for launch.sweep"),
        (pipeline, "configs/rcg/mage.py", "--config is no pipeline"),
        (sweep, "configs/toy/demo.py", "--config is no sweep"),
        (prepare, "configs/toy/demo.py", "--config is of no experiment"),
    ],
)
def test_a_config_of_another_command(command, file, says, tmp_path):
    out = "out" if command is prepare else "workdir"
    with pytest.raises(UserError, match=re.escape(says)):
        command.main(["command", f"--config={file}", f"--{out}={tmp_path / 'x'}"])


@pytest.mark.parametrize(
    "command, flags, says",
    [
        (train, ["--device_gib=80"], "--device_gib is for --dry_run"),
        (prepare, ["--workers=2"], "needs --shards"),
        (benchmark, ["--size=tiny"], "--size has no meaning with --config"),
    ],
)
def test_flags_that_would_not_be_heeded(command, flags, says, tmp_path):
    places = {train: ["--workdir=x"], prepare: [f"--out={tmp_path}"], benchmark: []}
    with pytest.raises(UserError, match=says):
        command.main(["command", "--config=configs/rcg/mage.py:runlocal", *places[command], *flags])
