"""Tables of plans and of work in progress, for people: rich on a terminal, plain lines in a log."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from diffuse.config import ranges
from diffuse.runtime import console
from launch.grids.estimate import Estimate, in_short, megabytes, unit
from launch.grids.listing import Listing
from launch.grids.plan import Planned
from launch.grids.selection import point

if TYPE_CHECKING:  # a dry run shows its plan without submitit
    from launch.local.pool import Outcome

STYLES = {
    "done": "green",
    "training": "cyan",
    "evaluating": "cyan",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "yellow",
    "resume": "yellow",
    "extend": "yellow",
    "new": "",
    "queued": "dim",
    "left": "dim",
}
LINE_EVERY_S = 30.0
NOT_COUNTED = "pictures in training and the start of jobs are not counted"
NOT_DRAWN = "; no such run was evaluated yet: its evaluation follows from its training steps"
UNKNOWN = "no run like it yet: --probe measures it"
COLUMNS = ("run", "state", "epoch", "loss", "ETA", "images/s")


def plan_listing(planned: Sequence[Planned]) -> Listing:
    """One entry a run, i.e. a training job, with its cells: which there are, and which are done."""
    columns = ("run", "settings", "state", "epochs", "done", "evaluated")
    listing = Listing(columns, ("settings", "evaluated"))
    for p in planned:
        listing.add(
            {
                "run": p.name,
                "settings": point(p.run.axes),
                "state": Text(p.state, STYLES[p.state]),
                "epochs": ranges.shown(p.run.epochs),
                "done": Text(ranges.shown(sorted(p.have)), "green"),
                "evaluated": ranges.shown(sorted(p.evaluated)),
            },
            remark=p.detail if p.detail != p.state else "",
        )
    return listing


def show_estimate(found: Estimate, title: str, as_json: bool, out: Console) -> None:
    """Print it: an entry for each run with work left, their sum, and remarks."""
    if as_json:
        print(json.dumps(found.as_plain(), indent=2))
        return
    columns = ("run", "steps", "s/step", "hours", "training", "evaluation", "time", "disk", "by")
    listing = Listing(columns, columns[4:])
    for row in found.rows:
        cells = {"run": row.planned.name, "steps": f"{row.steps:,}"}
        if row.speed is not None:
            cells |= {
                "s/step": f"{row.speed.step_s:.2g}",
                "hours": f"{in_short(row.hours)} {unit(row.has_gpus)}",
                "training": console.duration(row.seconds),
                "evaluation": console.duration(row.evaluation_s) if row.evaluation_s else "",
                "time": f"{row.time} min" if row.time else "",
                "disk": megabytes(row.disk),
                "by": str(row.speed),
            }
        listing.add(cells, remark="" if row.speed else UNKNOWN)
    out.print(title, soft_wrap=True)
    if found.rows:
        listing.show(out)
    is_drawn = all(row.speed.is_drawn for row in found.rows if row.speed and row.evaluation_s)
    not_counted = NOT_COUNTED + ("" if is_drawn else NOT_DRAWN)
    for line in (found.summary(), not_counted, *found.remarks()):
        out.print(line, soft_wrap=True)


class SweepDisplay:
    """Shows a sweep while it runs: a live table, or a line for each thing that happens."""

    def __init__(self, target: Console, title: str) -> None:
        self.console, self.title = target, title
        self.live: Live | None = None
        self.states: dict[str, str] = {}
        self.progress: dict[str, tuple[int, float]] = {}  # epoch and when it was last shown

    @contextmanager
    def shown(self) -> Iterator[SweepDisplay]:
        """Keep the screen up to date inside the block."""
        if not console.is_live(self.console):
            yield self
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self.live:
            yield self
        self.live = None

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Show the outcomes as they are now."""
        if self.live is not None:
            self.live.update(self._progress(outcomes), refresh=True)
        else:
            for outcome in outcomes:
                self._say_change(outcome)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _progress(self, outcomes: Sequence[Outcome]) -> Group:
        order = ["training", "evaluating", "failed", "interrupted", "queued", "left", "done"]
        listing = Listing(COLUMNS, COLUMNS[5:], max(4, self.console.height - 6))
        for outcome in sorted(outcomes, key=lambda o: order.index(o.state)):
            facts = _facts(outcome)
            state = Text(outcome.state, STYLES[outcome.state])
            cells = {name: str(facts.get(name, "")) for name in COLUMNS[2:]}
            listing.add({"run": outcome.planned.name, "state": state, **cells})
        return Group(Text(self.title, "italic"), listing)

    def _say_change(self, outcome: Outcome) -> None:
        name, state = outcome.planned.name, outcome.state
        if self.states.get(name, "queued") != state:
            self.states[name] = state
            detail = f" ({outcome.planned.detail})" if state == "training" else ""
            detail = f": {outcome.reason}" if outcome.reason else detail
            self.say(f"{name}: {state}{detail}")
            self.progress[name] = (0, time.monotonic())
        if state == "training":
            epoch, shown_at = self.progress[name]
            facts = _facts(outcome)
            now = int(facts.get("at", 0))
            since = time.monotonic() - shown_at
            if facts and (since > LINE_EVERY_S or (now > epoch and since > LINE_EVERY_S / 6)):
                self.progress[name] = (now, time.monotonic())
                self.say(
                    f"{name}: epoch {facts['epoch']}, loss {facts['loss']},"
                    f" {facts['images/s']} images/s, ETA {facts['ETA']}"
                )


def show_end(
    target: Console,
    title: str,
    planned: Sequence[Planned],
    outcomes: Sequence[Outcome],
    again: str,
) -> None:
    """Print the end of a sweep: counts, each failure with its last error and log, the pictures.

    Args:
        again: the command that resumes, in words: `the same command`.
    """
    show_pictures(target, planned)
    for p in planned:
        if p.state != "done" and not any(o.planned.name == p.name for o in outcomes):
            target.print(f"not started here: {p.name}: {p.detail}", soft_wrap=True)
    for outcome in outcomes:
        if outcome.state == "failed":
            line = f"FAILED {outcome.planned.name}: {outcome.reason}\n  log: {outcome.log}"
            target.print(Text(line, "red"), soft_wrap=True)
    counts = Counter(o.state for o in outcomes)
    counts["done"] = sum(p.state == "done" for p in planned)
    shown = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    target.print(f"{title}: {shown} of {len(planned)} runs", soft_wrap=True)
    if counts["interrupted"] or counts["left"]:
        target.print(f"{again} goes on from there", soft_wrap=True)


def show_pictures(target: Console, planned: Sequence[Planned], most: int = 12) -> None:
    """The newest picture of each run."""
    drawn = [(p.dir, p.dir.pictured_epochs()) for p in planned]
    found = [run.picture_path(epochs[-1]) for run, epochs in drawn if epochs]
    if found:
        target.print("pictures:")
    for path in found[:most]:
        target.print(f"  {path}", markup=False, soft_wrap=True)
    if len(found) > most:
        runs_dir = Path(found[0]).parents[2]
        target.print(f"  ... and {len(found) - most} more: {runs_dir}/*/samples/")


def _facts(outcome: Outcome) -> dict[str, Any]:
    """The progress in the run's status.json, as text; {} before this attempt has written it."""
    status = outcome.planned.dir.status()
    if not status or (outcome.state == "training" and status.get("state") != "running"):
        return {}
    loss, eta = status.get("loss"), status.get("eta_s")
    return {
        "at": status.get("epoch", 0),
        "epoch": f"{status.get('epoch', '?')}/{status.get('epochs', '?')}",
        "loss": "" if loss is None else f"{loss:.4f}",
        "images/s": f"{status.get('images_per_s') or 0:.0f}",
        "ETA": "" if eta is None else console.duration(eta),
    }
