"""The command line: arguments, signals, exit codes and how things look; no logic."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from backfill import __version__, cli_alembic, overview, presentation, scaffold, settings
from backfill.cli_base import (
    EXIT_FAILED,
    command,
    json_option,
    print_json,
    resumable,
    run_options,
    setting_option,
    told_as_usage,
    worst,
)
from backfill.configuration import Origin
from backfill.context import Call
from backfill.errors import DeclarationError, InvalidTransition, StateError, UnknownBackfill
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backfill.context import Context
    from backfill.discovery import Declared
    from backfill.planner import Plan
    from backfill.runs import Outcome, Run
    from backfill.sync import Sought

_names = click.argument("names", nargs=-1, metavar="[NAME]...")
_name = click.argument("name")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--config", "config_files", multiple=True, help="Alembic's configuration, as for alembic."
)
@click.option("-n", "--name", "section", default="alembic", help="Its section, as for alembic.")
@click.option("-x", multiple=True, help="An argument for env.py, as for alembic.")
@click.option("--url", help="Database URL instead of the configured one.")
@click.version_option(__version__, prog_name="backfill")
@click.pass_context
def cli(
    click_context: click.Context,
    config_files: tuple[str, ...],
    section: str,
    x: tuple[str, ...],
    url: str | None,
) -> None:
    """Data migrations beside Alembic revisions: batched, resumable, polite to live tables.

    Exit codes: 0 complete; 1 failed, or not complete; 2 usage; 3 stopped early and resumable;
    4 another runner holds the lease; 5 finished, but rows are quarantined.
    """
    click_context.obj = call = Call(Origin(config_files, url, section, x))
    click_context.call_on_close(call.stack.close)


# -- declaring and looking -----------------------------------------------------------------


@cli.command()
@_name
@click.option("--revision", required=True, help="The revision after which it may run.")
@click.option("--table", required=True, help="The table to fill.")
@click.pass_obj
@command
def new(call: Call, name: str, revision: str, table: str) -> None:
    """Write a commented class beside the revision."""
    taken = [one.name for _, one in call.each(())]
    for path in scaffold.write_class(call.project.script, name, revision, table, taken):
        click.echo(f"wrote {path}")


@cli.command("list")
@json_option
@click.pass_obj
@command
def list_(call: Call, as_json: bool) -> None:
    """List the declared backfills in the order of the revisions."""

    def look(here: Context, chosen: list[Declared]) -> overview.Document:
        return overview.listing(chosen, here.store, taken_back=here.has_taken_back)

    document = call.collect((), look)
    if as_json:
        print_json(document)
        return
    if not document:
        click.echo("No backfill is declared. Write one: backfill new NAME --revision REV --table T")
    rows = presentation.table(
        ("name", "revision", "", "status", "description"),
        [
            (
                row["name"],
                row["revision"],
                row["problem"] or ("applied" if row["applied"] else "waiting"),
                row["status"],
                row["description"],
            )
            for row in document
        ],
    )
    _echo(rows)


@cli.command()
@_names
@setting_option("--chunk-size", type=int, help="Rows a chunk writes at most.")
@json_option
@click.pass_obj
@command
def plan(call: Call, names: tuple[str, ...], chunk_size: int | None, as_json: bool) -> None:
    """Show what a run would do: SQL, the walk's own plan, warnings, time. Changes nothing."""
    _show_plans(call.each(names), {"chunk_size": chunk_size}, as_json=as_json)


@cli.command()
@_names
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again each second until Ctrl-C; with --json an array a line.",
)
@json_option
@click.pass_obj
@command
def status(call: Call, names: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Show progress, rate, time left, failures and who holds the leases."""
    with suppress(KeyboardInterrupt) if watch else nullcontext():
        _status(call, names, watch=watch, as_json=as_json)


def _status(call: Call, names: Sequence[str], *, watch: bool, as_json: bool) -> None:
    gone = call.gone(names)
    named = [name for name in names if name not in {run.name for _, run in gone}]

    def look(here: Context, chosen: list[Declared]) -> overview.Document:
        return overview.status(
            chosen if named or not names else (),
            here.store,
            [run for where, run in gone if where is here],
            taken_back=here.has_taken_back,
        )

    while True:
        document = call.collect(named, look)
        if as_json:
            print_json(document, on_one_line=watch)
        else:
            if watch:
                click.clear()
            _echo(presentation.status(document))
            _say_if_none_is_due(document)
        if not watch:
            return
        time.sleep(1)


@cli.command()
@_names
@json_option
@click.pass_obj
@command
def verify(call: Call, names: tuple[str, ...], as_json: bool) -> None:
    """Count pending rows in short reads; exit 1 if there are any."""

    def look(here: Context, chosen: list[Declared]) -> overview.Document:
        due = [one for one in chosen if one.is_applied or names]
        return overview.verify(due, here.dialect)

    document = call.collect(names, look)
    if as_json:
        print_json(document)
    else:
        for row in document:
            pending = row["pending"]
            text = (
                "not complete; no `where` to count by"
                if pending is None
                else f"{pending:,} pending"
            )
            click.echo(f"{row['name']}: {text}")
        _say_if_none_is_due(document)
    if any(row["pending"] != 0 for row in document):
        sys.exit(EXIT_FAILED)


@cli.command()
@_names
@json_option
@click.pass_obj
@command
def check(call: Call, names: tuple[str, ...], as_json: bool) -> None:
    """Exit 0 only if all due backfills are complete: for deploys and probes."""
    document = call.collect(names, lambda here, chosen: overview.check(chosen, here.dialect))
    if as_json:
        print_json(document)
    else:
        for row in document:
            state = "complete" if row["complete"] else f"not complete: {row['reason']}"
            click.echo(f"{row['name']}: {state}")
        _say_if_none_is_due(document)
    if not all(row["complete"] for row in document):
        sys.exit(EXIT_FAILED)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Applied revisions and complete ones too.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Leave these findings out.")
@json_option
@click.pass_obj
@command
def doctor(call: Call, everything: bool, ignore: tuple[str, ...], as_json: bool) -> None:
    """Find known traps in env.py, revisions and database; exit 1 if there are any.

    A statement or class that is meant so gets a comment: # backfill: ok
    """
    from backfill.doctor import examine  # here, since no other command needs all that

    found = [one for one in examine(call, everything=everything) if one.code not in ignore]
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        _echo(presentation.findings(found))
    if found:
        sys.exit(EXIT_FAILED)


# -- running -------------------------------------------------------------------------------


@cli.command()
@_names
@click.option("--again", is_flag=True, help="Begin anew where a run by this name has succeeded.")
@run_options
@click.pass_obj
@command
@resumable
def run(
    call: Call,
    names: tuple[str, ...],
    limit: int | None,
    max_seconds: float | None,
    dry_run: bool,
    accept_change: bool,
    again: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run all that are due, in revision order; goes on with what was interrupted."""
    if again and not names:
        raise click.UsageError("--again needs the NAME of what is to be run again.")
    due = call.due(names)
    if not due:
        click.echo("No backfill is due.", err=True)
    if dry_run:
        _show_plans(due, options, as_json=as_json)
        return
    call.notice_downgrades()
    for context, one in due:
        context.dialect.call(_follow_again, context, one, is_named=bool(names))
    from backfill.running import run_due, runs  # here, since no other command needs all that

    with runs(
        options,
        limit=limit,
        max_seconds=max_seconds,
        accept_change=accept_change,
        as_json=as_json,
        again=again,
    ) as running:
        outcomes = run_due(due, running, passes_over_cancelled=not names)
    sys.exit(worst(outcomes))


def _follow_again(context: Context, one: Declared, *, is_named: bool) -> None:
    """Make triggers anew that a revision has ended too early, if a person names their backfill: the
    revision may be at work right now."""
    end = context.early_end(one)
    if end is None:
        return
    if not is_named:
        click.echo(presentation.not_followed(one.name, *end), err=True)
    elif context.follow_again(one):
        click.echo(presentation.followed_again(one.name, *end), err=True)


# -- steering ------------------------------------------------------------------------------


@cli.command()
@_name
@click.pass_obj
@command
def pause(call: Call, name: str) -> None:
    """Stop a run; when this has returned, nothing more is written."""
    is_new = call.on(name, lambda here, one: _move(here, one.name, Status.PAUSED))
    state = "paused" if is_new else "is paused already"
    click.echo(f"{name}: {state}; `backfill resume {name}`, then `backfill run` goes on")


@cli.command()
@_name
@click.pass_obj
@command
def resume(call: Call, name: str) -> None:
    """Let a paused run go on with the next `backfill run`."""
    is_new = call.on(name, lambda here, one: _move(here, one.name, Status.PENDING))
    state = "resumed" if is_new else "is not paused"
    click.echo(f"{name}: {state}; `backfill run {name}` goes on")


@cli.command()
@_name
@click.pass_obj
@command
def cancel(call: Call, name: str) -> None:
    """Give a run up, or its triggers; when this has returned, nothing more is written."""
    try:
        call.on(name, lambda here, one: _cancel(here, name, one.declaration))
    except UnknownBackfill:  # its class may be gone, and its run or triggers not
        if not any(call.everywhere(lambda here: [_cancel_gone(here, name)])):
            raise


def _cancel(context: Context, name: str, sought: Sought) -> None:
    from backfill.sync import withdraw  # here, since no other command needs it

    over, is_new = None, False
    try:
        is_new = _move(context, name, Status.CANCELLED)
    except (StateError, InvalidTransition) as error:
        over = error
    if withdraw(sought, context.dialect):
        click.echo(f"{name}: its triggers are removed")
    elif over is not None:
        raise over
    if over is None:
        state = "cancelled" if is_new else "is cancelled already"
        click.echo(f"{name}: {state}; rows already written stay")


def _cancel_gone(context: Context, name: str) -> bool:
    """Cancel what a database has of a backfill without a class; whether there was anything."""
    try:
        _cancel(context, name, name)
    except StateError:
        return False
    return True


@cli.command("set")
@_name
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
@command
def set_(call: Call, name: str, changes: tuple[str, ...]) -> None:
    """Change size, pace or limits of an unfinished run; KEY= takes a change back.

    Every runner follows within about a second, and it lasts until the run has ended.
    """
    for wrong in (one for one in changes if "=" not in one):
        raise click.UsageError(f"{wrong!r} is not KEY=VALUE, as in nice=1")
    given = dict(one.split("=", 1) for one in changes)
    with told_as_usage():
        wanted = settings.changes(given)
    run = call.on(name, _change, wanted)
    shown = presentation.changed(run.changed)
    click.echo(f"{name}: set {shown}" if shown else f"{name}: runs with its own settings again")


def _change(context: Context, one: Declared, wanted: dict[str, Any]) -> Run:
    name = _with_a_run(context, one.name)
    with context.store.refusals_told(at_once=True):
        return context.store.change(name, wanted)


def _move(context: Context, name: str, wanted: Status) -> bool:
    """Give a run this status; False if it has it already."""
    try:
        with context.store.refusals_told(at_once=True):
            context.store.move(_with_a_run(context, name), wanted)
    except InvalidTransition as error:
        if error.status != wanted.value:
            raise
        return False
    return True


def _with_a_run(context: Context, name: str) -> str:
    if not context.store.exists():
        raise StateError(f"Backfill {name!r} has no run yet; start it with `backfill run`.")
    return name


@cli.command()
@_names
@click.option("--retry", is_flag=True, help="Try the rows again.")
@json_option
@click.pass_obj
@command
def failures(call: Call, names: tuple[str, ...], retry: bool, as_json: bool) -> None:
    """Show quarantined rows; with --retry try them again."""
    outcomes: list[Outcome] = []
    if retry:
        from backfill.running import retry_failures  # here, since to show them needs less

        outcomes = [here.dialect.call(retry_failures, here, one) for here, one in call.each(names)]
    document = call.collect(names, lambda here, chosen: overview.failures(chosen, here.store))
    if as_json:
        print_json(document)
    else:
        rows = presentation.table(
            ("name", "key", "attempts", "error"),
            [(r["name"], json.dumps(r["key"]), str(r["attempts"]), r["error"]) for r in document],
        )
        _echo(rows)
        if not document:
            click.echo("No row is quarantined.")
    sys.exit(worst(outcomes))


def _say_if_none_is_due(document: Sequence[object]) -> None:
    if not document:
        click.echo("No backfill is due.")


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _show_plans(
    chosen: Sequence[tuple[Context, Declared]], options: dict[str, Any], *, as_json: bool
) -> None:
    from backfill.planner import make_plan  # here, since only plans need it

    def planned(context: Context, one: Declared) -> list[Plan]:
        try:
            target = context.target(one)
        except DeclarationError:
            if not overview.is_history(one, context.dialect):
                raise
            return []
        return [make_plan(target, context.settings(one, options))]

    applied = [(here, one) for here, one in chosen if one.is_applied]
    plans = [plan for here, one in applied for plan in here.dialect.call(planned, here, one)]
    if as_json:
        print_json([asdict(found) for found in plans])
        return
    for found in plans:
        _echo(presentation.plan(found))
    for _, one in chosen:
        if not one.is_applied:
            click.echo(f"{one.name}: waits for revision {one.revision}; no plan before it")


cli.add_command(cli_alembic.upgrade)
cli.add_command(cli_alembic.revision)


def main() -> None:
    """Entry point of the `backfill` command."""
    cli(prog_name="backfill")
