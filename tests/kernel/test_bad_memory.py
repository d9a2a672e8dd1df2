"""Pages that can't be read: on a filesystem that is damaged, on a device, by injected faults, in poisoned memory."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from files import (
    HUGE_PAGE,
    METHODS,
    PAGE,
    Dumper,
    KiB,
    MiB,
    digest_of,
    finish,
    leftovers,
    look_at,
    mentions,
    new_transfer,
    noise,
    read,
    unavailable,
)
from test_durability import traced

import asyncdump
from asyncdump import BadRange, Dump, Zstd
from asyncdump.errors import EHWPOISON
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.pace import FIRST
from asyncdump.vocabulary.names import JOURNAL

SIZE = 5 * MiB + 100
LAST = SIZE // PAGE
PAGES: dict[str, tuple[int, ...]] = {
    "good": (),
    "first": (0,),
    "last": (LAST,),
    "two": (3, 4, 5, 700),
    "many": tuple(range(400, 1000, 2)),
    "all": tuple(range(LAST + 1)),
    "short": (2,),
}
STAGES: dict[str, dict[str, Any]] = {
    "raw": {},
    "zstd": {"compress": Zstd(level=1, frame=256 * KiB)},
    "filter": {"filter": [["cat"]]},
    "zstd, filter": {"compress": Zstd(level=1, frame=256 * KiB), "filter": [["cat"]]},
    "filter, zstd": {"compress": Zstd(level=1, frame=256 * KiB), "filter": [["cat"]], "first": "filter"},
}
MADV_HWPOISON = 100


class BadFile(NamedTuple):
    """A file with pages that can't be read."""

    path: str
    data: bytes
    pages: tuple[int, ...]

    @property
    def zeroed(self) -> bytes:
        """What it holds, with zeros where it can't be read."""
        data = bytearray(self.data)
        for page in self.pages:
            data[page * PAGE : (page + 1) * PAGE] = bytes(len(data[page * PAGE : (page + 1) * PAGE]))
        return bytes(data)

    def bad(self, offset: int = 0, length: int = SIZE, number: int = errno.EIO) -> tuple[BadRange, ...]:
        """Return the ranges that can't be read of a part of it."""
        ranges: list[BadRange] = []
        end = min(offset + length, len(self.data))
        for page in self.pages:
            start, stop = max(page * PAGE, offset), min((page + 1) * PAGE, end)
            if start < stop and ranges and ranges[-1].end == start:
                start = ranges.pop().offset
            if start < stop:
                ranges.append(BadRange(offset=start, length=stop - start, errno=number))
        return tuple(ranges)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        unavailable(f"{' '.join(map(str, command))} says {done.stderr.strip()}")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Btrfs whose checksums no longer hold for the pages that `PAGES` says: reading one fails with EIO."""
    if os.geteuid() != 0:
        unavailable("a damaged filesystem needs root")
    if shutil.which("mkfs.btrfs") is None:
        unavailable("mkfs.btrfs is not installed")
    image, point = tmp_path_factory.mktemp("damaged") / "image", tmp_path_factory.mktemp("damaged-mount")
    with image.open("wb") as made:
        made.truncate(160 * MiB)
    run("mkfs.btrfs", "-q", "-d", "single", "-m", "single", image)
    run("mount", "-o", "loop", image, point)
    try:
        for name in PAGES:
            (point / name).write_bytes(content_of_bad(name))
    finally:
        subprocess.run(["umount", point], check=True)
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
        for name, pages in PAGES.items():
            for place in places(disk, content_of_bad(name), pages):
                disk[place] ^= 0xFF
    run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        image.unlink()


def places(disk: mmap.mmap, data: bytes, pages: tuple[int, ...]) -> Iterator[int]:
    """Find pages of a file on its disk: most follow one another there too."""
    place = before = 0
    for page in pages:
        wanted = data[page * PAGE : (page + 1) * PAGE]
        place += (page - before) * PAGE
        if disk[place : place + len(wanted)] != wanted:
            place = disk.find(wanted)
        assert place >= 0
        before = page
        yield place


def content_of_bad(name: str) -> bytes:
    return random.Random(name).randbytes(2 * PAGE + 100 if name == "short" else SIZE)


@pytest.fixture
def bad(damaged: Path) -> Callable[[str], BadFile]:
    return lambda name: BadFile(str(damaged / name), content_of_bad(name), PAGES[name])


# --- a damaged disk ----------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("method", [*(method for method in METHODS if method != "reflink"), "auto"])
def test_what_can_be_read_is_dumped(method, checksum, sparse, bad, dump: Dumper, folder_on) -> None:
    folder = folder_on("ext4")
    path = Path(folder.path, "dump")
    for name in PAGES:
        file: BadFile = bad(name)
        for offset in (0, PAGE) if method == "direct" else (0, PAGE + 1):
            transfer = dump(
                folder,
                file.path,
                method=method,
                checksum=checksum,
                sparse=sparse,
                offset=offset,
                on_read_error="zero",
            )
            written = path.read_bytes()
            assert written == file.zeroed[offset:], (name, offset)
            assert transfer.digest == digest_of(written, checksum)
            assert transfer.bad == file.bad(offset)
            assert transfer.engine is not None
            assert transfer.engine.method == ("read" if method == "auto" else method)
            assert transfer.sink is not None
            assert transfer.sink.stored <= len(written)
            if not sparse:
                assert transfer.sink.stored == len(written)


@pytest.mark.parametrize("name", ["first", "last", "two", "all", "short"])
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("method", [*(method for method in METHODS if method != "reflink"), "auto"])
def test_by_default_the_first_bad_page_is_named(method, checksum, name, bad, dump: Dumper, folder_on) -> None:
    folder = folder_on("ext4")
    file: BadFile = bad(name)
    used = "read" if method == "auto" else method
    with pytest.raises(asyncdump.DumpError) as failed:
        dump(folder, file.path, method=method, checksum=checksum)
    first = file.pages[0] * PAGE
    assert mentions(failed.value, first, file.path, "EIO")
    assert (failed.value.errno, failed.value.operation, failed.value.path) == (errno.EIO, used, file.path)
    assert 'on_read_error="zero"' in failed.value.hint
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize("checksum", ["none", "xxh128"])
def test_auto_clones_nothing_that_it_would_have_to_read(checksum, damaged: Path, bad, dump: Dumper, folder_on) -> None:
    """A clone of a bad page is as bad: by default a digest finds that, with zeros asked for it must not come to it."""
    file: BadFile = bad("two")
    folder = folder_on(damaged)
    transfer = dump(folder, file.path, checksum=checksum, on_read_error="zero")
    assert read(os.path.join(folder.path, "dump")) == file.zeroed
    assert transfer.bad == file.bad()
    os.unlink(os.path.join(folder.path, "dump"))
    if checksum == "none":
        assert dump(folder, file.path).engine.method == "reflink"  # type: ignore[union-attr]
        return
    with pytest.raises(asyncdump.DumpError) as failed:
        dump(folder, file.path, checksum=checksum)
    assert failed.value.errno == errno.EIO
    assert str(folder.path) in failed.value.path
    assert os.listdir(folder.path) == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", ["auto", "read", "splice"])
@pytest.mark.parametrize("stages", STAGES)
async def test_stages_get_what_can_be_read(stages, method, bad, folder_on) -> None:
    files = [(bad(name), offset) for name in PAGES for offset in (0, PAGE + 1)]
    dumps = [
        Dump(source=file.path, name=str(number), offset=offset, method=method, **STAGES[stages])
        for number, (file, offset) in enumerate(files)
    ]
    report = await asyncdump.dump_all(
        dumps, output=folder_on("ext4").path, allow_filters=True, on_read_error="zero", checksum="xxh128"
    )
    report.raise_for_failures()
    for done, (file, offset) in zip(report.files, files, strict=True):
        expected = file.zeroed[offset:]
        # The names here don't tell: what went through a program last may be a .zst or not.
        with asyncdump.open_dump(done.path, compressed=stages.startswith("zstd") or stages.endswith("zstd")) as opened:
            assert opened.read() == expected, done
        assert done.bad == file.bad(offset)
        assert done.digest == f"xxh128:{digest_of(read(done.path), 'xxh128')}"
        if stages in {"raw", "zstd", "zstd, filter"}:
            assert done.content_digest == f"xxh128:{digest_of(expected, 'xxh128')}"


@pytest.mark.parametrize("method", ["auto", "read", "splice"])
@pytest.mark.parametrize("stages", [stages for stages in STAGES if stages != "raw"])
async def test_stages_name_the_first_bad_page_and_leave_nothing(stages, method, bad, folder_on) -> None:
    folder = folder_on("ext4").path
    file: BadFile = bad("two")
    report = await asyncdump.dump_all(
        [Dump(source=file.path, name="dump", method=method, **STAGES[stages])], output=folder, allow_filters=True
    )
    error = report.files[0].error
    assert isinstance(error, asyncdump.DumpError)
    assert mentions(error, 3 * PAGE, file.path, "EIO")
    assert 'on_read_error="zero"' in error.hint
    assert os.listdir(folder) == ["receipt.json"]


async def test_the_receipt_and_the_event_tell_of_it(bad, folder_on, caplog) -> None:
    """Each dump by its own word: the defaults are for the others."""
    folder = folder_on("ext4").path
    two, last = bad("two"), bad("last")
    manifest = asyncdump.Manifest(
        output=folder,
        defaults=asyncdump.Defaults(on_read_error="zero"),
        dumps=(
            Dump(source=two.path),
            Dump(source=last.path),
            Dump(source=bad("good").path),
            Dump(source=two.path, name="strict", on_read_error="fail"),
        ),
    )
    ends = {}
    async with asyncdump.open_run(manifest) as running:
        async for event in running:
            if isinstance(event, asyncdump.FileFinished):
                ends[event.name] = event.bad_bytes
    assert ends == {"two": 4 * PAGE, "last": 100, "good": 0}
    eio = "EIO (Input/output error)"
    records = {file["name"]: file["bad"] for file in json.loads(read(os.path.join(folder, "receipt.json")))["files"]}
    assert records == {
        "two": [
            {"offset": 3 * PAGE, "length": 3 * PAGE, "errno": eio},
            {"offset": 700 * PAGE, "length": PAGE, "errno": eio},
        ],
        "last": [{"offset": LAST * PAGE, "length": 100, "errno": eio}],
        "good": [],
        "strict": [],
    }
    assert {file.name: file.bad_bytes for file in running.report.files} == {**ends, "strict": 0}
    told = sorted(record.getMessage() for record in caplog.records if "bad_memory" in record.getMessage())
    assert told == [
        f"bad_memory source={last.path} bytes=100 ranges=1",
        f"bad_memory source={two.path} bytes={4 * PAGE} ranges=2",
    ]


def test_the_command_line_tells_of_it(bad, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        f"version: 1\noutput: out\ndumps:\n  - source: {bad('two').path}\n  - source: {bad('last').path}\n"
    )
    command = [sys.executable, "-m", "asyncdump", "m.yaml", "--quiet"]

    def said(*options: str) -> tuple[int, list[str]]:
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("asyncdump: ")]
        return done.returncode, lines

    code, (two, last) = said("--on-read-error", "zero")
    assert code == 0
    assert mentions(two, "two", "16.0 KiB", "2 ranges", "receipt.json")
    assert mentions(last, "last", "100 B", "1 range", "receipt.json")
    code, lines = said("--overwrite")
    assert code == 1
    assert all("EIO" in line or "--on-read-error zero" in line for line in lines)
    assert any("--on-read-error zero" in line for line in lines)


@pytest.mark.parametrize("on_read_error", ["fail", "zero"])
def test_a_dry_run_is_not_stopped_by_a_bad_page(on_read_error, bad, tmp_path: Path) -> None:
    text = f"version: 1\noutput: out\ndumps:\n  - {{source: {bad('first').path}, checksum: none, method: direct}}\n"
    (tmp_path / "m.yaml").write_text(text)
    command = [sys.executable, "-m", "asyncdump", "m.yaml", "--dry-run", "--on-read-error", on_read_error]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "direct" in done.stdout


def test_standard_output_has_no_receipt_and_the_ranges_are_told(bad, tmp_path: Path) -> None:
    file: BadFile = bad("two")
    (tmp_path / "m.yaml").write_text(f"version: 1\noutput: '-'\ndumps:\n  - source: {file.path}\n")
    command = [sys.executable, "-m", "asyncdump", "m.yaml", "--quiet", "--on-read-error", "zero"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.zeroed
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("asyncdump: ")]
    assert mentions(lines[0], "two", "16.0 KiB", "2 ranges")
    assert [re.findall(r"\b\d+\b|EIO", line) for line in lines[1:]] == [
        [str(3 * PAGE), str(3 * PAGE), "EIO"],
        [str(PAGE), str(700 * PAGE), "EIO"],
    ]


@pytest.mark.parametrize("method", ["direct", "mmap", "sendfile", "splice", "read"])
def test_lanes_share_a_bad_file(method, bad, folder_on) -> None:
    file: BadFile = bad("many")
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(file.path), method=method, checksum="xxh128", on_read_error="zero")
    lanes = [Lane() for _ in range(3)]
    transfer.begin(folder, lanes[0])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(transfer.work, lanes))
    finish(transfer, folder, lanes[0])
    for lane in lanes:
        lane.close()
    assert read(os.path.join(folder.path, "dump")) == file.zeroed
    assert transfer.digest == digest_of(file.zeroed, "xxh128")
    assert transfer.bad == file.bad()


# --- a device ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(bad) -> Iterator[Callable[[str], str]]:
    """Makes a block device out of a bad file."""
    made = []

    def make(name: str) -> str:
        done = subprocess.run(
            ["losetup", "--read-only", "--find", "--show", bad(name).path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            unavailable(f"losetup says {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield make
    for path in made:
        subprocess.run(["losetup", "--detach", path], check=True)


@pytest.mark.parametrize("method", ["auto", "direct", "splice"])
@pytest.mark.parametrize("name", ["first", "two"])
def test_a_device_with_bad_blocks(name, method, device, bad, dump: Dumper, folder_on) -> None:
    folder = folder_on("ext4")
    path = device(name)
    size = SIZE - SIZE % 512
    transfer = dump(folder, path, method=method, checksum="xxh128", on_read_error="zero")
    written = read(os.path.join(folder.path, "dump"))
    assert written == bad(name).zeroed[:size]
    assert transfer.bad == bad(name).bad()
    assert transfer.digest == digest_of(written, "xxh128")
    os.unlink(os.path.join(folder.path, "dump"))
    with pytest.raises(asyncdump.DumpError, match=rf"\b{PAGES[name][0] * PAGE}\b.* {path}: EIO"):
        dump(folder, path, method=method)


# --- injected faults ---------------------------------------------------------------------------------------------------

HUGE = 6 * MiB
"""Three huge pages, on which a call of each engine is made to fail; reading then finds what the second fault says."""

CALLS = {
    "direct": ("pwrite64:error=EFAULT:when=1", "hugetlbfs"),
    "mmap": ("pwritev2:error=EFAULT:when=1", "hugetlbfs"),
    "sendfile": ("sendfile:error=EIO:when=1", "tmpfs"),
    "splice": ("splice:error=EIO:when=1", "tmpfs"),
    "reflink": ("copy_file_range:error=EIO:when=1", "ext4"),
}


def poison(name: str, start: int, count: int) -> str:
    """Have ``count`` calls fail: one for a span, one again for all of it, then one for each page."""
    return f"preadv2:error={name}:when={start}..{start + count - 1}"


def with_zeros(data: bytes, *ranges: tuple[int, int]) -> bytes:
    zeroed = bytearray(data)
    for start, length in ranges:
        zeroed[start : start + length] = bytes(length)
    return bytes(zeroed)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "compress", "checksum", "name", "number"),
    [
        ("hugetlbfs", "none", "none", "EIO", errno.EIO),
        ("hugetlbfs", "none", "xxh128", "EHWPOISON", EHWPOISON),
        ("hugetlbfs", "zstd", "xxh128", "EIO", errno.EIO),
        ("tmpfs", "none", "xxh128", "EIO", errno.EIO),
        ("tmpfs", "zstd", "none", "EHWPOISON", EHWPOISON),
    ],
)
def test_a_poisoned_page_in_memory(kind, compress, checksum, name, number, make, folder_on, tmp_path: Path) -> None:
    """The second span of three fails, and of its pages the first three."""
    data = noise(HUGE)
    folder = folder_on("ext4").path
    entry = {"source": make(kind, data), "name": "dump", "method": "read", "compress": compress}
    options = {"output": folder, "checksum": checksum, "on_read_error": "zero"}
    outcome = traced(tmp_path, [entry], (poison(name, 2, 2 + 3),), **options).outcome
    assert outcome["ok"], outcome
    second = FIRST if compress == "none" else 2 * MiB
    assert outcome["bad"] == {"dump": [[second, 3 * PAGE, number]]}
    path = os.path.join(folder, "dump")
    with asyncdump.open_dump(path) as dump:
        assert dump.read() == with_zeros(data, (second, 3 * PAGE))
    if checksum != "none":
        assert read(os.path.join(folder, "XXH128SUMS")).decode() == f"{digest_of(read(path), checksum)}  dump\n"


@pytest.mark.sample(1)
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("method", CALLS)
def test_a_poisoned_page_under_a_call(method, checksum, make, folder_on, tmp_path: Path) -> None:
    call, kind = CALLS[method]
    data = noise(HUGE)
    folder = folder_on("ext4").path
    entry = {"source": make(kind, data), "name": "dump", "method": method}
    options = {"output": folder, "checksum": checksum, "on_read_error": "zero", "spare_the_receipt": True}
    outcome = traced(tmp_path, [entry], (call, poison("EHWPOISON", 1, 1 + 2)), **options).outcome
    assert outcome["ok"], outcome
    assert outcome["bad"] == {"dump": [[0, 2 * PAGE, EHWPOISON]]}
    written = read(os.path.join(folder, "dump"))
    assert written == with_zeros(data, (0, 2 * PAGE))
    if checksum != "none":
        assert read(os.path.join(folder, "XXH128SUMS")).decode() == f"{digest_of(written, checksum)}  dump\n"


@pytest.mark.parametrize("stages", ["zstd", "filter"])
def test_a_poisoned_page_handed_to_a_pipe(stages, make, folder_on, tmp_path: Path) -> None:
    data = noise(HUGE)
    folder = folder_on("ext4").path
    how = {"compress": "zstd"} if stages == "zstd" else {"filter": [["cat"]]}
    entry = {"source": make("hugetlbfs", data), "name": "dump", "method": "splice", **how}
    options = {"output": folder, "allow_filters": True, "on_read_error": "zero"}
    faults = ("vmsplice:error=EFAULT:when=1", poison("EIO", 1, 1 + 2))
    outcome = traced(tmp_path, [entry], faults, **options).outcome
    assert outcome["ok"], outcome
    assert outcome["bad"] == {"dump": [[0, 2 * PAGE, errno.EIO]]}
    with asyncdump.open_dump(os.path.join(folder, "dump")) as dump:
        assert dump.read() == with_zeros(data, (0, 2 * PAGE))


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", [*CALLS, "read"])
def test_what_reads_fine_at_last_is_not_bad(method, make, folder_on, tmp_path: Path) -> None:
    call, kind = CALLS.get(method, (poison("EIO", 2, 1), "hugetlbfs"))
    data = noise(HUGE)
    folder = folder_on("ext4").path
    entry = {"source": make(kind, data), "name": "dump", "method": method}
    options = {"output": folder, "on_read_error": "zero", "spare_the_receipt": True}
    outcome = traced(tmp_path, [entry], (call,), **options).outcome
    assert outcome["ok"], outcome
    assert outcome["bad"] == {"dump": []}
    assert read(os.path.join(folder, "dump")) == data


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", ["direct", "mmap", "sendfile", "read"])
def test_a_sink_that_fails_is_the_outcome(method, make, folder_on, tmp_path: Path) -> None:
    """Every write fails with EIO: the source is read without harm, and so it is the sink."""
    kind = "tmpfs" if method == "sendfile" else "hugetlbfs"
    folder = folder_on("ext4").path
    entry = {"source": make(kind, noise(HUGE)), "name": "dump", "method": method}
    faults = tuple(f"{call}:error=EIO" for call in ("pwrite64", "pwritev", "pwritev2", "sendfile"))
    outcome = traced(tmp_path, [entry], faults, output=folder, on_read_error="zero").outcome
    assert f"at byte 0 of {folder}/dump: EIO (Input/output error)" in outcome["errors"]["dump"]
    assert os.listdir(folder) == [JOURNAL]  # The receipt can't be written either.


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", ["direct", "mmap", "sendfile", "splice", "reflink"])
def test_by_default_an_eio_is_the_sink_s_where_the_source_reads_fine(method, make, folder_on, tmp_path: Path) -> None:
    call, kind = CALLS[method]
    folder = folder_on("ext4").path
    source = make(kind, noise(HUGE))
    entry = {"source": source, "name": "dump", "method": method}
    call = call.replace("EFAULT", "EIO")
    options = {"output": folder, "checksum": "none", "spare_the_receipt": True}
    outcome = traced(tmp_path, [entry], (call,), **options).outcome
    assert outcome["errors"] == {"dump": f"{method} at byte 0 of {folder}/dump: EIO (Input/output error)"}
    assert os.listdir(folder) == ["receipt.json"]


# --- what isn't bad memory ---------------------------------------------------------------------------------------------


@pytest.mark.sample(5)
@pytest.mark.parametrize("on_read_error", ["fail", "zero"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, "tmpfs") for method in METHODS if method != "reflink"]
    + [(method, "hugetlbfs") for method in ("direct", "mmap", "read")],
)
def test_a_truncated_source_is_no_zeros(method, kind, on_read_error, make, lane: Lane, folder_on) -> None:
    source = make(kind, noise(40 * MiB))
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method, on_read_error=on_read_error)
    transfer.begin(folder, lane)
    os.truncate(source, 20 * MiB)
    with pytest.raises(asyncdump.SourceChangedError, match="20971520"):
        finish(transfer, folder, lane)
    assert transfer.bad == ()
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize(("stages", "method"), [("zstd", "splice"), ("filter", "splice"), ("filter", "read")])
@pytest.mark.parametrize("kind", ["tmpfs", "hugetlbfs"])
async def test_a_truncated_source_is_no_zeros_to_a_stage(kind, stages, method, make, folder_on) -> None:
    source = make(kind, noise(24 * MiB))
    folder = folder_on("ext4").path
    slow = [["sh", "-c", "sleep 0.2; exec cat"]] if stages == "filter" else None
    dump = Dump(source=source, name="dump", method=method, filter=slow, compress=None if slow else "zstd")
    async with asyncdump.open_run([dump], output=folder, allow_filters=True, on_read_error="zero") as running:
        os.truncate(source, 2 * MiB)
    error = running.report.files[0].error
    assert isinstance(error, asyncdump.SourceChangedError)
    assert mentions(error, source)
    assert os.listdir(folder) == ["receipt.json"]


async def test_a_run_over_bad_pages_can_be_cancelled(damaged: Path, bad, folder_on, monkeypatch) -> None:
    """Each call for a bad page may take a disk long: the run ends after the one under way."""
    from asyncdump.sources.file import FileSource

    calls: list[Any] = []
    read = FileSource.read

    def slow(*arguments: Any) -> int:
        time.sleep(0.01)
        calls.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(FileSource, "read", slow)
    folder = folder_on("ext4").path
    async with asyncdump.open_run([Dump(source=bad("all").path)], output=folder, on_read_error="zero") as running:
        while len(calls) < 5:
            await anyio.sleep(0.001)
        began = time.perf_counter()
        running.cancel()
    assert time.perf_counter() - began < 0.5
    assert running.report.interrupted == "cancelled"
    assert leftovers(folder) == []
    assert len(calls) < LAST


# --- poisoned memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [("memfd", method) for method in ("direct", "mmap", "sendfile", "splice", "read", "auto")]
    + [("huge_memfd", method) for method in ("direct", "mmap", "read", "auto")],
)
def test_memory_that_is_poisoned(kind, method, make, dump: Dumper, folder_on) -> None:
    """The kernel takes a page out of use until it restarts, as on a memory error: only on a machine to throw away."""
    if os.environ.get("ASYNCDUMP_POISON_MEMORY") != "1":
        unavailable("this takes pages from the machine for good: ASYNCDUMP_POISON_MEMORY=1 allows it", excusable=True)
    data = noise(3 * HUGE_PAGE)
    path = make(kind, data)
    place = HUGE_PAGE + 5 * PAGE
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, len(data)) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        address = ctypes.addressof(start) + place
        del start
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), MADV_HWPOISON)
        number = ctypes.get_errno()
    os.close(fd)
    if failed:
        unavailable(f"the kernel poisons no memory: {os.strerror(number)}", excusable=True)
    folder = folder_on("ext4")
    with pytest.raises(asyncdump.DumpError, match=r"\d+ .*: E") as failure:
        dump(folder, path, method=method)
    assert 'on_read_error="zero"' in failure.value.hint
    assert os.listdir(folder.path) == []
    transfer = dump(folder, path, method=method, checksum="xxh128", on_read_error="zero")
    written = read(os.path.join(folder.path, "dump"))
    [lost] = transfer.bad
    assert lost.offset <= place < lost.end
    # Before Linux 6.6 a huge page with one bad page in it can't be read at all.
    assert lost.length in ({PAGE, HUGE_PAGE} if kind == "huge_memfd" else {PAGE})
    assert written == with_zeros(data, (lost.offset, lost.length))
    assert transfer.digest == digest_of(written, "xxh128")
