"""What every sink that keeps its bytes must do: a file on a disk, a file in memory, a place in memory."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from files import PAGE, KiB, MiB, noise

from asyncdump.errors import DumpError, InterruptedDumpError
from asyncdump.kernel.lane import BUFFER, Lane
from asyncdump.sinks.place import PlacedSink, Store
from asyncdump.testing import MemoryPlace
from asyncdump.vocabulary.digest import new_digest

SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * MiB + 77]
KINDS = ["ext4", "tmpfs", "memory", "sequential memory"]

Write = Callable[[PlacedSink, memoryview, int], None]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param in {"ext4", "tmpfs"}:
        yield request.getfixturevalue("folder_on")(request.param)
        return
    with MemoryPlace(sequential=request.param.startswith("sequential")) as place, closing(place):
        yield place


def aligned(lane: Lane, data: bytes) -> memoryview:
    """Return data where an engine has it: in the buffer of a lane, whose address any O_DIRECT takes."""
    view = lane.buffer.view[: len(data)]
    view[:] = data
    return view


def published(store: Store, sink: PlacedSink) -> bytes:
    assert store.publish([sink], durable=False, overwrite=False) == [None]
    fd = store.open("dump")
    try:
        return os.pread(fd, 1 << 30, 0)
    finally:
        os.close(fd)


def put(sink: PlacedSink, data: bytes, lane: Lane, write: Write = lambda sink, view, at: sink.write(view, at)) -> None:
    """Write all of ``data`` in steps, as an engine does."""
    sink.resize(len(data))
    for start in range(0, len(data), BUFFER):
        write(sink, aligned(lane, data[start : start + BUFFER]), start)


def plainly(sink: PlacedSink, view: memoryview, offset: int) -> None:
    sink.write(view, offset)


def through_the_cache(sink: PlacedSink, view: memoryview, offset: int) -> None:
    sink.write_cached(view, offset)
    sink.flush_behind(offset, len(view))


def directly(sink: PlacedSink, view: memoryview, offset: int) -> None:
    done = sink.write_direct(view, offset)
    sink.note_written(done)
    sink.write(view[done:], offset + done)


def in_odd_pieces(sink: PlacedSink, view: memoryview, offset: int) -> None:
    for start in range(0, len(view), 70_001):
        sink.write(view[start : start + 70_001], offset + start)


@pytest.mark.parametrize("write", [plainly, through_the_cache, directly, in_odd_pieces])
@pytest.mark.parametrize("size", SIZES)
def test_every_byte_is_at_its_place(size, write: Write, store: Store, lane: Lane) -> None:
    data = noise(size)
    sink = store.create("dump")
    put(sink, data, lane, write)
    assert sink.stored == size
    assert sink.status()[0] == size
    assert sink.sync() is None
    assert published(store, sink) == data


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read_back(size, store: Store, lane: Lane) -> None:
    sink = store.create("dump")
    put(sink, noise(size), lane)
    digest = new_digest("sha256")
    assert digest is not None
    sink.read_back(size, digest, lane, lambda: None)
    assert digest.hexdigest() == hashlib.sha256(noise(size)).hexdigest()
    with pytest.raises(DumpError) as shorter:
        sink.read_back(size + 1, digest, lane, lambda: None)
    assert (shorter.value.operation, shorter.value.errno) == ("read back", None)
    sink.abort()


def test_reading_back_can_be_ended(store: Store, lane: Lane) -> None:
    sink = store.create("dump")
    put(sink, noise(2 * BUFFER), lane)
    digest = new_digest("sha256")
    assert digest is not None

    def check() -> None:
        raise InterruptedDumpError("enough")

    with pytest.raises(InterruptedDumpError):
        sink.read_back(2 * BUFFER, digest, lane, check)
    sink.abort()


@pytest.mark.parametrize(("head", "zeros", "tail"), [(0, MiB, 1), (PAGE, 5 * MiB + 3, PAGE), (77, PAGE, 0)])
def test_zeros_that_are_written(head, zeros, tail, store: Store) -> None:
    sink = store.create("dump")
    sink.resize(head + zeros + tail)
    sink.write(memoryview(bytearray(noise(head))), 0)
    sink.write_zeros(head, zeros)
    sink.write(memoryview(bytearray(noise(tail))), head + zeros)
    assert sink.stored == head + zeros + tail
    assert published(store, sink) == noise(head) + bytes(zeros) + noise(tail)


def test_a_size_that_turns_out_to_be_another(store: Store) -> None:
    sink = store.create("dump")
    sink.expect(MiB)
    sink.write(memoryview(bytearray(b"short")), 0)
    sink.resize(5)
    assert published(store, sink) == b"short"


def test_nothing_is_left_of_what_is_given_up(store: Store, lane: Lane) -> None:
    before = set(os.listdir("/proc/self/fd"))
    sink = store.create("dump")
    put(sink, noise(2 * MiB), lane)
    sink.close_direct()
    sink.abort()
    sink.abort()
    assert store.names() == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_it_has_what_it_says(store: Store) -> None:
    sink = store.create("dump")
    try:
        assert (sink.most_lanes == 1) is sink.sequential
        assert sink.grain % PAGE == 0
        assert sink.path == f"{store.path}/dump"
        assert sink.lost is sink.ask() is None
        assert sink.pace.step(KiB) == KiB
        if sink.fd is None:
            assert sink.direct is None
            with pytest.raises(OSError, match="No such device"):
                sink.open_again()
        else:
            fd = sink.open_again()
            assert os.path.sameopenfile(fd, sink.fd)
            os.close(fd)
    finally:
        sink.abort()


@pytest.mark.parametrize("room", [0, PAGE, 3 * PAGE + 5])
def test_a_write_that_is_cut_short_is_an_error(room, store: Store) -> None:
    """The kernel writes what the limit allows, then answers EFBIG (setrlimit(2)): never a silent short dump."""
    sink = store.create("dump")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            sink.write(memoryview(bytearray(noise(5 * PAGE))), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.errno == errno.EFBIG
    sink.abort()
    assert store.names() == []
