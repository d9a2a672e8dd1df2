"""Filters: programs joined by pipes, started without a shell; however a run ends, nothing of them is left."""

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
"""Seconds that programs may take to die of SIGKILL. One that waits for a device or a frozen filesystem never does."""


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
        self._children: list[Program] = []
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
        """Start one more program, which reads the output of the one before it."""
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
        """Wait until something can be done, about 50 ms at most; read stderr meanwhile.

        Args:
            feeding: whether there is input left for the first program.
            emptying: whether output of the last one is still to come.
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
        # Keep a reading end, to see at the end whether something was left: a small input is written before it is read.
        with suppress(OSError):
            self._fed = os.open(f"/proc/self/fd/{self.stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdin = closed(self.stdin)

    def ended(self) -> bool:
        """Return whether all have ended on their own."""
        return all(child.ended() for child in self._children)

    def complaint(self) -> FilterError | None:
        """Return the error of the program that failed, once all have ended: the cause rather than its consequences."""
        for child in self._children:
            child.listen()
        failed = [child for child in self._children if child.status != 0]
        # A program that was writing when the next one died has died of SIGPIPE: it is not the cause.
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
        message = first.quote(f"{first.name} closed its input before the end of it")
        return FilterError(message, command=first.name, status=first.status, operation="filter", errno=errno.EPIPE)

    def stuck(self, seconds: float) -> FilterError:
        """Return the error for programs that neither read nor write nor end."""
        message = f"{self.names} took nothing and gave nothing for {seconds:g} s"
        hint = "if the filter needs longer, raise timeout"
        return FilterError(message, command=self.names, operation="filter", errno=errno.ETIMEDOUT, hint=hint)

    def kill(self) -> list[str]:
        """Kill what still runs, and all that it has started; leave no zombie and no descriptor.

        Returns:
            The names of programs that didn't die, with their process ids: a process in a call to a device or a
            filesystem that doesn't answer can't be killed. Nothing waits for them any longer.
        """
        for child in self._children:
            child.kill()
        self.stdin, self.stdout, self._fed = closed(self.stdin), closed(self.stdout), closed(self._fed)
        until = time.monotonic() + _LAST_WAIT
        children, self._children = self._children, []
        return [f"{child.name} (process {child.pid})" for child in children if not child.reap(until)]


def _waiting_in(pipe: int) -> int:
    """Return how many bytes a pipe holds (ioctl_pipe(2), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _new_pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    grow_pipe(writing)
    return reading, writing
