"""A ~ in front of a path is the home, wherever the path stands; the shell leaves it after `=`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import diffuse
from diffuse.config.presets import load_config
from diffuse.runtime import options
from diffuse.runtime.errors import UserError
from launch.grids.cluster import choose
from launch.grids.grid import load_grid
from tests import programs
from tests.programs import ROOT


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a preset, a grid and a cluster file, seen from another folder."""
    folder = tmp_path / "my home"
    folder.mkdir()
    (folder / "mine.yaml").write_text((ROOT / "configs/ddpm/quick.yaml").read_text())
    (folder / "grid.yaml").write_text(yaml.dump({"runs": [{"preset": "~/mine.yaml"}]}))
    text = "kind: slurm\nimage: ~/a.sif\nbinds: ['~/x', '~/y:/y:ro,~/z', '/~/w']\n"
    (folder / "site.yaml").write_text(text)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_settings_files_are_found_at_home(home: Path) -> None:
    assert load_config("~/mine.yaml").preset == "mine"
    assert [run.config.preset for run in load_grid("~/grid.yaml").runs] == ["mine"]
    cluster = choose("~/site.yaml").resolve([])
    assert cluster.image == f"{home}/a.sif"
    assert cluster.binds == (f"{home}/x", f"{home}/y:/y:ro,{home}/z", "/~/w")


def test_the_data_and_a_model_are_found_at_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSE_DATA", "~/data")
    assert options.default_data_dir() == home / "data"
    (home / "empty").mkdir()
    with pytest.raises(UserError, match=f"{home}/empty"):
        diffuse.load("~/empty")


def test_a_home_that_nobody_knows_is_one_line(home: Path) -> None:
    with pytest.raises(UserError, match="~nobody-here/x: no home is known"):
        options.typed_path("~nobody-here/x")


def test_programs_make_no_folder_of_that_name(home: Path, data_dir: Path) -> None:
    mine = {"cwd": home.parent, "HOME": str(home)}
    done = programs.run(
        "diffuse.train", "--preset=~/mine.yaml", "--where", "--runs-dir=~/runs", **mine
    )
    assert done.stdout.startswith(f"{home}/runs/mine-"), done.stderr
    (home / "data").symlink_to(data_dir)
    done = programs.run("diffuse.prepare", "--data-dir=~/data", **mine)
    assert done.stdout == f"{home}/data/mnist.h5: already staged and intact\n"
    done = programs.run("diffuse.prepare", DIFFUSE_DATA="~/data", **mine)
    assert done.stdout == f"{home}/data/mnist.h5: already staged and intact\n"
    assert not (home.parent / "~").exists()


def test_batch_scripts_bind_folders_at_home_and_refuse_what_apptainer_misreads(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "apptainer").write_text("")
    (tmp_path / "apptainer").chmod(0o755)
    (home / "a.sif").write_text("image")
    (home / "data").mkdir()

    def found(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        script = f'. {ROOT}/slurm/common.sh; find_python "$@"; printf "%s\\n" "${{python[@]}}"'
        return subprocess.run(
            ["bash", "-c", script, "bash", *arguments],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(home), **env},
            capture_output=True,
            text=True,
            timeout=600,
        )

    env = {"DIFFUSE_IMAGE": "~/a.sif", "DIFFUSE_DATA": "~/data"}
    lines = found("--runs-dir=~/r=s", "--output", "~/out", **env).stdout.splitlines()
    assert lines[-2] == f"{home}/a.sif"
    binds = {lines[k + 1] for k, line in enumerate(lines) if line == "--bind"}
    assert binds == {str(ROOT), str(tmp_path), *(f"{home}/{n}" for n in ("r=s", "out", "data"))}
    assert not (tmp_path / "~").exists()
    for name in ("a:b", "a,b", 'a"b'):
        done = found(f"--runs-dir={tmp_path / name}", **env)
        assert done.returncode == 2 and "--bind takes no path with" in done.stderr


@pytest.mark.parametrize(
    "path", ["~", "~/x", "~root", "~root/x/y", "~nobody-here/x", "~-/x", "~1", "~$(id)/x", "a~/b"]
)
def test_batch_scripts_read_a_tilde_as_python_does(home: Path, path: str) -> None:
    script = f'. {ROOT}/slurm/common.sh; expanded "$1"'
    command = ["bash", "-c", script, "bash", path]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout == os.path.expanduser(path)  # noqa: PTH111 # Path raises
