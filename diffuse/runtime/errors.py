"""How a program of this project ends when it cannot go on: one line for a person, one exit code.

| code | meaning                                                                              |
|------|--------------------------------------------------------------------------------------|
| 0    | done                                                                                 |
| 1    | the environment, or a failed cell: no space, no permission, Slurm gone, loss is NaN,  |
|      | another attempt took the run over                                                     |
| 2    | wrong input: unknown name, bad value, missing or damaged file                         |
| 75   | interrupted, can be resumed by the same command (EX_TEMPFAIL)                         |
| 130  | Ctrl-C                                                                               |
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class DiffuseError(Exception):
    """An end that is explained in one line; subclasses carry the exit code."""

    exit_code = 1


class EnvironmentFailed(DiffuseError):
    """The command was right, but the machine could not carry it out."""


class TrainingFailed(DiffuseError):
    """Training cannot go on (a loss that is not finite, say); the run's files are intact."""


class Superseded(DiffuseError):
    """A newer attempt has taken the run over; this one must publish nothing more.

    It ends for good: two jobs of one run that were both requeued would take it from each other.
    """


class UserError(DiffuseError):
    """Wrong input; the message names it, and the allowed values or the remedy."""

    exit_code = 2


class Interrupted(DiffuseError):
    """Stopped from outside at a safe point; the same command goes on from there."""

    exit_code = 75


_exit_code: int | None = None  # of the program that `run` runs, once it is known


def run(main: Callable[..., Any]) -> NoReturn:
    """Run a typer app as a program: every expected failure becomes one line and its exit code.

    `DIFFUSE_DEBUG=1` shows the traceback as well.
    """
    global _exit_code
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path, or a locale, that is not of UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        ended = main(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0  # typer returns the code of a typer.Exit
    except DiffuseError as error:
        code = error.exit_code
        _say(str(error))
    except KeyboardInterrupt:
        code = 130
        _say("stopped by Ctrl-C")
    except BrokenPipeError:  # `... | head`: the reader has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = 1
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}")
    except Exception as error:
        # click's errors are told by their interface: newer typers bring a copy of click.
        if hasattr(error, "format_message"):
            code = 2
            _say(f"{error.format_message()} (see --help)")
        elif type(error).__name__ == "Abort":
            code = 130
            _say("stopped")
        else:
            _exit_code = 1
            raise
    sys.stdout.flush()
    _exit_code = code
    sys.exit(code)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def skip_finalization() -> None:
    """To be registered with atexit: end this program before Python takes itself apart.

    For libraries whose threads would not survive it; see `distributed.join`.
    """
    if _exit_code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)


def _say(message: str) -> None:
    if os.environ.get("DIFFUSE_DEBUG"):
        traceback.print_exc()
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr, flush=True)
