"""The append-only account of a run under way: one record a dump, there before the dump has its name.

A line is the CRC-32 of its JSON in hexadecimal, a space, and the JSON. The first is the head, each other one tells of a
dump. A line that was cut, by a crash or a full disk, has another checksum: reading ends there.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.record import LARGEST, brief, file_of, file_record
from asyncdump.report import FileReport
from asyncdump.sink import TEMPORARY_PREFIX, Folder

JOURNAL: Final = f"{TEMPORARY_PREFIX}journal"

_VERSION: Final = 1
_EARLIER: Final = "earlier"
"""The key of what was taken over from a run before."""
_CRC: Final = 8


class Head(msgspec.Struct, kw_only=True):
    """What a journal begins with.

    Attributes:
        files: how many dumps the run was to make.
        started: UTC, ISO 8601.
    """

    journal: int = _VERSION
    files: int = 0
    started: str = ""
    manifest_sha256: str = ""


class Journal:
    """Written by several threads; `close` it in the end, or `remove` it when the receipt stands."""

    def __init__(self, folder: Folder, head: Head, earlier: Iterable[FileReport] = ()) -> None:
        """Begin a journal, with what an earlier run has done; one that stood there is replaced at once or not at all.

        Raises:
            DumpError: it can't be written.
        """
        self.path: Final = os.path.join(folder.path, JOURNAL)
        self._folder: Final = folder
        self._turn = threading.Lock()
        self._end = 0
        draft = None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(JOURNAL, flags, 0o600, dir_fd=folder.fd)
        except FileExistsError:
            draft = folder.create(JOURNAL)
            self._fd = os.dup(draft.fd)
        except OSError as error:
            raise from_oserror(error, "open", self.path) from error
        try:
            known = self._lines(earlier, {_EARLIER: True})
            self._write(line(msgspec.to_builtins(head)) + known)
            # Durable before it counts: cut short, it would know less than what stood there.
            if (known or draft is not None) and (failure := self.sync()) is not None:
                raise failure
            if draft is not None and (failure := draft.rename(overwrite=True)) is not None:
                raise failure
        except BaseException:
            (self.remove if draft is None else draft.abort)()
            self.close()
            raise
        if draft is not None:
            draft.close()

    def append(self, files: Iterable[FileReport]) -> None:
        """Add dumps that are about to get their names.

        Raises:
            DumpError: it can't be written; what was written of them is taken back.
        """
        self._write(self._lines(files, {}))

    def _lines(self, files: Iterable[FileReport], more: dict[str, bool]) -> bytes:
        """Return the lines of dumps, brief where they would be more than half of what is read of a journal."""
        files = list(files)
        lines = b"".join(line({**file_record(file), **more}) for file in files)
        if self._end + len(lines) > LARGEST:
            lines = b"".join(line({**file_record(brief(file)), **more}) for file in files)
        if self._end + len(lines) > 2 * LARGEST:
            raise DumpError(f"{self.path} has {2 * LARGEST >> 20} MiB, more than is read", path=self.path)
        return lines

    def _write(self, lines: bytes) -> None:
        view = memoryview(lines)
        with self._turn, explain("write", self.path):
            os.lseek(self._fd, self._end, os.SEEK_SET)
            done = 0
            try:
                while done < len(view):
                    done += os.write(self._fd, view[done:])
            except OSError:
                # What is written next may be shorter: whole lines behind it would be read again.
                with suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise
            self._end += done

    def sync(self) -> DumpError | None:
        """Make durable what was added (fdatasync(2)); return the error, if any."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            return from_oserror(error, "fdatasync", self.path)
        return None

    def remove(self) -> None:
        """Take the journal away: the receipt says all that it said."""
        with suppress(OSError):
            os.unlink(JOURNAL, dir_fd=self._folder.fd)

    def close(self) -> None:
        os.close(self._fd)


def line(content: Any) -> bytes:
    """Return one line of a journal."""
    encoded = msgspec.json.encode(content)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


class Told(NamedTuple):
    """What a journal tells: of each dump the last record; ``earlier`` of those that this run has not come to."""

    head: Head
    files: tuple[FileReport, ...]
    earlier: tuple[FileReport, ...]


def read_journal(content: bytes, folder: str) -> Told | None:
    """Return what a journal in ``folder`` tells; None if not even its head is whole."""
    lines = _whole_lines(content)
    try:
        head = msgspec.convert(next(lines), Head)
    except (StopIteration, msgspec.ValidationError):
        return None
    if head.journal != _VERSION:
        return None
    files: dict[str, FileReport] = {}
    earlier: dict[str, FileReport] = {}
    for record in lines:
        try:
            file = file_of(record, folder)
        except ValueError:
            break
        (earlier if record.get(_EARLIER) else files)[file.name] = file
    rest = (file for name, file in earlier.items() if name not in files)
    return Told(head, tuple(files.values()), tuple(rest))


def _whole_lines(content: bytes) -> Iterator[Any]:
    for each in content.split(b"\n")[:-1]:  # What stands behind the last end of a line was cut.
        crc, encoded = each[:_CRC], each[_CRC + 1 :]
        if crc != b"%08x" % zlib.crc32(encoded):
            return
        try:
            yield msgspec.json.decode(encoded)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors.
            return
