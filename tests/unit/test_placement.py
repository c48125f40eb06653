"""What stands before a gate: the gate itself judges as the doctor does (unit/doctor)."""

from __future__ import annotations

import ast

import pytest

from backfill.placement import first_change


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
