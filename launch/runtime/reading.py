"""How fast a config's training images are read, decoded and put together, without training on them."""

import os
import resource
import time
from typing import Any

from ml_collections import ConfigDict

from launch.runtime import registry
from rcg.data import cores, image_batches


def memory_mib() -> float:
    """What this process holds in memory now; its most so far where the system does not say."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(config: ConfigDict, records: int) -> dict[str, Any]:
    """Reads about so many records, in the trainer's batches.

    Returns:
      records and decoded bytes a second, in all and for each core this process may use; how many were bad;
      memory when a tenth was read, at the end, and at most (MiB, this process).
    """
    open_source = registry.resolve(registry.SOURCES, config.data.source, "config.data.source")
    source = open_source(config.data, "train")
    batches = iter(
        image_batches(source, config.data, split="train", batch_size=config.batch_size, seed=config.seed)
    )
    size = sum(array.nbytes for array in next(batches).values())  # starts the readers
    total = max(records // config.batch_size, 10)
    early, highest, bad, started = 0.0, 0.0, 0, time.perf_counter()
    for number in range(1, total + 1):
        bad += int(next(batches)["bad"].sum())
        if number == total // 10:
            early = memory_mib()
        if number % max(total // 100, 1) == 0:
            highest = max(highest, memory_mib())
    seconds = time.perf_counter() - started
    if hasattr(batches, "close"):
        batches.close()
    rate = total * config.batch_size / seconds
    return {
        "records": total * config.batch_size,
        "bad": bad,
        "seconds": seconds,
        "records_per_second": rate,
        "records_per_second_and_core": rate / cores(),
        "decoded_mb_per_second_and_core": total * size / seconds / 1e6 / cores(),
        "cores": cores(),
        "memory_mib": {"early": early, "end": memory_mib(), "highest": highest},
    }
