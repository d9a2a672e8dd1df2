"""The dumps of earlier runs in the same store, and which of them still fit the plan."""

from __future__ import annotations

import errno
from contextlib import suppress

import msgspec

from asyncdump.errors import DumpError, Problem, TargetExistsError
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.records.receipt import read_receipt
from asyncdump.records.report import FileReport
from asyncdump.sinks.place import Store
from asyncdump.vocabulary.digest import checksum_of
from asyncdump.vocabulary.names import RECEIPT


def find_earlier(plan: Plan, store: Store) -> dict[str, FileReport]:
    """Return the dumps of earlier runs in a store, by name, as far as they concern this run.

    Raises:
        DumpError: the records can't be read.
        TargetExistsError: another run has ended in it since this one was planned.
    """
    if plan.resume:
        found = read_receipt(store)
        return found.ours if found else {}
    if not plan.overwrite and store.exists(RECEIPT):
        raise TargetExistsError(
            Problem(
                key="output",
                message=f"another run used {store.path} after this one was planned",
                remedy="choose another directory, or pass {overwrite}",
            ),
            path=store.path,
            errno=errno.EEXIST,
        )
    if not plan.overwrite:
        return {}
    # Dumps that are about to be replaced: a later --resume must know that they are ours, but must not keep them.
    names = {dump.name for dump in plan.dumps}
    with suppress(DumpError):
        found = read_receipt(store)
        return {name: _outdated(file) for name, file in found.ours.items() if name in names} if found else {}
    return {}


def _outdated(file: FileReport) -> FileReport:
    """Return a record of a dump that is to be replaced, which is never kept."""
    error = file.error or DumpError("the run ended before it replaced an older dump", path=file.path)
    return msgspec.structs.replace(file, error=error)


def fits(planned: PlannedDump, earlier: FileReport, plan: Plan) -> bool:
    """Return whether an earlier dump is what the plan wants, as far as its record shows."""
    checksum = checksum_of(earlier.digest)
    asked = (planned.source.path, planned.offset, planned.length, planned.stages, planned.checksum)
    if (earlier.source, earlier.offset, earlier.bytes, earlier.stages, checksum) != asked:
        return False
    if earlier.bad_bytes and planned.on_read_error == "fail":
        return False
    if plan.trust_receipt:
        return True
    # The arguments of programs may be secrets and aren't recorded. The same manifest has the same arguments.
    if planned.filters and earlier.manifest_sha256 != plan.manifest_sha256:
        return False
    return earlier.identity is not None and earlier.identity == planned.source.identity
