"""Tries faults, in processes side by side, each with servers of its own."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tests.databases import CAPABILITIES_OF, Servers
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Stage
from tests.projects import AlembicProject
from tests.soak.results import Trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.faults.fault import Fault

EVENTS = 200
BY_NAME = {fault.name: fault for fault in FAULTS}


@dataclass(frozen=True, slots=True)
class Task:
    """An attempt to be made."""

    fault: str
    kind: str
    seed: int


def tasks(
    faults: Iterable[Fault], kinds: Sequence[str], scale: float, dice: random.Random
) -> list[Task]:
    """All attempts, so mixed that whatever is left out at the end is left out of each fault."""
    placed = []
    for fault in faults:
        for kind in kinds:
            if fault.requires <= CAPABILITIES_OF[kind]:
                count = max(1, round(fault.in_soak * scale))
                placed += [
                    (
                        (number + dice.random()) / count,
                        Task(fault.name, kind, dice.randrange(10**9)),
                    )
                    for number in range(count)
                ]
    return [task for _, task in sorted(placed, key=lambda one: one[0])]


def try_all(todo: Iterable[Task], jobs: int, seconds: float | None) -> Iterator[Trial]:
    """Try one after the other, so many at a time, until time is up; as they end."""
    deadline = None if seconds is None else time.monotonic() + seconds
    ahead = iter(todo)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin) as pool:
        running = {pool.submit(_try, task) for task in islice(ahead, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()
                if deadline is None or time.monotonic() < deadline:
                    running |= {pool.submit(_try, task) for task in islice(ahead, 1)}


_servers: Servers | None = None
"""Of this process. Each server ends by itself when the process has."""


def _begin() -> None:
    global _servers
    _servers = Servers()
    AlembicProject.starts_anew = True  # recovery is measured with it


def _try(task: Task) -> Trial:
    assert _servers is not None
    return try_once(BY_NAME[task.fault], task.kind, task.seed, _servers)


def try_once(fault: Fault, kind: str, seed: int, servers: Servers) -> Trial:
    """Make one attempt in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="backfill-soak-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            found = fault.attempt(Stage(kind, servers, directory, random.Random(seed)))
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            return Trial(fault.name, kind, seed, error=text, events=last_events(directory))
        return Trial(
            *(fault.name, kind, seed, found.faults, found.rows, tuple(found.wrong)),
            recoveries=tuple(found.recoveries),
            events=last_events(directory) if found.wrong else (),
        )


def last_events(directory: Path) -> tuple[str, ...]:
    """What the commands of an attempt told, and the statements that were noted, file by file."""
    files = [*directory.rglob("*.out"), *directory.rglob("*.err"), *directory.rglob("*.record")]
    files = sorted((file for file in files if file.stat().st_size), key=lambda f: f.stat().st_mtime)
    lines = [
        f"{file.name}: {line}"
        for file in files
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return tuple(lines[-EVENTS:])
