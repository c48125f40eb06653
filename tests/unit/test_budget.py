"""Budget: what one command may still do."""

from __future__ import annotations

import time

import pytest

from backfill.budget import Budget, Stopped


def test_no_sleep_is_longer_than_the_time_that_is_left() -> None:
    """As the wait for a server that is gone could be, by 30 s."""
    budget = Budget(seconds=0.1)
    began = time.monotonic()
    with pytest.raises(Stopped):
        budget.sleep(30)
    assert time.monotonic() - began < 10
    assert budget.reason == "--max-seconds was reached"


def test_sleep_ends_when_somebody_asks_us_to_stop() -> None:
    budget = Budget()
    budget.sleep(0)
    budget.ask_to_stop("SIGINT")
    with pytest.raises(Stopped, match="SIGINT"):
        budget.sleep(30)
