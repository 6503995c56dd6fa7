"""Files that other processes read while we write them: complete or not there at all."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import io
import json
import os
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from diffuse.runtime.errors import UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed onto `path`.

    A reader sees the old file or the new one, never a part. On an error the temporary file goes.
    Raises UserError where `path` names no file.
    """
    if not path.name or path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with _naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, others_write: bool) -> None:
    """Remove temporary files in `folder` whose writers were killed.

    Args:
        others_write: other programs may be at work there: only what belonged to a process of this
            machine that is gone now.
    """
    for path in folder.glob(".*.tmp"):
        begin, _, pid = path.stem.rpartition("-")  # a host's name may have dots, as the file's
        here = begin.endswith(f".{socket.gethostname()}")
        gone = here and pid.isdecimal() and not psutil.pid_exists(int(pid))
        if gone or not others_write:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def buffered(path: Path) -> Iterator[io.BytesIO]:
    """Yield a file in memory; on success its content is written to `path` atomically.

    For libraries that write a format: on a full disk each of them fails in its own way, and this
    in one.
    """
    buffer = io.BytesIO()
    yield buffer
    write_bytes(path, buffer.getbuffer())


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value`, sealed, as readable JSON to `path` atomically."""
    write_text(path, json.dumps(sealed(value), indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} where it is missing or damaged."""
    try:
        return unsealed(path.read_bytes()) or {}
    except OSError:
        return {}


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with a checksum of itself, so that no flipped digit passes for a result."""
    return {**value, "crc32": _crc32(value)}


def unsealed(text: bytes) -> dict[str, Any] | None:
    """The JSON object in `text` without its seal; None where it is none, or has changed since.

    One without a seal is taken as it is: others may write such files, too.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    seal = value.pop("crc32", None)
    return value if seal in (None, _crc32(value)) else None


def append_lines(path: Path, lines: list[str]) -> None:
    """Append whole lines in one write and fsync.

    A last line torn by an earlier death is closed first and stays as a line that is no JSON.
    """
    with _naming(path), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                lines = ["", *lines]
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


_noted: set[str] = set()  # by `locked`: once is enough


@contextlib.contextmanager
def locked(
    path: Path,
    cost: str,
    timeout_s: float = -1,
    note: Callable[[str], Any] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path` in this block; it goes with the process, however that ends.

    Some network filesystems have no locks: there the block runs without, which is noted.

    Args:
        cost: the possible loss then, in words.
        note: takes that line; default: console.note.

    Raises filelock.Timeout.
    """
    from filelock import FileLock

    from diffuse.runtime import console

    if reason := _no_locks(path.parent):
        line = f"{path.parent}: no file locks here ({reason}): {cost}"
        if line not in _noted:
            _noted.add(line)
            (note or console.note)(line)
        yield
        return
    with FileLock(path, timeout=timeout_s, mode=0o664):
        yield


def _no_locks(folder: Path) -> str:
    """Why files in `folder` cannot be locked; "" where they can.

    Asked of a file of our own: filelock's versions wait for ever here, or leave a mark that
    outlives the process.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return ""


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError of this block, such as a full disk, names the file that it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _crc32(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the filesystem lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
