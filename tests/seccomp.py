"""Run a program or a function with some system calls denied (seccomp(2)).

As a program: ``seccomp.py CALL=ERRNO ... -- PROGRAM ARGUMENT ...``.

``CALL:N&MASK=ERRNO`` denies the call only if its argument N (from 0) has a bit of the mask; ``CALL:N==VALUE=ERRNO``
only if it has that value.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

NUMBERS = {
    "x86_64": {
        "fcntl": 72, "flock": 73, "sendfile": 40, "statfs": 137, "fstatfs": 138, "splice": 275, "tee": 276,
        "sync_file_range": 277, "vmsplice": 278, "openat": 257, "renameat2": 316, "copy_file_range": 326,
        "preadv2": 327, "pwritev2": 328, "fadvise64": 221, "madvise": 28, "memfd_create": 319, "pidfd_open": 434,
        "sched_setscheduler": 144, "sched_getscheduler": 145, "sched_getaffinity": 204, "clone": 56, "clone3": 435,
        "syncfs": 306, "ioctl": 16, "process_vm_readv": 310, "fsync": 74, "fdatasync": 75, "unlinkat": 263,
    },
    "aarch64": {
        "fcntl": 25, "flock": 32, "sendfile": 71, "statfs": 43, "fstatfs": 44, "splice": 76, "tee": 77,
        "sync_file_range": 84, "vmsplice": 75, "openat": 56, "renameat2": 276, "copy_file_range": 285,
        "preadv2": 286, "pwritev2": 287, "fadvise64": 223, "madvise": 233, "memfd_create": 279, "pidfd_open": 434,
        "sched_setscheduler": 119, "sched_getscheduler": 120, "sched_getaffinity": 123, "clone": 220, "clone3": 435,
        "syncfs": 267, "ioctl": 29, "process_vm_readv": 270, "fsync": 82, "fdatasync": 83, "unlinkat": 35,
    },
}.get(platform.machine(), {})  # fmt: skip

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_ARGUMENTS = 16
_RULE = re.compile(r"(?P<call>\w+)(?::(?P<number>\d)(?P<how>&|==)(?P<value>\w+))?=(?P<errno>E\w+)")


def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def denial(rule: str) -> list[bytes]:
    """Return the BPF instructions that deny what a rule says, and otherwise continue with the next rule."""
    parts = _RULE.fullmatch(rule)
    assert parts is not None, rule
    answer = step(_RETURN, _ERRNO | getattr(errno, parts["errno"]))
    if parts["how"] is None:
        return [step(_LOAD, 0), step(_EQUAL, NUMBERS[parts["call"]], 0, 1), answer]
    test = _ANY_BIT if parts["how"] == "&" else _EQUAL
    argument = _ARGUMENTS + 8 * int(parts["number"])
    return [
        step(_LOAD, 0),
        step(_EQUAL, NUMBERS[parts["call"]], 0, 3),
        step(_LOAD, argument),
        step(test, int(parts["value"], 0), 0, 1),
        answer,
    ]


def deny(rules: list[str]) -> None:
    """Apply rules to this process and everything that it starts."""
    steps = [each for rule in rules for each in denial(rule)] + [step(_RETURN, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(steps))
    header = ctypes.create_string_buffer(struct.pack("=H6xQ", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(each) for each in (1, 0, 0, 0)]
    if libc.prctl(38, *arguments) or libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(header), *arguments[1:3]):
        raise OSError(ctypes.get_errno(), "prctl")


def require() -> None:
    """Skip the test if the numbers of the system calls aren't known."""
    from files import unavailable

    if not NUMBERS:
        unavailable("the numbers of system calls are not known here", excusable=True)


def without(rules: list[str], function: Callable[[], Result]) -> Result:
    """Call a function in a separate thread, with rules that apply to it and to the threads that it starts."""
    require()
    with ThreadPoolExecutor(1, initializer=deny, initargs=(rules,)) as thread:
        return thread.submit(function).result()


if __name__ == "__main__":
    end = sys.argv.index("--")
    deny(sys.argv[1:end])
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
