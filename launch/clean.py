"""Remove files that nothing needs any more: `python launch/clean.py` shows it, `--yes` removes it.

Code that no job and no unfinished run uses, files of jobs that have ended, checkpoints between the
requested epochs, logs of attempts that a later one took over. Never a result: no checkpoint of a
requested epoch, no evaluation, picture, metric or manifest.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    runs_dir: options.RunsDir = options.RUNS,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the files instead of listing them.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show, or with --yes remove, files that nothing needs any more."""
    from diffuse.runtime.console import screen
    from launch.inspection.removable import removable, remove, submissions_held

    if not runs_dir.is_dir():
        raise errors.UserError(f"{runs_dir}: no such folder; name it by --runs-dir")
    root, out = runs_dir.absolute(), screen(stderr=as_json)
    with submissions_held(root) if yes else contextlib.nullcontext():
        found = removable(root)
        for kind in dict.fromkeys(item.kind for item in found):
            items = [item for item in found if item.kind == kind]
            out.print(f"{kind}: {len(items)}, {sum(i.size for i in items) / 1e6:.1f} MB")
            for item in items:
                path = item.path.relative_to(root)
                out.print(f"  {path} ({item.why})", markup=False, soft_wrap=True)
        for item in found if yes else ():
            remove(item)
    if as_json:
        listed = [{**vars(item), "path": str(item.path)} for item in found]
        print(json.dumps({"removed": yes, "items": listed}, indent=2))
    size = sum(item.size for item in found) / 1e6
    if not found:
        out.print("nothing to remove")
    elif yes:
        out.print(f"removed {size:.1f} MB")
    else:
        out.print(f"{size:.1f} MB would be removed; --yes removes it")


if __name__ == "__main__":
    errors.run(app)
