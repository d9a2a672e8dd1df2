"""The logger is a guest: it writes where the program's own logging does, and never to stdout."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from files import noise

from asyncdump import log


@pytest.fixture(autouse=True)
def fresh_structlog(monkeypatch) -> Iterator[None]:
    """A program that hasn't configured structlog."""
    monkeypatch.setattr(log, "setups", [])
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def configure(records: list[Any]) -> None:
    """Do as a program does which has structlog write its own way: into a list."""

    def keep(_logger: Any, method: str, event: Any) -> Any:
        records.append((method, dict(event)))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])


# --- a program without structlog -------------------------------------------------------------------------------------


def test_records_go_to_the_standard_logger(caplog, capsys) -> None:
    log.logger().warning("dump_failed", source="/dev/shm/a", stage="move")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("asyncdump", "WARNING")
    assert record.getMessage() == "dump_failed source=/dev/shm/a stage=move"
    assert (record.source, record.stage) == ("/dev/shm/a", "move")
    assert capsys.readouterr().out == ""


def test_they_obey_its_level(caplog) -> None:
    with caplog.at_level(logging.ERROR, "asyncdump"):
        log.logger().warning("dump_failed")
        log.logger().error("worse")
    assert [record.getMessage() for record in caplog.records] == ["worse"]


def test_an_exception_comes_with_its_traceback(caplog) -> None:
    error = ZeroDivisionError()
    try:
        raise error
    except ZeroDivisionError:
        log.logger().exception("listener_failed")
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_percent_signs_in_a_path_are_nothing_to_fill_in(caplog) -> None:
    log.logger().warning("dump_failed", source="/dev/shm/100%s %d")
    assert caplog.records[0].getMessage() == "dump_failed source=/dev/shm/100%s %d"


def test_structlog_is_left_unconfigured() -> None:
    log.logger().warning("dump_failed")
    assert not structlog.is_configured()


# --- a program with structlog ----------------------------------------------------------------------------------------


def test_records_go_the_way_of_the_program(caplog, capsys) -> None:
    records: list[Any] = []
    configure(records)
    log.logger().warning("dump_failed", source="/dev/shm/a")
    assert records == [("warning", {"event": "dump_failed", "source": "/dev/shm/a"})]
    assert caplog.records == []
    assert capsys.readouterr().out == ""


def test_a_program_may_configure_it_late(caplog) -> None:
    records: list[Any] = []
    log.logger().warning("before")
    configure(records)
    log.logger().warning("after")
    assert [record.getMessage() for record in caplog.records] == ["before"]
    assert records == [("warning", {"event": "after"})]


def test_what_is_to_be_set_up_is_so_once_before_the_first_record() -> None:
    records: list[Any] = []
    calls: list[str] = []

    def set_up() -> None:
        calls.append("set up")
        configure(records)

    log.setups.append(set_up)
    log.logger().warning("first")
    log.logger().warning("second")
    assert calls == ["set up"]
    assert [event["event"] for _, event in records] == ["first", "second"]


# --- whole programs --------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
import asyncdump
{setup}
dumps = [asyncdump.Dump(source={source!r}, name="refused", method="reflink")]
report = asyncio.run(asyncdump.dump_all(dumps, output={output!r}))
assert len(report.failures) == 1
"""
STRUCTLOG = """
import structlog
structlog.configure(
    processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer(sort_keys=True)],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)
"""
LOGGING = """
import logging
logging.basicConfig(format="%(levelname)s from %(name)s: %(message)s")
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("setup", "start"),
    [
        ("", "dump_failed source="),
        (LOGGING, "WARNING from asyncdump: dump_failed source="),
        (STRUCTLOG, '{"error": "reflink '),
    ],
    ids=["nothing", "logging", "structlog"],
)
def test_a_failed_dump_is_told_on_stderr_as_the_program_wants_it(setup, start, make, tmp_path: Path) -> None:
    program = PROGRAM.format(setup=setup, source=make("tmpfs", noise(100)), output=str(tmp_path / "dumps"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(start)
    assert "reflink" in line
