"""One program of a filter: its process, which is observed without being reaped, and its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Final

from asyncdump.transfer.secrets import masked

_PATIENCE: Final = 0.05
"""Seconds after which a waiting thread checks whether a process without a descriptor has ended."""

_TAIL: Final = 2000
_PIECE: Final = 64 << 10
_MOST_PIECES: Final = 16  # As much as a pipe holds: a program that never stops writing isn't read forever.
_P_PIDFD: Final = 3
"""waitid(2): wait for the process of a descriptor (Linux 5.4)."""

_GROUP: Final = 4
"""pidfd_send_signal(2): PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9)."""

_LOST = "other code in this process reaps children"


class Program:
    """One program: its process, and the last of what it writes to stderr.

    Its status is read without reaping it (waitid(2), WNOWAIT). While it is a zombie, its PID, which is also that of its
    process group, can't be reused, and the group can be killed. `subprocess` isn't used for that, because it reports 0
    for a process that something else has reaped.

    Attributes:
        status: its exit status; negative if a signal killed it; None while it runs, or if its status is lost.
        lost: whether it has exited and something else has reaped it.
    """

    def __init__(self, command: tuple[str, ...], stdin: int, stdout: int) -> None:
        self.name: Final = os.path.basename(command[0])
        self._command: Final = command
        self.tail = b""
        self.status: int | None = None
        self.lost = False
        self.errors, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # A separate group: this process handles Ctrl-C, and the children of a filter are killed with it.
            process = subprocess.Popen(  # noqa: S603 (the user's own, allowed by --allow-filters)
                command, stdin=stdin, stdout=stdout, stderr=theirs, process_group=0
            )
        except BaseException:
            os.close(self.errors)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self.errors, False)
        process.returncode = 0  # So that subprocess never reaps it: this object does.
        self.pid: Final = process.pid
        self._pidfd = self._open()

    def _open(self) -> int:
        """Return a descriptor of the process (pidfd_open(2)), or -1 if there is none or the process is lost already."""
        pidfd = -1
        with suppress(OSError, AttributeError):  # Missing or denied: the PID serves as well, unless others reap it.
            pidfd = os.pidfd_open(self.pid)
        self._id = (os.P_PID, self.pid) if pidfd < 0 else (_P_PIDFD, pidfd)
        # If something else reaps children, the PID may belong to another process by now: one that isn't a child of this
        # process, or doesn't lead a group. From here on, the descriptor always refers to the same process.
        self.ended()
        with suppress(ProcessLookupError):  # Reaped by something else since.
            self.lost = self.lost or os.getpgid(self.pid) != self.pid
        return closed(pidfd) if self.lost else pidfd

    def ended(self) -> bool:
        """Return whether it has exited, and note its status; it isn't reaped."""
        if self.status is None and not self.lost:
            try:
                found = os.waitid(*self._id, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:
                self.lost = True
            else:
                if found is not None:
                    self.status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        return self.lost or self.status is not None

    def register(self, poll: select.poll) -> None:
        """Make ``poll`` return when it exits."""
        if self._pidfd >= 0 and not self.ended():
            poll.register(self._pidfd, select.POLLIN)

    def listen(self) -> None:
        """Read what is on its stderr now."""
        if self.errors < 0:
            return
        with suppress(BlockingIOError):
            for _ in range(_MOST_PIECES):
                piece = os.read(self.errors, _PIECE)
                if not piece:
                    self.errors = closed(self.errors)
                    return
                self.tail = (self.tail + piece)[-_TAIL:]

    def complaint(self) -> str:
        """Return the message for its failure."""
        if self.lost:
            return self.quote(f"the exit status of {self.name} is unknown: {_LOST}")
        status = self.status or 0
        how = f"exited with status {status}" if status > 0 else f"was killed by {_signal_name(-status)}"
        return self.quote(f"{self.name} {how}")

    def quote(self, message: str) -> str:
        """Return a message followed by the end of stderr, in which the program's arguments are masked."""
        said = self.tail.decode(errors="backslashreplace")
        said = masked(said, self._command, cut=len(self.tail) == _TAIL).strip()[-_TAIL:]
        return f"{message}: {said}" if said else message

    def kill(self) -> None:
        """Kill its process group, of which processes may be left after it has exited itself."""
        self.errors = closed(self.errors)
        if self._pidfd >= 0:
            # Since Linux 6.9: the group, even after something else has reaped its leader.
            for flags in (_GROUP, 0):
                with suppress(OSError, AttributeError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL, None, flags)
        self.status = None  # Read again: does the process still exist, with its number?
        self.ended()
        if not self.lost:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self, until: float) -> bool:
        """Wait for it until ``until`` on the monotonic clock, and leave no zombie; return whether it has exited."""
        while not self.ended():
            if (left := until - time.monotonic()) <= 0:
                with suppress(RuntimeError):  # No thread can be started: it will stay a zombie.
                    threading.Thread(target=self._reap, daemon=True, name=f"reaper of {self.name}").start()
                return False
            poll = select.poll()
            if self._pidfd >= 0:  # Also readable if it has exited already, so no exit is missed.
                poll.register(self._pidfd, select.POLLIN)
            poll.poll(1000 * (left if self._pidfd >= 0 else min(left, _PATIENCE)))
        self._reap(os.WNOHANG)
        return True

    def _reap(self, flags: int = 0) -> None:
        with suppress(ChildProcessError):
            if not self.lost:
                os.waitid(*self._id, os.WEXITED | flags)
        self._pidfd = closed(self._pidfd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def closed(fd: int) -> int:
    """Close a descriptor unless it is -1, and return -1."""
    if fd >= 0:
        os.close(fd)
    return -1
