"""Tables and summaries for people: plain text, aligned and cut to a width, or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from asyncdump.text import text

WIDE: Final = 1 << 16
"""The width of output that doesn't go to a terminal, in characters."""

_NARROW: Final = 60
_SHORTEST: Final = 8
"""The smallest width of a column that is cut, in characters."""

_MOST_ROWS: Final = 500
_MINUTE: Final = 60
"""The maximum number of rows of an HTML table, because a notebook stores all of them."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a plan, a run or a verification.

    Attributes:
        title: the outcome in one sentence, or an empty string.
        rows: a table; its first row is the header. Columns without any text are omitted.
        right: the columns that are aligned to the right.
        shrink: the columns that are cut in the middle if the table is too wide; earlier ones are cut first.
        spare: the columns that are omitted if the width is less than 60 characters.
        notes: sentences below the table.
        complaints: lines about failures; a line that begins with two spaces belongs to the previous one.
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
        # Without a table, there are only a few sentences, which need no blank lines between them.
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
    """Return the lines of a table. Columns without any text are omitted.

    Args:
        rows: the rows, all of the same length; the first one is the header.
        width: the maximum length of a line, in characters.
        right: the columns that are aligned to the right.
        shrink: the columns that are cut in the middle if the table is too wide; earlier ones are cut first.
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
    """Return a text of at most ``size`` characters, cut in the middle: the end of a path says more than its middle."""
    if len(cell) <= size:
        return cell
    head = (size - 1) // 3
    return f"{cell[:head]}…{cell[len(cell) - (size - 1 - head) :]}"


def fill(sentence: str, width: int = WIDE) -> list[str]:
    """Wrap a sentence to a width."""
    import textwrap

    return textwrap.wrap(sentence, width, break_long_words=False, break_on_hyphens=False)


def seconds(number: float) -> str:
    """Return a time for display: ``0.81 s``, ``3 min 20 s``."""
    if round(number, 2) < _MINUTE:
        return f"{number:.2f} s"
    minutes, rest = divmod(round(number), _MINUTE)
    return f"{minutes} min {rest} s"


def count(number: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first names and the number of the others: ``a, b, c and 8 more``."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(map(text, found[:most])) + more
