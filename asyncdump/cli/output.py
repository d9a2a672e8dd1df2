"""Standard output and standard error, even if they are closed or full, or their reader stalls.

Printing never fails a dump, and while files are dumped it never waits for a reader: output that the reader doesn't
accept immediately is buffered, and if the buffer is full, whole pieces are dropped. Before and after that, printing
waits for the reader without a limit, until a signal arrives (`hurry`, `asyncdump.cli.signals.end`).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import TYPE_CHECKING, Any, Final

from asyncdump.kernel.relay import PATIENCE, Relay, not_waiting, wait_for_room

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT: Final = 1
_STDERR: Final = 2
_MOST: Final = 256 << 10
"""Bytes that are buffered for a reader that isn't waited for, in addition to the 64 KiB in the pipe itself."""

_PIECE: Final = 64 << 10
_GRACE: Final = 0.5
"""Seconds that a reader has to read the rest after a signal has arrived."""


class _Patience:
    """Whether printing waits for readers.

    Attributes:
        dumping: whether files are being dumped, which no reader may hold up.
        signal: the first signal, or None. After a signal, printing doesn't wait.
        since: when the signal arrived, on the monotonic clock.
    """

    dumping: bool = False
    signal: Signals | None = None
    since: float = 0.0

    @property
    def lasts(self) -> bool:
        alone = threading.current_thread() is threading.main_thread()  # A signal can't interrupt any other thread.
        return alone and not self.dumping and self.signal is None


_patience: Final = _Patience()


class Way(io.RawIOBase):
    """The path of printed text to one open file: in order, and without torn lines.

    `_turn` is reentrant, because a signal handler may print while its thread is inside a method of this class.

    Attributes:
        error: why a write failed, or None. After a failure, everything that is printed is discarded.
    """

    def __init__(self, fd: int, *, remarks: bool) -> None:
        """Write to ``fd``; with ``remarks``, a line reports how many lines were dropped."""
        super().__init__()
        self.name: Final = fd
        self.error: OSError | None = None
        self._fd: Final = fd
        self._remarks = remarks and not os.isatty(fd)
        self._own: int | None = None
        self._relay: Relay | None = None
        self._kept = bytearray()
        self._left_out = 0
        self._turn = threading.RLock()

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``, buffer it, or drop it; never only a part of it."""
        piece = bytes(data)
        with self._turn:
            if self.error is not None:
                return len(piece)
            if self._kept and len(self._kept) + len(piece) > _MOST:
                self.push()
                self._wait_while_patient(_MOST - len(piece))
            if self._kept and len(self._kept) + len(piece) > _MOST:
                self._left_out += piece.count(b"\n")
                return len(piece)
            if self._left_out and self._remarks:
                self._kept += f"asyncdump: {self._left_out} lines were dropped: nothing read them\n".encode()
            self._left_out = 0
            self._kept += piece
            self.push()
            self._wait_while_patient(0)
        return len(piece)

    def push(self) -> bool:
        """Write what the reader accepts immediately; return whether anything is left."""
        with self._turn:
            try:
                while self._kept:
                    # Removed before the write: a signal handler may print too, or raise.
                    piece = bytes(self._kept[:_PIECE])
                    del self._kept[:_PIECE]
                    try:
                        done = os.write(self._open(), piece)
                    except BlockingIOError:
                        done = 0
                    self._kept[:0] = piece[done:]
                    if done == 0:
                        return True
            except OSError as error:
                self.error = (self._relay and self._relay.error) or error
                self._kept.clear()
        return False

    def _open(self) -> int:
        """Return the descriptor to write to; it is opened on the first call."""
        if self._own is None:
            self._own = not_waiting(self._fd)
            if self._own is None:
                from asyncdump.errors import DumpError

                try:
                    self._relay = Relay(self._fd)
                except DumpError as error:  # An OSError only sets `error`: printing never fails a dump.
                    raise OSError(error.errno or errno.EAGAIN, str(error)) from error
                self._own = self._relay.fd
        return self._own

    def _wait_while_patient(self, most: int) -> None:
        """Wait until at most ``most`` bytes are buffered, as long as waiting is allowed (`_Patience.lasts`)."""
        while len(self._kept) > max(most, 0) and _patience.lasts:
            wait_for_room(self._open())
            self.push()

    def finish(self) -> bool:
        """Write what is left and wait for the reader, briefly after a signal; return whether it got everything."""
        deadline = max(_patience.since + _GRACE, time.monotonic() + PATIENCE)
        with self._turn:
            while self.push() and (_patience.signal is None or time.monotonic() < deadline):
                wait_for_room(self._open())
            if self._relay is not None:

                def check() -> None:
                    if _patience.signal is not None and time.monotonic() >= deadline:
                        raise BlockingIOError

                try:
                    self._relay.finish(check)
                except BlockingIOError:
                    return False
                except OSError as error:
                    self.error = self.error or error
            return not self._kept

    def last_words(self, line: str) -> None:
        """Write a line from a signal handler, unless another thread is writing, or buffered output would come first."""
        if self._turn.acquire(blocking=False):
            if not self._kept and self.error is None:
                self._kept += line.encode()
                self.push()
                if self._relay is not None:
                    time.sleep(PATIENCE)
            self._turn.release()


class Output(io.TextIOWrapper):
    """A standard stream that never raises: after a failed write, all later output is discarded.

    Attributes:
        way: where the output goes.
        reader_may_go: whether the command succeeds even if the reader of its output has gone (EPIPE).
    """

    reader_may_go: bool = False

    def __init__(self, way: Way, encoding: str | None, *, prompt: bool) -> None:
        super().__init__(way, encoding=encoding, errors="backslashreplace", line_buffering=prompt)
        self.way: Final = way

    def verdict(self, code: int) -> int:
        """Write what is left, report a failure, and return the exit code: not 0 if output was lost."""
        self.flush()
        taken = self.way.finish()
        error = self.way.error
        if error is not None and not (error.errno == errno.EPIPE and self.reader_may_go):
            code = code or 1
            if error.errno != errno.EPIPE:
                from asyncdump.errors import from_oserror

                print(f"asyncdump: {from_oserror(error, 'write', 'standard output')}", file=sys.stderr)
        sys.stderr.flush()
        if isinstance(sys.stderr, Output):
            taken = sys.stderr.way.finish() and taken
        return code if taken or _patience.signal is None else code or 128 + _patience.signal


def take_over() -> Output:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that can't fail; return the new stdout."""
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            # A dump that got the free number would have messages printed into it. The descriptors are opened for the
            # opposite direction, so that reading from 0 and writing to 1 still fails with EBADF as if they were closed.
            os.set_inheritable(os.open(os.devnull, flags), True)  # noqa: FBT003 (it takes no keywords)
    way = Way(_STDERR, remarks=True)
    # Two buffers for one pipe would tear each other's lines.
    other = way if _is_same_pipe(_STDOUT, _STDERR) else Way(_STDOUT, remarks=False)
    stdout = Output(other, getattr(sys.stdout, "encoding", None), prompt=os.isatty(_STDOUT))
    sys.stdout, sys.stderr = stdout, Output(way, getattr(sys.stderr, "encoding", None), prompt=True)
    return stdout


def _is_same_pipe(fd: int, other: int) -> bool:
    one, two = os.fstat(fd), os.fstat(other)
    read = stat.S_ISFIFO(one.st_mode) or stat.S_ISSOCK(one.st_mode) or os.isatty(fd)
    return read and (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


@contextmanager
def dumping() -> Iterator[None]:
    """Don't wait for readers within the block, where files are dumped: that work must not stall."""
    _patience.dumping = True
    try:
        yield
    finally:
        _patience.dumping = False


def hurry(number: Signals) -> None:
    """Stop waiting for readers, because a signal has arrived."""
    if _patience.signal is None:
        _patience.signal, _patience.since = number, time.monotonic()


def hurried() -> float | None:
    """Return the seconds since the first signal, or None if there was none."""
    return None if _patience.signal is None else time.monotonic() - _patience.since


def behind(stream: Any) -> bool:
    """Return whether output to a stream is still buffered for its reader; always False after a signal."""
    return isinstance(stream, Output) and _patience.signal is None and stream.way.push()


def last_words(line: str) -> None:
    """Print a line on standard error from a signal handler if that is possible without waiting."""
    if isinstance(sys.stderr, Output):
        sys.stderr.way.last_words(line)


def check_stdout() -> None:
    """Raise `DumpError` if standard output isn't open for writing.

    A descriptor that is opened again for the dump would accept writes that no one reads.
    """
    if fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        from asyncdump.errors import from_oserror

        raise from_oserror(OSError(errno.EBADF, os.strerror(errno.EBADF)), "write", "standard output")


def excuse_reader() -> None:
    """Don't treat it as a failure if the reader of standard output goes away."""
    if isinstance(sys.stdout, Output):
        sys.stdout.reader_may_go = True
