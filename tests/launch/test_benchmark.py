"""The benchmark: its command, its arithmetic, its fairness. Nothing here asserts a speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch import benchmark
from launch.runtime.benchmarking import Peak, Work, measure, spread
from rcg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BASE = benchmark.Setting("base", accelerator=False)


def test_command_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "benchmark.json"
    argv = ["benchmark", "--cases=rdm_ddim", "--size=tiny", "--repeats=3", "--markdown", f"--out={out}"]
    assert benchmark.main(argv) == 0
    results = json.loads(out.read_text())
    case = results["cases"]["rdm_ddim"]
    assert results["dtype"] == "float32" and case["repeats"] == 3
    seconds = case["seconds"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"] and case["compile_seconds"] > 0
    assert case["examples_per_second"] == pytest.approx(case["examples"] / seconds["median"])
    assert case["share_of_peak"] == pytest.approx(case["flops_per_second"] / results["peak_flops_per_second"])
    assert "ratio" not in case
    table = capsys.readouterr().out
    assert "| rdm_ddim |" in table and "of peak" in table


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--cases=rdm_trian", 'did you mean "rdm_train"?'),
        ("--cases=", "--cases is empty"),
        ("--size=huge", "size"),
        ("--repeats=0", "repeats"),
        ("--out=/nowhere/at/all/b.json", "there is no folder"),
        ("--peer_shims=x", "--peer="),
        ("--peer=/nowhere", "no checkout of LTH14/rcg"),
        ("--casse=all", "casse"),
    ],
)
def test_mistakes_are_one_line(flag, says):
    if flag.startswith("--peer="):
        pytest.importorskip("torch")
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        benchmark.main(["benchmark", flag])
    assert says in str(error.value)


def test_exit_status_of_a_mistake():
    command = [sys.executable, "-m", "launch.benchmark", "--cases=nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_repetitions_take_turns():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in ("ours", "peer")}
    times = measure(runs, 4, between=lambda: calls.append("|"))
    assert "".join(c[0] for c in calls) == "op|op|po|op|po"
    assert {len(t) for t in times.values()} == {4}


def test_ratio_is_the_median_of_pairs(monkeypatch):
    ours, peer = [1.0, 1.0, 4.0], [2.0, 1.0, 5.0]
    work = Work(lambda: None, compile_seconds=0.1, examples=2, flops=10.0)
    case = benchmark.Case(lambda setting: work, peer=lambda official, setting: lambda: None, ratio=0.7)
    monkeypatch.setattr(benchmark, "CASES", {"x": case})
    monkeypatch.setattr(benchmark, "measure", lambda runs, repeats, between: {"ours": ours, "peer": peer})
    monkeypatch.setattr(benchmark, "Peak", lambda dtype, size: type("P", (), {"flops": 100.0})())
    official = type("Official", (), {"torch": type("torch", (), {"__version__": "2"})})
    results = benchmark.benchmark(["x"], "base", 3, official)
    result = results["cases"]["x"]
    assert result["ratio"] == {"median": 0.8, "min": 0.5, "max": 1.0}
    assert result["seconds"]["median"] == 1.0 and result["peer_seconds"]["median"] == 2.0
    assert result["examples_per_second"] == 2 and result["share_of_peak"] == 0.1
    assert "0.70 missed" in benchmark.markdown(results)


def test_peak_never_falls():
    peak = Peak(jnp.float32, 128)
    seen = []
    for _ in range(3):
        peak()
        seen.append(peak.flops)
    assert seen[0] > 0 and seen == sorted(seen)


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def counted(function, *args) -> float:
    """FLOPs by XLA's own count, before it optimises: matrix products and what is element by element."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def check(what: str, formula: float, count: float):
    print(f"{what}: formula {formula:.4g}, XLA {count:.4g}, {count / formula - 1:+.1%}")
    assert formula == pytest.approx(count, rel=0.03)


def test_flops_of_rdm():
    module = benchmark.rdm_module(BASE)
    x, t = jnp.zeros((16, module.channels)), jnp.zeros(16, jnp.int32)
    variables = jax.eval_shape(module.init, benchmark.RNG, x, t)
    check("RDM", 16 * sum(benchmark.rdm_flops(module)), counted(module.apply, variables, x, t))


def test_flops_of_mage():
    module = benchmark.mage.build(BASE.mage | {"depth": 3, "decoder_depth": 2}, attention="einsum")
    example = jax.eval_shape(lambda: benchmark.mage_example(module))
    variables = jax.eval_shape(module.init, benchmark.RNG, *example)
    check("MAGE, half hidden", benchmark.mage_flops(module, 128), counted(module.apply, variables, *example))

    def predict(variables, ids, cond):
        return module.apply(variables, ids, cond, method="predict")

    cond = jax.ShapeDtypeStruct((1, 1, module.embed_dim), jnp.float32)
    check(
        "MAGE, generating", benchmark.mage_flops(module, 256), counted(predict, variables, example[0], cond)
    )


def test_flops_of_vqgan():
    module = benchmark.vqgan_module(BASE)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(module.init, benchmark.RNG, images)
    encoder, decoder = benchmark.vqgan_flops(module, 256)

    def tokenize(variables, images):
        return module.apply(variables, images, method="tokenize")

    check("VQGAN encoder", encoder, counted(tokenize, variables, images))
    assert decoder == pytest.approx(185e9, rel=0.03)  # XLA's count of the plain convolutions


def test_food_cases_against_the_libraries():
    """Each of ChefFusion's cases runs beside its peer, and does the work it says."""
    for module in ("torch", "transformers", "diffusers"):
        pytest.importorskip(module)
    names = ["opt_decode", "opt_decode_uncached", "opt_backward", "generation_train", "mapper_train"]
    names.append("clip_forward")
    results = benchmark.benchmark(names, "tiny", 1, libraries=True)
    for name in names:
        case = results["cases"][name]
        assert case["ratio"]["median"] > 0 and case["flops"] > 0, name
    assert results["cases"]["opt_decode"]["examples"] == 2 * 64
    assert results["transformers"] and results["torch"]


def test_reading_is_measured(tmp_path, monkeypatch, capsys):
    argv = [
        "benchmark",
        "--config=configs/rcg/vqgan.py:runlocal",
        "--records=300",
        f"--out={tmp_path / 'r.json'}",
    ]
    argv += ["--config.data.source=kitchen", "--config.data.num_records=64", "--config.batch_size=16"]
    monkeypatch.setattr("sys.argv", argv)
    assert benchmark.main(argv) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["records"] == 288 and found["records_per_second"] > found["records_per_second_and_core"] / 2
    assert "records in" in capsys.readouterr().out
