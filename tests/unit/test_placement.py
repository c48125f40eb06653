"""What stands before a gate: the gate itself judges as the doctor does (unit/doctor)."""

from __future__ import annotations

import ast

import pytest

from backfill.placement import Gate, first_change, gates_after


@pytest.mark.parametrize(
    "line",
    [
        "op.execute(\"SET lock_timeout = '1s'\")",
        'op.execute(sa.text("PRAGMA foreign_keys = OFF"))',
        'op.stop_backfill_sync("other")',
        "connection = op.get_bind()",
        "rows = len(names)",
    ],
)
def test_what_may_stand_before_a_gate(line: str) -> None:
    assert first_change(ast.parse(line), before=2) is None


@pytest.mark.parametrize(
    "line",
    [
        "op.add_column('users', column)",
        "op.execute(\"SELECT setval('users_id_seq', 1)\")",
        "op.get_bind().execute(sa.text('UPDATE users SET a = 1'))",
        "op.execute(statement)",
    ],
)
def test_what_may_not(line: str) -> None:
    assert first_change(ast.parse(f"pass\n{line}"), before=3) == 2
    assert first_change(ast.parse(f"pass\n{line}"), before=2) is None


BEHIND = """
op.require_backfill("here")
op.require_backfill("plain", inline=True, keep_sync=KEEPS)
op.require_backfill(computed())
with op.get_context().autocommit_block():
    op.require_backfill(name=NAME)
if op.get_bind().dialect.name == "sqlite":
    op.require_backfill("perhaps")
for name in NAMES:
    op.require_backfill(name)
"""
KNOWN = {"KEEPS": True, "NAME": "constant", "NAMES": ("one", "two")}


def test_gates_that_follow_a_line() -> None:
    assert list(gates_after(ast.parse(BEHIND).body, 2, KNOWN)) == [
        Gate("plain", {"inline": True, "keep_sync": True}),
        Gate("constant", {}),
        Gate("one", {}),
        Gate("two", {}),
    ]


def test_gates_that_follow_within_a_condition_that_holds() -> None:
    text = """
if is_online:
    op.require_backfill("here")
    op.require_backfill("sure")
else:
    op.require_backfill("never")
op.require_backfill("last")
"""
    names = [gate.name for gate in gates_after(ast.parse(text).body, 3, {})]
    assert names == ["sure", "last"]


def test_gates_that_follow_in_the_rounds_of_a_loop() -> None:
    text = """
for name in ("one", "two", "three"):
    op.require_backfill(name)
    op.require_backfill("each")
"""
    found = gates_after(ast.parse(text).body, 3, {"name": "two"})
    assert [gate.name for gate in found] == ["each", "three", "each"]


def test_gates_in_a_loop_over_what_nobody_can_tell() -> None:
    text = "for name in names():\n    op.require_backfill(name)"
    assert list(gates_after(ast.parse(text).body, 2, {"name": "one"})) == []
