"""The dumps of a run, put back: into huge pages through a mapping, into tmpfs and ordinary files by the engines."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.errors import DumpError, ReceiptError, absolute
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.plan.pools import short_of_pages, short_of_space
from asyncdump.plan.readback import to_restore
from asyncdump.records.receipt import Receipt, open_receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.targets import Targets
from asyncdump.text import as_path
from asyncdump.vocabulary.names import TEMPORARY_PREFIX, name_complaint
from asyncdump.vocabulary.values import Concurrency

_MOST: Final = 20


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
                dumps.append(to_restore(file, durable=durable))
            except DumpError as error:
                self._failed[file.name] = msgspec.structs.replace(
                    file, error=error, stage="plan", bytes=0, path=paths[file.name]
                )
        self._targets = Targets(to, {dump.name: paths[dump.name] for dump in dumps})
        try:
            if problems := [
                *self._targets.clashes(),
                *short_of_pages(dumps, self._targets),
                *short_of_space(dumps, self._targets),
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
    codec = stored_by(file.stages)
    shorter = file.name if codec is None else file.name.removesuffix(codec.suffix)
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
