"""What a fault is, and what trying it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tests.databases import Servers


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a fault is tried: a kind of database, an empty directory, and dice of its own."""

    kind: str
    """sqlite, postgresql or mariadb."""
    servers: Servers
    """The session's servers, for faults that leave a server as it was."""
    directory: Path
    dice: random.Random


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one try of a fault found, when the run had come to its end."""

    faults: int
    """How often something was made to go wrong: kills, cuts, restarts."""
    rows: int
    """Rows that the verifier looked at."""
    wrong: list[str] = field(default_factory=list)
    """A sentence for each row or count that is not what it must be; keys, no values."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of each fault to the next chunk that was committed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that can go wrong, in a way that can be repeated."""

    name: str
    """As the soak's table says it: `kill at random`, `COMMIT held and delivered late`."""
    attempt: Callable[[Stage], Attempt]
    requires: frozenset[str] = frozenset()
    """Capabilities of the databases that it can be tried on (tests/databases.py)."""
    in_ci: int = 1
    """How many attempts the test suite makes on a database."""
    takes_turns: bool = True
    """The test suite tries it on one of the databases, by turns; with BACKFILL_SLOW_TESTS, as
    the soak does, on each."""
    in_soak: int = 100
    """How many attempts the soak makes on each database."""
    recovers_within: float | None = None
    """Seconds, on a machine that does nothing else; the soak fails if a recovery took longer."""
