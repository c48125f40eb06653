"""How many rows the next chunk takes: arithmetic on the last timings, without I/O."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

CEILING = 250_000
"""More rows gain nothing, even where a million take a second."""
CEILING_IN_MEMORY = 25_000
"""Rows that Python computes are held in memory: some 20 MB where they are short."""
_RECENT = 11
_PERCENTILE = 0.9
_GROWTH = 1.5
_PANIC = 5.0
_PANIC_CUT = 10
_PANIC_CUT_AGAIN = 2
_AGAIN = 30
"""So few chunks after another fright, and after one of half as many rows that was none, it is
cut by half only, lest stalls that come again and again leave nothing. So is it beside an overhead
(see below): there it is hardly ever the rows."""
_OF_OVERHEAD = 0.5
"""Where a chunk of hardly any rows takes longer than the target, its rows may take so much of
that besides, though never more than twice the target, nor less than half of it."""
_PERCENTILE_BESIDE = 0.5
"""Beside such an overhead most of what differs between chunks is not of the rows' making."""
_SPREAD = 4
_HARDLY = 0.5
"""So many times fewer rows that take more than so much of the time: it is not the rows."""
_LOOK_EVERY = 8
_LOOKS = 9
"""Beside an overhead one chunk of so many is `_SPREAD` times smaller, to see what it takes; that
of so many is remembered."""
_LONG_AGO = 50
_SMOOTHING = 0.2
_GENTLY = 0.85
"""What is left of a size, at least, after one chunk beside an overhead, which is known roughly."""
_GONE = 0.3
"""Three chunks in a row that take less than so much of the overhead show that it is no more."""
_PROPORTIONAL = 0.8
"""Two or three rows that take so much of two or three times as long are slow themselves."""
_FEW = 10
_FEWER = 0.6
_AS_LONG = 0.75
"""If the very next chunk has few rows, so much fewer, and takes so much of the time all the same,
it is not the rows: the way to the server is long, or a commit waits for a replica."""
_ALIKE = 2
_BELOW = 0.6
_WARY = 50
_WARIEST = 3_200
"""Who took fright twice at about the same size (less than so many times apart) stays below it for
so many chunks, and longer each time: from there on a plan is another one, or a cache ends."""


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
        self._shrinking: list[_Seen] = []
        """What was seen since chunks became too long."""
        self._looks: deque[_Seen] = deque(maxlen=_LOOKS)
        """Smaller chunks beside an overhead."""
        self._panic: _Seen | None = None
        """The last chunk, if it was far too long."""
        self._brink: int | None = None
        """The rows of the last one that was far too long."""
        self._wary = 0
        self._wary_for = _WARY // 2
        self._overhead = 0.0
        """Seconds that a chunk takes however few rows it has, where that is known to be long."""
        self._learned = 0
        self._frightened = -_AGAIN
        self._doubts = 0
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
        self._wary -= 1
        seen = _Seen(rows, seconds)
        if seconds > _PANIC * self._aim and rows > 1:
            self._take_fright(seen)
        elif rows * 2 < self.size:
            self._settle(self._settled)
        elif self.size < self._settled:
            self._look(seen)
        else:
            self._learn(seen)

    def halve(self) -> None:
        """Take half as many rows: the chunk met a lock or a time limit."""
        self._recent.clear()
        self._settled = self.size = max(1, self.size // 2)

    @property
    def _aim(self) -> float:
        if not self._overhead:
            return self.target_seconds
        for_rows = min(_OF_OVERHEAD * self._overhead, 2 * self.target_seconds)
        return self._overhead + max(for_rows, _OF_OVERHEAD * self.target_seconds)

    def _take_fright(self, seen: _Seen) -> None:
        last, self._panic = self._panic, seen
        is_as_long = last is not None and seen.seconds >= _AS_LONG * last.seconds
        if last and is_as_long and seen.rows <= min(_FEW, _FEWER * last.rows):
            self._set_overhead(seen.seconds)
            return
        was_short = self._recent[-1].rows if self._recent else 0
        is_again = self._learned - self._frightened < _AGAIN and 2 * was_short >= seen.rows
        cut = _PANIC_CUT_AGAIN if is_again or self._overhead else _PANIC_CUT
        self._frightened = self._learned
        self._learn_brink(seen.rows)
        self._recent.clear()
        self._settle(min(self.size, seen.rows) // cut)

    def _learn(self, seen: _Seen) -> None:
        self._panic = None
        self._learned += 1
        self._recent.append(seen)
        self._learn_overhead(seen)
        wanted = min(self._wanted(), int(self._settled * _GROWTH) + 1)
        if self._overhead:
            wanted = max(wanted, int(self._settled * _GENTLY))
        if self._doubts:
            wanted = min(wanted, self._settled)
        looks = self._overhead > 0 and self._learned % _LOOK_EVERY == 0
        self._settle(wanted, looks=looks)
        # Chunks of less than half of the size say nothing about it, nor do they later.
        while self._recent and self._recent[0].rows * 2 < self._settled:
            self._recent.popleft()

    def _settle(self, rows: int, *, looks: bool = False) -> None:
        if self._wary > 0 and self._brink:
            rows = min(rows, int(_BELOW * self._brink))
        self._settled = self.size = self._bounded(rows)
        if looks and self.size >= _SPREAD**2:
            self.size //= _SPREAD

    def _learn_brink(self, rows: int) -> None:
        """Twice at about the same size may be the size; below it, that was none."""
        is_below = self._wary > 0 and self._brink is not None and rows < self._brink
        if is_below:
            self._wary, self._wary_for = 0, _WARY // 2
        elif self._brink and self._brink < _ALIKE * rows and rows < _ALIKE * self._brink:
            self._wary = self._wary_for = min(2 * self._wary_for, _WARIEST)
        self._brink = None if is_below else rows

    # -- what the size cannot change ---------------------------------------------------------

    def _set_overhead(self, seconds: float) -> None:
        self._overhead, self._doubts = seconds, 0
        self._shrinking.clear()
        self._looks.clear()

    def _learn_overhead(self, seen: _Seen) -> None:
        """Smaller chunks that take hardly less time tell it, or single rows do, until others take
        less, or two rows twice as long."""
        taken = [one.seconds for one in self._recent]
        if self._overhead:
            is_less = max(taken[-3:]) < _GONE * self._overhead
            is_rows = seen.seconds > _PROPORTIONAL * seen.rows * self._overhead
            self._doubts = self._doubts + 1 if 1 < seen.rows < 4 and is_rows else 0
            if is_less or self._doubts > 1:
                self._set_overhead(0.0)
        if len(taken) == _RECENT and all(one.rows == 1 for one in self._recent):
            self._set_overhead(median(taken))
        elif not self._overhead:
            self._learn_from_shrinking(seen)

    def _learn_from_shrinking(self, seen: _Seen) -> None:
        if seen.seconds > self._aim or self._shrinking:
            self._shrinking.append(seen)
        most = self._shrinking[:3]
        least = self._shrinking[3:][-_LOOKS:]
        if len(least) < 3:
            return
        before, now = _middle(most), _middle(least)
        if now.rows * _SPREAD <= before.rows and len(least) == _LOOKS:
            if now.seconds > _HARDLY * before.seconds:
                self._set_overhead(_overhead(now, before))
            self._shrinking.clear()
        elif now.seconds <= self.target_seconds or len(self._shrinking) > _LONG_AGO:
            self._shrinking.clear()

    def _look(self, seen: _Seen) -> None:
        """Compare a smaller chunk with the others, whatever it is that has changed since."""
        self._looks.append(seen)
        if self._recent and len(self._looks) >= 3:
            less, more = _middle(self._looks), _middle(self._recent)
            if more.rows > less.rows:
                found = _overhead(less, more)
                self._overhead += _SMOOTHING * (found - self._overhead)
        self._settle(self._settled)

    def _wanted(self) -> int:
        percentile = _PERCENTILE_BESIDE if self._overhead else _PERCENTILE
        costs = sorted((one.seconds - self._overhead) / one.rows for one in self._recent)
        cost = max(costs[int(percentile * (len(costs) - 1))], 1e-9)
        return int(min((self._aim - self._overhead) / cost, 1e9))

    def _bounded(self, rows: int) -> int:
        """The widest of the recent chunks decides what fits into the bytes."""
        return max(1, min(rows, self.ceiling, int(min(self.max_bytes / max(self._widths), 1e9))))


def _middle(seen: Iterable[_Seen]) -> _Seen:
    rows, seconds = zip(*seen, strict=True)
    return _Seen(int(median(rows)), median(seconds))


def _overhead(less: _Seen, more: _Seen) -> float:
    """Return what no rows would take: Tukey's resistant line (Exploratory Data Analysis, 1977)."""
    slope = max(0.0, (more.seconds - less.seconds) / (more.rows - less.rows))
    return max(0.0, less.seconds - slope * less.rows)
