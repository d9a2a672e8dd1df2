"""Dump hundreds of memory-mapped files concurrently and durably, with digests to verify them.

The path of a byte::

    manifest -> plan -> scheduler -> engine (a thread: the kernel moves the bytes) -> sink -> events, report

`dump_all` runs a manifest, `open_run` runs it and yields its events, `dump_sync` runs it in a script. `Manifest` and
`Dump` say what to do; events and `Report` say what was done. All errors derive from `AsyncdumpError`.

Names are imported when they are first used, so that importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncdump.version import __version__

if TYPE_CHECKING:
    from asyncdump.blocking import dump_sync as dump_sync
    from asyncdump.blocking import restore_sync as restore_sync
    from asyncdump.blocking import verify_sync as verify_sync
    from asyncdump.dumping import dump_all as dump_all
    from asyncdump.dumping import open_run as open_run
    from asyncdump.dumping import plan_all as plan_all
    from asyncdump.engines import Refusal as Refusal
    from asyncdump.errors import AsyncdumpError as AsyncdumpError
    from asyncdump.errors import BusyError as BusyError
    from asyncdump.errors import DamagedError as DamagedError
    from asyncdump.errors import DumpError as DumpError
    from asyncdump.errors import FilterError as FilterError
    from asyncdump.errors import InterruptedDumpError as InterruptedDumpError
    from asyncdump.errors import ManifestError as ManifestError
    from asyncdump.errors import MethodRefusedError as MethodRefusedError
    from asyncdump.errors import NotDurableError as NotDurableError
    from asyncdump.errors import OutputError as OutputError
    from asyncdump.errors import Problem as Problem
    from asyncdump.errors import ReceiptError as ReceiptError
    from asyncdump.errors import SourceChangedError as SourceChangedError
    from asyncdump.errors import TargetExistsError as TargetExistsError
    from asyncdump.manifest import Defaults as Defaults
    from asyncdump.manifest import Dump as Dump
    from asyncdump.manifest import Lz4 as Lz4
    from asyncdump.manifest import Manifest as Manifest
    from asyncdump.manifest import ProcessMemory as ProcessMemory
    from asyncdump.manifest import Retries as Retries
    from asyncdump.manifest import Zstd as Zstd
    from asyncdump.manifest import json_schema as json_schema
    from asyncdump.manifest.options import Overrides as Overrides
    from asyncdump.plan.plan import Plan as Plan
    from asyncdump.plan.plan import PlannedDump as PlannedDump
    from asyncdump.probing import Finding as Finding
    from asyncdump.probing import probe as probe
    from asyncdump.reading import DumpInfo as DumpInfo
    from asyncdump.reading import describe_dump as describe_dump
    from asyncdump.reading import open_dump as open_dump
    from asyncdump.reading import read_receipt as read_receipt
    from asyncdump.records.report import FileReport as FileReport
    from asyncdump.records.report import Report as Report
    from asyncdump.records.verification import FileVerdict as FileVerdict
    from asyncdump.records.verification import Verification as Verification
    from asyncdump.restoring import Restorer as Restorer
    from asyncdump.restoring import open_restore as open_restore
    from asyncdump.restoring import restore_all as restore_all
    from asyncdump.run.events import Event as Event
    from asyncdump.run.events import FileFailed as FileFailed
    from asyncdump.run.events import FileFinished as FileFinished
    from asyncdump.run.events import FileKept as FileKept
    from asyncdump.run.events import FileRetried as FileRetried
    from asyncdump.run.events import FileStarted as FileStarted
    from asyncdump.run.events import Progress as Progress
    from asyncdump.run.events import RunFinished as RunFinished
    from asyncdump.run.events import RunStarted as RunStarted
    from asyncdump.run.run import Run as Run
    from asyncdump.run.tally import Tally as Tally
    from asyncdump.verifying import Verifier as Verifier
    from asyncdump.verifying import open_verify as open_verify
    from asyncdump.verifying import verify_all as verify_all
    from asyncdump.vocabulary.blocks import Blocks as Blocks
    from asyncdump.vocabulary.values import BadRange as BadRange
    from asyncdump.vocabulary.values import Identity as Identity
    from asyncdump.vocabulary.values import Method as Method
    from asyncdump.vocabulary.values import ProcessMapping as ProcessMapping
    from asyncdump.vocabulary.values import ProcessRange as ProcessRange
    from asyncdump.vocabulary.values import Source as Source
    from asyncdump.vocabulary.values import Span as Span
    from asyncdump.vocabulary.values import Stat as Stat

_HOMES = {
    "blocking": ("dump_sync", "restore_sync", "verify_sync"),
    "dumping": ("dump_all", "open_run", "plan_all"),
    "engines": ("Refusal",),
    "errors": (
        "AsyncdumpError",
        "BusyError",
        "DamagedError",
        "DumpError",
        "FilterError",
        "InterruptedDumpError",
        "ManifestError",
        "MethodRefusedError",
        "NotDurableError",
        "OutputError",
        "Problem",
        "ReceiptError",
        "SourceChangedError",
        "TargetExistsError",
    ),
    "manifest": ("Defaults", "Dump", "Lz4", "Manifest", "ProcessMemory", "Retries", "Zstd", "json_schema"),
    "manifest.options": ("Overrides",),
    "plan.plan": ("Plan", "PlannedDump"),
    "probing": ("Finding", "probe"),
    "reading": ("DumpInfo", "describe_dump", "open_dump", "read_receipt"),
    "records.report": ("FileReport", "Report"),
    "records.verification": ("FileVerdict", "Verification"),
    "restoring": ("Restorer", "open_restore", "restore_all"),
    "run.events": (
        "Event",
        "FileFailed",
        "FileFinished",
        "FileKept",
        "FileRetried",
        "FileStarted",
        "Progress",
        "RunFinished",
        "RunStarted",
    ),
    "run.run": ("Run",),
    "run.tally": ("Tally",),
    "verifying": ("Verifier", "open_verify", "verify_all"),
    "vocabulary.blocks": ("Blocks",),
    "vocabulary.values": ("BadRange", "Identity", "Method", "ProcessMapping", "ProcessRange", "Source", "Span", "Stat"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 (they are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
