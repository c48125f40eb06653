"""How far the walk looks at a time where few rows are pending: arithmetic, without I/O."""

from __future__ import annotations

from math import inf

from backfill.chunks import LONGEST_STRIDE, is_sparse

_ROOM = 0.9
"""So much of a page is filled by a stride in which rows lie as in the last one: what does not fit
was looked at for nothing."""


class Strides:
    """Doubles while little is found, and keeps to what a page can take."""

    def __init__(self) -> None:
        self._longest = 0
        self._spacing = inf
        """Rows for each that is pending, as the last looks found them."""

    def are_longer_than(self, rows: int) -> bool:
        """Whether rows are so sparse that one looks further than a chunk writes."""
        return self._longest > rows

    def next(self, size: int, wanted: int, *, readers: int = 1) -> int:
        """Return how many rows to look at: a chunk's `size`, or more for so many pending ones,
        with a stride for each reader."""
        if not self.are_longer_than(size):
            return size
        return int(min(self._longest * readers, max(1, self._spacing * wanted * _ROOM)))

    def learn(self, pending: int, scanned: int, *, is_cut: bool = False) -> None:
        """Note how many of the rows were pending; `is_cut`: as many as were wanted, or more."""
        if scanned == 0:
            return
        self._spacing = scanned / pending if pending else 2 * self._spacing
        longer = min(2 * scanned, LONGEST_STRIDE)
        if not is_sparse(pending, scanned):
            self._longest = 0
        else:
            self._longest = longer if is_cut else max(self._longest, longer)

    def shorten(self) -> None:
        """Look no further than a chunk's rows, after a statement that took too long."""
        self._longest = 0
