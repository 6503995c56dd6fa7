"""Every setting as Markdown: `python launch/settings.py > docs/settings.md`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffuse.runtime import errors

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main() -> None:
    """Print every setting: its key, values, default and meaning."""
    from launch.inspection import settings_page

    print("\n".join(settings_page.lines()))


if __name__ == "__main__":
    errors.run(app)
