"""How documents and plans look on a screen, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from backfill.doctor import Finding
    from backfill.planner import Plan


_MOMENT = "%Y-%m-%d %H:%M:%S UTC"
_QUIET = 30
"""Seconds without a commit that are worth telling: many times what a chunk takes."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Give rows in columns under a head; nothing without rows."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows) if rows else ():
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def status(document: list[dict[str, Any]]) -> Iterator[str]:
    """Give the document of `status` as a person wants to read it."""
    for row in document:
        yield f"{row['name']} (revision {row['revision']}): {row['status']}"
        for line in _status_lines(row):
            yield f"  {line}"


def _status_lines(row: dict[str, Any]) -> Iterator[str]:
    estimated = row["rows_estimated"]
    is_done = row["status"] == "succeeded" or estimated is None
    about = "" if is_done else f" of about {estimated:,}"
    if row["ranges"]:
        yield f"{row['rows_scanned']:,}{about} rows scanned, {row['rows_changed']:,} changed"
    if row["rows_per_second"]:
        left = row["seconds_left"]
        tail = f", about {duration(left)} left" if left is not None else ""
        yield f"{row['rows_per_second']:,.0f} rows/s{tail}"
    if row["throttled"]:
        yield str(row["throttled"])
    if row["set"]:
        yield f"set: {changed(row['set'])}"
    if row["problem"]:
        yield str(row["problem"])
    if row["sync"]:
        yield f"triggers keep up with new writes, until the gate or `backfill cancel {row['name']}`"
    if row["failures"] and not row["error"]:
        yield f"{row['failures']:,} rows quarantined: see `backfill failures {row['name']}`"
    if row["error"]:
        yield f"error: {row['error']}"
    for owner in sorted({r["owner"] for r in row["ranges"] if r["owner"]}):
        held = [r["seconds_quiet"] for r in row["ranges"] if r["owner"] == owner]
        quiet = f"; nothing committed for {duration(max(held))}" if max(held) > _QUIET else ""
        yield f"{len(held)} of {len(row['ranges'])} key ranges leased by {owner}{quiet}"


def changed(settings: Mapping[str, object]) -> str:
    """Return what `set` has changed as one types it: `nice=1, rows_per_second=20000`."""
    return ", ".join(f"{name}={_typed(value)}" for name, value in settings.items())


def _typed(value: object) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def plan(found: Plan) -> Iterator[str]:
    """Give a plan as a person wants to read it."""
    estimated = found.rows_estimated
    rows = "an unknown number of" if estimated is None else f"about {estimated:,}"
    yield f"{found.name} (revision {found.revision}), {found.level}"
    yield f"  table      {found.table}, {rows} rows, walked by {', '.join(found.key)}"
    if found.complete:
        yield "  complete   a run has succeeded; it would look for rows that are pending again"
    if found.pending_share is not None:
        yield f"  pending    {found.pending_share:.1%} of the rows sampled"
    for statement in found.statements:
        for line in statement.split("\n"):
            yield f"  SQL        {line}"
    for line in found.walk_plan:
        yield f"  walk plan  {line}"
    if found.chunk_rows:
        yield (
            f"  first try  {found.chunk_rows:,} rows in {found.chunk_seconds * 1000:.0f} ms,"
            " rolled back"
        )
    if found.seconds_estimated is not None:
        yield f"  estimate   {duration(found.seconds_estimated)} at that speed, one worker"
    for warning in found.warnings:
        yield f"  warning    {warning}"
    for statement in found.sync:
        for line in statement.split("\n"):
            yield f"  trigger    {line}"


def findings(found: Sequence[Finding]) -> Iterator[str]:
    """Give what the doctor found as a person wants to read it."""
    for one in found:
        place = one.where if one.line is None else f"{one.where}:{one.line}"
        yield f"{place}: {one.severity}: {one.message} [{one.code}]"
        yield f"    {one.advice}"
        for line in (one.offer or "").splitlines():
            yield f"        {line}".rstrip()
    yield f"{len(found)} found." if found else "Nothing found."


def followed_again(name: str, revision: str, ended: datetime) -> str:
    """Say that triggers are there again, and what they have missed."""
    return (
        f"{name}: triggers keep up with new writes again, until the gate or `backfill cancel"
        f" {name}`. Revision {revision}, which is not applied, had ended them at"
        f" {ended:{_MOMENT}}: what was updated since then was not followed, and nothing finds"
        " such rows. Empty there what the backfill fills, then run it again."
    )


def not_followed(name: str, revision: str, ended: datetime) -> str:
    """Say that triggers are missing, and how to get them."""
    return (
        f"{name}: no triggers keep up with new writes: revision {revision}, which is not applied,"
        f" ended them at {ended:{_MOMENT}}. Unless it is being applied now, `backfill run {name}`"
        " makes them anew."
    )


def duration(seconds: float) -> str:
    """Return seconds as a person says them: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"
