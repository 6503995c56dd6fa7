"""Git, asked about the checkout that this code is in: also one that belongs to somebody else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TIMEOUT_S = 20
# Set where a hook of another repository has started us.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


class GitFailed(Exception):
    """Git is missing, or will not read this checkout; the reason, in one line."""


def is_checkout(root: Path) -> bool:
    """Whether there is a repository at `root`, a worktree or a submodule, too."""
    return os.path.lexists(root / ".git")


def ask(root: Path, *arguments: str) -> str:
    """The output of `git ARGUMENTS` in `root`. Raises GitFailed.

    Git refuses the checkout of another user, as one of a group is, unless that is called safe: it
    may configure programs that git would run. Whoever runs this code runs that user's anyway.
    """
    command = ["git", "-c", "safe.directory=*", "--no-optional-locks", "-C", str(root)]
    environment = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            env=environment | {"LC_ALL": "C"},
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        raise GitFailed("git is not installed here") from None
    except OSError as error:
        raise GitFailed(f"git: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git did not answer in {TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitFailed(lines[0] if lines else f"git: exit code {done.returncode}")
    return os.fsdecode(done.stdout).strip()
