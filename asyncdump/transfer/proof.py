"""A dump read back and compared with its record: to verify it, to keep it, or on its way to where it is restored."""

from __future__ import annotations

import errno as errnos
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final

from asyncdump.codecs.content import damaged, decompress, listed_frames, stored_frame
from asyncdump.codecs.seekable import SeekTable
from asyncdump.codecs.zstd import FRAMES
from asyncdump.engines import Engine, Route
from asyncdump.engines.read import Read, fill
from asyncdump.errors import DamagedError, DumpError, SourceChangedError, explain
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import close_quietly, read_at
from asyncdump.records.report import FileReport
from asyncdump.sinks.file import ALIGNMENT, NOT_DIRECT, Draft, MappedDraft, Place
from asyncdump.sinks.mirror import Nowhere
from asyncdump.sources.file import Source, Span, describe, open_file, open_regular
from asyncdump.transfer.transfer import Stop, Transfer
from asyncdump.vocabulary.digest import BLOCK, Marked, first_damage, new_digest
from asyncdump.vocabulary.size import format_size

_STEP: Final = 1 << 20


class Proof(Transfer):
    """A `Transfer` of the content of a dump, that fails with `DamagedError` unless it is what ``expected`` says."""

    def __init__(self, source: Source, name: str, *, expected: FileReport, **options: Any) -> None:
        super().__init__(source, name, **{**options, "checksum": _kind(expected)})
        self._expected: Final = expected
        self._unpack: Unpack | None = None
        self._direct: DirectRead | None = None

    def _prepare(self, folder: Place) -> list[Engine]:
        with suppress(OSError):  # What the disk holds counts, not what the page cache may have of it still.
            os.posix_fadvise(self._route.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not is_compressed(self._expected):
            engines = super()._prepare(folder)
            # Only a mapping of ours fills huge pages, and nothing but what is read here can be compared on its way.
            kept = isinstance(self._route.sink, Draft) and not isinstance(self._route.sink, MappedDraft)
            self._direct = DirectRead(self._route.fd)
            return [self._direct if engine.method == "read" else engine for engine in engines if kept] or [self._direct]
        self._route.sink.resize(self.length)
        frames = _listed(self._route.fd, self._route.source.path)
        if frames.content != self.length:
            raise self._corrupt("its frames have changed since it was looked at", None)
        digest = self._expected.digest
        stored = new_digest(digest.partition(":")[0]) if digest else None  # type: ignore[arg-type] # checked by record
        self._unpack = Unpack(frames, stored)
        return [self._unpack]

    def _cut_spans(self, route: Route) -> Iterator[Span]:
        if self._unpack is None:
            yield from super()._cut_spans(route)
        else:
            yield from self._cut(Span(offset=0, length=self.length))

    def _load(self, engine: Engine, span: Span, lane: Lane) -> memoryview | None:
        try:
            return super()._load(engine, span, lane)
        except SourceChangedError as error:
            raise short(self._expected, os.fstat(self._route.fd).st_size) from error

    def _check_size(self, span: Span) -> None:  # noqa: ARG002 (what it was when it was written counts)
        size = os.fstat(self._route.fd).st_size
        if size < self._expected.size:
            raise short(self._expected, size)

    def _check_kept(self) -> None:
        self._check_size(Span(offset=0, length=self.length))  # Its digest tells the rest.

    def _finish(self, lane: Lane) -> None:
        if self._unpack is None:
            super()._finish(lane)
        else:
            self._unpack.finish(self._route, lane)
            self._note_stored(self._unpack.stored)
            self.content_digest = None if self._hasher is None else self._hasher.hexdigest()
        self._compare()

    def _compare(self) -> None:
        expected = self._expected
        if expected.digest is not None and self.digest != expected.digest.partition(":")[2]:
            block = first_damage(self.marks, expected.marks, expected.size)
            raise self._corrupt(f"its digest is another one, from the block at byte {block} on", block)
        content = expected.content_digest
        if content is not None and _holds_source(expected) and self.content_digest != content.partition(":")[2]:
            raise self._corrupt("its content has another digest", None)

    def _close_source(self) -> None:
        if self._direct is not None:
            self._direct.close()
        super()._close_source()

    def _corrupt(self, why: str, offset: int | None) -> DamagedError:
        path = self._expected.path
        return DamagedError(f"{path} is corrupt: {why}", verdict="corrupt", path=path, offset=offset)

    def _failure(self, error: OSError, engine: Engine, span: Span, lane: Lane, *, storing: bool = False) -> DumpError:
        failure = super()._failure(error, engine, span, lane, storing=storing)
        if isinstance(failure, DamagedError) or failure.path != self.source.path:
            return failure
        block = span.offset - span.offset % BLOCK
        return DamagedError(
            f"{self.source.path} is corrupt: {failure}",
            verdict="corrupt",
            path=failure.path,
            errno=failure.errno,
            offset=block,
        )


class DirectRead(Read):
    """`Read` past the page cache (O_DIRECT) where the filesystem takes that: a dump is read once, and no use there."""

    def __init__(self, fd: int) -> None:
        try:
            self._fd = open_file(f"/proc/self/fd/{fd}", flags=os.O_DIRECT)
        except OSError:
            self._fd = -1
        self._refused = self._fd < 0

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Read the span, in whole blocks as far as they go."""
        done = 0
        whole = -(-span.length // ALIGNMENT) * ALIGNMENT
        while not self._refused and done < span.length and (span.offset + done) % ALIGNMENT == 0:
            try:
                got = read_at(self._fd, lane.buffer.view[done:whole], span.offset + done)
            except OSError as error:
                if error.errno not in NOT_DIRECT:
                    raise
                self._refused = True
                break
            if got == 0:
                break
            done += got
        return fill(route, span, lane, done)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)


class Unpack(Read):
    """The frames of a .zst, decompressed one after another, each compared with its checksum."""

    span: ClassVar[int] = Read.span

    def __init__(self, frames: SeekTable, stored: Marked | None) -> None:
        self.stored: Final = stored
        self._frames = frames
        self._next = 0
        self._rest = memoryview(b"")
        self._end = 0

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Decompress what follows; spans come in their order."""
        view = lane.buffer.view[: span.length]
        filled = 0
        while filled < span.length:
            if not self._rest and self._frames[self._next].length <= span.length - filled:
                filled += self._unpack(route, lane, view[filled:])  # No larger than what is wanted: right into place.
                continue
            if not self._rest:
                held = memoryview(bytearray(self._frames[self._next].length))
                self._unpack(route, lane, held)
                self._rest = held
            piece = self._rest[: span.length - filled]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            # Not even an empty piece is kept of what has been taken: it would keep all of it.
            self._rest = self._rest[len(piece) :] if len(piece) < len(self._rest) else memoryview(b"")
        return view

    def _unpack(self, route: Route, lane: Lane, target: memoryview) -> int:
        """Decompress the next frame into ``target`` and return its length."""
        index, frame = self._next, self._frames[self._next]
        self._next += 1
        stored = stored_frame(route.fd, frame, index, route.source.path, lane.spare.view)
        if self.stored is not None:
            self.stored.update(stored)
        self._end = frame.stored_offset + frame.stored
        try:
            decompress(frame, index, stored, route.source.path, target[: frame.length])
        except DamagedError:
            raise
        except DumpError as error:  # Others may have written such a frame, asyncdump has not.
            raise damaged(frame, index, route.source.path, error) from error
        return frame.length

    def finish(self, route: Route, lane: Lane) -> None:
        """Take what follows the last byte of content: frames of nothing, and the table."""
        while self._next < len(self._frames):
            self._unpack(route, lane, memoryview(b""))
        with explain("read", route.source.path):
            while piece := os.pread(route.fd, _STEP, self._end):
                if self.stored is not None:
                    self.stored.update(memoryview(piece))
                self._end += len(piece)


def prove(file: FileReport, lane: Lane, stop: Stop, watch: Callable[[Transfer], None]) -> None:
    """Read a dump and compare it with what a receipt or journal says of it; ``watch`` is given what counts the bytes.

    Without a digest its size and inode must be those that were recorded, and durable: more can't be told.

    Raises:
        DamagedError: it isn't the same, or isn't there.
        DumpError: it can't be read.
    """
    source, length = look_at(file)
    if file.digest is None:
        if source.inode != file.inode or not file.durable:
            raise DamagedError(
                f"nothing tells whether {file.path} is whole: it has no digest", verdict="unknown", path=file.path
            )
        return
    nowhere = Nowhere(os.path.dirname(file.path))
    options: dict[str, Any] = {"method": "auto", "sparse": False, "stop": stop, "offset": 0}
    proof = Proof(source, file.name, expected=file, length=length, **options)
    watch(proof)
    try:
        proof.begin(nowhere, lane)
        proof.work(lane)
        proof.seal(lane)
    finally:
        proof.abort()


def look_at(file: FileReport) -> tuple[Source, int]:
    """Return a dump as a source, and how many bytes of content it has, as far as that's seen without reading them.

    Raises:
        DamagedError: it is missing, no regular file, or of another size.
        DumpError: it can't be looked at.
    """
    try:
        with explain("open", file.path):
            fd = open_file(file.path, follow=False)
    except DumpError as error:
        if error.errno == errnos.ENOENT:
            raise DamagedError(f"{file.path} is missing", verdict="missing", path=file.path) from error
        if error.errno == errnos.ELOOP:
            raise DamagedError(
                f"{file.path} is a symbolic link, not a dump", verdict="missing", path=file.path
            ) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DamagedError(f"{file.path} is no regular file", verdict="missing", path=file.path)
        source = describe(fd, file.path)
        if source.size < file.size:
            raise short(file, source.size)
        if source.size > file.size:
            raise DamagedError(
                f"{file.path} is corrupt: it has {source.size} bytes, {file.size} were written",
                verdict="corrupt",
                path=file.path,
                offset=file.size,
            )
        length = _listed(fd, file.path).content if is_compressed(file) else source.size
    finally:
        os.close(fd)
    if _holds_source(file) and length != file.bytes:
        raise DamagedError(
            f"{file.path} is corrupt: it holds {length} bytes of its source, {file.bytes} were dumped",
            verdict="corrupt",
            path=file.path,
        )
    return source, length


def is_compressed(file: FileReport) -> bool:
    """Tell whether a dump is stored as a .zst: whether compression was the last thing that it went through."""
    return bool(file.stages) and file.stages[-1].startswith("zstd:")


def _holds_source(file: FileReport) -> bool:
    """Tell whether the content of a dump, decompressed, is what its source held."""
    return not file.stages or (is_compressed(file) and len(file.stages) == 1)


def has_checksums(file: FileReport) -> bool:
    """Tell whether each frame of a dump has a checksum, which stands in for a digest.

    Raises:
        DumpError: that can't be told.
    """
    if not is_compressed(file):
        return False
    fd = open_regular(file.path)
    try:
        return _listed(fd, file.path).checksums
    finally:
        os.close(fd)


def went_through(file: FileReport) -> list[str]:
    """Return the programs that a dump went through, which nothing here can undo."""
    return [stage for stage in file.stages if not stage.startswith("zstd:")]


def _kind(file: FileReport) -> Any:
    digest = file.content_digest or file.digest
    return "none" if digest is None else digest.partition(":")[0]


def _listed(fd: int, path: str) -> SeekTable:
    """Return the frames of a compressed dump.

    Raises:
        DamagedError: there is no table of them, or it isn't one that asyncdump has written.
    """
    try:
        frames = listed_frames(fd, path)
    except DumpError as error:
        raise DamagedError(str(error), verdict="corrupt", path=path, errno=error.errno, hint=error.hint) from error
    if frames is None:
        raise DamagedError(f"{path} is corrupt: it has no seek table", verdict="corrupt", path=path)
    if frames.largest > FRAMES[1]:  # A table may claim anything: memory is given for what we write ourselves.
        index, frame = next((index, frame) for index, frame in enumerate(frames) if frame.length > FRAMES[1])
        raise damaged(frame, index, path, f"it claims {format_size(frame.length)} of content")
    return frames


def short(file: FileReport, size: int) -> DamagedError:
    """Return the error that says a dump ends at byte ``size``, before it should."""
    return DamagedError(
        f"{file.path} is short: it ends at byte {size}, {file.size} were written",
        verdict="short",
        path=file.path,
        offset=size,
    )
