"""The benchmarks' command; the figures themselves are for `make bench`."""

from __future__ import annotations

from pathlib import Path

from tests import programs


def test_an_unknown_benchmark_is_refused_with_all_names(data_dir: Path) -> None:
    done = programs.run("benchmarks", f"--data-dir={data_dir}", "--only=nonsense")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    names = (
        *("training_step", "training_precision", "logging_cost", "averaging", "sampling"),
        *("sampling_precision", "cached_fid", "classifier_features", "inception_features"),
        *("ranks", "start", "dry_run"),
    )
    assert ", ".join(names) in done.stderr
