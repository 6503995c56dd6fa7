"""The image's definition, and the environments that are to be the same everywhere."""

from __future__ import annotations

import tomllib

import yaml

from tests.programs import ROOT


def test_conda_pip_and_the_image_install_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = sorted([*project["dependencies"], *project["optional-dependencies"]["train"]])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert sorted(conda[-1]["pip"]) == expected
    assert f"python{project['requires-python']}" in conda
    # The image takes pyproject.toml's own list.
    assert "PACKAGES=/opt/diffuse[train]" in (ROOT / "Apptainer.def").read_text()
