"""A dump as it is stored now, compared with its record without reading its content."""

from __future__ import annotations

import errno as errnos
import os
import stat

from asyncdump.codecs.codec import FRAMES, Codec
from asyncdump.codecs.detect import listed_frames
from asyncdump.codecs.frames import check_installed, damaged
from asyncdump.codecs.registry import codec_of_stage, stored_by
from asyncdump.codecs.seekable import SeekTable
from asyncdump.errors import DamagedError, DumpError
from asyncdump.records.report import FileReport
from asyncdump.sinks.place import Store
from asyncdump.sources.describe import describe
from asyncdump.sources.file import regular
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.values import Source


def look_at(file: FileReport, store: Store) -> tuple[Source, int]:
    """Return a dump as a source, and the size of its content in bytes, without reading the content.

    Raises:
        DamagedError: it is missing, isn't a regular file, or has a different size.
        DumpError: it can't be examined.
    """
    try:
        fd = store.open(file.name)
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
            raise DamagedError(f"{file.path} is not a regular file", verdict="missing", path=file.path)
        source = describe(fd, file.path)
        if source.size < file.size:
            raise short(file, source.size)
        if source.size > file.size:
            raise DamagedError(
                f"{file.path} is corrupt: it has {source.size} bytes instead of {file.size}",
                verdict="corrupt",
                path=file.path,
                offset=file.size,
            )
        codec = stored_by(file.stages)
        length = source.size if codec is None else listed(fd, file.path, codec).content
    finally:
        os.close(fd)
    if holds_source(file) and length != file.bytes:
        raise DamagedError(
            f"{file.path} is corrupt: it contains {length} bytes of its source instead of {file.bytes}",
            verdict="corrupt",
            path=file.path,
        )
    return source, length


def is_compressed(file: FileReport) -> bool:
    """Return whether a dump is stored as frames of a codec."""
    return stored_by(file.stages) is not None


def holds_source(file: FileReport) -> bool:
    """Return whether the decompressed content of a dump is the content of its source."""
    return not file.stages or (is_compressed(file) and len(file.stages) == 1)


def has_checksums(file: FileReport, store: Store) -> bool:
    """Return whether each frame of a dump has a checksum, which replaces a digest.

    Raises:
        DumpError: that can't be determined.
    """
    codec = stored_by(file.stages)
    if codec is None:
        return False
    fd = regular(store.open(file.name), file.path)
    try:
        return listed(fd, file.path, codec).checksums
    finally:
        os.close(fd)


def went_through(file: FileReport) -> list[str]:
    """Return the programs that a dump went through, which can't be undone here."""
    return [stage for stage in file.stages if codec_of_stage(stage) is None]


def listed(fd: int, path: str, codec: Codec) -> SeekTable:
    """Return the frames of a compressed dump.

    Raises:
        DamagedError: there is no seek table, or asyncdump can't have written it.
        DumpError: the codec isn't installed.
    """
    check_installed(codec, path)
    try:
        frames = listed_frames(fd, path, codec)
    except DumpError as error:
        raise DamagedError(str(error), verdict="corrupt", path=path, errno=error.errno, hint=error.hint) from error
    if frames is None:
        raise DamagedError(f"{path} is corrupt: it has no seek table", verdict="corrupt", path=path)
    if frames.largest > FRAMES[1]:  # A table may claim anything: memory is given for what we write ourselves.
        index, frame = next((index, frame) for index, frame in enumerate(frames) if frame.length > FRAMES[1])
        raise damaged(frame, index, path, f"it claims {format_size(frame.length)} of content")
    return frames


def short(file: FileReport, size: int) -> DamagedError:
    """Return the error for a dump that ends early, at byte ``size``."""
    return DamagedError(
        f"{file.path} is short: it has {size} bytes instead of {file.size}",
        verdict="short",
        path=file.path,
        offset=size,
    )
