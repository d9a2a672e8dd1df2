"""Tables and summaries for people: plain text, aligned and cut to a width, or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from asyncdump.text import text

WIDE: Final = 1 << 16
"""The width of what isn't a terminal, in characters."""

_NARROW: Final = 60
_SHORTEST: Final = 8
"""What is left of a column that is cut, in characters."""

_MOST_ROWS: Final = 500
"""Rows of a table in HTML: a notebook keeps all of them."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a plan, a run or a verification.

    Attributes:
        title: the outcome in one sentence, or an empty string.
        rows: a table, the first row being its head. A column without any text is left out.
        right: its columns that are aligned to the right.
        shrink: its columns that are cut, in their middle, if the width is too small: the first as far as it goes.
        spare: its columns that are left out where there are fewer than 60 characters.
        notes: sentences below the table.
        complaints: what went wrong; a line that begins with two spaces belongs to the one before.
    """

    title: str
    rows: tuple[tuple[str, ...], ...] = ()
    right: tuple[int, ...] = ()
    shrink: tuple[int, ...] = (0,)
    spare: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    def lines(self, width: int = WIDE) -> list[str]:
        """Return the lines of all but the complaints."""
        parts = [[self.title]] if self.title else []
        parts += [self._table(width)] if self.rows else []
        # What has no table is a sentence or few: they stand together.
        parts += [fill(note, width) for note in self.notes]
        between = [""] if self.rows else []
        return parts[0] + [line for part in parts[1:] for line in (*between, *part)]

    def _table(self, width: int) -> list[str]:
        spare = self.spare if width < _NARROW else ()
        rows = [tuple("" if column in spare else cell for column, cell in enumerate(row)) for row in self.rows]
        return table(rows, width=width, right=self.right, shrink=self.shrink)

    def __str__(self) -> str:
        """Return all of it as text."""
        complaints = [text(line) for line in self.complaints]
        return "\n".join([*map(text, self.lines()), *([""] if complaints else []), *complaints])

    def html(self) -> str:
        """Return all of it as HTML, with everything escaped."""
        parts = [f"<p>{_escaped(self.title)}</p>"] if self.title else []
        if self.rows:
            head, *rows = self.rows
            body = "".join(self._row("td", cells) for cells in rows[:_MOST_ROWS])
            parts.append(f"<table><thead>{self._row('th', head)}</thead><tbody>{body}</tbody></table>")
            if len(rows) > _MOST_ROWS:
                parts.append(f"<p>and {count(len(rows) - _MOST_ROWS, 'row')} more</p>")
        parts += [f"<p>{_escaped(note)}</p>" for note in self.notes]
        if self.complaints:
            lines = "\n".join(map(_escaped, self.complaints))
            parts.append(f"<pre>{lines}</pre>")
        return f"<div>{''.join(parts)}</div>"

    def _row(self, element: str, cells: Iterable[str]) -> str:
        sides = (("right" if column in self.right else "left", cell) for column, cell in enumerate(cells))
        return f"<tr>{''.join(f'<{element} align={side}>{_escaped(cell)}</{element}>' for side, cell in sides)}</tr>"


def _escaped(cell: str) -> str:
    from html import escape

    return escape(text(cell))


def table(
    rows: Sequence[Sequence[str]], *, width: int = WIDE, right: Sequence[int] = (), shrink: Sequence[int] = (0,)
) -> list[str]:
    """Return the lines of a table; the first row is its head.

    Args:
        rows: as many cells in each.
        width: the characters of a line.
        right: the columns that are aligned to the right. A column without any text is left out.
        shrink: the columns that are cut, in their middle, if the width is too small: the first as far as it goes.
    """
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows)]
    right = [used.index(column) for column in right if column in used]
    shown = [[text(row[column]) for column in used] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
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


def fill(sentence: str, width: int = WIDE) -> list[str]:
    """Return a sentence in lines no wider than ``width``."""
    import textwrap

    return textwrap.wrap(sentence, width, break_long_words=False, break_on_hyphens=False)


def seconds(number: float) -> str:
    """Return a time for people: ``0.81 s``, ``3 min 20 s``."""
    if number < 60:  # noqa: PLR2004
        return f"{number:.2f} s"
    return f"{number // 60:.0f} min {number % 60:.0f} s"


def count(number: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and how many more there are: ``a, b, c and 8 more``."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(map(text, found[:most])) + more
