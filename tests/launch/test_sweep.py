"""launch.sweep: what members share, what a failure leaves, what comes back after a stop."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from launch import sweep
from launch.runtime import cli
from rcg.errors import UserError
from tests.rcg import tiny_chain

ROOT = Path(__file__).resolve().parents[2]
TABLES = [
    "configs/sweeps/table6a.py",
    "configs/sweeps/guidance.py",
    *[f"configs/sweeps/table4.py:part={part}" for part in "abc"],
    *[f"configs/sweeps/table5.py:part={part}" for part in "abcd"],
]


def read(file, scale):
    return cli.read_config(f"{file}{',' if ':' in file else ':'}{scale}")


@pytest.mark.parametrize("file", TABLES)
@pytest.mark.parametrize("scale", ["scale=paper", "scale=cifar10", "runlocal"])
def test_every_stage_of_every_member_is_a_valid_config(file, scale, tmp_path):
    config = read(file, scale)
    assert len(config.members) >= 2
    for index in range(len(config.members)):
        member = sweep.Member(config, index, str(tmp_path))
        for stage in member.needed(member.member.measure):
            if not config.stages[stage].config:
                with pytest.raises(UserError, match=f"--config.given.{stage}="):
                    member.config(stage)
                break
            member.config(stage)  # raises where a field does not exist
            assert member.folder(stage).startswith(str(tmp_path))


class Fake:
    """In place of training and measuring: remembers what was asked, and can fail."""

    def __init__(self, monkeypatch, value=lambda config: 1.0):
        self.trained, self.measured, self.fails = [], [], set()

        def train(config, folder):
            if config.experiment in self.fails:
                raise UserError("no room left")
            self.trained.append(Path(folder).name)
            Path(folder, "component").mkdir(parents=True)
            return 0

        def evaluate(config, folder, out):
            self.measured.append(Path(folder).name)
            way = config.method.eval_ways or "unconditional"
            return {f"frechet_{way}": {"value": value(config), "samples": 8, "features": "f"}}

        monkeypatch.setattr(sweep, "train", train)
        monkeypatch.setattr(sweep, "evaluate", evaluate)

        def run(command):  # in this process
            try:
                code = sweep.main(command[2:])
            except UserError:
                code = 2
            return types.SimpleNamespace(returncode=code)

        monkeypatch.setattr(subprocess, "run", run)


def run(workdir, file="configs/sweeps/table6a.py:runlocal", *flags):
    return sweep.main(["sweep", f"--config={file}", f"--workdir={workdir}", *flags])


def test_members_share_what_their_training_agrees_on(monkeypatch, tmp_path):
    fake = Fake(monkeypatch)
    assert run(tmp_path) == 0
    names = [name.split("-")[0] for name in fake.trained]
    # generated and oracle are measured on one MAGE; only clusters need k-means
    assert sorted(names) == ["kmeans", "mage", "mage", "mage", "mage", "moco_v3", "rdm", "vqgan"]
    assert len(fake.measured) == 5
    assert run(tmp_path) == 0
    assert len(fake.trained) == 8 and len(fake.measured) == 5  # nothing was left to do


def test_sampling_fields_do_not_train_again(monkeypatch, tmp_path, capsys):
    fake = Fake(monkeypatch, value=lambda config: config.method.cfg_scale + 1)
    assert run(tmp_path, "configs/sweeps/guidance.py:runlocal") == 0
    assert len([n for n in fake.trained if n.startswith("mage")]) == 1 and len(fake.measured) == 2
    text = (tmp_path / "guidance.md").read_text()
    assert "| guidance 0 | 1 | f | 8 | 4 | 16 |  |" in text and "| guidance 2 | 3 |" in text
    assert (tmp_path / "guidance.csv").read_text().count("\n") == 3
    page = (tmp_path / "guidance.html").read_text()
    assert "<svg" in page
    for said in (page, capsys.readouterr().out):
        assert "in an encoder" in said and "not to be held against FIDs" in said


def test_a_failed_member_is_told_and_the_others_go_on(monkeypatch, tmp_path):
    fake = Fake(monkeypatch)
    fake.fails = {"rcg.kmeans"}
    assert run(tmp_path) == 1
    lines = (tmp_path / "table6a.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]].count("1") == 4
    assert "no room left" in next(line for line in lines if line.startswith("| clusters"))
    fake.fails = set()
    before = len(fake.measured)
    assert run(tmp_path) == 0
    assert len(fake.measured) == before + 1  # only the one that failed


def test_a_member_that_can_not_be_configured_is_told_and_the_others_go_on(monkeypatch, tmp_path):
    fake = Fake(monkeypatch)
    assert run(tmp_path, "configs/sweeps/table4.py:part=a,scale=paper") == 1
    lines = (tmp_path / "table4a.md").read_text().splitlines()[2:]
    assert 0 < sum("which is not trained here" in line for line in lines) < len(lines)
    assert len(fake.measured) == sum("which is not trained here" not in line for line in lines)


def test_features_that_are_given_need_no_stage(tmp_path):
    config = read("configs/sweeps/table4.py:part=b", "runlocal").copy_and_resolve_references()
    member = sweep.Member(config, 0, str(tmp_path))
    judged = member.needed(member.member.measure)
    config.features = "inception"
    member = sweep.Member(config, 0, str(tmp_path))
    given = member.needed(member.member.measure)
    assert set(judged) - set(given) and member.member.measure in given


def test_a_row_of_other_settings_is_not_shown(monkeypatch, tmp_path):
    Fake(monkeypatch)
    assert run(tmp_path) == 0
    config = read("configs/sweeps/table6a.py", "runlocal").copy_and_resolve_references()
    with config.unlocked():
        config.stages.mage.overrides.batch_size = 8
    assert {row["error"] for row in sweep.rows(config, str(tmp_path))} == {"not run yet"}


def test_one_index_is_one_member(monkeypatch, tmp_path, capsys):
    fake = Fake(monkeypatch)
    assert run(tmp_path, "configs/sweeps/table6a.py:runlocal", "--index=1") == 0
    assert len(fake.measured) == 1
    assert (tmp_path / "table6a.md").read_text().count("not run yet") == 4
    with pytest.raises(UserError, match="0..4"):
        run(tmp_path, "configs/sweeps/table6a.py:runlocal", "--index=5")
    assert run(tmp_path, "configs/sweeps/table6a.py:runlocal", "--list") == 0
    assert "clusters" in capsys.readouterr().out


def test_given_components_are_not_trained(monkeypatch, tmp_path):
    tiny_chain.build(tmp_path / "given", only=("encoder", "tokenizer"))
    fake = Fake(monkeypatch)
    given = [f"--config.given.{name}={tmp_path}/given/{name}/component" for name in ("encoder", "tokenizer")]
    monkeypatch.setattr(sys, "argv", ["sweep", *given])  # where ml_collections looks for overrides
    assert run(tmp_path / "a", "configs/sweeps/guidance.py:runlocal", *given) == 0
    assert {name.split("-")[0] for name in fake.trained} == {"rdm", "mage"}


def test_a_given_component_is_not_what_members_compare(monkeypatch, tmp_path):
    """Else all rows would be the same."""
    tiny_chain.build(tmp_path / "given", only=("rdm",), rdms=("rdm",))
    given = f"--config.given.rdm={tmp_path}/given/rdm/component"
    monkeypatch.setattr(sys, "argv", ["sweep", given])
    with pytest.raises(UserError, match=r"changes rdm\..*, but rdm is given; leave --config.given.rdm out"):
        run(tmp_path / "a", "configs/sweeps/table5.py:part=a,runlocal", given)
    # nor does it follow when what it is built on is another for each
    with pytest.raises(UserError, match=r"changes encoder\.model\.dim, but rdm is given; leave"):
        run(tmp_path / "a", "configs/sweeps/table4.py:part=b,runlocal", given)
    assert not (tmp_path / "a").exists()
    given = "--config.given.encoder=elsewhere"
    monkeypatch.setattr(sys, "argv", ["sweep", given])
    with pytest.raises(UserError, match=r"changes encoder\.model\.dim, but encoder is given; leave"):
        run(tmp_path / "a", "configs/sweeps/table4.py:part=b,runlocal", given)


def test_a_typo_in_a_member_is_one_line(monkeypatch, tmp_path):
    config = read("configs/sweeps/guidance.py", "runlocal").copy_and_resolve_references()
    config.unlock()
    config.members[0].overrides = (("mgae.method.cfg_scale", 1.0),)
    with pytest.raises(UserError, match="changes mgae.method.cfg_scale; the stages are: "):
        sweep.Member(config, 0, str(tmp_path))
    config.members[0].overrides = (("mage.method.cgf_scale", 1.0),)
    with pytest.raises(UserError, match="cgf_scale"):
        sweep.Member(config, 0, str(tmp_path)).config("mage")


def test_a_real_one(tmp_path):
    """Tiny networks on the kitchen, in processes of their own."""
    command = [sys.executable, "-m", "launch.sweep", "--config=tests/launch/tiny_sweep.py"]
    done = subprocess.run([*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| eta") == 2
    made = json.loads((tmp_path / "tiny" / "eta_1.0.json").read_text())
    assert made["results"]["rdm_frechet"]["eta"] == 1.0
    assert len(list((tmp_path / "stages").glob("*-*"))) == 2
