"""Plain-text tables, aligned and cut to the width of the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from asyncdump.text import text

_COLUMNS = 80
_SHORTEST = 8
"""The smallest width of a column that is cut, in characters."""


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), shrink: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table. Columns without any text are omitted.

    Args:
        rows: the rows, all of the same length; the first one is the header.
        right: the columns that are aligned to the right.
        shrink: the columns that are cut in the middle if the terminal is too narrow; earlier ones are cut first.
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
    """Return a text of at most ``size`` characters, cut in the middle: the end of a path says more than its middle."""
    if len(cell) <= size:
        return cell
    head = (size - 1) // 3
    return f"{cell[:head]}…{cell[len(cell) - (size - 1 - head) :]}"


def fill(sentence: str) -> list[str]:
    """Wrap a sentence to the width of the terminal."""
    import textwrap

    return textwrap.wrap(sentence, width(), break_long_words=False, break_on_hyphens=False)


def width() -> int:
    """Return the width of the terminal; 80 if it doesn't know its width, and practically unlimited for a pipe."""
    if not sys.stdout.isatty():
        return 1 << 16
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS
    except OSError:  # The terminal was closed.
        return _COLUMNS


def seconds(count: float) -> str:
    """Return a time for display: ``0.81 s``, ``3 min 20 s``."""
    if count < 60:  # noqa: PLR2004
        return f"{count:.2f} s"
    return f"{count // 60:.0f} min {count % 60:.0f} s"
