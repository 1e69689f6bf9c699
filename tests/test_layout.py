"""Imports go one way, and importing the library is quick and free of torch and TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "rcg": {"rcg"},
    "chef_fusion": {"rcg", "chef_fusion"},
    "configs": {"configs"},
    "launch": {"rcg", "chef_fusion", "launch", "configs"},
}
OURS = set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_dependencies_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names} & OURS:
                assert top in ALLOWED[package], f"{path.relative_to(ROOT)} imports {top}"


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import rcg, chef_fusion; "
        "heavy = {'torch', 'tensorflow'} & set(sys.modules); "
        "assert not heavy, heavy; print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    print(f"import took {float(done.stdout):.2f} s (limit 3)")
    assert float(done.stdout) < 3
