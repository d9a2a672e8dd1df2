"""The exceptions of asyncdump: one root, and one subclass for each decision that a caller may take."""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, Literal

import msgspec

from asyncdump.spelling import spelled
from asyncdump.text import text

Verdict = Literal["ok", "corrupt", "short", "missing", "differs", "unknown"]


class AsyncdumpError(Exception):
    """The root of all errors of this package.

    Its text is safe to print and log, regardless of the names in it; ``path`` contains the exact name. It can be copied
    and pickled, with the attributes of all subclasses.

    Attributes:
        path: the file that the failing call was about, or an empty string.
        operation: the call that failed, as its man page names it, or an empty string.
        errno: the errno of that call, or None if no call failed.
        exit_code: the exit code of the command line if this error stops it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, *lines: str, path: str = "", operation: str = "", errno: int | None = None, hint: str = ""
    ) -> None:
        super().__init__("\n".join(map(text, lines)))
        self.path = path
        self.operation = operation
        self.errno = errno
        self._hint = text(hint)

    @property
    def hint(self) -> str:
        """What to do about it, or an empty string. Options are spelled as in the current interface."""
        return spelled(self._hint)

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint = text(hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception.__reduce__ calls the class with `args` only, which lacks the keyword arguments.
        return _remake, (type(self), self.args), self.__dict__


def _remake(kind: type[AsyncdumpError], args: tuple[object, ...]) -> AsyncdumpError:
    return kind.__new__(kind, *args)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a manifest or a receipt, and where.

    Attributes:
        message: what is wrong.
        key: the key of the manifest, such as ``dumps[3].source``, or an empty string.
        file, line: the position in the manifest, or an empty string and 0.
        remedy: what to do about it, or an empty string; `hint` is the same with its options spelled.
    """

    message: str
    key: str = ""
    file: str = ""
    line: int = 0
    remedy: str = ""

    @property
    def hint(self) -> str:
        """What to do about it. Options are spelled as in the current interface."""
        return spelled(text(self.remedy))

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (text(place), text(self.key), text(self.message), self.hint) if part)


class _RejectionError(AsyncdumpError):
    """The request can't be fulfilled; nothing was written.

    Attributes:
        problems: everything that is wrong, not only the first thing.
    """

    def __init__(self, *problems: Problem | str, path: str = "", errno: int | None = None) -> None:
        self.problems = tuple(each if isinstance(each, Problem) else Problem(message=each) for each in problems)
        super().__init__(*map(str, self.problems), path=path, errno=errno)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class ManifestError(_RejectionError):
    """The manifest can't be run; nothing was written.

    Attributes:
        problems: everything that is wrong, not only the first thing.
    """


class ReceiptError(_RejectionError):
    """The dumps of a receipt can't be verified or restored; nothing was written.

    Attributes:
        problems: everything that is wrong, not only the first thing.
    """


class TargetExistsError(ManifestError, ReceiptError):
    """Dumps, or the targets of a restore, exist already; nothing was written, and nothing else is wrong.

    Run it again with ``overwrite=True`` to replace them, with ``resume=True`` to keep them, or write elsewhere.

    Attributes:
        problems: what exists.
    """


class DumpError(AsyncdumpError):
    """One file could not be dumped, read, verified or restored; or a call failed that the entire run needs."""


class BusyError(DumpError):
    """Another run is running in the directory ``path``: try again when it has ended."""

    exit_code = 3


class OutputError(DumpError):
    """The output can't be created, opened or written to; nothing was written."""


class SourceChangedError(DumpError):
    """The source was truncated or replaced between planning and its last byte."""


class MethodRefusedError(DumpError):
    """The kernel doesn't support the chosen method for this source and destination."""


class NotDurableError(DumpError):
    """The dump is complete and under its final name, but a power failure may undo the rename."""


_MOST_RANGES: Final = 64


class DamagedError(DumpError):
    """A dump doesn't match its receipt.

    Attributes:
        verdict: ``corrupt``, ``short``, ``missing``, ``differs`` (from its source), or ``unknown``.
        offset: the offset of the first bad frame or block in the file as stored, in bytes, or None.
        frame: the number of that frame, from 0, or None.
        ranges: the damaged ranges of the file as stored, in complete blocks, as ``(offset, length)`` in bytes, sorted:
            the first 64 of them. Empty if they aren't known.
        damaged: the total bytes of all such ranges.
    """

    def __init__(
        self,
        message: str,
        *,
        verdict: Verdict,
        path: str,
        operation: str = "verify",
        errno: int | None = None,
        offset: int | None = None,
        frame: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, path=path, operation=operation, errno=errno, hint=hint)
        self.verdict: Verdict = verdict
        self.offset = offset
        self.frame = frame
        self.ranges: tuple[tuple[int, int], ...] = ()
        self.damaged = 0

    def note_ranges(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Set `ranges` and `damaged`."""
        found = tuple(ranges)
        self.ranges, self.damaged = found[:_MOST_RANGES], sum(length for _, length in found)


class FilterError(DumpError):
    """A filter could not be started, failed, or neither read nor wrote anything for too long.

    Attributes:
        command: the name of the program.
        status: its exit status; negative if a signal killed it; None if it didn't exit on its own.
    """

    def __init__(
        self,
        message: str,
        *,
        command: str,
        status: int | None = None,
        path: str = "",
        operation: str = "start",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, path=path, operation=operation, errno=errno, hint=hint)
        self.command = command
        self.status = status


class InterruptedDumpError(DumpError):
    """The run was cancelled before this file was complete."""


EHWPOISON: Final = getattr(errnos, "EHWPOISON", 133)
"""The errno of a broken page of memory, on most architectures. Python has a name for it since 3.14."""

_NAMES: Final = {EHWPOISON: "EHWPOISON", **errnos.errorcode}
_HINTS = {
    errnos.ENOSPC: "free space on its filesystem, or choose another directory",
    errnos.EDQUOT: "the disk quota is exhausted: raise it, or choose another directory",
    errnos.EFBIG: "the file is larger than this process may write (ulimit -f), or than its filesystem supports",
    errnos.EACCES: "run as the owner of the file, or as root",
    errnos.EPERM: "run as the owner of the file, or as root",
    errnos.EROFS: "the filesystem is read-only: choose another directory",
    errnos.EMFILE: "raise the limit of open files (ulimit -n)",
    errnos.EIO: "the device or the memory behind the file is failing: see dmesg",
    EHWPOISON: "the memory behind the file is failing: see dmesg",
    errnos.EFAULT: "the source shrank while it was mapped, or has an unreadable page",
}


def describe_errno(number: int) -> str:
    """Return an errno as ``EINVAL (Invalid argument)``."""
    return f"{_NAMES.get(number, number)} ({os.strerror(number)})"


@contextmanager
def explain(operation: str, path: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `DumpError` with the operation and the path."""
    try:
        yield
    except OSError as error:
        raise from_oserror(error, operation, path) from error


@contextmanager
def opening_output() -> Iterator[None]:
    """Turn a plain `DumpError` of the block into an `OutputError`: nothing has been written to the output yet."""
    try:
        yield
    except DumpError as error:
        if type(error) is not DumpError:
            raise
        failure = OutputError(str(error))
        failure.__dict__.update(error.__dict__)
        raise failure from error


def absolute(path: str) -> str:
    """Return an absolute path.

    Raises:
        DumpError: the path is relative, and the working directory has been removed (getcwd(3)).
    """
    try:
        return os.path.abspath(path)
    except OSError as error:
        failure = from_oserror(error, "getcwd", path)
        failure.hint = "the working directory was removed: use an absolute path, or work elsewhere"
        raise failure from error


def from_oserror(error: OSError, operation: str, path: str) -> DumpError:
    """Return the `DumpError` for an ``OSError`` of ``operation`` on ``path``."""
    number = error.errno
    reason = describe_errno(number) if number is not None else str(error)
    return DumpError(
        f"{operation} of {path}: {reason}",
        path=path,
        operation=operation,
        errno=number,
        hint=_HINTS.get(number, "") if number is not None else "",
    )


def as_failure(error: Exception, path: str) -> AsyncdumpError:
    """Return an exception as an `AsyncdumpError`: unchanged if it is one, otherwise as the cause of a `DumpError`.

    Out of memory, a failing compressor, even a bug: each is only the failure of one file.
    """
    if isinstance(error, AsyncdumpError):
        return error
    if isinstance(error, OSError):
        failure = DumpError(f"{path}: {error}", path=path, errno=error.errno)
    elif isinstance(error, MemoryError):
        failure = DumpError(f"{path}: out of memory", path=path, errno=errnos.ENOMEM)
    else:
        failure = DumpError(f"{path}: {type(error).__name__}: {error}", path=path)
    failure.__cause__ = error
    return failure
