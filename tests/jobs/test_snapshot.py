"""The copy of the code that jobs run: the project's files, and nobody's keys."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from diffuse.rundir import manifest
from launch.jobs import snapshot
from tests import programs

SECRETS = ("launch/keys.txt", "diffuse/token.json", "configs/clusters/mine.env")
OURS = ("diffuse/train.py", "launch/comparison/report.html.j2", "configs/ddpm/default.yaml")


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    command = ["git", *identity, "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with files that git ignores, and its commit."""
    root = programs.copy_project(tmp_path / "checkout")
    (root / ".gitignore").write_text("__pycache__/\n" + "".join(f"/{name}\n" for name in SECRETS))
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    for name in SECRETS:
        (root / name).write_text("secret")
    return root


def taken(root: Path, tmp_path: Path) -> tuple[snapshot.Snapshot, set[str]]:
    shot = snapshot.take(tmp_path / "code", root)
    return shot, {str(p.relative_to(shot.path)) for p in shot.path.rglob("*") if p.is_file()}


def give_away(root: Path) -> None:
    """To a colleague: git then refuses the checkout for its dubious ownership."""
    if os.geteuid():
        programs.leave_out("only root can give files away")
    for path in (root, *root.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)


def test_a_colleagues_checkout_gives_its_commit_and_none_of_its_ignored_files(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_away(checkout)
    shot, names = taken(checkout, tmp_path)
    assert shot.commit == git(checkout, "rev-parse", "HEAD")
    assert names.issuperset(OURS) and names.isdisjoint(SECRETS)
    assert capsys.readouterr().err == ""


def test_the_manifest_knows_the_commit_of_a_colleagues_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(checkout)
    monkeypatch.setattr(manifest, "ROOT", checkout)
    monkeypatch.delenv("DIFFUSE_CODE", raising=False)
    commit = git(checkout, "rev-parse", "HEAD")
    assert manifest.code_version() == {"commit": commit, "changed": False}


def test_a_worktree_is_a_checkout(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "tree"))
    tree = tmp_path / "tree"
    (tree / SECRETS[0]).write_text("secret")
    give_away(tree)
    shot, names = taken(tree, tmp_path)
    assert shot.commit == git(checkout, "rev-parse", "HEAD")
    assert names.issuperset(OURS) and names.isdisjoint(SECRETS)


def test_a_hook_of_another_repository_does_not_mislead(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    shot, names = taken(checkout, tmp_path)
    assert shot.commit == commit and names.isdisjoint(SECRETS)


@pytest.mark.parametrize("how", ["git is missing", "the repository is damaged", "a broken link"])
def test_where_git_fails_only_what_is_surely_the_projects_is_taken(
    how: str,
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if how == "git is missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        shutil.rmtree(checkout / ".git")
        if how == "a broken link":
            (checkout / ".git").symlink_to(tmp_path / "gone")
        else:
            (checkout / ".git").write_text("gitdir: /nowhere/at/all\n")
    shot, names = taken(checkout, tmp_path)
    assert shot.commit is None
    assert names.issuperset(OURS) and names.isdisjoint(SECRETS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkout}: ") and "surely the project's" in line


def test_without_a_repository_all_is_taken(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    shot, names = taken(checkout, tmp_path)
    assert shot.commit is None and names.issuperset((*OURS, *SECRETS))
