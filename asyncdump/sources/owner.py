"""A process whose memory is read: its files in ``/proc``, what tells it from others, and its own pages.

Its pages are read by process_vm_readv(2); where that is refused, or a page is protected from its owner too (PROT_NONE),
by ``/proc/PID/mem``. A page that isn't there is never touched: to read it would make the kernel bring it in, and a huge
one would be taken from the pool of the host.
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
"""The field of proc_pid_stat(5)."""

_AT_RANDOM: Final = 25
"""getauxval(3): the address of 16 bytes that differ for each execve(2)."""

_PAIR: Final = struct.Struct("@LL")
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


class Owner:
    """A process that is held open, as far as that goes: it may end, or execute another program, at any time.

    Its files ``pagemap`` and ``mem`` belong to the memory that it had when they were opened. Once that is gone they say
    so, whoever has its number by then: ``ProcessLookupError`` is what every method raises.

    Attributes:
        started: when it was started, in clock ticks since the system was.
        executed: a digest that differs for each program it executes. What it is taken of guards stacks, and stays here.
    """

    def __init__(self, pid: int) -> None:
        """Open it.

        Raises:
            OSError: there is no such process (ENOENT, ESRCH), or it may not be read (EPERM, EACCES).
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
            # After the name of the program, which may hold anything, brackets too, come the third field and more.
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
        """Yield the ranges of addresses that it has pages of its own for, in memory or in swap; see `pages_in`."""
        return pages_in(self._pagemap, start, end)

    def read(self, parts: list[Part], begin: int) -> int | None:
        """Read pages that are there; return the address of one that can't be read, None if all were.

        Raises:
            OSError: the address is ``begin``, before which nothing was asked for.
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
        """Close its files; calls after the first do nothing."""
        self._held.close()


def _ended() -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
