"""Tables of plain text: aligned, cut to the width of the terminal, nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from asyncdump.text import text

_COLUMNS = 80
_SHORTEST = 8
"""What is left of a column that is cut, in characters."""


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), shrink: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table; the first row is its head.

    Args:
        rows: as many cells in each.
        right: the columns that are aligned to the right. A column without any text is left out.
        shrink: the columns that are cut, in their middle, where a terminal is too narrow: the first as far as it goes.
    """
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows)]
    right = [used.index(column) for column in right if column in used]
    shown = [[text(row[column]) for column in used] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width()
    for column in (used.index(column) for column in shrink if column in used):
        spared = max(0, min(excess, widths[column] - _SHORTEST))
        widths[column] -= spared
        excess -= spared
    lines = []
    for row in shown:
        cells = [
            cut(cell, size).rjust(size) if column in right else cut(cell, size).ljust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def cut(cell: str, size: int) -> str:
    """Return a text of at most ``size`` characters: the end of a path tells more than its middle."""
    if len(cell) <= size:
        return cell
    head = (size - 1) // 3
    return f"{cell[:head]}…{cell[len(cell) - (size - 1 - head) :]}"


def fill(sentence: str) -> list[str]:
    """Return a sentence in lines no wider than the terminal."""
    import textwrap

    return textwrap.wrap(sentence, width(), break_long_words=False, break_on_hyphens=False)


def width() -> int:
    """Return the columns of the terminal; a pipe has no width to keep to, some terminals don't know theirs."""
    if not sys.stdout.isatty():
        return 1 << 16
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS
    except OSError:  # It has gone.
        return _COLUMNS


def seconds(count: float) -> str:
    """Return a time for people: ``0.81 s``, ``3 min 20 s``."""
    if count < 60:  # noqa: PLR2004
        return f"{count:.2f} s"
    return f"{count // 60:.0f} min {count % 60:.0f} s"
