"""The summary of a plan, and a plan as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import Summary, count
from asyncdump.vocabulary.values import STANDARD_OUTPUT


def summary_of(plan: Plan, methods: Sequence[str] | None = None) -> Summary:
    """Return the summary of a plan; ``methods`` are the methods that its dumps would use, if they are known."""
    rows = [("name", "source", "kind", "size", "method", "checksum")]
    rows += [
        (dump.name, dump.source.path, dump.source.kind, format_size(dump.length), method, dump.checksum)
        for dump, method in zip(plan.dumps, methods or [dump.method for dump in plan.dumps], strict=True)
    ]
    return Summary(
        title="",
        rows=tuple(rows),
        right=(3,),
        shrink=(1, 0, 4),
        spare=(2, 5),
        notes=(total_of(plan),),
    )


def total_of(plan: Plan) -> str:
    """Return the totals of a plan in one sentence."""
    place = "standard output" if plan.output == STANDARD_OUTPUT else text(plan.output)
    free = f" ({format_size(plan.free)} free there)" if plan.free else ""
    return f"{count(len(plan.dumps), 'file')}, {format_size(plan.bytes)} to {place}{free}"


def record_of(plan: Plan) -> dict[str, Any]:
    """Return a plan as a JSON object."""
    return {
        "output": text(plan.output),
        "files": len(plan.dumps),
        "bytes": plan.bytes,
        "free": plan.free,
        "concurrency": plan.concurrency,
        "on_error": plan.on_error,
        "overwrite": plan.overwrite,
        "resume": plan.resume,
        "trust_receipt": plan.trust_receipt,
        "retries": msgspec.to_builtins(plan.retries),
        "manifest_sha256": plan.manifest_sha256,
        "dumps": [_dump_record(dump) for dump in plan.dumps],
    }


def _dump_record(dump: PlannedDump) -> dict[str, Any]:
    # The arguments of filters may be secrets, so only the names of the programs are listed.
    return {
        "name": text(dump.name),
        "source": text(dump.source.path),
        "kind": dump.source.kind,
        "offset": dump.offset,
        "bytes": dump.length,
        "method": dump.method,
        "checksum": dump.checksum,
        "durable": dump.durable,
        "sparse": dump.sparse,
        "stages": [text(stage) for stage in dump.stages],
        "on_read_error": dump.on_read_error,
        "error": None if dump.error is None else text(str(dump.error)),
    }
