"""The points of a run at which a process can die: each statement that it sends, and each COMMIT.

A point has the name of what its statement is for; the COMMIT of a transaction has that of the
last write before it. So the names are few, and the same on every database.
"""

from __future__ import annotations

import re

_PATTERNS = (
    ("creation of the state tables", r"CREATE "),
    ("version of the state tables", r"INSERT INTO backfill_schema\b"),
    ("new run", r"INSERT INTO backfill_run\b"),
    ("new range", r"INSERT INTO backfill_range\b"),
    ("event", r"INSERT INTO backfill_event\b"),
    ("status", r"UPDATE backfill_run SET status\b"),
    ("next pass", r"UPDATE backfill_run SET pass_number\b"),
    ("checkpoint", r"UPDATE backfill_range SET cursor\b"),
    ("claim", r"UPDATE backfill_range SET .*\bclaims\b"),
    ("renewal", r"UPDATE backfill_range SET lease_expires\b"),
    ("release", r"UPDATE backfill_range SET .*\btoken\b"),
    ("lock of the run", r"SELECT .*\bFROM backfill_run\b.* FOR (NO KEY )?UPDATE\b"),
    ("lock of the rows", r"SELECT .*\bFROM counters\b.* FOR (NO KEY )?UPDATE\b"),
    ("write", r"(WITH .*)?UPDATE (\w+ JOIN )?.*\bcounters\b"),
    ("read of the state", r"SELECT .*\bFROM backfill_"),
    ("read of the table", r"(SELECT|WITH) .*\bFROM .*\bcounters\b"),
    ("savepoint", r"(SAVEPOINT|RELEASE)\b"),
    ("other", r"(SELECT|WITH|SET|PRAGMA|BEGIN|SHOW|ROLLBACK|DO|DESCRIBE|EXPLAIN)\b"),
)
"""The first that fits."""
UNNAMED = "unnamed: "
"""What is none of these begins so, and needs a name."""
_UNTELLING = frozenset(
    {"read of the state", "read of the table", "lock of the run", "event", "savepoint", "other"}
)
_IN_EACH_COMMAND = frozenset({"claim", "checkpoint", "renewal"})


def name_of(statement: str) -> str:
    """Say what a statement is for."""
    plain = " ".join(re.sub(r'/\*.*?\*/|["`]', " ", statement).split())
    for name, pattern in _PATTERNS:
        if re.match(pattern, plain):
            return name
    return UNNAMED + plain


def commit_of(statements: list[str]) -> str:
    """Return the name of the COMMIT of a transaction with statements of these names."""
    writes = [name for name in statements if name not in _UNTELLING]
    return f"COMMIT of {writes[-1] if writes else 'what was only read'}"


def moments(point: str) -> tuple[str, ...]:
    """Return when a process may die at a point. `during`: somewhere in a COMMIT, or right after
    it, where the same comes again in the next command if it was done."""
    if any(point == f"COMMIT of {name}" for name in _IN_EACH_COMMAND):
        return ("before", "during", "after")
    return ("before", "after")
