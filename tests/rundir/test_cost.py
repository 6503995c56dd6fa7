"""The cost of a training: the hours of all attempts, whatever ended them and wherever they ran."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.rundir.cost import Cost

BATCH = 100
CPU = {"device": "AMD EPYC", "world_size": 2, "threads": 3}
GPU = {"device": "NVIDIA H100", "world_size": 4, "threads": None}


def start(attempt: int, step: int, **environment: Any) -> dict[str, Any]:
    return {"event": "start", "attempt": attempt, "step": step, **environment}


def speed(attempt: int, step: int, images_per_s: float, **seconds: float) -> dict[str, Any]:
    about = {"event": "speed", "attempt": attempt, "step": step}
    return {**about, "images_per_s": images_per_s, **seconds}


def end(attempt: int, step: int, seconds: float) -> dict[str, Any]:
    return {"event": "end", "attempt": attempt, "step": step, "seconds": seconds}


def epoch(attempt: int, number: int, step: int) -> dict[str, Any]:
    return {"event": "epoch", "attempt": attempt, "epoch": number, "step": step, "loss": 1.0}


def test_attempts_add_up_a_killed_one_to_its_last_line_and_repeated_steps_twice() -> None:
    cost = Cost.of(
        [
            start(1, 0, **GPU),
            speed(1, 10, 50.0, seconds=30.0),
            speed(1, 20, 50.0, seconds=50.0),  # killed; its last checkpoint was of step 10
            start(2, 10, **GPU),
            speed(2, 20, 100.0, seconds=15.0),
            end(2, 25, 40.0),
        ],
        BATCH,
    )
    assert cost.total.seconds == 50.0 + 40.0
    assert cost.total.gpu_hours == pytest.approx(4 * 90.0 / 3600) and not cost.total.core_hours
    assert cost.total.images == 20 * BATCH, "the weights have seen none twice"
    assert cost.images_per_s == pytest.approx(3000 / 50.0), "steps alone, the repeated ones too"
    assert cost.device == "4 x NVIDIA H100"


def test_each_device_has_its_own_hours_where_a_run_was_moved() -> None:
    lines = [start(1, 0, **GPU), end(1, 1, 36.0), start(2, 1, **CPU), end(2, 2, 72.0)]
    cost = Cost.of(lines, BATCH)
    assert cost.total.gpu_hours == pytest.approx(0.04)
    assert cost.total.core_hours == pytest.approx(2 * 3 * 0.02)
    assert cost.device == "4 x NVIDIA H100; AMD EPYC, 6 cores"


def test_a_run_that_shares_its_gpu_pays_its_share() -> None:
    whole, quarter = start(1, 0, **GPU), start(2, 1, **GPU | {"world_size": 1}, runs_per_gpu=4)
    cost = Cost.of([whole, end(1, 1, 36.0), quarter, end(2, 2, 72.0)], BATCH)
    assert cost.total.gpu_hours == pytest.approx(0.04 + 0.02 / 4)
    assert cost.device == "4 x NVIDIA H100; NVIDIA H100, shared by 4 runs"


def test_energy_is_that_of_all_ranks_and_the_share_of_a_shared_gpu() -> None:
    lines = [
        start(1, 0, **GPU),
        speed(1, 10, 50.0, seconds=30.0, joules=1.8e6),
        end(1, 10, 36.0) | {"joules": 3.6e6},
        start(2, 10, **GPU | {"world_size": 1}, runs_per_gpu=2),
        end(2, 20, 36.0) | {"joules": 3.6e6},
        start(3, 20, **CPU),
        end(3, 30, 36.0),
    ]
    assert Cost.of(lines, BATCH).total.energy_kwh == pytest.approx(4 + 0.5)


def test_an_epoch_cost_all_that_was_spent_until_it_was_first_reached() -> None:
    cost = Cost.of(
        [
            start(1, 0, **CPU),
            speed(1, 8, 10.0, seconds=80.0),  # killed in the second epoch
            start(2, 5, **CPU),
            speed(2, 10, 10.0, seconds=60.0),
            epoch(2, 2, 10),
            end(2, 10, 65.0),
            start(3, 5, **CPU),  # the checkpoint of epoch 2 was removed, and is made again
            speed(3, 10, 10.0, seconds=55.0),
            epoch(3, 2, 10),
        ],
        BATCH,
    )
    at = cost.at_epoch[2]
    assert (at.seconds, at.images) == (140.0, 10 * BATCH)
    assert cost.total.seconds == 80.0 + 65.0 + 55.0


def test_of_an_older_version_the_time_of_the_steps_counts() -> None:
    cost = Cost.of(
        [
            start(1, 0, **CPU),
            speed(1, 10, 100.0),
            speed(1, 30, 50.0),
            epoch(1, 1, 30),
            start(2, 20, **CPU),
            speed(2, 30, 100.0),
        ],
        BATCH,
    )
    assert cost.at_epoch[1].seconds == pytest.approx(10.0 + 40.0)
    assert cost.total.seconds == pytest.approx(50.0 + 10.0)


def test_nothing_written_costs_nothing_and_a_lost_start_loses_its_attempt_alone() -> None:
    assert Cost.of([], BATCH).total.seconds == Cost.of([], BATCH).images_per_s == 0.0
    lines = [speed(1, 5, 10.0, seconds=9.0), start(2, 5, **CPU), end(2, 5, 3.0)]
    assert Cost.of(lines, BATCH).total.seconds == 3.0
