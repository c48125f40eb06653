"""What people and programs see of a run."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from backfill.reporters import (
    Event,
    Forgiving,
    JsonReporter,
    LogReporter,
    TerminalReporter,
    duration,
)

if TYPE_CHECKING:
    from backfill.reporters import Reporter


def started(estimated: int | None = 10_000, *, scanned: int = 0, ranges: int = 1) -> Event:
    numbers = {"rows_estimated": estimated, "rows_scanned": scanned, "ranges": ranges}
    return Event("started", "fill", "starts", numbers)


def chunk(
    scanned: int = 1_000, *, total: int | None = None, number: int = 1, is_last: bool = False
) -> Event:
    return Event(
        "chunk",
        "fill",
        numbers={
            "range": number,
            "rows_scanned": scanned if total is None else total,
            "scanned": scanned,
            "changed": scanned // 2,
            "seconds": 0.05,
            "size": 500,
            "is_last": is_last,
        },
    )


FINISHED = Event("finished", "fill", "complete, 7 rows changed", {"status": "succeeded"})
WHY = "slowed to 40%: sessions 3.1 a processor (stops at 4)"
SLOWED = Event("throttled", "fill", WHY, {"reason": WHY})
FREE = Event("throttled", "fill", "goes on at its full pace", {"reason": None})
RETRY = Event("retry", "fill", "waits: a row is locked", {"attempt": 4, "reason": "locked"})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# -- JSON ------------------------------------------------------------------------------------


def test_json_is_a_line_an_event() -> None:
    stream = io.StringIO()
    report = JsonReporter(stream)
    for event in (started(), chunk(), RETRY, FINISHED):
        report(event)
    report.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["started", "chunk", "retry", "finished"]
    assert {line["name"] for line in lines} == {"fill"}
    assert lines[0]["rows_estimated"] == 10_000
    assert lines[1]["scanned"] == 1_000
    assert "text" not in lines[1]
    assert lines[3] == {
        "event": "finished",
        "name": "fill",
        "status": "succeeded",
        "text": "complete, 7 rows changed",
    }


def test_json_goes_to_the_stdout_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    JsonReporter()(FINISHED)
    assert json.loads(capsys.readouterr().out)["event"] == "finished"


def test_json_lines_of_many_threads_stay_whole() -> None:
    stream = io.StringIO()
    report = JsonReporter(stream)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, [chunk()] * 400))
    assert len([json.loads(line) for line in stream.getvalue().splitlines()]) == 400


def test_json_is_flushed_with_each_line() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    report = JsonReporter(stream)
    report(started())
    report(chunk())
    assert stream.flushed == 2


# -- log lines -------------------------------------------------------------------------------


def log(*steps: Event | float) -> list[str]:
    """The lines written for these events; a number lets so many seconds pass."""
    lines: list[str] = []
    clock = Clock()
    report = LogReporter(lines.append, every_seconds=5, clock=clock)
    for step in steps:
        if isinstance(step, Event):
            report(step)
        else:
            clock.now += step
    report.close()
    return lines


def test_log_says_what_has_a_text() -> None:
    assert log(started(), RETRY, FINISHED) == [
        "fill: starts",
        "fill: waits: a row is locked",
        "fill: complete, 7 rows changed",
    ]


def test_log_says_why_it_is_slow() -> None:
    assert log(started(), SLOWED, FREE)[1:] == [f"fill: {WHY}", "fill: goes on at its full pace"]


def test_log_is_silent_on_events_without_text() -> None:
    assert log(Event("retry", "fill", "", {"attempt": 1})) == []


def test_log_tells_progress_every_few_seconds() -> None:
    steps: list[Event | float] = [chunk(100), 1.0] * 12
    lines = log(started(), *steps)[1:]
    assert len(lines) == 2
    assert all(re.match(r"fill: [\d,]+ of about 10,000 rows", line) for line in lines)


def test_log_tells_how_far_how_fast_and_how_long() -> None:
    lines = log(started(), 5.0, chunk(1_000), 5.0, chunk(1_000))
    assert lines[1:] == [
        "fill: 1,000 of about 10,000 rows (10%), 200 rows/s, 45 s left",
        "fill: 2,000 of about 10,000 rows (20%), 200 rows/s, 40 s left",
    ]


def test_log_goes_on_after_what_was_done() -> None:
    lines = log(started(scanned=5_000), 5.0, chunk(1_000, total=6_000))
    assert lines[1:] == ["fill: 6,000 of about 10,000 rows (60%), 200 rows/s, 20 s left"]


@pytest.mark.parametrize("estimated", [None, 0, 500])
def test_log_without_an_estimate_that_helps(estimated: int | None) -> None:
    lines = log(started(estimated), 5.0, chunk(1_000))
    assert lines[1:] == ["fill: 1,000 rows scanned, 200 rows/s"]


def test_log_in_no_time_at_all() -> None:
    lines: list[str] = []
    report = LogReporter(lines.append, every_seconds=0, clock=Clock())
    report(started())
    report(chunk())
    assert lines[1].startswith("fill: 1,000 of about 10,000 rows")


def test_log_of_two_backfills() -> None:
    other = [Event(e.what, "other", e.text, e.numbers) for e in (started(100), chunk(50))]
    lines = log(started(), chunk(), 5.0, other[0], 5.0, other[1], 5.0, chunk())
    assert [line.partition(":")[0] for line in lines] == ["fill", "other", "other", "fill"]
    assert "50 of about 100 rows (50%)" in lines[2]
    assert "2,000 of about 10,000 rows (20%)" in lines[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3_600, "1 h 0 min"),
        (7_500, "2 h 5 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- bars ------------------------------------------------------------------------------------


class Eager(tqdm):  # type: ignore[type-arg]
    """A bar that is drawn at each change, and not ten times a second."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "mininterval": 0, "miniters": 1})


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill.reporters.tqdm", Eager)


def screen(*events: Event) -> str:
    """All that was written to a terminal for these events."""
    stream = io.StringIO()
    report = TerminalReporter(stream)
    for event in events:
        report(event)
    report.close()
    return stream.getvalue()


def test_bar_shows_name_and_estimate() -> None:
    shown = screen(started(), chunk(), FINISHED)
    assert "fill: starts\n" in shown
    assert "fill:" in shown.split("starts\n")[1]
    assert "10.0k" in shown
    assert shown.endswith("fill: complete, 7 rows changed\n")


def test_bar_goes_on_after_what_was_done() -> None:
    assert "60%" in screen(started(scanned=5_000), chunk(1_000, total=6_000))


@pytest.mark.parametrize("estimated", [None, 0])
def test_bar_without_an_estimate(estimated: int | None) -> None:
    assert "%" not in screen(started(estimated), chunk())


def test_bar_does_not_end_before_the_rows_do() -> None:
    """Statistics lie: more rows than were expected are no error."""
    assert "3.00k" in screen(started(100), chunk(1_000), chunk(2_000, total=3_000))


def test_bar_goes_when_its_range_ends() -> None:
    shown = screen(started(ranges=2), chunk(number=1, is_last=True), chunk(number=2))
    assert "\r" in shown
    assert "fill" not in shown.rpartition("\r")[2]


def test_bars_of_several_ranges() -> None:
    shown = screen(started(ranges=4), *(chunk(10, number=number) for number in range(4)))
    assert "2.50k" in shown


def test_bar_says_why_it_is_slow_as_long_as_it_is() -> None:
    assert f"fill: {WHY}\n" in screen(started(), SLOWED)
    shown = screen(started(), chunk(), SLOWED, chunk(total=2_000), FREE, chunk(total=3_000))
    assert f"chunk 500, {WHY}" in shown
    assert WHY not in shown.rpartition("goes on at its full pace")[2]


def test_bar_says_why_it_waits() -> None:
    assert "waits: a row is locked" in screen(started(), chunk(), RETRY)


def test_bar_that_has_gone_is_not_drawn_again() -> None:
    assert "waits" not in screen(started(), chunk(is_last=True), RETRY)


def test_waiting_needs_no_bar() -> None:
    screen(RETRY)


def test_bar_does_not_count_a_chunk_twice() -> None:
    shown = screen(started(), *(chunk(1_000, total=1_000 * i) for i in range(1, 11)), FINISHED)
    assert "20.0k" not in shown


def test_quarantined_row_is_written_above_the_bars() -> None:
    bad = Event("quarantined", "fill", "row [7] is quarantined: ValueError")
    assert "fill: row [7] is quarantined: ValueError\n" in screen(started(), chunk(), bad)


@pytest.mark.parametrize("kind", ["json", "log", "terminal"])
def test_close_can_be_called_at_any_time_and_twice(kind: str) -> None:
    reporters: dict[str, Any] = {
        "json": lambda: JsonReporter(io.StringIO()),
        "log": lambda: LogReporter(lambda _: None),
        "terminal": lambda: TerminalReporter(io.StringIO()),
    }
    report: Reporter = reporters[kind]()
    report.close()
    report(started())
    report(chunk())
    report.close()
    report.close()


# -- nobody reads ----------------------------------------------------------------------------


class Recorder:
    """A reporter whose reader may go away."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.is_closed = False
        self.error: Exception | None = None

    def __call__(self, event: Event) -> None:
        if self.error:
            raise self.error
        self.seen.append(event)

    def close(self) -> None:
        self.is_closed = True


def test_reader_that_stays_is_told_everything() -> None:
    recorder, lost = Recorder(), list[str]()
    report = Forgiving(recorder, lambda: lost.append("lost"))
    report(started())
    report(FINISHED)
    report.close()
    assert [event.what for event in recorder.seen] == ["started", "finished"]
    assert recorder.is_closed
    assert not lost


def test_reader_that_goes_is_missed_once() -> None:
    recorder, lost = Recorder(), list[str]()
    report = Forgiving(recorder, lambda: lost.append("lost"))
    recorder.error = BrokenPipeError()
    report(started())
    report(chunk())
    report.close()
    assert lost == ["lost"]
    assert not recorder.is_closed


def test_error_of_the_reporter_itself_is_not_forgiven() -> None:
    recorder = Recorder()
    recorder.error = KeyError("range")
    with pytest.raises(KeyError):
        Forgiving(recorder, lambda: None)(chunk())
