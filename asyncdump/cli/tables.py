"""What is printed before and after a run: the plan, the summary, the findings of a probe."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from asyncdump.cli.columns import fill, seconds, table, width
from asyncdump.errors import InterruptedDumpError, describe_errno
from asyncdump.plan.plan import Plan
from asyncdump.records.report import FileReport, Report
from asyncdump.text import text
from asyncdump.vocabulary.names import LISTS, RECEIPT
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.values import STANDARD_OUTPUT

if TYPE_CHECKING:
    from asyncdump.probing import Finding

_MOST_FAILURES = 20
_MOST_BAD = 20
_NARROW = 60


def print_plan(plan: Plan, methods: list[str]) -> None:
    """Print each file of a plan with the method it would use, the totals and the free space."""
    rows = [("name", "source", "kind", "size", "method", "checksum")]
    rows += [
        (dump.name, dump.source.path, dump.source.kind, format_size(dump.length), method, dump.checksum)
        for dump, method in zip(plan.dumps, methods, strict=True)
    ]
    if width() < _NARROW:
        rows = [(name, source, "", size, method, "") for name, source, _, size, method, _ in rows]
    print_lines(*table(rows, right=(3,), shrink=(1, 0, 4)), "")
    files = count(len(plan.dumps), "file")
    print_lines(
        f"{files}, {format_size(plan.bytes)} to {_place(plan.output)}"
        + ("" if plan.output == STANDARD_OUTPUT else f" ({format_size(plan.free)} free there)"),
        "A dry run: nothing was written.",
    )


def print_summary(report: Report, *, quiet: bool) -> None:
    """Print the outcome of a run: totals on stdout, failures on stderr; with ``quiet`` the latter alone."""
    if not quiet:
        print_totals(report, "dumped")
    _print_bad(report, [file for file in report.files if file.ok and file.bad and not file.kept])
    print_failures(report, "dumped")
    print_receipt_error(report)


def print_totals(report: Report, done: str) -> None:
    """Print on stdout how much was ``done`` and how, and what is written beside dumps."""
    print_lines(*_totals(report, [file for file in report.files if file.ok], done))


def print_failures(report: Report, done: str) -> None:
    """Print on stderr what was not ``done``, and why."""
    failures = [file for file in report.failures if not isinstance(file.error, InterruptedDumpError)]
    given_up = len(report.failures) - len(failures)
    for file in failures[:_MOST_FAILURES]:
        complain(f"failed: {file.name} ({file.phase}): {file.error}")
        if file.error is not None and file.error.hint:
            complain(f"  {file.error.hint}")
    if len(failures) > _MOST_FAILURES:
        where = f": see {report.output}/{RECEIPT}" if done == "dumped" else ""
        complain(f"and {len(failures) - _MOST_FAILURES} more{where}")
    if given_up:
        complain(f"{count(given_up, 'file')} not {done}: the run was ended by {report.interrupted or 'a failure'}")
        if done == "dumped" and report.output != STANDARD_OUTPUT:
            complain("  go on with it by --resume")


def _print_bad(report: Report, files: list[FileReport]) -> None:
    """Say on stderr what could not be read; where no receipt lists the ranges, the first of them too."""
    streamed = report.output == STANDARD_OUTPUT
    for file in files[:_MOST_BAD]:
        lost = f"{format_size(file.bad_bytes)} in {count(len(file.bad), 'range')} could not be read and are zeros"
        complain(f"{file.name}: {lost}{'' if streamed else f': see {RECEIPT}'}")
        for bad in file.bad[:_MOST_BAD] if streamed else ():
            complain(f"  {bad.length} bytes from byte {bad.offset}: {describe_errno(bad.errno)}")
    if len(files) > _MOST_BAD:
        complain(f"and {count(len(files) - _MOST_BAD, 'file')} more with bytes that could not be read: see {RECEIPT}")


def print_receipt_error(report: Report) -> None:
    """Say on stderr that the receipt could not be written, if so: nothing else tells of it."""
    if report.receipt_error is not None:
        complain(f"the receipt could not be written: {report.receipt_error}")


def _totals(report: Report, done: list[FileReport], what: str) -> list[str]:
    lines = [
        f"{len(done)} of {count(len(report.files), 'file')} {what} to {_place(report.output)}"
        + (f", ended early: {report.interrupted}" if report.interrupted else "")
    ]
    if done:
        groups: dict[str, list[FileReport]] = defaultdict(list)
        for file in done:
            groups["kept" if file.kept else ", ".join((file.method or "", *file.stages))].append(file)
        rows = [("method", "files", "size", "written", "time", "rate")]
        rows += [_row(method, files, "", "") for method, files in sorted(groups.items())]
        rate = f"{format_size(report.bytes_per_second)}/s"
        rows.append(_row("total", done, seconds(report.seconds), rate))
        if width() < _NARROW:
            rows = [(method, files, size, "", "", rate) for method, files, size, _, _, rate in rows]
        lines += ["", *table(rows, right=(1, 2, 3, 4, 5)), ""]
    if kept := sum(file.kept for file in done):
        proved = all(file.digest for file in done if file.kept)
        how = "and found whole" if proved else "those without a digest by their size and inode"
        lines += [f"{count(kept, 'file')} of them kept from an earlier run, {how}", ""]
    if report.output == STANDARD_OUTPUT:
        return lines
    if what != "dumped":
        return lines[: 1 if not done else -1]
    if report.receipt_error is not None:
        return lines
    lists = sorted({LISTS[file.digest.partition(":")[0]] for file in done if file.digest})
    lines += fill(f"Written beside them: {', '.join([RECEIPT, *lists])}")
    return lines


def _place(output: str) -> str:
    return "standard output" if output == STANDARD_OUTPUT else text(output)


def _row(name: str, files: list[FileReport], time: str, rate: str) -> tuple[str, str, str, str, str, str]:
    size = sum(file.bytes for file in files)
    written = sum(file.stored for file in files)
    return name, str(len(files)), format_size(size), format_size(written), time, rate


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print what came of a probe."""
    if as_json:
        import json

        print_lines(json.dumps([_finding_record(finding) for finding in findings], indent=1))
        return
    rows = [("method", "accepted", "rate", "CPU s per GiB", "auto picks it")]
    for finding in findings:
        if finding.refusal is not None:
            rows.append((finding.method, "no", "", "", finding.refusal.reason))
        else:
            rate = f"{format_size(finding.bytes_per_second)}/s" if finding.bytes else "no data"
            cpu = f"{finding.cpu_seconds * 2**30 / finding.bytes:.2f}" if finding.bytes else ""
            rows.append((finding.method, "yes", rate, cpu, finding.chosen))
    if width() < _NARROW:
        rows = [(method, "", rate, "", chosen) for method, _, rate, _, chosen in rows]
    print_lines(*table(rows, right=(2, 3), shrink=(4,)))
    print_lines("", *fill("Measured on one thread, made durable; a run uses several."))


def _finding_record(finding: Finding) -> dict[str, object]:
    refusal = finding.refusal
    return {
        "method": finding.method,
        "accepted": refusal is None,
        "reason": refusal.reason if refusal else None,
        "errno": describe_errno(refusal.errno) if refusal and refusal.errno else None,
        "bytes": finding.bytes,
        "bytes_per_second": round(finding.bytes_per_second),
        "cpu_seconds": round(finding.cpu_seconds, 6),
        "chosen": finding.chosen,
    }


def count(number: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_lines(*lines: str) -> None:
    """Print lines on stdout."""
    print(*(line.encode(errors="backslashreplace").decode() for line in lines), sep="\n")


def complain(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"asyncdump: {text(line)}\n")
