"""One grammar for sizes, for paths, and for what a scalar is: whoever asks, in whatever interface, has the same answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

import asyncdump
from asyncdump.errors import AsyncdumpError, ManifestError, ReceiptError
from asyncdump.manifest import yaml as yamlfile
from asyncdump.manifest.compression import Zstd
from asyncdump.manifest.models import Defaults, Dump, Manifest, Retries
from asyncdump.manifest.yaml import parse_manifest, read_manifest
from asyncdump.vocabulary.size import parse_size

MANY_DIGITS = "9" * 5000
LOADERS = [base for base in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None)) if base]


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def loader(request, monkeypatch) -> Any:
    monkeypatch.setattr(yamlfile, "_Loader", yamlfile.core_loader(request.param))
    return request.param


def read(**head: str) -> Manifest:
    lines = [f"{key}: {value}\n" for key, value in head.items()]
    return parse_manifest(f"version: 1\noutput: o\n{''.join(lines)}dumps: [{{source: s}}]\n".encode(), "m.yaml")[0]


def size_of(given: str) -> int | None:
    try:
        return parse_size(given)
    except ValueError:
        return None


# --- sizes ------------------------------------------------------------------------------------------------------------

SIZES = {
    "4096": 4096,
    "0x1000": 4096,
    "0xFf": 255,
    "0o17": 15,
    "010": 10,
    "0": 0,
    "00": 0,
    "16MiB": 16 << 20,
    "16 MiB": 16 << 20,
    "2x512": 1024,
    "00x12": 0,
    "8KiB": 8192,
    **dict.fromkeys(
        ["0x", "0x1000K", "0x10x2", "2x0x10", "0X10", "-1", "+5", "1e3", "1_000", "0b11", "1:30", "190:20:30"]
    ),
    **dict.fromkeys(
        ["1.5GiB", "4096.0", ".inf", ".nan", "true", "yes", "٣", "½", "1 000", "0x1_0", "0o8", MANY_DIGITS]
    ),
    **dict.fromkeys(
        [f"0x{MANY_DIGITS}", f"{MANY_DIGITS}K", f"1x{MANY_DIGITS}", "9223372036854775808", "0x8000000000000000"]
    ),
}


@pytest.mark.parametrize(("written", "expected"), SIZES.items(), ids=lambda value: str(value)[:20])
def test_a_size_is_the_same_in_yaml_and_in_a_program(written, expected, loader) -> None:
    assert size_of(written) == expected
    for quote in ("", "'", '"'):
        content = f"version: 1\noutput: o\ndumps: [{{source: s, offset: {quote}{written}{quote}}}]"
        try:
            manifest, _ = parse_manifest(content.encode(), "m.yaml")
        except ManifestError as error:
            assert expected is None
            (problem,) = error.problems
            assert problem.line == 3
            assert len(str(problem)) < 300
            assert "\n" not in str(problem)
        else:
            assert parse_size(manifest.dumps[0].offset) == expected
    if expected is None:
        with pytest.raises(ManifestError):
            Dump(source="s", length=written)
    else:
        assert parse_size(Dump(source="s", length=written).length or 0) == expected


@pytest.mark.parametrize(
    "written", ["0x1000", "0o17", "010", "2x512", "1e3", "0x10x2", "+5", "1.5GiB", MANY_DIGITS, ""]
)
def test_and_on_the_command_line(written, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(bytes(range(256)) * 32)
    run = [sys.executable, "-m", "asyncdump", "cat", f"--offset={written}", str(tmp_path / "dump")]
    done = subprocess.run(run, capture_output=True, check=False)
    expected = size_of(written)
    assert b"Traceback" not in done.stderr
    if expected is None:
        assert done.returncode == 2
        assert len(done.stderr) < 1000
    else:
        assert done.stdout == (bytes(range(256)) * 32)[expected:]


@pytest.mark.parametrize("operand", ["bs", "count", "skip", "seek"])
@pytest.mark.parametrize("written", ["0x1000", "2x0x10", MANY_DIGITS, f"0x{MANY_DIGITS}"])
def test_what_dd_reads_otherwise_is_refused(operand, written) -> None:
    from asyncdump.cli.dd.operands import parse

    _, problems = parse([f"{operand}={written}"])
    assert len(problems) == 1
    assert parse(["count=00x12"])[1] == []


# --- scalars ----------------------------------------------------------------------------------------------------------

SCALARS: dict[str, Any] = {
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **{word: word for word in ("yes", "no", "on", "off", "y", "Yes", "ON", "tRue", "nULL", "=", "2026-01-01", "1:30")},
    **{word: word for word in ("1_000", "0b11", "0x", "0o8", "0X1f", "-0x10", "+0o7", ".", "1e", "+.inf5", "<<")},
    "5": 5,
    "-5": -5,
    "+5": 5,
    "007": 7,
    "0o17": 15,
    "0x1F": 31,
    "1.": 1.0,
    ".5": 0.5,
    "-1.5e3": -1500.0,
    "1e3": 1000.0,
    ".inf": float("inf"),
    "-.INF": float("-inf"),
    "+.Inf": float("inf"),
    "'5'": "5",
    '"true"': "true",
    "!!str 5": "5",
    "! 5": "refused",
    "!!int 5": 5,
    "!!float 5": "refused",
    "!!bool true": True,
    **dict.fromkeys(
        ["!!int x", "!!int 0b1", "!!int 1_0", "!!bool yes", "!!null x", "!!float x", "!!float 1:30"], "refused"
    ),
    **dict.fromkeys(
        ["!env HOME", "!!timestamp 2026-01-01", "!!binary aGk=", "!!python/none x", "!x 5", "!!set x"], "refused"
    ),
    **dict.fromkeys(
        ["!<tag:example.org,2002:x> 5", MANY_DIGITS, f"-{MANY_DIGITS}", f"0x{MANY_DIGITS}", f".{MANY_DIGITS}"],
        "refused",
    ),
}
SCALARS["!!float 5"] = 5.0


@pytest.mark.parametrize(("written", "expected"), SCALARS.items(), ids=lambda value: str(value)[:20])
def test_a_scalar_is_what_the_core_schema_says(written, expected, loader, monkeypatch) -> None:
    seen: list[Any] = []

    def note(_model, name, value) -> str:
        if name == "on_error":
            seen.append(value)
        return "" if name != "on_error" else "is taken down"

    monkeypatch.setattr(yamlfile, "complaint", note)
    with pytest.raises(ManifestError) as refusal:
        read(on_error=written)
    (problem,) = refusal.value.problems
    assert problem.line == 3
    assert len(str(problem)) < 300
    if seen:
        assert (seen, type(seen[0])) == ([expected], type(expected))
    else:
        assert expected == "refused"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("%YAML 1.1\n---\nversion: 1\noutput: o\ndumps: [{source: s}]", None),
        ("%TAG ! tag:example.org,2002:\n---\nversion: 1\noutput: o\ndumps: [{source: s}]", None),
        ("version: 1\noutput: o\ndumps: [{source: s}]\n---\nversion: 1\n", 4),
        ("version: 1\noutput: o\ndumps: !!set {source}", 3),
        ("version: 1\noutput: o\n!x y: 5\ndumps: [{source: s}]", 3),
        ("!m\nversion: 1\noutput: o\ndumps: [{source: s}]", None),
        ("version: 1\noutput: o\n? [a]\n: 5\ndumps: [{source: s}]", 3),
        ("version: 1\noutput: o\n? {a: b}\n: 5\ndumps: [{source: s}]", 3),
        ("version: 1\noutput: o\ndumps: [{source: s, source: t}]", 3),
        ("version: 1\noutput: o\na: &a {source: s}\ndumps: [{<<: *a}]", 4),
        ("version: 1\noutput: o\ndumps: [{source: s}]\n--- x", 4),
    ],
)
def test_what_is_refused_altogether(content, line, loader) -> None:
    with pytest.raises(ManifestError) as refusal:
        parse_manifest(content.encode(), "m.yaml")
    lines = {problem.line for problem in refusal.value.problems}
    assert lines >= {line} if line else min(lines) >= 1


def test_version_1_2_may_be_said(loader) -> None:
    parse_manifest(b"%YAML 1.2\n---\nversion: 1\noutput: o\ndumps: [{source: s}]", "m.yaml")


# --- numbers of thousands of digits -----------------------------------------------------------------------------------

HUGE: Any = 10**5000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Manifest(output="o", dumps=(Dump(source="s"),), concurrency=HUGE),
        lambda: Manifest(output="o", dumps=(Dump(source="s"),), retries=HUGE),
        lambda: Manifest(output="o", dumps=(Dump(source="s"),), version=HUGE),
        lambda: Manifest(output="o", dumps=(HUGE,)),
        lambda: Manifest(output=HUGE, dumps=(Dump(source="s"),)),
        lambda: Dump(source="s", offset=HUGE),
        lambda: Dump(source="s", length=-HUGE),
        lambda: Dump(source="s", timeout=HUGE),
        lambda: Dump(source="s", filter=[[HUGE]]),
        lambda: Dump(source="s", compress=HUGE),
        lambda: Dump(source="s", method=cast(Any, str(HUGE // 10**1000))),
        lambda: Zstd(level=HUGE),
        lambda: Zstd(frame=HUGE),
        lambda: Retries(times=HUGE),
        lambda: Retries(delay=HUGE),
        lambda: Retries(errors=(HUGE,)),
        lambda: Defaults(durable=HUGE),
    ],
)
def test_a_program_gives_a_number_of_thousands_of_digits(make) -> None:
    with pytest.raises(ManifestError) as refusal:
        make()
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("key", ["version", "concurrency", "retries", "on_error", "output"])
@pytest.mark.parametrize(
    "digits", [MANY_DIGITS, f"-{MANY_DIGITS}", f"{MANY_DIGITS}.5", f"0x{MANY_DIGITS}", f"0o{'7' * 5000}"]
)
def test_a_manifest_does(key, digits, loader) -> None:
    head = {"version": "1", "output": "o", key: digits}
    content = "".join(f"{name}: {value}\n" for name, value in head.items()) + "dumps: [{source: s}]"
    with pytest.raises(ManifestError) as refusal:
        parse_manifest(content.encode(), "m.yaml")
    (problem,) = refusal.value.problems
    assert problem.line == list(head).index(key) + 1
    assert len(str(problem)) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ["m.yaml", "--concurrency", MANY_DIGITS],
        ["m.yaml", "--retries", MANY_DIGITS],
        ["m.yaml", "--compress", f"zstd:{MANY_DIGITS}"],
        ["verify", ".", "--concurrency", MANY_DIGITS],
        ["cat", "--length", MANY_DIGITS, "m.yaml"],
        ["dd", f"bs={MANY_DIGITS}"],
        ["dd", f"compress=zstd:{MANY_DIGITS}"],
    ],
)
def test_the_command_line_does(arguments, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("version: 1\noutput: o\ndumps: [{source: m.yaml}]")
    run = [sys.executable, "-m", "asyncdump", *arguments]
    done = subprocess.run(run, capture_output=True, check=False, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["bytes", "inode", "size"])
async def test_a_receipt_does(key, tmp_path: Path) -> None:
    (await asyncdump.dump_all([Dump(source=__file__, name="x")], output=tmp_path / "out")).raise_for_failures()
    receipt = tmp_path / "out/receipt.json"
    content = receipt.read_text()
    before, found, after = content.partition('"files": [')
    assert found
    head, name, rest = after.partition(f'"{key}": ')
    receipt.write_text(f"{before}{found}{head}{name}{MANY_DIGITS}{rest[rest.index(',') :]}")
    with pytest.raises(ReceiptError):
        await asyncdump.verify_all(tmp_path / "out")


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", os.fspath(folder))
    (folder / "source").write_text("content")
    return folder


async def test_home_is_the_same_everywhere(home: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (home / "m.yaml").write_text("version: 1\noutput: ~/a\ndumps: [{source: ~/source}]")
    several: list[tuple[Any, dict[str, Any]]] = [
        ("~/m.yaml", {}),
        ("~/m.yaml", {"output": "~/b"}),
        ([Dump(source="~/sourc?")], {"output": "~/c"}),
    ]
    for what, options in several:
        (await asyncdump.dump_all(what, **options)).raise_for_failures()
    for name in ("a", "b", "c"):
        assert (home / name / "source").read_text() == "content"
        assert (await asyncdump.verify_all(f"~/{name}")).ok
    (await asyncdump.restore_all("~/a", "~/back", map={"source": "~/there"})).raise_for_failures()
    assert (home / "there").read_text() == "content"
    with asyncdump.open_dump("~/a/source") as dump:
        assert dump.read() == b"content"
    assert asyncdump.describe_dump("~/a/source").stored == 7
    assert await asyncdump.probe("~/source", "~/a")
    for command in (["cat", "~/a/source"], ["info", "~/a/source"], ["verify", "~/a"], ["probe", "~/source", "~"]):
        subprocess.run([sys.executable, "-m", "asyncdump", *command], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "asyncdump", "~/m.yaml", "--output=~/d"], check=True, capture_output=True)
    assert (home / "d/source").read_text() == "content"
    assert os.listdir(tmp_path / "cwd") == []


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
async def test_what_no_path_can_be(path, home: Path, tmp_path: Path) -> None:
    dumps = [Dump(source=home / "source")]
    (await asyncdump.dump_all(dumps, output=tmp_path / "out")).raise_for_failures()
    calls = [
        lambda: asyncdump.dump_all(path),
        lambda: asyncdump.dump_all(dumps, output=path),
        lambda: asyncdump.dump_all(Manifest(output=path or "\0", dumps=tuple(dumps))),
        lambda: asyncdump.plan_all([Dump(source=path or "\0")], output="o"),
        lambda: asyncdump.verify_all(path),
        lambda: asyncdump.restore_all(path, tmp_path / "to"),
        lambda: asyncdump.restore_all(tmp_path / "out", path),
        lambda: asyncdump.restore_all(tmp_path / "out", tmp_path / "to", map={"source": path}),
        lambda: asyncdump.probe(path, tmp_path),
        lambda: asyncdump.probe(home / "source", path),
    ]
    for call in calls:
        with pytest.raises(AsyncdumpError):
            await call()
    for blocking in (asyncdump.open_dump, asyncdump.describe_dump):
        with pytest.raises(AsyncdumpError):
            blocking(path)
    assert not (tmp_path / "to").exists()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["m.yaml", "--output="],
        ["verify", ""],
        ["restore", "", "--to", "x"],
        ["restore", ".", "--to="],
        ["cat", ""],
        ["info", ""],
    ],
)
def test_an_empty_path_on_the_command_line(arguments, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("version: 1\noutput: o\ndumps: [{source: m.yaml}]")
    run = [sys.executable, "-m", "asyncdump", *arguments]
    done = subprocess.run(run, capture_output=True, check=False, cwd=tmp_path, timeout=30)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# --- a manifest that is no file ---------------------------------------------------------------------------------------


def test_a_manifest_from_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    content = f"version: 1\noutput: {tmp_path}/out\ndumps: [{{source: {tmp_path}/source}}]".encode()
    run = [sys.executable, "-m", "asyncdump", "/dev/stdin", "--dry-run"]
    subprocess.run(run, input=content, check=True, capture_output=True, timeout=30)


def test_a_fifo_that_is_written_to_later(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with open(fifo, "wb") as file:
            file.write(b"version: 1\noutput: o\n")
            file.flush()
            time.sleep(0.05)
            file.write(b"dumps: [{source: s}]")

    thread = threading.Thread(target=write)
    thread.start()
    assert read_manifest(str(fifo))[0].output == "o"
    thread.join()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/full", "/", "/proc/self/mem"])
def test_a_manifest_that_is_no_text(path) -> None:
    with pytest.raises(ManifestError):
        read_manifest(path)


async def test_a_fifo_that_nobody_writes_to_is_waited_for_no_longer_than_one_wants(tmp_path: Path) -> None:
    import anyio

    os.mkfifo(tmp_path / "fifo")
    began = time.monotonic()
    with anyio.move_on_after(0.2):
        await asyncdump.plan_all(tmp_path / "fifo")
    assert 0.2 <= time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_planning(name, tmp_path: Path) -> None:
    import signal

    os.mkfifo(tmp_path / "fifo")
    run = [sys.executable, "-m", "asyncdump", str(tmp_path / "fifo"), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(run, stderr=subprocess.PIPE)
    while f"{tmp_path}/fifo" not in [
        os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir() if entry.is_symlink()
    ]:
        assert process.poll() is None
        time.sleep(0.01)
    number = signal.Signals[name]
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode in {128 + number, -number}, errors
    assert b"Traceback" not in errors
    assert not (tmp_path / "out").exists()
