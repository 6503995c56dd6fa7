"""The results of runs, read from their directories alone.

Damage in one run is named and costs that run only.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diffuse.config import ranges
from diffuse.config.presets import resolve
from diffuse.config.processes import AnyProcess, ProcessConfig
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.rundir import evaluations, weight_facts
from diffuse.rundir.cost import Cost, Spent
from diffuse.rundir.directory import SILENT_AFTER_S, RunDir, counting, silence_s
from diffuse.rundir.evaluations import Evaluation, Figure
from diffuse.runtime import files
from diffuse.runtime.errors import DiffuseError, UserError
from diffuse.runtime.options import shipped_weights, typed_path
from launch.grids.selection import Where

SCORES = ("fid", "kid", "is")
WEIGHTS = (".pth", ".safetensors")  # files that enter a comparison beside runs
_PROCESS: TypeAdapter[ProcessConfig] = TypeAdapter(AnyProcess)
FILES_OF_A_RUN = ("config.yaml", "status.json", "metrics.jsonl")


@dataclass(frozen=True)
class Cell:
    """A figure of one run at one epoch."""

    run: str
    epoch: int
    figure: Figure
    loss: float | None = None  # of training, the mean over that epoch
    spent: Spent | None = None  # by training up to that epoch
    spec: SamplerSpec | None = None  # None: nothing is known of the process

    @property
    def sampler(self) -> str:
        return self.figure.protocol.sampler

    @property
    def source(self) -> str:
        """The start of the sampler: noise, the prior, or test images."""
        return self.figure.protocol.source

    def value(self, key: str) -> float | None:
        """loss, fid, kid, is, mse, psnr or ssim; None where there is none that is finite."""
        found = self.loss if key == "loss" else self.figure.values().get(key)
        return None if found is None or not math.isfinite(found) else found

    @property
    def network_calls(self) -> int | None:
        """Of the sampler, for one image."""
        return self.spec.network_calls if self.spec else None


@dataclass
class Result:
    """One run: its config, its state, its losses and figures. Of a weight file: the known part."""

    name: str
    dir: RunDir
    is_file: bool = False  # weights alone
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)  # epoch, mean loss around it
    cells: list[Cell] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)  # epoch: hash of the weights
    epoch_losses: dict[int, float] = field(default_factory=dict)  # the mean over each epoch
    cost: Cost | None = None

    @property
    def title(self) -> str:
        """`cold/default_28 row`; of a weight file its name."""
        return self.name if self.is_file else self.preset

    @property
    def preset(self) -> str:
        """The name of the preset and the orientation."""
        orientation = self.config.get("process", {}).get("orientation")
        return " ".join(filter(None, [str(self.config.get("preset", self.name)), orientation]))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def kind(self) -> str:
        """`ddpm` or `averaging`; "" where the config cannot be read."""
        return str(self.config.get("process", {}).get("kind", ""))

    @property
    def commit(self) -> str:
        """The code that trained it: a commit, or the launcher's snapshot of one."""
        code = self.manifest.get("code")
        code = code if isinstance(code, dict) else {}
        found = str(code.get("commit") or code.get("snapshot") or "unknown")
        return found[:12] + (" with changes" if code.get("changed") else "")


def read(path: Path, name: str = "") -> Result:
    """The result of the run directory `path`, which need not be there: then that is its problem.

    Or of the weight file `path`, with the figures in it and those that diffuse.evaluate wrote.
    """
    name = (name or path.name).encode(errors="replace").decode()
    if path.suffix in WEIGHTS and path.is_file():
        return _read_weights(path, name)
    run = RunDir(path)
    result = Result(name, run, status=run.status(), manifest=files.read_json(run.manifest_path))
    if not path.is_dir():
        result.problems.append("not started here, or removed")
        return result
    config = None
    try:
        config = run.config()
        result.config = config.model_dump(mode="json")
    except (DiffuseError, OSError) as error:
        result.problems.append(str(error))
    try:
        lines = list(run.lines())
        events = counting(lines)
        result.losses = _curve(events, result.status)
        result.epoch_losses = {
            int(e["epoch"]): float(e["loss"]) for e in events if e["event"] == "epoch"
        }
        result.weights = {
            int(e["epoch"]): str(e["weights"]) for e in events if e["event"] == "checkpoint"
        }
        if config is not None and lines:
            result.cost = Cost.of(lines, config.train.global_batch)
    except (KeyError, TypeError, ValueError, OSError):
        result.problems.append(f"{run.metrics_path}: damaged; its losses are left out")
    for file in map(run.evaluation_path, run.evaluated_epochs()):
        if evaluation := _evaluation(result, file):
            result.cells += _cells(result, evaluation.epoch, evaluation.figures)
    result.problems += _missing(result, config)
    return result


def _read_weights(path: Path, name: str) -> Result:
    result = Result(name, RunDir(path), is_file=True)
    epoch = 0
    if named := weight_facts.PUBLISHED.fullmatch(path.stem):
        family = "ddpm" if named["process"] == "ddpm" else "cold"
        process = {"orientation": named["orientation"]}
        result.config = {"preset": f"{family}/{named['preset']}", "process": process}
    if path.suffix == ".safetensors":
        try:
            facts = weight_facts.read(path)
            result.config, epoch = facts.config, facts.epoch
            figures = [Figure.model_validate(figure) for figure in facts.figures]
            result.cells += _cells(result, epoch, figures)
        except UserError as error:
            result.problems.append(str(error))
        except ValidationError:
            result.problems.append(f"{path}: damaged")
    name_of_file = f"{path.stem}.evaluation.json"
    beside, here = path.with_name(name_of_file), Path(name_of_file)
    for file in [beside] if beside.absolute() == here.absolute() else [beside, here]:
        evaluation = _evaluation(result, file)
        if evaluation is None:
            continue
        if evaluation.checkpoint_sha256 != files.sha256(path):
            result.problems.append(f"{file}: of other weights than {path}; left out")
            continue
        epoch, known = evaluation.epoch, {cell.figure.protocol.key for cell in result.cells}
        new = [f for f in evaluation.figures if f.protocol.key not in known]
        result.cells += _cells(result, epoch, new)
    result.status = {"state": "weights without a run", "epoch": epoch, "epochs": epoch}
    if not result.cells:
        result.problems.append(f"no figures; make some: python -m diffuse.evaluate {path}")
    return result


def _evaluation(result: Result, path: Path) -> Evaluation | None:
    """The figures in a file; damage is noted, and there are none."""
    try:
        return evaluations.read(path)
    except UserError as error:
        result.problems.append(str(error))
        return None


def _cells(result: Result, epoch: int, figures: Iterable[Figure]) -> list[Cell]:
    """Figures of one epoch, with the loss and the cost of the training up to it."""
    process = None
    with contextlib.suppress(ValidationError):  # of a published weight file little is known
        process = _PROCESS.validate_python(result.config.get("process"))
    found = []
    for figure in figures:
        spec = None
        if process is not None:
            with contextlib.suppress(UserError):  # of another version of this project
                spec = SamplerSpec.parse(figure.protocol.sampler, process)
        spent = result.cost.at_epoch.get(epoch) if result.cost else None
        loss = result.epoch_losses.get(epoch)
        found.append(Cell(result.name, epoch, figure, loss, spent, spec))
    return found


def _missing(result: Result, config: Config | None) -> list[str]:
    """Why cells that were asked for are not there."""
    status = result.status
    state = str(status.get("state") or "not begun")
    found = []
    if state in ("failed", "interrupted"):
        at, reason = status.get("epoch", "?"), status.get("reason", "unknown")
        found.append(f"{state} after epoch {at}: {reason}")
    wanted_epochs = config.evaluated_epochs if config else ()
    evaluated = {cell.epoch for cell in result.cells}
    left = [epoch for epoch in wanted_epochs if epoch not in evaluated]
    wanted = config.sampler_specs(config.eval.samplers) if config else ()
    for epoch in sorted(evaluated.intersection(wanted_epochs)):
        used = {cell.sampler for cell in result.cells if cell.epoch == epoch}
        if lacking := [str(spec) for spec in wanted if str(spec) not in used]:
            found.append(f"{_epochs([epoch])} not evaluated by {', '.join(lacking)}")
    if trained := [e for e in left if result.dir.has_epoch(e)]:
        found.append(f"{_epochs(trained)} trained, not evaluated")
    if untrained := [e for e in left if e not in trained]:
        found.append(f"{_epochs(untrained)} not trained ({state}{_silence(status)})")
    return found


def _epochs(epochs: Sequence[int]) -> str:
    return f"epoch{'s' * (len(epochs) > 1)} {ranges.shown(epochs)}:"


def _silence(status: Mapping[str, Any]) -> str:
    silent = silence_s(status)
    if status.get("state") != "running" or not SILENT_AFTER_S < silent < math.inf:
        return ""
    return f", but silent for {silent / 60:.0f} minutes: killed?"


def find(runs_dir: Path, names: Sequence[str]) -> list[Path]:
    """The run directories and weight files to compare: those named, else all runs of `runs_dir`.

    A name is that of a run, of shipped weights, or a path. Raises UserError where one is neither,
    or there is none at all.
    """
    if names:
        shipped = shipped_weights()
        paths = [
            path if (path := typed_path(name)).exists() else shipped.get(name, runs_dir / name)
            for name in names
        ]
        for path in paths:
            if path.suffix in WEIGHTS and not path.is_dir():
                if not path.is_file():
                    raise UserError(f"{path}: no such weight file")
            elif not _is_run(path):
                found = "(it has no config.yaml)" if path.exists() else "or file"
                known = ", ".join(shipped)
                raise UserError(f"{path}: no run directory {found}; the shipped models are {known}")
        return list({path.resolve(): path for path in paths}.values())
    if not runs_dir.is_dir():
        raise UserError(f"{runs_dir}: no such folder; name it by --runs-dir")
    paths = sorted(path for path in runs_dir.iterdir() if _is_run(path))
    if not paths:
        raise UserError(f"{runs_dir}: no runs here yet; train some: python launch/sweep.py")
    return paths


def read_all(paths: Iterable[Path]) -> list[Result]:
    """The results of run directories; where two have one name (a rerun), their paths tell them."""
    paths = list(paths)
    names = [path.name for path in paths]
    return [read(p, str(p) if names.count(p.name) > 1 else p.name) for p in paths]


def chosen(found: Sequence[Result], where: Where, subject: str) -> list[Result]:
    """The results whose config has these settings; UserError where none has."""
    configs = {}
    for result in found:
        with contextlib.suppress(UserError):  # of a weight file little is known
            configs[result.name] = resolve([Layer(result.name, result.config)])
    kept = where.chosen(configs, subject)
    return [result for result in found if result.name in kept]


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in FILES_OF_A_RUN)


def _curve(
    events: Sequence[Mapping[str, Any]], status: Mapping[str, Any], points: int = 200
) -> list[tuple[float, float]]:
    """Losses of single steps, averaged to at most `points` values over the epochs."""
    steps = [(int(e["step"]), float(e["loss"])) for e in events if e["event"] == "step"]
    if not steps:
        return []
    whole = [e["step"] / e["epoch"] for e in events if e["event"] == "epoch"]
    per_epoch = float(whole[0] if whole else status.get("steps_per_epoch") or steps[-1][0])
    width = -(-len(steps) // points)
    chunks = [steps[k : k + width] for k in range(0, len(steps), width)]
    return [
        (statistics.fmean(s for s, _ in c) / per_epoch, statistics.fmean(x for _, x in c))
        for c in chunks
    ]
