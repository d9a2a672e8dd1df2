"""Whether there are enough huge pages, and enough disk space, to restore dumps."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from asyncdump.codecs.detect import listed_frames
from asyncdump.codecs.registry import stored_by
from asyncdump.errors import DumpError
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.linux import filesystem
from asyncdump.plan.plan import PlannedDump
from asyncdump.plan.room import data_in, exceed
from asyncdump.records.standing import is_compressed
from asyncdump.sinks.draft import HUGE_GRAIN
from asyncdump.sinks.place import Store
from asyncdump.sinks.targets import TargetsPlace
from asyncdump.sources.describe import describe
from asyncdump.sources.extents import find_spans
from asyncdump.sources.file import FileSource, regular
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.values import SMALL_PAGE

_POOLS: Final = "/sys/kernel/mm/hugepages"


class _Home(NamedTuple):
    """The mount of some targets: a descriptor and the path of a directory on it, its filesystem, its page size."""

    fd: int
    path: str
    filesystem: str
    block: int


def _homes(
    dumps: Iterable[PlannedDump], targets: TargetsPlace
) -> tuple[dict[int, _Home], dict[int, list[PlannedDump]]]:
    """Return the mounts of this host that dumps are restored to, and their dumps, by device number."""
    homes: dict[int, _Home] = {}
    wanted: dict[int, list[PlannedDump]] = defaultdict(list)
    for dump in dumps:
        store = targets.store(dump.name)
        if store.fd is not None:
            device = os.fstat(store.fd).st_dev
            wanted[device].append(dump)
            if device not in homes:
                homes[device] = _Home(store.fd, store.path, *filesystem(store.fd))
    return homes, wanted


def short_of_pages(
    dumps: Iterable[PlannedDump], store: Store, targets: TargetsPlace, *, look: bool = False
) -> list[str]:
    """Return complaints about pools, and limits of mounts, with too few huge pages to restore the dumps of a store.

    The pages of a target that is to be replaced don't count as free, because they are freed only after the rename.
    Without ``look``, all allocated data of a dump counts; with it, only data that isn't zero.
    """
    homes, wanted = _homes(dumps, targets)
    pools: dict[int, int] = defaultdict(int)
    mounts: dict[int, int] = {}
    for device, home in homes.items():
        if traits(home.filesystem).huge_pages:
            mounts[device] = sum(_pages(dump, store, home.block, look=look) for dump in wanted[device])
            # The reservation of a mount (min_size=) has been taken from the pool already.
            pools[home.block] += max(0, mounts[device] - _reserved_by(home, device))
    problems = [
        f"this needs {pages} huge pages of {format_size(page)}, but {max(0, free)} are free: "
        f"reserve more in {_pool(page)}/nr_hugepages"
        for page, pages in pools.items()
        if pages > (free := _free_in_pool(page))
    ]
    for device, pages in mounts.items():
        home = homes[device]
        if pages > (free := _free_in_mount(home)):
            needs = f"{home.path} needs {pages} huge pages of {format_size(home.block)} for this"
            problems.append(f"{needs}, but {max(0, free)} are left within the limit of its mount (size=)")
    return problems if look or not problems else short_of_pages(dumps, store, targets, look=True)


def _pages(dump: PlannedDump, store: Store, page: int, *, look: bool) -> int:
    """Return how many huge pages the content of a dump needs; raw dumps are only read with ``look``."""
    assert dump.expected is not None
    fd = regular(store.open(dump.name), dump.source.path)
    data: Iterator[tuple[int, int]]
    try:
        if (codec := stored_by(dump.expected.stages)) is not None:
            frames = listed_frames(fd, dump.source.path, codec) or ()
            data = ((frame.offset, frame.length) for frame in frames if frame.stored * codec.repeats > frame.length)
        elif look:
            data = _data(dump, store, HUGE_GRAIN)
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
        return 1 << 62  # Unknown: mapping the pages will show it.


def _reserved_by(home: _Home, device: int) -> int:
    """Return how many huge pages may still be reserved for a mount (hugetlbfs, min_size=)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    status = os.fstatvfs(home.fd)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            options = next((line.rsplit(None, 1)[1] for line in mounts if line.split()[2] == number), "")
    except OSError:
        return 0
    named = dict(option.partition("=")[::2] for option in options.split(","))
    # The number of used pages is only known if the mount has a limit, too.
    used = status.f_blocks - status.f_bfree if "size" in named else 0
    return max(0, int(named.get("min_size", 0)) // status.f_bsize - used)


def _free_in_mount(home: _Home) -> int:
    status = os.fstatvfs(home.fd)
    return status.f_bavail if status.f_blocks > 0 else 1 << 62  # 0 or -1 blocks: a mount without a limit.


def short_of_space(dumps: Iterable[PlannedDump], store: Store, targets: TargetsPlace) -> list[str]:
    """Return complaints about disks that have too little space to restore the dumps of a store."""
    homes, wanted = _homes(dumps, targets)
    problems = []
    for device, home in homes.items():
        raw = [dump for dump in wanted[device] if dump.expected is not None and not is_compressed(dump.expected)]
        known = traits(home.filesystem)
        if known.huge_pages or known.clones_are_free:
            continue  # Huge pages are counted above; a clone needs no space.
        try:
            status = os.fstatvfs(home.fd)
        except OSError:
            continue  # Unknown: a full disk is an error of the restore.
        free = status.f_bavail * status.f_frsize
        amount = sum(min(dump.length, dump.source.allocated) for dump in raw)
        if amount > free and exceed(_amounts(raw, store), free):
            problems.append(f"{home.path} has {format_size(free)} free, but {format_size(amount)} are needed")
    return problems


def _amounts(dumps: Iterable[PlannedDump], store: Store) -> Iterator[int]:
    for dump in dumps:
        for _, length in _data(dump, store, SMALL_PAGE):
            yield length


def _data(dump: PlannedDump, store: Store, grain: int) -> Iterator[tuple[int, int]]:
    with suppress(DumpError):  # An unreadable dump fails on its own.
        yield from data_in(FileSource(store.open(dump.name), dump.source), 0, dump.length, grain)
