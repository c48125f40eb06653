"""How many rows a worker's next chunk may have, by the settings and the company of the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill.speed.sizing import CEILING, CEILING_IN_MEMORY, Sizer

if TYPE_CHECKING:
    from backfill.settings import Settings
    from backfill.speed.pacing import Pace
    from backfill.targets import Target

_COMPUTE_SHARE = 20
"""Computing holds nothing, so it may take this much longer than writing."""


_MOST_HELD = 5_000
"""Rows of a custom chunk, whose keys stand in each of its statements."""


class ChunkSize:
    """One worker's size of a chunk; begun anew where somebody changes the settings."""

    def __init__(self, target: Target, pace: Pace) -> None:
        self._dialect = target.dialect
        self._ceiling = CEILING_IN_MEMORY if target.computes else CEILING
        self._most = _MOST_HELD if target.is_custom else None
        self._pace = pace
        self._row_bytes: int | None = None
        self._sized_by: Settings | None = None
        self._sizer = self._new_sizer()

    @property
    def rows(self) -> int:
        """What the last chunks have come to."""
        return self._sizer.size

    @property
    def target_seconds(self) -> float:
        """How long a chunk is to take."""
        settings, dialect = self._pace.settings, self._dialect
        if settings.target_seconds is not None:
            return settings.target_seconds
        return dialect.company_seconds if self._pace.has_company else dialect.target_seconds

    def measured(self, row_bytes: int | None) -> None:
        """Begin with rows of about so many bytes, as the database stores them."""
        self._row_bytes = row_bytes
        self._sizer = self._new_sizer()

    def begin(self, rows: int | None) -> None:
        """Begin a range, where another worker had come to so many rows."""
        if rows and self._pace.settings.chunk_size is None:
            self._sizer = self._new_sizer(rows)

    def next(self, most: int | None) -> int:
        """Return the next chunk's rows, `most` at most."""
        if self._sized_by is not self._pace.settings:
            self._sizer = self._new_sizer(self._sizer.size)
        self._sizer.aim(self.target_seconds)
        rows = self._pace.size(self._sizer.size)
        return min(limit for limit in (rows, most, self._most) if limit is not None)

    def halve(self) -> None:
        """Take fewer rows: a smaller chunk meets fewer locks and takes less time."""
        self._sizer.halve()

    def observe(
        self, rows: int, seconds: float, compute_seconds: float, row_bytes: int | None
    ) -> None:
        """Learn from a chunk that was committed."""
        self._sizer.observe(rows, max(seconds, compute_seconds / _COMPUTE_SHARE), row_bytes)

    def _new_sizer(self, first: int | None = None) -> Sizer:
        self._sized_by = how = self._pace.settings
        return Sizer(
            self.target_seconds,
            how.chunk_size,
            first or self._dialect.first_rows,
            self._ceiling,
            max_bytes=how.chunk_bytes or self._dialect.chunk_bytes,
            row_bytes=self._row_bytes,
        )
