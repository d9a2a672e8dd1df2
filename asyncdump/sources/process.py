"""A range of the memory of a process, as the process would see it, read without adding a page to the process.

Pages that the process has are read from it (`Owner`). Elsewhere, anonymous memory becomes a hole of the dump, and for a
mapped file the content of the file is read from the file itself, whose holes stay holes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from asyncdump.errors import DumpError, SourceChangedError, from_oserror
from asyncdump.kernel.memory import PAGE, Part, clear
from asyncdump.sources.extents import joined
from asyncdump.sources.file import FileSource
from asyncdump.sources.mappings import Mapping, gaps_in, mappings_in, open_mapped, outline
from asyncdump.sources.owner import Owner
from asyncdump.vocabulary.values import UNREADABLE, ProcessRange, Source, Span

_TEXT: Final = re.compile(r"pid (\d+) 0x([0-9a-f]+)-0x([0-9a-f]+)")

_PERMISSION: Final = (
    "it needs the capability CAP_SYS_PTRACE, or root; its own user may read it, too, if ptrace is allowed "
    "(/proc/sys/kernel/yama/ptrace_scope is 0, and the process is dumpable)"
)


class Piece(NamedTuple):
    """A part of the range, by its addresses: pages of the process, a part of a file, or a hole (``held`` is False)."""

    start: int
    end: int
    held: bool
    file: FileSource | None = None
    offset: int = 0


class ProcessSource:
    """A range of the memory of a process: an `OpenSource` without a descriptor to move bytes from."""

    fd: Final = None
    pace: Final = None

    def __init__(self, pid: int, address: int, length: int) -> None:
        """Open the range.

        Raises:
            DumpError: there is no such process, it can't be read, or not all of the range is mapped.
        """
        self._start: Final = address
        self._end: Final = address + length
        self._text: Final = f"pid {pid} {self._start:#x}-{self._end:#x}"
        with ExitStack() as stack, _explained(self._text):
            self._owner: Final = Owner(pid)
            stack.callback(self._owner.close)
            mappings = mappings_in(pid, self._start, self._end)
            self._check_mapped(mappings)
            self._outline: Final = outline(mappings, self._start, self._end)
            self._mappings: Final = [(mapping, _file_of(pid, mapping, stack)) for mapping in mappings]
            self.described: Final = self._describe(length)
            self._held: Final = stack.pop_all()

    def _describe(self, length: int) -> Source:
        owner = self._owner
        return Source(
            path=self._text,
            filesystem="process",
            page=PAGE,
            size=length,
            allocated=sum(span.length for span in self.spans(0, length) if not span.hole),
            device=0,
            inode=0,
            mtime_ns=0,
            process=ProcessRange(pid=owner.pid, address=self._start, started=owner.started, executed=owner.executed),
        )

    def _check_mapped(self, mappings: list[Mapping]) -> None:
        gap = next(gaps_in(mappings, self._start, self._end), None)
        if gap is not None:
            raise DumpError(
                f"{self._text} isn't completely mapped: nothing is mapped at {gap[0]:#x}-{gap[1]:#x}",
                path=self._text,
                operation="open",
                hint=f"/proc/{self._owner.pid}/maps lists the mappings",
            )

    # --- what is where ---------------------------------------------------------------------------------------------

    def spans(self, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
        pieces = self._pieces(self._start + offset, self._start + end)
        spans = (
            Span(offset=piece.start - self._start, length=piece.end - piece.start, hole=not piece.held)
            for piece in pieces
        )
        return joined(spans, shortest_hole)

    def _pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the current pieces of a range of addresses, in order and without gaps."""
        for mapping, file in self._mappings:
            done, last = max(start, mapping.start), min(end, mapping.end)
            if done >= last:
                continue
            for low, high in self._own_pages(done, last):
                if done < low:
                    yield from _elsewhere(mapping, file, done, low)
                yield Piece(low, high, held=True)
                done = high
            if done < last:
                yield from _elsewhere(mapping, file, done, last)

    def _own_pages(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        try:
            yield from self._owner.pages(start, end)
        except ProcessLookupError as error:
            raise self._gone() from error

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, view: memoryview, offset: int) -> int:
        """Read the current content, with zeros for holes; return how many bytes precede the first unreadable page.

        The pages are looked up for each read: short holes are read like data, and pages may have gone.
        """
        begin = self._start + offset
        end = max(begin, min(begin + len(view), self._end))
        parts: list[Part] = []
        for piece in self._pieces(begin, end):
            target = view[piece.start - begin : piece.end - begin]
            if not piece.held:
                clear(target)
            elif piece.file is None:
                parts.append((piece.start, target))
            else:
                _read_file(piece.file, target, piece.offset)
        try:
            bad = self._owner.read(parts, begin)
        except ProcessLookupError as error:
            raise self._gone() from error
        return (end if bad is None else bad) - begin

    # --- what it was -----------------------------------------------------------------------------------------------

    def ended(self, at: int, expected: int) -> DumpError:
        return self._changed(f"{self._text} ends at byte {at} instead of byte {expected}")

    def failure(self, error: OSError, operation: str, offset: int) -> DumpError:
        failure = from_oserror(error, f"{operation} at byte {offset} ({self._start + offset:#x})", self._text)
        failure.operation = operation
        if error.errno in UNREADABLE:
            failure.hint = "it has an unreadable page; to dump the rest, pass {on_read_error=zero}"
        return failure

    def check_end(self, end: int) -> None:
        """Check that the process still has the memory that it had when it was opened, regardless of ``end``."""
        for _ in self._own_pages(self._start, min(self._start + PAGE, self._start + end)):
            pass

    def check_still_valid(self, end: int) -> None:
        """Check that the process exists and has the same mappings; changes of their content aren't detected."""
        self.check_end(end)
        try:
            mappings = mappings_in(self._owner.pid, self._start, self._end)
        except OSError as error:
            raise self._gone() from error
        if outline(mappings, self._start, self._end) != self._outline:
            raise self._changed(f"{self._text} was unmapped, or mapped again, while it was dumped")

    def check_planned(self, planned: Source) -> None:
        """Check that it is the planned process, and that it executes the same program."""
        if self.described.process != planned.process:
            raise self._changed(f"{self._text} belongs to a different process or program than when the run was planned")

    def _gone(self) -> SourceChangedError:
        return self._changed(f"{self._text}: the process has ended, or executed another program")

    def _changed(self, message: str) -> SourceChangedError:
        return SourceChangedError(message, path=self._text, operation="read", hint="plan the run again")

    def close(self) -> None:
        self._held.close()


def _file_of(pid: int, mapping: Mapping, stack: ExitStack) -> FileSource | DumpError | None:
    """Open the file of a mapping; an error is returned, because it only matters if the file has to be read."""
    try:
        file = open_mapped(pid, mapping)
    except DumpError as error:
        if error.errno is None:
            raise
        return error
    if file is not None:
        stack.callback(file.close)
    return file


def _elsewhere(mapping: Mapping, file: FileSource | DumpError | None, start: int, end: int) -> Iterator[Piece]:
    """Yield what a process sees at addresses where it has no pages: a hole, or the content of a file."""
    if file is None:
        yield Piece(start, end, held=False)
        return
    if isinstance(file, DumpError):
        raise file
    shift = mapping.start - mapping.offset
    last = min(end - shift, _filled(file))
    for span in file.spans(start - shift, last):
        yield Piece(span.offset + shift, span.end + shift, held=not span.hole, file=file, offset=span.offset)
    if (beyond := max(start, last + shift)) < end:  # Past the end of the file, the process would get a SIGBUS.
        yield Piece(beyond, end, held=False)


def _filled(file: FileSource) -> int:
    """Return the offset after which a mapped file has no content now."""
    status = os.fstat(file.fd)
    # A file of huge pages doesn't list its holes. That of an anonymous private mapping is one hole: it has no blocks.
    return 0 if file.described.in_huge_pages and not status.st_blocks else status.st_size


def _read_file(file: FileSource, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view) and (got := file.read(view[done:], offset + done)):
        done += got
    clear(view[done:])


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block, which opens a range, into a `DumpError` that says which permission it needs."""
    try:
        yield
    except OSError as error:
        failure = from_oserror(error, "open", text)
        failure.hint = _PERMISSION
        if error.errno in {errno.ENOENT, errno.ESRCH}:
            failure.hint = "there is no such process, or it has no memory: it has exited, or is a kernel thread"
        raise failure from error


def parse_range(text: str) -> tuple[int, int, int]:
    """Parse a range in the notation of records, ``pid 4242 0x7f00-0x8f00``: process, address, length.

    Raises:
        ValueError: the text isn't a range.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a range of the memory of a process")
    start, end = int(found[2], 16), int(found[3], 16)
    return int(found[1]), start, end - start


def look_at_process(pid: int, address: int, length: int) -> Source:
    """Return the current description of a range of a process.

    Raises:
        DumpError: there is no such process, it can't be read, or not all of the range is mapped.
    """
    source = ProcessSource(pid, address, length)
    source.close()
    return source.described


def reopen(planned: Source) -> ProcessSource:
    """Open a planned range.

    Raises:
        SourceChangedError: it belongs to another process now, or the process executes another program.
        DumpError: it can't be opened.
    """
    assert planned.process is not None
    source = ProcessSource(planned.process.pid, planned.process.address, planned.size)
    try:
        source.check_planned(planned)
    except BaseException:
        source.close()
        raise
    return source
