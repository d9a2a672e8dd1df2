"""What the package gives by name, what importing it costs, and what it leaves alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from files import noise

import asyncdump
from asyncdump.version import __version__

NAMES = [
    "AsyncdumpError",
    "BadRange",
    "Blocks",
    "BusyError",
    "DamagedError",
    "Defaults",
    "Dump",
    "DumpError",
    "DumpInfo",
    "Event",
    "FileFailed",
    "FileFinished",
    "FileKept",
    "FileReport",
    "FileRetried",
    "FileStarted",
    "FileVerdict",
    "FilterError",
    "Finding",
    "Identity",
    "InterruptedDumpError",
    "Lz4",
    "Manifest",
    "ManifestError",
    "Method",
    "MethodRefusedError",
    "NotDurableError",
    "OutputError",
    "Overrides",
    "Plan",
    "PlannedDump",
    "Problem",
    "ProcessMapping",
    "ProcessMemory",
    "ProcessRange",
    "Progress",
    "ReceiptError",
    "Refusal",
    "Report",
    "Restorer",
    "Retries",
    "Run",
    "RunFinished",
    "RunStarted",
    "Source",
    "SourceChangedError",
    "Span",
    "Stat",
    "Tally",
    "TargetExistsError",
    "Verification",
    "Verifier",
    "Zstd",
    "describe_dump",
    "dump_all",
    "dump_sync",
    "json_schema",
    "open_dump",
    "open_restore",
    "open_run",
    "open_verify",
    "plan_all",
    "probe",
    "read_receipt",
    "restore_all",
    "restore_sync",
    "verify_all",
    "verify_sync",
]
ALIASES = {"Event", "Method"}
HEAVY = {"anyio", "asyncio", "blake3", "click", "logging", "msgspec", "rich", "structlog", "trio", "uvloop"}
HEAVY |= {"lz4", "xxhash", "yaml", "zstandard"}
API = Path(__file__).parent.parent / "docs" / "api.md"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


def imported_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter imports for ``code``."""
    probe = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before), sep='\\n')"
    return set(python("-c", probe).stdout.split())


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_names_are_exactly_these() -> None:
    assert sorted(asyncdump.__all__) == sorted(["__version__", *NAMES])
    assert dir(asyncdump) == sorted(asyncdump.__all__)
    assert asyncdump.__version__ == __version__


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_documented(name) -> None:
    value = getattr(asyncdump, name)
    if name not in ALIASES:
        assert value.__name__ == name
        assert inspect.cleandoc(value.__doc__)
    assert f"asyncdump.{name}" in API.read_text()


def test_a_star_import_brings_them_all() -> None:
    bag: dict[str, object] = {}
    exec("from asyncdump import *", bag)
    assert set(bag) >= set(NAMES)


def test_no_other_name_is_made_up() -> None:
    with pytest.raises(AttributeError, match="dump_some"):
        _ = asyncdump.dump_some


# --- what importing costs --------------------------------------------------------------------------------------------


def test_importing_imports_nothing_else() -> None:
    modules = imported_by("import asyncdump; dir(asyncdump); asyncdump.__version__")
    assert {module for module in modules if module.startswith("asyncdump")} == {"asyncdump", "asyncdump.version"}
    assert not packages(modules) & HEAVY


def test_a_name_brings_what_it_needs_and_no_more() -> None:
    assert "asyncdump.errors" in imported_by("from asyncdump import DumpError")
    modules = packages(imported_by("from asyncdump import dump_all, open_run, Dump"))
    assert "anyio" in modules
    assert not modules & {"blake3", "click", "rich", "structlog", "trio", "uvloop", "xxhash", "zstandard"}


def test_the_version_is_told_before_anything_is_imported() -> None:
    done = python("-X", "importtime", "-m", "asyncdump", "--version")
    assert done.stdout == f"asyncdump {__version__}\n"
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {module for module in modules if module.startswith("asyncdump")} == {"asyncdump", "asyncdump.version"}
    assert not packages(modules) & HEAVY


# --- what is left alone ----------------------------------------------------------------------------------------------


def test_neither_logging_nor_structlog_is_configured(make, tmp_path: Path) -> None:
    """Not by importing everything, nor by a run in which something is logged."""
    code = f"""
import asyncio, logging, sys
import asyncdump
from asyncdump import *

def stumble(event):
    raise ZeroDivisionError

dumps = [asyncdump.Dump(source={make("tmpfs", noise(100))!r}, method="reflink")]
report = asyncio.run(asyncdump.dump_all(dumps, output={str(tmp_path / "dumps")!r}, on_event=stumble))
import structlog
logger = logging.getLogger("asyncdump")
assert not structlog.is_configured()
assert len(report.failures) == 1
assert (logging.root.handlers, logging.root.level) == ([], logging.WARNING)
assert (logger.handlers, logger.level, logger.propagate, logger.disabled) == ([], logging.NOTSET, True, False)
"""
    done = python("-c", code)
    assert done.stdout == ""
    assert "dump_failed" in done.stderr
    assert "listener_failed" in done.stderr
