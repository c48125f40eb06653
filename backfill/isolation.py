"""Finds the bad rows of a chunk that was refused, by halving it, and quarantines them.

Each half is a whole transaction, since savepoints do not survive InnoDB's deadlocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backfill.dialects import ErrorKind
from backfill.errors import RowsTooSlow
from backfill.failures import describe
from backfill.runs import Failure
from backfill.writers.rows import is_about_a_row

if TYPE_CHECKING:
    from collections.abc import Callable

    import tenacity

    from backfill.chunks import Chunk
    from backfill.holding import Holding
    from backfill.keys import KeyValues
    from backfill.scans import Scans
    from backfill.sessions import Session
    from backfill.targets import Target

SUSPECT = (ErrorKind.UNKNOWN, ErrorKind.SCHEMA, ErrorKind.RIGHTS)
"""What usually stops every row, though one row's cast, function or trigger may raise it as well."""
_MOST_TRIALS = 48
"""Enough to halve the largest chunk down to single rows."""
_TOO_SLOW_TRIES = 3
"""Attempts at the same rows before they are to blame for a time limit, rather than the moment."""


class Isolation:
    """Isolates the bad rows of one worker's chunks.

    Parameters:
        commit: writes and commits a part of a chunk, and returns how many rows it changed.
        try_out: writes a part and takes it back; False if its rows changed meanwhile.
        quarantine: records a failure instead, and moves the cursor behind the part's only row.
        retrying: repeats one of these, with patience of its own, while the database is in trouble.
    """

    def __init__(
        self,
        target: Target,
        scans: Scans,
        session: Session,
        hold: Holding,
        *,
        commit: Callable[[Chunk], int],
        try_out: Callable[[Chunk], bool],
        quarantine: Callable[[Chunk, Failure], int],
        retrying: tenacity.Retrying,
    ) -> None:
        self._dialect = target.dialect
        self._computes = target.computes
        self._scans = scans
        self._session = session
        self._hold = hold
        self._commit = commit
        self._try_out = try_out
        self._quarantine = quarantine
        self._retrying = retrying
        self._too_slow: tuple[tuple[KeyValues, KeyValues], int] | None = None
        """Between which keys a time limit was met last, and how often in a row."""
        self._of_rows: set[str] = set()
        """Codes of suspect errors that were a row's, since others beside it could be written."""
        self._chunk: Chunk | None = None
        """The one that was refused."""
        self._some_pass = False
        """Whether a row of it could be written."""

    def isolate(self, chunk: Chunk, error: Exception | None) -> int:
        """Commit the good rows of a refused chunk, quarantine the others; the rows changed."""
        self._chunk = chunk = self._with_page(chunk)
        try:
            return self._isolate(chunk, error)
        finally:
            self._chunk, self._some_pass = None, False

    def _isolate(self, chunk: Chunk, error: Exception | None) -> int:
        """Do so for a part; without an error only its neighbour's success says that it is bad."""
        assert chunk.page is not None
        if len(chunk.page) == 1 and error is not None:
            return self._give_up(chunk, error)
        if len(chunk.page) <= 1:
            return self._try(chunk)[1]
        left, right = chunk.halves()
        is_clean, changed = self._try(left)
        if is_clean:
            return changed + self._isolate(right, None)
        return changed + self._try(right)[1]

    def is_about_a_row(self, error: Exception) -> bool:
        """Whether the database or the driver refuses a value, or rows are too slow."""
        if isinstance(error, RowsTooSlow) or self._dialect.error_code(error) in self._of_rows:
            return True
        return is_about_a_row(error, self._dialect, computes=self._computes)

    def ask_others(self, chunk: Chunk, error: Exception) -> None:
        """Learn whether an error that usually stops every row is about some of these: it is where
        others of the chunk can be written. Of one row alone nobody can tell."""
        if not self._is_suspect(error):
            return
        chunk = self._with_page(chunk)
        if chunk.page is not None and len(chunk.page) > 1:
            self._some_pass = self._is_any_writable(chunk)
            self._judge(error)

    def _ask_neighbours(self, part: Chunk, error: Exception) -> None:
        """Learn it of a part, whose neighbours may have been written, or are yet to come."""
        if not self._is_suspect(error):
            return
        self._some_pass = (
            self._some_pass
            or self._is_any_writable(part)
            or any(map(self._is_any_writable_or_whole, self._behind(part)))
        )
        self._judge(error)

    def _judge(self, error: Exception) -> None:
        code = self._dialect.error_code(error)
        if self._some_pass:
            self._of_rows.add(code)
        else:
            self._of_rows.discard(code)

    def _behind(self, part: Chunk) -> list[Chunk]:
        """Return what of the chunk is behind a part of it, if anything is."""
        chunk = self._chunk
        assert chunk is not None
        assert chunk.page is not None
        assert part.page is not None
        keys = list(map(repr, chunk.page.keys))  # NaN is a key that no other one equals
        start = keys.index(repr(part.page.key(-1))) + 1
        if start == len(keys):
            return []
        return [replace(chunk, after=part.upto, page=chunk.page.part(start), strides=())]

    def _is_any_writable_or_whole(self, chunk: Chunk) -> bool:
        return self._is_writable(chunk) or self._is_any_writable(chunk)

    def _is_suspect(self, error: Exception) -> bool:
        is_the_drivers = self._dialect.driver_error(error) is not None
        return is_the_drivers and self._dialect.error_kind(error) in SUSPECT

    def _is_any_writable(self, chunk: Chunk) -> bool:
        """Whether a part of a refused chunk can be written."""
        trials, refused = 0, [chunk]
        while refused and trials < _MOST_TRIALS:
            part = refused.pop()
            if part.page is None or len(part.page) < 2:
                continue
            halves = part.halves()
            trials += len(halves)
            if any(map(self._is_writable, halves)):
                return True
            refused += reversed(halves)
        return False

    def _is_writable(self, chunk: Chunk) -> bool:
        try:
            return self._retrying(self._try_out, chunk)
        except Exception as error:
            if not self._is_suspect(error) and not self.is_about_a_row(error):
                raise
            return False

    def _with_page(self, chunk: Chunk) -> Chunk:
        if chunk.page is not None:
            return chunk
        with self._session.transaction(write=False) as connection:
            return self._scans.whole(connection, chunk)

    def judged(self, chunk: Chunk, error: Exception) -> Exception:
        """Return an error as it is; RowsTooSlow, where these rows have met a time limit so often
        that halving, or quarantine, is all that helps. Each call counts as an attempt."""
        if self._dialect.error_kind(error) is not ErrorKind.TOO_SLOW:
            return error
        ends, tries = (chunk.after, chunk.upto), 0
        if self._too_slow is not None and self._too_slow[0] == ends:
            tries = self._too_slow[1]
        self._too_slow = ends, tries + 1
        if tries + 1 < _TOO_SLOW_TRIES:
            return error
        return RowsTooSlow(self._dialect.error_code(error))

    def _try(self, chunk: Chunk) -> tuple[bool, int]:
        """Commit a part of a refused chunk: whether it was clean, and the rows changed."""
        try:
            changed = self._retrying(self._commit_once, chunk)
            self._some_pass = self._some_pass or changed > 0
            return True, changed
        except Exception as error:
            if not self.is_about_a_row(error):
                self._ask_neighbours(chunk, error)
            if not self.is_about_a_row(error):
                raise
            return False, self._isolate(chunk, error)

    def _commit_once(self, chunk: Chunk) -> int:
        if not self._hold.is_at(chunk.after):
            return 0  # a COMMIT without an answer had happened after all
        try:
            return self._commit(chunk)
        except Exception as error:
            judged = self.judged(chunk, error)
            if judged is error:
                raise
            raise judged from error

    def _give_up(self, chunk: Chunk, error: Exception) -> int:
        assert chunk.page is not None
        failure = Failure(chunk.page.key(0), describe(error, self._dialect))
        return self._retrying(self._quarantine_once, chunk, failure)

    def _quarantine_once(self, chunk: Chunk, failure: Failure) -> int:
        return self._quarantine(chunk, failure) if self._hold.is_at(chunk.after) else 0
