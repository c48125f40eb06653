"""Is every row right, however often things go wrong?

    python -m tests.soak --output docs/soak.json --readme

Tries each fault of tests/faults as often as it says, `--scale` times; several at a time, each with
private servers. Each attempt is `n = n + 1` beside an application; afterwards SQL of its own looks
at every row. At the end stands a table; the exit code is 1 if a row or a count was wrong, if an
attempt broke off, or if a recovery took longer than it may on a machine that does nothing else. A
bad attempt is shown with the command that makes it again, and with what its commands did last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import sys
import time
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tests.databases import CAPABILITIES_OF, Unavailable, version
from tests.faults.catalogue import FAULTS
from tests.soak.results import Line, Results, as_document, from_document
from tests.soak.table import for_terminal, put_into
from tests.soak.trying import tasks, try_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.fault import Fault
    from tests.soak.results import Trial

README = Path(__file__).resolve().parents[2] / "README.md"


def main() -> int:
    options = parse()
    if options.draw:
        results = from_document(json.loads(options.draw.read_text(encoding="utf-8")))
    else:
        results = soak(options)
    print(for_terminal(results))
    if options.output:
        text = json.dumps(as_document(results), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.readme:
        put_into(README, results)
    slow = [line for line in results.lines if line.is_slow]
    for line in slow:
        print(f"Recovery took longer than {line.recovers_within:g} s: {line.fault}")
    return 0 if results.is_good and not slow else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--databases", nargs="+", choices=CAPABILITIES_OF, metavar="KIND")
    parser.add_argument("--faults", nargs="+", metavar="TEXT", help="those whose names contain it")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of attempts")
    parser.add_argument("--minutes", type=float, help="begin no attempt after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="attempts side by side")
    parser.add_argument("--seed", type=int, help="for the same attempts in the same order")
    parser.add_argument("--attempt", type=int, metavar="SEED", help="this single attempt again")
    parser.add_argument("--output", type=Path, help="write the figures to this file")
    parser.add_argument("--draw", type=Path, help="show the figures of such a file, try nothing")
    parser.add_argument("--readme", action="store_true", help="put the table into the README")
    return parser.parse_args()


def soak(options: argparse.Namespace) -> Results:
    """Try all that is asked for, and tell of what is wrong as it is found."""
    versions = available(options.databases or list(CAPABILITIES_OF))
    faults = chosen(options.faults)
    seed = random.randrange(10**9) if options.seed is None else options.seed
    todo = tasks(faults, list(versions), options.scale, random.Random(seed))
    if options.attempt is not None:
        todo = [replace(todo[0], seed=options.attempt)]
    print(f"{len(todo):,} attempts, --seed {seed}", flush=True)
    load = os.getloadavg()[0]
    began, trials = time.monotonic(), defaultdict[str, "list[Trial]"](list)
    seconds = None if options.minutes is None else options.minutes * 60
    for number, trial in enumerate(try_all(todo, options.jobs, seconds), 1):
        trials[trial.fault].append(trial)
        if not trial.is_good:
            tell(trial)
        elif number % 20 == 0:
            print(f"{number:,} attempts, {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return Results(
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        command=shlex.join(["python", "-m", "tests.soak", *sys.argv[1:]]),
        machine=f"{os.cpu_count()} cores ({platform.machine()}, load {load:.1f} before it began)",
        versions=versions,
        minutes=round((time.monotonic() - began) / 60, 1),
        lines=[
            Line.of(one.name, trials[one.name], one.recovers_within)
            for one in faults
            if one.name in trials
        ],
    )


def available(kinds: Sequence[str]) -> dict[str, str]:
    """The versions of those databases that are installed here."""
    found = {kind: version_of(kind) for kind in kinds}
    return {kind: version for kind, version in found.items() if version}


def version_of(kind: str) -> str:
    """Empty, and told, where it is not installed."""
    try:
        return version(kind)
    except Unavailable as error:
        print(f"{kind} is left out: {error}", file=sys.stderr)
        return ""


def chosen(texts: Sequence[str] | None) -> list[Fault]:
    found = [one for one in FAULTS if texts is None or any(text in one.name for text in texts)]
    if not found:
        names = "\n".join(one.name for one in FAULTS)
        raise SystemExit(f"No fault has such a name. There are:\n{names}")
    return found


def tell(trial: Trial) -> None:
    """Say what is wrong, what was done last, and how to try it again."""
    again = ("--faults", trial.fault, "--databases", trial.kind, "--attempt", str(trial.seed))
    print(f"\n{shlex.join(['python', '-m', 'tests.soak', *again])}")
    print("\n".join(trial.events))
    print("\n".join(trial.wrong))
    print(trial.error, flush=True)


if __name__ == "__main__":
    sys.exit(main())
