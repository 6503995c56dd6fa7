"""The settings of a cluster: what they are in sbatch's words, how they add up, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.config.presets import parse_set
from diffuse.runtime.errors import UserError
from launch.inspection.site_checks import sbatch_options
from launch.jobs.cluster import Cluster, choose


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
