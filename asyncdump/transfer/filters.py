"""Filters: programs joined by pipes, started without a shell, of which nothing is left whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asyncdump.errors import FilterError, describe_errno
from asyncdump.kernel.lane import grow_pipe
from asyncdump.transfer.secrets import masked

Commands = tuple[tuple[str, ...], ...]

_PATIENCE: Final = 0.05
"""Seconds after which whoever waits looks whether the run goes on."""

_LAST_WAIT: Final = 3.0
"""Seconds that programs may take to die of SIGKILL. One that waits for a device or a frozen filesystem never does."""

_TAIL: Final = 2000
_PIECE: Final = 64 << 10
_MOST_PIECES: Final = 16  # What a pipe holds; a program that never stops talking isn't listened to for ever.
_P_PIDFD: Final = 3
"""waitid(2): wait for the process of a descriptor (Linux 5.4)."""

_GROUP: Final = 4
"""pidfd_send_signal(2): PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9)."""

_LOST = "something else in this process reaps children"


class _Child:
    """One program: its process, and the last of what it says on stderr.

    How it ended is asked for without reaping it (waitid(2), WNOWAIT). While it is a zombie its number, which is that of
    its process group too, belongs to nobody else, and the group can be killed. `subprocess` isn't asked: it takes the
    status of a process that somebody else has reaped for 0.

    Attributes:
        status: its exit status, negative for the signal that ended it; None while it runs, or if it is lost.
        lost: whether it has ended and somebody else has taken its status.
    """

    def __init__(self, command: tuple[str, ...], stdin: int, stdout: int) -> None:
        self.name: Final = os.path.basename(command[0])
        self._command: Final = command
        self.tail = b""
        self.status: int | None = None
        self.lost = False
        self.errors, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # A group of its own: Ctrl-C is for us to act upon, and what a filter starts in turn ends with it.
            process = subprocess.Popen(  # noqa: S603 (the user's own, allowed by --allow-filters)
                command, stdin=stdin, stdout=stdout, stderr=theirs, process_group=0
            )
        except BaseException:
            os.close(self.errors)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self.errors, False)
        process.returncode = 0  # From here on it's ours to wait for.
        self.pid: Final = process.pid
        self._pidfd = self._open()

    def _open(self) -> int:
        """Return a descriptor of the process (pidfd_open(2)), or -1 where there is none or it is lost already."""
        pidfd = -1
        with suppress(OSError, AttributeError):  # Not here, or denied: its number serves as well, unless others reap.
            pidfd = os.pidfd_open(self.pid)
        self._id = (os.P_PID, self.pid) if pidfd < 0 else (_P_PIDFD, pidfd)
        # Where others reap, the number may have gone to another process just now: one that is no child of ours, or
        # leads no group, isn't it. From here on the descriptor can't come to mean another one.
        self.ended()
        with suppress(ProcessLookupError):  # Reaped by somebody else since.
            self.lost = self.lost or os.getpgid(self.pid) != self.pid
        return _closed(pidfd) if self.lost else pidfd

    def ended(self) -> bool:
        """Tell whether it has ended, and note how; it isn't reaped."""
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
        """Have ``poll`` return when it ends."""
        if self._pidfd >= 0 and not self.ended():
            poll.register(self._pidfd, select.POLLIN)

    def listen(self) -> None:
        """Take what is there of stderr."""
        if self.errors < 0:
            return
        with suppress(BlockingIOError):
            for _ in range(_MOST_PIECES):
                piece = os.read(self.errors, _PIECE)
                if not piece:
                    self.errors = _closed(self.errors)
                    return
                self.tail = (self.tail + piece)[-_TAIL:]

    def complaint(self) -> str:
        """Return what is wrong with how it ended."""
        if self.lost:
            return self.quote(f"the exit status of {self.name} is unknown: {_LOST}")
        status = self.status or 0
        how = f"ended with status {status}" if status > 0 else f"was ended by {_signal_name(-status)}"
        return self.quote(f"{self.name} {how}")

    def quote(self, message: str) -> str:
        """Return a message with the last of stderr behind it, in which the program's arguments are masked."""
        said = self.tail.decode(errors="backslashreplace")
        said = masked(said, self._command, cut=len(self.tail) == _TAIL).strip()[-_TAIL:]
        return f"{message}: {said}" if said else message

    def kill(self) -> None:
        """Kill its process group, of which there may be something left when it has ended itself."""
        self.errors = _closed(self.errors)
        if self._pidfd >= 0:
            # Since Linux 6.9: the group, even where somebody else has reaped its head.
            for flags in (_GROUP, 0):
                with suppress(OSError, AttributeError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL, None, flags)
        self.status = None  # Asked for anew: is it there still, and its number its own?
        self.ended()
        if not self.lost:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self, until: float) -> bool:
        """Wait for its end until ``until`` of the monotonic clock, and leave no zombie; tell whether it has ended."""
        while not self.ended():
            if (left := until - time.monotonic()) <= 0:
                with suppress(RuntimeError):  # No thread to be had: it stays a zombie once it ends.
                    threading.Thread(target=self._reap, daemon=True, name=f"reaper of {self.name}").start()
                return False
            poll = select.poll()
            if self._pidfd >= 0:  # Readable also if it has ended just now: nothing can be missed.
                poll.register(self._pidfd, select.POLLIN)
            poll.poll(1000 * (left if self._pidfd >= 0 else min(left, _PATIENCE)))
        self._reap(os.WNOHANG)
        return True

    def _reap(self, flags: int = 0) -> None:
        with suppress(ChildProcessError):
            if not self.lost:
                os.waitid(*self._id, os.WEXITED | flags)
        self._pidfd = _closed(self._pidfd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Filters:
    """The programs that one file goes through.

    Attributes:
        stdin: the end that feeds the first; -1 once it is closed. It doesn't block.
        stdout: the end that empties the last. It doesn't block.
    """

    def __init__(self, commands: Commands, check: Callable[[], None]) -> None:
        """Start all of them; ``check`` is called in each wait, and may raise to end it.

        Raises:
            FilterError: one can't be started.
        """
        self.stdin = self.stdout = self._fed = -1
        self._check = check
        self._children: list[_Child] = []
        try:
            self._start(commands)
        except BaseException:
            self.kill()
            raise

    def _start(self, commands: Commands) -> None:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            raise FilterError(
                f"{commands[0][0]} isn't started: SIGCHLD is ignored in this process, its exit status would be lost",
                command=commands[0][0],
                hint="before the dump, call signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
            )
        for command in commands:
            try:
                self._add(command)
            except (OSError, ValueError) as error:  # ValueError: an argument that no system call takes.
                number = error.errno if isinstance(error, OSError) else None
                reason = describe_errno(number) if number else str(error)
                message = f"{command[0]} can't be started: {reason}"
                raise FilterError(message, command=command[0], errno=number) from error
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    def _add(self, command: tuple[str, ...]) -> None:
        """Start one more program, which is given what those before it give."""
        if self._children:
            reading, self.stdout = self.stdout, -1
        else:
            reading, self.stdin = _new_pipe()
        try:
            self.stdout, writing = _new_pipe()
            try:
                self._children.append(_Child(command, reading, writing))
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    @property
    def names(self) -> str:
        return " | ".join(child.name for child in self._children)

    def wait(self, *, feeding: bool, emptying: bool) -> None:
        """Wait until something can be done, some 50 ms at the most; note meanwhile what is said on stderr.

        Args:
            feeding: whether there is something to feed.
            emptying: whether there is something to come.
        """
        self._check()
        poll = select.poll()
        if feeding:
            poll.register(self.stdin, select.POLLOUT)
        if emptying:
            poll.register(self.stdout, select.POLLIN)
        for child in self._children:
            child.register(poll)
            if child.errors >= 0:
                poll.register(child.errors, select.POLLIN)
        poll.poll(_PATIENCE * 1000)
        for child in self._children:
            child.listen()

    def close_stdin(self) -> None:
        """Tell the first that this was all."""
        # A reading end, to see in the end whether something was left: what is small is fed before anyone takes it.
        with suppress(OSError):
            self._fed = os.open(f"/proc/self/fd/{self.stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdin = _closed(self.stdin)

    def ended(self) -> bool:
        """Tell whether all have ended by themselves."""
        return all(child.ended() for child in self._children)

    def complaint(self) -> FilterError | None:
        """Return the error of the one that failed, once all have ended; the cause rather than what follows from it."""
        for child in self._children:
            child.listen()
        failed = [child for child in self._children if child.status != 0]
        # One that was writing when the next one died has died of SIGPIPE: it isn't to blame.
        causes = [child for child in failed if child.status != -signal.SIGPIPE] or failed
        if not causes:
            return self._closed_early() if self._fed >= 0 and _waiting_in(self._fed) else None
        first = causes[0]
        return FilterError(first.complaint(), command=first.name, status=first.status, operation="filter")

    def closed_early(self) -> FilterError:
        """Return the error for a first program that takes no more though there is more."""
        deadline = time.monotonic() + 1
        while not self.ended() and time.monotonic() < deadline:
            self.wait(feeding=False, emptying=False)
        return (self.complaint() if self.ended() else None) or self._closed_early()

    def _closed_early(self) -> FilterError:
        first = self._children[0]
        message = first.quote(f"{first.name} closed its input before the end of it")
        return FilterError(message, command=first.name, status=first.status, operation="filter", errno=errno.EPIPE)

    def stuck(self, seconds: float) -> FilterError:
        """Return the error for programs that neither take nor give nor end."""
        message = f"{self.names} took nothing and gave nothing for {seconds:g} s"
        hint = "if the filter needs longer, raise timeout"
        return FilterError(message, command=self.names, operation="filter", errno=errno.ETIMEDOUT, hint=hint)

    def kill(self) -> list[str]:
        """End what still runs, and all that it has started; leave no zombie and no descriptor.

        Returns:
            The programs that didn't die, and how they are called: a process in the middle of a call to a device or to a
            filesystem that doesn't answer can't be killed. Nothing waits for them any longer.
        """
        for child in self._children:
            child.kill()
        self.stdin, self.stdout, self._fed = _closed(self.stdin), _closed(self.stdout), _closed(self._fed)
        until = time.monotonic() + _LAST_WAIT
        children, self._children = self._children, []
        return [f"{child.name} (process {child.pid})" for child in children if not child.reap(until)]


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1


def _waiting_in(pipe: int) -> int:
    """Return how many bytes a pipe holds (ioctl_pipe(2), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _new_pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    grow_pipe(writing)
    return reading, writing
