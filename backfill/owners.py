"""Who holds a lease, and whether that process on this machine is dead.

An owner is written as `host:pid:started:machine`. `started` tells a process from a later one
with the same pid, `machine` (boot and pid namespace) two containers of one host name apart.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


def myself() -> str:
    """Return the owner text of this process."""
    pid = os.getpid()
    return f"{_host()}:{pid}:{_started(pid) or 0}:{_machine()}"


def is_dead(owner: str) -> bool:
    """Whether the owner is a process of this machine that no longer runs.

    False where that cannot be known: another machine, or a system without /proc.
    """
    host, pid, started, machine = _parts(owner)
    if host != _host() or machine != _machine() or not machine:
        return False
    if not (pid.isdecimal() and started.isdecimal()):
        return False
    now = _started(int(pid))
    return _is_gone(int(pid)) if now is None else now != int(started)


def _is_gone(pid: int) -> bool:
    """Whether no such process exists, where /proc shows nothing of it (it may be hidden)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def shown(owner: str) -> str:
    """Return the part of an owner that means something to a person."""
    host, pid, *_ = _parts(owner)
    return f"{host} (process {pid})" if pid else host


def _parts(owner: str) -> list[str]:
    """Take an owner apart, whatever somebody has written there."""
    parts = owner.rsplit(":", 3)
    return parts if len(parts) == 4 else [owner, "", "", ""]


@cache
def _host() -> str:
    return socket.gethostname().replace(":", "-")


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""  # no /proc: then nobody is ever taken for dead before the lease ends


def _started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if it is not shown.

    Field 22 of /proc/PID/stat (proc(5)). A zombie has ended, whoever has yet to reap it: -1.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return -1 if after_name[0] in "ZX" else int(after_name[19])
