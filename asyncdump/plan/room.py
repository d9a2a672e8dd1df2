"""How much disk space dumps need: zeros are stored as holes, and only reading the sources finds them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Final

from asyncdump.engines.read import data_runs
from asyncdump.errors import DumpError, explain
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.lane import BUFFER, Buffer
from asyncdump.kernel.linux import filesystem
from asyncdump.plan.plan import PlannedDump
from asyncdump.sources.opening import open_planned
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import SMALL_PAGE, Source

MOST: Final = 4 << 30
"""The most bytes of sources that are read before a run to decide whether it fits, which takes a few seconds."""


def data_of(source: Source, start: int, end: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the length of each non-zero range within a range of a source, in multiples of ``grain``.

    Raises:
        DumpError: the source can't be read.
    """
    yield from data_in(open_planned(source), start, end, grain)


def data_in(origin: OpenSource, start: int, end: int, grain: int) -> Iterator[tuple[int, int]]:
    """Do the same as `data_of` for an open source, and close it."""
    buffer = Buffer()
    try:
        for span in origin.spans(start, end):
            for offset in range(span.offset, span.end, BUFFER) if not span.hole else ():
                with explain("read", origin.described.path):
                    got = origin.read(buffer.view[: min(BUFFER, span.end - offset)], offset)
                for begin, stop in data_runs(buffer, got, grain):
                    yield offset + begin, stop - begin
    finally:
        origin.close()


def exceed(amounts: Iterable[int], limit: int) -> bool:
    """Return whether amounts add up to more than a limit, without consuming more of them than necessary."""
    return any(total > limit for total in accumulate(amounts))


def needed(dump: PlannedDump, place: str) -> int:
    """Return the bytes that a dump may need on the filesystem of the directory ``place``."""
    if dump.stages:
        return 0  # Unknown before it is processed: a full disk is an error of the run.
    if traits(dump.source.filesystem).clones_are_free and os.stat(place).st_dev == dump.source.device:
        return 0  # A clone shares the source's blocks.
    return min(dump.length, dump.source.allocated) if dump.sparse else dump.length


def need_more(dumps: list[PlannedDump], place: str, free: int) -> bool:
    """Return whether dumps certainly don't fit, after searching the sources for zeros that become holes."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if traits(filesystem(fd)[0]).compresses:
            return False
    finally:
        os.close(fd)
    return exceed(_amounts(dumps, place), free)


def _amounts(dumps: list[PlannedDump], place: str) -> Iterator[int]:
    looked = 0
    # Dumps of certain size come first: they may decide without reading any source.
    for dump in sorted(dumps, key=_leaves_zeros_out):
        amount = needed(dump, place)
        if not amount or not _leaves_zeros_out(dump):
            yield amount
        elif (looked := looked + amount) <= MOST:
            with suppress(DumpError):  # A source that is unreadable now may be readable in the run.
                for _, length in data_of(dump.source, dump.offset, dump.offset + dump.length, SMALL_PAGE):
                    yield length


def _leaves_zeros_out(dump: PlannedDump) -> bool:
    return dump.sparse and dump.method in {"auto", "read"}
