"""Probes, estimates and budgets on a real Slurm cluster."""

from __future__ import annotations

import json

from tests.lab import EPOCHS, Lab
from tests.programs import read_json


def test_probes_are_jobs_of_their_own_after_which_a_sweep_knows_its_cost(lab: Lab) -> None:
    """Two runs share a GPU, and so do the probes of a kind."""
    seeds, packed = "--seeds=1,2,3,4", "--cluster-set=runs_per_gpu=2"
    output = lab.sweep(seeds, packed, "--probe")
    assert "train: job" in output and "2 runs" in output and "evaluate: job" not in output
    lab.wait_empty()
    assert lab.status() == {}
    found = json.loads(lab.sweep(seeds, packed, "--estimate", "--json"))
    assert not found["is_lower_bound"] and found["unit"] == "GPU"
    assert [row["steps"] for row in found["runs"]] == [EPOCHS * 16] * 4
    seconds = [row["seconds"] + row["evaluation_s"] for row in found["runs"]]
    assert found["wall_s"] <= sum(seconds) / 2 * 1.001, "two jobs side by side, two runs in each"
    assert found["remarks"] == [
        f"01-train: no time limit; time={found['runs'][0]['time']} would do",
        "02-evaluate: no time limit; time=5 would do",
    ]
    refused = lab.program("sweep.py", *lab.command(seeds, packed, "--budget=0"))
    assert refused.returncode == 2 and "more than --budget 0; " in refused.stderr
    assert lab.status() == {}, "nothing is submitted"
    lab.sweep(seeds, packed, f"--budget={2 * found['hours']}", "--cluster-set=extra={hold: true}")
    kept = read_json(lab.runs / ".launch" / "grid" / "estimate.json")["runs"]
    assert kept.keys() == lab.status().keys() and len(kept) == 4
    lab.sweep("--cancel")
