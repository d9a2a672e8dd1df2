"""Standard output in the place of an output folder: one dump, written behind one another, to whoever reads it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.lane import grow_pipe
from asyncdump.kernel.linux import some
from asyncdump.kernel.relay import Relay, not_waiting, wait_for_room
from asyncdump.sinks.file import Sink
from asyncdump.sinks.place import Synced


class PipeSink(Sink):
    """Standard output, or another descriptor that takes bytes one behind the other. It is never waited for in a call.

    Attributes:
        fd: doesn't block.
    """

    sequential: ClassVar[bool] = True

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        own = not_waiting(fd)
        self._relay: Relay | None = None
        if own is None:
            self._relay = Relay(fd)
            own = self._relay.fd
        super().__init__(own, "standard output", direct=False)
        if stat.S_ISFIFO(os.fstat(own).st_mode):
            grow_pipe(own)
        self._check = check

    def resize(self, size: int) -> None:
        """Nothing: it has no size."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` behind what was written before.

        Raises:
            BrokenPipeError: the reader has gone.
        """
        assert offset == self.stored
        while data:
            try:
                done = some(os.write(self.fd, data))
            except BlockingIOError:
                self.wait()
                continue
            except BrokenPipeError as error:
                if self._relay is not None and self._relay.error is not None:
                    raise self._relay.error from error  # Its pipe is broken because of that.
                raise
            data = data[done:]
            self._count(done)

    def wait(self) -> None:
        """Wait until it takes more, and look whether the run goes on."""
        self._check()
        wait_for_room(self.fd)

    def finish(self) -> DumpError | None:
        """Close it, once all was handed to the reader's side; return the error, if any."""
        try:
            with explain("write", self.path):
                if self._relay is not None:
                    self._relay.finish(self._check)
        except DumpError as error:
            return error
        finally:
            self.close()
        return None

    def close(self) -> None:
        if self._relay is not None:
            self._relay.abandon()
            self.fd = -1
        super().close()


class Outlet:
    """Stands for the output folder where a run has none: its one dump goes to standard output."""

    path: Final = "-"
    filesystem: Final = "pipe"
    sequential: Final = True

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        self.fd: Final = fd
        self._check = check

    def create(self, name: str) -> PipeSink:
        """Return the sink.

        Raises:
            DumpError: standard output is closed.
        """
        with explain("open", "standard output"):
            return PipeSink(self.fd, self._check)

    def publish(
        self, sinks: Sequence[PipeSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Close the sink: it has been read, or will be."""
        return [sink.finish() or sink.lost for sink in sinks]

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Nothing: there is no place for a receipt."""

    def close(self) -> None:
        """Nothing: standard output stays open."""
