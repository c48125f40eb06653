"""Python: read, compute unlocked, then lock, compare, and write in bulk.

The application writes between our reading and our writing. So the chunk's rows are read
again under locks and compared in Python; SQL's equality has traps (case-blind collations,
floats, json). Rows that changed are computed again under their lock if they are few and
quick, else the chunk goes another round. (Lost-update trials: docs/decisions.md.)
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from backfill.chunks import Chunk, PageRow, Ranged
from backfill.declaration import Backfill
from backfill.errors import DeclarationError
from backfill.failures import describe, stack
from backfill.runs import Failure
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa

    from backfill.chunks import Walk
    from backfill.dialects.base import BulkUpdate
    from backfill.keys import KeyValues
    from backfill.targets import Target

UNDER_LOCK_SECONDS = 0.01
"""Recomputing may hold a chunk's locks for about so long; a row that changes again and again
is at last computed under its own lock alone."""
_PULSE_ROWS = 16
_RAISED = (Exception, SystemExit, CancelledError)
"""What a row's code may raise; a sys.exit() in it must not end the command as if all was done."""


class RowsChanged(Exception):
    """Too many rows changed to compute them under their locks; the fresh page to start from."""

    def __init__(self, page: tuple[PageRow, ...]) -> None:
        super().__init__(f"{len(page)} rows are to be computed again")
        self.page = page


@dataclass(frozen=True, slots=True)
class _Result:
    """What a row was when it was computed, and what came out."""

    row: Any
    output: Mapping[str, Any] | None = None
    error: str | None = None


class RowsWriter(Writer):
    """Calls `transform` or `transform_chunk`."""

    computes: ClassVar[bool] = True

    def __init__(self, target: Target, walk: Walk) -> None:
        super().__init__(target, walk)
        self.declaration = target.declaration()
        self.first_stack: str | None = None
        """The traceback of the first row that failed."""
        self.pulses = self._one_by_one = type(self.declaration).transform is not Backfill.transform
        self._is_mutable = target.reads_mutable
        self._allowed = frozenset(target.declaration.writes)
        self._results: dict[KeyValues, _Result] = {}
        self._seconds_per_row = 0.0
        self._updates: dict[tuple[str, ...], Ranged[BulkUpdate]] = {}

    # -- computing, in no transaction --------------------------------------------------

    def compute(self, chunk: Chunk, pulse: Callable[[], None]) -> Chunk:
        assert chunk.page is not None
        known = self._results
        stale = [read for read in chunk.page if not self._is_known(read)]
        kept = {r.key: known[r.key] for r in chunk.page if r.key in known}
        started = time.perf_counter()
        self._results = {**kept, **self._computed(stale, pulse)}
        self.compute_seconds = time.perf_counter() - started
        if stale:
            self._seconds_per_row = self.compute_seconds / len(stale)
        return chunk

    def _computed(
        self, page: Sequence[PageRow], pulse: Callable[[], None]
    ) -> dict[KeyValues, _Result]:
        if self._one_by_one:
            found = {}
            for i, read in enumerate(page):
                if i % _PULSE_ROWS == 0:
                    pulse()
                found[read.key] = self._one(read)
            return found
        return dict(self._many(page, pulse)) if page else {}

    def _one(self, read: PageRow) -> _Result:
        try:
            output = self.declaration.transform(self._handed_out(read))
        except _RAISED as error:
            return self._failed(read, error)
        return _Result(read.row, self._checked(output))

    def _many(
        self, page: Sequence[PageRow], pulse: Callable[[], None]
    ) -> list[tuple[KeyValues, _Result]]:
        """Halve the rows where `transform_chunk` raises, down to the one at fault."""
        pulse()
        try:
            outputs = list(
                self.declaration.transform_chunk([self._handed_out(read) for read in page])
            )
        except _RAISED as error:
            if len(page) == 1:
                return [(page[0].key, self._failed(page[0], error))]
            middle = len(page) // 2
            return self._many(page[:middle], pulse) + self._many(page[middle:], pulse)
        if len(outputs) != len(page):
            raise DeclarationError(
                f"{self.declaration.name}: transform_chunk() got {len(page)} rows and returned"
                f" {len(outputs)} results; return one for each row, None to leave a row as it is."
            )
        return [
            (read.key, _Result(read.row, self._checked(output)))
            for read, output in zip(page, outputs, strict=True)
        ]

    def _handed_out(self, read: PageRow) -> Any:
        """Return the row for Python; a copy where it could change what was read in place."""
        return deepcopy(read.row) if self._is_mutable else read.row

    def _is_known(self, read: PageRow) -> bool:
        """Whether a row was computed as it is now; NaN equals itself, in JSON 1 is not true."""
        result = self._results.get(read.key)
        if result is None:
            return False
        before, now = result.row, read.row
        if self._is_mutable:
            return repr(before) == repr(now)
        return bool(before == now) or all(
            a == b or (a != a and b != b) for a, b in zip(before, now, strict=True)
        )

    def _failed(self, read: PageRow, error: BaseException) -> _Result:
        self.first_stack = self.first_stack or stack(error)
        return _Result(read.row, error=describe(error, self.target.dialect))

    def _checked(self, output: Any) -> Mapping[str, Any] | None:
        if output is None:
            return None
        if type(output) is dict and self._allowed.issuperset(output):
            return output
        if not isinstance(output, Mapping):
            raise DeclarationError(
                f"{self.declaration.name}: transform must return a mapping of columns to values,"
                f" or None to leave the row; it returned a {type(output).__name__}."
            )
        if not self._allowed.issuperset(output):
            unknown = sorted(set(map(str, output)) - self._allowed)
            raise DeclarationError(
                f"{self.declaration.name}: transform returned {', '.join(unknown)}, which `writes`"
                " does not name. Add it there, or drop it."
            )
        return output

    # -- writing, in the chunk's transaction ---------------------------------------------

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty:
            return Written(0)
        current = self.walk.locked(connection, self.target, chunk)
        known = self._results
        changed = [read for read in current if not self._is_known(read)]
        if changed:
            if len(current) > 1 and len(changed) * self._seconds_per_row > UNDER_LOCK_SECONDS:
                raise RowsChanged(tuple(current))
            known = {**known, **self._computed(changed, lambda: None)}
        results = [(read.key, known[read.key]) for read in current]
        written = self._write(connection, chunk, [(k, r.output) for k, r in results if r.output])
        failures = [Failure(key, result.error) for key, result in results if result.error]
        return Written(written, failures)

    def _write(
        self, connection: sa.Connection, chunk: Chunk, rows: Sequence[tuple[KeyValues, Any]]
    ) -> int:
        groups: dict[tuple[str, ...], list[tuple[KeyValues, Any]]] = defaultdict(list)
        for key, output in rows:
            groups[tuple(output)].append((key, output))
        written = 0
        for columns, group in groups.items():
            update, parameters = self._update(columns).on(chunk)
            written += update.write(connection, group, parameters)
        return written

    def _update(self, columns: tuple[str, ...]) -> Ranged[BulkUpdate]:
        if columns not in self._updates:
            target = self.target
            self._updates[columns] = Ranged(
                target.key,
                lambda narrow: target.dialect.bulk_update(
                    target.table, target.key, columns, narrow
                ),
            )
        return self._updates[columns]
