"""A step as one CUDA graph, on a stand-in for graphs that records torch's operations on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError
from diffuse.training.batches import Batch
from diffuse.training.graph import WARM_UP, StepGraph, is_wanted
from diffuse.training.state import TrainState
from tests.programs import assert_same

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Tape(TorchDispatchMode):
    """Like a capture: operations are noted with the tensors and numbers that they were called with.

    Those that change a tensor are not carried out until the replay, which leaves each result where
    the first one was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            result = args[0] if func._schema.returns else None
        else:
            result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if not (func._schema.is_mutable or func.is_view):
                for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(place, torch.Tensor):
                        place.copy_(value)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are tapes, and streams are nothing; operations so small are for one thread."""
    stand_ins: dict[str, Callable[..., Any]] = {
        "CUDAGraph": Tape,
        "graph": lambda tape: tape,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(preset: str, *settings: str) -> Config:
    common = ("train.global_batch=8", "train.warmup_steps=6", "train.lr=1e-3")
    return load_config(preset, [parse_set([*common, *settings])])


def batch_of(state: TrainState, step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    x0 = torch.rand(8, 1, 28, 28, generator=rng) - 0.5
    t, eps = state.process.draw(8, rng)
    return Batch(x0, t, eps, dropout_seed=step)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("ddpm/default", ("model.channels=4,4", "train.ema=0.9", "train.grad_clip=0.05")),
        ("ddpm/unet", ("model.channels=8,8", "model.blocks=1", "model.dropout=0.1")),
        ("cold/default_28", ("model.channels=4", "process.orientation=row", "train.accumulate=2")),
    ],
)
def test_replayed_steps_are_the_steps_themselves(
    tapes: None, preset: str, settings: tuple[str, ...]
) -> None:
    config = config_of(preset, *settings)
    plain, graphed = (TrainState.fresh(config, CPU, "fp32", as_graph=True) for _ in range(2))
    plain.graph = None
    results = []
    for step in range(1, WARM_UP + 5):
        pair = [state.update(state.network, batch_of(state, step)) for state in (plain, graphed)]
        results.append(pair)
    assert graphed.graph is not None and isinstance(graphed.graph.graph, Tape)
    for ours, recorded in results:  # all of them at the end: none may be overwritten
        assert torch.equal(ours[0], recorded[0]) and torch.equal(ours[1], recorded[1])
    assert_same(graphed.payload(), plain.payload(), "")


@pytest.mark.parametrize("preset", ["ddpm/default", "ddpm/unet"])
def test_a_rate_in_a_tensor_makes_the_step_of_a_number_but_for_its_last_bits(preset: str) -> None:
    config = config_of(preset, "model.channels=8,8")
    states = [TrainState.fresh(config, CPU, "fp32", as_graph=on) for on in (True, False)]
    states[0].graph = None
    for state in states:
        state.update(state.network, batch_of(state, 1))
    left, right = (dict(state.network.state_dict()) for state in states)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-8)


def test_a_run_is_the_same_with_and_without_a_graph() -> None:
    configs = [config_of("ddpm/unet", f"train.graph={on}") for on in ("auto", "true", "false")]
    assert len({config.run_name for config in configs}) == 1


def test_a_number_of_pythons_stays_as_it_was_recorded(tapes: None) -> None:
    calls, total = 0, torch.zeros(())

    def work(forward: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        return batch.x0 * calls, total.add_(1)

    graph = StepGraph(work)
    results = []
    for step in range(1, WARM_UP + 4):
        x0 = torch.full((1,), float(step))
        results.append(graph(torch.nn.Identity(), Batch(x0, x0, x0)))
    assert [int(product) for product, _ in results[WARM_UP:]] == [4 * 4, 5 * 4, 6 * 4]
    assert calls == WARM_UP + 1 and int(total) == WARM_UP + 3


@pytest.mark.parametrize(
    ("device", "size", "precision", "settings", "message"),
    [
        (CPU, 1, "bf16", (), "needs a GPU"),
        (GPU, 2, "bf16", (), "is for one rank, not 2"),
        (GPU, 1, "fp16", (), "is for bf16 and fp32, not fp16"),
        (GPU, 1, "bf16", ("train.compile=true",), "does not go with"),
    ],
)
def test_a_step_that_cannot_be_a_graph_is_none_or_refused_where_it_is_asked_for(
    device: torch.device, size: int, precision: Any, settings: tuple[str, ...], message: str
) -> None:
    def wanted(graph: str) -> bool:
        config = config_of("ddpm/default", *settings, f"train.graph={graph}")
        return is_wanted(config.train, World(0, 0, size, device), precision)

    assert not wanted("auto") and not wanted("false")
    with pytest.raises(UserError, match=message) as caught:
        wanted("true")
    assert "\n" not in str(caught.value)


def test_a_step_is_a_graph_wherever_it_can_be_unless_it_is_refused() -> None:
    configs = {
        on: config_of("ddpm/default", f"train.graph={on}") for on in ("auto", "true", "false")
    }
    one_gpu = World(0, 0, 1, GPU)
    wanted = {on: is_wanted(config.train, one_gpu, "bf16") for on, config in configs.items()}
    assert wanted == {"auto": True, "true": True, "false": False}
