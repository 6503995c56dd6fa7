"""Staged files: MNIST and Inception's weights, fetched once and checked by SHA-256.

Compute nodes have no network, so jobs read these files only. Several processes may stage at once:
one works, the others wait and find it done. Free of torch, so that a login node can stage.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import Timeout

from diffuse.data import download, mnist
from diffuse.runtime import files, hdf5
from diffuse.runtime.errors import EnvironmentFailed, UserError

INCEPTION = "inception.pth"  # in the data folder
LOCK_TIMEOUT_S = 600


def stage_mnist(data_dir: Path, source: str = "auto", idx_dir: Path | None = None) -> Path:
    """Write data_dir/mnist.h5 unless it is there and intact; returns its path.

    Raises UserError (unknown source, wrong IDX files), EnvironmentFailed (unreachable, no space).
    """
    if source not in download.SOURCES:
        raise UserError(f"--source {source!r}: allowed are {', '.join(download.SOURCES)}")
    path = data_dir / "mnist.h5"
    if _problem(path) is None:  # in another's folder, perhaps: nothing is written, not even a lock
        print(f"{path}: already staged and intact")
        return path
    cost = "several processes that stage at the same time do it several times"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with files.locked(data_dir / ".mnist.lock", cost, LOCK_TIMEOUT_S):
            files.remove_leftovers(data_dir, others_write=True)
            if (problem := _problem(path)) is None:
                print(f"{path}: already staged and intact")
                return path
            if problem:
                print(f"{problem}; staging it again", flush=True)
            arrays, origin = download.fetch(source, idx_dir)
            for name, sha256 in mnist.SHA256.items():
                if mnist.digest(arrays[name]) != sha256:
                    raise UserError(f"{origin}: {name} is not MNIST's (its SHA-256 is another one)")
            # every job reads all of it and compares its SHA-256: no compression, no sums by chunk
            by_name = {name: {"sha256": sha256} for name, sha256 in mnist.SHA256.items()}
            hdf5.write(path, arrays, {"source": origin}, hdf5.PLAIN, by_name)
    except Timeout:
        raise EnvironmentFailed(
            f"{data_dir}: another process has been staging for {LOCK_TIMEOUT_S} s; if it is dead,"
            f" delete {data_dir / '.mnist.lock'}"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{data_dir}: is not a folder") from None
    print(f"{path}: staged from {origin}, SHA-256 checked")
    return path


def _problem(path: Path) -> str | None:
    """Why the file must be staged: it is damaged, or "" where there is none; None: it is intact."""
    if not path.exists():
        return ""
    try:
        for name in mnist.SHA256:
            mnist.read_verified(path.parent, name)
    except UserError as error:
        return str(error)
    return None


def stage_inception(data_dir: Path, source: Path | None = None) -> Path:
    """Bring the weights to data_dir/inception.pth, from `source` or else from the internet.

    Raises EnvironmentFailed (unreachable, or other bytes).
    """
    path = data_dir / INCEPTION
    if source is None and path.exists():
        if download.is_published_inception(path):
            print(f"{path}: already staged and intact")
            return path
        print(f"{path}: not the published weights; staging them again", flush=True)
    with files.atomic(path) as temporary:
        if source is not None:
            shutil.copyfile(source, temporary)
        else:
            download.fetch_inception(temporary)
    print(f"{path}: staged, SHA-256 {files.sha256(path)}")
    return path
