"""What databases tell of their health: the arithmetic, without a database."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill.dialects import postgresql_wal
from backfill.dialects.health import Company, FreeDisk, Replica, most_active
from backfill.dialects.postgresql_wal import ArchiveQueue, Replay, WalClock
from backfill.errors import ConfigurationError
from backfill.settings import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# -- the WAL's clock ---------------------------------------------------------------------------


def clock(*points: tuple[float, float]) -> WalClock:
    made = WalClock()
    for now, written in points:
        made.note(now, written)
    return made


@pytest.mark.parametrize(
    ("position", "age"),
    [
        (400, 0.0),
        (500, 0.0),  # a replica that was asked after the primary
        (350, 0.5),  # half of what was written in the last second
        (300, 1.0),
        (200, 4.0),  # nothing was written from 1 s to 4 s: it was the newest until then
        (100, 5.0),
        (99, None),
    ],
)
def test_age_of_a_position_is_since_it_was_the_newest(position: float, age: float | None) -> None:
    points = ((0.0, 100.0), (1.0, 200.0), (4.0, 300.0), (5.0, 400.0))
    assert clock(*points).age(position) == (pytest.approx(age) if age is not None else None)


def test_an_idle_primary_leaves_nobody_behind() -> None:
    assert clock((0.0, 100.0), (3600.0, 100.0)).age(100) == 0.0


def test_a_replica_that_stands_still_grows_old() -> None:
    points = [(float(second), 100.0 + second) for second in range(60)]
    assert clock(*points).age(100) == 59.0


def test_another_server_begins_anew() -> None:
    made = clock((0.0, 1_000.0), (1.0, 50.0))
    assert made.span == 0.0
    assert made.age(50) == 0.0


# -- the lag to come ---------------------------------------------------------------------------


def test_what_is_not_replayed_is_the_lag_to_come() -> None:
    replay = Replay()
    for quarter in range(13):  # 40 MB/s are written, 10 MB/s replayed
        assert replay.seconds == 0 or quarter > 4
        now = quarter / 4
        replay.note(now, 40 * now, 10 * now)
    assert replay.seconds == pytest.approx(3 * 30 / 10 + 1)  # and 10 MB until it is read next


def test_an_idle_replica_is_not_slow() -> None:
    """What it could not replay, since nothing was written, says nothing of its speed."""
    replay = Replay()
    for second in range(60):
        replay.note(float(second), 1_000.0, 1_000.0)
    replay.note(60.0, 1e6, 1_000.0)
    assert replay.seconds == 0
    for quarter in range(8):
        replay.note(60.25 + quarter / 4, 1e6 + quarter * 1e5, 1e6 + quarter * 1e5 - 1e4)
    assert replay.seconds < 1


def test_a_replica_that_stands_still_has_no_speed_and_is_for_ever_behind() -> None:
    replay = Replay()
    for second in range(4):
        replay.note(float(second), 1e6, 500.0)
    assert replay.seconds > 1e5


# -- company -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "company"),
    [
        ("0000000", "0000000"),
        ("1000000000", "1000000000"),  # from before we began: for the first second only
        ("0010000000", "0000000000"),  # somebody who looks in
        ("0010000100000", "0000000000000"),
        ("0011000000000", "0001111100000"),
        ("0010001000000", "0000001111100"),
        ("1111111111", "1111111111"),
    ],
)
def test_company_is_who_was_seen_in_two_of_five_seconds(seen: str, company: str) -> None:
    now = 100.0
    company_of = Company(lambda: now)
    found = ""
    for one in seen:
        found += "01"[company_of.note(is_seen=one == "1")]
        now += 1.0
    assert found == company


def test_one_look_more_often_than_each_second_is_not_two_seconds() -> None:
    now = 100.0
    company = Company(lambda: now)
    assert not company.note(is_seen=False)
    found = []
    for quarter in range(5):
        now = 103.0 + quarter / 4
        found.append(company.note(is_seen=True))
    assert found == [False] * 4 + [True]


# -- names and numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "number"),
    [
        ("000000010000000000000001", 16 * 1024**2, 1),
        ("0000000100000000000000FF", 16 * 1024**2, 255),
        ("000000070000000100000000", 16 * 1024**2, 256),
        ("000000010000000200000003", 1024**3, 11),
    ],
)
def test_number_of_a_segment(name: str, size: int, number: int) -> None:
    assert postgresql_wal._segment_number(name, size) == number


@pytest.mark.parametrize(("fails", "queue"), [(False, [0, 2]), (True, [59, 61])])
def test_segments_from_while_archiving_was_off_are_nobody_s_queue(
    fails: bool, queue: list[int]
) -> None:
    """They never will be archived; those that a failing archiver leaves are counted at once."""
    segment = 2**24
    row = SimpleNamespace(
        archive_mode="on",
        segment_size=segment,
        written=100 * segment,
        last_archived_wal=f"00000001{0:08X}{40:08X}",
        fails=fails,
    )
    connection: Any = SimpleNamespace(execute=lambda _: SimpleNamespace(one=lambda: row))

    @contextmanager
    def reader(*, write: bool = False) -> Iterator[Any]:
        yield connection

    signal = ArchiveQueue(limit=42)
    found = []
    for written in (100, 102):
        row.written = written * segment
        reading = signal.read(reader)
        assert reading is not None
        found.append(reading.value)
    assert found == queue


def test_active_sessions_are_a_matter_of_processors_where_they_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert most_active(resolve(), is_here=True) == (32, " on 8 processors")
    assert most_active(resolve(), is_here=False) == (25, "")
    told = resolve(("x", {"max_active_sessions": 60}))
    assert most_active(told, is_here=True) == (60, "")


def test_free_disk_stops_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0
    usage = type("Usage", (), {"free": property(lambda self: free)})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage())
    signal = FreeDisk(1024**3, lambda reader: [tmp_path])
    found = {}
    for free in (0, 1024**3, 1024**3 + 1, 2 * 1024**3, 3 * 1024**3):
        reading = signal.read(None)  # type: ignore[arg-type]
        assert reading is not None
        found[free] = (reading.stops, reading.value >= reading.warn)
    assert list(found.values()) == [(True, True)] * 2 + [(False, True)] * 2 + [(False, False)]


# -- replicas ------------------------------------------------------------------------------------


class Primary:
    """As much of a dialect as a replica needs to know where it is."""

    def __init__(self, url: str) -> None:
        self.engine: Any = type("Engine", (), {"url": sa.make_url(url)})


PRIMARY = "postgresql+psycopg://app:secret@db1:6000/shop?sslmode=require&host=/run"


@pytest.mark.parametrize(
    ("given", "url", "name"),
    [
        ("db2", "postgresql+psycopg://app:secret@db2:6000/shop?sslmode=require", "db2:6000"),
        ("db2:7000", "postgresql+psycopg://app:secret@db2:7000/shop?sslmode=require", "db2:7000"),
        ("[::1]:7000", "postgresql+psycopg://app:secret@[::1]:7000/shop?sslmode=require", ""),
        ("postgresql://me:pw@db2/x", "postgresql+psycopg://me:pw@db2/x", "db2"),
    ],
)
def test_a_replica_is_like_the_primary_but_for_what_is_said(
    given: str, url: str, name: str
) -> None:
    replica = Replica(given, Primary(PRIMARY))  # type: ignore[arg-type]
    assert replica._url.render_as_string(hide_password=False) == url
    assert replica.name == (name or "::1:7000")


@pytest.mark.parametrize("given", ["postgresql://me:pw@db2:port/x", "://", "db2:port"])
def test_a_replica_that_is_none_is_told_without_its_password(given: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Replica(given, Primary(PRIMARY))  # type: ignore[arg-type]
    assert "neither a host, nor host:port, nor a URL" in str(refused.value)
    assert "pw" not in str(refused.value)
