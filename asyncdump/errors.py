"""Everything asyncdump raises: one root, one subclass for each decision of the caller."""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

from asyncdump.text import text

Verdict = Literal["ok", "corrupt", "short", "missing", "differs", "unknown"]


class AsyncdumpError(Exception):
    """The root of all errors of this package.

    Its text can be printed and logged wherever the names in it come from; ``path`` and the like hold
    what the kernel knows. It can be copied and pickled, with all that subclasses add to it.

    Attributes:
        hint: what the user can do about it, or an empty string.
    """

    def __init__(self, *lines: str, hint: str = "") -> None:
        super().__init__("\n".join(map(text, lines)))
        self.hint = text(hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception would call the class with `args`, and that leaves out what takes a keyword.
        return _remake, (type(self), self.args), self.__dict__


def _remake(kind: type[AsyncdumpError], args: tuple[object, ...]) -> AsyncdumpError:
    return kind.__new__(kind, *args)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong with a manifest: where it stands and what it is."""

    message: str
    key: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return text(": ".join(part for part in (place, self.key, self.message) if part))


class ManifestError(AsyncdumpError):
    """The manifest can't be carried out; nothing was written.

    Attributes:
        problems: all that is wrong, not only the first thing.
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*map(str, problems))
        self.problems = problems


class DumpError(AsyncdumpError):
    """One file could not be dumped.

    Attributes:
        path: the file that the failing call was about.
        operation: the call that failed, as its man page names it.
        errno: the kernel's answer, or None where no call failed.
    """

    def __init__(
        self, message: str, *, path: str = "", operation: str = "", errno: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.operation = operation
        self.errno = errno


class SourceChangedError(DumpError):
    """The source was truncated or replaced between planning and the last byte."""


class MethodRefusedError(DumpError):
    """The kernel does not accept the named method for this source and destination."""


class NotDurableError(DumpError):
    """The dump is complete under its name, but a power cut may take the name, or bring back what it has replaced."""


_MOST_RANGES: Final = 64


class DamagedError(DumpError):
    """A dump isn't what its receipt says.

    Attributes:
        verdict: ``corrupt``, ``short``, ``missing``, ``differs`` (from its source), or ``unknown``.
        offset: the byte of the file as stored where the first bad frame or block begins, or None.
        frame: the number of that frame, from 0, or None.
        ranges: where the file as stored is damaged, in whole blocks, as ``(offset, length)`` in bytes, in their order:
            the first 64 of them; empty where nothing tells.
        damaged: the bytes of all such ranges.
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
        """Take down where the file is damaged."""
        found = tuple(ranges)
        self.ranges, self.damaged = found[:_MOST_RANGES], sum(length for _, length in found)


class ReceiptError(AsyncdumpError):
    """What a receipt tells can't be verified or restored; nothing was written.

    Attributes:
        problems: all that is wrong, not only the first thing.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = tuple(map(text, problems))


class FilterError(DumpError):
    """A filter could not be started, failed, or neither took nor gave anything for too long.

    Attributes:
        command: the name of the program.
        status: its exit status, negative for the signal that ended it, or None where it didn't end by itself.
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
    """The run was cancelled before this file was whole."""


EHWPOISON: Final = getattr(errnos, "EHWPOISON", 133)
"""A page of broken memory, on most architectures; Python names it from 3.14 on."""

_NAMES: Final = {EHWPOISON: "EHWPOISON", **errnos.errorcode}
_HINTS = {
    errnos.ENOSPC: "free space in its filesystem, or choose another folder",
    errnos.EDQUOT: "the disk quota is used up: raise it, or choose another folder",
    errnos.EFBIG: "the file is larger than this process may write (ulimit -f), or than its filesystem takes",
    errnos.EACCES: "run as the owner of the file, or as root",
    errnos.EPERM: "run as the owner of the file, or as root",
    errnos.EROFS: "the filesystem is read-only: choose another folder",
    errnos.EMFILE: "raise the limit of open files (ulimit -n)",
    errnos.EIO: "the device or the memory behind the file is failing: see dmesg",
    EHWPOISON: "the memory behind the file is failing: see dmesg",
    errnos.ENOENT: "check the path: there is no such file or folder, or no longer",
    errnos.EFAULT: "the source shrank under the mapping, or its page can't be read",
}


def describe_errno(number: int) -> str:
    """Return an errno as ``EINVAL (Invalid argument)``."""
    return f"{_NAMES.get(number, number)} ({os.strerror(number)})"


@contextmanager
def explain(operation: str, path: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `DumpError` that says what was being done to which file."""
    try:
        yield
    except OSError as error:
        raise from_oserror(error, operation, path) from error


def absolute(path: str) -> str:
    """Return a path from the root on.

    Raises:
        DumpError: it isn't one, and the working directory has been removed (getcwd(3)).
    """
    try:
        return os.path.abspath(path)
    except OSError as error:
        failure = from_oserror(error, "getcwd", path)
        failure.hint = "the working directory was removed: name it from the root on, or work elsewhere"
        raise failure from error


def from_oserror(error: OSError, operation: str, path: str) -> DumpError:
    """Return the `DumpError` that tells of ``error``, met in ``operation`` on ``path``."""
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
    """Return whatever a call raised on ``path`` as an error of ours: as it is, or a `DumpError` with that as its cause.

    Memory that isn't there, a compressor that balks, a mistake of ours: none is more than the failure of one file.
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
