"""Options of programs: every path is read in one place, and help explains each option."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from diffuse.runtime import options
from tests.programs import ROOT

PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("diffuse", "launch")
    for path in (ROOT / package).rglob("*.py")
    if "typer.Typer(" in path.read_text()
)


def declared(module: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and declaration of each option and argument of a program."""
    main = importlib.import_module(module).main
    for name, hint in get_type_hints(main, include_extras=True).items():
        if name != "return":
            kind, declaration = get_args(hint)
            yield name, kind, declaration


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_path_on_a_command_line_is_read_in_one_place(module: str) -> None:
    for name, kind, declaration in declared(module):
        if kind is Path or Path in get_args(kind):
            parsers = (options.typed_path, options.typed_file, options.typed_model)
            assert declaration.parser in parsers, name


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_option_has_a_help_text(module: str) -> None:
    assert not [name for name, _, declaration in declared(module) if not declaration.help]


def test_the_data_folder_comes_from_the_option_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def main(data_dir: options.DataDir = options.DATA) -> None:
        print(data_dir)

    def seen(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out.strip()

    for value, folder in ((None, "data"), ("", "data"), ("/scratch/x", "/scratch/x")):
        if value is None:
            monkeypatch.delenv("DIFFUSE_DATA", raising=False)
        else:
            monkeypatch.setenv("DIFFUSE_DATA", value)
        assert seen() == str(options.default_data_dir()) == folder
        assert seen("--data-dir=here") == "here"


def test_a_folder_is_refused_as_a_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="is a directory"):
        options.typed_file(str(tmp_path))
    assert options.typed_file(str(tmp_path / "x")) == tmp_path / "x"
