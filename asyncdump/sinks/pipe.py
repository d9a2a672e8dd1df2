"""Standard output instead of an output directory: one dump, written in order to the reader of a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.lane import grow_pipe
from asyncdump.kernel.linux import some
from asyncdump.kernel.relay import Relay, not_waiting, wait_for_room
from asyncdump.sinks.place import PlacedSink, Synced
from asyncdump.sinks.plain import PlainSink


class PipeSink(PlainSink):
    """Standard output, or another descriptor that takes bytes in order. No system call on it waits for its reader.

    Attributes:
        fd: a non-blocking descriptor: a write to a full pipe fails with EAGAIN.
    """

    sequential = True
    most_lanes = 1

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        """``check`` is called while a write waits for the reader, and may raise."""
        super().__init__("standard output")
        own = not_waiting(fd)
        self._relay: Relay | None = None
        if own is None:
            self._relay = Relay(fd)
            own = self._relay.fd
        self.fd = own
        if stat.S_ISFIFO(os.fstat(own).st_mode):
            grow_pipe(own)
        self._check = check

    def write(self, data: memoryview, offset: int) -> None:
        """Append all of ``data``.

        Raises:
            BrokenPipeError: the reader has closed the pipe.
        """
        assert offset == self.stored
        assert self.fd is not None
        while data:
            try:
                done = some(os.write(self.fd, data))
            except BlockingIOError:
                self._check()
                wait_for_room(self.fd)
                continue
            except BrokenPipeError as error:
                if self._relay is not None and self._relay.error is not None:
                    raise self._relay.error from error  # The cause: the relay has closed its pipe after this error.
                raise
            data = data[done:]
            self._count(done)

    def sync(self) -> DumpError | None:
        """Wait until the relay, if there is one, has written everything; return the error, if any."""
        try:
            with explain("write", self.path):
                if self._relay is not None:
                    self._relay.finish(self._check)
        except DumpError as error:
            return error
        return self.lost

    def close(self) -> None:
        fd, self.fd = self.fd, None
        if self._relay is not None:
            self._relay.abandon()
        elif fd is not None:
            try:
                os.close(fd)
            except OSError as error:
                self.lose(error, "close")


class StdoutPlace:
    """Standard output, for a run of one dump."""

    path: ClassVar[str] = "-"
    filesystem: ClassVar[str] = "pipe"
    streams: ClassVar[bool] = True

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        self.fd: Final = fd
        self._check = check

    def create(self, name: str) -> PlacedSink:
        """Return the sink.

        Raises:
            DumpError: standard output is closed.
        """
        with explain("open", "standard output"):
            return PipeSink(self.fd, self._check)

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Close the sinks after everything was written to the pipe."""
        errors = []
        for sink in sinks:
            failure = sink.sync()
            sink.close()
            errors.append(failure or sink.lost)
        return errors

    def close(self) -> None:
        """Do nothing: standard output stays open."""
