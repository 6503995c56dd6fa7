"""Features of the real images: made once, by all who need them, whatever stops or is damaged."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffuse.data.tensors import Split, load_split
from diffuse.evaluation import features, reference_features
from diffuse.runtime.errors import Interrupted
from diffuse.runtime.preemption import StopRequest
from tests import programs


def test_features_are_cached_and_a_damaged_cache_is_made_again(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load_split(data_dir, "test", 50)
    extractor = features.load_extractor("classifier", data_dir, torch.device("cpu"))
    calls = []

    def load(folder: Path, split: str) -> Split:
        calls.append(split)
        return small

    monkeypatch.setattr(reference_features, "load_split", load)
    made = reference_features.real_features(extractor, "test", tmp_path)
    again = reference_features.real_features(extractor, "test", tmp_path)
    assert calls == ["test"]
    assert torch.equal(made.features, again.features)
    assert torch.equal(made.moments.products, again.moments.products)
    torch.testing.assert_close(made.features, extractor(small.images)[0])
    (path,) = (tmp_path / "features").glob("*.h5")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:1000], b""):
        path.write_bytes(damaged)
        assert torch.equal(
            reference_features.real_features(extractor, "test", tmp_path).logits, made.logits
        )
    assert len(calls) == 4, "once, and once after each damage"


def test_features_of_real_images_stop_on_request_and_resume(tmp_path: Path, data_dir: Path) -> None:
    extractor = features.load_extractor("classifier", data_dir, torch.device("cpu"))
    (tmp_path / "mnist.h5").symlink_to(data_dir / "mnist.h5")
    stop, seen = StopRequest(), 0

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal seen
        seen += len(images)
        if seen == 3 * reference_features.PART:
            stop.signal = signal.SIGTERM
        return extractor.network(images)

    counted = dataclasses.replace(extractor, network=network)
    with pytest.raises(Interrupted, match="the same command goes on from here") as caught:
        reference_features.real_features(counted, "test", tmp_path, stop)
    assert caught.value.exit_code == 75
    assert seen == 3 * reference_features.PART
    assert not list((tmp_path / "features").glob("*.h5"))

    first, *_ = (tmp_path / "features").glob(".*.part")
    first.write_bytes(first.read_bytes()[:-1000])
    whole = reference_features.real_features(counted, "test", tmp_path)
    assert seen == 10_000 + reference_features.PART, "all once, and the damaged part once more"
    images = load_split(data_dir, "test").images
    assert torch.equal(whole.features, extractor(images)[0])
    assert not list((tmp_path / "features").glob(".*.part"))


def test_processes_share_the_work_on_the_real_images_features(
    tmp_path: Path, data_dir: Path
) -> None:
    """Two at once put fewer images through the network than each of them alone would."""
    (tmp_path / "mnist.h5").symlink_to(data_dir / "mnist.h5")
    program = f"""
import dataclasses, sys, torch
from pathlib import Path
from diffuse.evaluation import features, reference_features
folder, seen = Path({str(tmp_path)!r}), []
extractor = features.load_extractor("classifier", folder, torch.device("cpu"))
def network(images):
    seen.append(len(images))
    return extractor.network(images)
counted = dataclasses.replace(extractor, network=network)
print("ready", flush=True)
sys.stdin.readline()
real = reference_features.real_features(counted, "test", folder)
print(sum(seen), real.moments.total.sum().item())
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=programs.environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:  # they begin together
        assert process.stdout and process.stdin and process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    said = [process.communicate(timeout=300)[0].splitlines()[-1].split() for process in started]
    assert said[0][1] == said[1][1]
    seen = [int(words[0]) for words in said]
    assert min(seen) > 0
    assert 10_000 <= sum(seen) < 15_000, seen
    (path,) = (tmp_path / "features").glob("*.h5")
    extractor = features.load_extractor("classifier", data_dir, torch.device("cpu"))
    whole = reference_features.real_features(extractor, "test", tmp_path)
    images = load_split(data_dir, "test").images[-1000:]
    torch.testing.assert_close(whole.features[-1000:], extractor(images)[0])
    assert not list(path.parent.glob(".*.part"))
