"""Gives a process another clock or host name than its machine's (tests/faults/split_brain.py).

Python imports this as it starts, where the folder is on PYTHONPATH.
"""

from __future__ import annotations

import datetime
import os
import socket
import time

SHIFT = float(os.environ.get("GUISE_SECONDS", "0"))
HOST = os.environ.get("GUISE_HOST", "")

real_time = time.time
RealDatetime = datetime.datetime


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, RealDatetime)


class Shifted(RealDatetime, metaclass=_Kind):
    """The class of all moments, whose clock is wrong."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> RealDatetime:  # type: ignore[override]
        return RealDatetime.now(tz) + datetime.timedelta(seconds=SHIFT)

    @classmethod
    def utcnow(cls) -> RealDatetime:  # type: ignore[override]
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)


if SHIFT:
    time.time = lambda: real_time() + SHIFT
    time.time_ns = lambda: round(time.time() * 1e9)
    datetime.datetime = Shifted  # type: ignore[misc]
if HOST:
    socket.gethostname = lambda: HOST
