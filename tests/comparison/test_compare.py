"""Comparing real runs: values equal the files, protocols never mix, one page without a network."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffuse.rundir import plots
from diffuse.rundir.plots import look
from diffuse.runtime import files
from launch.comparison import charts, page
from launch.results import grouping, labels, results
from tests import programs
from tests.programs import TINY

# Names of XML vocabularies, which nothing loads.
NAMESPACES = {f"http://www.w3.org/{name}" for name in ("2000/svg", "1999/xlink")}
GRID = """
runs:
  - {preset: ddpm/default, epochs: [1, 2], seeds: [0, 1]}
  - {preset: cold/default_7, orientation: row, epochs: [2]}
"""


def launch(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return programs.run(f"launch/{name}", *arguments, warm=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The whole chain on this machine: trained, evaluated, reported."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "small.yaml").write_text(GRID)
    done = launch(
        "sweep.py",
        f"--grid={folder / 'small.yaml'}",
        "--cluster=local",
        f"--runs-dir={folder / 'runs'}",
        f"--data-dir={data_dir}",
        *TINY,
        "--set=eval.images=20",
        "--set=samples.images=4",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {folder / 'runs' / 'report.html'}" in done.stdout
    return folder / "runs"


@pytest.fixture
def runs(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "runs"))


class Page(html.parser.HTMLParser):
    """The files that a page loads, its text, and whether its tags close."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(runs: Path) -> list[dict[str, Any]]:
    done = launch("compare.py", f"--runs-dir={runs}", "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["figures"])


def test_every_figure_equals_the_file_that_it_is_from(runs: Path, tmp_path: Path) -> None:
    table = tmp_path / "figures.csv"
    found = figures(runs)
    assert len(found) == 2 * 2 + 3
    for figure in found:
        file = runs / figure["run"] / "evaluations" / f"epoch_{figure['epoch']:04d}.json"
        by_sampler = {f["protocol"]["sampler"]: f for f in programs.read_json(file)["figures"]}
        assert figure["fid"] == by_sampler[figure["protocol"]["sampler"]]["fid"]
    assert launch("compare.py", f"--runs-dir={runs}", f"--csv={table}").returncode == 0
    rows = list(csv.DictReader(table.open()))
    assert [float(row["fid"]) for row in rows] == [figure["fid"] for figure in found]


def test_the_page_is_whole_and_needs_no_network(runs: Path) -> None:
    html = Page((runs / "report.html").read_text())
    assert not html.open
    assert html.sources
    assert all(
        source.startswith(("data:image/png", "data:image/gif", "#")) for source in html.sources
    )
    text = (runs / "report.html").read_text()
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert set(re.findall(r"https?://[^\"]*", text)) <= NAMESPACES
    for name in ("ddpm/default, seed 0", "ddpm/default, seed 1", "cold/default_7 row"):
        assert name in html.text
    for part in (
        "real test images",
        "differ by their seed only",
        "published figures",
        "algorithm2",
        "wraps them",
    ):
        assert part in html.text


def test_two_protocols_never_share_a_table(runs: Path, data_dir: Path) -> None:
    (run,) = runs.glob("cold-*")
    done = programs.run(
        "diffuse.evaluate", run, "-n", "30", "--samplers=direct", f"--data-dir={data_dir}"
    )
    assert done.returncode == 0, done.stderr
    found = grouping.groups(results.read_all(results.find(runs, [])))
    assert [group.protocol["images"] for group in found] == [20, 30]
    assert [len(group.cells) for group in found] == [7, 1]
    columns = [column for group in found for column in group.columns()]
    for column in columns:
        protocols = {cell.figure.protocol.key for cell in column.cells}
        assert len(protocols) == 1
    said = launch("compare.py", f"--runs-dir={runs}").stdout
    assert said.count("images by classifier") == len(columns) == 5
    html = (runs / "report.html").read_text()
    assert html.count('<tr class="floor">') == len(columns)


def test_every_cell_of_a_grid_is_a_row_and_the_best_is_over_all(runs: Path) -> None:
    """A cell is preset x orientation x epoch: earlier epochs are as much asked for as the last."""
    early, _ = sorted(runs.glob("ddpm-*"))
    file = early / "evaluations" / "epoch_0001.json"
    content = programs.read_json(file)
    content["figures"][0]["fid"] = 0.5
    files.write_json(file, content)
    found = results.read_all(results.find(runs, []))
    names = labels.labels(found)
    (column,) = [c for c in grouping.groups(found)[0].columns() if c.source == "noise"]
    assert column.cells[0].epoch == 1  # of the best run first, its epochs in order
    assert [cell.epoch for cell in column.latest] == [2, 2]
    said = launch("compare.py", f"--runs-dir={runs}").stdout
    html = (runs / "report.html").read_text()
    for run in early.name, column.cells[-1].run:
        for epoch in 1, 2:
            assert re.search(rf"^{names[run]} +{epoch} ", said, re.MULTILINE)
            assert f"<tr><td>{names[run]}</td><td>{epoch}</td>" in html
    assert re.search(rf"^{names[early.name]} +1 +[0-9.]+ +0.50 \*", said, re.MULTILINE)


def test_a_run_looks_the_same_in_every_chart_of_a_page() -> None:
    """By its name, whoever else is in the chart; 28 are told apart without their markers."""
    curve = charts.Curve([(1.0, 2.0), (2.0, 1.0)])
    looks = {"a": look(0), "b": look(1)}
    alone = charts.Chart({"b": curve}, "loss", looks).svg()
    assert looks["b"].colour.lower() in alone.lower()
    assert looks["a"].colour.lower() not in alone.lower()
    assert len({look(k)[:2] for k in range(28)}) == 28


def test_plots_of_a_run_use_colours_that_the_colour_blind_can_tell(tmp_path: Path) -> None:
    curves = {f"sampler {k}": [(1, k + 1.0), (2, k + 2.0)] for k in range(3)}
    plots.epoch_curves(tmp_path / "fid.png", curves, {"real": 1.0}, "FID", title="run")
    with Image.open(tmp_path / "fid.png") as image:
        drawn = {bytes(pixel[:3]).hex() for pixel in np.array(image).reshape(-1, 4)}
    assert {look(k).colour[1:].lower() for k in range(3)} <= drawn


def test_differences_name_the_runs_of_each_value_within_a_kind_and_only_what_changes_a_cell(
    runs: Path,
) -> None:
    """A DDPM and a cold run differ by all that makes them two kinds; that is no news."""
    done = launch("compare.py", f"--runs-dir={runs}")
    assert re.search(r"^seed +0 +ddpm/default, seed 0$", done.stdout, re.M)
    html = Page((runs / "report.html").read_text()).text.partition("What differs")[2]
    table = html.partition("published figures")[0]
    for text in done.stdout, table:
        assert "seed" in text
        for key in ("process.kind", "process.timesteps", "eval.at_epochs", "train.epochs"):
            assert key not in text


def test_the_loss_of_a_cell_is_the_mean_over_its_epoch(runs: Path, tmp_path: Path) -> None:
    """In the terminal's table, on the page, in JSON and in the CSV."""
    file = tmp_path / "figures.csv"
    done = launch("compare.py", f"--runs-dir={runs}", f"--csv={file}")
    rows = list(csv.DictReader(file.open()))
    html = Page((runs / "report.html").read_text()).text
    for row, figure in zip(rows, figures(runs), strict=True):
        events = results.RunDir(runs / figure["run"]).metrics("epoch")
        (loss,) = [e["loss"] for e in events if e["epoch"] == figure["epoch"]]
        assert figure["loss"] == float(row["loss"]) == loss
        assert page.score(loss) in done.stdout and page.score(loss) in html


def test_how_figures_scatter_is_explained_and_in_the_csv(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.csv"
    done = launch("compare.py", f"--runs-dir={runs}", f"--csv={file}")
    assert "PSNR is that of the mean MSE" in done.stdout
    html = " ".join(Page((runs / "report.html").read_text()).text.split())
    assert "over 100 subsets of 10 images, and IS over 10 parts of the images" in html
    assert "PSNR is that of the mean MSE" in html
    for row, figure in zip(csv.DictReader(file.open()), figures(runs), strict=True):
        for key in ("kid_std", "is_std"):
            assert float(row[f"floor_{key}"]) == figure["floor"][key]


@pytest.mark.parametrize("option", ["--csv", "--output"])
def test_a_folder_is_no_file_to_write(option: str, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    before = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    done = launch("compare.py", f"--runs-dir={runs}", option, folder)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert str(folder) in done.stderr and "is a directory" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.iterdir()} == before


def test_a_grid_with_nothing_to_show_is_one_line_and_exit_2(runs: Path) -> None:
    """Losses alone are something to show; runs that have not trained a step are not."""
    for run in (path for path in runs.iterdir() if (path / "logs").is_dir()):
        shutil.rmtree(run / "evaluations")
    assert launch("compare.py", f"--runs-dir={runs}").returncode == 0
    for file in runs.glob("*/metrics.jsonl"):
        file.write_text("")
    done = launch("compare.py", f"--runs-dir={runs}")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert "nothing to compare yet" in done.stderr


def test_runs_that_differ_by_their_seed_get_mean_and_deviation(runs: Path) -> None:
    found = results.read_all(results.find(runs, []))
    (group,) = grouping.groups(found)
    earlier, mean = grouping.over_seeds(group, found)
    assert (earlier.epoch, mean.epoch) == (1, 2)
    cells = [c for c in group.cells if c.run.startswith("ddpm") and c.epoch == 2]
    values = [c.figure.fid for c in cells]
    assert mean.seeds == (0, 1)
    assert mean.scores["fid"][0] == pytest.approx(sum(values) / 2)
    assert mean.scores["fid"][1] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_a_rerun_is_held_against_the_first_run(runs: Path) -> None:
    (run,) = runs.glob("cold-*")
    again = Path(shutil.copytree(run, runs / "rerun-001" / run.name))
    said = launch("compare.py", f"--runs-dir={runs}").stdout
    assert f"rerun-001/{run.name}: weights equal, figures equal" in said
    events = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("crc32", None)
        if "weights" in event:
            event["weights"] = "0000" + event["weights"][4:]
    (again / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    file = again / "evaluations" / "epoch_0002.json"
    content = programs.read_json(file)
    content["figures"][0]["fid"] *= 1.5
    files.write_json(file, content)
    said = launch("compare.py", f"--runs-dir={runs}").stdout
    assert f"rerun-001/{run.name}: weights different, figures different (33%)" in said


def test_damage_is_named_and_costs_its_run_only(runs: Path) -> None:
    cold, first, second = sorted(path for path in runs.iterdir() if (path / "logs").is_dir())
    (cold / "evaluations" / "epoch_0002.json").write_text('{"epoch": 2, "figures": [1]}')
    (first / "samples" / "epoch_0002.h5").write_bytes(b"no picture")
    (first / "plots" / "degradation.png").write_bytes(b"no picture")
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": "many"}\n')
    (second / "config.yaml").write_text("process: {kind: 3}")
    done = launch("compare.py", f"--runs-dir={runs}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "epoch_0002.json: damaged; delete it and evaluate again" in said
    assert f"{second.name}: {second / 'config.yaml'}" in said
    for name in ("samples/epoch_0002.h5: damaged", "degradation.png: damaged", "jsonl: damaged"):
        assert name in said
    assert "Traceback" not in done.stderr


def test_the_page_shows_each_runs_way_from_x_T_to_x_0(runs: Path) -> None:
    assert launch("compare.py", f"--runs-dir={runs}").returncode == 0
    page = (runs / "report.html").read_text()
    moving = [path.read_bytes() for path in runs.glob("*/plots/trajectory.gif")]
    assert len(moving) == len(list(runs.glob("*/config.yaml"))) == 3
    for content in moving:
        assert base64.b64encode(content).decode() in page
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.n_frames > 1


def test_a_page_of_many_runs_names_the_moving_pictures_and_stays_small(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MANY_MOVING", 2)
    html = page.render(results.read_all(results.find(runs, [])), runs, "three runs")
    assert "data:image/gif" not in html and "plots/trajectory.gif" in html


def test_texts_of_runs_are_escaped(runs: Path) -> None:
    (run,) = runs.glob("cold-*")
    status = programs.read_json(run / "status.json")
    hostile = "<script>alert(1)</script>"
    files.write_json(run / "status.json", {**status, "state": "failed", "reason": hostile})
    assert launch("compare.py", f"--runs-dir={runs}").returncode == 0
    html = (runs / "report.html").read_text()
    assert hostile not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_hostile_name_is_only_a_name(runs: Path) -> None:
    """In the tables, in the charts' legends (where a $ would begin a formula), in alt texts."""
    name = 'x"><img src=y onerror=alert(1)>$\\frac$ &amp;'
    (run,) = runs.glob("cold-*")
    (run / "config.yaml").unlink()
    run.rename(runs / name)
    done = launch("compare.py", f"--runs-dir={runs}")
    assert done.returncode == 0, done.stderr
    text = (runs / "report.html").read_text()
    assert "<img src=y" not in text
    assert name in Page(text).text


def test_a_missing_result_is_named_with_its_reason(runs: Path) -> None:
    cold, first, second = sorted(path for path in runs.iterdir() if (path / "logs").is_dir())
    (cold / "evaluations" / "epoch_0002.json").unlink()
    status = programs.read_json(first / "status.json")
    for epoch in (2,):
        (first / "evaluations" / f"epoch_{epoch:04d}.json").unlink()
        (first / "checkpoints" / f"epoch_{epoch:04d}.pt").unlink()
    dead = {**status, "state": "running", "heartbeat": 0.0}
    files.write_json(first / "status.json", dead)
    shutil.rmtree(second)
    said = launch("compare.py", f"--runs-dir={runs}", "--grid", runs / "small.yaml").stdout
    assert f"{cold.name}: epoch 2: trained, not evaluated" in said
    assert f"{first.name}: epoch 2: not trained (running, but silent for" in said
    assert f"{second.name}: not started here, or removed" in said


def test_an_epoch_is_no_longer_than_it_was(tmp_path: Path) -> None:
    """A run stopped inside its first epoch has not trained one."""
    run = tmp_path / "run"
    run.mkdir()
    steps = [{"event": "step", "epoch": 1, "step": k, "loss": 1.0} for k in range(1, 11)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in steps))
    (run / "status.json").write_text('{"state": "interrupted", "steps_per_epoch": 100}')
    assert results.read(run).losses[-1] == (0.1, 1.0)


@pytest.mark.parametrize("wrong", [{"fid": "3"}, {"labels": 3}, {"floor": None}, {"protocol": {}}])
def test_a_figure_of_another_shape_is_damaged(runs: Path, wrong: dict[str, Any]) -> None:
    (run,) = runs.glob("cold-*")
    file = run / "evaluations" / "epoch_0002.json"
    content = programs.read_json(file)
    content["figures"][0].update(wrong)
    files.write_json(file, content)
    result = results.read(run)
    assert not result.cells
    assert "damaged" in result.problems[0]


def test_a_figure_that_is_no_number_is_never_the_best(runs: Path) -> None:
    first, *_ = sorted(runs.glob("ddpm-*"))
    file = first / "evaluations" / "epoch_0002.json"
    content = programs.read_json(file)
    content["figures"][0]["fid"] = float("nan")
    files.write_json(file, content)
    found = results.read_all(results.find(runs, []))
    column = grouping.groups(found)[0].columns()[0]
    (wrong,) = [cell for cell in column.cells if cell.value("fid") is None]
    assert (wrong.run, wrong.epoch) == (first.name, 2)
    assert column.best("fid") == min(c.figure.fid for c in column.cells if c is not wrong)
    assert "nan" not in Page(page.render(found, runs, "page")).text.split("Runs")[0]


def test_the_same_run_from_two_folders_keeps_two_rows(runs: Path) -> None:
    (run,) = runs.glob("cold-*")
    again = Path(shutil.copytree(run, runs / "rerun-001" / run.name))
    found = results.read_all(results.find(runs, [str(run), str(again), str(run)]))
    assert [r.name for r in found] == [str(run), str(again)]
    assert all(cell.run == r.name for r in found for cell in r.cells)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runs-dir={tmp}/none"], "no such folder"),
        (["--runs-dir={tmp}"], "no runs here yet"),
        (["--runs-dir={runs}", "ddpm-other"], "no run directory"),
        (["--runs-dir={runs}", "--grid=part3"], "unknown grid 'part3'"),
        (["--runs-dir={runs}", "--grid=part2"], "no run of the grid part2 here yet"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], said: str, swept: Path, tmp_path: Path
) -> None:
    done = launch("compare.py", *(a.format(tmp=tmp_path, runs=swept) for a in arguments))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr


def test_a_hundred_runs_fit_on_one_page(runs: Path, tmp_path: Path) -> None:
    """Only last epochs are shown where pictures would be too many."""
    many = tmp_path / "many"
    (run,) = runs.glob("cold-*")
    for k in range(100):
        shutil.copytree(run, many / f"{run.name[:-2]}{k:02d}")
    done = launch("compare.py", f"--runs-dir={many}")
    assert done.returncode == 0, done.stderr
    assert (many / "report.html").stat().st_size < 5_000_000


def test_the_status_of_a_sweep_without_slurm_comes_from_the_run_directories(runs: Path) -> None:
    done = launch("status.py", f"--runs-dir={runs}", "--json")
    rows = json.loads(done.stdout)["runs"]
    assert {(row["state"], row["epoch"]) for row in rows} == {("done", 2)}
    assert sorted(row["evaluated"] for row in rows) == [1, 2, 2]
    for grid in ("small", "folder/small.yaml"):
        assert "3 done" in launch("status.py", f"--runs-dir={runs}", f"--grid={grid}").stdout
    done = launch("status.py", f"--runs-dir={runs}", "--log", "nobody")
    assert (done.returncode, "runs with logs" in done.stderr) == (2, True)
