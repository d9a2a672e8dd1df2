"""What a hostile manifest, receipt, source or folder can do: nothing beyond the output folder, and nothing for ever."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from files import KiB, MiB, noise, read

import asyncdump
import asyncdump.dumping
from asyncdump import Dump, DumpError, ManifestError, ReceiptError, SourceChangedError
from asyncdump.plan.plan import Plan
from asyncdump.plan.planner import make_plan
from asyncdump.records.journal import Journal
from asyncdump.records.journal import line as written
from asyncdump.vocabulary.names import JOURNAL, RECEIPT

pytestmark = pytest.mark.timeout(30)

forged: Callable[[Any], bytes] = written

SOON = 10
"""Seconds in which everything here ends, where something that hangs never would."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a source, ``s``, and a secret that no dump is to touch: ``victim``."""
    (tmp_path / "s").write_bytes(noise(3 * KiB))
    (tmp_path / "victim").write_bytes(b"theirs")
    return tmp_path


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


def everything(folder: Path) -> dict[str, Any]:
    """Return what is in a folder, and below it: of files their content, of others their kind."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(folder))] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


def manifest(folder: Path, *dumps: dict[str, Any], **head: Any) -> str:
    path = folder / "m.yaml"
    path.write_text(json.dumps({"version": 1, "output": "out", **head, "dumps": list(dumps)}))
    return str(path)


# --- names ------------------------------------------------------------------------------------------------------------

ESCAPES = [
    "../victim",
    "/{parent}/victim",
    "..",
    ".",
    "{parent}/../victim",
    "a/../../victim",
    "./victim",
    "sub/",
    "\0",
    "-",
]
ESCAPES += ["receipt.json", "XXH128SUMS", JOURNAL, ".asyncdump-{name}", "{suffix}", "{suffix}.", "{{/{{"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ESCAPES)
async def test_no_name_of_a_manifest_leaves_the_folder(name, overwrite, world: Path) -> None:
    path = manifest(world, {"source": "s", "name": name})
    before = everything(world)
    with pytest.raises(ManifestError, match=r"dumps\[0\].name"):
        await asyncdump.dump_all(path, overwrite=overwrite)
    assert everything(world) == before


async def test_nor_does_that_of_a_source(world: Path) -> None:
    for source in ("..", ".", "/", "/..", "s/..", "out/../.."):
        with pytest.raises(ManifestError, match=r"directory|ENOTDIR|ENOENT"):
            await asyncdump.dump_all(manifest(world, {"source": source}))
    assert not (world / "out").exists()


def record(folder: Path, **changes: Any) -> dict[str, Any]:
    source = folder / "s"
    content = {"source": str(source), "name": "s", "bytes": 3 * KiB, "size": 3 * KiB, "inode": 0, "stored": 3 * KiB}
    return {**content, "stage": "done", "error": None, **changes}


def forge(folder: Path, *records: dict[str, Any], journal: bool = False) -> Path:
    """Write a receipt, or a journal, as whoever means harm would."""
    output = folder / "out"
    output.mkdir(exist_ok=True)
    if journal:
        (output / JOURNAL).write_bytes(forged({"journal": 1, "files": len(records)}) + b"".join(map(forged, records)))
    else:
        (output / RECEIPT).write_text(json.dumps({"receipt": 1, "files": records}))
    return output


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "..", "", ".", "sub/x", RECEIPT, JOURNAL, "a\0", "\n"])
async def test_no_name_of_a_receipt_leaves_the_folder(name, world: Path) -> None:
    output = forge(world, record(world, name=name))
    before = everything(world)
    for call in (
        lambda: asyncdump.verify_all(output),
        lambda: asyncdump.verify_all(output, against_source=True),
        lambda: asyncdump.restore_all(output, world / "back", overwrite=True),
        lambda: asyncdump.restore_all(output, world, overwrite=True),
    ):
        with pytest.raises(ReceiptError, match=RECEIPT):
            await call()
    with pytest.raises(ManifestError, match=RECEIPT):
        await asyncdump.dump_all(manifest(world, {"source": "s"}), resume=True, overwrite=True)
    (world / "m.yaml").unlink()
    assert everything(world) == before


async def test_a_journal_tells_of_nothing_outside_either(world: Path) -> None:
    output = forge(world, record(world, name="../victim"), record(world), journal=True)
    outcome = await asyncdump.verify_all(output)
    assert (outcome.files, outcome.unrecorded) == ((), 2)
    report = await asyncdump.restore_all(output, world / "back", overwrite=True)
    assert report.files == ()
    report = await asyncdump.dump_all(manifest(world, {"source": "s"}), resume=True)
    report.raise_for_failures()
    assert sorted(os.listdir(output)) == ["XXH128SUMS", RECEIPT, "s"]
    assert read(world / "victim") == b"theirs"


@pytest.mark.parametrize("name", ["...zst", "..zst", ".zst", "receipt.json.zst"])
async def test_no_target_leaves_the_folder_when_its_ending_is_taken_off(name, world: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=str(world / "s"), name=name, compress="zstd")], output=world / "out")
    report.raise_for_failures()
    before = everything(world)
    back = world / "there" / "back"
    for overwrite in (False, True):
        try:
            report = await asyncdump.restore_all(world / "out", back, overwrite=overwrite)
        except ReceiptError as error:
            assert "is a directory" in str(error)  # noqa: PT017 (either of two outcomes)
        assert {path: held for path, held in everything(world).items() if not path.startswith("there")} == before
        assert {os.path.dirname(path) for path in everything(world / "there")} <= {"", "back"}
        assert all(path.is_dir() for path in (world / "there").glob("*"))


async def test_a_target_is_where_the_caller_says_and_nowhere_else(world: Path) -> None:
    """What a receipt says of paths is not asked: only the names in it are."""
    report = await asyncdump.dump_all([Dump(source=str(world / "s"))], output=world / "out")
    report.raise_for_failures()
    receipt = json.loads(read(world / "out" / RECEIPT))
    receipt["output"] = receipt["files"][0]["path"] = receipt["files"][0]["source"] = str(world / "victim")
    (world / "out" / RECEIPT).write_text(json.dumps(receipt))
    report = await asyncdump.restore_all(world / "out", world / "back")
    assert [file.path for file in report.files] == [str(world / "back" / "s")]
    assert read(world / "back" / "s") == read(world / "s")
    assert read(world / "victim") == b"theirs"


# --- what was planted -------------------------------------------------------------------------------------------------


async def test_links_under_any_name_of_ours_are_replaced_and_not_followed(world: Path) -> None:
    output = world / "out"
    output.mkdir()
    names = ["s", "gone", RECEIPT, "XXH128SUMS", JOURNAL, ".asyncdump-12345678-1.partial"]
    for name in names:
        (output / name).symlink_to(world / ("nowhere" if name == "gone" else "victim"))
    dumps = [Dump(source=str(world / "s"), name=name) for name in ("s", "gone")]
    report = await asyncdump.dump_all(dumps, output=output, overwrite=True)
    report.raise_for_failures()
    assert read(world / "victim") == b"theirs"
    assert not (world / "nowhere").exists()
    assert sorted(os.listdir(output)) == ["XXH128SUMS", "gone", RECEIPT, "s"]
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in output.iterdir())


async def test_without_overwrite_they_are_told(world: Path) -> None:
    output = world / "out"
    for name in ("s", RECEIPT, JOURNAL):
        output.mkdir(exist_ok=True)
        (output / name).symlink_to(world / "victim")
        with pytest.raises(asyncdump.TargetExistsError, match="overwrite=True"):
            await asyncdump.dump_all([Dump(source=str(world / "s"))], output=output)
        (output / name).unlink()
    assert os.listdir(output) == []


async def test_a_partial_that_is_swept_is_not_followed(world: Path) -> None:
    output = world / "out"
    (output / ".asyncdump-folder.partial").mkdir(parents=True)
    (output / ".asyncdump-link.partial").symlink_to(world / "victim")
    (output / ".asyncdump-kept").write_text("no partial")
    report = await asyncdump.dump_all([Dump(source=str(world / "s"))], output=output)
    report.raise_for_failures()
    assert read(world / "victim") == b"theirs"
    assert {".asyncdump-folder.partial", ".asyncdump-kept"} <= set(os.listdir(output))
    assert not os.path.lexists(output / ".asyncdump-link.partial")


# --- sources that never end -------------------------------------------------------------------------------------------


def special(folder: Path, kind: str) -> Path:
    """Make something that is no file, under a name that a glob finds."""
    path = folder / "ring_special"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            fd = os.open(folder, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{fd}/{path.name}")
            os.close(fd)
        case "link to zeros":
            path.symlink_to("/dev/zero")
        case "link to a terminal":
            path.symlink_to("/dev/tty")
        case "link to a fifo":
            os.mkfifo(folder / "fifo")
            path.symlink_to("fifo")
        case "link to itself":
            path.symlink_to(path.name)
        case "link to standard input":
            path.symlink_to("/dev/stdin")
    return path


KINDS = ["fifo", "socket", "link to zeros", "link to a terminal", "link to a fifo", "link to itself"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_file_is_refused_by_name_and_passed_over_in_a_glob(kind, world: Path) -> None:
    path = special(world, kind)
    (world / "ring_1").write_bytes(b"x")
    with pytest.raises(ManifestError, match=rf"dumps\[0\].source: .*{path.name}"):
        await asyncdump.dump_all(manifest(world, {"source": path.name}))
    for pattern in ("ring_*", "**/ring_*"):
        plan = await asyncdump.plan_all(manifest(world, {"source": pattern}))
        assert [dump.name for dump in plan.dumps] == ["ring_1"]
    with pytest.raises(ManifestError, match=r"ring_s\*"):
        await asyncdump.plan_all(manifest(world, {"source": "ring_s*"}))


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null", "/dev/tty", "/dev/random", "/dev/full", "/dev/ptmx"])
async def test_a_character_device_is_refused(source, world: Path) -> None:
    if not os.path.exists(source):
        pytest.skip(f"there is no {source}")
    with pytest.raises(ManifestError, match=r"character device|ENXIO"):
        await asyncdump.dump_all([Dump(source=source)], output=world / "out")
    with pytest.raises(ManifestError, match=r"\[.\]"):
        await asyncdump.dump_all([Dump(source=f"{source[:-1]}[{source[-1]}]")], output=world / "out")
    assert not (world / "out").exists()


SWAPS: dict[str, tuple[Callable[[Path, Path], object], set[int | None]]] = {
    "fifo": (lambda path, _: os.mkfifo(path), {None}),
    "zeros": (lambda path, _: path.symlink_to("/dev/zero"), {None}),
    "terminal": (lambda path, _: path.symlink_to("/dev/tty"), {None, errno.ENXIO}),
    "folder": (lambda path, _: path.mkdir(), {None}),
    "another file": (lambda path, _: path.write_bytes(noise(9 * KiB)), {None}),
    "link to a secret": (lambda path, victim: path.symlink_to(victim), {None}),
    "nothing": (lambda *_: None, {errno.ENOENT}),
    "loop": (lambda path, _: path.symlink_to(path.name), {errno.ELOOP}),
}


@contextmanager
def swapped(monkeypatch: pytest.MonkeyPatch, swap: Callable[[], object]) -> Iterator[None]:
    """Have something happen between the plan and the run."""

    def plan_and_swap(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        swap()
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(asyncdump.dumping, "make_plan", plan_and_swap)
        yield


@pytest.mark.parametrize("stages", [{}, {"compress": "zstd"}, {"filter": [["cat"]]}], ids=["raw", "zstd", "filter"])
@pytest.mark.parametrize("kind", SWAPS)
async def test_a_source_that_is_swapped_after_it_was_planned(kind, stages, world: Path, monkeypatch) -> None:
    put, codes = SWAPS[kind]
    source = world / "ring"
    source.write_bytes(noise(5 * KiB))
    held = source.open("rb")  # Its inode is not given to what takes its place.

    def swap() -> None:
        source.unlink()
        put(source, world / "victim")

    dumps = [Dump(source=str(source), name="ring", **stages), Dump(source=str(world / "s"), name="good")]
    with swapped(monkeypatch, swap):
        report = await asyncdump.dump_all(dumps, output=world / "out", allow_filters=True)
    held.close()
    bad, good = report.files
    assert good.ok
    assert isinstance(bad.error, SourceChangedError if kind in {"another file", "link to a secret"} else DumpError)
    assert bad.error.errno in codes
    assert sorted(os.listdir(world / "out")) == ["XXH128SUMS", "good", RECEIPT]


@pytest.mark.parametrize("to", ["/dev/zero", "fifo"])
async def test_a_dump_or_a_source_that_is_swapped_before_it_is_verified_or_restored(to, world: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=str(world / "s"))], output=world / "out")
    report.raise_for_failures()
    if to == "fifo":
        os.mkfifo(world / "fifo")
        to = str(world / "fifo")
    (world / "s").unlink()
    (world / "s").symlink_to(to)
    outcome = await asyncdump.verify_all(world / "out", against_source=True)
    assert [file.verdict for file in outcome.files] == ["unknown"]
    assert str(world / "s") in outcome.files[0].message
    (world / "out" / "s").unlink()
    (world / "out" / "s").symlink_to(to)
    outcome = await asyncdump.verify_all(world / "out")
    assert [file.verdict for file in outcome.files] == ["missing"]
    report = await asyncdump.restore_all(world / "out", world / "back")
    assert isinstance(report.files[0].error, DumpError)
    assert "symbolic link" in str(report.files[0].error)
    assert os.listdir(world / "back") == []


async def test_a_receipt_that_names_an_endless_source(world: Path) -> None:
    records = [
        record(world, name=str(number), source=source) for number, source in enumerate(("/dev/zero", "/dev/tty"))
    ]
    output = forge(world, *records)
    for each in records:
        (output / each["name"]).write_bytes(noise(3 * KiB))
    outcome = await asyncdump.verify_all(output, against_source=True)
    assert [file.verdict for file in outcome.files] == ["unknown"] * 2


async def test_a_receipt_that_claims_any_size(world: Path) -> None:
    """Nothing is reserved, made or read for what a receipt claims, only for what is there."""
    digest = "xxh128:" + "0" * 32
    claims = {"bytes": 2**63 - 1, "size": 3 * KiB, "stored": 2**63 - 1, "digest": digest, "offset": 2**63 - 1}
    output = forge(world, record(world, **claims), record(world, name="z", stages=["zstd:3"], **claims))
    for name in ("s", "z"):
        (output / name).write_bytes(noise(3 * KiB))
    outcome = await asyncdump.verify_all(output)
    assert [file.verdict for file in outcome.files] == ["corrupt"] * 2
    outcome = await asyncdump.verify_all(output, against_source=True)
    assert not outcome.ok
    report = await asyncdump.restore_all(output, world / "back")
    assert len(report.failures) == 2
    assert os.listdir(world / "back") == []


# --- modes ------------------------------------------------------------------------------------------------------------


@contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.iterdir()}


async def test_nobody_else_may_look_while_it_runs_or_when_it_is_resumed_or_restored(world: Path) -> None:
    (world / "large").write_bytes(noise(40 * MiB))
    dumps = [Dump(source=str(world / name), name=name) for name in ("s", "large")]
    seen: dict[str, int] = {}
    output, back = world / "deep" / "out", world / "far" / "back"

    def look(_event: Any) -> None:
        seen.update(modes(output))

    with umask_of(0):
        (await asyncdump.dump_all(dumps, output=output, on_event=look)).raise_for_failures()
        assert JOURNAL in seen
        (output / "s").unlink()
        (await asyncdump.dump_all(dumps, output=output, resume=True, on_event=look)).raise_for_failures()
        (await asyncdump.restore_all(output, back)).raise_for_failures()
    seen |= modes(output)
    assert set(seen) >= {"s", "large", RECEIPT, "XXH128SUMS", JOURNAL}
    assert set(seen.values()) == {0o600}
    assert set(modes(back).values()) == {0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (output, output.parent, back, back.parent)} == {0o700}


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRET = "pass:HUSH"

FILTERS: dict[str, Any] = {
    "that works": [["sh", "-c", "cat", SECRET]],
    "that works in a pipeline": [["cat"], ["sh", "-c", "cat", SECRET]],
    "that fails": [["sh", "-c", "cat > /dev/null; exit 3", SECRET]],
    "that is killed": [["sh", "-c", "kill -9 $$", SECRET]],
    "that takes nothing": [["sh", "-c", "exec sleep 100", SECRET]],
    "that closes its input": [["sh", "-c", "exec true", SECRET]],
    "that can't be started": [["./no-program", SECRET]],
}


@pytest.mark.parametrize("first", ["compress", "filter"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
async def test_what_a_filter_is_given_is_told_nowhere(filters, first, world: Path, caplog, capfd, monkeypatch) -> None:
    """Neither in records of any level, nor in events, the report, the receipt, the journal, or on the terminal."""
    structlog.reset_defaults()
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(world)
    monkeypatch.setattr(Journal, "remove", lambda _: None)
    (world / "no-program").write_text("#!/nowhere/at/all\n")
    (world / "no-program").chmod(0o755)
    (world / "s").write_bytes(noise(3 * MiB))
    output = world / "out"
    told: list[str] = []

    def listen(event: Any) -> None:
        told.append(repr(event))
        told.append(repr(getattr(event, "error", None)))
        told.append(str(getattr(event, "error", None)))

    dump = {
        "source": str(world / "s"),
        "name": "s",
        "filter": filters,
        "compress": "zstd",
        "first": first,
        "timeout": 0.3,
    }
    report = await asyncdump.dump_all(manifest(world, dump), allow_filters=True, on_event=listen, retries=0)
    told += [
        repr(report),
        *(str(file.error) + repr(file.error) + file.error.hint for file in report.files if file.error),
    ]
    told += [repr(record.__dict__) for record in caplog.records]
    told += [repr(await asyncdump.verify_all(output)), *capfd.readouterr()]
    assert SECRET not in "".join(told)
    assert {JOURNAL, RECEIPT} <= set(os.listdir(output))
    for path in output.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path
    for file in report.files:
        names = [os.path.basename(command[0]) for command in filters]
        assert file.stages == tuple(["zstd:3", *names] if first == "compress" else [*names, "zstd:3"])


WRONG: list[dict[str, Any]] = [
    {"filter": [["no-such-program", SECRET]]},
    {"filter": [["cat", SECRET]], "method": "direct"},
    {"filter": [["cat", SECRET]], "name": "../x"},
    {"filter": [["cat", SECRET], []]},
    {"filter": [["cat", [SECRET]]]},
    {"filter": {"cat": SECRET}},
    {"filter": f"cat {SECRET}"},
    {"filters": [["cat", SECRET]]},
    {"filter": [["cat", SECRET]], "timeout": -1},
]


@pytest.mark.parametrize("allow_filters", [True, False])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_nor_where_it_is_wrong(wrong, allow_filters, world: Path) -> None:
    for where in ({}, {"defaults": {key: value for key, value in wrong.items() if key != "name"}}):
        path = manifest(world, {"source": "s", **({} if where else wrong)}, **where)
        if where and "name" in wrong and allow_filters:
            continue  # Without the name, nothing is wrong with it.
        with pytest.raises(ManifestError) as refused:
            await asyncdump.plan_all(path, allow_filters=allow_filters)
        assert SECRET not in str(refused.value)
        assert SECRET not in repr(refused.value.problems)


@pytest.mark.sample(2)
@pytest.mark.parametrize("arguments", [["--dry-run"], ["--progress", "json"], ["--log-format", "json"], []])
def test_nor_on_the_command_line(arguments, world: Path) -> None:
    (world / "gone").write_bytes(b"x")
    path = manifest(
        world,
        {"source": "s", "filter": [["sh", "-c", "cat", SECRET]]},
        {"source": "gone", "filter": [["sh", "-c", "exit 3", SECRET]]},
    )
    command = [sys.executable, "-m", "asyncdump", path, "--allow-filters", *arguments]
    done = subprocess.run(command, capture_output=True, cwd=world, check=False, timeout=60)
    assert done.returncode == (0 if "--dry-run" in arguments else 1), done.stderr
    assert done.stdout
    assert SECRET.encode() not in done.stdout + done.stderr


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_program(monkeypatch) -> Iterator[None]:
    """Fails the test if anything is started, by whatever way."""
    started: list[Any] = []
    audited = {"subprocess.Popen", "os.posix_spawn", "os.exec", "os.system", "os.fork", "os.forkpty", "os.spawn"}

    def hook(event: str, arguments: Any) -> None:
        if event in audited and watching:
            started.append((event, arguments))

    watching = [True]
    sys.addaudithook(hook)
    yield
    watching.clear()
    assert started == []


@pytest.mark.usefixtures("no_program")
@pytest.mark.parametrize("where", ["dump", "defaults"])
async def test_a_manifest_alone_starts_nothing(where, world: Path) -> None:
    ran = world / "ran"
    filters = {"filter": [["touch", str(ran)]]}
    dump = {"source": "s", **(filters if where == "dump" else {})}
    path = manifest(world, dump, **({"defaults": filters} if where == "defaults" else {}))
    for options in ({}, {"overwrite": True}, {"resume": True}, {"compress": "zstd"}, {"output": "-"}):
        given: dict[str, Any] = options
        for call in (asyncdump.dump_all, asyncdump.plan_all):
            with pytest.raises(ManifestError, match=r"runs programs \(touch\): pass allow_filters=True"):
                await call(path, **given)
    assert not ran.exists()
    assert not (world / "out").exists()


@pytest.mark.usefixtures("no_program")
async def test_nor_does_a_receipt(world: Path) -> None:
    stages = [["touch"], ["sh -c 'touch ran'"], ["zstd:3", "touch"], ["$(touch ran)"], ["/bin/touch", "zstd:3"]]
    names = [f"dump-{number}" for number in range(len(stages))]
    digest = "xxh128:" + "0" * 32
    records = [
        record(world, name=name, stages=through, digest=digest) for name, through in zip(names, stages, strict=True)
    ]
    output = forge(world, *records)
    for name in names:
        (output / name).write_bytes(noise(3 * KiB))
    outcome = await asyncdump.verify_all(output)
    assert {file.verdict for file in outcome.files} == {"corrupt"}
    assert not (await asyncdump.verify_all(output, against_source=True)).ok
    report = await asyncdump.restore_all(output, world / "back")
    assert len(report.failures) == len(stages)
    assert os.listdir(world / "back") == []


def test_the_plan_can_be_seen_without_running_anything(world: Path) -> None:
    ran = world / "ran"
    path = manifest(world, {"source": "s", "filter": [["touch", str(ran)]]})
    command = [sys.executable, "-m", "asyncdump", path, "--allow-filters", "--dry-run"]
    done = subprocess.run(command, capture_output=True, cwd=world, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not ran.exists()
