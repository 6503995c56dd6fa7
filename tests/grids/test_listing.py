"""A list is whole at any width: names, remarks, and as many columns as there is room for."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from launch.grids.listing import Listing

NAMES = ("cold-unet_noiseless-col-0123abcd", "a-preset-" * 7 + "row-deadbeef", "n" * 150)
REMARK = "an illegal memory access: /scratch/a-user/with-hyphens/in-a-path/log.txt tells more " * 3
COLUMNS = ("run", "state", "job", "node", "address")


def printed(listing: Listing, width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    listing.show(out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def a_listing(room: int | None = None) -> Listing:
    listing = Listing(COLUMNS, COLUMNS[2:], room)
    for name in NAMES:
        cells = {"run": name, "state": Text("interrupted"), "job": "1234567_890", "node": "n1"}
        listing.add(cells | {"address": "https://example.org/" + "x" * 50}, remark=REMARK)
    return listing


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_names_and_remarks_are_whole_and_nothing_else_is_wider_than_the_terminal(
    width: int,
) -> None:
    lines = printed(a_listing(), width)
    assert all(len(line) <= width or line in NAMES for line in lines)
    for name in NAMES:
        assert sum(line == name or line.startswith(f"{name}  ") for line in lines) == 1
    remarks = " ".join(line.strip() for line in lines if line.startswith("  ") and "/" in line)
    assert "/scratch/a-user/with-hyphens/in-a-path/log.txt" in remarks
    assert sum("interrupted" in line for line in lines) == len(NAMES)


def test_columns_that_are_not_needed_come_as_there_is_room() -> None:
    listing = Listing(COLUMNS, COLUMNS[2:])
    listing.add({"run": "a-run", "state": "done", "job": "1234", "node": "n1", "address": "a" * 30})
    for width, columns in ((12, 2), (17, 2), (18, 3), (24, 4), (55, 4), (56, 5), (10_000, 5)):
        assert printed(listing, width)[0].split() == [*COLUMNS[:columns]], width


def test_where_there_is_no_limit_no_line_is_broken() -> None:
    lines = printed(a_listing(), 10_000)
    assert len(lines) == 1 + 2 * len(NAMES)
    assert lines[2].strip() == " ".join(REMARK.split())


def test_the_lowest_ranks_are_shown_where_not_all_fit() -> None:
    listing = Listing(("run",), room=3, more="more (elsewhere)")
    for number in range(6):
        listing.add({"run": f"run-{number}"}, remark="why" if number == 4 else "", rank=5 - number)
    assert printed(listing, 80) == ["run", "run-5", "run-4", "  why", "... and 4 more (elsewhere)"]
