"""The kinds of sources: how each one is opened from a plan, and found again from a record."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from asyncdump.sources import file
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import Source


def look_at_process(pid: int, address: int, length: int) -> Source:
    """Return the current description of a range of the memory of a process.

    Raises:
        DumpError: there is no such process, it can't be read, or the range isn't entirely mapped.
    """
    from asyncdump.sources import process  # Most runs name files alone.

    return process.look_at_process(pid, address, length)


def _reopen_process(planned: Source) -> OpenSource:
    from asyncdump.sources import process

    return process.reopen(planned)


_REOPEN: Final[dict[str, Callable[[Source], OpenSource]]] = {"file": file.reopen, "process": _reopen_process}
"""The function that opens a source, by `Source.scheme`."""


def open_planned(planned: Source) -> OpenSource:
    """Open a planned source; the caller closes it.

    Raises:
        SourceChangedError: it isn't the planned source any more.
        DumpError: it can't be opened.
    """
    return _REOPEN[planned.scheme](planned)


def look_at_recorded(recorded: str) -> Source:
    """Return the current description of a source from its name in a record: an absolute path, or a range of a process.

    Raises:
        DumpError: it can't be opened.
    """
    if os.path.isabs(recorded):
        return file.look_at(recorded)
    from asyncdump.sources.process import parse_range

    try:
        found = parse_range(recorded)
    except ValueError:
        return file.look_at(recorded)
    return look_at_process(*found)
