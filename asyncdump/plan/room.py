"""What of a source a dump would hold on its disk: zeros are left out, and only who looks knows where they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from asyncdump.engines.read import data_runs
from asyncdump.errors import explain
from asyncdump.kernel.lane import BUFFER, Buffer
from asyncdump.kernel.linux import read_past_cache
from asyncdump.sources.file import Source, find_spans, open_source

MOST: Final = 4 << 30
"""Bytes of sources that are looked at before a run, where that decides whether it fits: a second or few."""

COMPRESSING: Final = frozenset({"btrfs", "zfs", "bcachefs", "f2fs"})
"""Filesystems that may store anything in less than its size."""


def data_of(source: Source, start: int, end: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the length of what isn't zero in a range of a source, in whole grains, as it is now.

    Raises:
        DumpError: it can't be read.
    """
    fd = open_source(source.path)
    buffer = Buffer()
    read = _read if source.in_memory else read_past_cache
    try:
        for span in find_spans(fd, source, start, end):
            for offset in range(span.offset, span.end, BUFFER) if not span.hole else ():
                with explain("read", source.path):
                    got = read(fd, buffer.view[: min(BUFFER, span.end - offset)], offset)
                for begin, stop in data_runs(buffer, got, grain):
                    yield offset + begin, stop - begin
    finally:
        os.close(fd)


def exceed(amounts: Iterable[int], limit: int) -> bool:
    """Tell whether amounts come to more than a limit, looking at no more of them than that takes."""
    return any(total > limit for total in accumulate(amounts))


def _read(fd: int, view: memoryview, offset: int) -> int:
    return os.preadv(fd, [view], offset)
