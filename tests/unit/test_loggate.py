"""The gate before a redo log that is nearly full, on a simulated one."""

from __future__ import annotations

import pytest

from backfill.dialects import LogFill
from backfill.speed.loggate import LogGate

MOST = 80e6


class Log:
    """A log that is flushed, at some bytes a second, from 7/8 on: as MariaDB's is."""

    def __init__(self, flushed_a_second: float, most: float = MOST) -> None:
        self.most = most
        self.now = 0.0
        self.age = 0.0
        self.written = 1e9
        self._flushed = flushed_a_second
        self.gate = LogGate(lambda: LogFill(self.age, self.most, self.written), lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        if self.age > 7 / 8 * self.most:
            self.age = max(self.age - seconds * self._flushed, 7 / 8 * self.most)

    def write(self, size: float) -> None:
        self.age += size
        self.written += size

    def wait(self, workers: int = 1) -> float:
        """Wait as the gate says; for how long."""
        began = self.now
        while seconds := self.gate.seconds(workers):
            self.passes(seconds)
        return self.now - began


@pytest.mark.parametrize("row_bytes", [150.0, 400.0, 5_000.0])
@pytest.mark.parametrize("flushed", [1e6, 30e6])
def test_a_log_is_never_filled_and_the_work_goes_on(flushed: float, row_bytes: float) -> None:
    log, rows = Log(flushed), 0
    for _ in range(20_000):
        log.wait()
        assert log.gate.most_rows is not None
        chunk = min(2_000, log.gate.most_rows)
        log.write(chunk * row_bytes)
        log.gate.count(chunk)
        rows += chunk
        assert log.age <= 0.98 * MOST
        log.passes(0.04)
    assert rows * row_bytes > MOST + 0.5 * log.now * min(flushed, 2_000 * row_bytes / 0.04)


def test_what_others_write_counts() -> None:
    log = Log(0.0)
    log.wait()
    log.write(1_000 * 400 + 600_000)
    log.gate.count(1_000)
    log.age = 0.9 * MOST
    assert log.wait() == 0
    assert log.gate.most_rows == int(0.07 * MOST / 1_000)


def test_workers_share_what_is_left() -> None:
    log = Log(0.0)
    log.wait(workers=4)
    assert log.gate.most_rows == int(0.97 * MOST / 1_000 / 4)


@pytest.mark.parametrize("most", [MOST, 300_000.0])
def test_a_log_that_nobody_flushes_does_not_stop_us(most: float) -> None:
    """Another server, or a log of so few bytes that no chunk worth its while fits."""
    log = Log(0.0, most)
    log.age = 0.875 * most
    assert log.wait() == 0
    log.age = 0.969 * most
    assert log.wait() <= 6 if most < MOST else log.wait() >= 0
    log.age = 0.999 * most
    assert 4 <= log.wait() <= 6
    assert log.gate.most_rows == 1


def test_alone_or_where_nothing_is_known_all_passes() -> None:
    log = Log(0.0)
    log.age = 0.969 * MOST
    log.wait()
    assert log.gate.most_rows is not None
    log.gate.open()
    assert log.gate.most_rows is None
    unknown = LogGate(lambda: None)
    assert unknown.seconds(1) == 0
    assert unknown.most_rows is None
