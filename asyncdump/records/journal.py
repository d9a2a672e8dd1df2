"""The append-only account of a run under way: one record a dump, there before the dump has its name.

A line is the CRC-32 of its JSON in hexadecimal, a space, and the JSON. The first is the head, each other one tells of a
dump. A line that was cut, by a crash or a full disk, has another checksum: reading ends there.
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
    """What a journal begins with.

    Attributes:
        files: how many dumps the run was to make.
        started: UTC, ISO 8601.
    """

    journal: int = VERSION
    files: int = 0
    started: str = ""
    manifest_sha256: str = ""


class Journal:
    """Written by several threads; `close` it in the end, or `remove` it when the receipt stands.

    Once a call has failed that was to make it durable, nothing tells what of it is on the disk, whatever later calls
    say: it is written anew, all of it, into another file that takes its name. Until that succeeds nothing is added.
    """

    def __init__(self, store: Store, head: Head, earlier: Iterable[FileReport] = ()) -> None:
        """Begin a journal, with what an earlier run has done; one that stood there is replaced at once or not at all.

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
        # With what an earlier run has done it is durable before it counts: cut short, it would know less than before.
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
        """Add dumps that are about to get their names.

        Raises:
            DumpError: it can't be written; what was written of them is taken back.
        """
        told = tuple(files)
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
        """Return the lines of dumps, to stand from byte ``end`` on: brief past half of what is read of a journal."""
        lines = b"".join(line(file_record(file, earlier=earlier)) for file in files)
        if end + len(lines) > LARGEST:
            lines = b"".join(line(file_record(brief(file), earlier=earlier)) for file in files)
        if end + len(lines) > 2 * LARGEST:
            raise DumpError(f"{self.path} has {2 * LARGEST >> 20} MiB, more than is read", path=self.path)
        return lines

    def _add(self, lines: bytes) -> None:
        self._log.append(lines)
        self._end += len(lines)

    def _renew(self) -> None:
        """Write it anew; what stood there stands there still if that fails.

        Raises:
            DumpError: it can't be written, or not be made durable.
        """
        content = self._content()
        replaced, self._log = self._log, self._store.renew_log(JOURNAL, content)
        replaced.close()
        self._end = len(content)

    def sync(self) -> DumpError | None:
        """Make durable what was added (fdatasync(2)), if need be by writing it anew; return the error, if any."""
        with self._turn:
            if self._log.sync() is None:
                return None
            try:
                self._renew()
            except DumpError as error:
                return error
            return None

    def remove(self) -> None:
        """Take the journal away: the receipt says all that it said."""
        self._store.remove(JOURNAL)

    def close(self) -> None:
        self._log.close()


def line(content: Head | Record) -> bytes:
    """Return one line of a journal."""
    encoded = msgspec.json.encode(content)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


class JournalContent(NamedTuple):
    """What a journal tells: of each dump the last record; ``earlier`` of those that this run has not come to."""

    head: Head
    files: tuple[FileReport, ...]
    earlier: tuple[FileReport, ...]


class _Version(msgspec.Struct, gc=False):
    journal: int


_VERSION: Final = msgspec.json.Decoder(_Version)
_HEAD: Final = msgspec.json.Decoder(Head)
_LINE: Final = msgspec.json.Decoder(Record)


def read_journal(content: bytes, folder: str) -> JournalContent | None:
    """Return what a journal in ``folder`` tells; None if not even its head is whole.

    Raises:
        DumpError: it is of a version that isn't read here.
    """
    lines = _whole_lines(content)
    try:
        first = next(lines)
        version = _VERSION.decode(first).journal
        if version not in READABLE:
            raise unreadable(os.path.join(folder, JOURNAL), version)
        head = _HEAD.decode(first)
    except (StopIteration, ValueError, RecursionError):  # msgspec's errors are ValueErrors.
        return None
    files: dict[str, FileReport] = {}
    earlier: dict[str, FileReport] = {}
    room = SLACK
    for each in lines:
        room += len(each) - SHORTEST
        if room < 0:
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
    """Tell whether a journal ends within its head: its run has ended before it made anything.

    The head is written first, in one line, and a dump gets its name after its own line. A whole line that can't be read
    is another matter: it may be that of a newer version, or damage.
    """
    return b"\n" not in content


def _whole_lines(content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    begin = 0
    while (end := content.find(b"\n", begin)) >= 0:  # What stands behind the last end of a line was cut.
        crc, encoded = view[begin : begin + _CRC], view[begin + _CRC + 1 : end]
        if end - begin <= _CRC or crc != b"%08x" % zlib.crc32(encoded):
            return
        yield encoded
        begin = end + 1
