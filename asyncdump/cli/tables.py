"""The output of the commands: summaries, and the findings of a probe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from asyncdump.errors import describe_errno
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import WIDE, Summary, fill, table

if TYPE_CHECKING:
    from asyncdump.probing import Finding

_COLUMNS = 80
_NARROW = 60


def print_summary(summary: Summary, *, quiet: bool = False) -> None:
    """Print a summary on stdout, and its complaints on stderr; with ``quiet``, only the complaints."""
    if not quiet:
        print_lines(*summary.lines(width()))
    for line in summary.complaints:
        complain(line)


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print the findings of a probe, as a table or as JSON."""
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
    print_lines(*table(rows, width=width(), right=(2, 3), shrink=(4,)))
    print_lines("", *fill("Measured with one thread, including the sync; a run uses several threads.", width()))


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


def width() -> int:
    """Return the width of the terminal; 80 if it doesn't know its width, and practically unlimited for a pipe."""
    if not sys.stdout.isatty():
        return WIDE
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS
    except OSError:  # The terminal was closed.
        return _COLUMNS


def print_lines(*lines: str) -> None:
    """Print lines on stdout."""
    print(*(line.encode(errors="backslashreplace").decode() for line in lines), sep="\n")


def complain(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"asyncdump: {text(line)}\n")
