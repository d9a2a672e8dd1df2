"""The data and the holes of a file (SEEK_DATA, SEEK_HOLE, lseek(2))."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from asyncdump.vocabulary.values import Source, Span


def find_spans(fd: int, source: Source, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
    """Yield the data and the holes of ``[offset, end)`` bytes, in order and without gaps.

    Holes of less than ``shortest_hole`` bytes count as data. hugetlbfs has no SEEK_HOLE and reports everything as data,
    so such a file is one span.
    """
    return joined(_extents(fd, source, offset, end), shortest_hole)


def joined(spans: Iterator[Span], shortest_hole: int) -> Iterator[Span]:
    """Merge adjacent spans of the same kind; a hole of less than ``shortest_hole`` bytes counts as data."""
    pending: Span | None = None
    for span in spans:
        hole = span.hole and span.length >= shortest_hole
        if pending is not None and pending.hole == hole:
            pending = Span(offset=pending.offset, length=span.end - pending.offset, hole=hole)
            continue
        if pending is not None:
            yield pending
        pending = Span(offset=span.offset, length=span.length, hole=hole)
    if pending is not None:
        yield pending


def _extents(fd: int, source: Source, offset: int, end: int) -> Iterator[Span]:
    if not source.has_holes or source.in_huge_pages:
        if offset < end:
            yield Span(offset=offset, length=end - offset)
        return
    while offset < end:
        data = _seek(fd, offset, os.SEEK_DATA, end)
        if data > offset:
            yield Span(offset=offset, length=data - offset, hole=True)
        if data < end:
            hole = _seek(fd, data, os.SEEK_HOLE, end)
            yield Span(offset=data, length=hole - data)
            data = hole
        offset = data


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        # ENXIO: only a hole follows. Any other errno: the filesystem doesn't support it, so everything is data.
        only_hole = whence == os.SEEK_DATA and error.errno == errno.ENXIO
        return end if only_hole or whence == os.SEEK_HOLE else offset
    # A search for a hole starts at data. It advances by at least one byte, so that it can't spin on a live file.
    return min(max(found, offset + (whence == os.SEEK_HOLE)), end)
