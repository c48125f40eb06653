"""The table that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.soak.results import Line, Results

BEGIN, END = "<!-- soak -->\n", "<!-- end of soak -->\n"
TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


def in_markdown(results: Results) -> str:
    """The table with its date, the versions and the command that made it."""
    head = ("fault", *columns(results), "rows checked", "wrong", "recovery: median", "longest")
    lines = [
        head,
        ("---", *["---:"] * (len(head) - 1)),
        *(cells(results, one) for one in results.lines),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{TITLES[kind]} {version}" for kind, version in results.versions.items())
    return (
        f"{results.date}, `{results.command}`, {results.minutes:,.0f} minutes on"
        f" {results.machine}; {versions}:\n\n{table}\n"
    )


def columns(results: Results) -> Sequence[str]:
    return [TITLES[kind] for kind in results.versions]


def cells(results: Results, line: Line) -> tuple[str, ...]:
    tried = [f"{line.tried.get(kind, 0):,}" for kind in results.versions]
    wrong = f"{line.wrong:,}" + (f", {line.broken:,} broken off" if line.broken else "")
    seconds = ("", "") if line.recovery is None else tuple(f"{one:.2f} s" for one in line.recovery)
    return (line.fault, *tried, f"{line.rows:,}", wrong, *seconds)


def for_terminal(results: Results) -> str:
    head = ("fault", *columns(results), "rows checked", "wrong", "recovery", "longest")
    lines = [head, *(cells(results, one) for one in results.lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def put_into(page: Path, results: Results) -> None:
    """Replace what stands between the two markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(before + BEGIN + in_markdown(results) + END + after, encoding="utf-8")


def shown_in(page: Path) -> str:
    """What stands between the two markers of a page."""
    rest = page.read_text(encoding="utf-8").partition(BEGIN)[2]
    return rest.partition(END)[0]
