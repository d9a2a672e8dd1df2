"""Run one command and tell what it cost. A process of its own, started with ``-I -S`` and free of imports.

A process inherits the peak memory of the one that started it (execve(2) keeps ``ru_maxrss``): a benchmark that has
grown to 60 MiB would find that every ``dd`` takes 60 MiB. What is started from here starts from some 10.
"""

import os
import sys
import time


def main() -> int:
    answer, *command = sys.argv[1:]
    os.set_inheritable(int(answer), False)  # noqa: FBT003 (os takes it by position only)
    began = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    os.write(int(answer), f"{wall} {usage.ru_utime} {usage.ru_stime} {usage.ru_maxrss << 10}".encode())
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
