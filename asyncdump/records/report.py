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
        source, name, path: where it came from, its name, and its full path.
        bytes: the bytes of the source that it holds, from ``offset`` on; 0 unless it is done.
        size: the bytes of the file as it is stored; stored: what of it was written, the rest being holes.
        seconds: from its opening to its final name.
        began, ended: when that was, in seconds since its run began; None where that wasn't recorded, or not reached.
        run: when the run that made it began, in UTC (ISO 8601), if an earlier run did; else empty.
        lane: the number of the worker thread that opened it, from 0; lanes: how many have worked on it.
        method: what moved it, or None if it was never opened.
        digest: of the file as stored, ``xxh128:...`` and the like, or None.
        content_digest: of the bytes of the source: the same, unless they were compressed.
        blocks, content_blocks: the digests of each 2 MiB of the same two by itself, wherever there is a digest.
        stages: what the bytes went through: ``zstd:3``.
        error: why there is no dump, or None if there is one.
        bad: what of the source could not be read, in its order: zeros in the dump. At most some thousand ranges;
            ``bad_left_out`` is how many bytes of it there are in others.
        phase: where it failed: ``plan`` (never begun), ``open``, ``move``, ``digest``, ``sync``; or ``done``.
        kept: whether it was made by an earlier run, and found whole by this one.
        durable: whether it was made to survive a power cut; manifest_sha256: of the manifest that asked for it.
        identity: what the source was; inode: that of the dump, 0 where none has the name: with a `NotDurableError` one
            has it, that a power cut may take.
        stat: whose the source was when the run was planned.
        maps: which processes had the source mapped when the run began, as far as this one may look into them (for
            those of other users that takes CAP_SYS_PTRACE); ``maps_left_out`` is how many more mappings there were.
        marks: of a record of version 1, in place of blocks: for each 2 MiB of the file as stored the first 4 bytes of
            the digest of all up to there.
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
        """The bytes of the source that could not be read."""
        return sum(bad.length for bad in self.bad) + self.bad_left_out

    def changed_blocks(self, since: FileReport) -> tuple[Span, ...] | None:
        """Return the ranges of the content that a former dump doesn't have alike, in bytes from its first.

        They are whole blocks, neighbours as one range, and also tell of dumps that are compressed in other ways. What
        lies past the end of the former dump has changed. None where one of the two has no blocks.
        """
        if self.content_blocks is None or since.content_blocks is None:
            return None
        return self.content_blocks.changed(since.content_blocks)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a run.

    ``print`` shows it as the command line does, and so does a notebook.

    Attributes:
        files: the outcome of each dump, in the order of the manifest.
        output: the output folder.
        started, ended: in UTC.
        seconds: from the start of the plan's execution to the last name.
        interrupted: what ended the run early (``SIGINT``, ``cancelled``, ``on_error: abort``), or None.
        earlier: what earlier runs into the same folder have made, and this one neither made anew nor was asked for.
        unrecorded: of a restore, how many dumps the last run was to make and didn't.
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
        """True if each dump and the receipt are there."""
        return all(file.ok for file in self.files) and self.receipt_error is None and not self.unrecorded

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
        if self.unrecorded:
            errors.append(DumpError(f"{self.unrecorded} dumps were not made by the last run"))
        if errors:
            failed = len(self.failures)
            what = f"{failed} of {len(self.files)} dumps failed"
            if not failed:
                what = "no receipt" if self.receipt_error is not None else "dumps are missing"
            raise ExceptionGroup(what, errors)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with the keys of ``receipt.json``."""
        return dict(msgspec.json.decode(self.to_json()))

    def to_json(self) -> str:
        """Return it as the text of a ``receipt.json``."""
        from asyncdump.records.receipt import receipt

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
    """Return the time of day in UTC."""
    return datetime.now(UTC)
