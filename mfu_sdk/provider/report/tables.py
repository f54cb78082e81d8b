"""Tables of text that fit a width: names give way, numbers never do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_LEAST_NAME: Final = 10
_GAP: Final = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A column: a name may be cut short, a number never; where all do not fit, the highest `drop` goes first."""

    title: str
    cells: tuple[str, ...]
    is_name: bool = False
    drop: int = 0

    @property
    def longest(self) -> int:
        """Columns of a terminal that its widest cell takes."""
        return max(cell_len(text) for text in (self.title, *self.cells))


def table(console: Console, title: str, columns: Sequence[Column]) -> None:
    """Print a table under its title; columns without rows are for the caller to leave out."""
    widths = _fitted(columns, console.width)
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column, width in widths.items():
        drawn.add_column(
            column.title,
            justify="left" if column.is_name else "right",
            no_wrap=True,
            overflow="ellipsis",
            width=width,
        )
    for row in zip(*(column.cells for column in widths), strict=True):
        drawn.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(Text(title, style="bold"))
    console.print(drawn)


def _fitted(columns: Sequence[Column], width: int) -> dict[Column, int]:
    """The columns that fit with their widths: names give way down to 10 characters, then columns are dropped."""
    widths = {column: column.longest for column in columns}
    while (over := sum(widths.values()) + _GAP * (len(widths) - 1) - width) > 0:
        # Rich would cut every column alike, and a number that is cut short is another number.
        name = max((column for column in widths if column.is_name), key=lambda column: widths[column])
        if widths[name] > _LEAST_NAME:
            widths[name] = max(_LEAST_NAME, widths[name] - over)
            continue
        last = max(widths, key=lambda column: column.drop)
        if not last.drop:
            break
        widths = {column: column.longest for column in widths if column is not last}
    return widths
