"""docs/settings.md has every setting, and the meaning of each."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel

from launch.inspection import settings_page
from tests import programs
from tests.programs import ROOT


def test_the_page_is_the_one_that_its_program_prints() -> None:
    done = programs.run("launch/settings.py")
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == done.stdout, "python launch/settings.py > docs/settings.md"


def test_every_setting_has_a_row_and_a_meaning() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for _, prefix, section in settings_page.TABLES:
        for name, field in section.model_fields.items():
            if field.discriminator is None and not _is_section(field.annotation):
                row = f"| `{prefix}{field.alias or name}` | "
                assert row in page, row
                assert field.description, f"{section.__name__}.{name}"


def _is_section(annotation: object) -> bool:
    is_class = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_class and not get_args(annotation)
