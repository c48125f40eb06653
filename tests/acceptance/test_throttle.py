"""A run waits while it is told to, says why wherever one may look, and goes on afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.acceptance.counting import (
    CREATE_COUNTERS,
    PATIENCE_SECONDS,
    SET_BASED,
    assert_counts,
    events,
    last_words,
    prepare,
    status,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.projects import AlembicProject

ROWS = 3_000
RAISES_A_FLAG = (
    CREATE_COUNTERS
    + """
    reads = ["n"]
    writes = ["n"]
    throttle_file = "wait"
    rows_per_second = 1000

    def transform(self, row):
        if row.id == 100:
            open("wait", "w").close()
        return {"n": row.n + 1}
"""
)
METHOD = """
    def throttle(self, connection):
        return sa.inspect(connection).has_table("closed") and "the shop is being counted"
"""


def test_a_flag_file_stops_a_run_and_lets_it_go_on(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, RAISES_A_FLAG, ROWS)
    runner = project.start("run", "--json")
    reason = "waits: flag file wait is there (`throttle_file`)"
    wait_until(lambda: status(project)["throttled"] == reason, runner)
    assert any(e["event"] == "throttled" and e["text"] == reason for e in events(runner))
    assert values_of_n(engine)[0] > 0
    (project.directory / "wait").unlink()
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)
    assert status(project)["throttled"] is None


def test_the_class_itself_says_when_to_wait(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED + METHOD, ROWS)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE closed (id int)")
    runner = project.start("run")
    reason = "waits: `throttle`: the shop is being counted"
    wait_until(lambda: status(project)["throttled"] == reason, runner)
    assert reason in runner.read_stderr()
    assert values_of_n(engine) == {0: ROWS}
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE closed")
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert values_of_n(engine) == {1: ROWS}
