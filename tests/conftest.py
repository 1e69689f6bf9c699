"""Eight virtual CPU devices for every test, and the recorded vectors of the original code."""

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each of xdist's workers on cores of its own: threads of two that wait for each other on the same ones take
# twice the time.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    worker, workers = (os.environ[f"PYTEST_XDIST_WORKER{name}"] for name in ("", "_COUNT"))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: int(workers)] or cores)
# networks are tiny here and compiled once: most of the time would go into optimising them
QUICK = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # the older ones, gone since, make machine code faster
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
# A collective keeps a thread of XLA's until all devices are there. By default it has one for each device, and
# two collectives that do not wait for each other can take them all: then none ever ends.
os.environ.setdefault("PJRT_NPROC", "32")

# What several tests, or the processes they start, need is compiled once; xdist's workers inherit the folder.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags


def pytest_unconfigure(config):
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


# begun first: what is begun last, one worker does while the other has nothing left
LONG = (
    "launch/test_pipeline.py launch/test_processes.py launch/test_step.py chef_fusion/test_painters.py "
    "chef_fusion/test_joints.py launch/test_faults.py launch/test_dry_run.py launch/test_resume.py "
    "chef_fusion/test_experiments.py reference/test_stable_diffusion.py launch/test_compare.py "
    "launch/test_cached.py launch/test_convert.py launch/test_sweep.py"
).split()


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        name = f"{item.path.parent.name}/{item.path.name}"
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and recorded vectors beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: this test needs the recorded vectors or real data")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    """name -> {array name: array}, e.g. golden("rcg/rdm_forward_uncond")."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            return dict(file)

    return read
