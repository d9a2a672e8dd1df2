"""The outcome of a verification, and of each dump in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from asyncdump.errors import DamagedError, DumpError, Verdict
from asyncdump.spelling import spelled
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import Summary, count, listed, seconds

_MOST: Final = 20


class FileVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one dump.

    Attributes:
        name, path: its name, and its full path.
        verdict: ``ok``; ``corrupt``; ``short``; ``missing``; ``differs`` from its source; or ``unknown`` if that can't
            be decided: it has no digest, it is the output of a filter and can't be compared with a source, or a call
            failed.
        bytes: the number of bytes of the source that it contains.
        offset: the offset of the first bad frame or 2 MiB block in the file as stored, in bytes; for a dump that
            differs from its source, the first different byte of its content. None if it isn't known.
        frame: the number of the first bad frame of a compressed dump, from 0, or None.
        ranges: the damaged ranges of the file as stored, in complete 2 MiB blocks, as ``(offset, length)`` in bytes:
            the first 64 of them, with adjacent ones merged. Empty if they aren't known.
        damaged: the total bytes of all such ranges.
        message: why it isn't ``ok``.
        hint: what to do about it.
        seconds: how long it took.
    """

    name: str
    path: str
    verdict: Verdict
    bytes: int
    offset: int | None = None
    frame: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    damaged: int = 0
    message: str = ""
    hint: str = ""
    seconds: float = 0.0


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a verification.

    ``print`` shows it as the command line does, and so does a notebook.

    Attributes:
        receipt: what the dumps were compared with: a receipt, or the journal of an unfinished run.
        files: the outcome for each dump in it.
        unrecorded: how many dumps the last run should have written and didn't: it was killed, or an older one is there.
        strays: files in the directory that aren't in the receipt; they are not a failure.
        seconds: how long it took.
        interrupted: what interrupted it, or None.
        against_source: whether the dumps were compared with their sources instead.
    """

    receipt: str
    files: tuple[FileVerdict, ...]
    unrecorded: int
    strays: tuple[str, ...]
    seconds: float
    interrupted: str | None = None
    against_source: bool = False

    @property
    def ok(self) -> bool:
        """True if every dump of the run exists and is ``ok``."""
        verified = all(file.verdict == "ok" for file in self.files)
        return verified and not self.unrecorded and self.interrupted is None

    @property
    def failures(self) -> tuple[FileVerdict, ...]:
        return tuple(file for file in self.files if file.verdict != "ok")

    @property
    def bytes(self) -> int:
        """The total bytes of the dumps that are ``ok``."""
        return sum(file.bytes for file in self.files if file.verdict == "ok")

    def raise_for_failures(self) -> None:
        """Raise an ``ExceptionGroup`` of `DamagedError` if any dump isn't ``ok``, or the run never ended."""
        errors: list[Exception] = [_error_of(file) for file in self.failures]
        if self.unrecorded:
            errors.append(DumpError(f"{self.unrecorded} dumps were not written by the last run"))
        if errors:
            lost = len(errors) - bool(self.unrecorded) + self.unrecorded
            raise ExceptionGroup(f"{lost} of {len(self.files) + self.unrecorded} dumps are not verified", errors)

    @property
    def summary(self) -> Summary:
        """The summary of the verification."""
        verified = len(self.files) - len(self.failures)
        dumps = count(len(self.files) + self.unrecorded, "dump")
        how = "identical to their sources in" if self.against_source else "verified against"
        rate = f"{format_size(self.bytes / max(self.seconds, 1e-6))}/s"
        took = f"{format_size(self.bytes)} in {seconds(self.seconds)}, {rate}"
        return Summary(
            title=f"{verified} of {dumps} {how} {text(self.receipt)}: {took}",
            notes=(f"Not in the receipt: {listed(self.strays)}",) if self.strays else (),
            complaints=tuple(self._complaints()),
        )

    def _complaints(self) -> Iterator[str]:
        for file in self.failures[:_MOST]:
            yield f"{file.verdict}: {file.name}: {file.message}"
            if file.hint:
                yield f"  {file.hint}"
        if len(self.failures) > _MOST:
            yield f"and {len(self.failures) - _MOST} more"
        if self.unrecorded:
            missing = count(self.unrecorded, "dump")
            yield f"{missing} not written by the last run; {spelled('continue it with {resume}')}"
        if self.interrupted:
            yield f"interrupted by {self.interrupted}"

    def to_dict(self) -> dict[str, Any]:
        """Return the verification as a JSON object, with the keys of ``asyncdump verify --json``."""
        return dict(msgspec.json.decode(self.to_json()))

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        record = {
            "ok": self.ok,
            "receipt": text(self.receipt),
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 6),
            "bytes": self.bytes,
            "unrecorded": self.unrecorded,
            "strays": [text(name) for name in self.strays],
            "files": [_record_of(file) for file in self.files],
        }
        return msgspec.json.format(msgspec.json.encode(record), indent=1).decode()

    def __str__(self) -> str:
        return str(self.summary)

    def __repr__(self) -> str:
        return f"<Verification: {text(self.summary.title)}>"

    def _repr_html_(self) -> str:
        return self.summary.html()


def _error_of(file: FileVerdict) -> DamagedError:
    error = DamagedError(file.message, verdict=file.verdict, path=file.path, offset=file.offset, frame=file.frame)
    error.ranges, error.damaged = file.ranges, file.damaged
    return error


def _record_of(file: FileVerdict) -> dict[str, Any]:
    values = msgspec.structs.asdict(file)
    shown = {name: text(values[name]) for name in ("name", "path", "message", "hint")}
    return {**values, **shown, "seconds": round(file.seconds, 6)}
