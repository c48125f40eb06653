"""What settings can be: numbers, text, lists, given as a value or written as text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from backfill.speed.windows import EXAMPLE, Window

if TYPE_CHECKING:
    from collections.abc import Callable

_SWITCH = {"true": True, "yes": True, "on": True, "1": True}
_SWITCH |= {"false": False, "no": False, "off": False, "0": False}
_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]*@")
_IN_QUERY = re.compile(r"(?i)([?&;][^=&;\s]*(?:pass|pwd|secret|token)[^=&;\s]*=)[^&;\s]+")


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of a setting."""

    is_like: str
    """What they are, for messages."""
    parse: Callable[[Any], Any]
    """Gives the value. Raises ValueError, with a text if there is more to say than `is_like`."""


def _number(wanted: type[int | float], value: Any, *, zero: bool = False) -> float:
    """Return a number of the wanted type. Raises ValueError for what is none, or not exactly."""
    if isinstance(value, bool):
        raise ValueError
    try:
        number = wanted(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError from None
    was_cut = isinstance(value, float) and value != number
    if was_cut or not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    """Return a whole number that a database's INTEGER can hold."""
    number = int(_number(int, value))
    if number >= 2**31:
        raise ValueError
    return number


def _switch(value: Any) -> bool:
    found = value if isinstance(value, bool) else _SWITCH.get(str(value).strip().lower())
    if found is None:
        raise ValueError
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _texts(value: Any) -> tuple[str, ...]:
    """Return several texts: SQL and URLs contain commas, so a line each where they are text."""
    if isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(map(_text, value))


def _window(value: Any) -> str:
    text = _text(value)
    Window.parse(text)
    return text


def _one_of(values: tuple[str, ...], value: Any) -> str:
    text = _text(value).lower()
    if text not in values:
        raise ValueError
    return text


GATE = Kind("refuse or inline", partial(_one_of, ("refuse", "inline")))
WHOLE = Kind("a whole number, above 0 and below 2^31", _whole)
COUNT = Kind("a whole number, 0 or more", partial(_number, int, zero=True))
SECONDS = Kind("a number of seconds, above 0", partial(_number, float))
PATIENCE = Kind("a number of seconds, 0 or more", partial(_number, float, zero=True))
RATE = Kind("a number, above 0", partial(_number, float))
RATIO = Kind("a number, 0 or more", partial(_number, float, zero=True))
SWITCH = Kind("true or false", _switch)
TEXT = Kind("text", _text)
TEXTS = Kind("a list of texts, or text with one of them a line", _texts)
WINDOW = Kind(f'two times of the day and a zone, like "{EXAMPLE}"', _window)


def secrets_of(*urls: str) -> list[str]:
    """Return what a message on URLs must not show, the longest first: a password, and the parts
    of one that was not quoted, of which a driver takes some for the host."""
    found = set[str]()
    for url in urls:
        password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        parts = [part for part in re.split(r"\W+", password) if len(part) > 3]
        found.update((password, unquote(password), *parts, *map(unquote, parts)))
    return sorted(found - {""}, key=len, reverse=True)


def masked(text: str) -> str:
    """Return text with the passwords of its URLs taken out."""
    return _IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
