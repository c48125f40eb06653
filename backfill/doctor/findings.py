"""What the doctor finds: a trap, where it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

ERROR = "error"
"""It will fail, or lose something."""
WARNING = "warning"
"""It will hurt, or it waits for a person."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A trap. The names are those of `doctor --json`, and stable."""

    code: str
    severity: str
    where: str
    """A file, or what it is about: a database, a table."""
    line: int | None
    message: str
    advice: str
    offer: str | None = None
    """The class to write instead, as text."""
