"""Run one command and report its cost. This is a separate process, started with ``-I -S`` and with few imports.

A process inherits the peak memory of its parent (execve(2) keeps ``ru_maxrss``). If the benchmark itself has grown to
60 MiB, every ``dd`` that it starts appears to use 60 MiB. Commands started from this process begin at about 10 MiB.
"""

import os
import sys
import time


def main() -> int:
    answer, *command = sys.argv[1:]
    os.set_inheritable(int(answer), False)  # noqa: FBT003 (a positional-only parameter)
    began = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    os.write(int(answer), f"{wall} {usage.ru_utime} {usage.ru_stime} {usage.ru_maxrss << 10}".encode())
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
