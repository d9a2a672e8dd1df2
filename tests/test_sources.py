"""What every source must do, whatever it is made of: one table for files of each kind, and for memory of a process."""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from files import GiB, MiB, noise, read, write_pages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory import PAGE, address_of, child

import asyncdump
from asyncdump import Dump, ProcessMemory
from asyncdump.engines import ENGINES, Refused, Route
from asyncdump.engines.base import NO_DESCRIPTOR
from asyncdump.errors import DumpError, SourceChangedError
from asyncdump.sinks.file import FileSink
from asyncdump.sources import file
from asyncdump.sources.opening import look_at_recorded, open_planned
from asyncdump.sources.process import look_at_process, parse_range
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import Source, Span

HUGE = 2 * MiB
SIZES = [1, PAGE - 1, PAGE, PAGE + 1, HUGE - 1, HUGE, HUGE + 1, 3 * MiB + 7]


_NORESERVE = 0x4000  # mmap(2): MAP_NORESERVE


class File:
    """Sources that are files."""

    empty = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def make(self, content: bytes) -> Source:
        """Return a source with this content, whose pages of zeros are holes."""
        self.made += 1
        path = self.folder / f"source-{self.made}"
        write_pages(path, content, holes=True)
        return file.look_at(os.fspath(path))

    def asked(self, source: Source) -> Any:
        return source.path

    def take_away(self, source: Source) -> None:
        """Have the second half of the source gone."""
        os.truncate(source.path, source.size // 2)

    def replace(self, source: Source) -> Source:
        """Put another one in its place; return the plan that doesn't know."""
        os.rename(source.path, source.path + "-moved")
        write_pages(source.path, b"another")
        return source

    def far(self, at: int, content: bytes) -> Source:
        """Return a source that holds something at one place only."""
        path = self.folder / "far"
        with path.open("wb", buffering=0) as out:
            out.truncate(at + 2 * len(content))
            os.pwrite(out.fileno(), content, at)
        return file.look_at(os.fspath(path))

    def close(self) -> None:
        for path in self.folder.glob("source-*"):
            path.unlink()
        (self.folder / "far").unlink(missing_ok=True)


class Memory:
    """Sources that are anonymous memory of this process."""

    empty = False

    def __init__(self) -> None:
        self.mappings: dict[int, mmap.mmap] = {}

    def mapped(self, length: int) -> tuple[mmap.mmap, int]:
        # Guarded on both sides by what isn't touched: the range ends where it ends.
        mapping = mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        mapping.madvise(mmap.MADV_NOHUGEPAGE)  # Else one byte would make 512 pages of zeros present.
        address = address_of(mapping)
        self.mappings[address] = mapping
        return mapping, address

    def make(self, content: bytes) -> Source:
        mapping, address = self.mapped(len(content))
        for start in range(0, len(content), PAGE):
            if any(page := content[start : start + PAGE]):
                mapping[start : start + len(page)] = page
        return look_at_process(os.getpid(), address, len(content))

    def asked(self, source: Source) -> Any:
        assert source.process is not None
        return ProcessMemory(pid=source.process.pid, address=source.process.address, length=source.size)

    def take_away(self, source: Source) -> None:
        assert source.process is not None
        self.mappings.pop(source.process.address).close()

    def replace(self, source: Source) -> Source:
        """Return a plan made when another process had the number."""
        assert source.process is not None
        other = msgspec.structs.replace(source.process, started=source.process.started - 1)
        return msgspec.structs.replace(source, process=other)

    def far(self, at: int, content: bytes) -> Source:
        length = at + 2 * len(content)
        mapping, address = self.mapped(length)
        mapping[at : at + len(content)] = content
        return look_at_process(os.getpid(), address, length)

    def close(self) -> None:
        for mapping in self.mappings.values():
            mapping.close()


class MappedFile(Memory):
    """Sources that are a private mapping of a file in this process, some of it changed, some of it never touched."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def make(self, content: bytes) -> Source:
        path = self.folder / "mapped"
        path.unlink(missing_ok=True)
        under = bytearray(content)
        changed = range(0, len(content), 3 * PAGE)
        for start in changed:
            if any(page := content[start : start + PAGE]):
                under[start : start + len(page)] = noise(len(page), start + 1)
        write_pages(path, bytes(under), holes=True)
        with path.open("rb") as out:
            mapping = mmap.mmap(out.fileno(), len(content), access=mmap.ACCESS_COPY)
        for start in changed:
            if any(page := content[start : start + PAGE]):
                mapping[start : start + len(page)] = page
        self.mappings[address := address_of(mapping)] = mapping
        return look_at_process(os.getpid(), address, len(content))

    def close(self) -> None:
        super().close()
        (self.folder / "mapped").unlink(missing_ok=True)


Kind = File | Memory


@pytest.fixture(scope="module", params=["tmpfs", "ext4", "process", "process-tmpfs", "process-ext4"])
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    made: Kind
    if request.param == "process":
        made = Memory()
    else:
        folder = request.getfixturevalue(request.param.removeprefix("process-"))
        made = MappedFile(folder) if request.param.startswith("process") else File(folder)
    yield made
    made.close()


@pytest.fixture
def opened() -> Iterator[Callable[[Source], OpenSource]]:
    """Opens sources, and fails the test if that leaves a descriptor behind."""
    taken: set[str] = set()
    sources = []

    def descriptors() -> set[str]:
        return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}

    def opener(planned: Source) -> OpenSource:
        before = descriptors()
        sources.append(open_planned(planned))
        taken.update(descriptors() - before)
        return sources[-1]

    yield opener
    assert bool(taken) is bool(sources)
    for source in sources:
        source.close()
        source.close()
    assert not taken & descriptors()


def content_of(source: OpenSource, start: int, end: int) -> bytes:
    """Return what a range of a source holds, read as engines do, in pieces of an odd size."""
    data = bytearray(end - start)
    view = memoryview(data)
    done = 0
    while done < len(data):
        got = source.read(view[done : done + MiB - 1], start + done)
        assert 0 < got <= MiB - 1
        done += got
    return bytes(data)


def check_spans(spans: list[Span], start: int, end: int, content: bytes) -> None:
    """Say that spans are a range, in order, each byte once, and that no data is in a hole."""
    assert all(span.length > 0 for span in spans)
    assert all(one.end == other.offset for one, other in pairwise(spans))
    assert ([spans[0].offset, spans[-1].end] if spans else [start, start]) == [start, end]
    assert not any(any(content[span.offset : span.end]) for span in spans if span.hole)


# --- what it holds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_source_of_any_size(kind: Kind, opened, size) -> None:
    content = noise(size)
    planned = kind.make(content)
    source = opened(planned)
    assert (source.described.size, planned.size) == (size, size)
    assert content_of(source, 0, size) == content
    check_spans(list(source.spans(0, size)), 0, size, content)
    source.check_end(size)
    source.check_still_valid(size)


def test_a_source_of_nothing(kind: Kind, opened) -> None:
    if not kind.empty:
        pytest.skip("a range has a length")
    source = opened(kind.make(b""))
    assert list(source.spans(0, 0)) == []
    source.check_still_valid(0)


layouts = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(layouts, st.integers(0, PAGE - 1), st.sampled_from([1, PAGE, 3 * PAGE]), st.data())
def test_holes_are_found_and_read_as_zeros(kind: Kind, opened, layout, tail, shortest, data) -> None:
    pages = [hole for count, hole in layout for _ in range(count)]
    content = b"".join(bytes(PAGE) if hole else noise(PAGE, index) for index, hole in enumerate(pages))
    content += noise(tail)
    source = opened(kind.make(content))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    spans = list(source.spans(start, end, shortest_hole=shortest))
    check_spans(spans, start, end, content)
    assert all(not span.hole or span.length >= shortest for span in spans)
    assert content_of(source, start, end) == content[start:end]
    # Holes as long as a page, and whole, are found.
    found = sum(span.length for span in source.spans(0, len(content)) if span.hole)
    assert found == PAGE * sum(pages)
    assert source.described.allocated <= len(content) + PAGE


def test_a_read_ends_with_the_source(kind: Kind, opened) -> None:
    source = opened(kind.make(noise(2 * PAGE + 5)))
    view = memoryview(bytearray(b"x" * (2 * PAGE)))
    assert source.read(view, PAGE) == PAGE + 5
    assert bytes(view[: PAGE + 5]) == noise(2 * PAGE + 5)[PAGE:]
    assert source.read(view, 2 * PAGE + 5) == 0


def test_offsets_beyond_what_32_bits_hold(kind: Kind, opened) -> None:
    content = noise(3 * PAGE)
    place = 5 * GiB + PAGE
    source = opened(kind.far(place, content))
    held = [span for span in source.spans(0, source.described.size) if not span.hole]
    assert [(span.offset, span.length) for span in held] == [(place, len(content))]
    assert content_of(source, place - 7, place + len(content)) == bytes(7) + content


# --- whether it is what it was ------------------------------------------------------------------------------------------


def test_a_source_that_goes_away_meanwhile(kind: Kind, opened) -> None:
    size = 4 * MiB
    planned = kind.make(noise(size))
    source = opened(planned)
    kind.take_away(planned)
    with pytest.raises(SourceChangedError) as changed:
        source.check_still_valid(size)
    assert changed.value.path == planned.path
    with pytest.raises(DumpError):
        open_planned(planned)
    # Spans still end, and a read gives nothing that isn't there.
    assert sum(span.length for span in source.spans(0, size)) == size
    view = memoryview(bytearray(PAGE))
    try:
        got = source.read(view, size - PAGE)
    except OSError:
        got = 0
    if not isinstance(kind, MappedFile):  # Of a mapped file it may be what the file holds.
        assert bytes(view[:got]) == bytes(got)


def test_another_source_in_its_place(kind: Kind) -> None:
    planned = kind.replace(kind.make(noise(PAGE)))
    with pytest.raises(SourceChangedError) as changed:
        open_planned(planned)
    assert changed.value.path == planned.path


def test_its_errors_name_it(kind: Kind, opened) -> None:
    planned = kind.make(noise(PAGE))
    source = opened(planned)
    ended = source.ended(100, PAGE)
    failure = source.failure(OSError(5, "Input/output error"), "read", 7)
    assert isinstance(ended, SourceChangedError)
    assert (ended.path, failure.path, failure.operation, failure.errno) == (planned.path, planned.path, "read", 5)
    assert "byte 100" in str(ended)
    assert "byte 7" in str(failure)
    assert "on_read_error" in failure.hint


def test_its_plan_can_be_sent_elsewhere(kind: Kind, opened) -> None:
    planned = kind.make(noise(PAGE))
    assert pickle.loads(pickle.dumps(planned)) == planned
    assert content_of(opened(pickle.loads(pickle.dumps(planned))), 0, PAGE) == noise(PAGE)


def test_a_record_leads_back_to_it(kind: Kind) -> None:
    planned = kind.make(noise(PAGE + 1))
    assert look_at_recorded(planned.path) == planned


def test_engines_that_want_a_descriptor_are_refused_where_there_is_none(kind: Kind, opened, lane, tmp_path) -> None:
    source = opened(kind.make(noise(PAGE)))
    sink = FileSink(os.open(tmp_path / "sink", os.O_RDWR | os.O_CREAT), "sink")
    route = Route(origin=source, sink=sink)
    if source.fd is not None:
        assert route.fd == source.fd
        sink.close()
        return
    for method, engine in ENGINES.items():
        if method != "read":
            with pytest.raises(Refused) as refused:
                engine.store(route, Span(offset=0, length=PAGE), lane, None)
            assert refused.value.refusal == NO_DESCRIPTOR
    sink.close()


# --- dumps of it --------------------------------------------------------------------------------------------------------

CONTENT = noise(3 * MiB) + bytes(2 * MiB) + noise(MiB + 77)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checksum": "none"},
        {"sparse": "never"},
        {"compress": "zstd"},
        {"filter": [["cat"]]},
        {"filter": [["cat"]], "checksum": "none"},
        {"compress": "zstd", "filter": [["cat"]]},
        {"on_read_error": "zero"},
        {"offset": PAGE + 3, "length": 4 * MiB},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
async def test_a_dump_is_what_it_held(kind: Kind, options, tmp_path: Path) -> None:
    planned = kind.make(CONTENT)
    dump = Dump(kind.asked(planned), name="dump.zst" if "compress" in options else "dump", **options)
    report = await asyncdump.dump_all(dump, output=tmp_path / "out", allow_filters=True)
    report.raise_for_failures()
    (done,) = report.files
    start = options.get("offset", 0)
    expected = CONTENT[start : start + options.get("length", len(CONTENT))]
    assert (done.source, done.bytes) == (planned.path, len(expected))
    if "compress" in options:
        with asyncdump.open_dump(tmp_path / "out/dump.zst", compressed=True) as held:
            assert held.read() == expected
    else:
        assert read(tmp_path / "out/dump") == expected
    if options.get("checksum") != "none":
        assert (await asyncdump.verify_all(tmp_path / "out")).ok
    if "filter" not in options:
        assert (await asyncdump.verify_all(tmp_path / "out", against_source=True)).ok
    if "compress" not in options:
        await asyncdump.restore_all(tmp_path / "out", tmp_path / "back") if "filter" not in options else None


@pytest.mark.parametrize("compress", ["none", "zstd"])
async def test_a_source_that_changed_differs_from_its_dump(kind: Kind, compress, tmp_path: Path) -> None:
    planned = kind.make(noise(3 * MiB))
    dump = Dump(kind.asked(planned), name="dump", compress=compress)
    (await asyncdump.dump_all(dump, output=tmp_path)).raise_for_failures()
    if planned.process is not None:
        kind.mappings[planned.process.address][2 * MiB] ^= 1  # type: ignore[union-attr]
    else:
        with open(planned.path, "r+b") as changed:
            os.pwrite(changed.fileno(), bytes([noise(3 * MiB)[2 * MiB] ^ 1]), 2 * MiB)
    (verdict,) = (await asyncdump.verify_all(tmp_path, against_source=True)).files
    assert (verdict.verdict, verdict.offset) == ("differs", 2 * MiB)


async def test_a_run_that_is_resumed(kind: Kind, tmp_path: Path) -> None:
    """A file that is the same is kept; of memory nothing shows whether somebody wrote to it: it is dumped again."""
    dump = Dump(kind.asked(kind.make(noise(MiB))), name="dump")
    (await asyncdump.dump_all(dump, output=tmp_path)).raise_for_failures()
    for trusting in (False, True):
        report = await asyncdump.dump_all(dump, output=tmp_path, resume=True, trust_receipt=trusting)
        report.raise_for_failures()
        assert report.files[0].kept is (trusting or isinstance(kind, File))
    assert read(tmp_path / "dump") == noise(MiB)


async def test_several_lanes_read_it_at_once(kind: Kind, tmp_path: Path) -> None:
    content = noise(MiB) * 80
    dump = Dump(kind.asked(kind.make(content)), name="dump")
    (await asyncdump.dump_all(dump, output=tmp_path, concurrency=4)).raise_for_failures()
    assert read(tmp_path / "dump") == content


# --- what is a range of a process ---------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


@pytest.mark.parametrize(
    "text", ["pid 1", "pid 1 0x10", "pid x 0x10-0x20", "/pid 1 0x10-0x20", "pid 1 0x10-0x20 ", "pid 1 10-20"]
)
def test_what_is_no_range(text) -> None:
    with pytest.raises(ValueError, match="is not a range"):
        parse_range(text)
    with pytest.raises(DumpError):
        look_at_recorded(text)


def test_a_range_of_a_process_is_described(memory: Memory) -> None:
    planned = memory.make(noise(PAGE) + bytes(2 * PAGE) + noise(3))
    assert planned.process is not None
    start = planned.process.address
    assert planned.path == f"pid {os.getpid()} {start:#x}-{start + 3 * PAGE + 3:#x}"
    assert parse_range(planned.path) == (os.getpid(), start, 3 * PAGE + 3)
    assert planned.label == f"pid-{os.getpid()}-{start:#x}"
    assert (planned.kind, planned.in_memory, planned.has_holes) == ("process", True, True)
    assert (planned.allocated, planned.identity) == (PAGE + 3, None)


def test_what_nothing_is_mapped_at_is_an_error() -> None:
    gap = mmap.mmap(-1, 64 * PAGE)
    low, high = address_of(gap), address_of(gap) + 64 * PAGE
    gap.close()
    with pytest.raises(DumpError, match="isn't completely mapped") as refused:
        look_at_process(os.getpid(), low, high - low)
    assert f"{low:#x}" in str(refused.value)
    assert "/proc/" in refused.value.hint


def test_what_is_no_process(tmp_path: Path) -> None:
    with child() as other:
        pid = other.pid
        other.end()
        with pytest.raises(DumpError) as refused:
            look_at_process(pid, PAGE, PAGE)
    assert "no such process" in refused.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to see threads of the kernel")
def test_a_thread_of_the_kernel_has_no_memory() -> None:
    pid = next(
        int(name)
        for name in os.listdir("/proc")
        if name.isdecimal() and name != "1" and not os.path.exists(f"/proc/{name}/exe")
        if os.stat(f"/proc/{name}").st_uid == 0 and not read(f"/proc/{name}/cmdline")
    )
    with pytest.raises(DumpError):
        look_at_process(pid, PAGE, PAGE)


@pytest.mark.parametrize("end", ["exits", "executes"])
async def test_a_process_that_ends_meanwhile(end, tmp_path: Path) -> None:
    with child() as other:
        address = other.do("map(1 << 20, 0x22)")
        other.do(f"fill({address}, 1 << 20, 7)")
        dump = Dump(other.range(address, MiB), name="dump")
        plan = await asyncdump.plan_all(dump, output=tmp_path)
        source = open_planned(plan.dumps[0].source)
        if end == "exits":
            other.end()
        else:
            # Without a random layout the same range may be mapped in the next program too.
            assert other.do(f"call('personality', 0x40000) * 0 + {os.getpid()}")
            assert other.process.stdin is not None
            other.process.stdin.write(
                "os.execv(sys.executable, [sys.executable, '-c', 'print(1, flush=1); input()'])\n"
            )
            other.process.stdin.flush()
            assert other.process.stdout is not None
            other.process.stdout.readline()
        for check in (
            lambda: source.check_still_valid(MiB),
            lambda: source.check_end(MiB),
            lambda: source.read(memoryview(bytearray(PAGE)), 0),
            lambda: list(source.spans(0, MiB)),
        ):
            with pytest.raises(SourceChangedError):
                check()
        source.close()
        report = await asyncdump.dump_all(plan)
        assert isinstance(report.files[0].error, DumpError)
        assert not (tmp_path / "dump").exists()


def test_mappings_may_be_split_and_still_be_what_they_were(memory: Memory, opened) -> None:
    planned = memory.make(noise(64 * PAGE))
    assert planned.process is not None
    source = opened(planned)
    mapping = memory.mappings[planned.process.address]
    mapping.madvise(mmap.MADV_DONTFORK, 8 * PAGE, 8 * PAGE)
    source.check_still_valid(64 * PAGE)
    assert content_of(source, 0, 64 * PAGE) == noise(64 * PAGE)
    mapping.madvise(mmap.MADV_DOFORK)


async def test_two_ranges_of_a_process_have_names(memory: Memory, tmp_path: Path) -> None:
    ranges = [memory.asked(memory.make(noise(PAGE, index))) for index in range(2)]
    report = await asyncdump.dump_all([Dump(each) for each in ranges], output=tmp_path)
    assert [file.name for file in report.files] == [f"pid-{os.getpid()}-{each.address:#x}" for each in ranges]
    plan = await asyncdump.plan_all(Dump(ranges[0], name="{pid}-{index:03}.{name}"), output=tmp_path / "out")
    assert plan.dumps[0].name == f"{os.getpid()}-000.pid-{os.getpid()}-{ranges[0].address:#x}"


def test_a_name_of_a_file_has_no_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(asyncdump.ManifestError, match=r"\{pid\}"):
        asyncdump.dump_sync(Dump(tmp_path / "file", name="{pid}"), output=tmp_path / "out")


# --- in a manifest ------------------------------------------------------------------------------------------------------


def manifest(folder: Path, source: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(f"version: 1\noutput: out\ndumps:\n  - name: dump\n    source: {source}\n")
    return path


async def test_a_manifest_names_memory(memory: Memory, tmp_path: Path) -> None:
    asked = memory.asked(memory.make(noise(8 * 1024)))
    text = f"{{pid: {asked.pid}, address: {asked.address:#x}, length: 8KiB}}"
    (await asyncdump.dump_all(manifest(tmp_path, text))).raise_for_failures()
    assert read(tmp_path / "out/dump") == noise(8 * 1024)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("{address: 0x1000, length: 4KiB}", "source.pid"),
        ("{pid: 0, address: 0x1000, length: 4KiB}", "source.pid"),
        ("{pid: 1, address: -1, length: 4KiB}", "source.address"),
        ("{pid: 1, address: 7f00, length: 4KiB}", "source.address"),
        ("{pid: 1, address: 0x1000, length: 0}", "source.length"),
        ("{pid: 1, address: 0x1000, length: 4Kib}", "source.length"),
        ("{pid: 1, address: 0x7fffffffffffffff, length: 4KiB}", "source.length"),
        ("{pid: 1, adress: 0x1000, length: 4KiB}", "source.adress"),
        ("[1, 2]", "source"),
    ],
)
async def test_what_is_wrong_with_it_is_reported_with_its_line(source, key, tmp_path: Path) -> None:
    path = manifest(tmp_path, source)
    with pytest.raises(asyncdump.ManifestError) as refused:
        await asyncdump.plan_all(path)
    assert [(problem.file, problem.line) for problem in refused.value.problems][:1] == [(str(path), 5)]
    assert f"dumps[0].{key}" in {problem.key for problem in refused.value.problems}


async def test_what_is_not_mapped_is_reported_with_its_line(tmp_path: Path) -> None:
    path = manifest(tmp_path, f"{{pid: {os.getpid()}, address: 0x1000, length: 4KiB}}")
    with pytest.raises(asyncdump.ManifestError) as refused:
        await asyncdump.plan_all(path)
    (problem,) = refused.value.problems
    assert (problem.line, problem.key) == (5, "dumps[0].source")


def test_the_schema_knows_it() -> None:
    schema = asyncdump.json_schema()
    assert schema["$defs"]["ProcessMemory"]["required"] == ["pid", "address", "length"]
    assert {"$ref": "#/$defs/ProcessMemory"} in schema["$defs"]["Dump"]["properties"]["source"]["anyOf"]
