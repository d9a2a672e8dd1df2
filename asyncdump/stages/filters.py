"""Filters: programs joined by pipes, started without a shell, of which nothing is left whatever happens."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Final

from asyncdump.errors import FilterError, describe_errno
from asyncdump.lane import grow_pipe
from asyncdump.relay import wait_for_room

Commands = tuple[tuple[str, ...], ...]

PATIENCE: Final = 0.05
"""Seconds after which whoever waits looks whether the run goes on."""

_GULPS: Final = 16
_TAIL: Final = 2000


class _Child:
    """One program: its process, and the last of what it says on stderr."""

    def __init__(self, command: tuple[str, ...], stdin: int, stdout: int) -> None:
        self.name: Final = os.path.basename(command[0])
        self.tail = b""
        self.errors, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            # A group of its own: Ctrl-C is for us to act upon, and what a filter starts in turn ends with it.
            self.process: Final = subprocess.Popen(  # noqa: S603 (the user's own, allowed by --allow-filters)
                command, stdin=stdin, stdout=stdout, stderr=theirs, process_group=0
            )
        except BaseException:
            os.close(self.errors)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self.errors, False)

    def listen(self) -> bool:
        """Take what is there of stderr; return False at its end."""
        try:
            for _ in range(_GULPS):  # One that never falls silent isn't waited for.
                piece = os.read(self.errors, 1 << 16)
                if not piece:
                    return False
                self.tail = (self.tail + piece)[-_TAIL:]
        except BlockingIOError:
            pass
        return True

    def complaint(self) -> str:
        """Return what is wrong with how it ended, or an empty string."""
        status = self.process.returncode
        if status == 0:
            return ""
        how = f"ended with status {status}" if status > 0 else f"was ended by {_signal_name(-status)}"
        return self.quote(f"{self.name} {how}")

    def quote(self, message: str) -> str:
        """Return a message with the last of stderr behind it."""
        said = self.tail.decode(errors="backslashreplace").strip()
        return f"{message}: {said}" if said else message


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

    def __init__(self, commands: Commands) -> None:
        """Start all of them.

        Raises:
            FilterError: one can't be started.
        """
        self.stdin = self.stdout = -1
        self._children: list[_Child] = []
        try:
            self._start(commands)
        except BaseException:
            self.kill()
            raise

    def _start(self, commands: Commands) -> None:
        reading, self.stdin = _new_pipe()
        for command in commands:
            try:
                self.stdout, writing = _new_pipe()
                try:
                    self._children.append(_Child(command, reading, writing))
                finally:
                    os.close(writing)
            except OSError as error:
                reason = describe_errno(error.errno or 0)
                raise FilterError(f"{command[0]} can't be started: {reason}", command=command[0]) from error
            finally:
                os.close(reading)
            reading = self.stdout
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    @property
    def names(self) -> str:
        return " | ".join(child.name for child in self._children)

    def wait(self, *, feeding: bool, emptying: int | None) -> None:
        """Wait until something can be done, some 50 ms at the most; note meanwhile what is said on stderr.

        Args:
            feeding: whether there is something to feed.
            emptying: None if nothing waits to be emptied; the descriptor that must take it, or -1 where that is a file.
        """
        poll = select.poll()
        if feeding:
            poll.register(self.stdin, select.POLLOUT)
        if emptying is not None:
            poll.register(self.stdout, select.POLLIN)
        talking = {child.errors: child for child in self._children if child.errors >= 0}
        for fd in talking:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(PATIENCE * 1000):
            if fd in talking and not talking[fd].listen():
                os.close(fd)
                talking[fd].errors = -1
            elif fd == self.stdout and emptying is not None and emptying >= 0:
                wait_for_room(emptying, PATIENCE)

    def close_stdin(self) -> None:
        """Tell the first that this was all."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def ended(self) -> bool:
        """Tell whether all have ended by themselves."""
        return None not in [child.process.poll() for child in self._children]

    def complaint(self) -> FilterError | None:
        """Return the error of the one that failed, once all have ended; the cause rather than what follows from it."""
        for child in self._children:
            child.listen() if child.errors >= 0 else None
        failed = [child for child in self._children if child.process.returncode]
        # One that was writing when the next one died has died of SIGPIPE: it isn't to blame.
        causes = [child for child in failed if child.process.returncode != -signal.SIGPIPE] or failed
        if not causes:
            return None
        return FilterError(
            causes[0].complaint(), command=causes[0].name, status=causes[0].process.returncode, operation="filter"
        )

    def closed_early(self) -> FilterError:
        """Return the error for a first program that takes no more though there is more."""
        deadline = time.monotonic() + 1
        while not self.ended() and time.monotonic() < deadline:
            self.wait(feeding=False, emptying=None)
        self.kill()
        first = self._children[0]
        message = first.quote(f"{first.name} closed its input before the end of it")
        if self._children[0].process.returncode == -signal.SIGKILL or (found := self.complaint()) is None:
            return FilterError(message, command=first.name, status=0, operation="filter", errno=errno.EPIPE)
        return found

    def stuck(self, seconds: float) -> FilterError:
        """Return the error for programs that neither take nor give nor end."""
        self.kill()
        message = f"{self.names} took nothing and gave nothing for {seconds:g} s"
        hint = "if the filter needs longer, raise timeout"
        return FilterError(message, command=self.names, operation="filter", errno=errno.ETIMEDOUT, hint=hint)

    def kill(self) -> None:
        """End what still runs, and all that it has started; leave no zombie and no descriptor."""
        for child in self._children:
            if child.process.poll() is None or child.errors >= 0:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            if child.errors >= 0:
                child.listen()
                os.close(child.errors)
                child.errors = -1
        self.close_stdin()
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1


def _new_pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    grow_pipe(writing)
    return reading, writing
