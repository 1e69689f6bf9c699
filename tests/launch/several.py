"""Starting a command as several processes of one run, on virtual CPU devices."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """This process's, with as many devices: compiled programs are shared."""
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "16"}


def start(module: str, count: int, devices: int, *flags: str, **more: str) -> list[subprocess.Popen]:
    """`count` processes of `python -m module`, each with `devices`; one alone needs no coordinator."""
    address = f"localhost:{free_port()}"
    started = []
    for index in range(count):
        place = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"]
        argv = [sys.executable, "-m", module, *flags, *(place if count > 1 else [])]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(subprocess.Popen(argv, cwd=ROOT, env=environment(devices) | more, **pipes))
    return started


def finish(started: list[subprocess.Popen], timeout: float = 300) -> list[str]:
    """What each of them printed; all must end well."""
    said = []
    try:
        for process in started:
            said.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)[-4000:]
    return said


def run(module: str, count: int, devices: int, *flags: str, **more: str) -> list[str]:
    return finish(start(module, count, devices, *flags, **more))
