"""Components: whole or not at all, the same bits back, one line when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rcg import component
from rcg.component import Component
from rcg.errors import UserError
from rcg.pixel import vqgan

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    "params": {"a": {"kernel": np.arange(64.0, dtype=np.float32).reshape(8, 8)}},
    "batch_stats": {"count": np.arange(3, dtype=np.int32), "mean": np.arange(3, dtype=np.float32)},
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "encoder" / "component"
    component.save(str(path), Component("rcg.encoder", {"dim": 8}, VARIABLES, {"step": 3}))
    return path


def test_round_trip_is_bitwise(saved):
    back = component.load(str(saved), "rcg.encoder")
    assert (back.architecture, back.provenance) == ({"dim": 8}, {"step": 3})
    jax.tree.map(np.testing.assert_array_equal, back.variables, VARIABLES)
    assert back.content_hash == component.content_hash(back.variables)


def test_loads_straight_to_sharding_and_dtype(saved):
    mesh = jax.make_mesh((8,), ("fsdp",))
    shardings = {
        "params": {"a": {"kernel": NamedSharding(mesh, P("fsdp"))}},
        "batch_stats": {name: NamedSharding(mesh, P()) for name in ("count", "mean")},
    }
    back = component.load(str(saved), sharding=shardings, dtype=jnp.bfloat16).variables
    kernel = back["params"]["a"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == P("fsdp")
    assert back["batch_stats"]["count"].dtype == jnp.int32
    assert back["batch_stats"]["mean"].dtype == jnp.float32  # statistics are not for half precision


def test_what_others_are_compared_by_stays_exact(tmp_path):
    component.save(str(tmp_path / "k"), Component("rcg.kmeans", {}, VARIABLES))
    back = component.load(str(tmp_path / "k"), dtype=jnp.bfloat16).variables
    assert back["params"]["a"]["kernel"].dtype == jnp.float32


def test_a_tokenizers_codes_stay_exact(tmp_path):
    """Rounded, they would make other tokens of the same image."""
    fields = {"ch": 8, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 4}
    fields |= {"codebook_size": 32, "num_groups": 4}
    module = vqgan.build(fields)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.device_get(jax.jit(module.init)(jax.random.key(0), images))
    component.save(str(tmp_path / "vqgan"), Component("rcg.vqgan", fields, variables))
    made = component.load(str(tmp_path / "vqgan"), dtype=jnp.bfloat16)
    assert made.variables["params"]["codebook"].dtype == jnp.float32
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(made.variables["params"]["encoder"])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    z = jax.random.normal(jax.random.key(2), (1, 4, 4, 4))
    ours, theirs = (module.apply(v, z, method="quantize") for v in (made.variables, variables))
    assert ours[1].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


SAVES = """
import sys, threading, time
import numpy as np
from rcg import component

def held():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 2**20

def watch():
    while True:
        peak[0] = max(peak[0], held())
        time.sleep(0.01)

folder = sys.argv[1]
arrays = np.memmap(f"{folder}/arrays", np.float32, "w+", shape=(16, 4096, 4096))
component.save(f"{folder}/first", component.Component("any", {}, {"params": {"a": arrays[0, :8]}}))
before, peak = held(), [0.0]
threading.Thread(target=watch, daemon=True).start()
leaves = {str(i): array.T for i, array in enumerate(arrays)}
component.save(f"{folder}/component", component.Component("any", {}, {"params": leaves}))
print(peak[0] - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_saving_holds_a_few_arrays_at_a_time(tmp_path):
    """A network as large as memory can be converted: 1 GiB of mapped arrays, 64 MiB each."""
    done = subprocess.run([sys.executable, "-c", SAVES, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    print(f"{float(done.stdout):.2f} GiB held")
    assert float(done.stdout) < 0.6


def test_saving_again_replaces_it(saved):
    changed = jax.tree.map(lambda x: x + 1, VARIABLES)
    component.save(str(saved), Component("rcg.encoder", {}, changed))
    jax.tree.map(np.testing.assert_array_equal, component.load(str(saved)).variables, changed)
    assert [p.name for p in saved.parent.iterdir()] == ["component"]


def test_what_is_no_component_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
    for path in (tmp_path / "photos", tmp_path / "photos" / "a.jpg"):
        with pytest.raises(UserError, match="is no component"):
            component.save(str(path), Component("rcg.encoder", {}, VARIABLES))
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "a.jpg"]
    (tmp_path / "empty").mkdir()
    component.save(str(tmp_path / "empty"), Component("rcg.encoder", {}, VARIABLES))


def test_what_is_wrong_is_said(saved, tmp_path):
    with pytest.raises(UserError, match="no component at"):
        component.describe(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="rcg.encoder component, but rcg.rdm"):
        component.load(str(saved), "rcg.rdm")
    about = json.loads((saved / "component.json").read_text())
    (saved / "component.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        component.describe(str(saved))
    (saved / "component.json").write_text('{"format": 1, "kind"')
    with pytest.raises(UserError, match="damaged"):
        component.describe(str(saved))


def test_a_truncated_array_file_is_one_error(saved):
    for file in [p for p in (saved / "params").rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        component.load(str(saved))
