"""Unreadable memory: how the rest of a span is read around it, and where it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from asyncdump.kernel.lane import Lane
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import SMALL_PAGE, UNREADABLE, BadRange, Span

MOST_BAD: Final = 4096
"""The maximum number of ranges listed for one file; of any others, only the bytes are counted."""


def read_around(origin: OpenSource, span: Span, view: memoryview, check: Callable[[], None]) -> Iterator[BadRange]:
    """Read a span into ``view`` and yield each unreadable page of 4 KiB in it, for which ``view`` gets zeros.

    After a good read, the read size doubles, so that good memory costs few calls. Bad memory costs one call for each
    page, because nothing else shows whether the next page is bad, too. ``check`` is called before each read, and may
    raise.

    Raises:
        DumpError: the source ends before the span does.
        OSError: with an errno that isn't one of `UNREADABLE`.
    """
    done, step = 0, span.length
    while done < span.length:
        check()
        offset = span.offset + done
        page = min(SMALL_PAGE - offset % SMALL_PAGE, span.length - done)
        wanted = max(page, min(step, span.length - done))
        try:
            got = origin.read(view[done : done + wanted], offset)
        except OSError as error:
            number = error.errno or 0
            if number not in UNREADABLE:
                raise
            step = 0
            if wanted > page:  # Only reading single pages shows which one is bad.
                continue
            view[done : done + page] = bytes(page)
            yield BadRange(offset=offset, length=page, errno=number)
            got = page
        else:
            step = 2 * max(step, got)
        if got == 0:
            raise origin.ended(offset, span.end)
        done += got


class BadRanges:
    """The unreadable ranges of one source, added by several threads: the first `MOST_BAD`, and the bytes of others."""

    def __init__(self) -> None:
        self._ranges: list[BadRange] = []
        self._more = 0
        self._lock = threading.Lock()

    def add(self, ranges: Iterable[BadRange]) -> None:
        with self._lock:
            self._ranges += ranges
            if len(self._ranges) > 2 * MOST_BAD:
                self._shorten()

    def _shorten(self) -> None:
        self._ranges = merged(self._ranges)
        self._more += sum(each.length for each in self._ranges[MOST_BAD:])
        del self._ranges[MOST_BAD:]

    def told(self) -> tuple[tuple[BadRange, ...], int]:
        """Return the ranges in the order of the source, and the number of bytes in ranges that were dropped."""
        with self._lock:
            self._shorten()
            return tuple(self._ranges), self._more


def merged(ranges: Iterable[BadRange]) -> list[BadRange]:
    """Return ranges in the order of the source, with adjacent ones of the same errno merged."""
    merged: list[BadRange] = []
    for each in sorted(ranges, key=lambda each: each.offset):
        last = merged[-1] if merged else None
        if last is not None and last.end == each.offset and last.errno == each.errno:
            merged[-1] = BadRange(offset=last.offset, length=last.length + each.length, errno=last.errno)
        else:
            merged.append(each)
    return merged


def pieces(span: Span, lane: Lane) -> Iterator[Span]:
    """Yield a span in pieces that fit into the lane's buffer."""
    step = len(lane.buffer.view)
    for offset in range(span.offset, span.end, step):
        yield Span(offset=offset, length=min(step, span.end - offset))
