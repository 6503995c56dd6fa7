"""The code at submission, kept under the hash of its content: edits do not reach its jobs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from diffuse import ROOT
from diffuse.runtime import console, git
from diffuse.runtime.errors import UserError
from diffuse.runtime.files import now

FOLDERS = ("diffuse", "launch", "configs")
SURELY_OURS = ("*.py", "*.j2", "diffuse/weights/*", "configs/*/*.yaml")  # where git cannot tell


@dataclass(frozen=True)
class Snapshot:
    """A copy of the project's code; `path` goes to the front of a job's PYTHONPATH."""

    hash: str
    path: Path
    commit: str | None


def require_importable(folder: Path) -> None:
    """UserError for a folder of code whose path would split Python's search path."""
    if os.pathsep in str(folder):
        raise UserError(
            f"{str(folder)!r}: Python's search path takes no folder with a colon; rename it, or use"
            " another"
        )


def take(code_dir: Path, root: Path = ROOT) -> Snapshot:
    """Copy the code under `root` to code_dir/<hash>, unless it is there already.

    Safe under several processes: a copy appears under its name complete or not at all.
    """
    files = _files(root)
    snapshot = _named(files, code_dir, root)
    if not snapshot.path.exists():
        code_dir.mkdir(parents=True, exist_ok=True)
        unfinished = code_dir / f".unfinished-{socket.gethostname()}-{os.getpid()}"
        try:
            _write(unfinished, files, {"commit": snapshot.commit, "taken": now()})
            unfinished.rename(snapshot.path)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not snapshot.path.exists():  # another process was faster
                raise
    return snapshot


def planned(code_dir: Path, root: Path = ROOT) -> Snapshot:
    """The snapshot that `take` would make now; nothing is written."""
    return _named(_files(root), code_dir, root)


def _named(files: dict[str, bytes], code_dir: Path, root: Path) -> Snapshot:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(os.fsencode(f"{name}\0{len(content)}\0") + content)
    name = digest.hexdigest()[:12]
    return Snapshot(name, code_dir / name, _commit(root))


def _files(root: Path) -> dict[str, bytes]:
    """Every file of the project that a job may read, by relative path, in order."""
    paths = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    kept = (p for p in paths if "__pycache__" not in p.parts and not p.name.startswith("."))
    names = {str(path.relative_to(root)) for path in kept}
    try:
        names -= _ignored(root)
    except git.GitFailed as error:
        names = {name for name in names if any(map(PurePath(name).match, SURELY_OURS))}
        console.note(
            f"{root}: {error}; so jobs get only files that are surely the project's"
            f" ({', '.join(SURELY_OURS)}), and no commit is recorded"
        )
    return {name: (root / name).read_bytes() for name in sorted(names)}


def _ignored(root: Path) -> set[str]:
    """Files that git is told to ignore: somebody's notes, data or keys, not the project's code.

    Raises GitFailed.
    """
    if not git.is_checkout(root):
        return set()
    command = ["ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", *FOLDERS]
    return set(git.ask(root, *command).split("\0"))


def _write(folder: Path, files: dict[str, bytes], about: dict[str, Any]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(path.stat().st_mode & ~0o222)  # nobody writes; the umask decides who reads
    (folder / "about.json").write_text(json.dumps(about))


def _commit(root: Path) -> str | None:
    """The git commit, with a + where files were changed since; None where git does not know."""
    if not git.is_checkout(root):
        return None
    try:
        return git.ask(root, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except git.GitFailed:
        return None
