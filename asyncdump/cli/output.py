"""Standard output and standard error, whatever has become of them: nothing that is printed ends a dump."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys
from typing import Final

_STDOUT: Final = 1
_STDERR: Final = 2


class Output(io.TextIOWrapper):
    """A standard stream. Once a write has failed, that and all that is printed later goes nowhere.

    Attributes:
        error: why a write failed, or None.
        reader_may_go: whether the command did its work even if nobody has read what it says.
    """

    error: OSError | None = None
    reader_may_go: bool = False

    def __init__(self, fd: int, encoding: str | None) -> None:
        buffer = open(fd, "wb", closefd=False)  # noqa: SIM115 (open as long as the process is)
        prompt = fd == _STDERR or os.isatty(fd)
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", line_buffering=prompt)

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)
            super().flush()

    def _lose(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)

    def verdict(self, code: int) -> int:
        """Write what is left, say if that failed, and return the exit code: not 0 for output that nobody got."""
        self.flush()
        if self.error is None or (self.error.errno == errno.EPIPE and self.reader_may_go):
            return code
        if self.error.errno != errno.EPIPE:
            from asyncdump.errors import from_oserror

            print(f"asyncdump: {from_oserror(self.error, 'write', 'standard output')}", file=sys.stderr)
        return code or 1


def take_over() -> Output:
    """Put streams that can't fail in the place of ``sys.stdout`` and ``sys.stderr``; return the former."""
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            # A dump that got the free number would have messages printed into it. To read from 0 and to write to 1
            # fails as it does on what is closed, for these are open for the opposite.
            os.set_inheritable(os.open(os.devnull, flags), True)  # noqa: FBT003 (it takes no keywords)
    stdout = Output(_STDOUT, getattr(sys.stdout, "encoding", None))
    sys.stdout, sys.stderr = stdout, Output(_STDERR, getattr(sys.stderr, "encoding", None))
    return stdout


def check_stdout() -> None:
    """Raise `DumpError` if standard output can't be written to: to open it anew would be to write to nobody."""
    if fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        from asyncdump.errors import from_oserror

        raise from_oserror(OSError(errno.EBADF, os.strerror(errno.EBADF)), "write", "standard output")


def excuse_reader() -> None:
    """Let the reader of standard output go away without that being a failure."""
    if isinstance(sys.stdout, Output):
        sys.stdout.reader_may_go = True
