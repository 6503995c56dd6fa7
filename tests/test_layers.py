"""Who may import whom: imports point down only, and the launcher never meets torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the foundations up. A module imports from its own layer or one below.
LAYERS = (
    {"errors", "files", "sampler_spec", "config", "presets", "rng", "rundir", "wandb_access"},
    {
        "distributed",
        "progress",
        "preemption",
        "mnist",
        "mnist_source",
        "inception_weights",
        "sample_file",
        "plots",
        "wandb_rows",
    },
    {"data", "ddpm", "averaging", "models", "ema", "noise", "checkpoint"},
    {"prior", "samplers", "state", "recorder", "manifest", "remaining", "wandb_mirror"},
    {"generate", "reference", "pictures", "classifier", "metrics", "evaluation_file", "tracking"},
    {"features", "trained"},
    {"reference_features", "generated"},
    {"evaluation"},
    {"judgement"},
    {"training"},
    {"train", "sample", "prepare", "evaluate", "node_check"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module named in an import statement, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_diffuse(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path))
    return {p[1] for p in parts if p[0] == "diffuse" and len(p) > 1} & LEVEL.keys()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "diffuse").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules("diffuse"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    name = name_of(path)
    if name == "__init__":
        return
    assert name in LEVEL, f"{name} has no layer yet: put it into LAYERS"
    above = {other for other in of_diffuse(path) if LEVEL[other] > LEVEL[name]}
    assert not above, f"{name} imports {above} from above itself"


def test_the_library_never_imports_the_launcher() -> None:
    for path in modules("diffuse"):
        assert not any(name.split(".")[0] == "launch" for name in imported(path)), path


@pytest.mark.parametrize("module", ["torch.distributed", "wandb"])
def test_one_file_knows_about_it(module: str) -> None:
    """One file knows about ranks, one about W&B."""
    knowing = [
        path.name
        for package in ("diffuse", "launch")
        for path in modules(package)
        if any(name == module or name.startswith(f"{module}.") for name in imported(path))
    ]
    assert len(knowing) <= 1, knowing


def test_the_launcher_and_the_config_import_no_torch() -> None:
    names = [f"launch.{p.stem}" for p in modules("launch") if p.stem != "__init__"]
    names += ["diffuse.config", "diffuse.rundir", "diffuse.files", "diffuse.prepare"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
