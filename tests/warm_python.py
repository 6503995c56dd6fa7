"""Stands for `python` in the jobs of a sweep, and runs the project's programs as forks.

Run as `python -IS warm_python.py PYTHON ADDRESS ARGUMENTS`, with the address of a server of forks
(tests/forks.py). The process hands signals on to the fork, which dies with it, and ends with the
fork's exit code. Other commands are executed by PYTHON itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from types import FrameType
from typing import Any, NoReturn

OURS = ("diffuse.", "launch.", "submitit.core.")
NUMBER = struct.Struct("i")
HANDED_ON = frozenset(
    {
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
        *(signal.SIGUSR1, signal.SIGUSR2),
    }
)


def main(python: str, address: str, arguments: list[str]) -> NoReturn:
    """Run `python arguments` as a fork."""
    words = arguments[1:] if arguments[0] == "-u" else arguments
    if words[:1] != ["-m"] or not words[1].startswith(OURS):
        os.execv(python, [python, *arguments])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # until they can be handed on
    ignored = [n for n in HANDED_ON if signal.getsignal(n) is signal.SIG_IGN]
    order = {
        "arguments": words,
        "cwd": os.getcwd(),  # noqa: PTH109 (without pathlib it starts faster)
        "env": dict(os.environ),
        "ignored": ignored,
        "unbuffered": words != arguments or "PYTHONUNBUFFERED" in os.environ,
        "warm": True,
        "is_job": True,
    }
    line, pid = fork(address, order, [0, 1, 2])

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.kill(pid, number)

    for number in HANDED_ON:  # those that are ignored too: the program may take them up
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = received(line)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def fork(address: str, order: dict[str, Any], streams: list[int]) -> tuple[socket.socket, int]:
    """Have a server start a program, with this process's umask.

    Args:
        order: the program, as `tests.forks._become` takes it.
        streams: its standard input, output and error.

    Returns the connection, on which the exit code will come, and the number of its process.
    """
    content = json.dumps({**order, "umask": _umask()}).encode()
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    socket.send_fds(line, [NUMBER.pack(len(content))], streams)
    line.sendall(content)
    return line, received(line)


def received(line: socket.socket) -> int:
    """The next number from a server of forks."""
    if not (content := line.recv(NUMBER.size)):
        raise SystemExit("error: the server of forks has ended; its standard error says why")
    return int(NUMBER.unpack(content)[0])


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
