"""The outcome of a run: the receipt, the digest lists, and what is raised."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from files import unavailable
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncdump
from asyncdump.errors import AsyncdumpError, DumpError, InterruptedDumpError
from asyncdump.records.record import file_record
from asyncdump.records.report import FileReport, Report
from asyncdump.records.writer import digest_lists, receipt
from asyncdump.vocabulary.names import name_complaint
from asyncdump.vocabulary.values import BadRange

START = datetime(2024, 2, 29, 12, 0, 0, 500, tzinfo=UTC)
FULL = DumpError("write of /dumps/b: ENOSPC", path="/dumps/b", operation="write", errno=errno.ENOSPC, hint="free space")


def file(name: str = "a", **changes: Any) -> FileReport:
    done = FileReport(
        source=f"/dev/shm/{name}",
        name=name,
        path=f"/dumps/{name}",
        bytes=1000,
        stored=600,
        seconds=0.12345678,
        method="read",
        digest="xxh128:00112233445566778899aabbccddeeff",
        error=None,
        phase="done",
    )
    return msgspec.structs.replace(done, **changes)


def failure(name: str = "b", error: AsyncdumpError = FULL, **changes: Any) -> FileReport:
    return file(name, **{"bytes": 0, "stored": 0, "digest": None, "error": error, "phase": "move", **changes})


def report(*files: FileReport, **changes: Any) -> Report:
    whole = Report(
        files=files,
        output="/dumps",
        started=START,
        ended=START + timedelta(seconds=4),
        seconds=4.0,
        interrupted=None,
        manifest_sha256="ab" * 32,
    )
    return msgspec.structs.replace(whole, **changes)


# --- in memory -------------------------------------------------------------------------------------------------------


def test_sums_are_of_what_is_done() -> None:
    mixed = report(file("a"), failure("b"), file("c", bytes=3000, stored=3000))
    assert (mixed.bytes, mixed.stored) == (4000, 3600)
    assert mixed.bytes_per_second == 1000.0
    assert [one.name for one in mixed.failures] == ["b"]
    assert [one.ok for one in mixed.files] == [True, False, True]


def test_a_run_that_took_no_time_has_no_speed() -> None:
    assert report(seconds=0.0).bytes_per_second == 0.0


def test_ok_takes_every_dump_and_the_receipt() -> None:
    assert report(file("a"), file("b")).ok
    assert not report(file("a"), failure("b")).ok
    assert not report(file("a"), receipt_error=FULL).ok


def test_nothing_is_raised_where_nothing_failed() -> None:
    report(file("a"), file("b")).raise_for_failures()


def test_all_that_failed_is_raised_as_a_group() -> None:
    given_up = InterruptedDumpError("given up")
    lost = DumpError("no receipt")
    with pytest.raises(ExceptionGroup, match=r"2 .* 3 ") as raised:
        report(failure("a"), file("b"), failure("c", given_up), receipt_error=lost).raise_for_failures()
    assert raised.value.exceptions == (FULL, given_up, lost)


def test_a_receipt_that_is_missing_is_raised_alone_too() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        report(file("a"), receipt_error=FULL).raise_for_failures()
    assert raised.value.exceptions == (FULL,)


# --- the receipt -----------------------------------------------------------------------------------------------------


def test_the_receipt_says_all_of_a_run() -> None:
    bad = (BadRange(offset=4096, length=8192, errno=errno.EIO),)
    whole = receipt(report(file("a", bad=bad), failure("b"), interrupted="SIGINT"), "1.2.3")
    assert whole.endswith(b"}\n")
    assert json.loads(whole) == {
        "receipt": 2,
        "ok": False,
        "interrupted": "SIGINT",
        "started": "2024-02-29T12:00:00.000500+00:00",
        "ended": "2024-02-29T12:00:04.000500+00:00",
        "seconds": 4.0,
        "bytes": 1000,
        "stored": 600,
        "manifest_sha256": "ab" * 32,
        "output": "/dumps",
        "host": platform.node(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "versions": {"asyncdump": "1.2.3", "python": platform.python_version(), "kernel": platform.release()},
        "files": [
            {
                "source": "/dev/shm/a",
                "name": "a",
                "offset": 0,
                "bytes": 1000,
                "size": 0,
                "stored": 600,
                "seconds": 0.123457,
                "began": None,
                "ended": None,
                "lane": None,
                "lanes": 0,
                "method": "read",
                "digest": "xxh128:00112233445566778899aabbccddeeff",
                "content_digest": None,
                "stages": [],
                "bad": [{"offset": 4096, "length": 8192, "errno": "EIO (Input/output error)"}],
                "bad_left_out": 0,
                "phase": "done",
                "kept": False,
                "error": None,
                "identity": None,
                "inode": 0,
                "stat": None,
                "maps": [],
                "maps_left_out": 0,
                "blocks": None,
                "durable": True,
                "manifest_sha256": "",
            },
            {
                "source": "/dev/shm/b",
                "name": "b",
                "offset": 0,
                "bytes": 0,
                "size": 0,
                "stored": 0,
                "seconds": 0.123457,
                "began": None,
                "ended": None,
                "lane": None,
                "lanes": 0,
                "method": "read",
                "digest": None,
                "content_digest": None,
                "stages": [],
                "bad": [],
                "bad_left_out": 0,
                "phase": "move",
                "kept": False,
                "identity": None,
                "inode": 0,
                "stat": None,
                "maps": [],
                "maps_left_out": 0,
                "blocks": None,
                "durable": True,
                "manifest_sha256": "",
                "error": {
                    "type": "DumpError",
                    "message": "write of /dumps/b: ENOSPC",
                    "errno": "ENOSPC (No space left on device)",
                    "hint": "free space",
                },
            },
        ],
        "earlier": [],
    }


def test_an_error_without_an_errno_has_none() -> None:
    [record] = json.loads(receipt(report(failure("b", InterruptedDumpError("given up"), method=None)), ""))["files"]
    assert record["method"] is None
    assert record["error"] == {"type": "InterruptedDumpError", "message": "given up", "errno": None, "hint": ""}


def test_a_name_that_is_not_utf8_is_shown_escaped_and_given_in_full() -> None:
    name = os.fsdecode(b"caf\xe9")
    error = DumpError(f"open of {name}: no")
    [record] = json.loads(receipt(report(failure(name, error), output=f"/{name}"), ""))["files"]
    assert record["name"] == r"caf\xe9"
    assert record["source"] == r"/dev/shm/caf\xe9"
    assert record["error"]["message"] == r"open of caf\xe9: no"
    assert base64.b64decode(record["name_base64"]) == b"caf\xe9"
    assert base64.b64decode(record["source_base64"]) == b"/dev/shm/caf\xe9"
    assert json.loads(receipt(report(output=f"/{name}"), ""))["output"] == r"/caf\xe9"


def test_a_name_that_would_control_a_terminal_is_shown_escaped_and_given_in_full() -> None:
    name = "a\x1b[31m\t\x9b\x7f\n"
    record = file_record(file(name))
    assert record.name == r"a\x1b[31m\t\x9b\x7f\n"
    assert isinstance(record.name_base64, str)
    assert base64.b64decode(record.name_base64) == name.encode()
    told = file_record(failure("b", DumpError(f"open of {name}: no"))).error
    assert told is not None
    assert told.message.isprintable()
    assert file_record(file("größe 日本")).name == "größe 日本"


def test_each_digest_list_has_the_names_that_are_shown_escaped() -> None:
    assert digest_lists(report(file("\x9b", digest="blake3:01"))) == {"B3SUMS": "01  \x9b\n".encode()}


@given(st.lists(st.binary(min_size=1, max_size=8), unique=True))
def test_no_two_names_are_one_in_the_receipt(names) -> None:
    records = json.loads(receipt(report(*(file(os.fsdecode(name)) for name in names)), ""))["files"]
    told = [
        base64.b64decode(record["name_base64"]) if "name_base64" in record else record["name"].encode()
        for record in records
    ]
    assert told == names


def test_a_name_in_utf8_needs_no_second_form() -> None:
    assert file_record(file("größe")).name == "größe"
    assert file_record(file("größe")).name_base64 is msgspec.UNSET


# --- the digest lists ------------------------------------------------------------------------------------------------


def test_each_checksum_has_its_list_in_the_order_of_the_names() -> None:
    lists = digest_lists(
        report(
            file("b", digest="sha256:02"),
            file("a", digest="sha256:01"),
            file("x", digest="xxh128:03"),
            file("y", digest="blake3:04"),
            file("plain", digest=None),
            failure("lost", digest="sha256:05"),
        )
    )
    assert lists == {"SHA256SUMS": b"01  a\n02  b\n", "XXH128SUMS": b"03  x\n", "B3SUMS": b"04  y\n"}


def test_without_digests_there_is_no_list() -> None:
    assert digest_lists(report(file(digest=None), failure())) == {}


def sha256sum(folder: str, names: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Write files of these names beside the list of their digests, and let coreutils check it."""
    if shutil.which("sha256sum") is None:
        unavailable("sha256sum is not installed")
    for name in names:
        Path(folder, name).write_bytes(os.fsencode(name))
    files = [file(name, digest=f"sha256:{hashlib.sha256(os.fsencode(name)).hexdigest()}") for name in names]
    Path(folder, "SHA256SUMS").write_bytes(digest_lists(report(*files))["SHA256SUMS"])
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    return subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False)


ODD = ["a\\b", "\\lead", "x\\ny", " lead", "trail ", "*star", "#hash", "--help", "größe", "SHA256 (x) = y", "\u2028"]


@pytest.mark.parametrize("name", [*ODD, os.fsdecode(b"\xff\xfe")], ids=ascii)
def test_sha256sum_takes_odd_names(name, tmp_path: Path) -> None:
    assert name_complaint(name) == ""
    done = sha256sum(os.fspath(tmp_path), [name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b": OK\n")


# What a single dash stands for is the standard input.
names = (
    st.binary(min_size=1, max_size=12).map(os.fsdecode).filter(lambda name: name != "-" and not name_complaint(name))
)


@given(st.lists(names, min_size=1, max_size=20, unique=True))
@settings(max_examples=30, deadline=None)
def test_sha256sum_takes_any_names(names) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = sha256sum(folder, names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK\n") == len(names)


async def test_a_list_says_nothing_of_dumps_that_were_replaced(tmp_path: Path) -> None:
    source, output = tmp_path / "ring", tmp_path / "out"
    source.write_bytes(b"old")
    (await asyncdump.dump_all([asyncdump.Dump(source=str(source))], output=output)).raise_for_failures()
    source.write_bytes(b"new")
    again = await asyncdump.dump_all(
        [asyncdump.Dump(source=str(source))], output=output, checksum="sha256", overwrite=True
    )
    again.raise_for_failures()
    assert (output / "XXH128SUMS").read_bytes() == b""
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=output, check=True, capture_output=True)
