"""Files of unknown size (``/proc``, ``/sys``, some of FUSE), which are read into memory first."""

from __future__ import annotations

import os
from typing import Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.linux import some

LARGEST_STREAM: Final = 64 << 20
"""The maximum size of such a source in bytes: its content stays in memory until it is written."""

_STEP: Final = 1 << 20


def gather(fd: int, path: str) -> int:
    """Read a file of unknown size to its end into a memfd (memfd_create(2)), and return its descriptor.

    Raises:
        DumpError: the file has more than `LARGEST_STREAM` bytes, or can't be read.
    """
    memory = -1
    try:
        with explain("read", path):
            memory = os.memfd_create("asyncdump", os.MFD_CLOEXEC)
            _pour(fd, memory, path)
    except BaseException:
        if memory >= 0:
            os.close(memory)
        raise
    return memory


def _pour(fd: int, memory: int, path: str) -> None:
    total = 0
    while piece := os.read(fd, _STEP):  # Sequentially: some of these files don't support pread(2).
        total += len(piece)
        if total > LARGEST_STREAM:
            raise DumpError(
                f"{path} has no known size, and contains more than {LARGEST_STREAM >> 20} MiB",
                path=path,
                operation="read",
                hint="copy it with cat(1), and dump the copy",
            )
        view = memoryview(piece)
        while view:
            view = view[some(os.write(memory, view)) :]
