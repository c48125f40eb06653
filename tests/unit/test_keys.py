"""Keys as text: exact, typed, in ASCII."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.errors import StateError
from backfill.keys import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Sequence

OFFSETS = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))


def unfolded(moment: Any) -> Any:
    """No database stores a fold, and no comparison of naive times sees it."""
    return moment.replace(fold=0)


SCALARS = st.one_of(
    st.integers(),
    st.integers(-(10**1000), 10**1000),
    st.booleans(),
    st.text(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.builds(
        lambda digits, exponent: Decimal(digits).scaleb(exponent),
        st.integers(0, 9),
        st.integers(-6000, 6000),
    ),
    st.datetimes().map(unfolded),
    st.datetimes(timezones=OFFSETS).map(unfolded),
    st.dates(),
    st.times().map(unfolded),
    st.binary(),
    st.floats(allow_nan=False),
)


def exactly(values: Sequence[Any]) -> list[tuple[type, str]]:
    """Equality that tells 1 from True, 1.0 from 1.00, 0.0 from -0.0 and zones from none."""
    return [(type(value), repr(value)) for value in values]


@settings(max_examples=500, deadline=None)
@given(st.lists(SCALARS, max_size=4).map(tuple))
def test_round_trip(values: tuple[Any, ...]) -> None:
    text = dumps(values)
    assert text.isascii()
    assert exactly(loads(text)) == exactly(values)


@settings(max_examples=200, deadline=None)
@given(st.tuples(SCALARS), st.tuples(SCALARS))
def test_equal_text_means_equal_key(one: tuple[Any], other: tuple[Any]) -> None:
    assert (dumps(one) == dumps(other)) == (exactly(one) == exactly(other))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), "[]"),
        ((9223372036854775807,), "[9223372036854775807]"),
        (("DE", 7), '["DE", 7]'),
        (("ü\x00",), r'["\u00fc\u0000"]'),
        ((True,), "[true]"),
        ((UUID(int=1),), '[{"uuid": "00000000-0000-0000-0000-000000000001"}]'),
        ((Decimal("1.50"),), '[{"decimal": "1.50"}]'),
        ((Decimal("1E+3"),), '[{"decimal": "1E+3"}]'),
        ((datetime(2026, 1, 2, 3, 4, 5, 6),), '[{"datetime": "2026-01-02T03:04:05.000006"}]'),
        ((date(2026, 1, 2),), '[{"date": "2026-01-02"}]'),
        ((time(3, 4),), '[{"time": "03:04:00"}]'),
        ((b"\x00\xff",), '[{"bytes": "00ff"}]'),
        ((0.1,), '[{"float": "0x1.999999999999ap-4"}]'),
    ],
)
def test_text_stays_as_it_is(values: tuple[Any, ...], text: str) -> None:
    """Later versions must read what is stored today."""
    assert dumps(values) == text
    assert exactly(loads(text)) == exactly(values)


def test_not_a_number_is_kept() -> None:
    (value,) = loads(dumps((math.nan,)))
    assert math.isnan(value)


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab")])
def test_bytes_of_any_kind_become_bytes(value: Any) -> None:
    assert loads(dumps((value,))) == (b"ab",)


class Country(str, Enum):
    GERMANY = "de"


class Colour(IntEnum):
    RED = 1


class Stamp(datetime):
    """A datetime of another library."""


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Country.GERMANY, "de"), (Colour.RED, 1), (Stamp(2026, 1, 2), datetime(2026, 1, 2))],
)
def test_value_of_a_subclass_is_kept(value: Any, plain: Any) -> None:
    assert exactly(loads(dumps((value,)))) == exactly([plain])


@pytest.mark.parametrize("value", [None, object(), 1j, ["a"], ("a",), {"a": 1}, timedelta(1)])
def test_unknown_type_has_no_text(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        dumps((value,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "nonsense",
        "null",
        "5",
        '"abc"',
        '{"a": 1}',
        "[1.5]",
        "[NaN]",
        "[null]",
        "[[1]]",
        "[{}]",
        '[{"colour": "red"}]',
        '[{"uuid": "a", "date": "b"}]',
        '[{"uuid": "x"}]',
        '[{"uuid": 5}]',
        '[{"decimal": "x"}]',
        '[{"decimal": 1.5}]',
        '[{"decimal": [0, [1], 2]}]',
        '[{"float": "x"}]',
        '[{"float": "0x1p99999"}]',
        '[{"bytes": "zz"}]',
        '[{"date": "2026-01-02T00:00"}]',
        '[{"datetime": "yesterday"}]',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_broken_text_is_a_state_error(text: str) -> None:
    with pytest.raises(StateError, match="state tables"):
        loads(text)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["uuid", "decimal", "datetime", "date", "time", "bytes", "float"]),
                inner,
                max_size=2,
            )
        ),
        max_leaves=6,
    )
)
def test_any_json_is_a_key_or_a_state_error(document: Any) -> None:
    try:
        values = loads(json.dumps(document))
    except StateError:
        return
    assert exactly(loads(dumps(values))) == exactly(values)
