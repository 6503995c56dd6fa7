"""The image: its definition built on a small local base, and jobs that run inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.slurm.executor import image_sha256
from tests import programs
from tests.cluster import apptainer, base_image
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.programs import ROOT, TINY, read_json

UNCOMPRESSED = "--mksquashfs-args=-noI -noD -noF -noX"  # 5 s instead of 30
SMALL = (*TINY, "--device=cpu", "--set=samples.images=4")
# The local base has no network to install from; the project's libraries are bound when it runs.
PROJECT_ONLY = "--no-index --no-deps --no-build-isolation -e /opt/diffuse"


@pytest.fixture(scope="session")
def program() -> str:
    """The apptainer; without one the test is left out, which is a failure under CI=true."""
    found = apptainer.find()
    if found is None:
        programs.leave_out("no apptainer is here")
    return str(found)


@pytest.fixture(scope="session")
def image(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Apptainer.def built on the small base."""
    folder = tmp_path_factory.mktemp("image")
    base_image.make(folder / "base")
    arguments = {
        "BOOTSTRAP": "localimage",
        "FROM": str(folder / "base"),
        "PACKAGES": PROJECT_ONLY,
        "VERSION": "0.1.0",
        "COMMIT": "abc123",
    }
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += ["--notest", UNCOMPRESSED]  # a test of its own runs its test: torch must be bound
    # In a namespace of its own a process has every capability, which a container's root may lack.
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [
            *namespace,
            program,
            "build",
            *options,
            str(folder / "image.sif"),
            "Apptainer.def",
        ],
        cwd=ROOT,
        env={**os.environ, "APPTAINER_CACHEDIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "image.sif"


def inside(program: str, image: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """`apptainer COMMAND ... IMAGE ...`; the word IMAGE stands for the image."""
    words = [str(image) if word == "IMAGE" else str(word) for word in command]
    return subprocess.run(
        [program, words[0], *words[1:]],
        cwd=image.parent,
        env=programs.environment(PYTHONPATH=""),
        capture_output=True,
        text=True,
        timeout=600,
    )


def environment(program: str, image: Path, slurm: Cluster) -> dict[str, str]:
    """The environment of a user on a login node who works with the image."""
    env = programs.environment(**slurm.env)
    path = f"{Path(program).parent}:{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"PATH": path, "DIFFUSE_IMAGE": str(image), "DIFFUSE_BINDS": base_image.BIND}


def test_conda_pip_and_the_image_install_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    trained = [*project["dependencies"], *extras["train"]]
    while named := [p for p in trained if p.startswith("diffuse[")]:  # an extra within an extra
        trained.remove(named[0])
        trained += extras[named[0].removeprefix("diffuse[").removesuffix("]")]
    expected = sorted(set(trained))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == expected
    assert f"python{project['requires-python']}" in conda
    # The image takes pyproject.toml's own list.
    assert "PACKAGES=-e /opt/diffuse[train]" in (ROOT / "Apptainer.def").read_text()


def test_an_image_is_read_once_a_sweep_where_its_hash_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.sif"
    path.write_bytes(b"others built it")
    reads: list[Path] = []

    def refused(path: Path, text: str) -> None:
        raise PermissionError(f"{path} is theirs")

    monkeypatch.setattr(files, "write_text", refused)
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: reads.append(path) or real(path))
    assert image_sha256(path) == image_sha256(path) == real(path)
    assert reads == [path]


def by_the_scripts(image: Path) -> str:
    """The SHA-256 that slurm/common.sh records."""
    script = f". {ROOT}/slurm/common.sh; DIFFUSE_IMAGE=$1; image_sha256"
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(image)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("first", [image_sha256.__wrapped__, by_the_scripts])
@pytest.mark.parametrize("second", [image_sha256.__wrapped__, by_the_scripts])
def test_a_newer_image_with_an_older_date_is_another_image(
    first: Callable[[Path], str], second: Callable[[Path], str], tmp_path: Path
) -> None:
    path, kept = tmp_path / "my site.sif", tmp_path / "my site.sif.sha256"
    path.write_bytes(b"old image")
    old = first(path)
    assert old == files.sha256(path)
    inode = kept.stat().st_ino
    assert second(path) == old
    assert kept.stat().st_ino == inode  # read, not written anew
    path.write_bytes(b"new image")
    os.utime(path, ns=(10**18, 10**18 + 123_456_789))  # as cp -p and rsync -a leave it
    assert second(path) == files.sha256(path) != old
    assert first(path) == files.sha256(path)


def test_the_image_passes_its_own_test_and_has_its_labels(program: str, image: Path) -> None:
    tested = inside(program, image, "test", "--bind", base_image.BIND, "IMAGE")
    assert tested.returncode == 0, tested.stderr
    labels = inside(program, image, "inspect", "--labels", "IMAGE").stdout
    assert "org.opencontainers.image.version: 0.1.0" in labels
    assert "org.opencontainers.image.revision: abc123" in labels
    bare = inside(program, image, "run", "IMAGE")
    assert bare.returncode == 2
    assert "usage" in bare.stderr
    bind = ("--bind", base_image.BIND)
    wrong = inside(program, image, "run", *bind, "IMAGE", "train", "--preset", "ddpm/none")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown preset")
    written = inside(program, image, "exec", "IMAGE", "mkdir", "/opt/diffuse/new")
    assert "Read-only file system" in written.stderr


def test_a_job_in_the_image_is_requeued_from_the_host_and_equals_one_outside(
    program: str, image: Path, slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    arguments = (*SMALL, f"--data-dir={data_dir}", "--epochs=20")
    script = str(ROOT / "slurm" / "train_ddpm.sh")
    command = ["sbatch", "--parsable", "--cpus-per-gpu=1", script]
    done = subprocess.run(
        [*command, "default", *arguments, f"--runs-dir={tmp_path}/runs"],
        cwd=tmp_path,
        env=environment(program, image, slurm),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    wait_until(lambda: any(tmp_path.glob("runs/*/checkpoints/*.pt")), 600, "a checkpoint")
    run = programs.only_run(tmp_path / "runs")
    slurm.slurm("scancel", "--signal=USR2", job)
    wait_until(lambda: run.attempt_number() == 2, 300, "a second attempt")
    slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert slurm.state(job) == "COMPLETED", (tmp_path / f"slurm-{job}.out").read_text()
    manifest = read_json(run.manifest_path)
    assert manifest["image"] == str(image)
    assert manifest["image_sha256"] == files.sha256(image)

    whole = programs.run(
        "diffuse.train", "--preset=ddpm/default", *arguments, f"--runs-dir={tmp_path}/whole"
    )
    assert whole.returncode == 0, whole.stderr
    programs.assert_same_training(run, programs.only_run(tmp_path / "whole"), 20)


def test_a_sweep_runs_its_own_code_over_the_images_on_two_nodes(
    program: str, image: Path, slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("runs: [{preset: ddpm/default, epochs: [1]}]")
    root = programs.copy_project(tmp_path / "project")
    edited = root / "diffuse" / "train.py"
    edited.write_text(edited.read_text().replace("\nimport ", "\nprint('newer')\nimport ", 1))
    settings = {
        "image": str(image),
        "binds": base_image.BIND,
        "nodes": "2",
        "gpus_per_node": "1",
        "cpus_per_task": "1",
    }
    options = [f"--cluster-set={name}={value}" for name, value in settings.items()]
    place = ["--cluster=slurm", f"--runs-dir={tmp_path}/runs", f"--data-dir={data_dir}"]
    sweep = [sys.executable, str(root / "launch" / "sweep.py"), f"--grid={grid}", "--no-evaluate"]
    env = environment(program, image, slurm) | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [*sweep, *place, *options, *SMALL], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    slurm.wait_empty()
    (config,) = (tmp_path / "runs").glob("*/config.yaml")
    run = RunDir(config.parent)
    logs = "".join(path.read_text() for path in run.logs.glob("*.log"))
    assert run.status().get("state") == "done", logs
    manifest = read_json(run.manifest_path)
    assert manifest["environment"]["world_size"] == 2
    assert manifest["image_sha256"] == files.sha256(image)
    assert "newer" in logs.split(), "the snapshot, not the code in the image's /opt/diffuse"
