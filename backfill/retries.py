"""Which errors are tried again, how soon, and for how long.

Waits are tenacity's, with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).
The budget is time without progress, not a count: it begins anew with each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tenacity

from backfill.dialects import ErrorKind
from backfill.errors import CommitUnknown, RowsKeptChanging, TableBusy
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity.wait import wait_base


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about one kind of error."""

    wait: wait_base
    halve: bool = False
    """Take fewer rows: a smaller chunk meets fewer locks and takes less time."""
    doubt: bool = False
    """The connection is not to be trusted: open another, and claim the lease again."""
    end: Status = Status.PAUSED
    """What becomes of the run when the patience is over."""


_SHORT = tenacity.wait_random_exponential(multiplier=0.02, max=2)
_LONG = tenacity.wait_random_exponential(multiplier=0.1, max=30)

POLICIES: dict[ErrorKind, Policy] = {
    ErrorKind.CONFLICT: Policy(_SHORT, halve=True),
    ErrorKind.LOCKED: Policy(_SHORT, halve=True),
    ErrorKind.TOO_SLOW: Policy(_SHORT, halve=True),
    ErrorKind.SESSION_LOST: Policy(_LONG, doubt=True),
    ErrorKind.NOT_READY: Policy(_LONG, doubt=True),
    ErrorKind.READ_ONLY: Policy(_LONG, doubt=True),  # after a failover the address may move
}

ENDS: dict[ErrorKind, Status] = {
    ErrorKind.OUT_OF_SPACE: Status.PAUSED,  # at once: each retry writes more WAL
}
"""What becomes of the run after an error that is not tried again; else it has failed."""


_EVEN_OUT_OF_COMMIT = (ErrorKind.OUT_OF_SPACE, ErrorKind.DAMAGE)
"""Nothing is gained by finding out at once what became of that COMMIT: who goes on later claims
again."""


def policy_for(
    error: BaseException, kind_of: Callable[[BaseException], ErrorKind]
) -> Policy | None:
    """Return what to do about an error; None: do not try again."""
    return POLICIES.get(_kind(error, kind_of))


def _kind(error: BaseException, kind_of: Callable[[BaseException], ErrorKind]) -> ErrorKind:
    if isinstance(error, CommitUnknown):
        cause = kind_of(error.__cause__ or error)
        return cause if cause in _EVEN_OUT_OF_COMMIT else ErrorKind.SESSION_LOST
    if isinstance(error, (RowsKeptChanging, TableBusy)):
        return ErrorKind.CONFLICT
    return kind_of(error)


def retrying(
    *,
    kind_of: Callable[[BaseException], ErrorKind],
    recover: Callable[[BaseException, Policy, int], None],
    sleep: Callable[[float], None],
    seconds: float,
    stood_by: Callable[[], float] = lambda: 0.0,
) -> tenacity.Retrying:
    """Return a caller that repeats a function until it succeeds or `seconds` have passed.

    `recover` is told of each error, its policy and the number of attempts, before the wait.
    `stood_by` counts seconds in which the function only waited for leave to go on: nothing fails
    meanwhile, and they are not counted. The last error is raised as it is.
    """
    before = 0.0

    def begin(state: tenacity.RetryCallState) -> None:
        nonlocal before
        if state.attempt_number == 1:
            before = stood_by()

    def is_over(state: tenacity.RetryCallState) -> bool:
        return (state.seconds_since_start or 0.0) - (stood_by() - before) >= seconds

    def error_of(state: tenacity.RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        return error

    def policy_of(state: tenacity.RetryCallState) -> Policy:
        policy = policy_for(error_of(state), kind_of)
        assert policy is not None
        return policy

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: policy_for(error, kind_of) is not None),
        wait=lambda state: policy_of(state).wait(state),
        stop=is_over,
        before=begin,
        before_sleep=lambda state: recover(error_of(state), policy_of(state), state.attempt_number),
        sleep=sleep,
        reraise=True,
    )


def status_after(error: BaseException, kind_of: Callable[[BaseException], ErrorKind]) -> Status:
    """Return the status of a run that this error ended."""
    policy = policy_for(error, kind_of)
    if policy is not None:
        return policy.end
    return ENDS.get(_kind(error, kind_of), Status.FAILED)
