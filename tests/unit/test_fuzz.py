"""Declarations, settings and URLs of any kind: accepted, or refused by an error of ours.

With BACKFILL_SLOW_TESTS many more are tried.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill import Backfill, kinds
from backfill.dialects import dialect_for
from backfill.errors import BackfillError, ConfigurationError, DeclarationError
from backfill.settings import NAMES, changes, resolve
from backfill.targets import bind

EXAMPLES = 20_000 if "BACKFILL_SLOW_TESTS" in os.environ else 150
many = settings(max_examples=EXAMPLES, deadline=None)

HOSTILE = [
    *("", " ", "'", '"', "`", "''", '"; DROP TABLE things; --', "\\", "%", "%%", "%s", "%(x)s"),
    *(":", ":x", "a:b", "?", "\0", "a\nb", "\r", "\u202egnirts", "\u2028", "\ufeff", "\ud800"),
    *("{}", "{0}", "$1", "/*", "*/", "--", "#", "a" * 300, "NULL", "1 = 1", "id", "n", "things"),
    *("main.things", "things.n", "n IS NULL", "n + 1", "(SELECT 1", "é日本😀", "[n]", "a\x1b[31m"),
]
TEXT = st.sampled_from(HOSTILE) | st.text(max_size=20)
EXPRESSIONS = st.sampled_from(
    [
        sa.column("n"),
        sa.column("no:such%column"),
        sa.literal(1),
        sa.null(),
        sa.true(),
        sa.column("n").is_(None),
        sa.func.lower(sa.column("n")),
        sa.func.count(),
        sa.text("n"),
        sa.select(sa.literal(1)).scalar_subquery(),
        sa.bindparam("unbound"),
    ]
)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
SIMPLE = TEXT | NUMBERS | st.binary(max_size=4) | EXPRESSIONS | st.just(...)
ANYTHING = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(TEXT | st.integers(), inner, max_size=3)
    ),
    max_leaves=4,
)


def transform(self: Any, row: Any) -> Any:
    return None


def method(self: Any, table: Any) -> Any:
    return {"n": "1"}


LIKELY: dict[str, Any] = {
    "name": TEXT,
    "revision": TEXT,
    "database": TEXT,
    "table": st.just("things") | TEXT,
    "schema": TEXT,
    "key": TEXT | st.lists(TEXT, max_size=3),
    "where": TEXT | EXPRESSIONS | st.just(method),
    "values": st.dictionaries(TEXT, TEXT | EXPRESSIONS, max_size=3) | st.just(method),
    "reads": st.lists(TEXT, max_size=3),
    "writes": st.lists(TEXT, max_size=3),
    "depends_on": st.lists(TEXT, max_size=3),
    "sync": st.booleans(),
    "transform": st.just(transform),
    "transform_chunk": st.just(transform),
    "apply": st.just(transform),
}
SETTINGS: dict[str, Any] = dict.fromkeys(sorted(NAMES), TEXT | NUMBERS)
ATTRIBUTES = st.lists(
    st.one_of(
        *(st.tuples(st.just(n), likely | ANYTHING) for n, likely in LIKELY.items()),
        st.sampled_from(sorted(SETTINGS)).flatmap(lambda n: st.tuples(st.just(n), SETTINGS[n])),
    ),
    max_size=6,
).map(dict)
DECLARATIONS = st.fixed_dictionaries(
    {"table": st.just("things"), "values": st.just({"n": "1"}) | LIKELY["values"]},
    optional={name: LIKELY[name] for name in ("where", "key", "schema", "sync")},
)


@many
@given(ATTRIBUTES)
def test_any_declaration_is_accepted_or_refused(attributes: dict[str, Any]) -> None:
    try:
        made = type("Fuzzed", (Backfill,), attributes)
    except DeclarationError as error:
        assert "Fuzzed" in str(error)
        assert kept_in_one_piece(str(error))
        return
    assert made.level is not None
    assert re.fullmatch(r"[0-9a-f]{32}", made.fingerprint())


def kept_in_one_piece(text: str) -> bool:
    """What a terminal obeys, or turns round, is escaped."""
    return not set(text) & {"\x1b", "\u202e", "\r", "\0"}


@pytest.fixture(scope="module")
def engine() -> Any:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (id INTEGER PRIMARY KEY, n INTEGER)")
        connection.exec_driver_sql("INSERT INTO things VALUES (1, 1), (2, NULL)")
    yield engine
    engine.dispose()


@many
@given(attributes=DECLARATIONS)
def test_any_declaration_fits_a_table_or_is_refused(
    engine: sa.Engine, attributes: dict[str, Any]
) -> None:
    """And whatever SQL it says, nothing is written by looking."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)
        try:
            made = type("Fuzzed", (Backfill,), attributes)
            with engine.connect() as connection:
                bind(made, dialect_for(engine), connection)
        except DeclarationError as error:
            assert "fuzzed" in str(error).lower()
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT id, n FROM things ORDER BY id").all()
    assert [tuple(row) for row in rows] == [(1, 1), (2, None)]


@many
@given(st.dictionaries(st.sampled_from(sorted(NAMES)) | TEXT, ANYTHING, max_size=3))
def test_any_settings_are_resolved_or_refused(values: dict[str, Any]) -> None:
    try:
        resolve(("alembic.ini", values))
    except ConfigurationError as error:
        assert str(error).startswith("alembic.ini ")
        assert kept_in_one_piece(str(error))


@many
@given(st.dictionaries(st.sampled_from(sorted(NAMES)) | TEXT, TEXT, max_size=3))
def test_any_change_is_taken_or_refused(given: dict[str, str]) -> None:
    try:
        changed = changes(given)
    except BackfillError as error:
        assert kept_in_one_piece(str(error))
        return
    kept = {name: value for name, value in changed.items() if value is not None}
    resolve(("`backfill set`", kept))


PASSWORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=30
).filter(lambda text: re.search(r"[0-9a-zA-Z]{4}", text))


@many
@given(PASSWORDS, st.booleans())
def test_no_password_survives_its_masking(password: str, is_quoted: bool) -> None:
    """Quoted or not: of one that is not, a driver takes a part for the host."""
    written = quote(password, safe="") if is_quoted else password
    url = f"postgresql://app:{written}@db/shop"
    told = [f"cannot connect to {url}", f"no host {written.rpartition('@')[2]!r}", password]
    for text in told:
        for secret in kinds.secrets_of(url):
            text = text.replace(secret, "***")
        for part in re.findall(r"[0-9a-zA-Z]{4,}", password):
            if part not in ("cannot connect to postgresql app shop no host"):
                assert part not in kinds.masked(text)
