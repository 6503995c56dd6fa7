"""Who may import whom: imports point down only, and the launcher never meets torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.programs import ROOT

# From the foundations up: a file imports from its own folder or from those on lines above.
DIFFUSE = (
    ("runtime",),
    ("config", "data"),
    ("rundir", "models"),
    ("tracking", "sampling"),
    ("evaluation",),
    ("training",),
    ("model",),
    ("train", "sample", "prepare", "evaluate", "export", "node_check"),
)
LAUNCH = (
    ("jobs",),
    ("grids",),
    ("slurm", "results"),
    ("comparison",),
    ("local", "inspection"),
    ("sweep", "status", "compare", "doctor", "clean", "sync", "dashboard", "settings"),
)
LEVELS = {
    f"{package}.{name}": level
    for package, order in (("diffuse", DIFFUSE), ("launch", LAUNCH))
    for level, names in enumerate(order)
    for name in names
}
FILES = [
    path for package in ("diffuse", "launch") for path in sorted((ROOT / package).rglob("*.py"))
]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


class WithoutTypes(ast.NodeTransformer):
    """Leaves out `if TYPE_CHECKING:`."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = ast.unparse(node.test) == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def imported(path: Path, with_types: bool = True) -> set[str]:
    """Every module named in an import statement, also inside functions."""
    names: set[str] = set()
    tree: ast.AST = ast.parse(path.read_text())
    for node in ast.walk(tree if with_types else WithoutTypes().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def folder_of(module: str) -> str:
    """`diffuse.rundir.directory` -> `diffuse.rundir`; a program is a folder of its own."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    own = folder_of(module)
    if own in ("diffuse", "launch"):
        return  # diffuse.load, imported when asked for
    assert own in LEVELS, f"{own} has no place yet: put it into the order of folders"
    used = {folder_of(name) for name in imported(path)} & LEVELS.keys()
    package = own.split(".")[0]
    higher = {
        other
        for other in used - {own}
        if other.startswith(package) and LEVELS[other] >= LEVELS[own]
    }
    assert not higher, f"{module} imports {higher}"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, those for types do not."""
    # `diffuse` itself holds diffuse.load, which is imported when asked for.
    files = {module_of(path): path for path in FILES if module_of(path) != "diffuse"}
    used = {
        name: imported(path, with_types=False) & files.keys() - {name}
        for name, path in files.items()
    }
    TopologicalSorter(used).prepare()  # CycleError names the circle


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
    launcher = (path.relative_to(ROOT).with_suffix("") for path in modules("launch"))
    names = [".".join(path.parts) for path in launcher if path.name != "__init__"]
    names += [
        "diffuse.config.schema",
        "diffuse.rundir.directory",
        "diffuse.runtime.files",
        "diffuse.prepare",
    ]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_of_other_programs_is_decoded_without_failing(path: Path) -> None:
    """Names of jobs, people and files may be in any encoding, or in none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("text") != "True" or "errors" in given, f"{path}:{node.lineno}"
