"""W&B that fails: a server that refuses, hangs, answers with errors, or goes in mid-run."""

from __future__ import annotations

import time
from typing import Any

from tests import programs
from tests.drill.drill import Drill
from tests.drill.specimen import what_counts
from tests.programs import read_json
from tests.wandb_server import KEY, Manners, server

BOUND_S = 85.0  # less than the 90 s that W&B's client waits by itself; ten are usual


def run(drill: Drill) -> None:
    """Every manner of failing, from the start and once the run has begun."""
    specimen = drill.specimen("ddpm")
    bad: list[Manners] = ["error", "hang", "close", "refused key"]
    cases = [(manners, begun) for begun in (False, True) for manners in bad]
    for manners, begun in drill.rng().sample(cases, len(drill.times(len(cases)))):
        when = "once the run has begun" if begun else "from the start"
        with (
            drill.trial(f"{manners}, {when}") as folder,
            server("good" if begun else manners) as there,
        ):
            there.once_begun = manners if begun else None
            start = time.monotonic()
            online = ("--set=tracking.mode=online", "--set=tracking.end_s=5")
            env: dict[str, Any] = dict(there.environment())
            arguments = (*specimen.arguments(folder), *online)
            done = programs.run("diffuse.train", *arguments, cwd=folder, **env)
            assert done.returncode == 0, done.stderr[-800:]
            assert time.monotonic() - start < BOUND_S
            run = programs.only_run(folder / "runs")
            programs.assert_same(what_counts(run), specimen.twin, "")
            assert read_json(run.status_path)["state"] == "done"
            for path in run.path.rglob("*"):
                assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
