"""A process whose memory is read: its files in ``/proc``, its identity, and its own pages.

Pages are read with process_vm_readv(2), or through ``/proc/PID/mem`` if that is denied or the page is PROT_NONE. A
missing page is never touched: reading it would make the kernel allocate it, and a huge page would be taken from the
pool of the host.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from asyncdump.kernel.linux import close_quietly
from asyncdump.kernel.memory import Part, pages_in, read_process
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.values import UNREADABLE

_STARTED: Final = 22
"""The number of the field ``starttime`` in proc_pid_stat(5)."""

_AT_RANDOM: Final = 25
"""getauxval(3): the address of 16 bytes that differ for each execve(2)."""

_PAIR: Final = struct.Struct("@LL")
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


class Owner:
    """A process whose files in /proc are kept open. It may exit, or execute another program, at any time.

    ``pagemap`` and ``mem`` refer to the memory that the process had when they were opened. After that memory is gone,
    all methods raise ``ProcessLookupError``, even if another process has got the same PID.

    Attributes:
        started: when the process was started, in clock ticks since boot.
        executed: a digest that differs for each program that it executes. Its input includes the seed of the stack
            guard, a secret, and is therefore not kept.
    """

    def __init__(self, pid: int) -> None:
        """Open the files of a process.

        Raises:
            OSError: there is no such process (ENOENT, ESRCH), or it must not be read (EPERM, EACCES).
        """
        self.pid: Final = pid
        self._refused = False
        with ExitStack() as stack:
            self._pagemap: Final = self._open("pagemap", stack)
            self._memory: Final = self._open("mem", stack)
            self.started: Final = self._start_time()
            self.executed: Final = self._program()
            self._held: Final = stack.pop_all()

    def _open(self, name: str, stack: ExitStack) -> int:
        fd = open_file(f"/proc/{self.pid}/{name}")
        stack.callback(close_quietly, fd)
        return fd

    def _start_time(self) -> int:
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            # The third field follows the name of the program, which may contain anything, even parentheses.
            return int(file.read().rpartition(b")")[2].split()[_STARTED - 3])

    def _program(self) -> str:
        with open(f"/proc/{self.pid}/auxv", "rb") as file:
            content = file.read()
        vector = dict(_PAIR.iter_unpack(content[: len(content) // _PAIR.size * _PAIR.size]))
        if not vector:
            raise _ended()
        seed = os.pread(self._memory, 16, vector[_AT_RANDOM]) if _AT_RANDOM in vector else b""
        return hashlib.sha256(content + seed).hexdigest()

    def pages(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of addresses for which the process has its own pages, in memory or in swap (`pages_in`)."""
        return pages_in(self._pagemap, start, end)

    def read(self, parts: list[Part], begin: int) -> int | None:
        """Read existing pages; return the address of the first unreadable one, or None if there is none.

        Raises:
            OSError: the unreadable page is at ``begin``, the start of the request.
        """
        while parts:
            address, view = parts[0]
            try:
                got = self._through_file(address, view) if self._refused else self._through_call(parts)
            except OSError as error:
                if address == begin or error.errno not in UNREADABLE:
                    raise
                return address
            while parts and got >= len(parts[0][1]):
                got -= len(parts.pop(0)[1])
            if got:
                parts[0] = (parts[0][0] + got, parts[0][1][got:])
        return None

    def _through_call(self, parts: list[Part]) -> int:
        try:
            return read_process(self.pid, parts)
        except ProcessLookupError:
            raise
        except OSError as error:
            self._refused = error.errno in _REFUSED
            if not self._refused and error.errno not in UNREADABLE:
                raise
        return self._through_file(*parts[0])

    def _through_file(self, address: int, view: memoryview) -> int:
        if (got := os.preadv(self._memory, [view], address)) == 0:
            raise _ended()
        return got

    def close(self) -> None:
        """Close the files; further calls do nothing."""
        self._held.close()


def _ended() -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
