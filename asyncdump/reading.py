"""Reading: any part of a dump, raw or compressed, without the rest; what a dump is; what its run has recorded."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Final, Literal

import msgspec

from asyncdump.codecs.content import Frames, Stream
from asyncdump.codecs.detect import check_zstd, listed_frames
from asyncdump.errors import AsyncdumpError, absolute, explain
from asyncdump.records import receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.records.standing import is_compressed, went_through
from asyncdump.sinks.folder import Folder
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_source, path_of

_STEP: Final = 1 << 20


class DumpInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a dump is.

    Attributes:
        path: as it was given.
        kind: ``raw``, or ``zstd``.
        content: bytes of the content, or None where nothing tells without decompressing it.
        stored: bytes of the file; allocated: bytes of the disk that it takes, less where there are holes.
        frames: how many independent frames there are, or None where that isn't known.
        frame: bytes of content of the largest frame, or None.
        checksums: whether each frame has a checksum.
        seekable: whether a part can be read without what stands before it.
    """

    path: str
    kind: Literal["raw", "zstd"]
    content: int | None
    stored: int
    allocated: int
    frames: int | None
    frame: int | None
    checksums: bool
    seekable: bool

    @property
    def ratio(self) -> float | None:
        """How many bytes of content a byte of the file stands for."""
        return self.content / self.stored if self.content is not None and self.stored else None


class Kinds:
    """Which dumps are compressed: what the receipts beside them say, each read once, or else their names.

    What a dump holds is no evidence: memory may begin as a .zst does.
    """

    def __init__(self) -> None:
        self._records: dict[str, dict[str, FileReport]] = {}

    def compressed(self, path: str) -> bool:
        """Tell whether a dump is a .zst.

        Raises:
            DumpError: it isn't there.
        """
        with explain("stat", path):
            size = os.stat(path).st_size
        folder, name = os.path.split(os.path.realpath(absolute(path)))
        if folder not in self._records:
            self._records[folder] = _recorded(folder)
        file = self._records[folder].get(name)
        if file is not None and file.ok and file.size == size:
            # Through which programs a dump went last is recorded, not what they made of it: there its name decides.
            return is_compressed(file) or (bool(went_through(file)) and path.endswith(".zst"))
        return path.endswith(".zst")


def _recorded(folder: str) -> dict[str, FileReport]:
    """Return what a receipt or a journal in a folder says of its dumps; nothing where that can't be read."""
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


def describe_dump(path: str | os.PathLike[str], *, compressed: bool | None = None) -> DumpInfo:
    """Return what a dump is, without reading more of it than its ends and the headers of frames.

    Args:
        path: the dump.
        compressed: whether it is a .zst; None to have its record say so, in the receipt or journal beside it, or
            where there is none its name, which then ends with ``.zst``.

    Raises:
        DumpError: it can't be read, its seek table is broken, or it is to be a .zst and doesn't look like one.
    """
    name = path_of(path)
    fd = open_source(name)
    try:
        source = describe(fd, name)
        zstd = Kinds().compressed(name) if compressed is None else compressed
        if zstd:
            check_zstd(fd, name)
        frames = listed_frames(fd, name) if zstd else None
    finally:
        os.close(fd)
    return DumpInfo(
        path=name,
        kind="zstd" if zstd else "raw",
        content=source.size if not zstd else frames.content if frames is not None else None,
        stored=source.size,
        allocated=source.allocated,
        frames=len(frames) if frames is not None else None,
        frame=frames.largest if frames is not None else None,
        checksums=frames is not None and frames.checksums,
        seekable=not zstd or frames is not None,
    )


def open_dump(path: str | os.PathLike[str], *, compressed: bool | None = None) -> io.BufferedReader:
    """Open a dump for reading: a seekable binary file object over its content, raw or compressed.

    Whether it is compressed is never guessed from its bytes: ``compressed`` says so, or its record in the receipt or
    journal beside it, or where there is none its name, which then ends with ``.zst``.

    Of a compressed dump only the frames are decompressed that hold what is read. A .zst without a seek table, made by
    another program, is read from its start on; going back in it starts again. The object blocks: in an async program
    use it in a thread. A frame or a window of more than 1 GiB, and a dictionary, are more than it reads.

    Raises:
        DumpError: it can't be opened, its seek table is broken, or it is to be a .zst and doesn't look like one. Reads
            raise it too, with the frame and its place, where the content is damaged; of what a failed ``read`` had
            gathered nothing is returned, ``read1`` returns all that is good first.
    """
    name = path_of(path)
    fd = open_source(name)
    try:
        if not (Kinds().compressed(name) if compressed is None else compressed):
            return open(fd, "rb")
        check_zstd(fd, name)
        frames = listed_frames(fd, name)
        raw = Frames(fd, name, frames) if frames is not None else Stream(fd, name)
        return io.BufferedReader(raw, buffer_size=_STEP)
    except BaseException:
        os.close(fd)
        raise
