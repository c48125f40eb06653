"""The walk, which cuts a key range into chunks.

A chunk is bounded twice: by the rows it may write (`size`) and by the rows that any one
statement may scan (`stride`). Bounds are keys that the database gave, so the cost of a chunk
depends neither on how far the walk is nor on how sparse the keys are. Only where integers have
hardly a gap they are arithmetic: between two numbers are no more rows than numbers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill.chunks import MOST_SCATTERED, Chunk, is_sparse
from backfill.pages import PageReader
from backfill.scans import Scans
from backfill.strides import Strides
from backfill.survey import Seen, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa

    from backfill.companion import Companion
    from backfill.keys import KeyValues
    from backfill.pages import Page
    from backfill.targets import Target

_DENSE = 0.95
"""Rows for each number from which on integers have hardly a gap."""
_LOOSE = 0.2
"""Rows for each number from which on it pays to look through numbers, gaps and all: a search for
where a stride of rows ends costs as much as the look itself."""
_FULL = 0.75
"""A page that is filled so far is not worth another look."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The pending rows that were found among those in (after, upto]."""

    after: KeyValues
    upto: KeyValues
    rows: int
    found: Page


class Walk:
    """Cuts one key range into chunks.

    Pending rows are read where Python computes them, or where only they tell how many an
    `apply` changes; else they are looked at only where they are sparse. `quarantined` keys are
    passed over.
    """

    def __init__(
        self,
        target: Target,
        quarantined: Sequence[KeyValues] = (),
        *,
        keys_only: bool = False,
        companion: Companion | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scans = Scans(target, quarantined, keys_only=keys_only)
        self._clock = clock
        self._strides = Strides()
        self._counts_up = target.key.is_integer and not target.is_custom
        self._density = 0.0
        """Rows for each number, as the last look found them."""
        self._survey = Survey(target, self.scans.pending, companion)
        self._reads = target.computes
        self._always_looks = target.computes or target.is_custom
        self._collects = target.key.is_single and not target.is_custom
        """Rows of several strides can be written together, by their keys; a range would be
        scanned once more, under locks."""
        self._keys_reader = PageReader(target, keys_only=True)

    def next(
        self,
        connection: sa.Connection,
        after: KeyValues,
        upper: KeyValues,
        size: int,
        seconds: float,
    ) -> Chunk:
        """Return the chunk behind `after` in a range that ends at `upper`.

        It writes `size` rows at most. Where little is pending it goes on for about
        `seconds`, so that an empty stretch costs one checkpoint and not many.
        """
        if self.scans.pending is None:
            return self._next_of_all(connection, after, upper, size)
        if not self._always_looks and not self._strides.are_longer_than(size):
            return self._next_rows(connection, after, upper, size)
        return self._next_pending(connection, after, upper, size, seconds)

    @property
    def looks_far(self) -> bool:
        """Whether little is pending, so that the next chunk is cut by a look at many rows."""
        return self.scans.pending is not None and self._strides.are_longer_than(0)

    def _next_of_all(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int
    ) -> Chunk:
        if not self._reads:
            return self._next_rows(connection, after, upper, size)
        page = self.scans.page(connection, after, upper, size)
        is_last = len(page) < size or page.key(-1) == upper
        upto = upper if is_last else page.key(-1)
        return Chunk(after, upto, len(page), is_last, page, by_bounds=True)

    def _next_rows(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int
    ) -> Chunk:
        """Return the next `size` rows, pending or not."""
        end = self._reckoned(after, upper, size) if self._density > _DENSE else None
        if end is not None and end != upper:
            return Chunk(after, end, size, is_last=False, is_counted=False)
        return Chunk(after, *self.scans.bounded(connection, after, upper, size))

    def _reckoned(self, after: KeyValues, upper: KeyValues, stride: int) -> KeyValues | None:
        """Return a key that has no more than `stride` rows up to it, where numbers tell."""
        numbers = _numbers(after, upper)
        if numbers is None:
            return None
        return (after[0] + stride,) if stride < numbers else upper

    def _next_pending(
        self,
        connection: sa.Connection,
        after: KeyValues,
        upper: KeyValues,
        size: int,
        seconds: float,
    ) -> Chunk:
        """Collect pending rows from one stride after the other."""
        deadline = self._clock() + seconds
        page, start, scanned = self.scans.reader.empty, after, 0
        strides: list[tuple[KeyValues, int]] = []
        while True:
            is_long = self._strides.are_longer_than(size)
            most = min(size, MOST_SCATTERED) if is_long else size
            for look in self._looks(connection, start, upper, size, most - len(page)):
                page, scanned = page + look.found, scanned + look.rows
                strides.append((look.upto, look.rows))
                self._learn_density(look.after, look.upto, look.rows)
                self._strides.learn(len(look.found), look.rows, is_cut=len(page) >= most)
                start = look.upto
            is_last = start == upper
            if is_last or self._is_enough(page, scanned, most) or self._clock() > deadline:
                return Chunk(after, start, scanned, is_last, page, tuple(strides))

    def _looks(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int, wanted: int
    ) -> list[_Look]:
        """Find the first pending rows behind `after`, at most as many as are wanted."""
        may_survey = self._survey.is_possible and self._density > _LOOSE
        if may_survey and self._strides.are_longer_than(0):
            looks = self._surveyed(connection, after, upper, size, wanted)
            if looks:
                return looks
        return [self._search(connection, after, upper, self._strides.next(size, wanted), wanted)]

    def _search(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int, most: int
    ) -> _Look:
        """Look in two scans, one for the end of the stride and one for the rows; for any key."""
        end, passed, _ = self.scans.bounded(connection, after, upper, stride)
        found = self.scans.page(connection, after, end, most)
        if len(found) == most and found.key(-1) != end:
            end = found.key(-1)
            passed = self.scans.count(connection, after, end)
        return _Look(after, end, passed, found)

    def _surveyed(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int, wanted: int
    ) -> list[_Look]:
        """Look in one scan, or in two side by side; nothing where the database cannot."""
        readers = self._survey.readers()
        upto = self._reckoned(after, upper, self._strides.next(size, wanted, readers=readers))
        looks: list[_Look] = []
        if upto is None:
            return looks
        for seen in self._survey.look(connection, after, upto, readers):
            if seen.pending and not wanted:
                break
            looks.append(self._taken(connection, seen, wanted))
            if looks[-1].upto != seen.upto:
                break
            wanted -= len(seen.pending)
        return looks

    def _taken(self, connection: sa.Connection, seen: Seen, most: int) -> _Look:
        """Take the first pending rows of what was seen, and no row behind them."""
        keys, upto, rows = seen.pending[:most], seen.upto, seen.rows
        if len(keys) < len(seen.pending):
            upto = (keys[-1],)
            rows = self.scans.count(connection, seen.after, upto)
        found = self._keys_reader.of_numbers(keys)
        if self.scans.reader.reads_rows:
            chunk = Chunk(seen.after, upto, rows, is_last=False, page=found)
            found = self.scans.known(connection, chunk)
        return _Look(seen.after, upto, rows, found)

    def _is_enough(self, page: Page, scanned: int, most: int) -> bool:
        if page and not (self._collects and is_sparse(len(page), scanned)):
            return True
        return len(page) > _FULL * min(most, MOST_SCATTERED)

    def shorten(self) -> None:
        """Scan no further than a chunk's rows, after a statement that took too long."""
        self._strides.shorten()

    def learn(self, chunk: Chunk, changed: int) -> None:
        """Lengthen the stride after a chunk in which little was to do."""
        self._learn_density(chunk.after, chunk.upto, chunk.scanned)
        if chunk.page is None and self.scans.pending is not None:
            self._strides.learn(changed, chunk.scanned)

    def _learn_density(self, after: KeyValues, upto: KeyValues, rows: int) -> None:
        if self._counts_up:
            numbers = _numbers(after, upto)
            self._density = rows / numbers if numbers else 0.0


def _numbers(after: KeyValues, upto: KeyValues) -> int | None:
    """Return how many whole numbers are in (after, upto]; None where the ends are none: a column
    of SQLite holds anything."""
    if not after or not isinstance(after[0], int) or not isinstance(upto[0], int):
        return None
    return upto[0] - after[0]
