"""The averaging degradation against loops over images and lines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffuse.config.processes import AveragingConfig
from diffuse.models.averaging import Averaging, group_order
from diffuse.runtime.rng import Stream, generator

ORIENTATIONS = ("row", "col")


def slowly(process: Averaging, x0: Tensor, t: Tensor) -> Tensor:
    """The report's algorithm, line by line; a group of lines becomes one value."""
    x = x0.clone()
    for b in range(len(x0)):
        for lines in process.order[: int(t[b])]:
            if process.orientation == "row":
                x[b, 0, lines, :] = x0[b, 0, lines, :].mean()
            else:
                x[b, 0, :, lines] = x0[b, 0, :, lines].mean()
    return x


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("group", [1, 2, 4, 7, 14, 28])
@pytest.mark.parametrize("order", ["random", "inside-out", "outside-in"])
def test_masks_equal_loops_over_lines(orientation: str, group: int, order: str) -> None:
    config = AveragingConfig.model_validate(
        {"kind": "averaging", "orientation": orientation, "group": group, "order": order}
    )
    process = Averaging.from_config(config, seed=3, amplitude=0.5)
    assert 28 // group == process.T
    x0 = torch.randn(process.T + 1, 1, 28, 28)
    t = torch.arange(process.T + 1)  # every t, 0 and T included
    torch.testing.assert_close(process.degrade(x0, t), slowly(process, x0, t))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nothing_happens_at_0_and_only_the_means_are_left_at_T(orientation: str) -> None:
    config = AveragingConfig.model_validate({"kind": "averaging", "orientation": orientation})
    process = Averaging.from_config(config, seed=0, amplitude=0.5)
    x0 = torch.randn(2, 1, 28, 28)
    assert torch.equal(process.degrade(x0, torch.zeros(2, dtype=torch.int64)), x0)
    flat = process.degrade(x0, torch.full((2,), 28))
    torch.testing.assert_close(flat, process.fully_degraded(process.summary(x0)))


def test_the_named_orders_are_the_reports() -> None:
    assert group_order("outside-in", 28, 0)[:6].tolist() == [0, 27, 1, 26, 2, 25]
    assert group_order("inside-out", 28, 0)[:6].tolist() == [13, 14, 12, 15, 11, 16]
    for name in ("outside-in", "inside-out", "random"):
        assert sorted(group_order(name, 7, 5).tolist()) == list(range(7))


def test_a_random_order_follows_from_the_seed() -> None:
    assert torch.equal(group_order("random", 28, 5), group_order("random", 28, 5))
    assert not torch.equal(group_order("random", 28, 5), group_order("random", 28, 6))


@pytest.mark.parametrize("order", [torch.zeros(28, 1).long(), torch.arange(27)[:, None]])
def test_an_order_that_misses_a_line_is_refused(order: Tensor) -> None:
    with pytest.raises(ValueError, match="each of 28 lines once"):
        Averaging("row", order)


@pytest.mark.parametrize("orientation", ["row", "col"])
def test_noise_leaves_the_means_and_the_averaged_lines_alone(orientation: str) -> None:
    settings = {"kind": "averaging", "orientation": orientation, "group": 4, "noise": 0.8}
    config = AveragingConfig.model_validate(settings)
    process = Averaging.from_config(config, seed=0, amplitude=0.5)
    x0 = torch.randn(300, 1, 28, 28)
    _, eps = process.draw(300, generator(0, Stream.STEP))
    for t in (1, 4, 7):
        at = torch.full((300,), t)
        x_t, plain = process.degrade(x0, at, eps), process.degrade(x0, at)
        torch.testing.assert_close(process.summary(x_t), process.summary(x0), atol=1e-6, rtol=0)
        noise = (x_t - plain) if orientation == "row" else (x_t - plain).transpose(2, 3)
        averaged = process.mask[t]
        assert float(noise[:, :, averaged].abs().max()) < 1e-6
        if t < 7:
            wanted = 0.8 * 0.5 * t / 7 * (1 - 1 / 112) ** 0.5  # an entry's 112 pixels have mean 0
            assert float(noise[:, :, ~averaged].std()) == pytest.approx(wanted, rel=0.01)


def test_a_perfect_network_has_no_loss() -> None:
    config = AveragingConfig(kind="averaging", orientation="row")
    process = Averaging.from_config(config, seed=0, amplitude=0.5)
    x0 = torch.randn(4, 1, 28, 28)
    t = torch.tensor([1, 2, 27, 28])
    assert float(process.losses(lambda x, time: x0, x0, t, None).max()) == 0.0
