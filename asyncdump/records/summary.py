"""The summary of a report: totals in a table, and the failures, grouped by cause."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from asyncdump.errors import AsyncdumpError, InterruptedDumpError, describe_errno
from asyncdump.records.report import FileReport, Report
from asyncdump.spelling import spelled
from asyncdump.text import text
from asyncdump.vocabulary.names import LISTS, RECEIPT
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import Summary, count, listed, seconds
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_MOST: Final = 20
"""The maximum number of failures, and of files with unreadable bytes, that are listed."""

_NUMBER: Final = re.compile(r"\d+")


def summary_of(report: Report) -> Summary:
    """Return the summary of a report."""
    done = [file for file in report.files if file.ok]
    title = f"{len(done)} of {count(len(report.files), 'file')} {report.action} to {place_of(report.output)}"
    return Summary(
        title=title + (f", interrupted: {report.interrupted}" if report.interrupted else ""),
        rows=tuple(_rows(report, done)) if done else (),
        right=(1, 2, 3, 4, 5),
        spare=(3, 4),
        notes=tuple(_notes(report, done)),
        complaints=tuple(_complaints(report, done)),
    )


def place_of(output: str) -> str:
    """Return the name of an output for display."""
    return "standard output" if output == STANDARD_OUTPUT else text(output)


def _rows(report: Report, done: list[FileReport]) -> Iterator[tuple[str, ...]]:
    groups: dict[str, list[FileReport]] = defaultdict(list)
    for file in done:
        groups["kept" if file.kept else ", ".join((file.method or "", *file.stages))].append(file)
    yield ("method", "files", "size", "written", "time", "rate")
    for method, files in sorted(groups.items()):
        yield _row(method, files, "", "")
    yield _row("total", done, seconds(report.seconds), f"{format_size(report.bytes_per_second)}/s")


def _row(name: str, files: list[FileReport], time: str, rate: str) -> tuple[str, ...]:
    size = sum(file.bytes for file in files)
    written = sum(file.stored for file in files)
    return name, str(len(files)), format_size(size), format_size(written), time, rate


def _notes(report: Report, done: list[FileReport]) -> Iterator[str]:
    if kept := [file for file in done if file.kept]:
        verified = all(file.digest for file in kept)
        how = "verified" if verified else "those without a digest by size and inode only"
        yield f"{count(len(kept), 'file')} kept from an earlier run ({how})"
    if report.action == "dumped" and report.output != STANDARD_OUTPUT and report.receipt_error is None:
        lists = sorted({LISTS[file.digest.partition(":")[0]] for file in done if file.digest})
        yield f"Also written: {', '.join([RECEIPT, *lists])}"


def _complaints(report: Report, done: list[FileReport]) -> Iterator[str]:
    if report.action == "dumped":
        yield from _bad(report, [file for file in done if file.bad and not file.kept])
    yield from _failures(report)
    if report.action == "restored":
        if unverified := sum(file.digest is None for file in done):
            yield f"{count(unverified, 'file')} restored without verification: no digest was recorded"
        if report.unrecorded:
            missing = count(report.unrecorded, "dump")
            yield f"{missing} not written by the last run: an older one was restored, or none"
    if report.receipt_error is not None:
        yield f"the receipt could not be written: {report.receipt_error}"


def _failures(report: Report) -> Iterator[str]:
    failures = [file for file in report.failures if not isinstance(file.error, InterruptedDumpError)]
    groups: dict[_Reason, list[FileReport]] = defaultdict(list)
    for file in failures:
        groups[_reason(file)].append(file)
    for files in list(groups.values())[:_MOST]:
        yield from _failure(files)
    if len(groups) > _MOST:
        more = sum(map(len, list(groups.values())[_MOST:]))
        where = f": see {report.output}/{RECEIPT}" if report.action == "dumped" else ""
        yield f"and {more} more{where}"
    if given_up := len(report.failures) - len(failures):
        by = report.interrupted or "a failure"
        yield f"{count(given_up, 'file')} not {report.action}: the run was interrupted by {by}"
        if report.action == "dumped" and report.output != STANDARD_OUTPUT:
            yield f"  {spelled('continue it with {resume}')}"


class _Reason(NamedTuple):
    """The key by which failures are grouped."""

    kind: type[AsyncdumpError]
    phase: str
    errno: int | None
    message: str
    hint: str


def _reason(file: FileReport) -> _Reason:
    error = file.error
    assert error is not None
    message = str(error)
    for name in filter(None, (error.path, file.source, file.path)):
        message = message.replace(text(name), "")
    return _Reason(type(error), file.phase, error.errno, _NUMBER.sub("", message), error.hint)


def _failure(files: list[FileReport]) -> Iterator[str]:
    first, error = files[0], files[0].error
    assert error is not None
    if len(files) == 1:
        yield f"failed: {first.name} ({first.phase}): {error}"
    else:
        why = "" if error.errno is None else f"{describe_errno(error.errno)}: "
        yield f"failed: {count(len(files), 'file')} ({first.phase}): {why}{listed(file.name for file in files)}"
        yield f"  {error}"
    if error.hint:
        yield f"  {error.hint}"


def _bad(report: Report, files: list[FileReport]) -> Iterator[str]:
    """Report unreadable bytes; on standard output there is no receipt, so list the first ranges, too."""
    streamed = report.output == STANDARD_OUTPUT
    for file in files[:_MOST]:
        lost = f"{format_size(file.bad_bytes)} in {count(len(file.bad), 'range')} could not be read and are zeros"
        yield f"{file.name}: {lost}{'' if streamed else f': see {RECEIPT}'}"
        for bad in file.bad[:_MOST] if streamed else ():
            yield f"  {bad.length} bytes from byte {bad.offset}: {describe_errno(bad.errno)}"
    if len(files) > _MOST:
        yield f"and {count(len(files) - _MOST, 'file')} more with bytes that could not be read: see {RECEIPT}"
