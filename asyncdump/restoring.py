"""Restoring: `restore_all` writes dumps back into huge pages, tmpfs or files; `open_restore` shows events."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.errors import DumpError, Problem, ReceiptError, TargetExistsError, opening_output
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.plan.pools import short_of_pages, short_of_space
from asyncdump.plan.readback import to_restore
from asyncdump.records.receipt import Receipt, open_receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.run.events import Event
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.output import entry_of, local_folder, open_store, resolve
from asyncdump.sinks.place import Store
from asyncdump.sinks.targets import TargetsPlace
from asyncdump.text import as_path
from asyncdump.vocabulary.names import TEMPORARY_PREFIX, name_complaint
from asyncdump.vocabulary.tables import listed
from asyncdump.vocabulary.values import Concurrency

_MOST: Final = 20


class Restorer:
    """A restore in progress: an asynchronous iterator of its events, like a `Run`."""

    def __init__(
        self,
        receipt: Receipt,
        store: Store,
        to: str,
        paths: Mapping[str, str],
        *,
        overwrite: bool,
        durable: bool,
        concurrency: Concurrency,
    ) -> None:
        self._order = [file.name for file in receipt.known.values()]
        self._missing = receipt.unmade
        self._failed: dict[str, FileReport] = {}
        dumps: list[PlannedDump] = []
        for file in receipt.known.values():
            try:
                dumps.append(to_restore(file, store, durable=durable))
            except DumpError as error:
                self._failed[file.name] = msgspec.structs.replace(
                    file, error=error, phase="plan", bytes=0, path=paths[file.name]
                )
        with opening_output():
            self._targets = TargetsPlace(to, {dump.name: paths[dump.name] for dump in dumps}, open_store)
        try:
            if problems := [
                *self._targets.clashes(),
                *short_of_pages(dumps, store, self._targets),
                *short_of_space(dumps, store, self._targets),
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
            self.run: Final = Run(plan, self._targets, store=store, receipt=False)
        except BaseException:
            self._targets.close()
            raise

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self.run)

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop it within about 100 ms: finished targets stay, others are removed. Call it from anywhere."""
        self.run.cancel(reason)

    @property
    def report(self) -> Report:
        """The outcome, once it has ended; ``path`` of each file is its target.

        Raises:
            RuntimeError: it hasn't ended.
        """
        report = self.run.report
        files = {file.name: file for file in report.files} | self._failed
        return msgspec.structs.replace(
            report, files=tuple(files[name] for name in self._order), unrecorded=self._missing, action="restored"
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
    """Restore the dumps of a run, and verify each of them against its digest while it is restored.

    A target appears under its final name only when it is complete, and verified if a digest was recorded. Zeros become
    holes. On hugetlbfs, the size of a target is a multiple of the huge page size.

    Args:
        what: the directory of the run, or its receipt.
        to: the directory for the targets, created with mode 0700 if missing. They have the names of the dumps, without
            ``.zst`` if those are compressed.
        map: other targets, by the names of their dumps; paths are relative to ``to``.
        overwrite: replace existing files; without it they are an error.
        durable: whether to wait until the targets would survive a power failure.
        concurrency: files in flight, or ``auto``.
        on_event: called with each event, as that of `dump_all`.

    Raises:
        ReceiptError: it can't be done: no receipt, too few huge pages. Nothing was written.
        TargetExistsError: targets exist; nothing was written.
        BusyError: a run is running in one of the directories.
        OutputError: a target directory can't be created or opened.
        DumpError: the directory of the run can't be opened, or no thread can be started.
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
    """Start what `restore_all` does, and yield it as an asynchronous iterator of its events::

        async with asyncdump.open_restore("/var/dumps/out", "/dev/hugepages") as restorer:
            async for event in restorer:
                print(event)
        restorer.report.raise_for_failures()

    Raises:
        ReceiptError: it can't be done: no receipt, too few huge pages. Nothing was written.
        TargetExistsError: targets exist; nothing was written.
        BusyError: a run is running in one of the directories.
        OutputError: a target directory can't be created or opened.
        DumpError: the directory of the run can't be opened, or no thread can be started.
    """

    def prepare() -> Restorer:
        receipt, store = open_receipt(what)
        try:
            return restorer_of(receipt, store)
        except BaseException:
            store.close()
            raise

    def restorer_of(receipt: Receipt, store: Store) -> Restorer:
        target = _target("the directory to restore to", to)
        paths = _paths(receipt, target, map or {})
        _check(paths, overwrite=overwrite)
        return Restorer(receipt, store, target, paths, overwrite=overwrite, durable=durable, concurrency=concurrency)

    restorer = await in_thread(prepare, lambda made: made.run.discard())
    async with running(restorer.run):
        yield restorer


def _paths(receipt: Receipt, to: str, mapped: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Return the path of the target of each dump."""
    names = set(receipt.known)
    if unknown := [name for name in mapped if name not in names]:
        raise ReceiptError(*(f"{receipt.path} doesn't contain the dump {name!r} to map" for name in unknown))
    chosen = {name: _given(f"the target of {name}", path) for name, path in mapped.items()}
    paths = {
        file.name: _resolved(os.path.join(to, chosen.get(file.name, default_target(file))))
        for file in receipt.known.values()
    }
    own = _real(os.path.dirname(receipt.path))
    if wrong := [path for path in {to, *paths.values()} if own in {os.path.dirname(path), _real(path)}]:
        raise ReceiptError(f"{wrong[0]} is in the directory of the dumps: choose another target directory")
    if wrong := [path for path in paths.values() if os.path.basename(path).startswith(TEMPORARY_PREFIX)]:
        raise ReceiptError(f"{wrong[0]} is reserved by asyncdump")
    folders = {to, *map(os.path.dirname, paths.values())}
    if wrong := sorted(folders.union(*map(_above, folders)) & set(paths.values())):
        raise ReceiptError(f"{wrong[0]} is the target of a dump, and a directory that dumps are restored to")
    dumps: dict[str, list[str]] = defaultdict(list)
    for name, path in paths.items():
        dumps[path].append(name)
    if twice := {path: names for path, names in dumps.items() if len(names) > 1}:
        raise ReceiptError(
            *(
                f"{path} is the target of {' and '.join(names)}; choose a different target for one of them"
                for path, names in twice.items()
            )
        )
    return paths


def _above(path: str) -> set[str]:
    """Return the directories above a path."""
    folders: set[str] = set()
    while (folder := os.path.dirname(path)) not in {path, *folders}:
        folders.add(folder)
        path = folder
    return folders


def _target(what: str, given: str | os.PathLike[str]) -> str:
    try:
        return _real(resolve(_given(what, given)))
    except ValueError as error:
        raise ReceiptError(str(error)) from error


def _real(output: str) -> str:
    """Return a canonical form of an output."""
    return output if local_folder(output) is None else os.path.realpath(output)


def _given(what: str, path: str | os.PathLike[str]) -> str:
    try:
        return as_path(path)
    except ValueError as error:
        raise ReceiptError(f"{what} {error}") from error


def _resolved(path: str) -> str:
    """Return a canonical form of a path; a symbolic link as its last component isn't resolved, but replaced."""
    if local_folder(path) is None:
        return path
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def default_target(file: FileReport) -> str:
    """Return the name under which a dump is restored: its own, without the suffix of its codec if it is compressed.

    The rest must be a valid name, too: ``...zst`` is restored as ``...zst``, not as ``..``.
    """
    codec = stored_by(file.stages)
    shorter = file.name if codec is None else file.name.removesuffix(codec.suffix)
    return file.name if name_complaint(shorter) else shorter


def _check(paths: Mapping[str, str], *, overwrite: bool) -> None:
    unfit: list[str] = []
    existing: list[str] = []
    for path in paths.values():
        entry = entry_of(path)
        if entry is None:
            continue
        if entry.kind not in {"file", "link"}:
            unfit.append(f"{path} is {'a directory' if entry.kind == 'folder' else 'a device, a FIFO or a socket'}")
        elif not overwrite:
            existing.append(path)
    remedy = "choose another directory, or pass {overwrite}"
    problems = [Problem(message=message) for message in unfit]
    if len(unfit) > _MOST:
        problems[_MOST:] = [Problem(message=f"and {len(unfit) - _MOST} more")]
    if existing:
        exist = "exists" if len(existing) == 1 else "exist"
        problems.append(Problem(message=f"{listed(existing)} {exist} already", remedy=remedy))
    if unfit:
        raise ReceiptError(*problems)
    if existing:
        raise TargetExistsError(*problems, path=existing[0], errno=errno.EEXIST)
