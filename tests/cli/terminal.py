"""A terminal to run the command on: a pty of a given size, and a screen that interprets its output."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

from commands import COMMAND, ENOUGH, environment

_SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Screen:
    """The content of a terminal, and what went wrong while it was drawn.

    Attributes:
        lines: the printed lines, including those that have scrolled off.
        widest: the length of the longest line if lines didn't wrap.
        clamped: whether the cursor was moved above the top, where nothing can be erased.
        tallest: the largest number of lines that the cursor moved up to redraw.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns = columns
        self.rows = rows
        self.lines = [""]
        self.row = self.column = 0
        self.widest = self.tallest = 0
        self.clamped = False

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            if match := _SEQUENCE.match(text, position):
                self._control(match[2], match[1])
                position = match.end()
            else:
                self._print(text[position])
                position += 1

    def _control(self, letter: str, arguments: str) -> None:
        count = int(arguments) if arguments.isdigit() else 1
        if letter == "A":
            top = max(0, len(self.lines) - self.rows)
            self.clamped |= self.row - count < top
            self.row = max(top, self.row - count)
            self.tallest = max(self.tallest, len(self.lines) - self.row)
        elif letter == "K":
            self.lines[self.row] = "" if arguments == "2" else self.lines[self.row][: self.column]
        else:
            # Colors, and hiding or showing the cursor: nothing moves.
            assert letter in "mhl", f"the screen doesn't know {letter}"

    def _print(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            assert character.isprintable(), f"the screen doesn't know {character!r}"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1
            self.widest = max(self.widest, self.column)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


class Shown:
    """The terminal output of a command, and its exit code."""

    def __init__(self, columns: int, rows: int) -> None:
        self.screen = Screen(columns, rows)
        self.raw = ""
        self.code: int | None = None

    def add(self, chunk: bytes) -> None:
        self.raw += (text := chunk.decode())
        self.screen.feed(text)


def on_terminal(
    *arguments: str | Path,
    cwd: Path,
    size: tuple[int, int] = (80, 24),
    until: Callable[[Shown], bool] | None = None,
    then: Callable[[subprocess.Popen[bytes]], None] | None = None,
    **variables: str,
) -> Shown:
    """Run the command on a terminal of ``size`` columns and rows, and return all that it shows.

    Args:
        until: called with all output so far each time that some arrives; ``then`` is called after it returned True.
        variables: environment variables.
    """
    columns, rows = size
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    shown = Shown(columns, rows)
    env = environment(**{"TERM": "xterm-256color", **variables})
    deadline = time.monotonic() + ENOUGH
    with subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        try:
            while chunk := _read(master, deadline):
                # A character may arrive in two pieces: wait for the rest.
                while chunk[-1] & 0x80 and not _whole(chunk):
                    chunk += _read(master, deadline)
                shown.add(chunk)
                if until is not None and then is not None and until(shown):
                    until = None
                    then(process)
            shown.code = process.wait(ENOUGH)
        finally:
            process.kill()
            os.close(master)
    assert until is None, f"never shown: {shown.raw}"
    return shown


def _whole(chunk: bytes) -> bool:
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(master: int, deadline: float) -> bytes:
    """Return what has arrived, or nothing after the command has exited, which Linux reports as EIO."""
    readable, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
    assert readable, "the command hangs"
    try:
        return os.read(master, 1 << 16)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
