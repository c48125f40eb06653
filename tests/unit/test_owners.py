"""Whose lease it is, and whether that process is dead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backfill import owners

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")

SAY_WHO = "from backfill import owners; print(owners.myself(), flush=True); input()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that says who it is, and ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", SAY_WHO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as child:
        yield child
        child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_this_process_is_alive() -> None:
    assert not owners.is_dead(owners.myself())


def test_child_is_alive_until_it_has_ended(child: subprocess.Popen[str]) -> None:
    owner = said(child)
    assert owner != owners.myself()
    assert not owners.is_dead(owner)
    child.kill()
    child.wait()
    assert owners.is_dead(owner)


def test_zombie_is_dead(child: subprocess.Popen[str]) -> None:
    owner = said(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    assert Path(f"/proc/{child.pid}").exists()
    assert owners.is_dead(owner)


def changed(owner: str, **parts: str) -> str:
    values = dict(zip(("host", "pid", "started", "machine"), owner.rsplit(":", 3), strict=True))
    return ":".join((values | parts).values())


def test_later_process_with_the_same_pid_is_another() -> None:
    assert owners.is_dead(changed(owners.myself(), started="1"))


@pytest.mark.parametrize("part", ["host", "machine"])
def test_process_elsewhere_is_never_dead(part: str) -> None:
    assert not owners.is_dead(changed(owners.myself(), pid="1", started="1", **{part: "other"}))


def test_process_that_could_not_name_its_machine_is_never_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owners, "_machine", lambda: "")
    assert not owners.is_dead(changed(owners.myself(), started="1"))


@pytest.mark.parametrize("refusal", [PermissionError, FileNotFoundError])
def test_hidden_process_is_not_dead(
    monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[str], refusal: type[OSError]
) -> None:
    """/proc mounted with hidepid shows us no process of another user."""
    owner = said(child)
    shown = Path.read_text

    def read_text(path: Path, *arguments: str, **named: str) -> str:
        if path == Path(f"/proc/{child.pid}/stat"):
            raise refusal
        return shown(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert not owners.is_dead(owner)
    child.kill()
    child.wait()
    assert owners.is_dead(owner)


def test_owner_of_a_host_with_colons() -> None:
    assert not owners.is_dead("fe80::1:12:34:machine")
    assert owners.shown("fe80::1:12:34:machine") == "fe80::1 (process 12)"


def test_people_see_host_and_process() -> None:
    shown = owners.shown(owners.myself())
    assert shown.endswith(f"(process {os.getpid()})")
