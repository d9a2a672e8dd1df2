"""The outcome of a run: in memory, as the receipt on disk, and as digest lists that other tools verify."""

from __future__ import annotations

import base64
import os
import platform
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from asyncdump.digest import LISTS
from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError, DumpError, describe_errno
from asyncdump.salvage import BadRange

RECEIPT_VERSION: Final = 1

_CONTROLS: Final = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one dump.

    Attributes:
        source, name, path: where it came from, its name, and its full path.
        bytes: its size; stored: what of it was written, the rest being holes. Both 0 unless it is done.
        seconds: from its opening to its final name.
        method: what moved it, or None if it was never opened.
        digest: of the file as stored, ``xxh128:...`` and the like, or None.
        content_digest: of the bytes of the source: the same, unless they were compressed.
        stages: what the bytes went through: ``zstd:3``.
        error: why there is no dump, or None if there is one.
        bad: what of the source could not be read, in its order: zeros in the dump.
        stage: where it failed: ``plan`` (never begun), ``open``, ``move``, ``digest``, ``sync``; or ``done``.
    """

    source: str
    name: str
    path: str
    bytes: int
    stored: int
    seconds: float
    method: Method | None
    digest: str | None
    error: AsyncdumpError | None
    stage: str
    content_digest: str | None = None
    stages: tuple[str, ...] = ()
    bad: tuple[BadRange, ...] = ()

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def bad_bytes(self) -> int:
        """The bytes of the source that could not be read."""
        return sum(bad.length for bad in self.bad)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a run.

    Attributes:
        files: the outcome of each dump, in the order of the manifest.
        output: the output folder.
        started, ended: in UTC.
        seconds: from the start of the plan's execution to the last name.
        interrupted: what ended the run early (``SIGINT``, ``cancelled``, ``on_error: abort``), or None.
        receipt_error: why the receipt or a digest list could not be written, or None.
    """

    files: tuple[FileReport, ...]
    output: str
    started: datetime
    ended: datetime
    seconds: float
    interrupted: str | None
    manifest_sha256: str
    receipt_error: AsyncdumpError | None = None

    @property
    def ok(self) -> bool:
        """True if each dump and the receipt are there."""
        return all(file.ok for file in self.files) and self.receipt_error is None

    @property
    def failures(self) -> tuple[FileReport, ...]:
        return tuple(file for file in self.files if not file.ok)

    @property
    def bytes(self) -> int:
        """The bytes of all dumps that are done."""
        return sum(file.bytes for file in self.files)

    @property
    def stored(self) -> int:
        """The bytes that were written for them; the rest is holes."""
        return sum(file.stored for file in self.files)

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    def raise_for_failures(self) -> None:
        """Raise an ``ExceptionGroup`` of what went wrong, if anything did."""
        errors: list[Exception] = [file.error for file in self.files if file.error is not None]
        if self.receipt_error is not None:
            errors.append(self.receipt_error)
        if errors:
            what = f"{len(self.failures)} of {len(self.files)} dumps failed" if self.failures else "no receipt"
            raise ExceptionGroup(what, errors)


def receipt(report: Report, version: str) -> bytes:
    """Return the receipt of a run as JSON."""
    content = {
        "receipt": RECEIPT_VERSION,
        "ok": report.ok,
        "interrupted": report.interrupted,
        "started": report.started.isoformat(),
        "ended": report.ended.isoformat(),
        "seconds": round(report.seconds, 6),
        "bytes": report.bytes,
        "stored": report.stored,
        "manifest_sha256": report.manifest_sha256,
        "output": text(report.output),
        "host": platform.node(),
        "versions": {"asyncdump": version, "python": platform.python_version(), "kernel": platform.release()},
        "files": [file_record(file) for file in report.files],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def file_record(file: FileReport) -> dict[str, Any]:
    """Return the outcome of one dump as JSON can hold it."""
    record = {
        "source": text(file.source),
        "name": text(file.name),
        "bytes": file.bytes,
        "stored": file.stored,
        "seconds": round(file.seconds, 6),
        "method": file.method,
        "digest": file.digest,
        "content_digest": file.content_digest,
        "stages": list(file.stages),
        "bad": [{"offset": b.offset, "length": b.length, "errno": describe_errno(b.errno)} for b in file.bad],
        "stage": file.stage,
        "error": error_record(file.error) if file.error else None,
    }
    if text(file.source) != file.source or text(file.name) != file.name:
        # Names are bytes to the kernel: those that can't be shown as they are, are given in full beside that.
        record["source_base64"] = base64.b64encode(os.fsencode(file.source)).decode()
        record["name_base64"] = base64.b64encode(os.fsencode(file.name)).decode()
    return record


def error_record(error: AsyncdumpError) -> dict[str, Any]:
    """Return an error as JSON can hold it."""
    number = error.errno if isinstance(error, DumpError) else None
    return {
        "type": type(error).__name__,
        "message": text(str(error)),
        "errno": None if number is None else describe_errno(number),
        "hint": error.hint,
    }


def text(name: str) -> str:
    """Return a name with what isn't UTF-8 in it escaped, and what would control a terminal: ``\\xff``, ``\\x1b``."""
    return _utf8(name).translate(_CONTROLS)


def _utf8(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


def digest_lists(report: Report) -> dict[str, bytes]:
    """Return the content of each digest list by its name, as ``xxhsum -c``, ``sha256sum -c``, ``b3sum -c`` take it."""
    lists: dict[str, str] = defaultdict(str)
    for file in sorted(report.files, key=lambda file: file.name):
        if file.ok and file.digest is not None:
            checksum, _, digest = file.digest.partition(":")
            if checksum == "blake3" and _utf8(file.name) != file.name:
                continue  # b3sum takes no list with a name in it that isn't UTF-8; the receipt has the digest.
            lists[LISTS[checksum]] += f"{digest}  {file.name}\n"
    return {name: os.fsencode(lines) for name, lines in lists.items()}


def now() -> datetime:
    """Return the time of day in UTC."""
    return datetime.now(UTC)
