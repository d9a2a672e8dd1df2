"""The commands ``cat`` and ``info``: the content of a dump, and what a dump is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from asyncdump.cli.tables import width
from asyncdump.codecs.codec import Codec
from asyncdump.errors import DumpError, explain
from asyncdump.kernel.relay import write_all
from asyncdump.reading import Codecs, Compressed, DumpInfo, describe_as, open_as
from asyncdump.sources.file import open_now, open_source, path_of
from asyncdump.text import text
from asyncdump.transfer.copy import Copied
from asyncdump.transfer.stream import copy_stream
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import table

_STDOUT = 1
_STEP = 1 << 20


def cat(path: str, offset: int, length: int | None, *, compressed: Compressed) -> int:
    """Write the content of a dump, or a part of it, to standard output; return the exit code."""
    path = path_of(path)
    try:
        os.close(open_source(path))  # A file that can't be opened is reported first, before its name is examined.
        codec = Codecs().find(path, compressed)
        if codec is not None:
            _cat_compressed(path, codec, offset, length)
        else:
            _cat_plain(path, offset, length)
    except BrokenPipeError:  # The reader has seen enough, as with cat(1).
        return 1
    except DumpError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            return 1
        raise
    return 0


def _cat_plain(path: str, offset: int, length: int | None) -> None:
    origin = open_now(path)
    try:
        _check_offset(path, offset, origin.described.size)
        with explain("copy", path):
            copy_stream(origin.fd, _STDOUT, Copied(), path=path, source=origin.described, start=offset, length=length)
    finally:
        origin.close()


def _cat_compressed(path: str, codec: Codec, offset: int, length: int | None) -> None:
    with open_as(path, codec) as dump:
        _check_offset(path, offset, describe_as(path, codec).content)
        dump.seek(offset)
        left = length
        while left is None or left > 0:
            # Not read(): at a damaged frame, it would discard the good content before the damage.
            piece = memoryview(dump.read1(_STEP if left is None else min(left, _STEP)))
            if not piece:
                if dump.tell() == offset:  # Nothing was read, and the size is known now even without a seek table.
                    _check_offset(path, offset, dump.seek(0, os.SEEK_END))
                return
            left = None if left is None else left - len(piece)
            with explain("write", "standard output"):
                write_all(_STDOUT, piece)


def _check_offset(path: str, offset: int, size: int | None) -> None:
    if size is not None and offset > size:
        raise DumpError(f"{offset} is past the end of {path}, which has {size} bytes", path=path, operation="seek")


def info(paths: Sequence[str], *, as_json: bool, compressed: Compressed) -> None:
    """Print the properties of dumps, as a table or as JSON."""
    codecs, paths = Codecs(), [path_of(path) for path in paths]
    found = [describe_as(path, codecs.find(path, compressed)) for path in paths]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode([_record(dump) for dump in found]), indent=1).decode())
        return
    rows: list[tuple[str, ...]] = [
        ("dump", "kind", "content", "stored", "ratio", "frames", "of", "checksums", "seekable")
    ]
    rows += [_row(dump) for dump in found]
    print(*table(rows, width=width(), right=(2, 3, 4, 5, 6), shrink=(0,)), sep="\n")


def _row(dump: DumpInfo) -> tuple[str, ...]:
    compressed = dump.kind != "raw"
    return (
        dump.path,
        dump.kind,
        format_size(dump.content) if dump.content is not None else "unknown",
        format_size(dump.stored if compressed else dump.allocated),
        f"{dump.ratio:.2f}" if compressed and dump.ratio is not None else "",
        str(dump.frames) if dump.frames is not None else "",
        format_size(dump.frame) if dump.frame is not None else "",
        ("yes" if dump.checksums else "no") if compressed else "",
        "yes" if dump.seekable else "no",
    )


def _record(dump: DumpInfo) -> dict[str, Any]:
    return {**msgspec.structs.asdict(dump), "path": text(dump.path), "ratio": dump.ratio}
