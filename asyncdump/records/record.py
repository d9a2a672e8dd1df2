"""The outcome of one dump as JSON holds it, in receipts, journals and events; and back from there."""

from __future__ import annotations

import base64
import binascii
import errno as errnos
import os
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError, DumpError, describe_errno
from asyncdump.records.report import FileReport
from asyncdump.text import is_encodable, text
from asyncdump.vocabulary.names import name_complaint
from asyncdump.vocabulary.values import BadRange, Identity

_NUMBERS: Final = {name: number for number, name in errnos.errorcode.items()}
_MARK: Final = 8
"""Characters of a mark."""
_LONGEST_STAGES: Final = 64 << 10

SHORTEST: Final = 128
"""Bytes of JSON that a record has on average, at least: the shortest that was ever written has twice as many."""
SLACK: Final = 1 << 20
"""Bytes within which that isn't looked at."""


LARGEST: Final = 256 << 20
"""Bytes of the largest receipt that is read, and so written. A journal has twice that: it tells of some dumps twice."""

_FIXED: Final = 1320
"""Bytes that a brief record takes at most beside its names."""

_BRIEF: Final = 100
"""Bytes of the message, and of the hint, of an error in a brief record."""


def room(source: str, name: str, stages: Iterable[str]) -> int:
    """Return the bytes that the brief record of a dump takes at most, in a receipt."""
    names = [source, name]
    encoded = sum(4 * len(os.fsencode(each)) // 3 + 8 for each in names) if names != [*map(text, names)] else 0
    return _FIXED + encoded + sum(len(msgspec.json.encode(text(each))) + 10 for each in (*names, *stages))


def brief(file: FileReport) -> FileReport:
    """Return the outcome of a dump without what grows with it: what places damage, and lists memory that was bad."""
    error = file.error
    if error is not None:
        number = error.errno if isinstance(error, DumpError) else None
        error = DumpError(_cut(str(error)), errno=number, hint=_cut(error.hint))
    return msgspec.structs.replace(file, marks="", bad=(), bad_left_out=file.bad_bytes, error=error)


def _cut(message: str) -> str:
    return text(message).encode()[:_BRIEF].decode(errors="ignore")


def file_record(file: FileReport) -> dict[str, Any]:
    """Return the outcome of one dump as JSON can hold it."""
    record = {
        "source": text(file.source),
        "name": text(file.name),
        "offset": file.offset,
        "bytes": file.bytes,
        "size": file.size,
        "stored": file.stored,
        "seconds": round(file.seconds, 6),
        "method": file.method,
        "digest": file.digest,
        "content_digest": file.content_digest,
        "stages": [text(stage) for stage in file.stages],
        "bad": [{"offset": b.offset, "length": b.length, "errno": describe_errno(b.errno)} for b in file.bad],
        "bad_left_out": file.bad_left_out,
        "stage": file.stage,
        "kept": file.kept,
        "error": error_record(file.error) if file.error else None,
        "identity": msgspec.structs.asdict(file.identity) if file.identity else None,
        "inode": file.inode,
        "marks": file.marks,
        "durable": file.durable,
        "manifest_sha256": file.manifest_sha256,
    }
    if text(file.source) != file.source or text(file.name) != file.name:
        # Names are bytes to the kernel: those that can't be shown as they are, are given in full beside that.
        record["source_base64"] = base64.b64encode(os.fsencode(file.source)).decode()
        record["name_base64"] = base64.b64encode(os.fsencode(file.name)).decode()
    return record


def error_record(error: AsyncdumpError) -> dict[str, Any]:
    """Return an error as JSON can hold it."""
    number = error.errno
    return {
        "type": type(error).__name__,
        "message": text(str(error)),
        "errno": None if number is None else describe_errno(number),
        "hint": error.hint,
    }


_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Inode = Annotated[int, msgspec.Meta(ge=0)]  # Of 64 bits: some filesystems use the highest.
_Marks = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]*\Z")]  # Without a group to repeat, which takes memory.
_Digest = Annotated[str, msgspec.Meta(pattern=r"^(xxh128:[0-9a-f]{32}|(blake3|sha256):[0-9a-f]{64})\Z")]


class _Error(msgspec.Struct, gc=False):
    message: str
    errno: str | None = None
    hint: str = ""


class _Bad(msgspec.Struct, gc=False):
    offset: _Size
    length: _Size
    errno: str


class Record(msgspec.Struct, kw_only=True, gc=False):
    """What `file_record` writes, as it is read; earlier versions wrote less.

    Decoding makes no more of hostile JSON than some times its size: an array of other things is refused at its first,
    what has no place here is skipped, and ``stages`` are looked at when there are few.
    """

    source: str
    name: str
    bytes: _Size
    offset: _Size = 0
    size: _Size | None = None
    stored: _Size = 0
    seconds: float = 0.0
    method: Method | None = None
    digest: _Digest | None = None
    content_digest: _Digest | None = None
    stages: msgspec.Raw = msgspec.Raw(b"[]")
    bad: tuple[_Bad, ...] = ()
    bad_left_out: _Size = 0
    stage: str = "done"
    error: _Error | None = None
    identity: Identity | None = None
    inode: _Inode = 0
    marks: _Marks = ""
    durable: bool = True
    manifest_sha256: str = ""
    source_base64: str | None = None
    name_base64: str | None = None


def file_of(read: Record, folder: str) -> FileReport:
    """Return the outcome that a record in ``folder`` tells of.

    Raises:
        ValueError: it's no such record, or its name would leave the folder.
    """
    name = _name(read.name, read.name_base64)
    if complaint := name_complaint(name):
        raise ValueError(complaint)
    if len(read.marks) % _MARK:
        raise ValueError(f"the marks of {name!r} are cut")
    if len(read.stages) > _LONGEST_STAGES:
        raise ValueError(f"what {name!r} went through takes {len(read.stages)} bytes")
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
        method=read.method,
        digest=read.digest,
        content_digest=read.content_digest,
        stages=stages,
        bad=tuple(BadRange(offset=bad.offset, length=bad.length, errno=_number(bad.errno) or 0) for bad in read.bad),
        bad_left_out=read.bad_left_out,
        stage=read.stage,
        error=_error(read.error) if read.error else None,
        identity=read.identity,
        inode=read.inode,
        marks=read.marks,
        durable=read.durable,
        manifest_sha256=read.manifest_sha256,
    )


_STAGES: Final = msgspec.json.Decoder(tuple[str, ...])


def _error(error: _Error) -> DumpError:
    return DumpError(error.message, errno=_number(error.errno), hint=error.hint)


def _number(described: str | None) -> int | None:
    """Return the errno of ``EIO (Input/output error)``, or None."""
    name = (described or "").partition(" ")[0]
    return _NUMBERS.get(name)


def _name(shown: str, encoded: str | None) -> str:
    name = shown if encoded is None else os.fsdecode(_decoded(encoded))
    if "\0" in name or not is_encodable(name):
        raise ValueError(f"{name!r} is what no path can be")
    return name


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{encoded[:20]!r} is no base64") from error
