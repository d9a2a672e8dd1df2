"""The output of a plan: what exists there, what may be replaced, and whether the dumps fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asyncdump.errors import DumpError, Problem, describe_errno
from asyncdump.kernel.linux import TRUE_ERRORS
from asyncdump.manifest.options import Overrides
from asyncdump.plan.plan import PlannedDump
from asyncdump.plan.room import need_more, needed
from asyncdump.records.receipt import is_journal_empty, read_receipt
from asyncdump.records.record import LARGEST, room
from asyncdump.records.report import FileReport
from asyncdump.sinks.output import local_folder, open_store
from asyncdump.sinks.place import Entry, Store
from asyncdump.vocabulary.names import JOURNAL, LISTS, RECEIPT
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_SHOWN: Final = 3
_HEAD_OF_RECEIPT: Final = 64 << 10
"""The maximum size of a receipt before its records: two paths of 4 KiB, with each byte escaped if necessary."""

Keyed = tuple[str, PlannedDump]
"""A planned dump, with the key of its entry in the manifest."""

Complain = Callable[[str, str, str], Problem]
"""Records a problem: the key that it concerns, the message, and the remedy."""


class Destination:
    """Checks the planned dumps against an output, without changing it.

    Attributes:
        free: the free bytes on its filesystem, once `check` was called; 0 if that isn't known.
        earlier: the dumps of earlier runs, by name; only with ``resume``.
        existing: the problems that only concern existing files that must not be replaced.
    """

    def __init__(self, output: str, options: Overrides, complain: Complain) -> None:
        self.free = 0
        self.earlier: dict[str, FileReport] = {}
        self.existing: list[Problem] = []
        self._output: Final = output
        self._options: Final = options
        self._report: Final = complain
        self._streamed: Final = output == STANDARD_OUTPUT
        self._lost = False  # Whether the records of earlier runs are unreadable.
        self._store: Store | None = None
        with suppress(DumpError):  # An output that exists and can't be opened is reported below.
            self._store = None if self._streamed else open_store(output, make=False)

    def close(self) -> None:
        """Close the output."""
        if self._store is not None:
            self._store.close()

    def _complain(self, key: str, message: str, remedy: str = "") -> Problem:
        return self._report(key, message, remedy)

    def check(self, dumps: list[Keyed]) -> None:
        """Complain about everything that would go wrong in the output."""
        planned = [dump for _, dump in dumps]
        if self._streamed:
            if len(dumps) > 1:
                self._complain("output", f"- is standard output, which accepts one dump, not {len(dumps)}")
            return
        if (folder := local_folder(self._output)) is not None:
            self.free = self._check_folder(folder, planned)
        self._check_twice(dumps)
        self._check_existing(dumps)
        self._check_records(planned)

    def read_earlier(self) -> None:
        """Read the records of earlier runs in the output."""
        if self._streamed:
            self._complain("output", "- is standard output, and a run to standard output can't be resumed")
            return
        try:
            if self._store is None and os.path.isdir(self._output):
                open_store(self._output, make=False).close()  # Raises the reason why it can't be opened.
            earlier = read_receipt(self._store) if self._store is not None else None
        except DumpError as error:
            message = f"{error}: the run can't be resumed without it"
            self._complain("output", message, "start from scratch with {overwrite} instead")
            self._lost = True
            return
        self.earlier = earlier.ours if earlier else {}

    def _check_folder(self, place: str, dumps: list[PlannedDump]) -> int:
        """Check that a directory can be written to and has enough space; return the free bytes."""
        while not os.path.lexists(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            self._complain("output", f"{place} is not a directory")
            return 0
        try:
            status = os.statvfs(place)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                self._complain("output", f"{place} can't be accessed: {describe_errno(error.errno or 0)}")
            return 0  # Denied by a sandbox: errors will be reported when they occur.
        if status.f_flag & os.ST_RDONLY:
            self._complain("output", f"{place} is on a read-only filesystem")
        elif not os.access(place, os.W_OK | os.X_OK):
            self._complain("output", f"{place} is not writable by this user (EACCES)")
        free = status.f_bavail * status.f_frsize
        new = [dump for dump in dumps if dump.name not in self.earlier or not self.earlier[dump.name].ok]
        total = sum(needed(dump, place) for dump in new)
        if total > free and need_more(new, place, free):
            self._complain(
                "output", f"{place} has {format_size(free)} free, but the dumps need up to {format_size(total)}"
            )
        return free

    def _check_twice(self, dumps: list[Keyed]) -> None:
        """Complain about dumps of the same name."""
        taken: dict[str, PlannedDump] = {}
        for key, dump in dumps:
            if (other := taken.setdefault(dump.name, dump)) is not dump:
                self._complain(
                    f"{key}.name",
                    f"{dump.name} is the name of two dumps, of {other.source.path} and of {dump.source.path}: "
                    "use {index} or {parent} in the name",
                )

    def _check_existing(self, dumps: list[Keyed]) -> None:
        """Complain about names in the output that are taken."""
        existing, comparable = self._taken(dumps)
        lists = sorted({LISTS[dump.checksum] for _, dump in dumps if dump.checksum != "none"})
        if self._options.get("resume"):
            existing = self._not_resumable(dumps, existing, comparable, lists)
            instead = "they are not from an earlier run: move them away, or also pass {overwrite}"
        else:
            # Without a receipt, an existing digest list isn't ours and must not be replaced.
            existing += [RECEIPT] if self._stands(RECEIPT) else filter(self._stands, lists)
            instead = "choose another directory, or pass {overwrite}"
            if self._stands(JOURNAL) and not self._is_empty_journal():
                existing = existing or ["the journal of an unfinished run"]
                instead = "continue that run with {resume}, choose another directory, or pass {overwrite}"
        for name in (RECEIPT, JOURNAL):
            if (entry := self._entry(name)) is not None and entry.kind == "folder":
                self._complain("output", f"{name} is a directory in {self._output}: move it away")
        if existing and not self._options.get("overwrite") and not self._lost:
            names = ", ".join(existing[:_SHOWN]) + (f" and {len(existing) - _SHOWN} more" * (len(existing) > _SHOWN))
            self.existing.append(self._complain("output", f"{self._output} has {names} already", instead))

    def _taken(self, dumps: list[Keyed]) -> tuple[list[str], set[str]]:
        """Return the names of dumps that exist, and those among them that may be unrecorded dumps."""
        sources = {(dump.source.device, dump.source.inode): dump.source.path for _, dump in dumps}
        existing = []
        comparable = set()
        for key, dump in dumps:
            if (entry := self._entry(dump.name)) is None:
                continue
            if (source := sources.get((entry.device, entry.inode))) is not None:
                self._complain(f"{key}.name", f"{dump.name} in {self._output} is {source}, one of the sources")
            elif entry.kind == "folder":
                self._complain(f"{key}.name", f"{dump.name} is a directory in {self._output}")
            else:
                existing.append(dump.name)
                if _may_be(dump, entry):
                    comparable.add(dump.name)
        return existing, comparable

    def _not_resumable(
        self, dumps: list[Keyed], existing: list[str], comparable: set[str], lists: list[str]
    ) -> list[str]:
        """Return the existing names that a resumed run neither keeps nor may replace."""
        if any(name not in self.earlier for name in existing):
            # Another run may have published them since the records were read; it has recorded them before that.
            self.read_earlier()
        self._check_earlier(dumps)
        # A file that may be an unrecorded dump is compared with its source during the run (`stranger`).
        existing = [name for name in existing if name not in self.earlier and name not in comparable]
        if not self._stands(RECEIPT) and not self._stands(JOURNAL) and not existing and not comparable:
            existing += filter(self._stands, lists)  # Nothing here was written by asyncdump.
        return existing

    def _check_earlier(self, dumps: list[Keyed]) -> None:
        """Complain about dumps that would replace the dump of another source."""
        for key, dump in dumps if not self._options.get("overwrite") else ():
            earlier = self.earlier.get(dump.name)
            if earlier is not None and earlier.source != dump.source.path and self._stands(dump.name):
                what = f"{dump.name} is the dump of {earlier.source} from an earlier run, not of {dump.source.path}"
                self._complain(f"{key}.name", what, "choose a different name, or also pass {overwrite}")

    def _check_records(self, dumps: list[PlannedDump]) -> None:
        """Complain if the receipt would exceed its maximum size."""
        names = {dump.name for dump in dumps}
        # If a dump fails, its receipt may also contain an older one, in this run or in one that resumes it.
        size = _HEAD_OF_RECEIPT + 2 * sum(room(dump.source.path, dump.name, dump.stages) for dump in dumps)
        size += sum(room(file.source, name, file.stages) for name, file in self.earlier.items() if name not in names)
        if size > LARGEST:
            message = f"is too long for one run: its receipt may reach {format_size(size)}, {format_size(LARGEST)} are"
            self._complain("dumps", f"{message} at most; split it into several runs with separate output directories")

    def _is_empty_journal(self) -> bool:
        """Return whether the existing journal contains no dump; one that can't be read may contain some."""
        with suppress(DumpError):
            return self._store is None or is_journal_empty(self._store)
        return False

    def _entry(self, name: str) -> Entry | None:
        return None if self._store is None else self._store.entry(name)

    def _stands(self, name: str) -> bool:
        return self._entry(name) is not None


def _may_be(dump: PlannedDump, entry: Entry) -> bool:
    """Return whether a file may be an unrecorded dump; the output of programs can't be compared with a source."""
    fits = dump.source.sized and (dump.compression is not None or entry.size == dump.length)
    return entry.kind == "file" and not dump.filters and fits
