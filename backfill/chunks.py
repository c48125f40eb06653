"""Chunks, and statements that are limited to one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from backfill.keys import KeyValues, alike

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from backfill.keys import Key
    from backfill.pages import Page

T = TypeVar("T")

LONGEST_STRIDE = 50_000
"""Rows that one statement scans at most while few are pending: about 10 ms on PostgreSQL."""
MOST_SCATTERED = 900
"""Keys that one statement looks up; older SQLite binds 999 values at most (sqlite.org/limits)."""
_FEW = 4
"""Fewer pending rows than one in so many are sparse."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of one transaction: keys in (after, upto]."""

    after: KeyValues
    upto: KeyValues
    scanned: int
    """Rows of the table between the bounds, pending or not."""
    is_last: bool
    """Nothing of the range is left behind it."""
    page: Page | None = None
    """The pending rows, where they were read to find the bounds."""
    strides: tuple[tuple[KeyValues, int], ...] = ()
    """Each stride's last key and its rows, where there were several."""
    is_counted: bool = True
    """False: `scanned` is the most that it can be."""
    by_bounds: bool = False
    """Its rows are those between its bounds, and not between the first and the last one of its
    page: no sweep would find one that was inserted meanwhile."""

    @property
    def telling_page(self) -> Page | None:
        """The page that tells its rows; None where its bounds do."""
        return self.page if self.page and not self.by_bounds else None

    @property
    def is_sparse(self) -> bool:
        """Whether most of the rows between the bounds are not pending."""
        return self.page is not None and is_sparse(len(self.page), self.scanned)

    @property
    def is_empty(self) -> bool:
        """Whether it is known that no row is pending."""
        return self.page is not None and len(self.page) == 0

    def halves(self) -> tuple[Chunk, Chunk]:
        """Cut a chunk with a page of two rows or more in two, about as sparse as it is."""
        assert self.page is not None and len(self.page) > 1
        middle = len(self.page) // 2
        upto = self.page.key(middle - 1)
        scanned = self.scanned * middle // len(self.page)
        left = replace(
            self,
            upto=upto,
            scanned=scanned,
            is_last=False,
            page=self.page.part(0, middle),
            strides=(),
        )
        right = replace(
            self,
            after=upto,
            scanned=self.scanned - scanned,
            page=self.page.part(middle),
            strides=(),
        )
        return left, right


class Ranged(Generic[T]):
    """A statement limited to a chunk's keys, built once for each form of its condition."""

    def __init__(self, key: Key, build: Callable[[sa.ColumnElement[bool]], T]) -> None:
        self._key = key
        self._build = build
        self._built: dict[tuple[str, int], T] = {}

    def on(self, chunk: Chunk) -> tuple[T, dict[str, Any]]:
        """Return the statement for a chunk's pending rows, and its parameters.

        Rows that lie far apart are looked up by their keys: what lies between was scanned once.
        """
        page = chunk.telling_page
        if page is None:
            return self.between(chunk.after, chunk.upto)
        if self._key.is_single and len(page) <= MOST_SCATTERED and chunk.is_sparse:
            return self._form("keys"), {"keys": [key for (key,) in page.keys]}
        return self.within("from", page.key(0), page.key(-1))

    def between(self, after: KeyValues, upto: KeyValues) -> tuple[T, dict[str, Any]]:
        """Return the statement for keys in (after, upto], and its parameters."""
        return self.within("above" if after else "start", after, upto)

    def within(self, form: str, low: KeyValues, high: KeyValues) -> tuple[T, dict[str, Any]]:
        parameters = self._key.parameters("high", high)
        statement = self._form(form, alike(low, high))
        return statement, {**self._key.parameters("low", low), **parameters}

    def _form(self, form: str, same: int = 0) -> T:
        if (form, same) not in self._built:
            self._built[form, same] = self._build(self._condition(form, same))
        return self._built[form, same]

    def _condition(self, form: str, same: int) -> sa.ColumnElement[bool]:
        key = self._key
        if form == "keys":
            return key.one_of("keys")
        low = [] if form == "start" else key.operands("low")
        return key.between(low, key.operands("high"), alike=same, inclusive=form == "from")


def is_sparse(pending: int, scanned: int) -> bool:
    """Whether so few rows are pending that one looks at them before one writes."""
    return pending * _FEW < scanned
