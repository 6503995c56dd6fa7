"""Programs as forks of a process that has loaded torch: a start costs a tenth of `python -m`.

A fork is the program's own process, with its arguments, environment, folder and streams. The
libraries are loaded already; the project's own code is imported afresh, from where `python -m`
would take it. These differ: variables that a library reads while it is imported (OMP_NUM_THREADS)
are as for `tests.programs.environment`; the seed of hashes and the limits of resources are the
server's, and so are the command line and the variables that /proc shows; and a fork ends when its
threads and its exit handlers have: that Python takes itself apart costs more than most starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.warm_python import NUMBER, fork, received

ROOT = Path(__file__).resolve().parent.parent

# Imported by the programs, early or late.
LIBRARIES = (
    *("torch", "torch._dynamo", "torch.distributed.run", "torchmetrics.image", "torchvision"),
    *("sklearn.mixture", "scipy.linalg", "matplotlib.figure", "matplotlib.pyplot", "h5py"),
    *("jinja2", "pydantic", "rich.console", "rich.table", "rich.progress", "typer", "yaml"),
    *("submitit", "psutil", "filelock", "PIL.Image"),
)
# Variables that the linker reads when a process starts: a server for each of their values.
LINKER = ("LD_PRELOAD", "LD_LIBRARY_PATH")
SHARED = "FORKS_SERVER"  # names the server that several processes share, and its linker's variables


class Fork:
    """A program that runs, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self, command: list[str], cwd: Path, env: dict[str, str], warm: bool = False
    ) -> None:
        """Start it.

        Args:
            warm: its jobs are forks too: its `sys.executable` is tests/warm_python.py.
        """
        self.args, self.returncode = command, None
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        order = {
            "arguments": command[1:],
            "cwd": str(cwd),
            "env": env,
            "ignored": [],
            "unbuffered": False,
            "warm": warm,
            "is_job": False,
        }
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), self._out.fileno(), self._err.fileno()]
            self._line, self.pid = fork(_server(_linker_variables(env)), order, streams)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises TimeoutExpired where it runs longer."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = received(self._line)
            self._line.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its output, when it has ended."""
        self.wait(timeout)
        with self._out as out, self._err as err:
            for file in (out, err):
                file.seek(0)
            return out.read(), err.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def warm_python() -> Path:
    """The executable tests/warm_python.py of this process's server."""
    return Path(_server(_linker_variables(os.environ))).with_name("python")


def share() -> None:
    """Start a server for this process and those that it starts; it loads while they go on."""
    variables = _linker_variables(os.environ)
    os.environ[SHARED] = json.dumps([_server(variables), variables])


def _linker_variables(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, env[name]) for name in LINKER if name in env)


@functools.cache
def _server(variables: tuple[tuple[str, str], ...]) -> str:
    """The address of a server with these variables: the shared one, or one of this process's."""
    if SHARED in os.environ:
        address, shared = json.loads(os.environ[SHARED])
        if shared == [list(variable) for variable in variables]:
            return str(address)
    folder = tempfile.TemporaryDirectory(prefix="diffuse-forks-")
    address = str(Path(folder.name) / "socket")
    drop = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", *LINKER)
    env = {name: value for name, value in os.environ.items() if name not in drop}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", address],
        cwd=ROOT,
        env={**env, **dict(variables), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    atexit.register(folder.cleanup)
    atexit.register(process.stdin.close)
    assert process.stdout.readline() == b"listening\n", "the server of forks did not start"
    return address


def _serve(address: str) -> None:
    """Answer orders until the standard input, which the owner holds, is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm = Path(address).with_name("python")
    script = (sys.executable, "-IS", str(ROOT / "tests" / "warm_python.py"), sys.executable)
    warm.write_text(f'#!/bin/sh\nexec {shlex.join((*script, address))} "$@"\n')
    warm.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        print("listening", flush=True)
        _load()
        gc.freeze()  # the forks share its objects' memory
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        while 0 not in select.select([door, 0], [], [])[0]:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _keep(line, warm)
            line.close()


def _load() -> None:
    """Load the libraries, and the modules that they load when they are first used."""
    for name in LIBRARIES:
        importlib.import_module(name)
    _draw()
    _validate()
    ours = [name for name in sys.modules if name.partition(".")[0] in ("diffuse", "launch")]
    assert not ours, f"loaded before the fork: {ours}"


def _draw() -> None:
    """Let matplotlib load its fonts and its parser."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().set(yscale="log", title="a loss")
    figure.savefig(io.BytesIO())


def _validate() -> None:
    """Let pydantic load the modules that it loads when they are first needed."""
    import pydantic

    for name in ("BaseModel", "Field", "Tag", "TypeAdapter", "field_validator", "PositiveInt"):
        getattr(pydantic, name)
    pydantic.create_model("Model", field=(int, 0))


def _keep(line: socket.socket, warm: Path) -> NoReturn:
    """Start the program, tell its process number, and then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(line, NUMBER.size, 3)
    order = json.loads(line.recv(*NUMBER.unpack(head), socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        line.close()
        _become(order, streams, warm)
        _end(_run(order["arguments"]))
    for stream in streams:
        os.close(stream)
    _tell(line, pid)
    if order["is_job"] and line in select.select([line, os.pidfd_open(pid)], [], [])[0]:
        os.kill(pid, signal.SIGKILL)  # with its owner
    _tell(line, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _tell(line: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the owner is gone
        line.sendall(NUMBER.pack(number))


def _become(order: dict[str, Any], streams: list[int], warm: Path) -> None:
    """Make this process the one that the order is for."""
    import numpy as np

    if order["is_job"]:
        os.setsid()  # a terminal's Ctrl-C is for the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if order["unbuffered"]:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if order["warm"]:
        sys.executable = str(warm)
    os.umask(order["umask"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    path, script = order["env"].get("PYTHONPATH"), order["arguments"][0]
    first = order["cwd"] if script == "-m" else str(Path(script).resolve().parent)
    sys.path[:1] = path.split(os.pathsep) if path else []
    if not order["env"].get("PYTHONSAFEPATH"):
        sys.path.insert(0, first)
    np.random.seed()  # as a new interpreter does


def _run(arguments: list[str]) -> int:
    """Run `-m module ...` or `script ...`; the exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as Python does, up to where it takes itself apart."""
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
