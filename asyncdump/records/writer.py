"""The receipt and the digest lists of a run, as they are written."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from typing import Final

import msgspec

from asyncdump.kernel.processes import boot_id
from asyncdump.records.record import (
    LARGEST,
    VERSION,
    Record,
    brief,
    file_record,
)
from asyncdump.records.report import Report
from asyncdump.text import text, utf8
from asyncdump.vocabulary.names import LISTS

_REPLACEMENT: Final = "\ufffd"
"""What decoders substitute for bytes that aren't UTF-8."""


def receipt(report: Report, version: str) -> bytes:
    """Return the receipt of a run as JSON; records are brief if it would exceed the maximum size of a receipt."""
    content = _encoded(report, version)
    if len(content) > LARGEST:
        files, earlier = (tuple(map(brief, files)) for files in (report.files, report.earlier))
        content = _encoded(msgspec.structs.replace(report, files=files, earlier=earlier), version)
    return content


class _Versions(msgspec.Struct):
    asyncdump: str
    python: str
    kernel: str


class _Head(msgspec.Struct, kw_only=True):
    """The part of a receipt before its records, about the run itself."""

    receipt: int = VERSION
    ok: bool
    interrupted: str | None
    started: str
    ended: str
    seconds: float
    bytes: int
    stored: int
    manifest_sha256: str
    output: str
    host: str
    boot_id: str
    versions: _Versions


def _encoded(report: Report, version: str) -> bytes:
    # Record by record: an encoder holds the GIL, and would block all other threads for the entire receipt.
    head = _Head(
        ok=report.ok,
        interrupted=report.interrupted,
        started=report.started.isoformat(),
        ended=report.ended.isoformat(),
        seconds=round(report.seconds, 6),
        bytes=report.bytes,
        stored=report.stored,
        manifest_sha256=report.manifest_sha256,
        output=text(report.output),
        host=platform.node(),
        boot_id=boot_id(),
        versions=_Versions(asyncdump=version, python=platform.python_version(), kernel=platform.release()),
    )
    pieces = [_formatted(head).removesuffix(b"\n}")]
    for key, files in (("files", report.files), ("earlier", report.earlier)):
        pieces.append(b',\n "%b": [' % key.encode())
        for number, file in enumerate(files):
            # Formatted within its list, so that its lines are indented correctly.
            record = _formatted({key: [file_record(file)]}).partition(b"[")[2].removesuffix(b"\n ]\n}")
            pieces.append(b"," + record if number else record)
        pieces.append(b"\n ]" if files else b"]")
    pieces.append(b"\n}\n")
    return b"".join(pieces)


def _formatted(content: _Head | dict[str, list[Record]]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def digest_lists(report: Report) -> dict[str, bytes]:
    """Return the content of each digest list, by its name, in the format of ``xxhsum -c``, ``sha256sum -c`` etc."""
    lists: dict[str, list[bytes]] = defaultdict(list)
    for file in sorted(report.files, key=lambda file: file.name):
        if file.ok and file.digest is not None:
            checksum, _, digest = file.digest.partition(":")
            if checksum == "blake3" and (utf8(file.name) != file.name or _REPLACEMENT in file.name):
                continue  # b3sum rejects a list with a name that isn't UTF-8 or looks so; the receipt has the digest.
            lists[LISTS[checksum]].append(os.fsencode(f"{digest}  {file.name}\n"))
    return {name: b"".join(lines) for name, lines in lists.items()}
