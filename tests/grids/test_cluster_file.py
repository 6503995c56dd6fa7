"""The settings of a cluster: their options of sbatch, their precedence, those refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.config.presets import parse_set
from diffuse.runtime.errors import UserError
from launch.grids.cluster import Cluster, choose
from launch.inspection.site_checks import sbatch_options


def resolved(folder: Path, text: str, *typed: str) -> Cluster:
    path = folder / "site.yaml"
    path.write_text(f"kind: slurm\n{text}")
    return choose(str(path)).resolve([parse_set([one], "--cluster-set") for one in typed])


def gpu_options(settings: Cluster) -> list[str]:
    return [option for option in sbatch_options(settings) if "gpu" in option]


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("240", 240), ("4:00:00", 240), ("0:00:01", 1), ("1-02:00:00", 1560), ("'30'", 30)],
)
def test_a_time_is_minutes_or_as_slurm_writes_it(
    tmp_path: Path, written: str, minutes: int
) -> None:
    assert resolved(tmp_path, f"time: {written}\n").time == minutes
    assert resolved(tmp_path, "", f"time={written}").time == minutes


@pytest.mark.parametrize("written", ["2:00", "1-2", "-3:00", "4:0:0"])
def test_a_time_that_could_be_read_in_two_ways_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(UserError, match=r"--cluster-set: time: minutes, or Slurm's H:MM:SS"):
        resolved(tmp_path, "", f"time={written}")


def test_gpus_are_requested_as_the_site_wants_them(tmp_path: Path) -> None:
    assert gpu_options(resolved(tmp_path, "gpus_per_node: 2")) == ["--gpus-per-node=2"]
    typed = resolved(tmp_path, "gpus_per_node: 2\ngpu_type: a100")
    assert gpu_options(typed) == ["--gpus-per-node=a100:2"]
    assert gpu_options(typed.without_gpus()) == []
    gres = resolved(tmp_path, "gpus_per_node: 2\nextra: {gres: 'gpu:a100:2', exclude: node7}")
    assert gpu_options(gres) == ["--gres=gpu:a100:2"]
    assert "--ntasks-per-node=2" in sbatch_options(gres), "a rank each all the same"
    undone = resolved(tmp_path, "extra: {gres: 'gpu:a100:2'}", "extra={gres: false}")
    assert gpu_options(undone) == ["--gpus-per-node=1"]
    assert gpu_options(gres.without_gpus()) == []
    assert "--exclude=node7" in sbatch_options(gres.without_gpus())
    assert gpu_options(resolved(tmp_path, "gpus_per_node: 0\ngpu_type: a100")) == []


def test_more_raw_options_leave_those_of_the_file(tmp_path: Path) -> None:
    file = "extra: {exclude: node7, mail_type: FAIL}"
    both = resolved(tmp_path, file, "extra={mail-user: me}", "extra={mail-type: false}")
    assert both.extra == {"exclude": "node7", "mail-type": False, "mail-user": "me"}
    assert "--mail-user=me" in sbatch_options(both)
    assert not [option for option in sbatch_options(both) if "mail-type" in option]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("dependency: 'afterok:1'", "dependency is set by the launcher"),
        ("open_mode: truncate", "open-mode is set by the launcher"),
        ("chdir: /tmp", "chdir is set by the launcher"),
        ("time: 30", "time has a key of its own in the cluster file"),
    ],
)
def test_a_raw_option_that_would_disturb_the_chain_is_refused_by_name(
    tmp_path: Path, option: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"--cluster-set: extra: {said}"):
        resolved(tmp_path, "extra: {exclude: node7}", f"extra={{{option}}}")


def test_a_job_of_several_runs_asks_for_the_cores_of_all_and_the_gpus_as_they_are(
    tmp_path: Path,
) -> None:
    file = "gpus_per_node: 2\ncpus_per_task: 4\nmemory_gb: 8\n"
    alone = sbatch_options(resolved(tmp_path, file))
    assert {"--ntasks-per-node=2", "--cpus-per-task=4"} <= {*alone}
    assert sbatch_options(resolved(tmp_path, file, "runs_per_gpu=4", "runs_per_job=1")) == alone
    packed = resolved(tmp_path, file, "runs_per_gpu=4")
    assert (packed.pack_size, packed.at_once) == (8, 8)
    options = {*sbatch_options(packed)}
    wanted = {"--ntasks-per-node=1", "--cpus-per-task=32", "--gpus-per-node=2", "--mem=8192M"}
    assert wanted <= options
    more = resolved(tmp_path, file, "runs_per_job=12")
    assert (more.pack_size, more.at_once, more.cpus) == (12, 2, 8)
    on_cpu = resolved(tmp_path, "gpus_per_node: 0\nruns_per_gpu: 3\nruns_per_job: 2")
    assert (on_cpu.pack_size, on_cpu.at_once) == (2, 2)
    assert not packed.without_gpus().is_packed, "the report is one"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["runs_per_job=2", "nodes=2"], "runs_per_job: 2 runs in a job of nodes: 2: a run of"),
        (["runs_per_gpu=3", "nodes=2"], "runs_per_gpu: 3 runs in a job of nodes: 2: a run of"),
        (["mps=true"], "mps: is for runs that share a GPU; set runs_per_gpu, too"),
        (["mps=true", "runs_per_gpu=2", "gpus_per_node=0"], "mps: is for GPUs, and gpus_per_node"),
        (["runs_per_job=0"], "runs_per_job: input should be greater than or equal to 1, not 0"),
        (["runs_per_gpu=1.5"], "runs_per_gpu: input should be a valid integer"),
    ],
)
def test_runs_that_cannot_be_packed_so_are_refused_in_one_line(
    tmp_path: Path, typed: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=f"^--cluster-set: {message}[^\n]*$"):
        resolved(tmp_path, "", *typed)
