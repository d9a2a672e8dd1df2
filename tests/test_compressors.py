"""The budget of compression: what is lent and what is kept stay within it, and nobody waits for ever."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from files import KiB, MiB
from hypothesis import given
from hypothesis import strategies as st

from asyncdump.codecs.codec import BUDGET
from asyncdump.codecs.compressors import Compressors, Press
from asyncdump.codecs.seekable import Table, read_seek_table
from asyncdump.codecs.zstd import ZstdOptions
from asyncdump.errors import InterruptedDumpError
from asyncdump.kernel.lane import Buffers
from asyncdump.sinks.folder import Folder
from asyncdump.transfer.packer import Packer
from asyncdump.vocabulary.stop import Stop

KINDS = [
    ZstdOptions(),
    ZstdOptions(level=1, frame=4 * KiB),
    ZstdOptions(level=22),
    ZstdOptions(level=6, frame=40 * MiB),
    ZstdOptions(level=1, frame=100 * MiB),
]


def check(compressors: Compressors) -> None:
    idle = compressors._idle
    assert compressors._lent + sum(press.options.cost for press in idle) <= BUDGET


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.booleans(), st.booleans()), max_size=40))
def test_what_is_lent_and_what_is_kept_stay_within_the_budget(steps) -> None:
    compressors = Compressors()
    lent: list[tuple[ZstdOptions, ExitStack]] = []
    for kind, take, use in steps:
        if take and compressors._lent + kind.cost <= BUDGET:
            stack = ExitStack()
            press = stack.enter_context(compressors.press(kind))
            lent.append((kind, stack))
            if use:
                assert compressors.compress(press, memoryview(b"x"))
        elif lent:
            lent.pop(0)[1].close()
        check(compressors)
        for each, contexts in compressors._contexts.items():
            presses = [press.options for press in compressors._idle] + [options for options, _ in lent]
            assert len(contexts) <= presses.count(each)
    for _, stack in lent:
        stack.close()
    check(compressors)


def test_whoever_waits_for_the_budget_or_a_core_looks_whether_the_run_goes_on() -> None:
    stop = Stop()
    compressors = Compressors(stop.check)
    press: Press
    waits: list[Callable[[], object]] = [
        lambda: compressors.press(KINDS[-1]).__enter__(),
        lambda: compressors.compress(press, memoryview(b"x")),
    ]
    with compressors.press(KINDS[-1]) as press:
        while compressors._cores.acquire(blocking=False):
            pass
        for wait in waits:
            stop.requested = False
            timer = threading.Timer(0.1, lambda: setattr(stop, "requested", True))
            timer.start()
            with pytest.raises(InterruptedDumpError):
                wait()
            timer.join()


def test_a_thread_that_waits_for_its_turn_learns_that_another_has_failed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    sink, buffers, stop = folder.create("dump"), Buffers(), Stop()
    packer = Packer(sink, None, buffers, stop.check, checksums=False)
    packer.append(0, b"x" * 1000, 5)
    timer = threading.Timer(0.1, packer.discard)
    timer.start()
    with pytest.raises(InterruptedDumpError):
        packer.append(2, b"x" * 1000, 5)
    timer.join()
    assert len(buffers._free) == 1
    with pytest.raises(InterruptedDumpError):  # Nothing is taken any more that nobody would give back.
        packer.append(1, b"x" * 1000, 5)
    sink.abort()
    folder.close()


def test_a_frame_of_any_size_takes_few_buffers(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    sink, buffers = folder.create("dump"), Buffers()
    packer = Packer(sink, None, buffers, Stop().check, checksums=False)
    frames = [bytes([number]) * (9 * MiB + number) for number in range(3)]
    for number, frame in enumerate(frames):
        packer.append(number, frame, 1)
    packer.finish()
    assert len(buffers._free) <= 2
    stored = (tmp_path / next(name.name for name in tmp_path.iterdir())).read_bytes()
    assert stored.startswith(b"".join(frames))
    sink.abort()
    folder.close()


@pytest.mark.parametrize("checksums", [False, True])
def test_a_table_takes_some_bytes_a_frame(checksums, tmp_path: Path) -> None:
    """A file of 100 GiB has 26 million of the smallest frames."""
    frame = b"12345678abcd"
    table = Table(checksums=checksums)
    tracemalloc.start()
    try:
        for _ in range(200_000):
            table.add(frame, 4096)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 200_000 * 30  # It's moved once in a while.
    with (tmp_path / "table").open("w+b") as file:
        for _ in range(200_000):
            file.write(frame)
        for piece in table.encoded():
            file.write(piece)
        file.flush()
        found = read_seek_table(file.fileno(), "table")
    assert found is not None
    assert len(found) == table.count == 200_000
    last = found[-1]
    assert (last.offset, last.length, last.stored) == (199_999 * 4096, 4096, 12)
    assert last.checksum == (int.from_bytes(b"abcd", "little") if checksums else None)
