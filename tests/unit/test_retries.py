"""Which errors are tried again, what is done about them, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import tenacity

from backfill.dialects import PASSING, ErrorKind
from backfill.errors import CommitUnknown, DeclarationError, LeaseLost, RowsKeptChanging
from backfill.retries import POLICIES, Policy, policy_for, retrying, status_after
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIED = {
    ErrorKind.CONFLICT,
    ErrorKind.LOCKED,
    ErrorKind.TOO_SLOW,
    ErrorKind.SESSION_LOST,
    ErrorKind.NOT_READY,
    ErrorKind.READ_ONLY,
}
DOUBTED = {ErrorKind.SESSION_LOST, ErrorKind.NOT_READY, ErrorKind.READ_ONLY}
HALVED = {ErrorKind.CONFLICT, ErrorKind.LOCKED, ErrorKind.TOO_SLOW}


def by_name(kinds: set[ErrorKind]) -> list[ErrorKind]:
    """In an order that every test process agrees on."""
    return sorted(kinds, key=lambda kind: kind.name)


class Trouble(Exception):
    """An error of a given kind."""

    def __init__(self, kind: ErrorKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


def kind_of(error: BaseException) -> ErrorKind:
    return error.kind if isinstance(error, Trouble) else ErrorKind.UNKNOWN


class Clock:
    """Time that passes only where somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=clock))
    return clock


class Recovery:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[BaseException, Policy, int]] = []

    def __call__(self, error: BaseException, policy: Policy, attempt: int) -> None:
        self.told.append((error, policy, attempt))


def failing(*errors: BaseException) -> Callable[[], str]:
    """A function that raises these, one a call, and then succeeds."""
    left = list(errors)

    def function() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return function


def caller(clock: Clock, recovery: Recovery, seconds: float = 900.0) -> tenacity.Retrying:
    return retrying(kind_of=kind_of, recover=recovery, sleep=clock.sleep, seconds=seconds)


def test_what_passes_is_tried_again() -> None:
    assert set(POLICIES) == PASSING


def test_who_only_waited_for_leave_has_all_patience_left(clock: Clock) -> None:
    stood_by, attempts = 0.0, 0

    def function() -> None:
        nonlocal stood_by, attempts
        attempts += 1
        stood_by += 3_600
        clock.now += 3_600
        raise Trouble(ErrorKind.LOCKED)

    with pytest.raises(Trouble):
        retrying(
            kind_of=kind_of,
            recover=Recovery(),
            sleep=clock.sleep,
            seconds=10,
            stood_by=lambda: stood_by,
        )(function)
    assert attempts > 3


@pytest.mark.parametrize("kind", ErrorKind)
def test_policy_of_a_kind(kind: ErrorKind) -> None:
    policy = policy_for(Trouble(kind), kind_of)
    assert (policy is not None) == (kind in RETRIED)
    if policy is not None:
        assert policy.doubt == (kind in DOUBTED)
        assert policy.halve == (kind in HALVED)


def test_unknown_commit_is_doubted() -> None:
    policy = policy_for(CommitUnknown("no answer"), kind_of)
    assert policy is not None and policy.doubt


@pytest.mark.parametrize("kind", ErrorKind)
def test_commit_for_which_there_is_no_room_is_not_tried_again(kind: ErrorKind) -> None:
    """Each try would write more; all else that comes out of a COMMIT is looked into."""
    error = CommitUnknown("no answer")
    error.__cause__ = Trouble(kind)
    ends = kind in (ErrorKind.OUT_OF_SPACE, ErrorKind.DAMAGE)
    assert (policy_for(error, kind_of) is None) == ends
    expected = Status.FAILED if kind is ErrorKind.DAMAGE else Status.PAUSED
    assert status_after(error, kind_of) is expected


def test_rows_that_keep_changing_are_a_conflict() -> None:
    assert policy_for(RowsKeptChanging("busy"), kind_of) is POLICIES[ErrorKind.CONFLICT]


@pytest.mark.parametrize(
    "error", [LeaseLost(1), DeclarationError("wrong"), KeyError(1), KeyboardInterrupt()]
)
def test_everything_else_is_raised_at_once(clock: Clock, error: BaseException) -> None:
    recovery = Recovery()
    with pytest.raises(type(error)) as raised:
        caller(clock, recovery)(failing(error))
    assert raised.value is error
    assert not recovery.told
    assert not clock.naps


@pytest.mark.parametrize("kind", by_name(set(ErrorKind) - RETRIED))
def test_not_retried(clock: Clock, kind: ErrorKind) -> None:
    error = Trouble(kind)
    recovery = Recovery()
    with pytest.raises(Trouble) as raised:
        caller(clock, recovery)(failing(error))
    assert raised.value is error
    assert not recovery.told
    assert not clock.naps


@pytest.mark.parametrize("kind", by_name(RETRIED))
def test_retried_until_it_succeeds(clock: Clock, kind: ErrorKind) -> None:
    recovery = Recovery()
    first, second = Trouble(kind), Trouble(kind)
    assert caller(clock, recovery)(failing(first, second)) == "done"
    policy = POLICIES[kind]
    assert recovery.told == [(first, policy, 1), (second, policy, 2)]
    assert len(clock.naps) == 2


def test_nothing_is_told_without_an_error(clock: Clock) -> None:
    recovery = Recovery()
    assert caller(clock, recovery)(failing()) == "done"
    assert not recovery.told
    assert not clock.naps


def test_arguments_are_handed_on(clock: Clock) -> None:
    assert caller(clock, Recovery())(divmod, 7, 2) == (3, 1)


def test_each_error_has_its_own_policy(clock: Clock) -> None:
    recovery = Recovery()
    caller(clock, recovery)(
        failing(Trouble(ErrorKind.LOCKED), Trouble(ErrorKind.SESSION_LOST), CommitUnknown("?"))
    )
    assert [policy.doubt for _, policy, _ in recovery.told] == [False, True, True]


def test_recovery_comes_before_the_wait(clock: Clock) -> None:
    times: list[float] = []
    retry = retrying(
        kind_of=kind_of,
        recover=lambda *_: times.append(clock.now),
        sleep=clock.sleep,
        seconds=900,
    )
    retry(failing(Trouble(ErrorKind.NOT_READY)))
    assert times == [1_000.0]


def test_error_of_the_recovery_ends_it(clock: Clock) -> None:
    def recover(*_: object) -> None:
        raise LeaseLost(7)

    retry = retrying(kind_of=kind_of, recover=recover, sleep=clock.sleep, seconds=900)
    with pytest.raises(LeaseLost):
        retry(failing(Trouble(ErrorKind.LOCKED)))


@pytest.mark.parametrize("kind", by_name(RETRIED))
def test_budget_is_time(clock: Clock, kind: ErrorKind) -> None:
    started = clock.now
    last: list[Trouble] = []

    def always() -> None:
        clock.now += 0.01
        last.append(Trouble(kind))
        raise last[-1]

    with pytest.raises(Trouble) as raised:
        caller(clock, Recovery(), seconds=60)(always)
    assert raised.value is last[-1]
    assert 60 <= clock.now - started <= 60 + 31
    assert len(last) > 5


def test_budget_begins_anew_with_each_call(clock: Clock) -> None:
    retry = caller(clock, Recovery(), seconds=60)
    for _ in range(5):
        clock.now += 50
        assert retry(failing(Trouble(ErrorKind.LOCKED))) == "done"


def test_call_inside_a_call(clock: Clock) -> None:
    """A part of a refused chunk is retried while its chunk is."""
    retry = caller(clock, Recovery(), seconds=60)
    inner_errors = [Trouble(ErrorKind.LOCKED) for _ in range(3)]
    outer_errors = [Trouble(ErrorKind.CONFLICT) for _ in range(2)]
    inner, outer = failing(*inner_errors), failing(*outer_errors)
    assert retry(lambda: (retry(inner), outer())) == ("done", "done")
    assert len(clock.naps) == 5


@pytest.mark.parametrize(("kind", "longest"), [(ErrorKind.LOCKED, 2), (ErrorKind.NOT_READY, 30)])
def test_waits_grow_to_a_limit_and_are_never_the_same(
    clock: Clock, kind: ErrorKind, longest: float
) -> None:
    with pytest.raises(Trouble):
        caller(clock, Recovery(), seconds=900)(failing(*[Trouble(kind)] * 10_000))
    assert max(clock.naps) <= longest
    assert max(clock.naps) > longest / 2
    assert clock.naps[0] < longest / 10
    assert len(set(clock.naps)) > len(clock.naps) / 2


@pytest.mark.parametrize("kind", ErrorKind)
def test_status_after(kind: ErrorKind) -> None:
    paused = RETRIED | {ErrorKind.OUT_OF_SPACE}
    expected = Status.PAUSED if kind in paused else Status.FAILED
    assert status_after(Trouble(kind), kind_of) is expected


def test_status_after_an_unknown_commit() -> None:
    assert status_after(CommitUnknown("no answer"), kind_of) is Status.PAUSED
