"""How many lanes a run may have."""

from __future__ import annotations

import errno
import resource
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.linux import cores, open_files

_SPARE_DESCRIPTORS: Final = 16


_DESCRIPTORS_PER_LANE: Final = 6  # The source, the sink twice and once more, the two ends of the pipe.


_DESCRIPTORS_PER_PIPELINE: Final = 7  # Its two ends, and five that the start of a program takes.


_DESCRIPTORS_PER_PROGRAM: Final = 2  # What it says, and its process.


def default_lanes(filesystem: str) -> int:
    """Return how many worker threads serve a destination best, by its filesystem and the cores.

    A disk wants several requests in flight; threads beyond twice the cores only wait for one another. Memory is as fast
    as the cores are. (The kernel's ``rotational`` flag is no guide: virtual disks claim to rotate.)
    """
    return cores() if traits(filesystem).in_memory else max(4, min(2 * cores(), 8))


def within_open_files(wanted: int, programs: int) -> tuple[int, int]:
    """Return how many lanes the limit of open files allows, and how many finished dumps may wait open for their sync.

    ``programs`` is how many filters one dump goes through at most.

    Raises:
        DumpError: not even one lane.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_files(soft) + _SPARE_DESCRIPTORS
    lane = _DESCRIPTORS_PER_LANE
    if programs:
        lane += _DESCRIPTORS_PER_PIPELINE + programs * _DESCRIPTORS_PER_PROGRAM
    # For each lane one dump that waits, at least.
    lanes = min(wanted, (soft - taken) // (lane + 1))
    if lanes < 1:
        raise DumpError(
            f"a run needs {taken + lane + 1} open files, the limit is {soft}",
            operation="getrlimit",
            errno=errno.EMFILE,
            hint="raise it (ulimit -n)",
        )
    return lanes, soft - taken - lane * lanes
