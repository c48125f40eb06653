"""What a run is: its records and its state machine, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from backfill.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backfill.keys import KeyValues


class Status(str, Enum):
    """Where a run stands."""

    PENDING = "pending"
    """Nobody works on it; `backfill run` continues it."""
    RUNNING = "running"
    """A runner has claimed it. A killed runner leaves this: the leases tell, not the status."""
    PAUSED = "paused"
    """Stopped by a person, or by trouble that needs one; `resume` makes it pending."""
    FAILED = "failed"
    """Stopped by errors; `backfill run` goes on where it stopped."""
    SUCCEEDED = "succeeded"
    """Everything was walked, and a sweep found no row pending."""
    CANCELLED = "cancelled"
    """Given up by a person; a new run would begin at the start."""
    STALE = "stale"
    """Its revision was downgraded, and what it wrote is gone; likewise."""


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset(
        {
            Status.RUNNING,  # a runner claims a range
            Status.PAUSED,  # `pause` before anybody began
            Status.CANCELLED,  # `cancel` before anybody began
            Status.STALE,  # a downgrade below its revision
        }
    ),
    Status.RUNNING: frozenset(
        {
            Status.RUNNING,  # another runner joins, or replaces a dead one
            Status.PENDING,  # the last runner stopped: signal, --limit, --max-seconds
            Status.PAUSED,  # `pause`, or trouble that outlasted the retries
            Status.FAILED,  # an error that retrying cannot mend, or rows in quarantine
            Status.SUCCEEDED,  # a sweep found nothing pending
            Status.CANCELLED,  # `cancel`
            Status.STALE,  # a downgrade below its revision
        }
    ),
    Status.PAUSED: frozenset(
        {
            Status.PENDING,  # `resume`
            Status.CANCELLED,  # `cancel`
            Status.STALE,  # a downgrade below its revision
        }
    ),
    Status.FAILED: frozenset(
        {
            Status.RUNNING,  # `run` after the cause is gone
            Status.PAUSED,  # `pause`: keep others from running it again
            Status.CANCELLED,  # `cancel`
            Status.STALE,  # a downgrade below its revision
        }
    ),
    Status.SUCCEEDED: frozenset(  # work that appears later is a new run
        {
            Status.STALE,  # a downgrade below its revision
        }
    ),
    Status.CANCELLED: frozenset(),  # likewise
    Status.STALE: frozenset(),  # likewise
}

OVER = frozenset({Status.SUCCEEDED, Status.CANCELLED, Status.STALE})
"""Statuses in which only a new run can do further work."""


def taken_back(revision: str) -> str:
    """Say why a run is stale."""
    return f"revision {revision} was downgraded, so that what it wrote counts as gone"


def check_transition(name: str, current: Status, wanted: Status) -> None:
    """Raise InvalidTransition unless the state machine has this edge."""
    if wanted not in TRANSITIONS[current]:
        raise InvalidTransition(name, current.value, wanted.value)


@dataclass(frozen=True, slots=True)
class Run:
    """One recorded execution of a backfill."""

    id: int
    name: str
    number: int
    revision: str
    fingerprint: str
    status: Status
    pass_number: int
    rows_estimated: int | None
    horizon: str | None
    """What the database told of its open transactions when the bound was taken."""
    error: str | None
    updated_at: datetime
    changed: Mapping[str, Any] = field(default_factory=dict)
    """What `backfill set` made of its settings."""
    key: tuple[tuple[str, str], ...] = ()
    """The columns by which it walks, each with its family of types; none: not recorded."""
    is_empty: bool = False
    """There was no row when it began."""
    version_table: str = ""
    """That of its project; "" where nobody has recorded it."""

    def belongs_to(self, version_table: str) -> bool:
        """Whether it may be a run of the project with this version table: another one in the same
        database can have revisions of the same ids."""
        return self.version_table in ("", version_table)

    @property
    def is_over(self) -> bool:
        """Whether only a new run can do further work."""
        return self.status in OVER


@dataclass(frozen=True, slots=True)
class Terms:
    """What the workers of a run have to know of each other, and of what people decide."""

    status: Status
    sharing: int
    """Workers that hold a live lease, on whatever machine."""
    changed: Mapping[str, Any]
    """What `backfill set` made of its settings."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A slice of a run's key space: keys above `lower` up to and with `upper`."""

    id: int
    run_id: int
    pass_number: int
    lower: KeyValues
    upper: KeyValues
    cursor: KeyValues
    rows_scanned: int
    rows_changed: int
    rows_per_second: float
    finished: bool
    token: str | None
    owner: str | None
    lease_expires: datetime | None
    lease_is_live: bool
    """By the database's clock."""
    size: int | None
    throttled: str | None
    quiet_seconds: float
    """Since it was claimed, or a chunk of it committed, by the database's clock."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim on a key range, as its owner knows it."""

    range_id: int
    run_id: int
    token: str
    cursor: KeyValues
    upper: KeyValues
    finished: bool
    size: int | None


@dataclass(frozen=True, slots=True)
class NewRun:
    """What is recorded of a run when it begins."""

    name: str
    number: int
    revision: str
    fingerprint: str
    settings: dict[str, Any]
    rows_estimated: int | None
    horizon: str | None
    key: tuple[tuple[str, str], ...] = ()
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a chunk's transaction records of its range."""

    upto: KeyValues
    scanned: int
    changed: int
    finished: bool
    rows_per_second: float
    size: int
    """Rows that the next chunk would take, for whoever goes on."""
    throttled: str | None = None
    """Why it went more slowly than it was told to."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A quarantined row: its key and why, never its values."""

    key: KeyValues
    error: str
    id: int | None = None
    attempts: int = 1


class Outcome(Enum):
    """How a call of `Runner.run` ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    HELD = "held"
    QUARANTINED = "quarantined"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run, in one sentence for people."""

    outcome: Outcome
    text: str
    was_reported: bool = False
