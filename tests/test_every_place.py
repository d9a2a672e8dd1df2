"""What every place must do, on disk, in memory, and as far as they promise it on standard output and nowhere."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from operator import attrgetter
from pathlib import Path

import pytest
from files import KiB, MiB, content, noise

import asyncdump
from asyncdump import BusyError, Dump, DumpError, ManifestError, MethodRefusedError, ReceiptError, TargetExistsError
from asyncdump.records.journal import Head, Journal
from asyncdump.records.receipt import read_receipt
from asyncdump.sinks.null import NullPlace
from asyncdump.sinks.output import open_store, resolve
from asyncdump.sinks.pipe import StdoutPlace
from asyncdump.sinks.place import PlacedSink, Store
from asyncdump.testing import MemoryPlace
from asyncdump.vocabulary.names import JOURNAL, RECEIPT, TEMPORARY_PREFIX

TOLD = ("name", "path", "source", "bytes", "size", "stored", "digest", "blocks", "inode", "error", "identity")
STORES = ["ext4", "tmpfs", "memory", "sequential memory"]


@pytest.fixture(params=STORES)
def output(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a user would name as the output: a new folder, or the address of a place in memory."""
    if request.param in {"ext4", "tmpfs"}:
        with tempfile.TemporaryDirectory(dir=request.getfixturevalue(request.param)) as path:
            yield f"{path}/out"
        return
    with MemoryPlace(sequential=request.param.startswith("sequential")) as place:
        yield place.path


@pytest.fixture
def store(output: str) -> Iterator[Store]:
    with closing(open_store(output)) as opened:
        yield opened


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    contents = {"large": content(5 * MiB + 77), "small": b"x", "empty": b"", "zeros": bytes(MiB + 1)}
    paths = {name: tmp_path / name for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    return paths


def dumps(sources: dict[str, Path]) -> list[Dump]:
    return [Dump(source=str(path)) for path in sources.values()]


def read(store: Store, name: str) -> bytes:
    fd = store.open(name)
    try:
        return os.pread(fd, 1 << 30, 0)
    finally:
        os.close(fd)


def names(store: Store) -> set[str]:
    """Return the names that count: a temporary one is nobody's business."""
    return {name for name in store.names() if not name.startswith(TEMPORARY_PREFIX)}


def written(store: Store, name: str, data: bytes) -> PlacedSink:
    sink = store.create(name)
    sink.expect(len(data))
    sink.write(memoryview(bytearray(data)), 0)
    sink.resize(len(data))
    return sink


def publish(store: Store, *sinks: PlacedSink, durable: bool = True, overwrite: bool = False) -> list[int | None]:
    errors = store.publish(sinks, durable=durable, overwrite=overwrite)
    return [None if error is None else error.errno for error in errors]


def spoil(output: str, name: str, offset: int) -> None:
    """Change one byte of a dump, as a failing disk does."""
    if "://" in output:
        with closing(open_store(output)) as store:
            fd = store.open(name)
    else:
        fd = os.open(os.path.join(output, name), os.O_RDWR)
    try:
        (byte,) = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte ^ 1]), offset)
    finally:
        os.close(fd)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestNames:
    """A name stands for something complete, or for nothing."""

    @pytest.mark.parametrize("durable", [True, False])
    def test_names_appear_only_when_published(self, durable, store: Store) -> None:
        sink = written(store, "dump", noise(100))
        assert names(store) == set()
        assert store.entry("dump") is None
        assert not store.exists("dump")
        assert publish(store, sink, durable=durable) == [None]
        assert names(store) == {"dump"}
        assert store.exists("dump")
        entry = store.entry("dump")
        assert entry is not None
        assert (entry.size, entry.kind) == (100, "file")
        assert read(store, "dump") == noise(100)

    def test_what_is_given_up_leaves_nothing(self, store: Store) -> None:
        before = descriptors(), store.names()
        sink = written(store, "dump", noise(MiB))
        sink.abort()
        sink.abort()
        assert (descriptors(), store.names()) == before

    def test_giving_up_does_not_touch_what_was_published(self, store: Store) -> None:
        sink = written(store, "dump", b"complete")
        assert publish(store, sink) == [None]
        sink.abort()
        assert read(store, "dump") == b"complete"

    @pytest.mark.parametrize("count", [1, 3, 5])
    def test_a_group_has_an_error_for_each(self, count: int, output: str) -> None:
        with closing(open_store(output)) as earlier:
            assert publish(earlier, written(earlier, "dump-1", b"theirs")) == [None]
        with closing(open_store(output)) as store:
            sinks = [written(store, f"dump-{number}", noise(10, number)) for number in range(count)]
            assert publish(store, *sinks) == [errno.EEXIST if number == 1 else None for number in range(count)]
            expected = {f"dump-{number}": noise(10, number) for number in range(count)} | {"dump-1": b"theirs"}
            assert {name: read(store, name) for name in store.names()} == expected

    def test_overwriting_replaces(self, output: str) -> None:
        for data, overwrite in ((b"one", False), (b"two", True)):
            with closing(open_store(output)) as store:
                assert publish(store, written(store, "dump", data), overwrite=overwrite) == [None]
                assert read(store, "dump") == data

    def test_a_sink_may_replace_what_is_its_own(self, output: str) -> None:
        with closing(open_store(output)) as store:
            publish(store, written(store, "dump", b"one"))
        with closing(open_store(output)) as store:
            sink = written(store, "dump", b"two")
            sink.replaces = True
            assert publish(store, sink) == [None]
            assert read(store, "dump") == b"two"

    def test_what_is_held_is_held_under_its_name(self, store: Store) -> None:
        assert not store.hold("dump")
        assert store.holder("dump") is None
        publish(store, written(store, "dump", b"x"))
        assert store.holder("dump") == "dump"
        assert store.hold("dump")
        store.remove("dump")
        assert names(store) == set()
        assert store.holder("dump") is None

    def test_different_names_do_not_clash(self, store: Store) -> None:
        assert store.clashes(["a", "A", "b"]) == []

    def test_what_is_not_there_cannot_be_opened(self, store: Store) -> None:
        for call in (store.open, store.settle):
            with pytest.raises(DumpError) as refused:
                call("dump")
            assert refused.value.errno == errno.ENOENT


class TestBytes:
    """Each byte at its place, in whichever order and from however many threads a sink allows."""

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MiB - 1, MiB, MiB + 1])
    def test_sizes(self, size: int, store: Store) -> None:
        publish(store, written(store, "dump", noise(size)))
        assert read(store, "dump") == noise(size)

    def test_in_order(self, store: Store) -> None:
        data, sink = noise(300 * KiB + 5), store.create("dump")
        for start in range(0, len(data), 4 * KiB):
            sink.write(memoryview(bytearray(data[start : start + 4 * KiB])), start)
        sink.write_zeros(len(data), 5000)
        assert sink.stored == len(data) + 5000
        assert sink.status()[0] == len(data) + 5000
        assert publish(store, sink) == [None]
        assert read(store, "dump") == data + bytes(5000)

    def test_ranges_in_any_order_from_many_threads(self, store: Store) -> None:
        data, sink = noise(2 * MiB + 123), store.create("dump")
        step = 64 * KiB
        starts = list(range(0, len(data), step))
        if sink.sequential:
            assert sink.most_lanes == 1
            with pytest.raises(OSError, match="seek"):
                sink.write(memoryview(bytearray(10)), 4096)
            sink.abort()
            return
        assert sink.most_lanes is None
        random.Random(1).shuffle(starts)
        sink.resize(len(data))

        def write(some: list[int]) -> None:
            for start in some:
                sink.write(memoryview(bytearray(data[start : start + step])), start)

        threads = [threading.Thread(target=write, args=(starts[number::4],)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sink.stored == len(data)
        assert publish(store, sink) == [None]
        assert read(store, "dump") == data

    def test_what_was_not_written_is_zeros(self, store: Store) -> None:
        sink = store.create("dump")
        if not sink.sequential:
            sink.resize(MiB)
            sink.write(memoryview(bytearray(b"x" * 4096)), 8192)
            assert publish(store, sink) == [None]
            assert read(store, "dump") == bytes(8192) + b"x" * 4096 + bytes(MiB - 12288)
        sink.abort()


class TestRecords:
    """Files of our own: complete or not at all, and a log."""

    def test_small_files(self, store: Store) -> None:
        assert store.read_small(RECEIPT, 100) is None
        store.write_small({RECEIPT: b"{}", "empty": b""})
        assert (store.read_small(RECEIPT, 2), store.read_small("empty", 0)) == (b"{}", b"")
        store.write_small({RECEIPT: b"[]"})
        assert store.read_small(RECEIPT, 2) == b"[]"

    def test_no_more_is_read_than_may_be(self, store: Store) -> None:
        store.write_small({RECEIPT: b"12345"})
        with pytest.raises(DumpError) as refused:
            store.read_small(RECEIPT, 4)
        assert refused.value.errno is None

    def test_a_log(self, store: Store) -> None:
        log = store.new_log(JOURNAL)
        for piece in (b"one", b"", b"two"):
            log.append(piece)
        assert log.sync() is log.lost is None
        assert store.read_small(JOURNAL, 100) == b"onetwo"
        renewed = store.renew_log(JOURNAL, b"three")
        log.close()
        renewed.append(b"four")
        renewed.close()
        renewed.close()
        assert store.read_small(JOURNAL, 100) == b"threefour"
        store.remove(JOURNAL)
        store.remove(JOURNAL)
        assert store.read_small(JOURNAL, 100) is None


class TestLocks:
    """Two runs at once are refused, readers share."""

    @pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
    def test_runs_keep_each_other_out(self, first, second, output: str) -> None:
        with closing(open_store(output)) as one, closing(open_store(output)) as other:
            one.lock(shared=first)
            with pytest.raises(BusyError, match="another run is using") as refused:
                other.lock(shared=second)
            assert refused.value.errno == errno.EAGAIN
            one.close()
            other.lock(shared=second)

    def test_readers_share(self, output: str) -> None:
        with closing(open_store(output)) as one, closing(open_store(output)) as other:
            one.lock(shared=True)
            other.lock(shared=True)

    async def test_two_runs_into_one_place(self, output: str, sources: dict[str, Path]) -> None:
        with closing(open_store(output)) as store:
            store.lock()
            with pytest.raises(BusyError, match="another run is using"):
                await asyncdump.dump_all(dumps(sources), output=output)
            assert names(store) == set()
        (await asyncdump.dump_all(dumps(sources), output=output)).raise_for_failures()


class TestRuns:
    """Dump, verify, resume, restore: the whole way."""

    @pytest.mark.parametrize("compress", ["none", "zstd"])
    async def test_there_and_back(self, compress, output: str, sources: dict[str, Path], tmp_path: Path) -> None:
        before = descriptors()
        report = await asyncdump.dump_all(dumps(sources), output=output, compress=compress)
        report.raise_for_failures()
        assert (await asyncdump.verify_all(output)).ok
        assert (await asyncdump.verify_all(output, against_source=True)).ok
        restored = tmp_path / "restored"
        (await asyncdump.restore_all(output, restored)).raise_for_failures()
        assert {name: (restored / name).read_bytes() for name in sources} == {
            name: path.read_bytes() for name, path in sources.items()
        }
        in_memory = len(report.files) + 2 if "://" in output else 0  # The receipt, the digests.
        assert descriptors() == before + in_memory

    async def test_from_place_to_place(self, output: str, sources: dict[str, Path]) -> None:
        (await asyncdump.dump_all(dumps(sources), output=output)).raise_for_failures()
        with MemoryPlace() as other:
            report = await asyncdump.restore_all(output, other, map={"small": "renamed"})
            report.raise_for_failures()
            assert {file.path for file in report.files} == {
                f"{other.path}/{name}" for name in ("large", "renamed", "empty", "zeros")
            }
            assert other.read("large") == sources["large"].read_bytes()
            assert other.read("renamed") == b"x"
            with pytest.raises(TargetExistsError):
                await asyncdump.restore_all(output, other)
            (await asyncdump.restore_all(output, other, overwrite=True)).raise_for_failures()
        with pytest.raises(ReceiptError, match="choose another"):
            await asyncdump.restore_all(output, output)

    @pytest.mark.parametrize("compress", ["none", "zstd"])
    async def test_damage_is_found(self, compress, output: str, sources: dict[str, Path]) -> None:
        (await asyncdump.dump_all(dumps(sources), output=output, compress=compress)).raise_for_failures()
        damaged = "large.zst" if compress == "zstd" else "large"
        spoil(output, damaged, 100 * KiB)
        outcome = await asyncdump.verify_all(output)
        assert [(file.name, file.verdict) for file in outcome.failures] == [(damaged, "corrupt")]
        # A run that goes on makes it anew, and keeps the others.
        report = await asyncdump.dump_all(dumps(sources), output=output, compress=compress, resume=True)
        report.raise_for_failures()
        assert [file.name for file in report.files if not file.kept] == [damaged]
        assert (await asyncdump.verify_all(output)).ok

    async def test_a_source_that_has_changed_is_found(self, output: str, sources: dict[str, Path]) -> None:
        (await asyncdump.dump_all(dumps(sources), output=output)).raise_for_failures()
        sources["small"].write_bytes(b"y")
        outcome = await asyncdump.verify_all(output, against_source=True)
        assert [(file.name, file.verdict, file.offset) for file in outcome.failures] == [("small", "differs", 0)]

    async def test_what_a_run_that_was_killed_has_made_is_kept(self, output: str, sources: dict[str, Path]) -> None:
        report = await asyncdump.dump_all(dumps(sources), output=output)
        report.raise_for_failures()
        with closing(open_store(output)) as store:  # As it is after a kill: the journal, and no receipt.
            store.remove(RECEIPT)
            for name in ("small", "zeros", "XXH128SUMS"):
                store.remove(name)
            with closing(Journal(store, Head(files=4))) as journal:
                journal.append(file for file in report.files if file.name in {"large", "empty"})
        verified = await asyncdump.verify_all(output)
        assert (verified.unrecorded, [file.name for file in verified.files]) == (2, ["large", "empty"])
        with pytest.raises(TargetExistsError, match="journal of"):
            await asyncdump.dump_all([Dump(source=str(sources["small"]))], output=output)
        report = await asyncdump.dump_all(dumps(sources), output=output, resume=True)
        report.raise_for_failures()
        assert {file.name for file in report.files if file.kept} == {"large", "empty"}
        assert (await asyncdump.verify_all(output)).ok
        with closing(open_store(output)) as store:
            assert not store.exists(JOURNAL)

    @pytest.mark.parametrize("compress", ["none", "zstd"])
    async def test_a_dump_without_a_record_is_recognised(self, compress, output: str, sources: dict[str, Path]) -> None:
        report = await asyncdump.dump_all(dumps(sources), output=output, compress=compress)
        report.raise_for_failures()
        with closing(open_store(output)) as store:
            for name in store.names():
                if name not in {file.name for file in report.files}:
                    store.remove(name)
        again = await asyncdump.dump_all(dumps(sources), output=output, compress=compress, resume=True)
        again.raise_for_failures()
        assert all(file.kept for file in again.files)
        assert [file.digest for file in again.files] == [file.digest for file in report.files]

    async def test_nothing_is_overwritten_unasked(self, output: str, sources: dict[str, Path]) -> None:
        (await asyncdump.dump_all(dumps(sources), output=output)).raise_for_failures()
        sources["small"].write_bytes(b"new")
        with pytest.raises(TargetExistsError):
            await asyncdump.dump_all(dumps(sources), output=output)
        (await asyncdump.dump_all(dumps(sources), output=output, overwrite=True)).raise_for_failures()
        with closing(open_store(output)) as store:
            assert read(store, "small") == b"new"

    async def test_the_records(self, output: str, sources: dict[str, Path]) -> None:
        report = await asyncdump.dump_all(dumps(sources), output=output)
        with closing(open_store(output)) as store:
            receipt = read_receipt(store)
            assert receipt is not None
            assert receipt.path == os.path.join(resolve(output), RECEIPT)
            recorded, made = ([attrgetter(*TOLD)(file) for file in files] for files in (receipt.files, report.files))
            assert recorded == made
            lines = (store.read_small("XXH128SUMS", MiB) or b"").decode().splitlines()
            assert lines == sorted(
                (f"{(file.digest or '').partition(':')[2]}  {file.name}" for file in report.files),
                key=lambda line: line.split()[1],
            )
            assert set(store.names()) == {*sources, RECEIPT, "XXH128SUMS"}

    async def test_a_source_that_fails_leaves_nothing(self, output: str, sources: dict[str, Path]) -> None:
        before = descriptors()
        failing = Dump(source=str(sources["large"]), filter=[["head", "-c", "99999"], ["false"]])
        report = await asyncdump.dump_all([failing], output=output, allow_filters=True)
        assert [file.name for file in report.failures] == ["large"]
        with closing(open_store(output)) as store:
            assert set(store.names()) == {RECEIPT}
        assert descriptors() == before + ("://" in output)  # That of the receipt.

    async def test_programs(self, output: str, sources: dict[str, Path]) -> None:
        dump = Dump(source=str(sources["large"]), filter=[["tr", "a", "b"]])
        report = await asyncdump.dump_all([dump], output=output, allow_filters=True)
        report.raise_for_failures()
        with closing(open_store(output)) as store:
            assert read(store, "large") == sources["large"].read_bytes().replace(b"a", b"b")
        assert (await asyncdump.verify_all(output)).ok


class TestSinksWithoutADescriptor:
    """Engines that need one are no candidates: only the kernel may look at a mapping of a source."""

    @pytest.mark.parametrize("sequential", [True, False])
    @pytest.mark.parametrize("holes", [True, False])
    async def test_what_auto_takes(self, holes, sequential, make) -> None:
        data = content(5 * MiB + 77)
        source = make("tmpfs", data, holes=holes)
        with MemoryPlace(sequential=sequential) as place:
            report = await asyncdump.dump_all([Dump(source=source, name="x")], output=place, checksum="none")
            report.raise_for_failures()
            assert report.files[0].method == "read"
            assert place.read("x") == data
            assert (report.files[0].stored < len(data)) is not sequential  # In order there are no holes.

    @pytest.mark.parametrize("method", ["reflink", "direct", "sendfile", "splice", "mmap"])
    async def test_what_is_named_is_refused(self, method, sources: dict[str, Path]) -> None:
        with MemoryPlace() as place:
            report = await asyncdump.dump_all([Dump(source=str(sources["large"]))], output=place, method=method)
            (failed,) = report.failures
            assert isinstance(failed.error, MethodRefusedError)
            assert failed.error.hint.endswith("read")
            assert set(place.names()) == {RECEIPT}


class TestMemoryPlace:
    """What is its own."""

    async def test_by_its_address(self, sources: dict[str, Path]) -> None:
        with MemoryPlace("tests/by-address") as place:
            report = await asyncdump.dump_all(dumps(sources), output="memory://tests/by-address/")
            assert report.output == place.path == os.fspath(place)
            assert place.read("large") == sources["large"].read_bytes()

    def test_each_without_a_name_is_another(self) -> None:
        with MemoryPlace() as one, MemoryPlace() as other:
            assert one.name != other.name
            one.write_small({"x": b"1"})
            assert other.names() == []

    def test_clearing_gives_all_back(self) -> None:
        before = descriptors()
        with MemoryPlace() as place:
            place.write_small({"x": noise(MiB), "y": b""})
            assert descriptors() == before + 2
        assert descriptors() == before
        assert place.names() == []


class TestOutputs:
    """What the user names, and where it leads."""

    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert resolve("out") == f"{tmp_path}/out"
        assert resolve("out", "/elsewhere") == "/elsewhere/out"
        assert resolve(f"file://{tmp_path}/out") == f"{tmp_path}/out"
        assert resolve("-") == "-"
        assert resolve("a:b") == f"{tmp_path}/a:b"

    async def test_a_scheme_that_nobody_knows(self, sources: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="s3://") as refused:
            await asyncdump.dump_all(dumps(sources), output="s3://bucket/dumps")
        assert "file://" in str(refused.value)
        assert "memory://" in str(refused.value)
        with pytest.raises(ReceiptError, match="s3://"):
            await asyncdump.verify_all("s3://bucket/dumps")
        (await asyncdump.dump_all(dumps(sources), output=tmp_path / "out")).raise_for_failures()
        with pytest.raises(ReceiptError, match="s3://"):
            await asyncdump.restore_all(tmp_path / "out", "s3://bucket/restored")

    async def test_a_place_that_is_not_there(self) -> None:
        with pytest.raises(DumpError) as refused:
            await asyncdump.verify_all("memory://nobody/has/this")
        assert refused.value.errno == errno.ENOENT


class TestStandardOutput:
    """Bytes in order to a reader; nothing is kept."""

    def test_what_is_written_is_read(self) -> None:
        reading, writing = os.pipe()
        place = StdoutPlace(writing, lambda: None)
        sink = place.create("dump")
        assert (place.streams, sink.sequential, sink.most_lanes, sink.direct) == (True, True, 1, None)
        assert sink.fd is not None
        sink.write(memoryview(b"one"), 0)
        sink.write(memoryview(b"two"), 3)
        assert place.publish([sink], durable=True, overwrite=False) == [None]
        os.close(writing)
        assert os.read(reading, 100) == b"onetwo"
        assert os.read(reading, 100) == b""
        os.close(reading)
        place.close()

    def test_a_reader_that_has_gone(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        sink = StdoutPlace(writing, lambda: None).create("dump")
        with pytest.raises(BrokenPipeError):
            sink.write(memoryview(b"x"), 0)
        sink.abort()
        os.close(writing)


class TestNowhere:
    """Everything is taken, nothing is kept."""

    def test_what_is_written_is_counted(self, tmp_path: Path) -> None:
        place = NullPlace(str(tmp_path))
        sink = place.create("dump")
        sink.resize(100)
        sink.write(memoryview(b"xyz"), 50)
        sink.write_cached(memoryview(b"x"), 0)
        assert (sink.stored, sink.fd, sink.status()) == (4, None, (0, 0))
        assert place.publish([sink], durable=True, overwrite=False) == [None]
        assert list(tmp_path.iterdir()) == []
