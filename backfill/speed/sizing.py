"""How many rows the next chunk takes: arithmetic on the last timings, without I/O.

What single chunks cannot tell is learned beside it: an overhead (overhead.py), a brink (brink.py).
"""

from __future__ import annotations

from collections import deque

from backfill.speed.brink import Brink
from backfill.speed.overhead import RECENT, Overhead, Seen

CEILING = 250_000
"""More rows gain nothing, even where a million take a second."""
CEILING_IN_MEMORY = 25_000
"""Rows that Python computes are held in memory: some 20 MB where they are short."""
_PERCENTILE = 0.9
_PERCENTILE_BESIDE = 0.5
"""Beside an overhead most of what differs between chunks is not of the rows' making."""
_GROWTH = 1.5
_GENTLY = 0.85
"""What is left of a size, at least, after one chunk beside an overhead, which is known roughly."""
_PANIC = 5.0
_PANIC_CUT = 10
_PANIC_CUT_AGAIN = 2
_AGAIN = 30
"""So few chunks after another fright, and after one of half as many rows that was none, it is
cut by half only, lest stalls that come again and again leave nothing. So is it beside an overhead:
there it is hardly ever the rows."""


class Sizer:
    """Aims at `target_seconds` a chunk; follows the 90th percentile of recent chunks.

    Growth is 1.5 times at most, and a chunk five times over the target cuts the size to a tenth
    at once: the constants of block/spirit's dynamic chunk sizer. Rows that are known to be wide
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
        self._widths: deque[int] = deque([row_bytes or 1], maxlen=RECENT)
        self._recent: deque[Seen] = deque(maxlen=RECENT)
        self._overhead = Overhead()
        self._brink = Brink()
        self._fright: Seen | None = None
        """The last chunk, if it was far too long."""
        self._learned = 0
        self._frightened = -_AGAIN
        self._settled = fixed or self._bounded(first)
        """The size, but for looks at smaller ones."""
        self.size = self._settled

    def aim(self, seconds: float) -> None:
        """Aim at another time from the next chunk on."""
        if self.fixed is None and seconds < self.target_seconds:
            self._settle(int(self._settled * seconds / self.target_seconds))
        self.target_seconds = seconds

    def observe(self, rows: int, seconds: float, row_bytes: int | None = None) -> None:
        """Learn from a committed chunk of `rows` rows, each of about `row_bytes` bytes, whose
        statement and commit took `seconds`.

        A chunk that used less than half of its size says nothing about a full one.
        """
        if row_bytes:
            self._widths.append(row_bytes)
        if self.fixed is not None:
            self.size = min(2 * self.size, self.fixed)
            return
        self._brink.pass_chunk()
        seen = Seen(rows, seconds)
        if seconds > _PANIC * self._overhead.aim(self.target_seconds) and rows > 1:
            self._take_fright(seen)
        elif rows * 2 < self.size:
            self._settle(self._settled)
        elif self.size < self._settled:
            self._overhead.learn_from_look(seen, self._recent)
            self._settle(self._settled)
        else:
            self._learn(seen)

    def halve(self) -> None:
        """Take half as many rows: the chunk met a lock or a time limit."""
        self._recent.clear()
        self._settled = self.size = max(1, self.size // 2)

    def _take_fright(self, seen: Seen) -> None:
        last, self._fright = self._fright, seen
        if last and self._overhead.is_told_by(last, seen):
            return
        was_short = self._recent[-1].rows if self._recent else 0
        is_again = self._learned - self._frightened < _AGAIN and 2 * was_short >= seen.rows
        cut = _PANIC_CUT_AGAIN if is_again or self._overhead.is_known else _PANIC_CUT
        self._frightened = self._learned
        self._brink.learn(seen.rows)
        self._recent.clear()
        self._settle(min(self.size, seen.rows) // cut)

    def _learn(self, seen: Seen) -> None:
        self._fright = None
        self._learned += 1
        self._recent.append(seen)
        self._overhead.learn(self._recent, self.target_seconds)
        wanted = min(self._wanted(), int(self._settled * _GROWTH) + 1)
        if self._overhead.is_known:
            wanted = max(wanted, int(self._settled * _GENTLY))
        if self._overhead.is_doubted:
            wanted = min(wanted, self._settled)
        self._settle(wanted)
        self.size = self._overhead.look(self._settled, self._learned)
        # Chunks of less than half of the size say nothing about it, nor do they later.
        while self._recent and self._recent[0].rows * 2 < self._settled:
            self._recent.popleft()

    def _settle(self, rows: int) -> None:
        self._settled = self.size = self._bounded(self._brink.below(rows))

    def _wanted(self) -> int:
        overhead, aim = self._overhead.seconds, self._overhead.aim(self.target_seconds)
        percentile = _PERCENTILE_BESIDE if self._overhead.is_known else _PERCENTILE
        costs = sorted((one.seconds - overhead) / one.rows for one in self._recent)
        cost = max(costs[int(percentile * (len(costs) - 1))], 1e-9)
        return int(min((aim - overhead) / cost, 1e9))

    def _bounded(self, rows: int) -> int:
        """The widest of the recent chunks decides what fits into the bytes."""
        return max(1, min(rows, self.ceiling, int(min(self.max_bytes / max(self._widths), 1e9))))
