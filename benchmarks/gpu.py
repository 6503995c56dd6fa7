"""A GPU held against the claims of the README and docs/gpu.md, and its speeds: `make gpu`.

Claims are the tests marked `cuda`, each with its verdict; speeds are measured beside them. One page
of Markdown goes to a file and to the terminal, within eight minutes.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import torch
import typer

from benchmarks import gpu_speed
from benchmarks.gpu_speed import Place, markdown
from benchmarks.side_by_side import side_by_side
from diffuse import ROOT
from diffuse.data.staging import stage_mnist
from diffuse.runtime import console, device, errors, files, options
from diffuse.runtime.errors import EnvironmentFailed, UserError, first_line

# Those of whole programs first: a GPU may be set to take no two processes.
TESTS = ("tests/cuda/test_gpu_runs.py", "tests/cuda/test_gpu_steps.py")
CLAIMS_SHARE = 0.6  # of the time
VERDICTS = {"failure": "**fails**", "error": "**fails**", "skipped": "not checked"}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    data_dir: options.DataDir = options.DATA,
    output: Annotated[Path, options.output_file("Markdown file to write.")] = Path("gpu.md"),
    on: Annotated[
        str, typer.Option("--device", help="cuda; cpu tries the command where there is no GPU.")
    ] = "cuda",
    minutes: Annotated[
        float, typer.Option(min=0.1, help="A part that has not begun by then is left out.")
    ] = 8.0,
    only: Annotated[
        list[str] | None, typer.Option(help="A part, such as claims or steps; repeatable.")
    ] = None,
) -> None:
    """Check and measure a GPU, and write a page about it."""
    parts: dict[str, Callable[[Place], str]] = {
        "claims": claims,
        "side_by_side": side_by_side,
        "steps": gpu_speed.steps,
        "log_and_save": gpu_speed.log_and_save,
        "sampling": gpu_speed.sampling,
    }
    if on not in ("cuda", "cpu"):
        raise UserError(f"--device {on}: allowed are cuda, cpu")
    if unknown := {*(only or ())} - parts.keys():
        raise UserError(f"--only {min(unknown)}: no such part; allowed: {', '.join(parts)}")
    if on == "cuda" and not torch.cuda.device_count():
        raise EnvironmentFailed(
            "torch sees no GPU here, so there is nothing to check or to measure; --device cpu"
            " tries the command itself"
        )
    stage_mnist(data_dir)
    place = Place(on, data_dir, time.monotonic() + 60 * minutes)
    pages = {}
    for name, part in parts.items():
        if only and name not in only:
            continue
        console.note(f"{name} ...")
        try:
            pages[name] = part(place) if place.has_time else "not measured: the time was up"
        except Exception as error:
            pages[name] = f"**failed**: {first_line(error)}"
    title = f"# {device.device_name(place.device)}, torch {torch.__version__}"
    sections = [f"## {name.replace('_', ' ').capitalize()}\n\n{pages[name]}" for name in pages]
    text = "\n\n".join([title, environment(place.device), *sections]) + "\n"
    files.write_text(output, text)
    print(text)
    if "**" in text:
        raise EnvironmentFailed(f"{output}: see what is printed there in bold type")


def environment(place: torch.device) -> str:
    """All that a figure depends on beside the code."""
    facts = {"Python": platform.python_version(), "torch": torch.__version__}
    facts |= {name: value or "none" for name, value in device.software(place).items()}
    facts["precision of train.amp=auto"] = device.resolve_precision("auto", place)
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        facts |= {
            "GPUs": str(torch.cuda.device_count()),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 2**30:.0f} GB",
        }
    else:
        facts["device"] = "the CPU: these figures are no GPU's"
    return markdown(("environment", ""), [*facts.items()])


def claims(place: Place) -> str:
    """Each test's claim, its verdict, and its findings."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        limit = CLAIMS_SHARE * place.seconds_left
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
        command += [*TESTS, "-m", "cuda", f"--device={place.name}", f"--junit-xml={results}"]
        command += ["-o", "junit_family=xunit1"]  # which has properties
        command += [f"--timeout={limit:.0f}", f"--session-timeout={limit:.0f}"]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, env=place.environment())
        if not results.exists():
            raise EnvironmentFailed("pytest has left no results; its own words are above")
        cases = [verdict(case) for case in ElementTree.parse(results).iter("testcase")]
    return markdown(("claim", "verdict", "seen"), cases)


def verdict(case: ElementTree.Element) -> tuple[str, str, str]:
    """A row of the table for a test case of pytest's XML."""
    name, _, parameter = case.attrib["name"].removeprefix("test_").partition("[")
    claim = name.replace("_", " ") + (f" ({parameter[:-1]})" if parameter else "")
    values = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
    for result in case:
        if result.tag in VERDICTS:
            reason = next(iter(result.attrib.get("message", "").splitlines()), "")
            return claim, VERDICTS[result.tag], reason
    return claim, "holds", values.get("seen", "")


if __name__ == "__main__":
    errors.run(app)
