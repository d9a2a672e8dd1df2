"""How many lanes a run may have."""

from __future__ import annotations

import errno
import resource
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.host import cores, open_files

_SPARE_DESCRIPTORS: Final = 16


_DESCRIPTORS_PER_LANE: Final = 6  # The source, three for the sink, and the two ends of the pipe.


_DESCRIPTORS_PER_PIPELINE: Final = 7  # Its two ends, and five while a program is started.


_DESCRIPTORS_PER_PROGRAM: Final = 2  # Its stderr and its pidfd.


def default_lanes(filesystem: str) -> int:
    """Return the best number of worker threads for a destination, from its filesystem and the number of cores.

    A disk needs several requests in flight, but more than two threads for each core only wait for one another. For a
    destination in memory, the cores are the limit. The kernel's ``rotational`` flag is not used, because virtual disks
    claim to rotate.
    """
    return cores() if traits(filesystem).in_memory else max(4, min(2 * cores(), 8))


def within_open_files(wanted: int, programs: int) -> tuple[int, int]:
    """Return how many lanes the limit of open files allows, and how many sealed dumps may wait for their sync.

    A dump that waits for its sync keeps its file open. ``programs`` is the largest number of filters of any dump.

    Raises:
        DumpError: the limit doesn't even allow one lane.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_files(soft) + _SPARE_DESCRIPTORS
    lane = _DESCRIPTORS_PER_LANE
    if programs:
        lane += _DESCRIPTORS_PER_PIPELINE + programs * _DESCRIPTORS_PER_PROGRAM
    # Each lane needs space for at least one dump that waits, or no lane could hand over anything.
    lanes = min(wanted, (soft - taken) // (lane + 1))
    if lanes < 1:
        raise DumpError(
            f"a run needs {taken + lane + 1} open files, but the limit is {soft}",
            operation="getrlimit",
            errno=errno.EMFILE,
            hint="raise it (ulimit -n)",
        )
    return lanes, soft - taken - lane * lanes
