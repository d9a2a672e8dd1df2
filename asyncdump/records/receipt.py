"""The receipt or journal of a run, as it is read back."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Final

import msgspec

from asyncdump.errors import DumpError, Problem, ReceiptError
from asyncdump.records.journal import is_cut, read_journal
from asyncdump.records.record import (
    LARGEST,
    READABLE,
    SHORTEST,
    SLACK,
    Record,
    file_of,
    unreadable,
)
from asyncdump.records.report import FileReport, Report
from asyncdump.sinks.output import open_named
from asyncdump.sinks.place import Store
from asyncdump.text import as_path
from asyncdump.vocabulary.names import JOURNAL, RECEIPT

_UNENDED: Final = "the run never ended"
"""Why the run of a journal was interrupted."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The content of a receipt, or of the journal of an unfinished run.

    Attributes:
        path: the file that was read.
        files: the outcome of each dump.
        earlier: dumps of earlier runs that this run hasn't replaced.
        missing: how many dumps of the plan had no record when the run was killed.
        started, ended: the times as they are recorded, or empty strings; seconds: the time between them.
        interrupted: what interrupted the run, or None.
        manifest_sha256: the SHA-256 of its manifest.
    """

    path: str
    files: tuple[FileReport, ...]
    earlier: tuple[FileReport, ...] = ()
    missing: int = 0
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    interrupted: str | None = None
    manifest_sha256: str = ""

    @property
    def report(self) -> Report:
        """The report that the run returned, or would have returned up to now."""
        started = ended = _moment(self.started)
        with suppress(OverflowError):  # A receipt may contain any number of seconds.
            ended = _moment(self.ended) if self.ended else started + timedelta(seconds=self.seconds)
        return Report(
            files=self.files,
            output=os.path.dirname(self.path),
            started=started,
            ended=ended,
            seconds=self.seconds,
            interrupted=self.interrupted,
            manifest_sha256=self.manifest_sha256,
            earlier=self.earlier,
            unrecorded=self.missing,
        )

    @cached_property
    def known(self) -> dict[str, FileReport]:
        """The record for each name: that of the latest complete dump, or of the failure if there is none."""
        known = {file.name: file for file in self.files}
        for file in self.earlier:
            if file.name not in known or (file.ok and not known[file.name].ok):
                known[file.name] = file
        return known

    @cached_property
    def ours(self) -> dict[str, FileReport]:
        """The dumps that asyncdump wrote, by name. A file under the name of a failed dump may be someone else's."""
        made = {file.name: file for file in (*self.earlier, *self.files) if file.inode}
        return made | {name: file for name, file in self.known.items() if file.ok}

    @cached_property
    def unmade(self) -> int:
        """How many dumps the last run has not written, so that there is no dump, or only an older one."""
        known = self.known
        older = sum(not file.ok and known[file.name].ok for file in self.files)
        return self.missing + older


def read_receipt(store: Store, name: str = RECEIPT) -> Receipt | None:
    """Return the receipt or journal of a store, or None if it has neither.

    A journal takes precedence: a receipt next to it is that of an earlier run, or has the same content.

    Raises:
        DumpError: it can't be read, or isn't a receipt.
    """
    content = _read(store, JOURNAL, 2 * LARGEST) if name == RECEIPT else None
    path = os.path.join(store.path, JOURNAL)
    journal = None if content is None else read_journal(content, store.path)
    if journal is not None:
        missing = max(0, journal.head.files - len(journal.files))
        return Receipt(
            path=path,
            files=journal.files,
            earlier=journal.earlier,
            missing=missing,
            started=journal.head.started,
            seconds=max((file.ended or 0.0 for file in journal.files), default=0.0),
            interrupted=_UNENDED,
            manifest_sha256=journal.head.manifest_sha256,
        )
    content = _read(store, name, LARGEST)
    return None if content is None else _parse(content, os.path.join(store.path, name), store.path)


def is_journal_empty(store: Store) -> bool:
    """Return whether the journal in a store is that of a run that ended before it published a dump.

    Raises:
        DumpError: it can't be read, or its version isn't supported, so that its content is unknown.
    """
    content = _read(store, JOURNAL, 2 * LARGEST)
    if content is None or is_cut(content):
        return True
    journal = read_journal(content, store.path)
    return journal is not None and not journal.files and not journal.earlier


def _read(store: Store, name: str, largest: int) -> bytes | None:
    try:
        return store.read_small(name, largest)
    except DumpError as error:
        if error.errno is not None:
            raise
        raise _wrong(error.path, str(error)) from error


class _Counted(msgspec.Struct, gc=False):
    bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Version(msgspec.Struct, gc=False):
    receipt: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class _Outline(msgspec.Struct, gc=False):
    """Decodes only the number of records, with almost no memory."""

    files: list[_Counted]
    earlier: list[_Counted] = []
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    interrupted: str | None = None
    manifest_sha256: str = ""


class _Content(msgspec.Struct, gc=False):
    files: list[msgspec.Raw]
    earlier: list[msgspec.Raw] = []


_RECORD: Final = msgspec.json.Decoder(Record)


def _parse(content: bytes, path: str, folder: str) -> Receipt:
    try:
        version = msgspec.json.decode(content, type=_Version).receipt
        if version not in READABLE:
            raise unreadable(path, version)
        outline = msgspec.json.decode(content, type=_Outline)
        count = len(outline.files) + len(outline.earlier)
        outline.files = outline.earlier = []
        if count * SHORTEST > len(content) + SLACK:
            raise _wrong(path, f"it lists {count} dumps in {len(content)} bytes")
        read = msgspec.json.decode(content, type=_Content)
        files, earlier = (_taken(records, folder, outline.started) for records in (read.files, read.earlier))
    except (ValueError, RecursionError) as error:  # The errors of msgspec are ValueErrors.
        raise _wrong(path, str(error)) from error
    if any(len({file.name for file in each}) < len(each) for each in (files, earlier)):
        raise _wrong(path, "it contains a name twice")
    return Receipt(
        path=path,
        files=files,
        earlier=earlier,
        started=outline.started,
        ended=outline.ended,
        seconds=outline.seconds,
        interrupted=outline.interrupted,
        manifest_sha256=outline.manifest_sha256,
    )


def _moment(written: str) -> datetime:
    """Parse a time; a missing time is long ago."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(written)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)


def _taken(records: list[msgspec.Raw], folder: str, run: str) -> tuple[FileReport, ...]:
    """Decode records one by one, so that other threads can run between two of them."""
    return tuple(file_of(_RECORD.decode(record), folder, run) for record in records)


def _wrong(path: str, why: str) -> DumpError:
    return DumpError(
        f"{path} is not a receipt of a run: {why}",
        path=path,
        operation="read",
        hint="specify the directory of a run, or its receipt.json",
    )


def open_receipt(what: str | os.PathLike[str], *, lock: bool = True) -> tuple[Receipt, Store]:
    """Read a receipt or journal, specified by its own path or by the place that contains it.

    With ``lock``, no run can start in the place until it is closed.

    Raises:
        ReceiptError: there is none, or it can't be read.
        BusyError: a run is using the place.
        DumpError: the place can't be opened.
    """
    try:
        given = as_path(what)
        store, name = open_named(given, RECEIPT)
    except ValueError as error:
        raise ReceiptError(f"the directory of the run {error}") from error
    try:
        if lock:
            store.lock(shared=True)
        try:
            receipt = read_receipt(store, RECEIPT if name in {"", JOURNAL} else name)
        except DumpError as error:
            raise ReceiptError(Problem(message=str(error), remedy=error.hint)) from error
        if receipt is not None and not receipt.known and not receipt.missing:
            raise ReceiptError(f"{receipt.path} lists no dumps")
        if receipt is None:
            path = os.path.join(store.path, name)
            raise ReceiptError(
                f"{path} does not exist" if name else f"there is no {RECEIPT} in {store.path}, and no journal of a run"
            )
    except BaseException:
        store.close()
        raise
    return receipt, store
