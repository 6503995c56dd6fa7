"""Grids: the runs and cells that a file and the command line mean."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from diffuse.config import ranges
from diffuse.config.presets import load_config, parse_set
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Figure
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from launch.grids.cluster import choose
from launch.grids.grid import Overrides, load_grid
from launch.grids.plan import look_at
from launch.results import results
from tests.grids.files import write


def test_part1_is_the_five_ddpm_presets_at_five_epochs() -> None:
    grid = load_grid("part1")
    assert [run.config.preset for run in grid.runs] == [
        f"ddpm/{name}" for name in ("default", "light", "more_capacity", "testing", "testing2")
    ]
    assert {run.epochs for run in grid.runs} == {(20, 40, 60, 80, 100)}


def test_part2_is_three_cold_presets_times_row_and_col_at_four_epochs() -> None:
    grid = load_grid("part2")
    presets = [f"cold/{name}" for name in ("default_28", "default_7", "more_capacity")]
    cells = [(run.config.preset, run.orientation) for run in grid.runs]
    assert cells == list(itertools.product(presets, ("row", "col")))
    assert {run.epochs for run in grid.runs} == {(20, 40, 60, 80)}


def test_a_cell_is_the_run_that_train_would_make() -> None:
    (run,) = load_grid("part2").only("cold-default_7-col-*").runs
    same = load_config("cold/default_7", [parse_set(["process.orientation=col"])])
    assert run.name == same.run_name


def test_every_combination_becomes_one_run_and_its_epochs_a_prefix_of_it(tmp_path: Path) -> None:
    text = """
runs:
  - {preset: ddpm/default, epochs: [5, 3], seeds: [1, 2]}
  - {preset: cold/default_7, orientation: [row, col], epochs: 7, seeds: 3, set: {train: {lr: 1}}}
"""
    runs = load_grid(write(tmp_path, text)).runs
    made = {(r.config.preset, r.orientation, r.config.seed, r.epochs) for r in runs}
    assert made == {
        ("ddpm/default", None, 1, (3, 5)),
        ("ddpm/default", None, 2, (3, 5)),
        ("cold/default_7", "row", 3, (7,)),
        ("cold/default_7", "col", 3, (7,)),
    }
    assert all(r.config.train.epochs == max(r.epochs) for r in runs)
    assert {r.config.train.lr for r in runs} == {2e-4, 1.0}


def test_entries_of_the_same_run_share_one_training(tmp_path: Path) -> None:
    text = """
runs:
  - {preset: ddpm/default, epochs: [2]}
  - {preset: ddpm/default, epochs: [1, 3]}
"""
    (run,) = load_grid(write(tmp_path, text)).runs
    assert run.epochs == (1, 2, 3)


def test_the_command_line_goes_over_the_grid_and_the_grid_over_the_preset(tmp_path: Path) -> None:
    text = "runs: [{preset: ddpm/default, epochs: [2], seeds: [7], set: {train: {lr: 0.1}}}]"
    grid = write(tmp_path, text)
    (run,) = load_grid(grid).runs
    assert (run.config.train.lr, run.config.seed, run.epochs) == (0.1, 7, (2,))
    layers = (parse_set(["train.lr=0.2"]),)
    (run,) = load_grid(grid, Overrides(epochs=(4, 8), seeds=(9,), layers=layers)).runs
    assert (run.config.train.lr, run.config.seed, run.epochs) == (0.2, 9, (4, 8))


def test_set_reaches_the_keys_that_a_grid_decides() -> None:
    layers = (parse_set(["train.epochs=3", "process.orientation=col", "seed=5"]),)
    runs = load_grid("part2", Overrides(layers=layers)).runs
    assert len(runs) == 3  # row and col have become the same runs
    assert {(run.orientation, run.config.seed, run.epochs) for run in runs} == {("col", 5, (3,))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: []", "the grid is empty"),
        ("cluster: {}", "the grid is empty"),
        ("runs: 3", "runs: input should be a valid tuple, not 3"),
        ("runs: [{presett: ddpm/default}]", "runs[0].presett: unknown key; allowed: preset, orie"),
        ("run: []\nruns: [{preset: ddpm/default}]", "run: unknown key; allowed: runs, cluster"),
        ("runs: [{preset: ddpm/none}]", "runs[0]: unknown preset 'ddpm/none'; allowed: ddpm/d"),
        ("runs: [{preset: cold/default_7}]", "needs orientation: row, col or [row, col]"),
        ("runs: [{preset: cold/default_7, orientation: diagonal}]", "should be 'row' or 'col'"),
        ("runs: [{preset: ddpm/default, orientation: row}]", "orientation is for cold diffusion"),
        ("runs: [{preset: ddpm/default, epochs: [0]}]", "greater than or equal to 1, not 0"),
        ("runs: [{preset: ddpm/default, epochs: []}]", "runs[0].epochs: "),
        ("runs: [{preset: ddpm/default, seeds: [-1]}]", "greater than or equal to 0, not -1"),
        ("runs: [{preset: ddpm/default, set: {lr: 1}}]", "runs[0]: lr: unknown key; allowed:"),
        ("runs: [{preset: ddpm/default, set: {train: {lr: -1}}}]", "runs[0]: train.lr: input sh"),
        ("runs: [{preset: ddpm/default}", "not readable as YAML"),
    ],
)
def test_a_bad_grid_is_explained_in_one_line_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_grid(write(tmp_path, text))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_grid_is_answered_with_the_existing_ones() -> None:
    with pytest.raises(UserError, match="unknown grid 'part3'; allowed: all, part1, part2, quick"):
        load_grid("part3")


def test_only_that_matches_nothing_names_the_runs() -> None:
    with pytest.raises(UserError, match=r"--only 'x\*' matches no run of part2: cold-default_28"):
        load_grid("part2").only("x*")


def test_cluster_settings_go_file_grid_entry_command_line(tmp_path: Path) -> None:
    text = """
cluster: {time: 10, nodes: 2, qos: low}
runs: [{preset: ddpm/default, cluster: {time: 20, nodes: 3}}]
"""
    (run,) = load_grid(write(tmp_path, text)).runs
    typed = parse_set(["time=30"], source="--cluster-set")
    settings = choose("local").resolve([*run.cluster, typed])
    assert (settings.time, settings.nodes, settings.qos) == (30, 3, "low")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: [{preset: ddpm/default, cluster: {tim: 1}}]", "runs[0]: cluster: tim: unknown key"),
        ("cluster: {nodes: 0}\nruns: [{preset: ddpm/default}]", "grid.yaml: cluster: nodes: input"),
    ],
)
def test_a_bad_cluster_setting_is_named_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    (run,) = load_grid(write(tmp_path, text)).runs
    with pytest.raises(UserError) as caught:
        choose("local").resolve(run.cluster)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kept", "wanted", "state", "detail"),
    [
        (None, [], "2,4", "new", "new"),
        ({"state": "done", "epoch": 4, "epochs": 4}, [2, 4], "2,4", "done", "done"),
        ({"state": "done", "epoch": 4, "epochs": 4}, [2, 4], "4,8", "extend", "extend 4 -> 8"),
        ({"state": "done", "epoch": 4, "epochs": 4}, [4], "2,4", "extend", "make epoch 2 again"),
        ({"state": "interrupted", "epoch": 3, "epochs": 4}, [2], "2,4", "resume", "at epoch 3"),
        ({"state": "running", "epoch": 3, "epochs": 4}, [2], "2,4", "resume", "at epoch 2"),
        ({"state": "failed", "reason": "nan", "epochs": 4}, [2], "4", "resume", "(failed: nan)"),
        # stopped on its way to 8, which this grid does not ask for
        ({"state": "interrupted", "epoch": 5, "epochs": 8}, [2, 4], "2,4", "done", "done"),
    ],
)
def test_the_rest_of_a_run_follows_from_its_directory(
    tmp_path: Path,
    status: dict[str, object] | None,
    kept: list[int],
    wanted: str,
    state: str,
    detail: str,
) -> None:
    epochs = ranges.typed(wanted, "--epochs", smallest=1)
    run = load_grid("part1", Overrides(epochs=epochs)).only("ddpm-default-*").runs[0]
    directory = RunDir(tmp_path / run.name)
    if status is not None:
        directory.checkpoints.mkdir(parents=True)
        files.write_json(directory.status_path, status)
        for epoch in kept:
            directory.checkpoint_path(epoch).touch()
    planned = look_at(run, directory)
    assert planned.state == state and detail in planned.detail
    assert planned.have == frozenset(kept) & frozenset(epochs)


def test_a_cell_counts_as_evaluated_by_the_protocol_that_the_grid_asks_for(tmp_path: Path) -> None:
    layer = parse_set(["eval.images=500", "eval.samplers=ddim-50,ancestral"])
    run = load_grid("part1", Overrides(epochs=(2,), layers=(layer,))).only("ddpm-default-*").runs[0]
    directory = RunDir(tmp_path / run.name)
    directory.checkpoints.mkdir(parents=True)
    directory.checkpoint_path(2).touch()
    files.write_json(directory.status_path, {"state": "done", "epoch": 2, "epochs": 2})

    scores = dict.fromkeys(("fid", "kid", "kid_std", "is", "is_std"), 1.0)
    common = {"extractor": "classifier", "real_images": 60_000, "source": "noise"}

    def figure(sampler: str, images: int) -> dict[str, object]:
        protocol = {**common, "sampler": sampler, "images": images}
        return {**scores, "floor": scores, "protocol": protocol}

    few = [figure("ddim-50", 20), figure("ancestral", 20)]
    for figures, is_there in (
        (few, False),
        ([*few, figure("ddim-50", 500)], False),
        ([*few, figure("ddim-50", 500), figure("ancestral", 500)], True),
    ):
        files.write_json(directory.evaluation_path(2), {"epoch": 2, "figures": figures})
        assert (look_at(run, directory).unevaluated == ()) is is_there
    assert run.evaluation([2])[:2] == ["--images", "500"]


def test_the_last_epoch_alone_has_a_further_figure_of_more_images(tmp_path: Path) -> None:
    layer = parse_set(["eval.final_images=5000", "eval.samplers=ddim-50"])
    overrides = Overrides(epochs=(1, 2), layers=(layer,))
    run = load_grid("part1", overrides).only("ddpm-default-*").runs[0]
    assert "--final-images" not in run.evaluation([1])
    assert run.evaluation([1, 2])[4:6] == ["--final-images", "5000"]
    scores = dict.fromkeys(("fid", "kid", "kid_std", "is", "is_std"), 1.0)
    common = {"extractor": "classifier", "real_images": 60_000, "source": "noise"}
    few, many = (
        Figure.model_validate(
            {**scores, "floor": scores, "protocol": {**common, "sampler": "ddim-50", "images": n}}
        )
        for n in (1000, 5000)
    )
    assert run.is_evaluated(1, [few]) and not run.is_evaluated(2, [few])
    assert not run.is_evaluated(2, [many]) and run.is_evaluated(2, [few, many])


def test_an_evaluation_that_ended_after_the_first_of_three_samplers_is_still_to_do(
    tmp_path: Path,
) -> None:
    """Where the grid names no samplers, it asks for the process's own."""
    run = load_grid("quick").only("cold-quick-row-*").runs[0]
    (epoch,) = run.epochs
    directory = RunDir(tmp_path / run.name)
    directory.checkpoints.mkdir(parents=True)
    directory.checkpoint_path(epoch).touch()
    directory.write_config(run.config)
    files.write_json(directory.status_path, {"state": "done", "epoch": epoch, "epochs": epoch})
    scores = dict.fromkeys(("fid", "kid", "kid_std", "is", "is_std"), 1.0)
    protocol = {"images": 1000, "extractor": "classifier", "real_images": 60_000, "source": "x"}
    made: list[object] = []
    for name, lacking in (
        ("renoise", "direct, unconditional"),
        ("direct", "unconditional"),
        ("unconditional", None),
    ):
        made.append({**scores, "floor": scores, "protocol": {**protocol, "sampler": name}})
        content = {"epoch": epoch, "figures": made}
        files.write_json(directory.evaluations / f"epoch_{epoch:04d}.json", content)
        assert look_at(run, directory).unevaluated == ((epoch,) if lacking else ())
        problems = results.read(directory.path).problems
        assert problems == ([f"epoch {epoch}: not evaluated by {lacking}"] if lacking else [])
