"""How many rows the next chunk takes: arithmetic on the last timings, without I/O."""

from __future__ import annotations

from collections import deque

FIRST = 500
CEILING = 250_000
"""More rows gain nothing, even where a million take a second."""
CEILING_IN_MEMORY = 25_000
"""Rows that Python computes are held in memory: some 20 MB where they are short."""
_RECENT = 11
_PERCENTILE = 0.9
_GROWTH = 1.5
_SLOW_START = 4
"""Growth while a chunk takes less than a fourth of its time: even so it cannot overshoot."""
_PANIC = 5.0
_PANIC_CUT = 10


class Sizer:
    """Aims at `target_seconds` a chunk; follows the 90th percentile of recent chunks.

    Growth is 1.5 times at most once chunks are near the target, and a chunk five times over
    the target cuts the size to a tenth at once: the constants of block/spirit's dynamic chunk
    sizer. A `fixed` size only gives way to `halve`, and comes back by doubling.
    """

    def __init__(
        self,
        target_seconds: float,
        fixed: int | None = None,
        first: int | None = None,
        ceiling: int = CEILING,
    ) -> None:
        self.target_seconds = target_seconds
        self.fixed = fixed
        self.ceiling = ceiling
        self.size = fixed or min(first or FIRST, ceiling)
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
        growth = _SLOW_START if seconds * _SLOW_START < self.target_seconds else _GROWTH
        self.size = max(1, min(int(wanted), int(self.size * growth) + 1, self.ceiling))

    def halve(self) -> None:
        """Take half as many rows: the chunk met a lock or a time limit."""
        self._seconds_per_row.clear()
        self.size = max(1, self.size // 2)
