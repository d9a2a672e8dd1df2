"""A sink on a filesystem that fills up: an error, and the room is given back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from files import MiB, noise

from asyncdump.errors import DumpError
from asyncdump.kernel.lane import BUFFER, Lane
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder

Opener = Callable[..., Folder]


def fill(sink: Draft, lane: Lane, *, cached: bool) -> int | None:
    """Write until there is no room left; return the errno of the call that says so."""
    view = lane.buffer.view
    view[:] = noise(BUFFER)
    write = sink.write_cached if cached else sink.write
    for start in range(0, 4 * MiB, BUFFER):
        try:
            write(view, start)
            sink.flush_behind(start, BUFFER)
        except (OSError, DumpError) as error:
            return error.errno
    failure = sink.sync()
    return None if failure is None else failure.errno


@pytest.mark.parametrize("cached", [True, False])
def test_a_disk_that_fills_up(cached, tiny: Path, folder_on: Opener, lane: Lane) -> None:
    folder = folder_on(tiny)
    free = os.statvfs(tiny).f_bavail
    sink = folder.create("dump")
    assert fill(sink, lane, cached=cached) == errno.ENOSPC
    sink.abort()
    assert folder.names() == []
    assert os.statvfs(tiny).f_bavail >= free - 8
    # There is room again for what fits.
    small = folder.create("small")
    small.write(memoryview(bytearray(noise(MiB))), 0)
    assert folder.publish([small], durable=True, overwrite=False) == [None]


def test_of_a_group_the_ones_that_fit_are_published(tiny: Path, folder_on: Opener, lane: Lane) -> None:
    folder = folder_on(tiny)
    good, full = folder.create("good"), folder.create("full")
    good.write(memoryview(bytearray(noise(64 << 10))), 0)
    with suppress(DumpError):
        assert fill(full, lane, cached=True) == errno.ENOSPC
    full.abort()
    assert folder.publish([good], durable=True, overwrite=False) == [None]
    assert folder.names() == ["good"]
