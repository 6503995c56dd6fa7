"""A list for a terminal of any width: nothing in it is cut.

A name is pasted into the next command, so it is never broken. Columns that are not needed go first
where there is no room; a name that leaves none for the others has a line of its own, and so has a
remark. In a file or a pipe all columns stand, and no line is broken.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2  # between columns, and in front of a remark


@dataclass(frozen=True)
class Entry:
    """One line of the list, and its remark below."""

    cells: Mapping[str, str | Text]  # by column; one that is missing is empty
    remark: str = ""
    rank: int = 0  # where not all entries fit, those of the lowest ranks are shown


class Listing:
    """Entries in columns, to be printed by `show`, or drawn anew in a rich.live.Live.

    Args:
        columns: from left to right; the first has the names.
        dispensable: columns that go where there is no room, the least useful last.
        room: lines at most, without the heading.
        more: words after the number of entries that are left out.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dispensable: Sequence[str] = (),
        room: int | None = None,
        more: str = "more",
    ) -> None:
        self.columns, self.dispensable = columns, dispensable
        self.room, self.more = room, more
        self.entries: list[Entry] = []

    def add(self, cells: Mapping[str, str | Text | None], remark: str = "", rank: int = 0) -> None:
        """An entry below the others; cells of None are empty."""
        filled = {name: cell for name, cell in cells.items() if cell}
        self.entries.append(Entry(filled, " ".join(remark.split()), rank))

    def show(self, out: Console) -> None:
        """Print it; a name that is longer than the terminal is wide stays one line."""
        out.print(self, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> Iterator[Text]:
        """The heading and the entries, in `width` cells."""
        widths = self._widths(width)
        yield _line({name: Text(name, "bold") for name in widths}, widths)
        blocks = [list(self._block(entry, widths, width)) for entry in self.entries]
        shown = list(range(len(blocks)))
        if self.room is not None and sum(map(len, blocks)) > self.room:
            left = max(1, self.room)
            order = sorted(shown, key=lambda k: self.entries[k].rank)
            shown = []
            for k in order:
                left -= len(blocks[k])
                if left < 0 and shown:
                    break
                shown.append(k)
        for k in shown:
            yield from blocks[k]
        if len(shown) < len(blocks):
            yield Text(f"... and {len(blocks) - len(shown)} {self.more}")

    def _widths(self, width: int) -> dict[str, int]:
        """The columns that are shown, from left to right, and their widths."""
        names, *_ = self.columns
        lengths = {
            column: [_len(e.cells[column]) for e in self.entries if column in e.cells]
            for column in self.columns
        }
        full = {column: max([cell_len(column), *n]) for column, n in lengths.items()}
        kept = [column for column in self.columns if column not in self.dispensable]
        left = width - sum(full[column] + GAP for column in kept if column != names)
        # A name that does not fit has its own line, and asks for no room here.
        full[names] = max([cell_len(names), *(n for n in lengths[names] if n <= left)])
        left -= full[names]
        for column in self.dispensable:
            if lengths[column] and GAP + full[column] <= left:
                left -= GAP + full[column]
                kept.append(column)
        return {column: full[column] for column in self.columns if column in kept}

    def _block(self, entry: Entry, widths: Mapping[str, int], width: int) -> Iterator[Text]:
        names, *others = widths
        cells = dict(entry.cells)
        if _len(cells.get(names, "")) > widths[names]:
            name = cells.pop(names)
            yield name if isinstance(name, Text) else Text(name)
        if any(cells.get(column) for column in (names, *others)):
            yield _line(cells, widths)
        indent = " " * GAP
        wrapped = textwrap.wrap(
            entry.remark,
            max(20, width),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,  # a path or an address is pasted, too
            break_on_hyphens=False,
        )
        yield from map(Text, wrapped)


def _line(cells: Mapping[str, str | Text], widths: Mapping[str, int]) -> Text:
    line = Text()
    for name, width in widths.items():
        cell = cells.get(name, "")
        line.append(cell if isinstance(cell, Text) else Text(cell))
        line.append(" " * (width - _len(cell) + GAP))
    line.rstrip()
    return line


def _len(cell: str | Text) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)
