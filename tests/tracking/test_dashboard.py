"""The W&B workspace: built by W&B's own library, and one clear line where there is no network."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from diffuse.config.presets import load_config, parse_set
from diffuse.rundir.cost import Spent
from diffuse.tracking.rows import cost_row, figure_row, summary
from tests import programs
from tests.tracking.runs import EVALUATION
from tests.wandb_server import KEY, server


def dashboard(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch/dashboard.py", *arguments],
        cwd=programs.ROOT,
        env=programs.environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_workspace_shows_a_sweeps_ranking_curves_and_samples_without_a_click() -> None:
    done = dashboard("--json", "--entity=team", "--project=mnist", "--grid=part2")
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    assert (view["entity"], view["project"]) == ("team", "mnist")
    section = view["spec"]["section"]
    (table,) = section["runSets"]
    assert table["grouping"] == [], "groups would be closed"
    by = {"key": {"section": "summary", "name": "final/fid"}, "ascending": True}
    assert table["sort"]["keys"] == [by]
    (only,) = table["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("group", "part2")
    sections = section["panelBankConfig"]["sections"]
    assert all(s["isOpen"] for s in sections)
    configs = [panel["config"] for s in sections for panel in s["panels"]]
    named = {name for config in configs for name in config.get("metrics", [])}
    assert {"epoch/loss", "train/loss", "train/lr", "train/images_per_s", "final/fid"} <= named
    # the columns and the bars are those that are logged
    found = [EVALUATION.model_copy(update={"epoch": 1})]
    config = load_config("cold/default_28", [parse_set(["process.orientation=row"])])
    config = config.model_copy(
        update={"eval": config.eval.model_copy(update={"samplers": ("algorithm2",)})}
    )
    spent = cost_row(Spent(seconds=2, gpu_hours=1, core_hours=1, images=1, energy_kwh=1))
    logged = {*summary(config, found), "epoch/loss", *spent}
    pinned = {c.removeprefix("summary:") for c in table["runFeed"]["columnPinned"] if "summ" in c}
    assert pinned == logged
    assert {name for name in named if name.startswith(("best/", "final/"))} <= logged
    media = {key for config in configs for key in config.get("mediaKeys", [])}
    assert media == {"samples", "samples_unconditional", "degradation"}
    # the patterns find the names under which figures are logged, and their floors beside them
    patterns = [config["metricRegex"] for config in configs if "metricRegex" in config]
    for key in ("fid", "is", "kid"):
        names = [n for n in figure_row(EVALUATION.figures[0]) if n.startswith(f"eval/{key}/")]
        assert len(names) == 2
        (pattern,) = {pattern for pattern in patterns if re.search(pattern, names[0])}
        assert re.search(pattern, names[1])


def test_a_dry_run_lists_the_panels() -> None:
    done = dashboard("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "FID (lower is better)" in done.stdout


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({}, "no API key"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "does not answer"),
    ],
)
def test_without_key_or_network_it_says_so_in_one_line(env: dict[str, str], text: str) -> None:
    done = dashboard(**env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert text in line


def test_the_workspace_is_saved_and_renewed_in_its_place() -> None:
    with server() as it:
        made = dashboard("--project=mnist", **it.environment())
        assert made.returncode == 0, made.stderr
        (url,) = made.stdout.splitlines()
        again = dashboard(f"--update={url}", "--name=Renewed", **it.environment())
        assert again.returncode == 0, again.stderr
        assert again.stdout.splitlines() == [url]
        (view,) = it.views.values()
        assert (view["entityName"], view["projectName"]) == ("me", "mnist")
        assert view["displayName"] == "Renewed"
        sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
        assert [s["name"] for s in sections] == [
            "Ranking",
            *("Loss", "FID and IS", "Samples", "Training"),
        ]
        gone = dashboard(f"--update={url}x", **it.environment())
    assert gone.returncode == 1
    assert "not found" in gone.stderr.splitlines()[-1]


def test_a_refused_key_is_one_line_without_the_key() -> None:
    with server("refused key") as it:
        done = dashboard(**it.environment())
    assert done.returncode == 1
    assert "error: W&B" in done.stderr.splitlines()[-1]
    assert KEY not in done.stdout + done.stderr
