"""Names full of quotes, commands and Slurm's own patterns, on the tests' real Slurm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from diffuse.config.presets import CONFIGS
from tests.cluster.cluster import Cluster
from tests.lab import Lab
from tests.programs import ROOT

RUNS_IT = "touch ran"  # the command that must never run


@pytest.mark.parametrize(
    "name",
    [
        f"-o --wrap `{RUNS_IT}`; {RUNS_IT} & {RUNS_IT} $({RUNS_IT}) # {{}} $HOME ~ * é",
        f"a b'c\"d; {RUNS_IT}",
        "%j %A %%",
        "a\\b",
        f"a\n{RUNS_IT}\n#SBATCH --hold",
    ],
)
def test_no_name_breaks_a_job_script_or_runs_in_it(
    name: str, slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    """The runs folder, the data folder, the grid and the preset are all called so."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / name).symlink_to(data_dir)
    preset = folder / f"{name}.yaml"
    shutil.copy(CONFIGS / "ddpm/default.yaml", preset)
    lab = Lab(slurm, "", folder, folder / name)
    lab.grid = folder / f"grid {name}.yaml"
    lab.grid.write_text(yaml.dump({"runs": [{"preset": str(preset), "epochs": [1]}]}))
    done = lab.program("sweep.py", *lab.command())
    if set(name) & set("\n%\\"):  # which mean something in a script's #SBATCH lines
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and "Slurm takes no path with" in done.stderr
        assert not lab.runs.exists()
    else:
        assert done.returncode == 0, done.stderr
        lab.wait_empty()
        (row,) = lab.status().values()
        assert row["state"] == "done", row
        assert list(lab.runs.glob("report.html"))
    assert not list(tmp_path.rglob("ran"))
    assert not (ROOT / "ran").exists() and not Path("ran").exists()
