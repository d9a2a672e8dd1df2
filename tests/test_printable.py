"""What may be printed: one line each, that is what it seems to be, in messages, records of the log, and tables."""

from __future__ import annotations

import logging
import sys
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from files import noise, write_pages
from hypothesis import given
from hypothesis import strategies as st

import asyncdump
from asyncdump import log
from asyncdump.errors import AsyncdumpError, DumpError, FilterError, ManifestError, Problem, ReceiptError, explain
from asyncdump.text import text

HOSTILE = [
    "a\nERROR root: fake",
    "a\r\x1b[2K\x1b]0;title\x07",
    "\u202egpj.exe",
    "\u2066a\u2069",
    "a\u200eb\u200f",
    "zero\u200bwidth\u2060\ufeff",
    "line\u2028separator\u2029",
    "c1\x9b31m\x85",
    "soft\xadhyphen",
    "variation\ufe0f\U000e0100",
    "tag\U000e0041",
    "filler\u3164\u115f\u034f",
    "space\u00a0\u3000",
    "half\ud800",
    "latin\udce9",
    "nul\0del\x7f",
]


def safe(shown: str) -> bool:
    return all(
        character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
        for character in shown
    )


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_would_steer_split_or_hide_is_escaped(name) -> None:
    shown = text(name)
    assert shown.isprintable()
    assert safe(shown)
    assert shown != name
    assert text(shown) == shown
    shown.encode()


@pytest.mark.parametrize("name", ["größe 日本", "rtemap_0", "шум", "é", "עברית", "a\\x1b", "😀"])
def test_what_people_write_stays(name) -> None:
    assert text(name) == name


@given(st.text())
def test_any_text_becomes_a_line(name) -> None:
    shown = text(name)
    assert shown.isprintable()
    assert shown.splitlines() in ([], [shown])


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_an_error_can_be_printed_and_its_path_is_what_the_kernel_knows(name) -> None:
    with pytest.raises(DumpError) as caught, explain("open", name):
        raise OSError(2, "no")
    error = caught.value
    assert str(error).isprintable()
    assert error.path == name
    filtered = FilterError(f"sh ended: {name}", command="sh", hint=name)
    assert (str(filtered) + filtered.hint).isprintable()


def test_what_is_wrong_with_a_manifest_is_one_line_each() -> None:
    error = ManifestError(*(Problem(message=name, key=name, file=name, line=1) for name in HOSTILE))
    assert len(str(error).splitlines()) == len(HOSTILE)
    assert all(line.isprintable() for line in str(error).splitlines())
    refused = ReceiptError(*HOSTILE)
    assert len(str(refused).splitlines()) == len(HOSTILE)
    assert all(str(problem).isprintable() for problem in refused.problems)


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_structlog(monkeypatch) -> Any:
    monkeypatch.setattr(log, "setups", [])
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_makes_no_record_of_its_own(name, caplog) -> None:
    log.logger().warning("dump_failed", source=name, error=f"open of {name}")
    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert record.source.isprintable()


def test_nor_in_the_log_of_a_program_with_structlog() -> None:
    records: list[Any] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        records.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    for name in HOSTILE:
        log.logger().warning("dump_failed", source=name)
    assert len(records) == len(HOSTILE)
    assert all(record["source"].isprintable() for record in records)


async def test_a_run_over_hostile_names_logs_a_line_for_each(tmp_path: Path, caplog) -> None:
    names = [name for name in HOSTILE if "\0" not in name and "\ud800" not in name]
    for number, name in enumerate(names):
        write_pages(tmp_path / name, noise(100 + number))
    dumps = [
        asyncdump.Dump(source=str(tmp_path / name), name=f"d{number}", method="reflink", checksum="none")
        for number, name in enumerate(names)
    ]
    with caplog.at_level(logging.WARNING, "asyncdump"):
        report = await asyncdump.dump_all(dumps, output="/dev/shm/asyncdump-tests-printable", overwrite=True)
    try:
        assert len(report.failures) == len(names)
        assert len(caplog.records) == len(names)
        assert all(record.getMessage().isprintable() for record in caplog.records)
        assert sorted(file.source for file in report.files) == sorted(str(tmp_path / name) for name in names)
        with pytest.raises(ExceptionGroup) as caught:
            report.raise_for_failures()
        errors = caught.value.exceptions
        assert all(isinstance(error, AsyncdumpError) and str(error).isprintable() for error in errors)
    finally:
        import shutil

        shutil.rmtree("/dev/shm/asyncdump-tests-printable")


def test_an_error_that_was_recorded_is_printable_whoever_wrote_the_record(tmp_path: Path) -> None:
    from asyncdump.records.record import Record, file_of

    record = {"source": "s", "name": "d", "bytes": 0, "error": {"message": "\x1b[31m\n\u202e", "hint": "\x9b"}}
    error = file_of(msgspec.json.decode(msgspec.json.encode(record), type=Record), str(tmp_path)).error
    assert error is not None
    assert (str(error) + error.hint).isprintable()


# --- what programs say ------------------------------------------------------------------------------------------------

SECRET = "hunter"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--key=hunter"],
        ["--key", "hunter"],
        ["-phunter"],
        ["-u", "bob:hunter"],
        ["-pass", "pass:hunter"],
        ["KEY=hunter"],
        ["https://bob:hunter@host.example/"],
        ["x", "KEY=hunter; export KEY"],
        ["\x1bhunter\n", "hunter"],
    ],
)
async def test_the_arguments_of_a_program_are_masked_in_what_it_says(arguments, tmp_path: Path, caplog) -> None:
    program, output = tmp_path / "say", tmp_path / "dumps"
    script = f"import sys; sys.stderr.write({SECRET!r} + repr(sys.argv[1:])); sys.exit(3)"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o700)
    write_pages(tmp_path / "source", noise(100))
    dumps = [asyncdump.Dump(source=str(tmp_path / "source"), filter=[[str(program), *arguments]])]
    [file] = (await asyncdump.dump_all(dumps, output=str(output), allow_filters=True)).files
    assert isinstance(file.error, FilterError)
    assert file.error.status == 3
    for told in (str(file.error), caplog.text, (output / "receipt.json").read_text()):
        assert "[argument" in told
        assert SECRET not in told


def test_not_even_a_part_of_one_is_left_where_what_was_said_is_cut() -> None:
    from asyncdump.transfer.secrets import masked

    assert masked("ter2 is wrong", ("age", "--key=hunter2"), cut=True) == " is wrong"
    assert masked("HUNTER2 hunter2", ("age", "--key=hunter2")) == "[argument 1] [argument 1]"


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("oh no", ["-c", "echo oh no >&2; exit 3"]),
        ("sh: 1: Syntax error: word unexpected", ["-c", "( word ;"]),
        ("gzip: unknown option --rsyncable", ["--rsyncable"]),
        ("age: no identity matched", ["-d", "-i", "key"]),
    ],
)
def test_what_is_no_secret_is_told(said, arguments) -> None:
    from asyncdump.transfer.secrets import masked

    assert masked(said, ("program", *arguments)) == said
