"""The commands that do what Alembic's own do, and more: `upgrade`, `revision`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from backfill.cli_base import command, print_json, resumable, run_options, worst

if TYPE_CHECKING:
    from backfill.context import Call


@click.command()
@click.argument("revision", default="head")
@click.option("--tag", help="An argument for env.py, as for alembic.")
@run_options
@click.pass_obj
@command
@resumable
def upgrade(
    call: Call,
    revision: str,
    tag: str | None,
    limit: int | None,
    max_seconds: float | None,
    dry_run: bool,
    accept_change: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Do Alembic's upgrade to REVISION, `head` by default, and run each backfill on the way.

    A backfill runs as soon as its revision is applied, before the next one is. Relative ids,
    branches and `heads` mean what they mean to Alembic.
    """
    from backfill.running import runs  # here, since no other command needs all that
    from backfill.upgrading import Upgrade, forecast

    if dry_run:
        _show(forecast(call.contexts, revision), as_json=as_json)
        return
    call.notice_downgrades()
    with runs(
        options,
        limit=limit,
        max_seconds=max_seconds,
        accept_change=accept_change,
        as_json=as_json,
    ) as running:
        outcomes = Upgrade(call.contexts, revision, running, tag).run()
    sys.exit(worst(outcomes))


def _show(document: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for row in document:
        where = f" ({row['database']})" if row["database"] else ""
        if row["revision"] is not None:
            click.echo(f"upgrade to {row['revision']}{where}")
        for name in row["backfills"]:
            click.echo(f"run {name}{where}")
    if not document:
        click.echo("Nothing is to be done.")


@click.command()
@click.option("-m", "--message", help="What the revision does.")
@click.option("--autogenerate", is_flag=True, help="Compare the models with the database.")
@click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="TABLE.OLD:NEW",
    help="With --autogenerate: this column is renamed; neither dropped nor new.",
)
@click.option("--sql", is_flag=True, help="As for alembic.")
@click.option("--head", default="head", help="The revision to build upon.")
@click.option("--splice", is_flag=True, help="Allow a revision that is no head there.")
@click.option("--branch-label", help="A label for the branch.")
@click.option("--version-path", help="Where to write, with several version locations.")
@click.option("--rev-id", help="The id of the first revision written.")
@click.option("--depends-on", multiple=True, help="A revision that has to come before.")
@click.pass_obj
@command
def revision(call: Call, renames: tuple[str, ...], **options: Any) -> None:
    """Do what `alembic revision` does, and three steps where one would be unsafe.

    A column that is NOT NULL on a table which exists becomes a nullable column, a backfill class
    that fills it, and a revision that makes it NOT NULL behind the backfill's gate.
    """
    from backfill import revising, steps  # here, since no other command needs them

    asked = [steps.Rename.parse(one) for one in renames]
    options["depends_on"] = list(options["depends_on"]) or None
    names = [one.name for _, one in call.each(())]
    project = call.project
    written = revising.write(project.config, project.script, options, asked, names)
    for path in written.classes:
        click.echo(f"wrote {path}")
    for hint in written.hints:
        click.echo(hint, err=True)
    if not written.is_filled_in:
        click.echo("Next: write the values in place of the dots, then `backfill upgrade`.")
