"""How many rows the next chunk takes: arithmetic on the last timings, without I/O."""

from __future__ import annotations

from collections import deque

FIRST = 500
CEILING = 50_000
"""More rows gain nothing (measured: 5,000 to 10,000 rows reach one whole-table UPDATE)."""
_RECENT = 11
_PERCENTILE = 0.9
_GROWTH = 1.5
_PANIC = 5.0
_PANIC_CUT = 10


class Sizer:
    """Aims at `target_seconds` a chunk; follows the 90th percentile of recent chunks.

    Growth is 1.5 times at most, and a chunk five times over the target cuts the size to a
    tenth at once: the constants of block/spirit's dynamic chunk sizer. A `fixed` size only
    gives way to `halve`, and comes back by doubling.
    """

    def __init__(self, target_seconds: float, fixed: int | None = None, first: int | None = None):
        self.target_seconds = target_seconds
        self.fixed = fixed
        self.size = fixed or min(first or FIRST, CEILING)
        self._seconds_per_row: deque[float] = deque(maxlen=_RECENT)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a committed chunk of `rows` rows that took `seconds`.

        A chunk that used less than half of its size says nothing about a full one.
        """
        if self.fixed is not None:
            self.size = min(2 * self.size, self.fixed)
            return
        if seconds > _PANIC * self.target_seconds and rows > 1:
            self._seconds_per_row.clear()
            self.size = max(1, min(self.size, rows) // _PANIC_CUT)
            return
        if rows * 2 < self.size:
            return
        self._seconds_per_row.append(seconds / rows)
        slow = sorted(self._seconds_per_row)[int(_PERCENTILE * (len(self._seconds_per_row) - 1))]
        wanted = self.target_seconds / max(slow, 1e-9)
        self.size = max(1, min(int(wanted), int(self.size * _GROWTH) + 1, CEILING))

    def halve(self) -> None:
        """Take half as many rows: the chunk met a lock or a time limit."""
        self._seconds_per_row.clear()
        self.size = max(1, self.size // 2)
