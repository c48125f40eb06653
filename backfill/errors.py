"""Every exception of the package.

BackfillError                 what happened, to which object, what to do next
├─ ConfigurationError         a setting, the Alembic project or the database URL
├─ DeclarationError           a backfill class is wrong, or does not fit its table
│  └─ UnknownBackfill         no class has this name
├─ UpgradeFailed              a revision could not be applied, or Alembic refuses the way
├─ StateError                 our own tables are not as this version needs them
├─ StateRefused               this user, or this session, may not write to our own tables
├─ RunError
│  ├─ InvalidTransition       the run's status does not allow this
│  ├─ DeclarationChanged      the class is not the one that the run began with
│  ├─ KeyChanged              the table's key is not the one that the run walks by
│  ├─ RunFailed               the run cannot go on until somebody acts
│  ├─ UnreadableRow           the driver cannot read a value that is stored in a row
│  ├─ RowLeftOut              the database did not write a row, and said nothing
│  ├─ UnsendableValue         the driver cannot send a value that was computed for a row
│  ├─ RowsTooSlow             the same rows take longer than a statement may, again and again
│  └─ WorkerFailed            an error ended a worker in a process of its own
│  └─ BackfillRequired        a gate refuses its revision
├─ LeaseError
│  ├─ LeaseHeld               another runner works on this range
│  └─ LeaseLost               our claim was replaced; nothing of ours may commit
└─ Retryable
   ├─ CommitUnknown           the connection failed in COMMIT: claim again, then look
   ├─ TableBusy               a lock for the triggers of `sync` was not to be had
   └─ RowsKeptChanging        the application rewrote the chunk's rows while we computed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill.runs import Status


class BackfillError(Exception):
    """Root of all errors of this package; its text is fit to be shown to a person."""


class ConfigurationError(BackfillError):
    """A setting, the Alembic project or the database URL cannot be used."""


class DeclarationError(BackfillError):
    """A backfill class is wrong in itself, or does not fit the table it names."""


class UnknownBackfill(DeclarationError):
    """No declared backfill has the given name."""

    def __init__(self, name: str, close: list[str]) -> None:
        self.name = name
        self.close = close
        hint = f"Did you mean {', '.join(close)}?" if close else "See `backfill list`."
        super().__init__(f"No backfill is called {name!r}. {hint}")


class UpgradeFailed(BackfillError):
    """A revision could not be applied, or Alembic refuses the way to it."""


class StateError(BackfillError):
    """The state tables cannot be used by this version."""


class StateRefused(BackfillError):
    """This user, or this session, may not write to the state tables."""


class RunError(BackfillError):
    """A run cannot do what was asked."""


class InvalidTransition(RunError):
    """The run's status does not allow the change that was asked for."""

    def __init__(self, name: str, status: str, wanted: str) -> None:
        self.name = name
        self.status = status
        self.wanted = wanted
        has = "has" if status in ("succeeded", "failed") else "is"
        super().__init__(
            f"Backfill {name!r} {has} {status} and cannot be {_DONE_TO.get(wanted, wanted)}:"
            f" {_GOES_ON[status].format(name=name)}."
        )


_DONE_TO = {"pending": "resumed", "running": "run"}
"""What is done to a run that becomes this, where it is not the status's own name."""
_GOES_ON = {
    "pending": "nobody works on it; `backfill run {name}` goes on with it",
    "running": "it is worked on; `backfill pause {name}` or `backfill cancel {name}` stops it",
    "paused": "first `backfill resume {name}`, then `backfill run {name}`",
    "failed": "`backfill status {name}` says why; `backfill run {name}` goes on with it",
    "succeeded": "there is nothing left to do, or to stop; should rows be pending again,"
    " `backfill run {name}` begins a new run",
    "cancelled": "it was given up; `backfill run {name}` begins a new run",
    "stale": "a downgrade took its revision back; `backfill run {name}` begins a new run after"
    " the next upgrade",
}
"""What there is to do about a run in each status."""


class DeclarationChanged(RunError):
    """The class differs from the one that began the unfinished run."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"The declaration of backfill {name!r} changed after its run began. "
            f"Go on from the cursor with the new one: `backfill run {name} --accept-change`. "
            f"Begin again: `backfill cancel {name}`, then `backfill run {name}`."
        )


class KeyChanged(RunError):
    """The table's key is not the one by which the unfinished run walks."""

    def __init__(self, name: str, table: str, before: str, now: str) -> None:
        self.name = name
        self.table = table
        self.before = before
        self.now = now
        super().__init__(
            f"The key of table {table!r} is {now} now, and was {before} when the run of backfill"
            f" {name!r} began, so that what it recorded means other rows. Begin again:"
            f" `backfill cancel {name}`, then `backfill run {name}`."
        )


class RunFailed(RunError):
    """The run stopped and needs a person; it can be continued afterwards."""


class BackfillRequired(RunError):
    """A gate refuses its revision."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(
            f"Backfill {name!r} is not complete: {reason}."
            f" Run `backfill run {name}`, then upgrade again."
        )


class UnreadableRow(RunError):
    """The driver cannot read a value that is stored in a row."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"a value of the row cannot be read ({kind})")


class UnsendableValue(RunError):
    """The driver cannot send a value that was computed for a row."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"a value cannot be sent to the database ({kind})")


class RowLeftOut(RunError):
    """The database did not write a row that it was told to, and raised no error."""

    def __init__(self) -> None:
        super().__init__("the row was left out without an error: by a trigger, a rule or a policy")


class RowsTooSlow(RunError):
    """The same rows take longer than a statement may, again and again."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"it takes longer than `statement_timeout` each time ({code})")


class WorkerFailed(RunError):
    """An error ended a worker in a process of its own; `status` is what becomes of the run."""

    def __init__(self, text: str, status: Status) -> None:
        self.status = status
        super().__init__(text)


class LeaseError(BackfillError):
    """A range cannot be worked on by this runner."""


class LeaseHeld(LeaseError):
    """Another live runner holds every range that is left."""

    def __init__(self, name: str, owner: str) -> None:
        self.name = name
        self.owner = owner
        super().__init__(
            f"Backfill {name!r} is being run by {owner}. Watch it with `backfill status {name}`."
        )


class LeaseLost(LeaseError):
    """The lease's token was replaced: by a pause, a cancel or another runner."""

    def __init__(self, range_id: int) -> None:
        self.range_id = range_id
        super().__init__(
            f"The lease on key range {range_id} was taken away; nothing more is written."
        )


class Retryable(BackfillError):
    """The chunk was not committed, or nobody knows; trying it again is safe."""


class CommitUnknown(Retryable):
    """COMMIT gave no answer; only a new claim of the lease can tell what happened."""


class TableBusy(Retryable):
    """The table's lock was not to be had, so its triggers are as they were."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"Table {table!r} is in use by a transaction that does not end, and its triggers need a"
            " lock on all of it; the application is not made to wait for that. End that"
            " transaction, or try again later."
        )


class RowsKeptChanging(Retryable):
    """The application changed the chunk's rows each time we had computed them."""
