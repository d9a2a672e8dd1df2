"""The append-only journal of a run in progress: one record for each dump, written before the dump is published.

A line consists of the CRC-32 of its JSON in hexadecimal, a space, and the JSON. The first line is the head, each other
line is the record of a dump. If a line was truncated by a crash or a full disk, its checksum doesn't match, and reading
stops there.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from asyncdump.errors import DumpError
from asyncdump.records.record import (
    LARGEST,
    READABLE,
    SHORTEST,
    SLACK,
    VERSION,
    Record,
    brief,
    file_of,
    file_record,
    unreadable,
)
from asyncdump.records.report import FileReport
from asyncdump.sinks.place import Log, Store
from asyncdump.vocabulary.names import JOURNAL

_CRC: Final = 8


class Head(msgspec.Struct, kw_only=True):
    """The first line of a journal.

    Attributes:
        files: the number of dumps in the plan.
        started: when the run began, in UTC (ISO 8601).
    """

    journal: int = VERSION
    files: int = 0
    started: str = ""
    manifest_sha256: str = ""


class Journal:
    """The journal of a run, written by several threads. `close` it in the end; `remove` it once there is a receipt.

    After a failed sync, its content on disk is unknown, even if later syncs succeed. It is then written again from the
    start, into a new file that replaces it. Nothing is appended until that has succeeded.
    """

    def __init__(self, store: Store, head: Head, earlier: Iterable[FileReport] = ()) -> None:
        """Begin a journal with the records of earlier runs; an existing journal is replaced atomically.

        Raises:
            DumpError: it can't be written.
        """
        self.path: Final = os.path.join(store.path, JOURNAL)
        self._store: Final = store
        self._head: Final = head
        self._earlier: Final = tuple(earlier)
        self._files: Final[list[FileReport]] = []
        self._turn = threading.Lock()
        self._end = 0
        # With records of earlier runs, it is made durable before it is used: truncated by a crash, it would have fewer
        # records than the journal that it replaces.
        if store.exists(JOURNAL):
            content = self._content()
            self._log: Log = store.renew_log(JOURNAL, content)
            self._end = len(content)
            return
        self._log = store.new_log(JOURNAL)
        try:
            self._add(self._content())
            if self._earlier and (failure := self.sync()) is not None:
                raise failure
        except BaseException:
            self.remove()
            self.close()
            raise

    def append(self, files: Iterable[FileReport]) -> None:
        """Append dumps that are about to be published.

        Raises:
            DumpError: it can't be written; partly written lines are removed again.
        """
        told = tuple(files)  # Outside of the turn, because making records may take time.
        with self._turn:
            if self._log.lost is not None:
                self._renew()
            self._add(self._lines(told, self._end))
            self._files.extend(told)

    def _content(self) -> bytes:
        head = line(self._head)
        earlier = self._lines(self._earlier, len(head), earlier=True)
        return head + earlier + self._lines(self._files, len(head) + len(earlier))

    def _lines(self, files: Sequence[FileReport], end: int, *, earlier: bool = False) -> bytes:
        """Return the lines of dumps, which start at byte ``end``; past half of the maximum size, records are brief."""
        lines = b"".join(line(file_record(file, earlier=earlier)) for file in files)
        if end + len(lines) > LARGEST:
            lines = b"".join(line(file_record(brief(file), earlier=earlier)) for file in files)
        if end + len(lines) > 2 * LARGEST:
            raise DumpError(f"{self.path} has {2 * LARGEST >> 20} MiB, more than the limit", path=self.path)
        return lines

    def _add(self, lines: bytes) -> None:
        self._log.append(lines)
        self._end += len(lines)

    def _renew(self) -> None:
        """Write it again from the start; if that fails, the old file is unchanged.

        Raises:
            DumpError: it can't be written or synced.
        """
        content = self._content()
        replaced, self._log = self._log, self._store.renew_log(JOURNAL, content)
        replaced.close()
        self._end = len(content)

    def sync(self) -> DumpError | None:
        """Make it durable (fdatasync(2)), if necessary by writing it again; return the error, if any."""
        with self._turn:
            if self._log.sync() is None:
                return None
            try:
                self._renew()
            except DumpError as error:
                return error
            return None

    def remove(self) -> None:
        """Remove the journal: the receipt has all its records."""
        self._store.remove(JOURNAL)

    def close(self) -> None:
        self._log.close()


def line(content: Head | Record) -> bytes:
    """Return one line of a journal."""
    encoded = msgspec.json.encode(content)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


class JournalContent(NamedTuple):
    """The content of a journal: the last record of each dump; ``earlier`` are those that this run has not reached."""

    head: Head
    files: tuple[FileReport, ...]
    earlier: tuple[FileReport, ...]


class _Version(msgspec.Struct, gc=False):
    journal: int


_VERSION: Final = msgspec.json.Decoder(_Version)
_HEAD: Final = msgspec.json.Decoder(Head)
_LINE: Final = msgspec.json.Decoder(Record)


def read_journal(content: bytes, folder: str) -> JournalContent | None:
    """Return the content of a journal in the directory ``folder``; None if its head is truncated.

    Raises:
        DumpError: its version isn't supported.
    """
    lines = _whole_lines(content)
    try:
        first = next(lines)
        version = _VERSION.decode(first).journal
        if version not in READABLE:
            raise unreadable(os.path.join(folder, JOURNAL), version)
        head = _HEAD.decode(first)
    except (StopIteration, ValueError, RecursionError):  # The errors of msgspec are ValueErrors.
        return None
    files: dict[str, FileReport] = {}
    earlier: dict[str, FileReport] = {}
    room = SLACK
    for each in lines:
        room += len(each) - SHORTEST
        if room < 0:  # Many lines shorter than any record would need far more memory than the file has bytes.
            break
        try:
            read = _LINE.decode(each)
            file = file_of(read, folder, head.started)
        except (ValueError, RecursionError):
            break
        (earlier if read.earlier else files)[file.name] = file
    rest = (file for name, file in earlier.items() if name not in files)
    return JournalContent(head, tuple(files.values()), tuple(rest))


def is_cut(content: bytes) -> bool:
    """Return whether a journal ends within its head, so that its run has ended before it published anything.

    The head is the first line, and a dump is published after its own line was written. A complete line that can't be
    read is different: it may be of a newer version, or damaged.
    """
    return b"\n" not in content


def _whole_lines(content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    begin = 0
    while (end := content.find(b"\n", begin)) >= 0:  # A last line without its end is truncated.
        crc, encoded = view[begin : begin + _CRC], view[begin + _CRC + 1 : end]
        if end - begin <= _CRC or crc != b"%08x" % zlib.crc32(encoded):
            return
        yield encoded
        begin = end + 1
