"""Opens a planned source, whatever its kind: the one table of the kinds of sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from asyncdump.sources import file
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import Source

_REOPEN: Final[dict[str, Callable[[Source], OpenSource]]] = {"file": file.reopen}


def open_planned(planned: Source) -> OpenSource:
    """Open a source that was planned; the caller closes it.

    Raises:
        SourceChangedError: it isn't the one that was planned any more.
        DumpError: it can't be opened.
    """
    return _REOPEN["file"](planned)
