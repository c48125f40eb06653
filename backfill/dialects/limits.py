"""What bounds a transaction of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a transaction of ours may wait, work and idle, in seconds."""

    lock_timeout: float
    statement_timeout: float
    idle_timeout: float
    label: str = "backfill"
    by_index: bool = False
    """Tables are read by an index wherever one will do, whatever the planner expects."""
    awaits_disk: bool = True
    """COMMIT returns when a crash can take nothing back. A chunk need not wait for that: rows and
    cursor are lost together, and done again (`synchronous_commit` in PostgreSQL's manual, 28.4).
    """
    are_lasting: bool = False
    """They are told once, where a session is ours alone and no code of others runs on it; else in
    each transaction."""

    @classmethod
    def of(cls, settings: Settings, label: str, *, by_index: bool) -> Limits:
        """Return the limits of what is done to a backfill's table."""
        timeouts = (settings.lock_timeout, settings.statement_timeout, settings.idle_timeout)
        return cls(*timeouts, label, by_index)

    @property
    def silence(self) -> float:
        """For how long we wait for an answer: by then the server would have cancelled the
        statement, and ended a transaction that does nothing."""
        return self.statement_timeout + self.idle_timeout
