"""Commands side by side: order, cores, failures, SIGTERM."""

import os
import signal
import sys
import threading
import time

import pytest

from launch.runtime import jobs
from launch.runtime.cli import STOPPED, RunError
from rcg.errors import UserError


def script(folder, seconds=0.3, code=0, says=""):
    """A command that writes when it began and ended, and on which cores."""
    text = f"""
import os, sys, time, signal
name = sys.argv[1]
def note(what):
    with open({str(folder)!r} + "/notes", "a") as f:
        f.write(f"{{name}} {{what}} {{time.time()}}\\n")
def stop(*_):
    note("stopped"); os._exit({STOPPED})
signal.signal(signal.SIGTERM, stop)
note("began")
time.sleep({seconds})
note("cores=" + ",".join(map(str, sorted(os.sched_getaffinity(0)))))
print({says!r})
note("ended")
sys.exit({code})
"""
    return lambda name: [sys.executable, "-c", text, name]


def notes(folder):
    return [line.split() for line in (folder / "notes").read_text().splitlines()]


def test_what_needs_another_comes_after_it_and_the_rest_beside(tmp_path):
    needs = {"a": set(), "b": {"a"}, "c": set(), "d": {"b", "c", "there already"}}
    assert jobs.run(needs, script(tmp_path, seconds=1.0), str(tmp_path / "logs"), 2) == 0
    when = {(name, what): float(t) for name, what, t in notes(tmp_path)}
    assert when["b", "began"] > when["a", "ended"] and when["d", "began"] > when["b", "ended"]
    assert when["d", "began"] > when["c", "ended"]
    assert when["c", "began"] < when["a", "ended"]
    assert sorted(os.listdir(tmp_path / "logs")) == ["a.log", "b.log", "c.log", "d.log"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_each_has_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})  # a test's own process may have one
    assert jobs.run({"a": set(), "b": set()}, script(tmp_path), str(tmp_path / "logs"), 2) == 0
    shares = [set(what[6:].split(",")) for _, what, _ in notes(tmp_path) if what.startswith("cores=")]
    assert len(shares) == 2 and not shares[0] & shares[1]
    assert shares[0] | shares[1] == {"0", "1"}
    assert all(jobs.cores_of(slot, 1000) for slot in range(1000))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_the_last_has_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    needs = {"a": set(), "b": set(), "last": {"a", "b"}}
    assert jobs.run(needs, script(tmp_path), str(tmp_path / "logs"), 2) == 0
    cores = {name: what for name, what, _ in notes(tmp_path) if what.startswith("cores=")}
    assert cores["last"] == "cores=0,1" and {cores["a"], cores["b"]} == {"cores=0", "cores=1"}


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (1, RunError)])
def test_one_that_fails_stops_the_others_and_is_named(tmp_path, code, kind):
    good = script(tmp_path, seconds=30)
    bad = script(tmp_path, seconds=1, code=code, says="error: no such file x.jpg")
    with pytest.raises(kind, match=rf"bad ended with status {code}: no such file x.jpg \(see .*bad.log\)"):
        jobs.run(
            {"good": set(), "bad": set(), "late": set()},
            lambda name: (bad if name == "bad" else good)(name),
            str(tmp_path / "logs"),
            2,
        )
    said = [(name, what) for name, what, _ in notes(tmp_path)]
    assert ("good", "stopped") in said and ("late", "began") not in said


def test_sigterm_reaches_all_and_nothing_more_begins(tmp_path):
    def later():
        while not (tmp_path / "notes").exists() or len(notes(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=later).start()
    needs = {"a": set(), "b": set(), "c": set()}
    assert jobs.run(needs, script(tmp_path, seconds=30), str(tmp_path / "logs"), 2) == STOPPED
    assert sorted((name, what) for name, what, _ in notes(tmp_path)) == [
        ("a", "began"),
        ("a", "stopped"),
        ("b", "began"),
        ("b", "stopped"),
    ]
    assert signal.getsignal(signal.SIGTERM) is before
