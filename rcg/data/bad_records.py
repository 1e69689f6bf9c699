"""Records that can't be decoded: each named once in the log, and a run stopped that has too many."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rcg.data.sources import Source
from rcg.errors import UserError

logger = logging.getLogger(__name__)

ENOUGH = 1000  # records seen before the fraction is judged; a smaller set is judged as a whole


class BadRecords:
    """Counts the undecodable records that the batches report."""

    def __init__(self, source: Source, max_bad_fraction: float):
        self._source = source
        self._limit = max_bad_fraction
        self._seen = 0
        self._before = 0  # of what was seen: by all processes, before this one started or resumed
        self._bad: set[int] = set()

    def update(self, bad: Any, bad_index: Any) -> None:
        """Takes note of one batch.

        Args:
          bad, bad_index: int32 [B], as in `image_batches`.

        Raises:
          UserError: the distinct bad records are more than `max_bad_fraction` of those seen.
        """
        bad, bad_index = np.asarray(bad), np.asarray(bad_index)
        size = len(self._source)
        self._seen += len(bad) + int(bad.sum())
        for row in np.flatnonzero(bad):  # what was skipped lies in a row, up to the last one
            for index in ((int(bad_index[row]) - back) % size for back in reversed(range(int(bad[row])))):
                if index not in self._bad:
                    self._bad.add(index)
                    logger.warning("skipped a record that can't be decoded: %s", self._source.name(index))
        if not self._bad:
            return
        judged = min(self._seen, size) if self._seen >= ENOUGH else size
        if len(self._bad) > self._limit * judged:
            names = ", ".join(self._source.name(i) for i in sorted(self._bad)[:3])
            raise UserError(
                f"{len(self._bad)} of {judged} records can't be decoded, more than config.data."
                f"max_bad_fraction {self._limit:g} allows ({names}{', ...' * (len(self._bad) > 3)}); "
                "mend or remove them, or raise the limit"
            )

    def state(self) -> dict[str, Any]:
        """What `restore` needs, fit for JSON."""
        return {"seen": self._seen, "bad": sorted(self._bad)}

    def joined(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One state of those of all processes, each of which has seen its own share of the records."""
        seen = self._before + sum(state["seen"] - self._before for state in states)
        return {"seen": seen, "bad": sorted(set().union(*(state["bad"] for state in states)))}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen, self._bad = int(state["seen"]), set(state["bad"])
        self._before = self._seen
