"""Whether anybody else uses the machine: latencies tell little while somebody does."""

from __future__ import annotations

import contextlib
import resource
import time

import psutil

QUIET = 0.1
"""Of all cores."""
LOOK_SECONDS = 2.0


class Watch:
    """Counts processor time from its making on."""

    def __init__(self) -> None:
        self._busy, self._all = _of_the_machine()
        self._ours = _of_ours()

    def others(self) -> float:
        """Which part of the machine others took meanwhile, 0 to 1; the hypervisor is another."""
        busy, everything = _of_the_machine()
        theirs = busy - self._busy - (_of_ours() - self._ours)
        return round(max(0.0, theirs / max(everything - self._all, 1e-9)), 3)


def wait_until_quiet(patience: float) -> None:
    """Return when others do little, or after so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        watch = Watch()
        time.sleep(LOOK_SECONDS)
        if watch.others() < QUIET:
            return


def _of_the_machine() -> tuple[float, float]:
    times = psutil.cpu_times()
    everything = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return everything - times.idle - getattr(times, "iowait", 0), everything


def _of_ours() -> float:
    """This process, those that it waited for, and those that live, with their own."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total
