"""A program that has a zygote run another one for it: python -ISE shim.py ADDRESS PROGRAM WORDS

It ends as the other one does. It is no place to import much: it stands for what starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

LENGTH_BYTES = 8


def ask(
    address: str,
    program: str,
    arguments: list[str],
    directory: str,
    environment: dict[str, str],
    streams: list[int],
) -> socket.socket:
    """Have a zygote run a program; its supervisor tells its pid here, and how it ended.

    The program is a script's path, or a module's name as after `python -m`.
    """
    asked = {
        "program": program,
        "arguments": arguments,
        "directory": directory,
        "environment": environment,
    }
    message = json.dumps(asked).encode()
    supervisor = socket.socket(socket.AF_UNIX)
    supervisor.connect(address)
    socket.send_fds(supervisor, [len(message).to_bytes(LENGTH_BYTES, "big")], streams)
    supervisor.sendall(message)
    return supervisor


def main() -> None:
    address, program, *arguments = sys.argv[1:]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell has it for what ends with `&`, and whose pid must be `$!`.
        os.execv(program, [program, *arguments])
    directory = os.getcwd()  # noqa: PTH109 - pathlib is slow to import
    supervisor = ask(address, program, arguments, directory, dict(os.environ), [0, 1, 2])
    with supervisor, supervisor.makefile() as told:
        _pid, status = map(int, told)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
