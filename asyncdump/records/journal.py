"""The append-only account of a run under way: one record a dump, there before the dump has its name.

A line is the CRC-32 of its JSON in hexadecimal, a space, and the JSON. The first is the head, each other one tells of a
dump. A line that was cut, by a crash or a full disk, has another checksum: reading ends there.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.kernel.linux import close_quietly, some
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
from asyncdump.sinks.folder import Folder
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

    def __init__(self, folder: Folder, head: Head, earlier: Iterable[FileReport] = ()) -> None:
        """Begin a journal, with what an earlier run has done; one that stood there is replaced at once or not at all.

        Raises:
            DumpError: it can't be written.
        """
        self.path: Final = os.path.join(folder.path, JOURNAL)
        self._folder: Final = folder
        self._head: Final = head
        self._earlier: Final = tuple(earlier)
        self._files: Final[list[FileReport]] = []
        self._turn = threading.Lock()
        self._fd = -1
        self._end = 0
        self._lost: DumpError | None = None
        # With what an earlier run has done it is durable before it counts: cut short, it would know less than before.
        if folder.exists(JOURNAL):
            self._renew()
            return
        with explain("open", self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(JOURNAL, flags, 0o600, dir_fd=folder.fd)
        folder.hold(JOURNAL)
        try:
            self._write(self._content())
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
            if self._lost is not None:
                self._renew()
            self._write(self._lines(told, self._end))
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

    def _write(self, lines: bytes) -> None:
        view = memoryview(lines)
        with explain("write", self.path):
            os.lseek(self._fd, self._end, os.SEEK_SET)
            done = 0
            try:
                while done < len(view):
                    done += some(os.write(self._fd, view[done:]))
            except OSError:
                self._take_back()
                raise
            self._end += done

    def _take_back(self) -> None:
        # What is written next may be shorter: whole lines behind it would be read again.
        try:
            os.ftruncate(self._fd, self._end)
        except OSError as error:
            self._lost = from_oserror(error, "ftruncate", self.path)

    def _renew(self) -> None:
        """Write it anew; what stood there stands there still if that fails.

        Raises:
            DumpError: it can't be written, or not be made durable.
        """
        draft = self._folder.create(JOURNAL)
        try:
            content = self._content()
            with explain("write", self.path):
                draft.write_cached(memoryview(content), 0)
            if (failure := draft.sync() or draft.rename(overwrite=True) or self._folder.sync()) is not None:
                raise failure
            with explain("dup", self.path):
                replaced, self._fd = self._fd, os.dup(draft.fd)
        finally:
            draft.abort()
        if replaced >= 0:
            close_quietly(replaced)
        self._end = len(content)
        self._lost = None

    def sync(self) -> DumpError | None:
        """Make durable what was added (fdatasync(2)), if need be by writing it anew; return the error, if any."""
        with self._turn:
            try:
                if self._lost is None:
                    os.fdatasync(self._fd)
                    return None
            except OSError as error:
                self._lost = from_oserror(error, "fdatasync", self.path)
            try:
                self._renew()
            except DumpError as error:
                return error
            return None

    def remove(self) -> None:
        """Take the journal away: the receipt says all that it said."""
        with suppress(OSError):
            os.unlink(JOURNAL, dir_fd=self._folder.fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)


def line(content: Head | Record) -> bytes:
    """Return one line of a journal."""
    encoded = msgspec.json.encode(content)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


class Told(NamedTuple):
    """What a journal tells: of each dump the last record; ``earlier`` of those that this run has not come to."""

    head: Head
    files: tuple[FileReport, ...]
    earlier: tuple[FileReport, ...]


class _Version(msgspec.Struct, gc=False):
    journal: int


_VERSION: Final = msgspec.json.Decoder(_Version)
_HEAD: Final = msgspec.json.Decoder(Head)
_LINE: Final = msgspec.json.Decoder(Record)


def read_journal(content: bytes, folder: str) -> Told | None:
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
    return Told(head, tuple(files.values()), tuple(rest))


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
