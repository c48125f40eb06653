"""Signals of the user's own: what each may answer, and that doubt means: wait."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.dialects import SIGNAL_LIMITS, dialect_for
from backfill.settings import resolve
from backfill.speed.signals import FlagFile, Method, Query, WebAddress, of_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill.dialects import Dialect
    from backfill.speed.readings import Reader, Reading


MUST_RETURN = "`throttle_query` must return one number between 0 (free) and 1 (stop)"


class Plain(Backfill):
    """Fill it."""

    table = "things"
    values = {"a": "1"}  # noqa: RUF012


@pytest.fixture
def dialect() -> Dialect:
    return dialect_for(sa.create_engine("sqlite://"))


@pytest.fixture
def reader(dialect: Dialect) -> Iterator[Reader]:
    with dialect.open(SIGNAL_LIMITS) as connection:

        @contextmanager
        def reading(*, write: bool = False) -> Iterator[sa.Connection]:
            with dialect.transaction(connection, SIGNAL_LIMITS, write=write):
                yield connection

        yield reading


def nowhere(*, write: bool = False) -> Any:
    raise AssertionError("this signal needs no database")


# -- which -----------------------------------------------------------------------------------


def test_nobody_asks_for_any(dialect: Dialect) -> None:
    assert of_user(Plain, dialect, resolve()) == []


def test_each_setting_asks_for_one(dialect: Dialect) -> None:
    class Own(Plain):
        """Fill it."""

        def throttle(self, connection: sa.Connection) -> float:
            return 0

    how = resolve(("x", {"throttle_file": "f", "throttle_url": "http://h", "throttle_query": "q"}))
    found = of_user(Own, dialect, how)
    assert [type(one) for one in found] == [FlagFile, WebAddress, Query, Method]
    assert all(one.fails_closed and one.steers for one in found)


def test_a_throttle_changes_nothing_of_what_is_written() -> None:
    class Own(Plain):
        """Fill it."""

        def throttle(self, connection: sa.Connection) -> float:
            return 0

    assert Own.fingerprint() == Plain.fingerprint()


# -- flag file and web address -----------------------------------------------------------------


def test_flag_file(tmp_path: Path) -> None:
    path = tmp_path / "wait"
    signal = FlagFile(str(path))
    assert not signal.read(nowhere).stops
    path.touch()
    reading = signal.read(nowhere)
    assert reading.stops
    assert reading.text == f"flag file {path} is there (`throttle_file`)"
    path.unlink()
    assert not signal.read(nowhere).stops


class Answering(BaseHTTPRequestHandler):
    """The last part of a path is the answer's code; below /private only for one user, and below
    /moved somewhere else."""

    def do_GET(self) -> None:
        if "/moved" in self.path:
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved", ""))
            self.end_headers()
            return
        wanted = "Basic " + base64.b64encode("me@work:pa55:wörd".encode()).decode()
        if "/private" in self.path and self.headers["Authorization"] != wanted:
            self.path = "/401"
        self.send_response(int(self.path.rpartition("/")[2].partition("?")[0]))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """A test is quiet."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_web_address_goes_on_at_200_only(address: str) -> None:
    assert not WebAddress(f"{address}/200").read(nowhere).stops
    for code in (204, 404, 429, 503):
        reading = WebAddress(f"{address}/{code}").read(nowhere)
        assert reading.stops
        assert reading.text == (f"`throttle_url` {address}/{code} answers {code} (goes on at 200)")


def test_web_address_that_nobody_answers_waits(address: str) -> None:
    gone = address.rpartition(":")[0] + ":1"
    reading = WebAddress(gone).read(nowhere)
    assert reading.stops
    assert "does not answer" in reading.text


def test_web_address_is_shown_without_its_secrets(address: str) -> None:
    url = address.replace("//", "//me:pa55@") + "/503?token=pa55"
    reading = WebAddress(url).read(nowhere)
    assert reading.stops
    assert reading.text == f"`throttle_url` {address}/503 answers 503 (goes on at 200)"


def test_web_address_gets_the_user_that_it_names(address: str) -> None:
    url = address.replace("//", "//me%40work:pa55:w%C3%B6rd@")
    assert not WebAddress(f"{url}/private/200").read(nowhere).stops
    assert WebAddress(f"{address}/private/200").read(nowhere).stops
    assert WebAddress(f"{url}/moved/private/200").read(nowhere).stops  # not sent further


# -- query and method ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "load", "stops", "told"),
    [
        ("SELECT 0", 0.0, False, ""),
        ("SELECT 0.25", 0.25, False, "`throttle_query` says 0.25 (stops at 1)"),
        ("SELECT 1", 1.0, True, "`throttle_query` says 1 (stops at 1)"),
        ("SELECT 1 WHERE 'a%' LIKE 'a%'", 1.0, True, "`throttle_query` says 1"),
        ("SELECT '0'", 0.0, False, ""),
        ("SELECT '0.5'", 0.5, False, "`throttle_query` says 0.5 (stops at 1)"),
        ("SELECT 3", 1.0, True, f"{MUST_RETURN}; it returned another number"),
        ("SELECT -1", 1.0, True, f"{MUST_RETURN}; it returned another number"),
        ("SELECT 9e999", 1.0, True, f"{MUST_RETURN}; it returned another number"),
        ("SELECT NULL", 1.0, True, f"{MUST_RETURN}; it returned nothing"),
        ("SELECT 1 WHERE 1 = 0", 1.0, True, f"{MUST_RETURN}; it returned nothing"),
        ("SELECT 'too busy'", 1.0, True, f"{MUST_RETURN}; it returned str"),
        ("SELECT ''", 1.0, True, f"{MUST_RETURN}; it returned str"),
        ("SELECT 'nan'", 1.0, True, f"{MUST_RETURN}; it returned str"),
        ("SELECT x'00'", 1.0, True, f"{MUST_RETURN}; it returned bytes"),
        ("SELECT no_column", 1.0, True, "`throttle_query` fails: the schema is not"),
    ],
)
def test_query(
    reader: Reader, dialect: Dialect, sql: str, load: float, stops: bool, told: str
) -> None:
    reading = Query(sql, dialect).read(reader)
    assert (reading.load, reading.stops) == (load, stops)
    assert told in reading.text
    assert "busy" not in reading.text


def asked(answer: Any, reader: Reader, dialect: Dialect) -> Reading:
    class Own(Plain):
        """Fill it."""

        def throttle(self, connection: sa.Connection) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return connection.execute(sa.text("SELECT 1")).scalar_one() and answer

    return Method(Own, dialect).read(reader)


@pytest.mark.parametrize(
    ("answer", "load", "told"),
    [
        (None, 0.0, ""),
        (False, 0.0, ""),
        ("", 0.0, ""),
        (0.5, 0.5, "`throttle` says 0.5 (stops at 1)"),
        (True, 1.0, "`throttle` says wait"),
        ("it is Monday", 1.0, "`throttle`: it is Monday"),
        (float("nan"), 1.0, "must give a number"),
        ([], 1.0, "must give a number, a truth value or a text, not list"),
        (ValueError("a secret"), 1.0, "`throttle` fails: ValueError at test_signals.py"),
    ],
)
def test_method(reader: Reader, dialect: Dialect, answer: Any, load: float, told: str) -> None:
    reading = asked(answer, reader, dialect)
    assert (reading.load, reading.stops) == (load, load >= 1)
    assert told in reading.text
    assert "secret" not in reading.text
