"""The description of a source when a run is planned."""

from __future__ import annotations

from asyncdump.plan.globbing import Found
from asyncdump.sources import file
from asyncdump.sources.source import replaced
from asyncdump.vocabulary.values import SMALL_PAGE, Source


def look_at(path: str, found: Found | None = None) -> Source:
    """Return the current description of the source at a path; if a glob ``found`` it, it must still be the same file.

    Raises:
        DumpError: it can't be opened, or isn't a file that can be dumped.
    """
    source = file.look_at(path, follow=found is None or found.open)
    if found is not None and source.sized and (source.device, source.inode) != (found.device, found.inode):
        raise replaced(path)
    return source


def unseen(path: str, found: Found | None = None) -> Source:
    """Return what is known of a source that can't be opened."""
    return Source(
        path=path,
        filesystem="unknown",
        page=SMALL_PAGE,
        size=0,
        allocated=0,
        device=found.device if found else 0,
        inode=found.inode if found else 0,
        mtime_ns=0,
        found=True,
    )
