"""Whatever is typed or named: a known exit code, one line where it fails, and nothing is touched.

The programs run as forks (tests/drill/program.py), so that hundreds of inputs take seconds.
`make test` tries the same few inputs each time, `make drill` more of them, and others each time.
"""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from diffuse.config.presets import CONFIGS, load_config, parse_set
from diffuse.config.schema import Config
from diffuse.models import build, build_process
from diffuse.rundir import checkpoints
from tests import programs
from tests.drill import program
from tests.drill.specimen import Specimen
from tests.lab import DDPM
from tests.models.test_networks import ReportNetwork, ddpm_buffers

CODES = (0, 1, 2, 75, 130)
PROGRAMS = {  # with the words by which each comes to look at the rest
    "diffuse.train": ["--preset=ddpm/default"],
    "diffuse.sample": ["run", "--device=cpu"],
    "diffuse.evaluate": ["run", "--device=cpu"],
    "diffuse.prepare": ["--source=idx"],
    "diffuse.evaluation.classifier": [],
    "launch.sweep": ["--grid=grid.yaml", "--cluster=local"],
    "launch.status": ["--runs-dir=."],
    "launch.compare": ["run"],
    "launch.clean": ["--runs-dir=."],
    "launch.doctor": ["--cluster=local"],
    "launch.sync": ["--runs-dir=."],
    "launch.dashboard": ["--dry-run"],
}
LATE = (
    "diffuse.training.loop",
    "diffuse.evaluation.evaluator",
    "diffuse.sampling.trained_model",
    "launch.grids.plan",
    "launch.comparison.page",
)
ENV = {  # nothing is fetched, and nothing is found that the test has not put there
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    ),
    "NETRC": os.devnull,
    "DIFFUSE_DATA": "no data",
    "SLURM_CONF": os.devnull,
}
RUNS_IT = "touch ran"  # the command that must never run
NASTY = st.sampled_from(
    [
        *("", " ", "0", "1", "-1", "2", "nan", "inf", "-inf", "1e999", "0x10", "1_0", str(2**63)),
        *(str(10**30), "true", "null", "~", "[]", "{}", "[[[", "a: b: c", "&a [*a]", "row", "cpu"),
        *("--", "-x", "--help", "a=b", "=", "train.lr=", "seed=1", "train=3", "train.lr.x=1"),
        *(f"$({RUNS_IT})", f"`{RUNS_IT}`", f"; {RUNS_IT}", f"'; {RUNS_IT}; '", f"a\n{RUNS_IT}\n"),
        *(
            f"!!python/object/apply:os.system ['{RUNS_IT}']",
            "!!python/name:os.system",
            "!!binary a",
        ),
        *("..", "/", ".", "missing/file", "grid.yaml", "file", "\udc80", "%s{0}", "☃", "\x1b[31m"),
        *("ddpm/default", "cold/default_7", "quick", "local", "slurm", "ddim-1e9", "direct"),
    ]
)
VALUE = NASTY | st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=8)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | NASTY
YAML = st.recursive(
    SCALAR,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(SCALAR, below, max_size=3),
    max_leaves=6,
)
# How many inputs, and whether the same ones each time, is a profile's matter (tests/conftest.py).
slow = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Loaded here, so that the forks need not."""
    torch.set_num_threads(1)  # a pool of threads would not live through a fork
    for name in (*PROGRAMS, *LATE):
        importlib.import_module(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A run directory."""
    folder = tmp_path_factory.mktemp("trained")
    done = programs.run("diffuse.train", *Specimen("ddpm", 1, folder, data_dir).arguments(folder))
    assert done.returncode == 0, done.stderr
    return programs.only_run(folder / "runs").path


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    shutil.copytree(trained, tmp_path / "here" / "run")
    (tmp_path / "here" / "file").write_bytes(b"\x80\0 not a file of ours")
    (tmp_path / "here" / "grid.yaml").write_text(DDPM % 1)
    return tmp_path / "here"


def run(module: str, arguments: list[str], folder: Path) -> str:
    """Run it in `folder`; its output. Where it is refused the folder is as before."""
    log = folder.parent / "log"
    log.unlink(missing_ok=True)
    before = files_in(folder)
    child = program.start(module, *arguments, log=log, before=lambda: os.chdir(folder), **ENV)
    child.wait()
    if module != "launch.doctor" or "checks failed" not in child.said():  # its screen says why
        program.assert_explained(child, *CODES)
    if child.code == 2:
        assert files_in(folder) == before, "refused, and yet written"
    assert not (folder / "ran").exists()
    return child.said()


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Path to content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def command_line(module: str) -> st.SearchStrategy[list[str]]:
    """Options that the program has, with values good and bad, and words that it does not expect."""
    known = typer.main.get_command(importlib.import_module(module).app).params
    names = [option for parameter in known for option in parameter.opts if option[0] == "-"]
    flags = {p.opts[-1] for p in known if getattr(p, "is_flag", False)}
    option = st.sampled_from(names).flatmap(
        lambda name: st.just([name]) if name in flags else VALUE.map(lambda value: [name, value])
    )
    words = st.lists(option | VALUE.map(lambda word: [word]), max_size=4)
    return words.map(lambda parts: [word for part in parts for word in part])


@pytest.mark.parametrize("module", PROGRAMS)
def test_no_command_line_breaks_a_program(module: str, folder: Path) -> None:
    @slow
    @given(words=command_line(module), bare=st.booleans())
    def holds(words: list[str], bare: bool) -> None:
        run(module, words if bare else PROGRAMS[module] + words, folder)

    holds()


def keys(model: type[BaseModel] = Config) -> Iterator[str]:
    """The config's keys, as --set has them."""
    for name, field in model.model_fields.items():
        branches = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [b for b in branches if isinstance(b, type) and issubclass(b, BaseModel)]
        yield name
        yield from (f"{name}.{below}" for section in sections for below in keys(section))


@slow
@given(
    preset=st.sampled_from(["ddpm/default", "ddpm/unet", "cold/default_7", "cold/unet"]),
    changes=st.lists(st.tuples(st.sampled_from(sorted(set(keys()))), VALUE), max_size=3),
)
@example(preset="ddpm/default", changes=[("train.epochs", "9" * 5000)])
@example(preset="ddpm/default", changes=[("train.lr", "[" * 5000)])
def test_no_setting_breaks_training(
    preset: str, changes: list[tuple[str, str]], folder: Path
) -> None:
    arguments = [f"--preset={preset}", *(f"--set={key}={value}" for key, value in changes)]
    assert "error: " in run("diffuse.train", arguments, folder)  # there is no data
    said = run("diffuse.train", [*arguments, "--where"], folder)
    if not said.startswith("error: "):
        name = said.removeprefix("runs/").removesuffix("\n")
        assert set(name) <= set(string.ascii_letters + string.digits + "-_."), name


PRESETS = [path.read_bytes() for path in sorted(CONFIGS.glob("*/*.yaml"))]
MUTATION = st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 40))


def mutated(content: bytes, mutations: list[tuple[int, bytes, int]]) -> bytes:
    """Each (place, bytes, length) puts the bytes for `length` others at a place."""
    for place, put, length in mutations:
        place %= len(content) + 1
        content = content[:place] + put + content[place + length :]
    return content


BYTES = st.builds(mutated, st.sampled_from(PRESETS), st.lists(MUTATION, max_size=3))
CHANGED = st.builds(
    lambda base, key, value: yaml.dump({**yaml.safe_load(base), key: value}).encode(),
    st.sampled_from(PRESETS),
    st.sampled_from(["process", "model", "train", "runs", "cluster", "kind", "time", "extra"]),
    YAML,
)
ENTRY = st.dictionaries(
    st.sampled_from(["preset", "orientation", "epochs", "seeds", "set", "cluster", "x"]), YAML
)
GRID = st.builds(
    lambda runs, cluster: yaml.dump({"runs": runs, "cluster": cluster}).encode(),
    YAML | st.lists(ENTRY.map(lambda entry: {"preset": "ddpm/default", **entry}), max_size=2),
    YAML,
)
FILES = BYTES | CHANGED | GRID | YAML.map(lambda value: yaml.dump(value).encode())
HOSTILE = f"runs: !!python/object/apply:os.system ['{RUNS_IT}']".encode()
ANCHORS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 107)
)


@slow
@given(content=FILES)
@example(content=HOSTILE)
@example(content=b"a: &a {b: *a}")
@example(content=ANCHORS)
@example(content=b"[" * 5000)
@example(content="kind: slurm\nextra: {a: 1\u2028}".encode("utf-16"))
def test_no_yaml_file_breaks_a_program(content: bytes, folder: Path) -> None:
    (folder / "file.yaml").write_bytes(content)
    for module, arguments in (
        ("diffuse.train", ["--preset=file.yaml"]),
        ("diffuse.train", ["--config=file.yaml"]),
        ("launch.sweep", ["--grid=file.yaml", "--dry-run", "--json", "--cluster=local"]),
        ("launch.sweep", ["--grid=file.yaml"]),
        ("launch.sweep", ["--grid=grid.yaml", "--cluster=file.yaml"]),
    ):
        run(module, arguments, folder)


TENSOR = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]),
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30]),
)
PLAIN = st.none() | st.integers() | st.floats() | NASTY
GONE = object()
CHANGE = st.tuples(st.integers(0, 99), st.just(GONE) | TENSOR | PLAIN | st.just({}) | st.just([]))


def network_files() -> dict[str, dict[str, Any]]:
    """A checkpoint's content by process, and the report's of both kinds, of few weights."""
    content: dict[str, dict[str, Any]] = {}
    for preset, layers in (("ddpm/default", []), ("cold/default_7", ["process.orientation=row"])):
        config = load_config(preset, [parse_set(["model.channels=2", "train.ema=0.9", *layers])])
        state = build(config.model).state_dict()
        content[f"{config.process.kind}.pt"] = {
            "config": config.model_dump(mode="json"),
            "model": state,
            "ema": state,
            "process": build_process(config).state_dict(),
            "epoch": 1,
            "step": 3,
        }
    state = {f"gt.{k}": v for k, v in ReportNetwork((2,), nn.GELU).state_dict().items()}
    content["ddpm_mnist_20_default.pth"] = {**state, **ddpm_buffers(20)}
    content["custom_mnist_20_col_default_7.pth"] = {
        **state,
        "cols_t": torch.randperm(28).reshape(7, 4),
    }
    return content


def changed(content: Any, changes: list[tuple[int, Any]]) -> Any:
    """A copy in which the values at some places, whatever their depth, are gone or others."""
    content = copy.deepcopy(content)
    for place, value in changes:
        holders = [(holder, key) for holder in dicts_in(content) for key in holder]
        holder, key = holders[place % len(holders)]
        if value is GONE:
            del holder[key]
        else:
            holder[key] = value
    return content


def dicts_in(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield content
    for below in content.values():
        if isinstance(below, dict):
            yield from dicts_in(below)


@pytest.mark.parametrize("name", list(network_files()))
def test_no_weight_file_breaks_a_program(name: str, folder: Path, data_dir: Path) -> None:
    whole = network_files()[name]
    arguments = [name, "-n1", "--device=cpu", "--output=out", f"--data-dir={data_dir}"]

    def sampled() -> str:
        shutil.rmtree(folder / "out", ignore_errors=True)
        return run("diffuse.sample", arguments, folder)

    @slow
    @given(changes=st.lists(CHANGE, max_size=3), damage=st.lists(MUTATION, max_size=2))
    @example(changes=[], damage=[(0, b"", 40)])
    @example(changes=[(0, torch.zeros(()))], damage=[])
    @example(changes=[(1, torch.zeros(()))], damage=[])
    @example(changes=[(3, torch.zeros(()))], damage=[])
    def holds(changes: list[tuple[int, Any]], damage: list[tuple[int, bytes, int]]) -> None:
        content = changed(whole, changes)
        if name.endswith(".pth"):
            torch.save(content, folder / name)
        else:
            checkpoints.write(folder / name, content)
        (folder / name).write_bytes(mutated((folder / name).read_bytes(), damage))
        sampled()

    if name.endswith(".pth"):
        torch.save(whole, folder / name)
    else:
        checkpoints.write(folder / name, whole)
    assert "out/" in sampled()  # as it is, it works
    holds()
