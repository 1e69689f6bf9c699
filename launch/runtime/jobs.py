"""Several commands at a time, each on its own CPU cores, those that need others after them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

from launch.runtime.cli import STOPPED, RunError
from launch.runtime.progress import duration
from rcg.errors import UserError

POLL_SECONDS = 0.2


def cores_of(slot: int, jobs: int, alone: bool = False) -> set[int]:
    """The cores that one of `jobs` commands has; all of them where they are fewer than commands, or where it
    is `alone`: no other runs or waits."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores) if alone else set(cores[slot::jobs]) or set(cores)


def run(needs: Mapping[str, set[str]], command: Callable[[str], list[str]], logs: str, jobs: int) -> int:
    """Runs a command for each name of `needs`, in their order as far as they may; 0, or `cli.STOPPED` after
    SIGTERM, which the commands get, too.

    Args:
      needs: name -> names that must have ended well before; those that are no keys are there already.
      command: name -> arguments, of a command that saves and goes on as all here do.
      logs: folder for what each says.

    Raises:
      UserError, RunError: a command failed; the others were stopped with SIGTERM.
    """
    os.makedirs(logs, exist_ok=True)
    waiting, done = list(needs), set()
    running: dict[int, tuple[str, subprocess.Popen, IO, float]] = {}
    failed: tuple[str, int] | None = None
    stopping = False

    def stop(*_) -> None:
        nonlocal stopping
        stopping = True
        for _, process, _, _ in running.values():
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while running or (waiting and not stopping):
            for slot in (s for s in range(jobs) if s not in running and not stopping):
                name = next((n for n in waiting if (needs[n] & needs.keys()) <= done), None)
                if name is None:
                    break
                waiting.remove(name)
                log = open(os.path.join(logs, f"{name}.log"), "w")
                process = subprocess.Popen(command(name), stdout=log, stderr=subprocess.STDOUT)
                if hasattr(os, "sched_setaffinity"):
                    os.sched_setaffinity(process.pid, cores_of(slot, jobs, alone=not (running or waiting)))
                running[slot] = name, process, log, time.perf_counter()
                if stopping:  # SIGTERM came before it was one of them
                    process.terminate()
                print(f"{name}: begun, see {log.name}", file=sys.stderr)
            time.sleep(POLL_SECONDS)
            for slot, (name, process, log, begun) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[slot]
                log.close()
                if code == 0:
                    done.add(name)
                    print(f"{name}: done in {duration(time.perf_counter() - begun)}", file=sys.stderr)
                elif not failed and not (stopping and code in (STOPPED, -signal.SIGTERM)):
                    failed = name, code
                    stop()
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process, log, _ in running.values():  # after an error of our own
            process.terminate()
            process.wait()
            log.close()
    if failed:
        name, code = failed
        path = os.path.join(logs, f"{name}.log")
        with open(path, errors="replace") as f:
            last = (f.read().strip().splitlines() or ["it said nothing"])[-1]
        kind = UserError if code == 2 else RunError
        raise kind(f"{name} ended with status {code}: {last.removeprefix('error: ')} (see {path})")
    return STOPPED if stopping else 0
