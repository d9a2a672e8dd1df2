"""Reading: any part of a dump, raw or compressed, without the rest; what a dump is; what its run has recorded."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Final, Literal

import msgspec

from asyncdump.codecs.codec import Codec, CodecName
from asyncdump.codecs.content import FramedContent, StreamedContent
from asyncdump.codecs.detect import check_start, listed_frames
from asyncdump.codecs.frames import check_installed
from asyncdump.codecs.registry import codec_by_suffix, codec_of, detect, stored_by
from asyncdump.errors import AsyncdumpError, DumpError, absolute, explain
from asyncdump.records import receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.records.standing import went_through
from asyncdump.sinks.folder import Folder
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_source, path_of

_STEP: Final = 1 << 20

Kind = Literal["raw"] | CodecName

Compressed = bool | CodecName | None
"""Whether a dump is compressed, or with which codec; None if its record or its name is to decide."""


class DumpInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a dump.

    Attributes:
        path: the path, as it was specified.
        kind: ``raw``, or the codec that it is compressed with: ``zstd``, ``lz4``.
        content: the size of the content in bytes, or None if only decompressing it would tell.
        stored: the size of the file in bytes; allocated: the bytes that it occupies on disk, fewer if it has holes.
        frames: the number of independent frames, or None if it isn't known.
        frame: the content size of the largest frame in bytes, or None.
        checksums: whether each frame has a checksum.
        seekable: whether a part can be read without reading everything before it.
    """

    path: str
    kind: Kind
    content: int | None
    stored: int
    allocated: int
    frames: int | None
    frame: int | None
    checksums: bool
    seekable: bool

    @property
    def ratio(self) -> float | None:
        """The size of the content divided by the size of the file."""
        return self.content / self.stored if self.content is not None and self.stored else None


class Codecs:
    """Finds the codec of a dump in the records next to it, which are read once, or else from its name.

    The content of a dump doesn't decide, because memory may look like the beginning of a compressed file.
    """

    def __init__(self) -> None:
        self._records: dict[str, dict[str, FileReport]] = {}

    def find(self, path: str, compressed: Compressed = None) -> Codec | None:
        """Return the codec of a dump, or None if it is raw.

        Raises:
            DumpError: it doesn't exist, or it is supposed to be compressed and the codec can't be determined.
        """
        if isinstance(compressed, str):
            return codec_of(compressed)
        if compressed is None:
            return self._recorded(path)
        return _of_compressed(path) if compressed else None

    def _recorded(self, path: str) -> Codec | None:
        with explain("stat", path):
            size = os.stat(path).st_size
        folder, name = os.path.split(os.path.realpath(absolute(path)))
        if folder not in self._records:
            self._records[folder] = _recorded(folder)
        file = self._records[folder].get(name)
        if file is None or not file.ok or file.size != size:
            return codec_by_suffix(path)
        # The record lists the programs that a dump went through, but not the format of their output: its name decides.
        return stored_by(file.stages) or (codec_by_suffix(path) if went_through(file) else None)


def _of_compressed(path: str) -> Codec:
    """Return the codec of a compressed file from its first bytes, or else from its name."""
    fd = open_source(path)
    try:
        with explain("read", path):
            start = os.read(fd, 4)
    finally:
        os.close(fd)
    codec = detect(start) or codec_by_suffix(path)
    if codec is None:
        raise DumpError(
            f"{path} doesn't begin like a compressed file: it is damaged, truncated or not compressed",
            path=path,
            operation="read",
            hint="specify what it is: {compressed=zstd}, {compressed=lz4} or {compressed=False}",
        )
    return codec


def _recorded(folder: str) -> dict[str, FileReport]:
    """Return the records of the dumps in a directory from its receipt or journal; none if they can't be read."""
    with suppress(AsyncdumpError, OSError):
        opened = Folder(folder, make=False)
        try:
            found = receipt.read_receipt(opened)
        finally:
            opened.close()
        return found.known if found is not None else {}
    return {}


def read_receipt(path: str | os.PathLike[str]) -> Report:
    """Return the report of a run, from its receipt, or from the journal of a run that hasn't ended.

    It reads no dump: whether they are what was recorded is for `verify_all` to say. Of a run that hasn't ended,
    ``files`` are the dumps that it has recorded by now, ``unrecorded`` is how many others it was to make, and
    ``interrupted`` says so.

    Args:
        path: the directory of the run, its receipt, or its journal.

    Raises:
        ReceiptError: there is none, or it can't be read.
        DumpError: the directory can't be opened.
    """
    found, folder = receipt.open_receipt(path, lock=False)
    folder.close()
    return found.report


def describe_dump(path: str | os.PathLike[str], *, compressed: Compressed = None) -> DumpInfo:
    """Return the properties of a dump, reading only its start, its end, and the headers of frames.

    Args:
        path: the dump.
        compressed: whether it is compressed, or with which codec (``zstd``, ``lz4``). By default, its record in the
            receipt or journal next to it decides, or without a record its suffix, ``.zst`` or ``.lz4``.

    Raises:
        DumpError: it can't be read, its seek table is damaged, or it doesn't begin like a compressed file although it
            should.
    """
    name = path_of(path)
    return describe_as(name, Codecs().find(name, compressed))


def describe_as(name: str, codec: Codec | None) -> DumpInfo:
    """Return the properties of a dump whose codec is known; None if it is raw."""
    fd = open_source(name)
    try:
        source = describe(fd, name)
        if codec is not None:
            check_start(fd, name, codec)
        frames = listed_frames(fd, name, codec) if codec is not None else None
    finally:
        os.close(fd)
    return DumpInfo(
        path=name,
        kind="raw" if codec is None else codec.name,
        content=source.size if codec is None else frames.content if frames is not None else None,
        stored=source.size,
        allocated=source.allocated,
        frames=len(frames) if frames is not None else None,
        frame=frames.largest if frames is not None else None,
        checksums=frames is not None and frames.checksums,
        seekable=codec is None or frames is not None,
    )


def open_dump(path: str | os.PathLike[str], *, compressed: Compressed = None) -> io.BufferedReader:
    """Open a dump for reading: a seekable binary file object over its content, raw or compressed.

    Whether it is compressed is never guessed from its bytes: ``compressed`` says so (True, or the codec: ``zstd``,
    ``lz4``), or its record in the receipt or journal next to it, or without a record its suffix, ``.zst`` or ``.lz4``.

    Only the frames that contain the requested part are decompressed. A file of another program without a seek table is
    read from its start, and seeking back in it starts again. The object blocks: in an async program, use it in a
    thread. Frames and windows of more than 1 GiB, and dictionaries, are not supported.

    Raises:
        DumpError: it can't be opened, its seek table is damaged, or it doesn't begin like a compressed file although it
            should. If the content is damaged, reads raise `DamagedError` with the offset and the frame. A ``read`` that
            fails discards the bytes before the damage; ``read1`` returns them first.
    """
    name = path_of(path)
    return open_as(name, Codecs().find(name, compressed))


def open_as(name: str, codec: Codec | None) -> io.BufferedReader:
    """Open a dump whose codec is known for reading; None if it is raw."""
    fd = open_source(name)
    try:
        if codec is None:
            return open(fd, "rb")
        check_installed(codec, name)
        check_start(fd, name, codec)
        frames = listed_frames(fd, name, codec)
        raw = FramedContent(fd, name, codec, frames) if frames is not None else StreamedContent(fd, name, codec)
        return io.BufferedReader(raw, buffer_size=_STEP)
    except BaseException:
        os.close(fd)
        raise
