"""How many rows the next chunk takes: arithmetic on the last timings, without I/O."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

CEILING = 250_000
"""More rows gain nothing, even where a million take a second."""
CEILING_IN_MEMORY = 25_000
"""Rows that Python computes are held in memory: some 20 MB where they are short."""
_RECENT = 11
_PERCENTILE = 0.9
_GROWTH = 1.5
_PANIC = 5.0
_PANIC_CUT = 10
_OF_OVERHEAD = 0.5
"""Where a chunk of hardly any rows takes longer than the target, its rows may take so much of
that besides, though never more than twice the target."""
_PERCENTILE_BESIDE = 0.65
"""Beside such an overhead most of what differs between chunks is not of the rows' making."""
_LESS = 0.6
"""Where chunks take less than so much of the overhead, it is that no more: a third of the time
at which we aim is the rows'."""
_PROPORTIONAL = 0.8
"""Two or three rows that take so much of two or three times as long are slow themselves."""
_FEWER = 0.6
_AS_LONG = 0.75
"""A chunk of so much fewer rows that takes so much of the time all the same shows that it is not
the rows: the way to the server is long, a commit waits for a replica, or a disk has stalled."""


class _Seen(NamedTuple):
    rows: int
    seconds: float


class Sizer:
    """Aims at `target_seconds` a chunk; follows the 90th percentile of recent chunks.

    Growth is 1.5 times at most, and a chunk five times over the target cuts the size to a tenth
    at once: the constants of block/spirit's dynamic chunk sizer. What the size cannot change is
    no reason to shrink: spirit once fell to ten rows a chunk so. Rows that are known to be wide
    are limited to `max_bytes` a chunk, too. A `fixed` size only gives way to `halve`, and comes
    back by doubling.
    """

    def __init__(
        self,
        target_seconds: float,
        fixed: int | None = None,
        first: int = 500,
        ceiling: int = CEILING,
        *,
        max_bytes: float = float("inf"),
        row_bytes: int | None = None,
    ) -> None:
        self.target_seconds = target_seconds
        self.fixed = fixed
        self.ceiling = ceiling
        self.max_bytes = max_bytes
        self._widths: deque[int] = deque([row_bytes or 1], maxlen=_RECENT)
        self._recent: deque[_Seen] = deque(maxlen=_RECENT)
        self._panic: _Seen | None = None
        self._overhead = 0.0
        """Seconds that a chunk takes however few rows it has, where that is known to be long."""
        self.size = fixed or self._bounded(first)

    def observe(self, rows: int, seconds: float, row_bytes: int | None = None) -> None:
        """Learn from a committed chunk of `rows` rows, each of about `row_bytes` bytes, whose
        statement and commit took `seconds`.

        A chunk that used less than half of its size says nothing about a full one.
        """
        if row_bytes:
            self._widths.append(row_bytes)
        if self.fixed is not None:
            self.size = min(2 * self.size, self.fixed)
        elif seconds > _PANIC * self._aim and rows > 1:
            self._take_fright(_Seen(rows, seconds))
        elif rows * 2 < self.size:
            self.size = self._bounded(self.size)
        else:
            self._learn(_Seen(rows, seconds))

    def halve(self) -> None:
        """Take half as many rows: the chunk met a lock or a time limit."""
        self._recent.clear()
        self.size = max(1, self.size // 2)

    @property
    def _aim(self) -> float:
        for_rows = min(_OF_OVERHEAD * self._overhead, 2 * self.target_seconds)
        return max(self.target_seconds, self._overhead + for_rows)

    def _take_fright(self, seen: _Seen) -> None:
        last = self._panic
        if last and seen.rows <= _FEWER * last.rows and seen.seconds >= _AS_LONG * last.seconds:
            self._overhead = seen.seconds
            return
        self._panic = seen
        self._recent.clear()
        self.size = self._bounded(min(self.size, seen.rows) // _PANIC_CUT)

    def _learn(self, seen: _Seen) -> None:
        self._recent.append(seen)
        self._learn_overhead(seen)
        self.size = self._bounded(min(self._wanted(), int(self.size * _GROWTH) + 1))
        # Chunks of less than half of the size say nothing about it, nor do they later.
        while self._recent and self._recent[0].rows * 2 < self.size:
            self._recent.popleft()

    def _learn_overhead(self, seen: _Seen) -> None:
        """Chunks of single rows tell it, until others take less, or two rows twice as long."""
        taken = [one.seconds for one in self._recent]
        if len(taken) == _RECENT and all(one.rows == 1 for one in self._recent):
            self._overhead = median(taken)
        is_less = median(taken[-3:]) < _LESS * self._overhead
        if is_less or (
            1 < seen.rows < 4 and seen.seconds > _PROPORTIONAL * seen.rows * self._overhead
        ):
            self._overhead = 0.0

    def _wanted(self) -> int:
        percentile = _PERCENTILE_BESIDE if self._overhead else _PERCENTILE
        costs = sorted((one.seconds - self._overhead) / one.rows for one in self._recent)
        cost = max(costs[int(percentile * (len(costs) - 1))], 1e-9)
        return int(min((self._aim - self._overhead) / cost, 1e9))

    def _bounded(self, rows: int) -> int:
        """The widest of the recent chunks decides what fits into the bytes."""
        return max(1, min(rows, self.ceiling, int(min(self.max_bytes / max(self._widths), 1e9))))
