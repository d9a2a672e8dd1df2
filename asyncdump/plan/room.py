"""What of a source a dump would hold on its disk: zeros are left out, and only who looks knows where they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Final

from asyncdump.engines.read import data_runs
from asyncdump.errors import DumpError, explain
from asyncdump.kernel.lane import BUFFER, Buffer
from asyncdump.kernel.linux import filesystem
from asyncdump.plan.plan import PlannedDump
from asyncdump.sources.opening import open_planned
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import SMALL_PAGE, Source

MOST: Final = 4 << 30
"""Bytes of sources that are looked at before a run, where that decides whether it fits: a second or few."""

COMPRESSING: Final = frozenset({"btrfs", "zfs", "bcachefs", "f2fs"})
"""Filesystems that may store anything in less than its size."""


def data_of(source: Source, start: int, end: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the length of what isn't zero in a range of a source, in whole grains, as it is now.

    Raises:
        DumpError: it can't be read.
    """
    yield from data_in(open_planned(source), start, end, grain)


def data_in(origin: OpenSource, start: int, end: int, grain: int) -> Iterator[tuple[int, int]]:
    """Do as `data_of` does, with an open source, which is closed."""
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
    """Tell whether amounts come to more than a limit, looking at no more of them than that takes."""
    return any(total > limit for total in accumulate(amounts))


def needed(dump: PlannedDump, place: str) -> int:
    """Return the bytes that a dump may take in a folder on the filesystem of ``place``."""
    if dump.stages:
        return 0  # Nobody knows before: a disk that fills up is told when it does.
    if dump.source.filesystem in {"xfs", "btrfs"} and os.stat(place).st_dev == dump.source.device:
        return 0  # A clone shares the source's blocks.
    return min(dump.length, dump.source.allocated) if dump.sparse else dump.length


def need_more(dumps: list[PlannedDump], place: str, free: int) -> bool:
    """Tell whether dumps certainly don't fit: zeros that are left out take no room, and are looked for here."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if filesystem(fd)[0] in COMPRESSING:
            return False
    finally:
        os.close(fd)
    return exceed(_amounts(dumps, place), free)


def _amounts(dumps: list[PlannedDump], place: str) -> Iterator[int]:
    looked = 0
    for dump in sorted(dumps, key=_leaves_zeros_out):
        amount = needed(dump, place)
        if not amount or not _leaves_zeros_out(dump):
            yield amount
        elif (looked := looked + amount) <= MOST:
            with suppress(DumpError):  # What can't be read now may be by then.
                for _, length in data_of(dump.source, dump.offset, dump.offset + dump.length, SMALL_PAGE):
                    yield length


def _leaves_zeros_out(dump: PlannedDump) -> bool:
    return dump.sparse and dump.method in {"auto", "read"}
