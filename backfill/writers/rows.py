"""Python: read, compute unlocked, then make sure, and write in bulk.

The application writes between our reading and our writing. Where the bulk write itself can tell
that every row is as it was read, it does (docs/decisions.md). Else the chunk's rows are read
again under locks and compared in Python; SQL's equality has traps (case-blind collations, floats,
json). Rows that changed are computed again under their lock if they are few and quick, else the
chunk goes another round.
"""

from __future__ import annotations

import sys
import time
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice, repeat
from operator import contains
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from backfill.chunks import Chunk, Ranged
from backfill.declaration import Backfill
from backfill.dialects import ErrorKind, Overtaken
from backfill.errors import DeclarationError, RowLeftOut, UnreadableRow, UnsendableValue
from backfill.failures import describe, stack
from backfill.runs import Failure
from backfill.speed.widths import row_bytes
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.dialects import Dialect
    from backfill.dialects.bulk import BulkUpdate
    from backfill.keys import KeyValues
    from backfill.pages import Page, Raw
    from backfill.scans import Scans
    from backfill.targets import Target

UNDER_LOCK_SECONDS = 0.01
"""Recomputing may hold a chunk's locks for about so long; a row that changes again and again
is at last computed under its own lock alone."""
_GROWS, _FEW = 1.25, 16
"""A chunk takes in about so many rows that come while it is computed."""
_PULSE_ROWS = 16
_PULSE_SECONDS = 0.1
"""The lease is looked after each row at first, and each 16 rows where these are as quick."""
_CAREFUL_CHUNKS = 16
"""Chunks that lock first, after one whose rows the application changed meanwhile."""
_RAISED = (Exception, SystemExit, CancelledError)
"""What a row's code may raise; a sys.exit() in it must not end the command as if all was done."""


@dataclass(frozen=True, slots=True)
class _Bad:
    """What came out of a row that could not be computed."""

    error: str


_REFUSED = (UnicodeError, OverflowError, UnreadableRow, UnsendableValue)
"""Drivers let some of Python's own errors through, for text or numbers that they cannot send."""

Output = Mapping[str, Any] | _Bad | None


_Group = tuple[tuple[str, ...], "Page", Sequence[Mapping[str, Any]]]
"""Columns, rows, and what is written to these columns of each row."""


def is_about_a_row(error: BaseException, dialect: Dialect, *, computes: bool) -> bool:
    """Whether the database or the driver refuses a value, be it read or written, or leaves it."""
    if isinstance(error, RowLeftOut) or dialect.error_kind(error) is ErrorKind.DATA:
        return True
    return computes and isinstance(error, _REFUSED)


def _are_alike(outputs: Sequence[Any]) -> bool:
    """Whether all are dicts of the same columns; no object is made for each of them."""
    if set(map(type, outputs)) != {dict} or len(set(map(len, outputs))) > 1:
        return False
    return all(all(map(contains, outputs, repeat(column))) for column in outputs[0])


def _share_dicts(outputs: Sequence[Output]) -> bool:
    """Whether two rows have the very same object, which is not None."""
    if len(set(map(id, outputs))) == len(outputs):
        return False
    some = [id(output) for output in outputs if output is not None]
    return len(set(some)) < len(some)


class RowsChanged(Exception):
    """Too many rows changed to compute them under their locks; the fresh page to start from."""

    def __init__(self, page: Page) -> None:
        super().__init__(f"{len(page)} rows are to be computed again")
        self.page = page


class RowsCame(RowsChanged):
    """The application has inserted so many rows into the chunk that it is better cut again."""


class RowsWriter(Writer):
    """Calls `transform` or `transform_chunk`."""

    computes: ClassVar[bool] = True

    def __init__(self, target: Target, scans: Scans) -> None:
        super().__init__(target, scans)
        self.declaration = target.declaration()
        self.first_stack: str | None = None
        """The traceback of the first row that failed."""
        self.pulses = self._one_by_one = type(self.declaration).transform is not Backfill.transform
        self._allowed = frozenset(target.declaration.writes)
        self._page: Page | None = None
        self._outputs: Sequence[Output] = ()
        """What came out of each row of the page."""
        self._groups: list[_Group] = []
        self._verifies = target.dialect.verifies(target)
        self._copies = False
        """`transform` returns the same dict again and again, so each is copied."""
        self._careful = 0
        self._seconds_per_row = 0.0
        self._updates: dict[tuple[bool, tuple[str, ...]], Ranged[BulkUpdate]] = {}

    def forget(self) -> None:
        self._page = None

    # -- computing, in no transaction --------------------------------------------------

    def compute(self, chunk: Chunk, pulse: Callable[[], None]) -> Chunk:
        assert chunk.page is not None
        started = time.perf_counter()
        if self._page is None:
            stale, outputs = chunk.page, self._computed(chunk.page, pulse)
        else:
            stale, outputs = self._brought_up_to_date(chunk.page, pulse)
        self._page, self._outputs = chunk.page, outputs
        self._groups = self._grouped(chunk.page, outputs)
        self.compute_seconds = time.perf_counter() - started
        self.row_bytes = row_bytes(chunk.page.rows) + row_bytes(outputs)
        if stale:
            self._seconds_per_row = self.compute_seconds / len(stale)
        return chunk

    def _brought_up_to_date(
        self, page: Page, pulse: Callable[[], None]
    ) -> tuple[Page, list[Output]]:
        """Compute what is not known of a page: the rows that are new, or changed meanwhile."""
        known = self._known()
        stale = page.of([raw for raw in page.rows if not self._is_known(page, raw, known)])
        fresh = dict(zip(stale.keys, self._computed(stale, pulse), strict=True))
        return stale, [fresh[key] if key in fresh else known[key][1] for key in page.keys]

    def _known(self) -> dict[KeyValues, tuple[Raw, Output]]:
        page = self._page
        if page is None:
            return {}
        return dict(zip(page.keys, zip(page.rows, self._outputs, strict=True), strict=True))

    def _is_known(
        self, page: Page, raw: Raw, known: Mapping[KeyValues, tuple[Raw, Output]]
    ) -> bool:
        """Whether a row was computed as it is now."""
        found = known.get(page.reader.key(raw))
        return found is not None and page.reader.is_same_row(found[0], raw)

    def _computed(self, page: Page, pulse: Callable[[], None]) -> list[Output]:
        if not page:
            return []
        if not self._one_by_one:
            return self._many(page, pulse)
        outputs = self._one_each(page, pulse)
        if not self._copies and _share_dicts(outputs):
            self._copies = True  # perhaps one dict, changed for each row
            return self._one_each(page, pulse)
        return outputs

    def _halved(self, page: Page, error: BaseException, pulse: Callable[[], None]) -> list[Output]:
        """Compute a page in two parts, down to the row that raises."""
        if len(page) == 1:
            return [self._failed(error)]
        middle = len(page) // 2
        return self._computed(page.part(0, middle), pulse) + self._computed(
            page.part(middle), pulse
        )

    def _one_each(self, page: Page, pulse: Callable[[], None]) -> list[Output]:
        outputs = list[Output]()
        computing: Iterator[Any] = map(self.declaration.transform, page.given())
        if self._copies:
            computing = map(copy, computing)
        rows = 1
        while len(outputs) < len(page):
            pulse()
            began = time.perf_counter()
            wanted = min(len(outputs) + rows, len(page))
            try:
                outputs.extend(islice(computing, wanted - len(outputs)))  # up to an error
                if len(outputs) < wanted:  # a row's StopIteration looks like the end of all rows
                    outputs.append(self._failed(StopIteration()))
            except _RAISED as error:
                outputs.append(self._failed(error))
            is_quick = time.perf_counter() - began < _PULSE_SECONDS
            rows = min(2 * rows, _PULSE_ROWS) if is_quick else 1
        return outputs

    def _many(self, page: Page, pulse: Callable[[], None]) -> list[Output]:
        pulse()
        try:
            returned: Any = self.declaration.transform_chunk(list(page.given()))
            outputs = None if returned is None else list[Output](returned)
        except _RAISED as error:
            return self._halved(page, error, pulse)
        if outputs is None or len(outputs) != len(page):
            many = "nothing" if outputs is None else f"{len(outputs)} results"
            raise DeclarationError(
                f"{self.declaration.name}: transform_chunk() got {len(page)} rows and returned"
                f" {many}; return one for each row, None to leave a row as it is."
            )
        return outputs

    def _failed(self, error: BaseException) -> _Bad:
        self.first_stack = self.first_stack or stack(error)
        return _Bad(describe(error, self.target.dialect))

    # -- writing, in the chunk's transaction ---------------------------------------------

    def be_careful(self) -> None:
        self._careful = sys.maxsize

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty and self.scans.pending is not None:
            return Written(0)
        has_failed = _Bad in set(map(type, self._outputs))  # and may be mended meanwhile
        if self._verifies and not self._careful and not has_failed and self._is_all_verified():
            return self._write_as_read(connection, chunk)
        self._careful = max(0, self._careful - 1)
        return self._write_locked(connection, chunk)

    def _is_all_verified(self) -> bool:
        """Whether each row is written, and thereby compared, where no sweep looks again at one
        that was left and has changed since."""
        page = self._page
        assert page is not None
        return self.scans.pending is not None or len(page) == sum(
            len(part) for _, part, _ in self._groups
        )

    def _write_as_read(self, connection: sa.Connection, chunk: Chunk) -> Written:
        """Write rows that are still what was read. Raises Overtaken where one is not, or where one
        came that no sweep would find."""
        page = self._page
        assert page is not None
        try:
            if self.scans.pending is None and self.scans.count(
                connection, chunk.after, chunk.upto
            ) != len(page):
                raise Overtaken
            return Written(self._write_groups(self._groups, chunk, connection, verifies=True))
        except Overtaken:
            self._careful = _CAREFUL_CHUNKS
            raise

    def _write_locked(self, connection: sa.Connection, chunk: Chunk) -> Written:
        page = self.scans.locked(connection, chunk)
        assert self._page is not None
        if len(page) > _GROWS * len(self._page) + _FEW:
            raise RowsCame(page)
        if page.is_same(self._page):
            groups, outputs = self._groups, self._outputs
        else:
            outputs = self._recomputed(page)
            groups = self._grouped(page, outputs)
        written = self._write_groups(groups, chunk, connection, verifies=False)
        return Written(written, self._failures(page, outputs))

    def _recomputed(self, page: Page) -> list[Output]:
        """Compute rows that changed under their locks. Raises RowsChanged if that takes long."""
        known = self._known()
        changed = page.of([raw for raw in page.rows if not self._is_known(page, raw, known)])
        seconds = len(changed) * self._seconds_per_row
        if changed and len(page) > 1 and seconds > UNDER_LOCK_SECONDS:
            raise RowsChanged(page)
        fresh = dict(zip(changed.keys, self._computed(changed, lambda: None), strict=True))
        return [fresh[key] if key in fresh else known[key][1] for key in page.keys]

    def _write_groups(
        self,
        groups: Sequence[_Group],
        chunk: Chunk,
        connection: sa.Connection,
        *,
        verifies: bool,
    ) -> int:
        written = 0
        for columns, page, outputs in groups:
            update, parameters = self._update(columns, verifies=verifies).on(chunk)
            changed = update.write(connection, page, outputs, parameters)
            if verifies and changed != len(page):
                raise Overtaken
            if changed != len(page) and self.target.dialect.counts_writes:
                raise RowLeftOut()  # since they are locked, nobody else was in the way
            written += changed
        return written

    def _failures(self, page: Page, outputs: Sequence[Output]) -> list[Failure]:
        return [
            Failure(page.key(i), output.error)
            for i, output in enumerate(outputs)
            if type(output) is _Bad
        ]

    def _grouped(self, page: Page, outputs: Sequence[Output]) -> list[_Group]:
        """Return the rows that are to be written, by the columns that they write."""
        if _are_alike(outputs):
            return self._one_group(page, outputs)  # type: ignore[arg-type]
        groups: dict[tuple[str, ...], tuple[list[Raw], list[Mapping[str, Any]]]] = {}
        for raw, output in zip(page.rows, outputs, strict=True):
            if output is None or isinstance(output, _Bad):
                continue
            self._check(output)
            rows, values = groups.setdefault(tuple(output), ([], []))
            rows.append(raw)
            values.append(output)
        return [(c, page.of(rows), values) for c, (rows, values) in groups.items() if c]

    def _one_group(self, page: Page, outputs: Sequence[Mapping[str, Any]]) -> list[_Group]:
        """All rows write the same columns, as they mostly do."""
        self._check(outputs[0])
        self._check_no_sql(outputs[0])
        columns = tuple(outputs[0])
        return [(columns, page, outputs)] if columns else []

    def _check(self, output: Any) -> None:
        if not isinstance(output, Mapping):
            raise DeclarationError(
                f"{self.declaration.name}: transform must return a mapping of columns to values,"
                f" or None to leave the row; it returned a {type(output).__name__}."
            )
        if not self._allowed.issuperset(output):
            raise DeclarationError(
                f"{self.declaration.name}: transform returned {self._unknown(output)}, which"
                " `writes` does not name. Add it there, or drop it."
            )

    def _check_no_sql(self, output: Mapping[str, Any]) -> None:
        for column, value in output.items():
            if isinstance(value, sa.ClauseElement):
                raise DeclarationError(
                    f"{self.declaration.name}: transform returned SQL for {column!r}. Compute the"
                    " value in Python, or say it in `values`, which the database computes."
                )

    def _unknown(self, output: Mapping[str, Any]) -> str:
        """Name what looks like a column; what else is there may be a row's value."""
        columns = [*self.target.table.c.keys(), *self._allowed]
        unknown = sorted(set(map(str, output)) - self._allowed)
        shown = [name for name in unknown if get_close_matches(name, columns, n=1)]
        return ", ".join(shown) or "something"

    def _update(self, columns: tuple[str, ...], *, verifies: bool) -> Ranged[BulkUpdate]:
        wanted = (verifies, columns)
        if wanted not in self._updates:
            target = self.target
            self._updates[wanted] = Ranged(
                target.key,
                lambda narrow: target.dialect.bulk_update(
                    target,
                    columns,
                    self._pending(narrow) if verifies else narrow,
                    verifies=verifies,
                ),
            )
        return self._updates[wanted]

    def _pending(self, narrow: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        return narrow if self.scans.pending is None else sa.and_(narrow, self.scans.pending)
