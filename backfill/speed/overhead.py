"""What a chunk takes however few rows it has, where that is long: arithmetic without I/O.

The way to the server is long, or a commit waits for a replica. What the size cannot change is no
reason to shrink: block/spirit once fell to ten rows a chunk so.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECENT = 11
"""Chunks that are remembered."""
_OF_OVERHEAD = 0.5
"""Where a chunk of hardly any rows takes longer than the target, its rows may take so much of
that besides, though never more than twice the target, nor less than half of it."""
_SPREAD = 4
_HARDLY = 0.5
"""So many times fewer rows that take more than so much of the time: it is not the rows."""
_LOOK_EVERY = 8
_LOOKS = 9
"""Beside an overhead one chunk of so many is `_SPREAD` times smaller, to see what it takes; that
of so many is remembered."""
_LONG_AGO = 50
_SMOOTHING = 0.2
_GONE = 0.3
"""Three chunks in a row that take less than so much of the overhead show that it is no more."""
_PROPORTIONAL = 0.8
"""Two or three rows that take so much of two or three times as long are slow themselves."""
_FEW = 10
_FEWER = 0.6
_AS_LONG = 0.75
"""If the very next chunk has few rows, so much fewer, and takes so much of the time all the same,
it is not the rows."""


class Seen(NamedTuple):
    """A chunk: its rows, and what its statement and commit took."""

    rows: int
    seconds: float


class Overhead:
    """Learns from chunks of different sizes whether there is one, and how long it is."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 where none is known."""
        self._shrinking: list[Seen] = []
        """What was seen since chunks became too long."""
        self._looks: deque[Seen] = deque(maxlen=_LOOKS)
        """Smaller chunks beside it."""
        self._doubts = 0

    @property
    def is_known(self) -> bool:
        return self.seconds > 0

    @property
    def is_doubted(self) -> bool:
        """Whether the last chunk's few rows look slow themselves."""
        return self._doubts > 0

    def aim(self, target_seconds: float) -> float:
        """Return what a chunk may take beside it."""
        if not self.is_known:
            return target_seconds
        for_rows = min(_OF_OVERHEAD * self.seconds, 2 * target_seconds)
        return self.seconds + max(for_rows, _OF_OVERHEAD * target_seconds)

    def look(self, size: int, chunks: int) -> int:
        """Return the size of the next chunk, after so many: now and then a smaller one, to see."""
        looks = self.is_known and chunks % _LOOK_EVERY == 0 and size >= _SPREAD**2
        return size // _SPREAD if looks else size

    def is_told_by(self, last: Seen, now: Seen) -> bool:
        """Whether two chunks that were far too long, one after the other, show that it is not the
        rows; it is known then."""
        is_as_long = now.seconds >= _AS_LONG * last.seconds
        is_told = is_as_long and now.rows <= min(_FEW, _FEWER * last.rows)
        if is_told:
            self._set(now.seconds)
        return is_told

    def learn(self, recent: Sequence[Seen], target_seconds: float) -> None:
        """Learn from the last of the recent chunks. Smaller ones that take hardly less time tell
        it, or single rows do, until others take less, or two rows twice as long."""
        seen = recent[-1]
        taken = [one.seconds for one in recent]
        if self.is_known:
            is_less = max(taken[-3:]) < _GONE * self.seconds
            is_rows = seen.seconds > _PROPORTIONAL * seen.rows * self.seconds
            self._doubts = self._doubts + 1 if 1 < seen.rows < 4 and is_rows else 0
            if is_less or self._doubts > 1:
                self._set(0.0)
        if len(taken) == RECENT and all(one.rows == 1 for one in recent):
            self._set(median(taken))
        elif not self.is_known:
            self._learn_from_shrinking(seen, target_seconds)

    def learn_from_look(self, smaller: Seen, recent: Sequence[Seen]) -> None:
        """Compare a smaller chunk with the others, whatever it is that has changed since."""
        self._looks.append(smaller)
        if recent and len(self._looks) >= 3:
            less, more = _middle(self._looks), _middle(recent)
            if more.rows > less.rows:
                self.seconds += _SMOOTHING * (_without_rows(less, more) - self.seconds)

    def _set(self, seconds: float) -> None:
        self.seconds, self._doubts = seconds, 0
        self._shrinking.clear()
        self._looks.clear()

    def _learn_from_shrinking(self, seen: Seen, target_seconds: float) -> None:
        if seen.seconds > target_seconds or self._shrinking:
            self._shrinking.append(seen)
        most = self._shrinking[:3]
        least = self._shrinking[3:][-_LOOKS:]
        if len(least) < 3:
            return
        before, now = _middle(most), _middle(least)
        if now.rows * _SPREAD <= before.rows and len(least) == _LOOKS:
            if now.seconds > _HARDLY * before.seconds:
                self._set(_without_rows(now, before))
            self._shrinking.clear()
        elif now.seconds <= target_seconds or len(self._shrinking) > _LONG_AGO:
            self._shrinking.clear()


def _middle(seen: Iterable[Seen]) -> Seen:
    rows, seconds = zip(*seen, strict=True)
    return Seen(int(median(rows)), median(seconds))


def _without_rows(less: Seen, more: Seen) -> float:
    """Return what no rows would take: Tukey's resistant line (Exploratory Data Analysis, 1977)."""
    slope = max(0.0, (more.seconds - less.seconds) / (more.rows - less.rows))
    return max(0.0, less.seconds - slope * less.rows)
