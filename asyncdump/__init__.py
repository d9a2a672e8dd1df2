"""Dump hundreds of memory-mapped files concurrently, durably and provably whole.

The way of a byte::

    manifest -> plan -> scheduler -> engine (a thread: the kernel moves the bytes) -> sink -> events, report

`dump_all` carries out a manifest, `open_run` does so and lets you watch. What they take is in `Manifest` and `Dump`,
what they say in the events and in `Report`, what they raise descends from `AsyncdumpError`.

Names are imported when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncdump.version import __version__

if TYPE_CHECKING:
    from asyncdump.errors import AsyncdumpError as AsyncdumpError
    from asyncdump.errors import DamagedError as DamagedError
    from asyncdump.errors import DumpError as DumpError
    from asyncdump.errors import FilterError as FilterError
    from asyncdump.errors import InterruptedDumpError as InterruptedDumpError
    from asyncdump.errors import ManifestError as ManifestError
    from asyncdump.errors import MethodRefusedError as MethodRefusedError
    from asyncdump.errors import NotDurableError as NotDurableError
    from asyncdump.errors import Problem as Problem
    from asyncdump.errors import ReceiptError as ReceiptError
    from asyncdump.errors import SourceChangedError as SourceChangedError
    from asyncdump.events import Event as Event
    from asyncdump.events import FileFailed as FileFailed
    from asyncdump.events import FileFinished as FileFinished
    from asyncdump.events import FileKept as FileKept
    from asyncdump.events import FileRetried as FileRetried
    from asyncdump.events import FileStarted as FileStarted
    from asyncdump.events import Progress as Progress
    from asyncdump.events import RunFinished as RunFinished
    from asyncdump.events import RunStarted as RunStarted
    from asyncdump.finding import Finding as Finding
    from asyncdump.finding import probe as probe
    from asyncdump.manifest import Defaults as Defaults
    from asyncdump.manifest import Dump as Dump
    from asyncdump.manifest import Manifest as Manifest
    from asyncdump.manifest import Retries as Retries
    from asyncdump.manifest import Zstd as Zstd
    from asyncdump.manifest import json_schema as json_schema
    from asyncdump.plan import Plan as Plan
    from asyncdump.plan import PlannedDump as PlannedDump
    from asyncdump.reading import DumpInfo as DumpInfo
    from asyncdump.reading import describe_dump as describe_dump
    from asyncdump.reading import open_dump as open_dump
    from asyncdump.report import FileReport as FileReport
    from asyncdump.report import Report as Report
    from asyncdump.restore import restore_all as restore_all
    from asyncdump.run import Overrides as Overrides
    from asyncdump.run import Run as Run
    from asyncdump.run import dump_all as dump_all
    from asyncdump.run import open_run as open_run
    from asyncdump.run import plan_all as plan_all
    from asyncdump.salvage import BadRange as BadRange
    from asyncdump.source import Identity as Identity
    from asyncdump.source import Source as Source
    from asyncdump.verify import FileVerdict as FileVerdict
    from asyncdump.verify import Verification as Verification
    from asyncdump.verify import verify_all as verify_all

_HOMES = {
    "errors": (
        "AsyncdumpError",
        "DamagedError",
        "DumpError",
        "FilterError",
        "InterruptedDumpError",
        "ManifestError",
        "MethodRefusedError",
        "NotDurableError",
        "Problem",
        "ReceiptError",
        "SourceChangedError",
    ),
    "events": (
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
    "finding": ("Finding", "probe"),
    "manifest": ("Defaults", "Dump", "Manifest", "Retries", "Zstd", "json_schema"),
    "plan": ("Plan", "PlannedDump"),
    "reading": ("DumpInfo", "describe_dump", "open_dump"),
    "report": ("FileReport", "Report"),
    "restore": ("restore_all",),
    "run": ("Overrides", "Run", "dump_all", "open_run", "plan_all"),
    "salvage": ("BadRange",),
    "source": ("Identity", "Source"),
    "verify": ("FileVerdict", "Verification", "verify_all"),
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
