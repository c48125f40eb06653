"""A small recogniser of the UPDATE and DELETE in SQL text; it parses no more than it must."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME = r"(?:\"[^\"]+\"|`[^`]+`|\[[^\]]+\]|\{[^{}]*\}|[^\W\d][\w$]*)"
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HIDDEN = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^'\\]|''|\\.)*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$", re.DOTALL
)
_PROGRAM = re.compile(
    r"\s*CREATE\b(?:\s+(?:OR\s+REPLACE|DEFINER\s*=\s*\S+|TEMP|TEMPORARY|CONSTRAINT))*"
    r"\s+(?:TRIGGER|FUNCTION|PROCEDURE|EVENT|RULE)\b",
    re.IGNORECASE,
)
_DO = re.compile(r"\s*DO\b.*?\$(?P<tag>\w*)\$(?P<body>.*)\$(?P=tag)\$", re.DOTALL | re.IGNORECASE)
_IN_BLOCK = re.compile(
    r"(?:\b(?:BEGIN|THEN|ELSE|LOOP)\b|;)\s*(?P<write>(?:UPDATE|DELETE)\b[^;]*)", re.IGNORECASE
)
_UPDATE = re.compile(
    rf"\s*UPDATE\s+(?:(?:ONLY|LOW_PRIORITY|IGNORE|OR\s+\w+)\s+)*(?P<table>{_DOTTED})"
    rf"(?:\s+(?:AS\s+)?(?P<alias>(?!(?:SET|JOIN|LEFT|INNER|CROSS)\b){_NAME}))?"
    r"(?P<joined>.*?)\bSET\b",
    re.IGNORECASE | re.DOTALL,
)
_DELETE = re.compile(
    rf"\s*DELETE\s+(?P<joined>.*?)\bFROM\s+(?:ONLY\s+)?(?P<table>{_DOTTED})"
    rf"(?:\s+(?:AS\s+)?(?P<alias>(?!(?:WHERE|USING|RETURNING|LIMIT|ORDER|JOIN|LEFT|INNER)\b)"
    rf"{_NAME}))?",
    re.IGNORECASE | re.DOTALL,
)
_CLAUSE = re.compile(r"\b(FROM|USING|WHERE|ORDER\s+BY|LIMIT|FETCH|RETURNING)\b", re.IGNORECASE)
_LIMIT = re.compile(r"\b(?:LIMIT|FETCH\s+(?:FIRST|NEXT))\b", re.IGNORECASE)
_CONSTANT = (
    r"(?:'[^']*'|-?\d[\w.-]*|:\w+|%s|%\(\w+\)s|\?|\$\d+|\{[^{}]*\}|(?:CAST\s*\(\s*)?:\w+\s+AS"
    r"[\w\s()]+\))(?:\s*::\s*\w+)?"
)
_EQUAL = re.compile(
    rf"\s*\(?\s*(?P<column>{_DOTTED})\s*(?:=\s*{_CONSTANT}"
    rf"|=\s*ANY\s*\(\s*{_CONSTANT}\s*\)|IN\s*(?:\(\s*{_CONSTANT}(?:\s*,\s*{_CONSTANT})*\s*\)|:\w+)"
    rf"|BETWEEN\s+{_CONSTANT}\s+AND\s+{_CONSTANT})\s*\)?\s*",
    re.IGNORECASE,
)
_BOUND = re.compile(
    rf"\s*\(?\s*(?P<column>{_DOTTED})\s*(?P<how>[<>])=?\s*{_CONSTANT}\s*\)?\s*", re.IGNORECASE
)
_PARAMETER = re.compile(r"(?<![:\w]):[A-Za-z_]|%s|%\(\w|\{")
_ESCAPED_COLON = re.compile(r"\\(:[\w$]*)(?![:\w$])")
"""What SQLAlchemy's text() takes for a colon and no parameter; ours takes none for a parameter."""
_BETWEEN = re.compile(rf"(\bBETWEEN\s+{_CONSTANT})\s+AND\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Write:
    """An UPDATE or a DELETE, as far as it could be read."""

    verb: str
    table: str | None
    """None: it is computed."""
    assignments: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None
    others: str | None = None
    """The tables behind FROM or USING."""
    is_plain: bool = True
    """It joins nothing but `others`, and every part was read."""
    has_limit: bool = False
    narrowed: frozenset[str] = frozenset()
    """Columns that are compared with constants, so that few rows are left if they are a key."""
    is_python: bool = False
    """Its expressions are SQLAlchemy's, as Python text, and not SQL."""
    definition: str | None = None
    """The assignment of the table that these expressions use."""


def writes_in(text: str) -> Iterator[Write]:
    """Give the statements of a text that change or delete rows."""
    for statement in _statements(text):
        block = _DO.match(statement)
        if block:
            inside = _masked(block["body"])
            for found in _IN_BLOCK.finditer(inside):
                yield from _write(block["body"][found.start("write") : found.end("write")])
        else:
            yield from _write(statement)


def one_line(text: str) -> str:
    """Return an expression without comments and line breaks, its strings as they are."""
    parts, start = [], 0
    for hidden in _HIDDEN.finditer(text):
        parts.append(re.sub(r"\s+", " ", text[start : hidden.start()]))
        parts.append(" " if hidden.group().startswith(("--", "/*")) else hidden.group())
        start = hidden.end()
    parts.append(re.sub(r"\s+", " ", text[start:]))
    return _ESCAPED_COLON.sub(r"\1", "".join(parts)).strip()


def _statements(text: str) -> Iterator[str]:
    """Cut at the semicolons; what defines a program is no statement that runs."""
    masked, start = _masked(text), 0
    for end in [*(found.start() for found in re.finditer(";", masked)), len(text)]:
        if _PROGRAM.match(masked, start):
            if re.search(r"\bBEGIN\b", masked[start:], re.IGNORECASE):
                return  # its body has semicolons of its own
        elif text[start:end].strip():
            yield text[start:end]
        start = end + 1


def _masked(text: str, *, deep: bool = False) -> str:
    """Return a text of the same length without comments and the insides of strings; with `deep`
    without what stands in parentheses, too."""

    def hide(found: re.Match[str]) -> str:
        whole = found.group()
        return f"'{'_' * (len(whole) - 2)}'" if whole.startswith("'") else " " * len(whole)

    masked = _HIDDEN.sub(hide, text)
    if not deep:
        return masked
    depth, kept = 0, []
    for letter in masked:
        depth -= letter == ")"
        kept.append(letter if depth <= 0 else " ")
        depth += letter == "("
    return "".join(kept)


def _write(statement: str) -> Iterator[Write]:
    top = _masked(statement, deep=True)
    prefix = re.match(r"\s*WITH\b.*?\b(?=(?:UPDATE|DELETE)\b)", top, re.IGNORECASE | re.DOTALL)
    start = prefix.end() if prefix else 0
    match = _UPDATE.match(top, start) or _DELETE.match(top, start)
    if match is None:
        return
    is_update = match.re is _UPDATE
    clauses = _clauses(statement, top, match.end())
    where = clauses.get("WHERE")
    others = clauses.get("FROM") or clauses.get("USING")
    assignments = _assignments(clauses.get("", "")) if is_update else {}
    joined = match["joined"].strip() + ("" if is_update else clauses.get("", "").strip())
    table = _plain(match["table"])
    alias = match["alias"]
    is_known = not _PARAMETER.search(_masked(" ".join([*assignments.values(), where or ""])))
    limited = _masked(statement[:start] + str(where) + (others or ""))
    if alias and table:
        swap = re.compile(rf"(?<![\w.]){re.escape(alias)}\s*\.")
        assignments = {n: _replaced(swap, f"{table}.", e) for n, e in assignments.items()}
        where = where and _replaced(swap, f"{table}.", where)
    yield Write(
        "UPDATE" if is_update else "DELETE",
        table,
        assignments,
        where,
        others,
        is_plain=is_known and not joined and not prefix and (bool(assignments) or not is_update),
        has_limit=bool(_LIMIT.search(limited)) or not {"LIMIT", "FETCH"}.isdisjoint(clauses),
        narrowed=_narrowed(where or ""),
    )


def _clauses(statement: str, top: str, start: int) -> dict[str, str]:
    """Return the parts behind a place by the keyword that begins each; the first has none."""
    marks = list(_CLAUSE.finditer(top, start))
    ends = [*(mark.start() for mark in marks), len(statement)]
    found = {"": statement[start : ends[0]].strip()}
    for mark, end in zip(marks, ends[1:], strict=True):
        found.setdefault(mark[1].upper().split()[0], statement[mark.end() : end].strip())
    return found


def _assignments(text: str) -> dict[str, str]:
    """Return column to expression; nothing if one of them is not of that form."""
    found: dict[str, str] = {}
    for part in _parts(one_line(text), ","):
        match = re.match(rf"\s*(?P<column>{_DOTTED})\s*=(?P<value>.*)", part, re.DOTALL)
        column = match and _plain(match["column"])
        is_default = match is not None and match["value"].strip().upper() == "DEFAULT"
        if match is None or column is None or is_default:  # which is no expression
            return {}
        found[column.rpartition(".")[2]] = match["value"].strip()
    return found


def _parts(text: str, separator: str) -> list[str]:
    top, parts, start = _masked(text, deep=True), [], 0
    for found in re.finditer(separator, top, re.IGNORECASE):
        parts.append(text[start : found.start()])
        start = found.end()
    return [*parts, text[start:]]


def _narrowed(where: str) -> frozenset[str]:
    """Return the columns that every row has to have a given value of, or one between two."""
    if len(_parts(where, r"\bOR\b")) > 1:
        return frozenset()
    columns, bounds = set(), set()
    for part in _parts(_BETWEEN.sub(r"\1 && ", _masked(where)), r"\bAND\b"):
        equal = _EQUAL.fullmatch(part.replace("&&", "AND"))
        bound = _BOUND.fullmatch(part)
        if equal:
            columns.add(_column(equal["column"]))
        elif bound:
            bounds.add((_column(bound["column"]), bound["how"]))
    columns |= {name for name, how in bounds if how == "<" and (name, ">") in bounds}
    return frozenset(columns)


def _column(dotted: str) -> str:
    return (_plain(dotted) or "").rpartition(".")[2]


def _plain(name: str) -> str | None:
    """Return a name without quotes; None if it is computed."""
    if "{" in name or "%" in name:
        return None
    return ".".join(part.strip().strip('"`[]') for part in name.split("."))


def _replaced(pattern: re.Pattern[str], new: str, text: str) -> str:
    """Replace outside of strings and comments."""
    masked, parts, start = _masked(text), [], 0
    for found in pattern.finditer(masked):
        parts += [text[start : found.start()], new]
        start = found.end()
    return "".join([*parts, text[start:]])
