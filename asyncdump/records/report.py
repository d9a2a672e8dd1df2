"""The outcome of a run, and of each dump in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError, DumpError
from asyncdump.version import __version__
from asyncdump.vocabulary.blocks import Blocks
from asyncdump.vocabulary.values import BadRange, Identity, ProcessMapping, Span, Stat


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one dump.

    Attributes:
        source, name, path: the source, the name of the dump, and its full path.
        bytes: the number of bytes of the source in the dump, starting at ``offset``; 0 unless it is done.
        size: the size of the file as stored, in bytes; stored: how much of it was written (the rest is holes).
        seconds: the time from opening the source to the final name.
        began, ended: the times of these, in seconds since the run began; None if they were not recorded or not reached.
        run: if an earlier run wrote the dump, when that run began, in UTC (ISO 8601); otherwise empty.
        lane: the number of the worker thread that opened it, from 0; lanes: how many have worked on it.
        method: the method that moved it, or None if it was never opened.
        digest: the digest of the file as stored, such as ``xxh128:...``, or None.
        content_digest: the digest of the bytes of the source: the same unless they were processed by stages.
        blocks, content_blocks: digests of each 2 MiB block of the same two, if they have a digest.
        stages: the stages that processed the bytes: ``zstd:3``.
        error: why there is no dump, or None if there is one.
        bad: the unreadable ranges of the source, sorted; they are zeros in the dump. At most 4096 ranges;
            ``bad_left_out`` is the number of bytes in the others.
        phase: where it failed: ``plan`` (never begun), ``open``, ``move``, ``digest``, ``sync``; or ``done``.
        kept: whether an earlier run wrote it, and this run verified it.
        durable: whether it was synced to survive a power failure; manifest_sha256: the SHA-256 of the manifest.
        identity: the identity of the source; inode: that of the dump, or 0 if no file has its name. With a
            `NotDurableError`, a file has the name, but a power failure may remove it.
        stat: the type, owner and mtime of the source when the run was planned.
        maps: the processes that had the source mapped when the run began, as far as this process may examine them
            (those of other users need CAP_SYS_PTRACE); ``maps_left_out`` is the number of other mappings.
        marks: in version 1, instead of blocks: for each 2 MiB of the file as stored, the first 4 bytes of the digest of
            everything up to there.
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
    phase: str
    content_digest: str | None = None
    stages: tuple[str, ...] = ()
    offset: int = 0
    size: int = 0
    kept: bool = False
    identity: Identity | None = None
    inode: int = 0
    durable: bool = True
    manifest_sha256: str = ""
    bad: tuple[BadRange, ...] = ()
    bad_left_out: int = 0
    blocks: Blocks | None = None
    content_blocks: Blocks | None = None
    began: float | None = None
    ended: float | None = None
    run: str = ""
    lane: int | None = None
    lanes: int = 0
    stat: Stat | None = None
    maps: tuple[ProcessMapping, ...] = ()
    maps_left_out: int = 0
    marks: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def bad_bytes(self) -> int:
        """The number of bytes of the source that could not be read."""
        return sum(bad.length for bad in self.bad) + self.bad_left_out

    def changed_blocks(self, since: FileReport) -> tuple[Span, ...] | None:
        """Return the ranges of the content that differ from an earlier dump, in bytes from the start of the content.

        The ranges are complete blocks, with adjacent ones merged. The dumps may be compressed differently. Content past
        the end of the earlier dump counts as changed. None if either dump has no block digests.
        """
        if self.content_blocks is None or since.content_blocks is None:
            return None
        return self.content_blocks.changed(since.content_blocks)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a run.

    ``print`` shows it as the command line does, and so does a notebook.

    Attributes:
        files: the outcome of each dump, in the order of the manifest.
        output: the output directory.
        started, ended: the times in UTC.
        seconds: the time from the start of the run to the last final name.
        interrupted: what interrupted the run (``SIGINT``, ``cancelled``, ``on_error: abort``), or None.
        earlier: dumps of earlier runs into the same directory that this run has neither replaced nor kept.
        unrecorded: for a restore, how many dumps the last run should have written and didn't.
        receipt_error: why the receipt or a digest list could not be written, or None.
        action: what was done.
    """

    files: tuple[FileReport, ...]
    output: str
    started: datetime
    ended: datetime
    seconds: float
    interrupted: str | None
    manifest_sha256: str
    receipt_error: AsyncdumpError | None = None
    earlier: tuple[FileReport, ...] = ()
    unrecorded: int = 0
    action: Literal["dumped", "restored"] = "dumped"

    @property
    def ok(self) -> bool:
        """True if every dump and the receipt were written."""
        return all(file.ok for file in self.files) and self.receipt_error is None and not self.unrecorded

    @property
    def failures(self) -> tuple[FileReport, ...]:
        return tuple(file for file in self.files if not file.ok)

    @property
    def bytes(self) -> int:
        """The total bytes of all finished dumps."""
        return sum(file.bytes for file in self.files)

    @property
    def stored(self) -> int:
        """The bytes that were written for all dumps; the rest is holes."""
        return sum(file.stored for file in self.files)

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    def raise_for_failures(self) -> None:
        """Raise an ``ExceptionGroup`` of all errors, if there are any."""
        errors: list[Exception] = [file.error for file in self.files if file.error is not None]
        if self.receipt_error is not None:
            errors.append(self.receipt_error)
        if self.unrecorded:
            errors.append(DumpError(f"{self.unrecorded} dumps were not written by the last run"))
        if errors:
            failed = len(self.failures)
            what = f"{failed} of {len(self.files)} dumps failed"
            if not failed:
                what = "no receipt" if self.receipt_error is not None else "dumps are missing"
            raise ExceptionGroup(what, errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object, with the keys of ``receipt.json``."""
        return dict(msgspec.json.decode(self.to_json()))

    def to_json(self) -> str:
        """Return the report as the text of a ``receipt.json``."""
        from asyncdump.records.writer import receipt

        return receipt(self, __version__).decode()

    def __str__(self) -> str:
        from asyncdump.records.summary import summary_of

        return str(summary_of(self))

    def __repr__(self) -> str:
        from asyncdump.records.summary import summary_of

        return f"<Report: {summary_of(self).title}>"

    def _repr_html_(self) -> str:
        from asyncdump.records.summary import summary_of

        return summary_of(self).html()


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)
