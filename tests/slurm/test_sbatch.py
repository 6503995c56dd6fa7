"""`sbatch slurm/*.sh` on a real cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffuse.rundir.directory import RunDir
from launch.inspection.run_status import run_statuses
from tests import forks, lab, programs
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.conftest import require_slurm
from tests.models.test_networks import ReportNetwork, ddpm_buffers, weight_file
from tests.programs import ROOT, TINY, read_json

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
SMALL = (*TINY, "--device=cpu", "--set=samples.at_epochs=[]")


def sbatch(
    slurm: Cluster,
    folder: Path,
    script: str,
    *arguments: str | Path,
    options: tuple[str, ...] = (),
    root: Path = ROOT,
    warm: bool = True,
    **more: str,
) -> str:
    """Submit slurm/SCRIPT from `folder`, with `more` variables; the job's id.

    Args:
        warm: its program is a fork, as in `Lab.sweep`.
    """
    command = ["sbatch", "--parsable", "--cpus-per-gpu=1", *options]
    # PATH: the scripts take the python of the active environment
    env = programs.environment(**slurm.env, VIRTUAL_ENV="yes", PYTHONPATH="")
    python = forks.warm_python() if warm else Path(sys.executable)
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    env |= more
    done = subprocess.run(
        [*command, str(root / "slurm" / script), *map(str, arguments)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def log(folder: Path, job: str) -> str:
    return (folder / f"slurm-{job}.out").read_text()


def ended(slurm: Cluster, folder: Path, job: str, state: str = "COMPLETED") -> None:
    slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert slurm.state(job) == state, log(folder, job)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    if not shutil.which("shellcheck"):
        require_slurm()  # which needs it, too, and says where it comes from
    done = subprocess.run(
        ["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_script_takes_the_login_nodes_limits_along() -> None:
    for script in SCRIPTS:
        text = script.read_text()
        assert "#SBATCH --propagate=NONE\n" in text or "#SBATCH" not in text, script


def test_an_array_trains_a_seed_each_and_its_runs_are_evaluated(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    where = (f"--runs-dir={tmp_path}/runs", f"--data-dir={data_dir}")
    array = sbatch(
        slurm, tmp_path, "train_ddpm.sh", *SMALL, *where, "--epochs=2", options=("--array=3,8",)
    )
    cold = sbatch(
        slurm,
        tmp_path,
        "train_cold.sh",
        *("default_7", "col"),
        *SMALL,
        *where,
        "--epochs=1",
    )
    for job in (f"{array}_3", f"{array}_8", cold):
        ended(slurm, tmp_path, job)
    runs = [RunDir(path) for path in sorted((tmp_path / "runs").iterdir())]
    ddpm = [run for run in runs if run.name.startswith("ddpm-default")]
    assert sorted(run.config().seed for run in ddpm) == [3, 8]
    assert [run.status()["state"] for run in runs] == ["done"] * 3
    assert len([run for run in runs if run.name.startswith("cold-default_7-col")]) == 1
    for run in ddpm:
        assert (run.logs / f"train-{array}_{run.config().seed}-r00.log").stat().st_size

    few = ("-n", "200", "--samplers=ddim-2", "--device=cpu", f"--data-dir={data_dir}")
    job = sbatch(slurm, tmp_path, "evaluate.sh", ddpm[0].path, *few)
    ended(slurm, tmp_path, job)
    assert read_json(ddpm[0].evaluations / "epoch_0002.json")["figures"]
    assert (ddpm[0].logs / f"evaluate-{job}-r00.log").stat().st_size


@pytest.mark.parametrize(
    ("options", "ranks"), [((), 1), (("-N2", "--gpus-per-node=1"), 2)], ids=["1 rank", "2 ranks"]
)
def test_an_interrupted_job_is_requeued_and_ends_like_an_undisturbed_one(
    slurm: Cluster, tmp_path: Path, data_dir: Path, options: tuple[str, ...], ranks: int
) -> None:
    arguments = (*SMALL, f"--data-dir={data_dir}", "--epochs=8")
    script = ("train_ddpm.sh", "default", *arguments)
    job = sbatch(slurm, tmp_path, *script, options=options, warm=False)
    wait_until(lambda: any(tmp_path.glob("runs/*/checkpoints/*.pt")), 600, "a checkpoint")
    run = programs.only_run(tmp_path / "runs")
    slurm.slurm("scancel", "--signal=USR2", job)
    wait_until(lambda: run.attempt_number() == 2, 300, "a second attempt")
    ended(slurm, tmp_path, job)
    assert [run.attempt(k)["job_id"] for k in (1, 2)] == [job, job]
    assert "stopped" in (run.logs / f"train-{job}-r00.log").read_text()
    assert (run.logs / f"train-{job}-r01.log").exists()

    whole = programs.run(
        "diffuse.train",
        "--preset=ddpm/default",
        *arguments,
        f"--runs-dir={tmp_path}/whole",
        ranks=ranks,
    )
    assert whole.returncode == 0, whole.stderr
    programs.assert_same_training(run, programs.only_run(tmp_path / "whole"), 8)


def test_of_two_jobs_of_one_run_the_first_ends_for_good_and_a_sweep_adds_none(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    arguments = ("default", *lab.SMALL, f"--data-dir={data_dir}", "--epochs=400")
    first = sbatch(slurm, tmp_path, "train_ddpm.sh", *arguments, options=("--nodelist=node1",))
    wait_until(lambda: any(tmp_path.glob("runs/*/checkpoints/*.pt")), 600, "a checkpoint")
    second = sbatch(slurm, tmp_path, "train_ddpm.sh", *arguments, options=("--nodelist=node2",))
    ended(slurm, tmp_path, first, "FAILED")
    run = programs.only_run(tmp_path / "runs")
    assert "took over" in (run.logs / f"train-{first}-r00.log").read_text()
    begun = run.status()["step"]
    wait_until(lambda: run.status()["step"] > begun, 300, "the second to train on")
    assert slurm.state(second) == "RUNNING"
    assert [run.attempt(k)["node"] for k in (1, 2)] == ["node1", "node2"]
    assert run.attempt_number() == 2

    user = lab.Lab(slurm, lab.DDPM % 400, tmp_path, data_dir)
    said = user.sweep("--no-evaluate")
    assert f"{run.name}: running as {second} on node2" in said
    assert "nothing to submit" in said
    assert (user.status()[run.name]["state"], user.status()[run.name]["job"]) == ("running", second)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [(("-N2", "--gpus-per-node=2"), 4), (("-N1", "--gres=gpu:2"), 2)],
    ids=["2 nodes of 2 GPUs", "2 GPUs as a resource"],
)
def test_a_job_has_a_rank_for_each_gpu_of_its_nodes(
    slurm: Cluster, tmp_path: Path, data_dir: Path, options: tuple[str, ...], ranks: int
) -> None:
    job = sbatch(
        slurm,
        tmp_path,
        "train_ddpm.sh",
        *SMALL,
        f"--data-dir={data_dir}",
        "--epochs=1",
        options=options,
    )
    ended(slurm, tmp_path, job)
    run = programs.only_run(tmp_path / "runs")
    assert read_json(run.manifest_path)["environment"]["world_size"] == ranks


def test_a_weight_file_is_evaluated_where_output_names_and_a_login_shells_rank_is_no_matter(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    """A rank's variables would have the job wait for others that never come."""
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    ranks |= {"MASTER_ADDR": "nowhere.example", "MASTER_PORT": "1"}
    network = ReportNetwork((16, 64, 16), torch.nn.GELU)
    weights = weight_file(tmp_path, "ddpm_mnist_20_light", network, **ddpm_buffers(9))
    results = tmp_path / "results"
    few = ("-n", "20", "--device=cpu", f"--data-dir={data_dir}")
    jobs = {
        "of a file": sbatch(
            *(slurm, tmp_path, "evaluate.sh", weights, *few, "--samplers=ddim-2"),
            *("--output", results),
            **ranks,
        ),
        "shipped": sbatch(
            *(slurm, tmp_path, "evaluate.sh", "cold/unet-row", *few, "--samplers=direct"),
            f"--output={results}",
            **ranks,
        ),
    }
    for job in jobs.values():
        ended(slurm, tmp_path, job)
        assert (results / "logs" / f"evaluate-{job}-r00.log").stat().st_size
        assert read_json(results / "logs" / f"evaluate-{job}-r00.json")["code"] == 0
    assert read_json(results / f"{weights.stem}.evaluation.json")["figures"]
    assert read_json(results / "cold-unet-row.evaluation.json")["figures"]


def test_the_end_of_a_job_is_known_from_the_runs_logs(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    arguments = (*lab.SMALL, f"--data-dir={data_dir}", f"--runs-dir={tmp_path}/runs")
    job = sbatch(slurm, tmp_path, "train_ddpm.sh", "default", *arguments, "--epochs=400")
    user = lab.Lab(slurm, lab.DDPM % 400, tmp_path, data_dir)
    user.wait_training()
    run = user.run()
    subprocess.run(["kill", "-9", str(run.attempt(1)["pid"])], check=True)
    ended(slurm, tmp_path, job, "FAILED")
    state = user.status()[run.name]
    assert (state["state"], state["reason"]) == ("failed", "killed by SIGKILL (out of memory?)")
    shown = user.program("status.py", f"--log={run.name}")
    assert shown.stderr.startswith(f"{run.logs}/train-{job}-r00.log")
    assert shown.stdout


def test_an_evaluation_whose_requeues_bring_nothing_comes_to_an_end(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}/runs", f"--data-dir={data_dir}")
    slow = ("--set=process.timesteps=8000", "--epochs=1")  # in drawing, by the ancestral sampler
    done = programs.run("diffuse.train", "--preset=ddpm/default", *SMALL, *slow, *place)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(tmp_path / "runs")
    arguments = (run.path, place[1], "--device=cpu", "-n", "1000", "--samplers=ancestral")
    job = sbatch(slurm, tmp_path, "evaluate.sh", *arguments)
    for attempt in range(3):  # each is requeued before it has an image
        path = run.logs / f"evaluate-{job}-r{attempt:02d}.log"
        wait_until(path.exists, 300, "the evaluation's start")
        slurm.slurm("scontrol", "requeue", job)
    ended(slurm, tmp_path, job, "FAILED")
    why = "4 starts in a row without a new image"
    assert why in log(tmp_path, job)
    assert why in (run.logs / f"evaluate-{job}-r03.log").read_text()
    (row,) = run_statuses(run.path.parent)
    assert (row.state, why in row.reason) == ("failed", True)


def test_the_image_sees_every_folder_that_the_command_names(tmp_path: Path) -> None:
    run, site = tmp_path / "a run", tmp_path / "site"
    run.mkdir()
    site.mkdir()
    (site / "mine.yaml").touch()
    arguments = (run, "--config", site / "mine.yaml", "--preset=none.yaml", "-n", "20")
    outputs = ("--output", tmp_path / "new", f"--runs-dir={tmp_path}/runs")
    done = subprocess.run(
        ["bash", "-c", '. slurm/common.sh; folders_named "$@"', "-", *arguments, *outputs],
        cwd=ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [run, site, tmp_path / "new", tmp_path / "runs"]
    assert done.stdout.splitlines() == list(map(str, expected))


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_ddpm.sh", ("defualt",), "unknown preset 'ddpm/defualt'"),
        ("train_ddpm.sh", ("--set=train.lr=fast",), "train.lr"),
        ("train_cold.sh", ("default_7", "diagonal"), "PRESET row|col"),
        (
            "evaluate.sh",
            ("runs/none",),
            "runs/none: no run directory (see runs/), weight file or shipped model",
        ),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line(
    slurm: Cluster, tmp_path: Path, script: str, arguments: tuple[str, ...], message: str
) -> None:
    job = sbatch(slurm, tmp_path, script, *arguments)
    ended(slurm, tmp_path, job, "FAILED")
    (line,) = log(tmp_path, job).splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "ExitCode=2:0" in slurm.slurm("scontrol", "show", "job", job)


def test_with_a_gpu_that_torch_does_not_see_nothing_is_trained(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}/runs", f"--data-dir={data_dir}")
    job = sbatch(slurm, tmp_path, "train_ddpm.sh", "--set=tracking.mode=disabled", *place)
    ended(slurm, tmp_path, job, "FAILED")
    run_log = RunDir(next((tmp_path / "runs").iterdir())).logs / f"train-{job}-r00.log"
    assert "error: --device cuda: torch sees no GPU here" in run_log.read_text()


def test_a_missing_image_is_named(slurm: Cluster, tmp_path: Path) -> None:
    job = sbatch(slurm, tmp_path, "train_ddpm.sh", options=("--export=ALL,DIFFUSE_IMAGE=none.sif",))
    ended(slurm, tmp_path, job, "FAILED")
    assert log(tmp_path, job).startswith("error: ")
