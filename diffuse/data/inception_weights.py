"""Inception's weights, staged once for jobs that have no network.

torch-fidelity's conversion of the network that FID was defined with; torchmetrics uses the same.
"""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed

NAME = "inception.pth"
URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def is_published(path: Path) -> bool:
    """Whether these are the weights that everyone's FID is computed with."""
    return files.sha256(path) == SHA256


def stage(data_dir: Path, source: Path | None = None) -> Path:
    """Bring the weights to data_dir/inception.pth, from `source` or else from the internet.

    Raises EnvironmentFailed (unreachable, or other bytes).
    """
    path = data_dir / NAME
    if source is None and path.exists():
        if is_published(path):
            print(f"{path}: already staged and intact")
            return path
        print(f"{path}: not the published weights; staging them again", flush=True)
    with files.atomic(path) as temporary:
        if source is not None:
            shutil.copyfile(source, temporary)
        else:
            _download(temporary)
            if not is_published(temporary):
                raise EnvironmentFailed(f"{URL}: the file's SHA-256 is not the published one")
    print(f"{path}: staged, SHA-256 {files.sha256(path)}")
    return path


def _download(path: Path) -> None:
    print(f"{URL} ...", flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=20) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise EnvironmentFailed(
            f"Inception's weights could not be fetched ({error}); run this on a machine with"
            f" internet, or fetch {URL} elsewhere and name the file by --inception-file"
        ) from None
