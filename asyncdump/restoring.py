"""The dumps of a run, put back: into huge pages through a mapping, into tmpfs and ordinary files by the engines."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

from asyncdump.codecs.content import listed_frames
from asyncdump.errors import DumpError, ReceiptError, absolute
from asyncdump.kernel.linux import filesystem
from asyncdump.plan.planner import Plan, PlannedDump
from asyncdump.plan.room import data_of, exceed
from asyncdump.records.receipt import Receipt
from asyncdump.records.record import name_complaint
from asyncdump.records.report import FileReport, Report
from asyncdump.run.run import Handler, Run, listen, running
from asyncdump.run.threads import in_thread
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.file import TEMPORARY_PREFIX, Draft, Folder, MappedDraft, Synced
from asyncdump.sources.file import SMALL_PAGE, describe, find_spans, open_regular
from asyncdump.text import as_path
from asyncdump.transfer.proof import is_compressed, look_at, went_through
from asyncdump.verifying import Concurrency, open_receipt, planned
from asyncdump.vocabulary.size import format_size

_POOLS: Final = "/sys/kernel/mm/hugepages"
_MOST: Final = 20
_ZERO_RATIO: Final = 4096
"""A frame that takes less than this part of its content holds one byte again and again: it is counted as zeros."""


class Targets:
    """Stands for the output folder where each dump has a target of its own."""

    def __init__(self, path: str, paths: Mapping[str, str]) -> None:
        """Open the folders of ``paths``, from the names of dumps to those of targets, and keep other restores out.

        Raises:
            DumpError: one can't be created or opened, or another restore is at work in it.
        """
        self.path: Final = path
        self._paths: Final = paths
        self._folders: Final[dict[str, Folder]] = {}
        try:
            for place in sorted({os.path.dirname(target) for target in paths.values()} | {path}):
                folder = self._folders[place] = Folder(place)
                folder.lock()
                folder.sweep()
        except BaseException:
            self.close()
            raise
        kinds = {folder.filesystem for folder in self._folders.values()}
        self.filesystem: Final = kinds.pop() if len(kinds) == 1 else "several"

    def folder(self, name: str) -> Folder:
        """Return the folder that a dump goes to."""
        return self._folders[os.path.dirname(self._paths[name])]

    def create(self, name: str) -> Draft:
        return self.folder(name).create(os.path.basename(self._paths[name]))

    def publish(
        self, sinks: Sequence[Draft], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Do as `Folder.publish` does, in each folder."""
        errors: list[DumpError | None] = [None] * len(sinks)
        for folder in self._folders.values():
            places = [place for place, sink in enumerate(sinks) if sink.folder is folder]
            if places:
                found = folder.publish([sinks[place] for place in places], durable=durable, overwrite=overwrite)
                for place, error in zip(places, found, strict=True):
                    errors[place] = error
        return errors

    def clashes(self) -> Iterator[str]:
        """Yield the complaints about targets that are one file to their filesystem."""
        names: dict[str, list[str]] = defaultdict(list)
        for path in self._paths.values():
            names[os.path.dirname(path)].append(os.path.basename(path))
        for place, those in names.items():
            for name, other in clashes(self._folders[place], those):
                yield f"{name} and {other} are one name to the filesystem of {place}: map one elsewhere"

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Nothing: what is restored needs no receipt."""

    def close(self) -> None:
        for folder in self._folders.values():
            folder.close()


class Restorer:
    """A restore under way: its `run` tells of it while it lasts, `report` is there when that has ended."""

    def __init__(
        self,
        receipt: Receipt,
        folder: Folder,
        to: str,
        paths: Mapping[str, str],
        *,
        overwrite: bool,
        durable: bool,
        concurrency: Any,
    ) -> None:
        self._order = [file.name for file in receipt.known.values()]
        self._missing = receipt.unmade
        self._failed: dict[str, FileReport] = {}
        dumps: list[PlannedDump] = []
        for file in receipt.known.values():
            try:
                dumps.append(_planned(file, durable=durable))
            except DumpError as error:
                self._failed[file.name] = msgspec.structs.replace(
                    file, error=error, stage="plan", bytes=0, path=paths[file.name]
                )
        self._targets = Targets(to, {dump.name: paths[dump.name] for dump in dumps})
        try:
            if problems := [
                *self._targets.clashes(),
                *_short_of_pages(dumps, self._targets),
                *_short_of_space(dumps, self._targets),
            ]:
                raise ReceiptError(*problems)
            plan = Plan(
                output=to,
                dumps=tuple(dumps),
                concurrency=concurrency,
                on_error="continue",
                overwrite=overwrite,
                free=0,
                manifest_sha256="",
            )
            self.run: Final = Run(plan, self._targets, receipt=False, guard=folder)
        except BaseException:
            self._targets.close()
            raise

    @property
    def report(self) -> Report:
        """What came of it; ``path`` of each file is where it was put.

        Raises:
            RuntimeError: it hasn't ended.
        """
        report = self.run.report
        files = {file.name: file for file in report.files} | self._failed
        return msgspec.structs.replace(
            report, files=tuple(files[name] for name in self._order), unrecorded=self._missing
        )


async def restore_all(
    what: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    map: Mapping[str, str | os.PathLike[str]] | None = None,  # noqa: A002 (named as the option is)
    overwrite: bool = False,
    durable: bool = True,
    concurrency: Concurrency = "auto",
    on_event: Handler | None = None,
) -> Report:
    """Put the dumps of a run back, each compared with its digest on the way.

    A target has its name only when it is whole, and proved to be where a digest was taken. Zeros stay holes. On
    hugetlbfs a target has the size of the content in whole huge pages.

    Args:
        what: the folder of the run, or its receipt.
        to: the folder for the targets, created with mode 0700 if missing. They have the names of the dumps, without
            ``.zst`` where those are compressed.
        map: other targets for some, by the names of the dumps; paths relative to ``to``.
        overwrite: replace files of the same names; without it they are an error.
        durable: whether to wait until the targets would survive a power cut.
        concurrency: files in flight, or ``auto``.
        on_event: called with each event, as that of `dump_all`.

    Raises:
        ReceiptError: it can't be carried out: no receipt, targets that exist, too few huge pages. Nothing was written.
        DumpError: a folder can't be opened, or a run is at work in it.
    """
    async with open_restore(
        what, to, map=map, overwrite=overwrite, durable=durable, concurrency=concurrency
    ) as restorer:
        if on_event is not None:
            await listen(restorer.run, on_event)
    return restorer.report


@asynccontextmanager
async def open_restore(
    what: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    map: Mapping[str, str | os.PathLike[str]] | None = None,  # noqa: A002
    overwrite: bool = False,
    durable: bool = True,
    concurrency: Concurrency = "auto",
) -> AsyncIterator[Restorer]:
    """Start what `restore_all` does, to watch or cancel its ``run``."""

    def prepare() -> Restorer:
        receipt, folder = open_receipt(what)
        try:
            return restorer_of(receipt, folder)
        except BaseException:
            folder.close()
            raise

    def restorer_of(receipt: Receipt, folder: Folder) -> Restorer:
        target = os.path.realpath(absolute(_given("the folder to restore to", to)))
        paths = _paths(receipt, target, map or {})
        _check(paths, overwrite=overwrite)
        return Restorer(receipt, folder, target, paths, overwrite=overwrite, durable=durable, concurrency=concurrency)

    restorer = await in_thread(prepare, lambda made: made.run.discard())
    async with running(restorer.run):
        yield restorer


def _paths(receipt: Receipt, to: str, mapped: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Return where each dump goes."""
    names = set(receipt.known)
    if unknown := [name for name in mapped if name not in names]:
        raise ReceiptError(*(f"{receipt.path} names no dump {name!r}, which is to be mapped" for name in unknown))
    chosen = {name: _given(f"the target of {name}", path) for name, path in mapped.items()}
    paths = {
        file.name: _resolved(os.path.join(to, chosen.get(file.name, default_target(file))))
        for file in receipt.known.values()
    }
    own = os.path.realpath(os.path.dirname(receipt.path))
    if wrong := [path for path in {to, *paths.values()} if own in {os.path.dirname(path), os.path.realpath(path)}]:
        raise ReceiptError(f"{wrong[0]} is in the folder of the dumps: restore elsewhere")
    if wrong := [path for path in paths.values() if os.path.basename(path).startswith(TEMPORARY_PREFIX)]:
        raise ReceiptError(f"{wrong[0]} is a name that asyncdump uses itself")
    folders = {to, *map(os.path.dirname, paths.values())}
    if wrong := sorted(folders.union(*map(_above, folders)) & set(paths.values())):
        raise ReceiptError(f"{wrong[0]} is a folder that dumps are restored to, and the target of one")
    dumps: dict[str, list[str]] = defaultdict(list)
    for name, path in paths.items():
        dumps[path].append(name)
    if twice := {path: names for path, names in dumps.items() if len(names) > 1}:
        raise ReceiptError(
            *(f"{path} is the target of {' and '.join(names)}; map one elsewhere" for path, names in twice.items())
        )
    return paths


def _above(path: str) -> set[str]:
    """Return the folders that a path is in."""
    folders: set[str] = set()
    while (folder := os.path.dirname(path)) not in {path, *folders}:
        folders.add(folder)
        path = folder
    return folders


def _given(what: str, path: str | os.PathLike[str]) -> str:
    try:
        return as_path(path)
    except ValueError as error:
        raise ReceiptError(f"{what} {error}") from error


def _resolved(path: str) -> str:
    """Return a path that is the same for all ways to write it; a link at its end is left to be replaced."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def default_target(file: FileReport) -> str:
    """Return the name under which a dump is restored: its own, without ``.zst`` if it is compressed.

    What is left must be such a name as well: ``...zst`` is restored as it is called, not to ``..``.
    """
    shorter = file.name.removesuffix(".zst") if is_compressed(file) else file.name
    return file.name if name_complaint(shorter) else shorter


def _check(paths: Mapping[str, str], *, overwrite: bool) -> None:
    problems = []
    for path in paths.values():
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            problems.append(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a device, a fifo or a socket'}")
        elif not overwrite:
            problems.append(f"{path} exists already: restore elsewhere, or allow --overwrite")
    if len(problems) > _MOST:
        problems[_MOST:] = [f"and {len(problems) - _MOST} more"]
    if problems:
        raise ReceiptError(*problems)


def _planned(file: FileReport, *, durable: bool) -> PlannedDump:
    if file.error is not None:
        raise DumpError(f"{file.path} was not dumped: {file.error}", path=file.path, hint=file.error.hint)
    if programs := went_through(file):
        raise DumpError(
            f"{file.path} went through {', '.join(programs)}, which can't be undone here",
            path=file.path,
            operation="restore",
            hint="undo that by hand, and put the result into its place",
        )
    source, length = look_at(file)
    return planned(file, source=source, length=length, durable=durable, sparse=True)


def _short_of_pages(dumps: Iterable[PlannedDump], targets: Targets, *, look: bool = False) -> list[str]:
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
    return problems if look or not problems else _short_of_pages(dumps, targets, look=True)


def _pages(dump: PlannedDump, page: int, *, look: bool) -> int:
    """Return how many huge pages the content of a dump takes; only ``look`` reads what is stored raw."""
    assert dump.expected is not None
    fd = open_regular(dump.source.path)
    data: Iterator[tuple[int, int]]
    try:
        if is_compressed(dump.expected):
            frames = listed_frames(fd, dump.source.path) or ()
            data = ((frame.offset, frame.length) for frame in frames if frame.stored * _ZERO_RATIO > frame.length)
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


def _short_of_space(dumps: Iterable[PlannedDump], targets: Targets) -> list[str]:
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
