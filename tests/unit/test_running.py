"""The end of a command: its exit code is what it has said."""

from __future__ import annotations

import subprocess
import sys

ENDS_LATE = """
import os, signal, sys
from backfill.budget import Budget
from backfill.running import _stop_on_signals

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)

_stop_on_signals(Budget())
late = Late()
sys.exit(5)
"""


def test_a_signal_while_python_ends_leaves_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_LATE], check=False, capture_output=True)
    assert done.returncode == 5, done.stderr
