"""The benchmarks' command line; the figures themselves are for `make bench`."""

from __future__ import annotations

from pathlib import Path

from tests import programs


def test_an_unknown_benchmark_is_refused_with_all_names(data_dir: Path) -> None:
    done = programs.run("benchmarks", f"--data-dir={data_dir}", "--only=nonsense")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for name in ("training_step", "logging_cost", "cached_fid", "inception_features"):
        assert name in done.stderr
