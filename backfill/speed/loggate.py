"""How many rows still fit into the database's redo log: arithmetic, but for one look at it.

When InnoDB's log is full every writer waits until pages are flushed, for seconds at worst; and
MariaDB (10.11, measured) flushes nothing for the log's sake before 7/8 of it are in use. So the
gate lets us come near the end and no further, and what is waited for does happen.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.dialects import LogFill

WAIT_SECONDS = 0.02
_MOST = 0.97
"""Of the log, which we do not pass."""
_FLUSHED = 0.94
"""Of the log: below it nobody is known to flush, and so there is nothing to wait for."""
_WORTH_ROWS = 200
"""Fewer rows are not worth a chunk while it is being flushed."""
_PATIENCE_SECONDS = 5.0
_GUESS = 1_000.0
"""Bytes of log a row, before any is known."""
_FORGETS = 0.3


class LogGate:
    """One worker's view of the log that all of them fill."""

    def __init__(
        self, look: Callable[[], LogFill | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._rows = 0
        self._last_written: float | None = None
        self._row_bytes = _GUESS
        self._waits_since: float | None = None
        self.most_rows: int | None = None
        """What the next chunk may have; None: whatever it likes."""

    def count(self, rows: int) -> None:
        """Note rows that were written since the last look."""
        self._rows += rows

    def open(self) -> None:
        """Let everything pass, without a look: nobody else would wait."""
        self.most_rows = self._last_written = self._waits_since = None

    def seconds(self, workers: int) -> float:
        """Look, and return how long to wait before the next look; 0: go on.

        What others write counts as ours: it fills the log while our rows are written.
        """
        fill = self._look()
        if fill is None:
            self.open()
            return 0.0
        self._learn(fill.written)
        self.most_rows = max(1, int((_MOST * fill.most - fill.age) / self._row_bytes / workers))
        if self.most_rows >= _WORTH_ROWS or fill.age < _FLUSHED * fill.most:
            self._waits_since = None
            return 0.0
        if self._waits_since is None:
            self._waits_since = self._clock()
        if self._clock() - self._waits_since < _PATIENCE_SECONDS:
            return WAIT_SECONDS
        self._waits_since = None
        return 0.0

    def _learn(self, written: float) -> None:
        """Follow upwards at once, and slowly downwards."""
        if self._rows and self._last_written is not None:
            found = (written - self._last_written) / self._rows
            slowly = self._row_bytes + _FORGETS * (found - self._row_bytes)
            self._row_bytes = max(1.0, found, slowly)
        self._last_written, self._rows = written, 0
