"""Memory of processes for tests: mappings of this one, and children that map what they are told to."""

from __future__ import annotations

import ctypes
import json
import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncdump import ProcessMemory

PAGE = mmap.PAGESIZE

_CHILD = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
for name in "mprotect", "madvise", "munmap":
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int][:2 + (name != "munmap")]
def call(name, *arguments):
    answer = getattr(libc, name)(*arguments)
    if answer in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), name)
    return answer
def map(length, flags, fd=-1):
    return call("mmap", None, length, 3, flags, fd, 0)
def fill(address, length, byte):
    ctypes.memset(address, byte, length)
for line in sys.stdin:
    try:
        answer = eval(line)
    except OSError as error:
        answer = {"errno": error.args[0]}
    print(json.dumps(answer if isinstance(answer, (int, dict)) else None), flush=True)
"""


class Child:
    """A process that does what it is told: ``map(length, flags)``, ``fill``, ``call("munmap", ...)``, ``os.execv``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def do(self, command: str) -> Any:
        """Have it evaluate an expression, and return the answer; raise OSError where a call failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, dict):
            raise OSError(answer["errno"], command)
        return answer

    def range(self, address: int, length: int) -> ProcessMemory:
        return ProcessMemory(pid=self.pid, address=address, length=length)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def child() -> Iterator[Child]:
    process = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = Child(process)
    try:
        yield started
    finally:
        started.end()


def address_of(mapping: mmap.mmap) -> int:
    """Return where a mapping of this process is; it can be closed afterwards."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
