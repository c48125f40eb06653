"""Signals of the user's own: a method of the class, a query, a web address, a flag file.

Each of them says stop or go, or a number between: 0 is free, 1 stops. Whoever asks for such a
signal wants us to wait in doubt: one that cannot be read stops the run, with the reason.
"""

from __future__ import annotations

import base64
import http.client
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sqlalchemy.exc import SQLAlchemyError

from backfill.declaration import Backfill
from backfill.failures import describe
from backfill.speed.readings import Gradual, Reading

if TYPE_CHECKING:
    from backfill.dialects import Dialect
    from backfill.settings import Settings
    from backfill.speed.readings import Reader, Signal

_HTTP_SECONDS = 1.0
"""gh-ost's patience with its throttle-http."""


def of_user(declaration: type[Backfill], dialect: Dialect, settings: Settings) -> list[Signal]:
    """Return the signals that a class and its settings ask for."""
    found: list[Signal] = []
    if settings.throttle_file is not None:
        found.append(FlagFile(settings.throttle_file))
    if settings.throttle_url is not None:
        found.append(WebAddress(settings.throttle_url))
    if settings.throttle_query is not None:
        found.append(Query(settings.throttle_query, dialect))
    if declaration.throttle is not Backfill.throttle:
        found.append(Method(declaration, dialect))
    return found


class _Own(Gradual):
    fails_closed = True
    is_brief = False
    stands_alone = True


class FlagFile(_Own):
    """Waits while a file is there."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.name = f"flag file {path}"

    def read(self, reader: Reader) -> Reading:
        return _switch(self.path.exists(), f"{self.name} is there (`throttle_file`)")


class WebAddress(_Own):
    """Waits until a web address answers with 200; any other answer, or none, means: wait."""

    def __init__(self, url: str) -> None:
        scheme, slashes, rest = url.partition("//")
        authority, slash, path = rest.partition("/")
        userinfo, _, host = authority.rpartition("@")
        self._url = f"{scheme}{slashes}{host}{slash}{path}"
        self._userinfo = unquote(userinfo)
        self.name = f"`throttle_url` {self._url.partition('?')[0]}"

    def read(self, reader: Reader) -> Reading:
        problem = self._problem()
        return _switch(bool(problem), f"{self.name} {problem} (goes on at 200)")

    def _problem(self) -> str:
        try:
            with urllib.request.urlopen(self._request(), timeout=_HTTP_SECONDS) as answer:
                return "" if answer.status == 200 else f"answers {answer.status}"
        except urllib.error.HTTPError as error:
            error.close()
            return f"answers {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            return f"does not answer: {type(error).__name__}"

    def _request(self) -> urllib.request.Request:
        """Return what to send: `user:password@` as basic authentication (RFC 7617), which no
        redirection takes to another host."""
        request = urllib.request.Request(self._url)
        if self._userinfo:
            code = base64.b64encode(self._userinfo.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {code}")
        return request


class Query(_Own):
    """Asks the database: the first column of the first row is the answer, a number only. Its text
    may be a row's, and is never told."""

    name = "`throttle_query`"

    def __init__(self, sql: str, dialect: Dialect) -> None:
        self._sql = sql
        self._dialect = dialect

    def read(self, reader: Reader) -> Reading:
        try:
            with reader() as connection:
                plain = connection.execution_options(no_parameters=True)  # a % is just that
                answer = plain.exec_driver_sql(self._sql).scalar()
        except SQLAlchemyError as error:
            return _switch(True, f"{self.name} fails: {describe(error, self._dialect)}")
        number = _number(answer)
        if 0 <= number <= 1:
            return _share(self.name, number)
        returned = _kind(answer) if math.isnan(number) else "another number"
        wanted = "must return one number between 0 (free) and 1 (stop); it returned"
        return _switch(True, f"{self.name} {wanted} {returned}")


class Method(_Own):
    """Asks the class's own method `throttle`, with a connection for reading."""

    name = "`throttle`"

    def __init__(self, declaration: type[Backfill], dialect: Dialect) -> None:
        self._declaration = declaration
        self._dialect = dialect

    def read(self, reader: Reader) -> Reading:
        try:
            with reader() as connection:
                return _answer(self.name, self._declaration().throttle(connection))
        except Exception as error:
            return _switch(True, f"{self.name} fails: {describe(error, self._dialect)}")


def _answer(name: str, answer: Any) -> Reading:
    """Take None, False, "" or 0 for free, True or a text (the reason) for wait, and a number
    for what it is."""
    if isinstance(answer, str):
        return _switch(bool(answer), f"{name}: {answer}")
    if answer is None or isinstance(answer, bool):
        return _switch(bool(answer), f"{name} says wait")
    number = _number(answer)
    if math.isnan(number):
        kind = _kind(answer)
        return _switch(True, f"{name} must give a number, a truth value or a text, not {kind}")
    return _share(name, number)


def _number(answer: Any) -> float:
    """Return what is a number, or is written as one; NaN for anything else."""
    try:
        return float(answer)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _kind(answer: Any) -> str:
    return "nothing" if answer is None else type(answer).__name__


def _share(name: str, number: float) -> Reading:
    return Reading.of(f"{name} says", number, "", warn=0.0, stop=1.0)


def _switch(waits: bool, text: str) -> Reading:
    return Reading(float(waits), 1.0, 1.0, text)
