"""Standard output and standard error, whatever has become of them and whoever reads them.

Nothing that is printed ends a dump, and nothing that is printed while one is under way waits for its reader: what isn't
taken at once is kept, and where that is too much, whole pieces are left out. Before and after, a reader is waited for
as long as it likes, and a signal ends that (`hurry`, `asyncdump.cli.signals.end`).
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
"""Bytes that wait for a reader who isn't waited for; the pipe itself holds 64 KiB more."""

_PIECE: Final = 64 << 10
_GRACE: Final = 0.5
"""Seconds that are left to a reader to take the rest, once a signal has come."""


class _Patience:
    """Whether readers are waited for.

    Attributes:
        dumping: whether bytes are being moved that no reader may hold up.
        signal: the one that came, or None: from then on nobody is waited for.
        since: when it came.
    """

    dumping: bool = False
    signal: Signals | None = None
    since: float = 0.0

    @property
    def lasts(self) -> bool:
        alone = threading.current_thread() is threading.main_thread()  # Signals end the waiting of no other thread.
        return alone and not self.dumping and self.signal is None


_patience: Final = _Patience()


class Way(io.RawIOBase):
    """The way of what is printed to one open file: in order, no line torn.

    Attributes:
        error: why a write failed, or None; from then on all that is printed goes nowhere.
    """

    def __init__(self, fd: int, *, remarks: bool) -> None:
        """Make the way to ``fd``; with ``remarks``, a line tells how many were left out."""
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
        """Write all of ``data``, keep it, or leave it out; never a part of it."""
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
                self._kept += f"asyncdump: {self._left_out} lines were left out: nobody read them\n".encode()
            self._left_out = 0
            self._kept += piece
            self.push()
            self._wait_while_patient(0)
        return len(piece)

    def push(self) -> bool:
        """Write what the reader takes at once; return whether anything is left."""
        with self._turn:
            try:
                while self._kept:
                    # Taken out before: a signal's handler may print, too, or raise.
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
        """Return the descriptor that is written to, opened when it is needed first."""
        if self._own is None:
            self._own = not_waiting(self._fd)
            if self._own is None:
                from asyncdump.errors import DumpError

                try:
                    self._relay = Relay(self._fd)
                except DumpError as error:  # Nothing that is printed ends a dump.
                    raise OSError(error.errno or errno.EAGAIN, str(error)) from error
                self._own = self._relay.fd
        return self._own

    def _wait_while_patient(self, most: int) -> None:
        """Wait until no more than ``most`` bytes are kept, or nobody is waited for any more."""
        while len(self._kept) > max(most, 0) and _patience.lasts:
            wait_for_room(self._open())
            self.push()

    def finish(self) -> bool:
        """Write what is left, and wait until the reader has it, as long as one is waited for; return whether it has."""
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
        """Write a line from a signal's handler, if that can be done at once: in the middle of another it can't."""
        if self._turn.acquire(blocking=False):
            if not self._kept and self.error is None:
                self._kept += line.encode()
                self.push()
                if self._relay is not None:
                    time.sleep(PATIENCE)
            self._turn.release()


class Output(io.TextIOWrapper):
    """A standard stream. Once a write has failed, that and all that is printed later goes nowhere.

    Attributes:
        way: where what is printed goes.
        reader_may_go: whether the command did its work even if nobody has read what it says.
    """

    reader_may_go: bool = False

    def __init__(self, way: Way, encoding: str | None, *, prompt: bool) -> None:
        super().__init__(way, encoding=encoding, errors="backslashreplace", line_buffering=prompt)
        self.way: Final = way

    def verdict(self, code: int) -> int:
        """Write what is left, say if that failed, and return the exit code: not 0 for output that nobody got."""
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
    """Put streams that can't fail in the place of ``sys.stdout`` and ``sys.stderr``; return the former."""
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            # A dump that got the free number would have messages printed into it. To read from 0 and to write to 1
            # fails as it does on what is closed, for these are open for the opposite.
            os.set_inheritable(os.open(os.devnull, flags), True)  # noqa: FBT003 (it takes no keywords)
    way = Way(_STDERR, remarks=True)
    # Two ways to one pipe would tear each other's lines.
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
    """Wait for no reader in the block: what is printed there is told beside work that must not stand still."""
    _patience.dumping = True
    try:
        yield
    finally:
        _patience.dumping = False


def hurry(number: Signals) -> None:
    """Wait for no reader any more: a signal has come."""
    if _patience.signal is None:
        _patience.signal, _patience.since = number, time.monotonic()


def hurried() -> float | None:
    """Return the time since the first signal, in seconds, or None if none has come."""
    return None if _patience.signal is None else time.monotonic() - _patience.since


def behind(stream: Any) -> bool:
    """Tell whether something printed to a stream waits for its reader, and that is waited for."""
    return isinstance(stream, Output) and _patience.signal is None and stream.way.push()


def last_words(line: str) -> None:
    """Print a line to standard error from a signal's handler, or not, without waiting."""
    if isinstance(sys.stderr, Output):
        sys.stderr.way.last_words(line)


def check_stdout() -> None:
    """Raise `DumpError` if standard output can't be written to: to open it anew would be to write to nobody."""
    if fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        from asyncdump.errors import from_oserror

        raise from_oserror(OSError(errno.EBADF, os.strerror(errno.EBADF)), "write", "standard output")


def excuse_reader() -> None:
    """Let the reader of standard output go away without that being a failure."""
    if isinstance(sys.stdout, Output):
        sys.stdout.reader_may_go = True
