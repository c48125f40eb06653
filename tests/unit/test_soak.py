"""The soak's own reckoning, and that the README shows what was measured."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.databases import Servers
from tests.faults.fault import Attempt, Fault, Stage
from tests.soak.results import Line, Results, Trial, as_document, from_document
from tests.soak.table import in_markdown, put_into, shown_in
from tests.soak.trying import EVENTS, tasks, try_once

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Results(
    date="2026-11-21",
    command="python -m tests.soak",
    machine="2 cores",
    versions={"postgresql": "17.4", "sqlite": "3.40"},
    minutes=3.0,
    lines=[
        Line.of(
            "kill",
            [
                Trial("kill", "sqlite", 1, faults=3, rows=100, recoveries=(0.5, 1.5)),
                Trial("kill", "postgresql", 2, faults=4, rows=50, recoveries=(0.7,)),
            ],
        )
    ],
)


@pytest.fixture
def measured() -> Results:
    text = (REPOSITORY / "docs" / "soak.json").read_text(encoding="utf-8")
    return from_document(json.loads(text))


def test_readme_shows_what_was_measured(measured: Results) -> None:
    assert shown_in(REPOSITORY / "README.md") == in_markdown(measured)


def test_no_row_was_wrong_in_what_is_shown(measured: Results) -> None:
    assert measured.lines
    assert measured.is_good


@pytest.mark.parametrize(("limit", "is_slow"), [(None, False), (2.0, False), (1.0, True)])
def test_a_recovery_that_takes_too_long_is_noticed(limit: float | None, is_slow: bool) -> None:
    trials = [Trial("kill", "sqlite", 1, recoveries=(0.5, 1.5))]
    assert Line.of("kill", trials, limit).is_slow is is_slow


def test_a_line_adds_up_its_attempts() -> None:
    (line,) = RESULTS.lines
    assert line.tried == {"sqlite": 3, "postgresql": 4}
    assert (line.rows, line.wrong, line.broken, line.recovery) == (150, 0, 0, (0.7, 1.5))


def test_results_are_the_same_after_json() -> None:
    assert from_document(json.loads(json.dumps(as_document(RESULTS)))) == RESULTS


@pytest.mark.parametrize("bad", [{"wrong": ("row 7: ours 2 times",)}, {"error": "it hangs"}])
def test_one_bad_attempt_spoils_the_whole(bad: dict[str, object]) -> None:
    trial = Trial("kill", "sqlite", 1, **bad)  # type: ignore[arg-type]
    assert not trial.is_good
    assert not Results(**{**as_document(RESULTS), "lines": [Line.of("kill", [trial])]}).is_good


def test_the_table_stands_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- soak -->\nold\n<!-- end of soak -->\nafter\n")
    put_into(page, RESULTS)
    text = page.read_text()
    assert text.startswith("before\n<!-- soak -->\n2026-11-21, `python -m tests.soak`, 3 minutes")
    assert "| kill | 4 | 3 | 150 | 0 | 0.70 s | 1.50 s |" in text
    assert text.endswith("<!-- end of soak -->\nafter\n")
    assert shown_in(page) == in_markdown(RESULTS)


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="soak"):
        put_into(page, RESULTS)


def fault(name: str, in_soak: int, *requires: str) -> Fault:
    return Fault(name, lambda stage: Attempt(1, 1), frozenset(requires), in_soak=in_soak)


def test_attempts_are_mixed_so_that_an_early_end_leaves_out_a_bit_of_each() -> None:
    faults = [fault("often", 100), fault("seldom", 20), fault("on servers", 20, "server")]
    todo = tasks(faults, ["sqlite", "postgresql"], 0.5, random.Random(1))
    assert Counter((task.fault, task.kind) for task in todo) == {
        ("often", "sqlite"): 50,
        ("often", "postgresql"): 50,
        ("seldom", "sqlite"): 10,
        ("seldom", "postgresql"): 10,
        ("on servers", "postgresql"): 10,
    }
    half = Counter(task.fault for task in todo[: len(todo) // 2])
    assert half["often"] in range(40, 61)
    assert half["seldom"] in range(7, 14)
    assert todo == tasks(faults, ["sqlite", "postgresql"], 0.5, random.Random(1))


def test_an_attempt_that_breaks_off_tells_why_and_what_was_done_last() -> None:
    def attempt(stage: Stage) -> Attempt:
        (stage.directory / "started-1.out").write_text("an event\n" * 2 * EVENTS)
        raise AssertionError("it hangs")

    trial = try_once(Fault("a fault", attempt), "sqlite", 1, Servers())
    assert "it hangs" in trial.error
    assert trial.events == ("started-1.out: an event",) * EVENTS


def test_an_attempt_has_the_dice_of_its_seed() -> None:
    def attempt(stage: Stage) -> Attempt:
        return Attempt(stage.dice.randrange(10**9), 1)

    seen = {
        seed: try_once(Fault("a fault", attempt), "sqlite", seed, Servers()).faults
        for seed in (1, 2)
    }
    assert seen == {seed: random.Random(seed).randrange(10**9) for seed in (1, 2)}
