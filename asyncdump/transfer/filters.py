"""Filters: programs connected by pipes, started without a shell. Nothing of them is left, however a run ends."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asyncdump.errors import FilterError, describe_errno
from asyncdump.kernel.lane import grow_pipe
from asyncdump.transfer.program import Program, closed

Commands = tuple[tuple[str, ...], ...]

_PATIENCE: Final = 0.05
"""Seconds after which a waiting thread checks whether the run continues."""

_LAST_WAIT: Final = 3.0
"""Seconds that programs may take to exit after SIGKILL. One that waits for a device or a frozen filesystem won't."""


class Filters:
    """The programs that one file goes through.

    Attributes:
        stdin: the pipe to the first program, non-blocking; -1 after it was closed.
        stdout: the pipe from the last program, non-blocking.
    """

    def __init__(self, commands: Commands, check: Callable[[], None]) -> None:
        """Start all programs; ``check`` is called during each wait, and may raise.

        Raises:
            FilterError: a program can't be started.
        """
        self.stdin = self.stdout = self._fed = -1
        self._check = check
        self._children: list[Program] = []
        try:
            self._start(commands)
        except BaseException:
            self.kill()
            raise

    def _start(self, commands: Commands) -> None:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            raise FilterError(
                f"{commands[0][0]} was not started: this process ignores SIGCHLD, so the exit status would be lost",
                command=commands[0][0],
                hint="before the dump, call signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
            )
        for command in commands:
            try:
                self._add(command)
            except (OSError, ValueError) as error:  # ValueError: an argument with a NUL character.
                number = error.errno if isinstance(error, OSError) else None
                reason = describe_errno(number) if number else str(error)
                message = f"{command[0]} can't be started: {reason}"
                raise FilterError(message, command=command[0], errno=number) from error
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    def _add(self, command: tuple[str, ...]) -> None:
        """Start one more program, which reads the output of the previous one."""
        if self._children:
            reading, self.stdout = self.stdout, -1
        else:
            reading, self.stdin = _new_pipe()
        try:
            self.stdout, writing = _new_pipe()
            try:
                self._children.append(Program(command, reading, writing))
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    @property
    def names(self) -> str:
        return " | ".join(child.name for child in self._children)

    def wait(self, *, feeding: bool, emptying: bool) -> None:
        """Wait until something can be done, at most about 50 ms; read stderr meanwhile.

        Args:
            feeding: whether there is input left for the first program.
            emptying: whether more output of the last program is expected.
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
        """Close the input of the first program."""
        # Keep a read end, to see later whether something was left in the pipe: a small input is written before any of
        # it is read.
        with suppress(OSError):
            self._fed = os.open(f"/proc/self/fd/{self.stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdin = closed(self.stdin)

    def ended(self) -> bool:
        """Return whether all programs have exited on their own."""
        return all(child.ended() for child in self._children)

    def complaint(self) -> FilterError | None:
        """Return the error of the program that failed, after all have exited: the cause, not its consequences."""
        for child in self._children:
            child.listen()
        failed = [child for child in self._children if child.status != 0]
        # A program that died of SIGPIPE was writing to one that died before: it isn't the cause.
        causes = [child for child in failed if child.status != -signal.SIGPIPE] or failed
        if not causes:
            return self._closed_early() if self._fed >= 0 and _waiting_in(self._fed) else None
        first = causes[0]
        return FilterError(first.complaint(), command=first.name, status=first.status, operation="filter")

    def closed_early(self) -> FilterError:
        """Return the error for a first program that closed its input early."""
        deadline = time.monotonic() + 1
        while not self.ended() and time.monotonic() < deadline:
            self.wait(feeding=False, emptying=False)
        return (self.complaint() if self.ended() else None) or self._closed_early()

    def _closed_early(self) -> FilterError:
        first = self._children[0]
        message = first.quote(f"{first.name} closed its input before the end")
        return FilterError(message, command=first.name, status=first.status, operation="filter", errno=errno.EPIPE)

    def stuck(self, seconds: float) -> FilterError:
        """Return the error for programs that neither read nor write nor exit."""
        message = f"{self.names} read and wrote nothing for {seconds:g} s"
        hint = "if the filter needs longer, raise timeout"
        return FilterError(message, command=self.names, operation="filter", errno=errno.ETIMEDOUT, hint=hint)

    def kill(self) -> list[str]:
        """Kill the programs that still run, and all their children; leave no zombie and no descriptor.

        Returns:
            The names and PIDs of programs that didn't exit: a process in a call to a device or a filesystem that
            doesn't respond can't be killed. Nothing waits for them any longer.
        """
        for child in self._children:
            child.kill()
        self.stdin, self.stdout, self._fed = closed(self.stdin), closed(self.stdout), closed(self._fed)
        until = time.monotonic() + _LAST_WAIT
        children, self._children = self._children, []
        return [f"{child.name} (process {child.pid})" for child in children if not child.reap(until)]


def _waiting_in(pipe: int) -> int:
    """Return how many bytes are in a pipe (ioctl_pipe(2), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _new_pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    grow_pipe(writing)
    return reading, writing
