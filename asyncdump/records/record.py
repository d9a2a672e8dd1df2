"""The outcome of one dump as JSON, for receipts, journals and events; and the reverse."""

from __future__ import annotations

import base64
import binascii
import errno as errnos
import os
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError, DumpError, describe_errno
from asyncdump.records.report import FileReport
from asyncdump.text import is_encodable, text
from asyncdump.vocabulary.blocks import Blocks
from asyncdump.vocabulary.names import name_complaint
from asyncdump.vocabulary.values import BadRange, Identity, ProcessMapping, Stat

VERSION: Final = 2
"""The version of the receipts and journals that are written."""

READABLE: Final = frozenset({1, VERSION})
"""The versions that are read. In version 1, ``phase`` is called ``stage``, and ``marks`` locate damage."""

_NUMBERS: Final = {name: number for number, name in errnos.errorcode.items()}
_MARK: Final = 8
"""The number of characters of a mark."""
_LONGEST_STAGES: Final = 64 << 10

SHORTEST: Final = 128
"""The minimum average size of a record in bytes of JSON: the shortest one ever written has twice as many."""
SLACK: Final = 1 << 20
"""The size of a file in bytes up to which that isn't checked."""


LARGEST: Final = 256 << 20
"""The maximum size of a receipt in bytes, for reading and writing. For a journal it is twice that, because a journal
contains some dumps twice."""

_FIXED: Final = 1500
"""The maximum size of a brief record in bytes, without its names."""

_BRIEF: Final = 100
"""The maximum size of the message, and of the hint, of an error in a brief record, in bytes."""

_FEW: Final = 4
"""The maximum number of blocks in a brief record."""


def room(source: str, name: str, stages: Iterable[str]) -> int:
    """Return the maximum size of the brief record of a dump in a receipt, in bytes."""
    names = [source, name]
    encoded = sum(4 * len(os.fsencode(each)) // 3 + 8 for each in names) if names != [*map(text, names)] else 0
    return _FIXED + encoded + sum(len(msgspec.json.encode(text(each))) + 10 for each in (*names, *stages))


def unreadable(path: str, version: int) -> DumpError:
    """Return the error for a record of an unsupported version."""
    known = " and ".join(map(str, sorted(READABLE)))
    newer = version > VERSION
    return DumpError(
        f"{path} is a record of version {version}; this asyncdump reads versions {known}",
        path=path,
        operation="read",
        hint="use the asyncdump that wrote it, or a newer one"
        if newer
        else "specify the directory of a run, or its receipt",
    )


def brief(file: FileReport) -> FileReport:
    """Return the outcome of a dump without the parts that grow with its size.

    Unreadable ranges and mappings are only counted. Blocks become few and large, so that they can still be compared at
    a coarser granularity; a failed dump has none.
    """
    counted = msgspec.structs.replace(
        file,
        marks="",
        bad=(),
        bad_left_out=file.bad_bytes,
        maps=(),
        maps_left_out=file.maps_left_out + len(file.maps),
        blocks=None if file.blocks is None else file.blocks.within(_FEW),
        content_blocks=None if file.content_blocks is None else file.content_blocks.within(_FEW),
    )
    if (error := file.error) is None:
        return counted
    number = error.errno
    error = DumpError(_cut(str(error)), errno=number, hint=_cut(error.hint))
    return msgspec.structs.replace(counted, error=error, blocks=None, content_blocks=None, stat=None)


def _cut(message: str) -> str:
    return text(message).encode()[:_BRIEF].decode(errors="ignore")


_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Inode = Annotated[int, msgspec.Meta(ge=0)]  # 64 bits, unsigned: some filesystems use the highest bit.
_Marks = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]*\Z")]  # No repeated group, which would take memory.
_Digest = Annotated[str, msgspec.Meta(pattern=r"^(xxh128:[0-9a-f]{32}|(blake3|sha256):[0-9a-f]{64})\Z")]


class ErrorRecord(msgspec.Struct, kw_only=True, gc=False):
    """An error as JSON."""

    type: str = ""
    message: str
    errno: str | None = None
    hint: str = ""


class _Bad(msgspec.Struct, gc=False):
    offset: _Size
    length: _Size
    errno: str


class Record(msgspec.Struct, kw_only=True, gc=False):
    """The outcome of one dump as it is written and read; version 1 has fewer fields.

    Decoding malicious JSON takes only a small multiple of its size in memory: an array of the wrong type is rejected at
    its first element, unknown fields are skipped, and ``stages`` are decoded only if they are short.

    Attributes:
        source_base64, name_base64: the exact bytes of a name that isn't printable.
        content_blocks: the blocks of the content, if it differs from the file as stored because of stages.
        earlier: in a journal: an earlier run wrote the dump, and this one has not reached it.
        stage, marks: only in version 1.
    """

    source: str
    name: str
    offset: _Size = 0
    bytes: _Size
    size: _Size | None = None
    stored: _Size = 0
    seconds: float = 0.0
    began: float | None = None
    ended: float | None = None
    run: str | UnsetType = UNSET
    lane: int | None = None
    lanes: int = 0
    method: Method | None = None
    digest: _Digest | None = None
    content_digest: _Digest | None = None
    stages: msgspec.Raw = msgspec.Raw(b"[]")
    bad: tuple[_Bad, ...] = ()
    bad_left_out: _Size = 0
    phase: str = ""
    kept: bool = False
    error: ErrorRecord | None = None
    identity: Identity | None = None
    stat: Stat | None = None
    maps: tuple[ProcessMapping, ...] = ()
    maps_left_out: _Size = 0
    inode: _Inode = 0
    blocks: Blocks | None = None
    content_blocks: Blocks | UnsetType = UNSET
    durable: bool = True
    manifest_sha256: str = ""
    source_base64: str | UnsetType | None = UNSET
    name_base64: str | UnsetType | None = UNSET
    earlier: bool | UnsetType = UNSET
    stage: str | UnsetType = UNSET
    marks: _Marks | UnsetType = UNSET


def file_record(file: FileReport, *, earlier: bool = False) -> Record:
    """Return the outcome of one dump as a record."""
    shown = text(file.source) == file.source and text(file.name) == file.name
    content_blocks = file.content_blocks
    return Record(
        source=text(file.source),
        name=text(file.name),
        offset=file.offset,
        bytes=file.bytes,
        size=file.size,
        stored=file.stored,
        seconds=round(file.seconds, 6),
        began=None if file.began is None else round(file.began, 6),
        ended=None if file.ended is None else round(file.ended, 6),
        run=file.run or UNSET,
        lane=file.lane,
        lanes=file.lanes,
        method=file.method,
        digest=file.digest,
        content_digest=file.content_digest,
        stages=msgspec.Raw(msgspec.json.encode([text(stage) for stage in file.stages])),
        bad=tuple(_Bad(offset=b.offset, length=b.length, errno=describe_errno(b.errno)) for b in file.bad),
        bad_left_out=file.bad_left_out,
        phase=file.phase,
        kept=file.kept,
        error=error_record(file.error) if file.error else None,
        identity=file.identity,
        stat=file.stat,
        maps=file.maps,
        maps_left_out=file.maps_left_out,
        inode=file.inode,
        blocks=file.blocks,
        content_blocks=UNSET if content_blocks is None or not file.stages else content_blocks,
        durable=file.durable,
        manifest_sha256=file.manifest_sha256,
        source_base64=UNSET if shown else base64.b64encode(os.fsencode(file.source)).decode(),
        name_base64=UNSET if shown else base64.b64encode(os.fsencode(file.name)).decode(),
        earlier=earlier or UNSET,
        marks=file.marks or UNSET,
    )


def error_record(error: AsyncdumpError) -> ErrorRecord:
    """Return an error as a record."""
    number = error.errno
    return ErrorRecord(
        type=type(error).__name__,
        message=text(str(error)),
        errno=None if number is None else describe_errno(number),
        hint=error.hint,
    )


def file_of(read: Record, folder: str, run: str = "") -> FileReport:
    """Return the outcome in a record of the directory ``folder``, written by a run that began at ``run``.

    Raises:
        ValueError: the record is invalid, or its name would leave the directory.
    """
    name = _name(read.name, read.name_base64)
    if complaint := name_complaint(name):
        raise ValueError(complaint)
    marks = read.marks or ""
    if len(marks) % _MARK:
        raise ValueError(f"the marks of {name!r} are truncated")
    if len(read.stages) > _LONGEST_STAGES:
        raise ValueError(f"the stages of {name!r} have {len(read.stages)} bytes")
    stages = _STAGES.decode(read.stages)
    raw = not stages
    return FileReport(
        source=_name(read.source, read.source_base64),
        name=name,
        path=os.path.join(folder, name),
        offset=read.offset,
        bytes=read.bytes,
        size=read.size if read.size is not None else read.bytes if raw else read.stored,
        stored=read.stored,
        seconds=read.seconds,
        began=read.began,
        ended=read.ended,
        run=read.run or run,
        lane=read.lane,
        lanes=read.lanes,
        method=read.method,
        digest=read.digest,
        content_digest=read.content_digest,
        stages=stages,
        bad=tuple(BadRange(offset=bad.offset, length=bad.length, errno=_number(bad.errno) or 0) for bad in read.bad),
        bad_left_out=read.bad_left_out,
        phase=read.phase or read.stage or "done",
        error=_error(read.error) if read.error else None,
        identity=read.identity,
        stat=read.stat,
        maps=read.maps,
        maps_left_out=read.maps_left_out,
        inode=read.inode,
        blocks=read.blocks,
        content_blocks=read.blocks if raw else read.content_blocks or None,
        marks=marks,
        durable=read.durable,
        manifest_sha256=read.manifest_sha256,
    )


_STAGES: Final = msgspec.json.Decoder(tuple[str, ...])


def _error(error: ErrorRecord) -> DumpError:
    return DumpError(error.message, errno=_number(error.errno), hint=error.hint)


def _number(described: str | None) -> int | None:
    """Return the errno of ``EIO (Input/output error)``, or None."""
    name = (described or "").partition(" ")[0]
    return _NUMBERS.get(name)


def _name(shown: str, encoded: str | UnsetType | None) -> str:
    name = os.fsdecode(_decoded(encoded)) if isinstance(encoded, str) else shown
    if "\0" in name or not is_encodable(name):
        raise ValueError(f"{name!r} can't be a path")
    return name


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{encoded[:20]!r} is not base64") from error
