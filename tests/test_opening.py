"""All that is read is opened in one way, that nothing in the place of a file can hang."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import asyncdump
from asyncdump import Dump
from asyncdump.codecs.zstd import ZSTD
from asyncdump.plan.plan import PlannedDump
from asyncdump.plan.pools import _pages
from asyncdump.records.report import FileReport
from asyncdump.records.standing import has_checksums, look_at
from asyncdump.sinks.comparing import ComparingPlace
from asyncdump.sinks.folder import Folder, sync_file
from asyncdump.sinks.place import Store
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_file, open_regular, open_source

pytestmark = pytest.mark.timeout(20)

PACKAGE = Path(asyncdump.__file__).parent
OTHERWISE = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_DIRECTORY", "O_PATH", "/proc/self/fd/")
"""What is not a file to be read: what is written, a folder, what is open already."""

EXCUSED = {
    ("cli/dd/command.py", "_open_input"),  # dd waits for a fifo's writer, as dd does.
    ("plan/pools.py", "figure"),  # In /sys.
}


def calls() -> Iterator[tuple[str, str, str, ast.Call, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or (called := ast.unparse(node.func)) not in {
                "os.open",
                "open",
                "io.open",
            }:
                continue
            around = [each for each in functions if each.lineno <= node.lineno <= (each.end_lineno or 0)]
            where = max(around, key=lambda each: each.lineno) if around else tree
            name = where.name if isinstance(where, ast.FunctionDef | ast.AsyncFunctionDef) else ""
            yield str(path.relative_to(PACKAGE)), name, called, node, ast.unparse(where)


def reads_elsewhere(called: str, node: ast.Call, around: str) -> bool:
    if called == "os.open":
        return not any(flag in around for flag in OTHERWISE)
    first = ast.unparse(node.args[0])
    return not (first == "fd" or first.strip("f'\"").startswith(("/proc/", "/sys/")))


def test_nothing_else_opens_what_is_read() -> None:
    found = [
        (file, name)
        for file, name, called, node, around in calls()
        if file != "sources/file.py" and (file, name) not in EXCUSED and reads_elsewhere(called, node, around)
    ]
    assert found == []


def test_the_check_sees_what_it_is_to_see() -> None:
    for text in ("os.open(path, os.O_RDONLY)", "open(path, 'rb')", "os.open(path, flags)"):
        (node,) = (each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call))
        assert reads_elsewhere(ast.unparse(node.func), node, text)


@pytest.fixture(params=["fifo", "folder", "link"])
def intruder(request, tmp_path: Path) -> str:
    """Make what took the place of a dump."""
    path = tmp_path / "dumps" / "x.zst"
    path.parent.mkdir()
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to(__file__)
    return str(path)


def report_of(path: str) -> FileReport:
    return FileReport(
        source="s",
        name=os.path.basename(path),
        path=path,
        bytes=1,
        stored=1,
        seconds=0.0,
        method="read",
        digest=None,
        error=None,
        phase="done",
        stages=("zstd:3",),
        size=1,
    )


def planned_of(path: str) -> PlannedDump:
    source = describe(os.open(__file__, os.O_RDONLY), path)
    return PlannedDump(
        source=source,
        name=os.path.basename(path),
        offset=0,
        length=1,
        method="auto",
        checksum="none",
        durable=False,
        sparse=True,
        expected=report_of(path),
    )


@pytest.mark.parametrize(
    "reader",
    [
        lambda path, store: has_checksums(report_of(path), store),
        lambda path, store: look_at(report_of(path), store),
        lambda _path, store: ComparingPlace("/", store.open, {"x.zst": ZSTD}).create("x.zst"),
        lambda _path, store: ComparingPlace("/", store.open, {}).create("x.zst"),
        lambda path, store: _pages(planned_of(path), store, 2 << 20, look=False),
        lambda path, _store: open_regular(path),
        lambda path, _store: open_source(path, follow=False),
    ],
)
def test_what_took_the_place_of_a_dump(reader, intruder) -> None:
    with closing(Folder(os.path.dirname(intruder))) as store:
        _expect_refusal(reader, intruder, store)


def _expect_refusal(reader, intruder: str, store: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(asyncdump.DumpError):
        reader(intruder, store)
    assert len(os.listdir("/proc/self/fd")) - before in {0, 1}  # The one of `planned_of`.


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.close(open_file(str(tmp_path / "fifo")))
    with pytest.raises(asyncdump.DumpError):
        sync_file(str(tmp_path / "fifo"))


@pytest.mark.parametrize("name", ["receipt.json", ".asyncdump-journal"])
@pytest.mark.parametrize("call", ["verify", "restore", "resume"])
async def test_a_fifo_in_the_place_of_a_receipt(name, call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dumps = [Dump(source=__file__, name="x")]
    (await asyncdump.dump_all(dumps, output=out)).raise_for_failures()
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    calls = {
        "verify": lambda: asyncdump.verify_all(out),
        "restore": lambda: asyncdump.restore_all(out, tmp_path / "to"),
        "resume": lambda: asyncdump.dump_all(dumps, output=out, resume=True),
    }
    with pytest.raises(asyncdump.AsyncdumpError):
        await calls[call]()


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("against_source", [False, True])
async def test_a_fifo_that_is_swapped_in_while_dumps_are_verified(
    compress, against_source, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    (await asyncdump.dump_all([Dump(source=__file__, name="x")], output=out, compress=compress, checksum="none"))
    real = asyncdump.plan.readback.look_at

    def swap(file, store):
        answer = real(file, store)
        os.unlink(file.path)
        os.mkfifo(file.path)
        return answer

    monkeypatch.setattr(asyncdump.plan.readback, "look_at", swap)
    verified = await asyncdump.verify_all(out, against_source=against_source)
    assert not verified.ok
