"""Whether huge pages and disks have room for what is to be restored."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from asyncdump.codecs.detect import listed_frames
from asyncdump.codecs.registry import stored_by
from asyncdump.errors import DumpError
from asyncdump.kernel.linux import filesystem
from asyncdump.plan.plan import PlannedDump
from asyncdump.plan.room import data_of, exceed
from asyncdump.records.standing import is_compressed
from asyncdump.sinks.folder import Folder, MappedDraft
from asyncdump.sinks.targets import Targets
from asyncdump.sources.describe import describe
from asyncdump.sources.extents import find_spans
from asyncdump.sources.file import open_regular
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.values import SMALL_PAGE

_POOLS: Final = "/sys/kernel/mm/hugepages"


def short_of_pages(dumps: Iterable[PlannedDump], targets: Targets, *, look: bool = False) -> list[str]:
    """Return the complaints about pools, and limits of mounts, that have too few huge pages.

    What is to be replaced doesn't count as free: it goes when its successor has its name. Without ``look`` all that a
    dump holds counts, with it only what isn't zero.
    """
    pools: dict[int, int] = defaultdict(int)
    mounts: dict[int, int] = defaultdict(int)
    places: dict[int, Folder] = {}
    for dump in dumps:
        folder = targets.folder(dump.name)
        if folder.filesystem == "hugetlbfs":
            mounts[folder.device] += _pages(dump, folder.block, look=look)
            places[folder.device] = folder
    for device, pages in mounts.items():
        # What a mount has reserved (min_size=) is taken out of the pool already.
        reserved = _reserved_by(places[device])
        pools[places[device].block] += max(0, pages - reserved)
    problems = [
        f"this takes {pages} huge pages of {format_size(page)}, {max(0, free)} are free: "
        f"reserve more in {_pool(page)}/nr_hugepages"
        for page, pages in pools.items()
        if pages > (free := _free_in_pool(page))
    ]
    for device, pages in mounts.items():
        folder = places[device]
        size = format_size(filesystem(folder.fd)[1])
        if pages > (free := _free_in_mount(folder)):
            wanted = f"{folder.path} takes {pages} huge pages of {size} for this"
            problems.append(f"{wanted}, {max(0, free)} are left within the limit of its mount (size=)")
    return problems if look or not problems else short_of_pages(dumps, targets, look=True)


def _pages(dump: PlannedDump, page: int, *, look: bool) -> int:
    """Return how many huge pages the content of a dump takes; only ``look`` reads what is stored raw."""
    assert dump.expected is not None
    fd = open_regular(dump.source.path)
    data: Iterator[tuple[int, int]]
    try:
        if (codec := stored_by(dump.expected.stages)) is not None:
            frames = listed_frames(fd, dump.source.path, codec) or ()
            data = ((frame.offset, frame.length) for frame in frames if frame.stored * codec.repeats > frame.length)
        elif look:
            data = _data(dump, MappedDraft.grain)
        else:
            spans = find_spans(fd, describe(fd, dump.source.path), 0, dump.length)
            data = ((span.offset, span.length) for span in spans if not span.hole)
        pages, last = 0, -1
        for offset, length in data:
            first = max(offset // page, last + 1)
            end = -(-(offset + length) // page)
            if end > first:
                pages += end - first
                last = end - 1
    finally:
        os.close(fd)
    return pages


def _pool(page: int) -> str:
    return f"{_POOLS}/hugepages-{page >> 10}kB"


def _free_in_pool(page: int) -> int:
    def figure(name: str) -> int:
        with open(f"{_pool(page)}/{name}", encoding="ascii") as file:
            return int(file.read())

    try:
        surplus = max(0, figure("nr_overcommit_hugepages") - figure("surplus_hugepages"))
        return figure("free_hugepages") - figure("resv_hugepages") + surplus
    except (OSError, ValueError):
        return 1 << 62  # Nobody tells: the mapping will.


def _reserved_by(folder: Folder) -> int:
    """Return how many huge pages the mount of a folder may still have reserved for itself (hugetlbfs, min_size=)."""
    number = f"{os.major(folder.device)}:{os.minor(folder.device)}"
    status = os.fstatvfs(folder.fd)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            options = next((line.rsplit(None, 1)[1] for line in mounts if line.split()[2] == number), "")
    except OSError:
        return 0
    named = dict(option.partition("=")[::2] for option in options.split(","))
    # How much of it is used is only told where the mount has a limit too.
    used = status.f_blocks - status.f_bfree if "size" in named else 0
    return max(0, int(named.get("min_size", 0)) // status.f_bsize - used)


def _free_in_mount(folder: Folder) -> int:
    status = os.fstatvfs(folder.fd)
    return status.f_bavail if status.f_blocks > 0 else 1 << 62  # None, or -1: a mount without a limit.


def short_of_space(dumps: Iterable[PlannedDump], targets: Targets) -> list[str]:
    """Return the complaints about disks that have too little room for what is to be restored."""
    needed: dict[int, list[PlannedDump]] = defaultdict(list)
    places: dict[int, Folder] = {}
    for dump in dumps:
        folder = targets.folder(dump.name)
        if folder.filesystem != "hugetlbfs" and dump.expected is not None and not is_compressed(dump.expected):
            needed[folder.device].append(dump)
            places[folder.device] = folder
    problems = []
    for device, those in needed.items():
        try:
            status = os.fstatvfs(places[device].fd)
        except OSError:
            continue  # Nobody tells: a disk that fills up is told when it does.
        free = status.f_bavail * status.f_frsize
        amount = sum(min(dump.length, dump.source.allocated) for dump in those)
        if amount > free and places[device].filesystem not in {"xfs", "btrfs"} and exceed(_amounts(those), free):
            problems.append(f"{places[device].path} has {format_size(free)} free, {format_size(amount)} are needed")
    return problems


def _amounts(dumps: Iterable[PlannedDump]) -> Iterator[int]:
    for dump in dumps:
        for _, length in _data(dump, SMALL_PAGE):
            yield length


def _data(dump: PlannedDump, grain: int) -> Iterator[tuple[int, int]]:
    with suppress(DumpError):  # What can't be read is its own failure.
        yield from data_of(dump.source, 0, dump.length, grain)
