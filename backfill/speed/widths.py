"""How many bytes rows have, from a look at a few of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

_LOOKS = 32
_PLAIN = 8
"""Bytes of a number or a date, more or less."""


def row_bytes(rows: Sequence[Any]) -> int:
    """Return about how many bytes one of these rows has, from some of them; 0 without rows.

    A row is a tuple, or a mapping of columns to values; anything else has nothing.
    """
    some = rows[:: max(1, len(rows) // _LOOKS)]
    return sum(map(_row, some)) // len(some) if some else 0


def _row(row: Any) -> int:
    values = row.values() if isinstance(row, Mapping) else row
    return sum(map(_bytes, values)) if isinstance(row, (Mapping, tuple)) else 0


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value if value.isascii() else value.encode(errors="surrogatepass"))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    if isinstance(value, dict):
        return _all(value) + _all(value.values())
    if isinstance(value, (list, tuple, set)):
        return _all(value)
    return _PLAIN


def _all(values: Collection[Any]) -> int:
    """A document is as wide as what is in it; a vector has values of one kind."""
    first = next(iter(values), None)
    if isinstance(first, (int, float)):
        return _PLAIN * len(values)
    return sum(map(_bytes, values))
