"""The kinds of sources: how each is opened from its plan, and found again by what a record calls it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from asyncdump.sources import file, process
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import Source

_REOPEN: Final[dict[str, Callable[[Source], OpenSource]]] = {"file": file.reopen, "process": process.reopen}
"""By `Source.scheme`."""


def open_planned(planned: Source) -> OpenSource:
    """Open a source that was planned; the caller closes it.

    Raises:
        SourceChangedError: it isn't the one that was planned any more.
        DumpError: it can't be opened.
    """
    return _REOPEN[planned.scheme](planned)


def look_at_recorded(recorded: str) -> Source:
    """Return what a source is now, by its name in a record: a path from the root on, or a range of a process.

    Raises:
        DumpError: it can't be opened.
    """
    if os.path.isabs(recorded):
        return file.look_at(recorded)
    try:
        return process.look_at_process(*process.parse_range(recorded))
    except ValueError:
        return file.look_at(recorded)
