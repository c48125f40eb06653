"""What a person reads of documents."""

from __future__ import annotations

from typing import Any

import pytest

from backfill import presentation


def leased(*quiet: float) -> dict[str, Any]:
    return {
        "name": "fill",
        "revision": "8f2c1a",
        "status": "running",
        "rows_scanned": 10,
        "rows_changed": 10,
        "rows_estimated": None,
        "rows_per_second": 0.0,
        "seconds_left": None,
        "failures": 0,
        "throttled": None,
        "set": {},
        "sync": False,
        "error": None,
        "problem": None,
        "ranges": [
            *({"owner": "host (process 7)", "seconds_quiet": seconds} for seconds in quiet),
            {"owner": None, "seconds_quiet": None},
        ],
    }


@pytest.mark.parametrize(
    ("quiet", "told"),
    [((0.1, 29.0), ""), ((0.1, 200.4), "; nothing committed for 3 min 20 s")],
)
def test_status_tells_since_when_a_runner_has_committed_nothing(
    quiet: tuple[float, ...], told: str
) -> None:
    *_, last = presentation.status([leased(*quiet)])
    assert last == f"  2 of 3 key ranges leased by host (process 7){told}"
