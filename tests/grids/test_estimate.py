"""The estimated cost of a grid, by the speeds of runs that were trained."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from launch.grids.cluster import ClusterFile
from launch.grids.estimate import Estimate, Queue, Task, estimate, wall
from launch.grids.grid import Grid, GridRun
from launch.grids.plan import look_at, plan
from launch.grids.probe import folder, probes, speeds
from launch.grids.speeds import Place, Speeds
from launch.slurm import pipeline
from launch.slurm.pipeline import Request
from tests import programs
from tests.programs import TINY

CORE = Place(on_gpu=False)


def config(*settings: str, preset: str = "ddpm/default") -> Config:
    return load_config(preset, [parse_set([*settings, "tracking.mode=disabled"])])


def trained(
    runs_dir: Path,
    of: Config,
    step_s: float,
    *,
    device: str = "NVIDIA A100-SXM4-40GB",
    threads: int | None = None,
    ranks: int = 1,
    precision: str = "bf16",
    runs_per_gpu: int = 1,
) -> RunDir:
    """A run with the record of two attempts, each of which began slowly; it was not evaluated."""
    run = RunDir(runs_dir / of.run_name)
    run.checkpoints.mkdir(parents=True)
    run.checkpoint_path(1).write_bytes(bytes(1000))
    run.write_config(of)
    environment = {"world_size": ranks, "threads": threads, "precision": precision}
    manifest = {"environment": {**environment, "device": device}, "runs_per_gpu": runs_per_gpu}
    files.write_json(run.manifest_path, manifest)
    seconds = [100 * step_s, step_s, 0.9 * step_s, 1.1 * step_s, step_s]
    events = [
        {
            "event": "speed",
            "attempt": attempt,
            "step": 100 * attempt + k,
            "images_per_s": of.train.global_batch / s,
        }
        for attempt in (1, 2)
        for k, s in enumerate(seconds)
    ]
    files.append_lines(run.metrics_path, [json.dumps(files.sealed(e)) for e in events])
    return run


def evaluated(run: RunDir, images: int, calls: int, call_s: float, judge_s: float) -> None:
    """Of which images were drawn on the run's device; all else of a figure is of no matter."""
    scores = {"fid": 9.0, "kid": 0.0, "kid_std": 0.0, "is": 9.0, "is_std": 0.1}
    device = programs.read_json(run.manifest_path)["environment"]["device"]
    figure = {
        "protocol": {
            "extractor": "classifier",
            "real_images": 60_000,
            "images": images,
            "sampler": f"ddim-{calls}-clip",
            "source": "noise",
        },
        **scores,
        "floor": scores,
        "seconds": judge_s * images,
        "drawing": {"images": images, "seconds": call_s * calls * images, "device": device},
    }
    files.write_json(run.evaluation_path(1), {"epoch": 1, "figures": [figure]})


def on_slurm(
    runs_dir: Path, configs: list[Config], evaluate: bool = False, **settings: Any
) -> Estimate:
    """The estimate of a sweep of these runs on a cluster."""
    cluster = ClusterFile("slurm", "slurm", {"kind": "slurm"}).resolve([Layer("test", settings)])
    planned = [look_at(GridRun(c), RunDir(runs_dir / c.run_name)) for c in configs]
    arrays = pipeline.job_arrays([Request(p, cluster, evaluate) for p in planned], 1000, None)
    return estimate(pipeline.queues(arrays), Speeds(runs_dir))


def test_wall_time_equals_a_slow_simulation_of_slots() -> None:
    draw = random.Random(0)
    for _ in range(50):
        seconds = [draw.randrange(1, 20) for _ in range(draw.randrange(0, 12))]
        slots = draw.randrange(1, 6)
        waiting, running, now = list(seconds), [0] * slots, 0
        while waiting or any(running):
            for slot in range(slots):
                if not running[slot] and waiting:
                    running[slot] = waiting.pop(0)
            running = [max(0, left - 1) for left in running]
            now += 1
        assert wall(seconds, slots) == now


def test_a_run_is_estimated_by_the_seconds_that_a_trained_one_like_it_recorded(
    tmp_path: Path, data_dir: Path
) -> None:
    tiny = [setting.removeprefix("--set=") for setting in TINY]
    arguments = (*TINY, "--threads=1", f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    done = programs.run("diffuse.train", "--preset=ddpm/default", "--epochs=3", *arguments)
    assert done.returncode == 0, done.stderr
    events = programs.only_run(tmp_path).metrics("speed")
    step_s = statistics.median(16 / event["images_per_s"] for event in events[1:])
    other = config(*tiny, "seed=7", "train.lr=1e-3", "train.epochs=6")
    found = on_slurm(tmp_path, [other], gpus_per_node=0, cpus_per_task=1)
    (row,) = found.rows
    assert row.steps == 6 * (128 // 16)
    assert row.seconds == pytest.approx(row.steps * step_s)
    assert found.hours == pytest.approx(row.seconds / 3600) and found.unit == "core"
    size = programs.only_run(tmp_path).checkpoint_path(3).stat().st_size
    assert row.disk == 3 * size, "its own, and two rolling ones"


def test_the_slow_start_of_an_attempt_does_not_count(tmp_path: Path) -> None:
    trained(tmp_path, config("seed=1"), 0.02)
    (row,) = on_slurm(tmp_path, [config("seed=2", "train.epochs=10")]).rows
    assert row.seconds == pytest.approx(10 * 468 * 0.02)


@pytest.mark.parametrize(
    ("setting", "is_like"),
    [
        ("seed=2", True),
        ("train.lr=1e-3", True),
        ("train.epochs=3", True),
        ("train.amp=bf16", True),
        ("process.timesteps=500", True),
        ("train.amp=fp32", False),
        ("train.global_batch=256", False),
        ("train.optimizer=muon", False),
        ("train.compile=true", False),
        ("train.graph=true", True),
        ("train.graph=false", False),
        ("model.channels=16,32", False),
        ("system.device=cpu", False),
    ],
)
def test_alike_are_runs_whose_steps_take_as_long(
    setting: str, is_like: bool, tmp_path: Path
) -> None:
    trained(tmp_path, config("seed=1"), 0.02)
    (row,) = on_slurm(tmp_path, [config(setting)]).rows
    assert (row.speed is not None) == is_like


def test_steps_of_several_ranks_are_no_graph_whatever_is_asked_for(tmp_path: Path) -> None:
    trained(tmp_path, config("train.graph=false"), 0.02, ranks=2)
    (row,) = on_slurm(tmp_path, [config("seed=2")], gpus_per_node=2).rows
    assert row.speed and row.speed.step_s == pytest.approx(0.02)


def test_ranks_share_a_batch_and_runs_a_gpu(tmp_path: Path) -> None:
    trained(tmp_path, config("train.global_batch=64"), 0.02, ranks=2)
    trained(tmp_path, config("train.global_batch=64", "seed=1"), 0.05, runs_per_gpu=3)
    cases: list[tuple[int, dict[str, int], float | None]] = [
        (128, {"gpus_per_node": 4}, 0.02),
        (64, {"nodes": 2}, 0.02),
        (64, {"gpus_per_node": 4}, None),
        (64, {"runs_per_gpu": 3}, 0.05),
        (64, {"runs_per_gpu": 2}, None),
    ]
    for batch, settings, step_s in cases:
        (row,) = on_slurm(tmp_path, [config(f"train.global_batch={batch}")], **settings).rows
        assert (row.speed and row.speed.step_s) == (step_s and pytest.approx(step_s)), settings


def test_of_several_devices_the_slowest_counts_unless_one_is_asked_for(tmp_path: Path) -> None:
    trained(tmp_path, config("seed=1"), 0.02)
    trained(tmp_path, config("seed=2"), 0.03, device="NVIDIA GeForce RTX 3090")
    trained(tmp_path, config("seed=3"), 0.01, device="NVIDIA H100 80GB HBM3")
    trained(tmp_path, config("seed=4"), 5.0, device="AMD EPYC", threads=4)
    for gpu_type, step_s in ((None, 0.03), ("a100", 0.02), ("rtx3090", 0.03), ("h100", 0.01)):
        (row,) = on_slurm(tmp_path, [config()], gpu_type=gpu_type).rows
        assert row.speed and row.speed.step_s == pytest.approx(step_s)
    assert on_slurm(tmp_path, [config()], gpu_type="v100").unknown
    (row,) = on_slurm(tmp_path, [config()], gpus_per_node=0).rows
    assert row.speed and row.speed.device == "AMD EPYC"


def test_only_the_work_that_is_left_counts(tmp_path: Path) -> None:
    def left(run: RunDir, *epochs: int) -> int:
        asked = f"eval.at_epochs={','.join(map(str, epochs))}"
        planned = look_at(GridRun(config(f"train.epochs={epochs[-1]}", asked)), run)
        return planned.steps_left

    run = RunDir(tmp_path / config().run_name)
    assert left(run, 2, 4) == 4 * 468
    run.checkpoints.mkdir(parents=True)
    run.checkpoint_path(2).touch()
    run.step_checkpoint_path(3 * 468 + 100).touch()
    assert left(run, 2, 4) == 468 - 100
    assert left(run, 1, 4) == 4 * 468, "an epoch that was not kept is made again"
    files.write_json(run.status_path, {"state": "done", "epoch": 2})
    assert left(run, 2) == 0

    seen = trained(tmp_path, config("seed=1"), 1.0)
    files.write_json(seen.status_path, {"state": "done", "epoch": 1})
    done = config("seed=1", "train.epochs=1", "eval.at_epochs=1")
    (row,) = on_slurm(tmp_path, [done], evaluate=True).rows
    assert row.steps == row.disk == row.seconds == 0 and row.evaluation_s > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluations_cost_the_network_calls_of_their_images(ranks: int, tmp_path: Path) -> None:
    batch = f"train.global_batch={128 * ranks}"
    run = trained(tmp_path, config("seed=1", batch), 0.03, ranks=ranks)
    more = ("train.epochs=4", "eval.at_epochs=2,4", "eval.samplers=ddim-10,ddim-40")
    asked = config(batch, *more, "eval.images=500", "eval.final_images=2000")
    calls, judged = (500 + 2000) * 50, 500 * 2 * 2 + 2000 * 2
    (row,) = on_slurm(tmp_path, [asked], evaluate=True, gpus_per_node=ranks).rows
    assert row.speed and not row.speed.is_drawn
    assert row.evaluation_s == pytest.approx(calls / ranks * 0.03 / 128 / 3), "a third of a step"
    assert on_slurm(tmp_path, [asked], gpus_per_node=ranks).rows[0].evaluation_s == 0
    evaluated(run, 300, 20, 0.001, 0.01)
    found = on_slurm(tmp_path, [asked], evaluate=True, gpus_per_node=ranks)
    (row,) = found.rows
    assert row.speed and row.speed.is_drawn
    assert row.evaluation_s == pytest.approx(calls / ranks * 0.001 + judged * 0.01)
    assert found.wall_s == pytest.approx(row.seconds + row.evaluation_s)
    assert found.hours == pytest.approx(found.wall_s * ranks / 3600)
    assert found.of_whole_runs()[row.planned.name]["hours"] == pytest.approx(row.training_hours)


def test_figures_that_were_made_on_another_device_tell_no_speed(tmp_path: Path) -> None:
    run = trained(tmp_path, config("seed=1"), 0.03)
    evaluated(run, 300, 20, 0.001, 0.01)
    text = run.evaluation_path(1).read_text()
    files.write_json(run.evaluation_path(1), json.loads(text.replace("A100", "H100")))
    speed = Speeds(tmp_path).of(config(), Place(on_gpu=True))
    assert speed is not None and not speed.is_drawn
    run.evaluation_path(1).write_text("{")
    assert Speeds(tmp_path).of(config(), Place(on_gpu=True)) is not None


def test_each_evaluation_begins_when_its_training_has_ended(tmp_path: Path) -> None:
    evaluated(trained(tmp_path, config("seed=1"), 1.0), 1000, 50, 1e-3, 0.0)
    configs = [config(f"seed={seed}", f"train.epochs={seed}") for seed in (2, 3, 4)]
    found = on_slurm(tmp_path, configs, evaluate=True, array_parallelism=2)
    trained_s = [2 * 468, 3 * 468, (2 + 4) * 468]  # the third begins when the first has ended
    assert found.wall_s == pytest.approx(trained_s[2] + 50)
    assert [row.evaluation_s for row in found.rows] == pytest.approx([50, 50, 50])
    assert found.needs == {"01-train": 40, "02-evaluate": 5}
    short = on_slurm(tmp_path, configs, evaluate=True, time=5)
    assert "02-evaluate" not in " ".join(short.remarks())


def test_a_gpu_that_idles_at_the_end_of_a_pack_is_paid_for(tmp_path: Path) -> None:
    trained(tmp_path, config("seed=1"), 1.0)
    configs = [config(f"seed={seed}", f"train.epochs={seed}") for seed in (2, 3, 5)]
    found = on_slurm(tmp_path, configs, gpus_per_node=2, runs_per_job=3)
    assert found.wall_s == pytest.approx((2 + 5) * 468), "the third begins when the first ends"
    assert found.hours == pytest.approx(2 * found.wall_s / 3600)
    shares = [row.hours / found.hours for row in found.rows]
    assert shares == pytest.approx([0.2, 0.3, 0.5])
    assert {row.time for row in found.rows} == {70}, "of the job, with a margin and its start"
    throttled = on_slurm(tmp_path, configs, array_parallelism=2)
    assert throttled.wall_s == pytest.approx(found.wall_s)


@pytest.mark.parametrize(
    ("time", "remark"),
    [
        (None, "01-train: no time limit; time=100 would do"),
        (100, None),
        (240, "01-train: time=240 minutes; time=100 would do, and may start sooner"),
        (60, "01-train: time=60 minutes, but jobs need up to 100: they are requeued"),
        (8, "01-train: time=8 minutes end before the first checkpoint, after about 8m48s: "),
    ],
)
def test_a_time_limit_that_does_not_fit_is_a_line(
    time: int | None, remark: str | None, tmp_path: Path
) -> None:
    trained(tmp_path, config("seed=1"), 1.0)
    found = on_slurm(tmp_path, [config("train.epochs=10")], time=time)
    lines = list(found.remarks())
    assert len(lines) == (remark is not None)
    assert all(line.startswith(str(remark)) for line in lines)
    assert list(found.remarks(is_submitted=True)) == (lines if time in (8, 60) else [])


def test_a_budget_is_kept_or_refused_and_unknown_speeds_do_not_pass(tmp_path: Path) -> None:
    trained(tmp_path, config("seed=1"), 1.0)
    known, unknown = config("train.epochs=10"), config("model.channels=4,4")
    found = on_slurm(tmp_path, [known])
    assert found.hours == pytest.approx(1.3)
    found.require_within(1.5, "mine")
    with pytest.raises(UserError, match=r"^grid mine: estimated at 1.3 GPU hours, more than --bud"):
        found.require_within(1.2, "mine")
    both = on_slurm(tmp_path, [known, unknown])
    assert "at least 1.3 GPU hours" in both.summary()
    with pytest.raises(UserError, match=r"no run like ddpm-default-\w+ yet .* use --probe first"):
        both.require_within(2, "mine")


def test_damaged_runs_and_those_of_older_versions_have_no_speed(tmp_path: Path) -> None:
    for seed, name in enumerate(("config.yaml", "manifest.json", "metrics.jsonl")):
        run = trained(tmp_path, config(f"seed={seed}"), 1.0)
        (run.path / name).write_text("{")
    run = trained(tmp_path, config("seed=9"), 1.0)
    files.write_json(run.manifest_path, {"run": run.name})
    assert on_slurm(tmp_path, [config("seed=10")]).unknown


def test_the_speed_of_a_rerun_is_that_of_the_runs_that_it_repeats(tmp_path: Path) -> None:
    trained(tmp_path, config(), 0.02)
    trained(folder(tmp_path), config("train.global_batch=256"), 0.03)
    again = speeds(tmp_path / "rerun-001")
    assert again.of(config(), Place(on_gpu=True)) is not None
    assert again.of(config("train.global_batch=256"), Place(on_gpu=True)) is not None
    assert speeds(tmp_path / "other").of(config(), Place(on_gpu=True)) is None


def test_a_probe_is_alike_and_short_and_as_many_as_share_a_gpu(tmp_path: Path) -> None:
    configs = [config(f"seed={seed}") for seed in range(3)]
    configs += [config("train.global_batch=50000", preset="ddpm/unet")]
    found = on_slurm(tmp_path, configs, runs_per_gpu=2)
    grid = Grid("mine", tuple(GridRun(c) for c in configs), Layer("", {}))
    made = probes(grid, found).runs
    assert [run.config.seed for run in made] == [0, 1, 0, 1], "of each kind"
    for run, like in zip(made, (configs[0], configs[0], configs[3], configs[3]), strict=True):
        assert CORE.kind(run.config) == CORE.kind(like)
        assert run.schedule.final_step <= 100 and not run.config.sampled_epochs
    for run in made:
        trained(folder(tmp_path), run.config, 1.0, runs_per_gpu=2)
    assert not estimate(found.queues, Speeds(tmp_path, folder(tmp_path))).unknown
    with pytest.raises(UserError, match="nothing to measure"):
        probes(grid, estimate((), Speeds(tmp_path)))


def test_an_empty_sweep_costs_nothing(tmp_path: Path) -> None:
    grid = Grid("mine", (), Layer("", {}))
    assert not plan(grid, tmp_path)
    found = estimate([Queue("", (), 1, False)], Speeds(tmp_path))
    assert found.hours == 0 and found.summary().startswith("nothing to train")
    assert estimate([], Speeds(tmp_path / "none")).wall_s == 0
    assert Task((), 1).at_once == 1
