"""What can't be read of a span: found by asking for it, page by page where it has to be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from files import PAGE, KiB, MiB, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdump.errors import EHWPOISON, InterruptedDumpError, SourceChangedError, describe_errno
from asyncdump.sources.source import truncated
from asyncdump.transfer.salvage import merged, read_around
from asyncdump.vocabulary.values import UNREADABLE, BadRange, Source, Span

DATA = noise(4 * MiB + 100)
SOURCE = Source(
    path="/dev/shm/x", filesystem="tmpfs", page=PAGE, size=len(DATA), allocated=0, device=0, inode=0, mtime_ns=0
)


class Memory:
    """Stands for an open source: reads `DATA` up to the first bad page, in pieces of at most ``most`` bytes."""

    def __init__(self, bad: dict[int, int], *, most: int = len(DATA), whole: bool = False) -> None:
        self.described = SOURCE
        self.calls = 0
        self._bad = bad
        self._most = most
        self._whole = whole

    def ended(self, at: int, expected: int) -> SourceChangedError:
        return truncated(SOURCE.path, at, expected)

    def read(self, view: memoryview, offset: int) -> int:
        self.calls += 1
        end = min(offset + len(view), len(DATA))
        for page in range(offset // PAGE, -(-end // PAGE)):
            if page in self._bad:
                end = page * PAGE
                if end <= offset or self._whole:  # As a large folio does: it has nothing to give but all of it.
                    raise OSError(self._bad[page], "")
                break
        end = min(end, offset + self._most)
        view[: max(0, end - offset)] = DATA[offset:end]
        return max(0, end - offset)


def around(memory: Memory, offset: int, length: int, check: Callable[[], None] = lambda: None) -> tuple[bytes, Any]:
    """Return what of a span `read_around` brings in, and what it calls bad."""
    buffer = bytearray(b"\xff" * length)
    span = Span(offset=offset, length=length)
    bad = merged(read_around(memory, span, memoryview(buffer), check))  # type: ignore[arg-type]
    return bytes(buffer), bad


def expected(bad: dict[int, int], offset: int, length: int) -> bytes:
    data = bytearray(DATA)
    for page in bad:
        data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    return bytes(data[: len(DATA)][offset : offset + length])


@settings(deadline=None)
@given(
    bad=st.dictionaries(st.integers(0, 300), st.sampled_from(sorted(UNREADABLE)), max_size=40),
    offset=st.integers(0, 200 * PAGE),
    length=st.integers(1, 100 * PAGE),
    most=st.sampled_from([1000, PAGE, 64 * KiB, len(DATA)]),
    whole=st.booleans(),
)
def test_what_can_be_read_is_kept_and_the_rest_is_listed(bad, offset, length, most, whole) -> None:
    data, found = around(Memory(bad, most=most, whole=whole), offset, length)
    assert data == expected(bad, offset, length)
    lost = {byte: each.errno for each in found for byte in range(each.offset, each.end)}
    assert sum(each.length for each in found) == len(lost)
    assert lost == {
        byte: number
        for page, number in bad.items()
        for byte in range(max(page * PAGE, offset), min((page + 1) * PAGE, offset + length))
    }
    assert found == merged(found)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("bad", "most"),
    [([], 1), ([0], 24), ([1023], 80), ([500, 501], 160), ([7, 900], 160), (range(1024), 1025), (range(512), 540)],
)
def test_a_good_page_costs_next_to_no_call(bad, most, whole) -> None:
    memory = Memory(dict.fromkeys(bad, errno.EIO), whole=whole)
    around(memory, 0, 4 * MiB)
    assert memory.calls <= most


def test_neighbours_are_one_range_if_they_fail_alike() -> None:
    ranges = [(8, 4, 5), (0, 4, 5), (4, 4, 5), (12, 4, 14), (20, 4, 14)]
    assert [
        (each.offset, each.length, each.errno)
        for each in merged(BadRange(offset=o, length=n, errno=e) for o, n, e in ranges)
    ] == [
        (0, 12, 5),
        (12, 4, 14),
        (20, 4, 14),
    ]


def test_a_source_that_ends_is_truncated_and_not_zeros() -> None:
    with pytest.raises(SourceChangedError, match=str(len(DATA))):
        around(Memory({1023: errno.EIO}), 4 * MiB - PAGE, 2 * PAGE)


def test_another_error_is_no_bad_page() -> None:
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENOMEM}\]"):
        around(Memory({3: errno.ENOMEM}), 0, MiB)


def test_it_can_be_stopped_between_two_pages() -> None:
    memory = Memory(dict.fromkeys(range(1024), errno.EIO))

    def check() -> None:
        if memory.calls > 10:
            raise InterruptedDumpError("enough")

    with pytest.raises(InterruptedDumpError):
        around(memory, 0, 4 * MiB, check)
    assert memory.calls == 11


def test_broken_memory_has_a_name() -> None:
    assert os.strerror(EHWPOISON) == "Memory page has hardware error"
    assert describe_errno(EHWPOISON) == "EHWPOISON (Memory page has hardware error)"
