"""The protocols of sinks, and of the places that make and name them.

Capabilities are attributes, and no code checks the class of a sink or a place: an engine that needs a descriptor looks
at `Sink.fd`, and a run that may use several threads for one dump looks at `Sink.most_lanes`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol, Self

import msgspec

from asyncdump.errors import DumpError
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.pace import Pace
from asyncdump.vocabulary.digest import Hasher


class Sink(Protocol):
    """Where the bytes of one dump go. Up to ``most_lanes`` threads may write different ranges at the same time.

    Attributes:
        path: its name in errors.
        fd: a descriptor into which the kernel can move bytes (splice(2), sendfile(2), copy_file_range(2)), or None. The
            sink owns it.
        direct: a second descriptor that bypasses the page cache (O_DIRECT), or None.
        sequential: whether bytes can only be written in order, starting at byte 0.
        most_lanes: how many threads may write at the same time, or None for any number.
        grain: the granularity of holes: an aligned piece of this many zero bytes may be skipped. If that isn't possible
            (``sequential``), callers write the zeros.
        stored: the number of bytes written so far, without holes.
        pace: the I/O size for its device.
    """

    @property
    def path(self) -> str: ...

    @property
    def fd(self) -> int | None: ...

    @property
    def direct(self) -> int | None: ...

    @property
    def sequential(self) -> bool: ...

    @property
    def most_lanes(self) -> int | None: ...

    @property
    def grain(self) -> int: ...

    @property
    def stored(self) -> int: ...

    @property
    def pace(self) -> Pace: ...

    def status(self) -> tuple[int, int]:
        """Return the size in bytes and the inode number; zeros if the sink has none."""

    def open_again(self) -> int:
        """Return another descriptor for the file of ``fd``, with its own file offset; the caller closes it.

        Raises:
            OSError: it can't be opened again.
        """

    def resize(self, size: int) -> None:
        """Set the size in bytes; ranges that aren't written are holes. A sink without a size ignores this."""

    def expect(self, size: int) -> None:
        """Announce an estimated size; it isn't an error if there isn't enough space for it."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at byte ``offset`` in the fastest way.

        If the sink has an ``fd``, the data may be a mapping of the source, which only the kernel dereferences.
        Otherwise it must be memory of this process, because a truncated source would kill the process (SIGBUS).

        Raises:
            OSError: it can't be written; it isn't known how much was written.
        """

    def write_direct(self, data: memoryview, offset: int) -> int:
        """Write as much of ``data`` as ``direct`` supports, and return how many bytes; count them with `note_written`.

        Raises:
            OSError: EINVAL or EOPNOTSUPP if the filesystem doesn't support O_DIRECT after all.
        """

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Write all of ``data`` through the page cache, if there is one; ``flags`` are for pwritev2(2)."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Write ``length`` zeros at byte ``offset``."""

    def note_written(self, length: int) -> None:
        """Count bytes that `write_direct` wrote."""

    def note_copied(self, length: int) -> None:
        """Count bytes that the kernel moved into ``fd``."""

    def flush_behind(self, offset: int, length: int) -> None:
        """Start write-back of a range that went through the page cache; `DumpError` if earlier writes were lost."""

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        """Hash the first ``size`` written bytes with ``digest``; ``check`` is called before each block, and may raise.

        Raises:
            DumpError: they can't be read, or writes were lost.
        """

    def close_direct(self) -> None:
        """Close descriptors that only writing needs, because many sinks may wait to be published."""

    def sync(self) -> DumpError | None:
        """Make the written bytes durable; return the error, or the first loss that was reported before."""

    def close(self) -> None:
        """Close it; an error of the close is kept."""


class PlacedSink(Sink, Protocol):
    """A sink that its place publishes under a name when it is complete, or otherwise removes.

    Attributes:
        lost: the first error that was reported about written bytes; a sink with such an error is never published.
        replaces: whether the file that has its name is an older dump of the same source, which it may replace.
    """

    replaces: bool

    @property
    def lost(self) -> DumpError | None: ...

    def ask(self) -> DumpError | None:
        """Return the first loss so far, without waiting for write-back."""

    def drop_cache(self) -> None:
        """Drop durable pages from the page cache."""

    def rename(self, *, overwrite: bool) -> DumpError | None:
        """Rename it to its final name, after `close`; return the error, if any. Without ``overwrite``, the name must be
        free.
        """

    def discard(self) -> None:
        """Remove what was written, unless it is published."""

    def abort(self) -> None:
        """Remove what was written, unless it is published, and close it."""


class Synced(Protocol):
    """Something that can be made durable."""

    def sync(self) -> DumpError | None:
        """Make it durable; return the error, if any."""


class Place(Protocol):
    """Makes sinks and publishes them.

    Attributes:
        path: its name in reports.
        filesystem: the name of its filesystem, or a substitute.
        streams: whether a reader gets the bytes while they are written, so that nothing can be taken back or retried.
    """

    @property
    def path(self) -> str: ...

    @property
    def filesystem(self) -> str: ...

    @property
    def streams(self) -> bool: ...

    def create(self, name: str) -> PlacedSink:
        """Return a new sink for a name.

        Raises:
            DumpError: it can't be created.
        """

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Make finished sinks durable as a group, rename them, and make the names durable.

        Their records in ``journal`` are made durable before the rename.

        Returns:
            For each sink, its error or None. A sink with an error was removed, and the file that it was to replace is
            unchanged. With a `NotDurableError`, however, it is published, and the file that it replaced is gone.
        """

    def close(self) -> None:
        """Release its resources."""


Kind = Literal["file", "folder", "link", "other"]
_KINDS: Final[dict[int, Kind]] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The file under a name (lstat(2)).

    Attributes:
        size: its size, in bytes.
        device, inode: its identity, or zeros.
        kind: ``file``, ``folder``, ``link``, or ``other`` for a device, a fifo, a socket.
    """

    size: int
    device: int
    inode: int
    kind: Kind

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the entry for a result of lstat(2)."""
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        return cls(size=status.st_size, device=status.st_dev, inode=status.st_ino, kind=kind)


class Log(Protocol):
    """One of asyncdump's own files that is only appended to, by one thread at a time."""

    def append(self, data: bytes) -> None:
        """Append all of ``data``, or nothing.

        Raises:
            DumpError: it can't be written.
        """

    def sync(self) -> DumpError | None:
        """Make what was appended durable; return the error, if any. After an error, the content on disk is unknown."""

    @property
    def lost(self) -> DumpError | None:
        """Why the content on disk is unknown, or None if it is known."""

    def close(self) -> None: ...


class Store(Place, Protocol):
    """A place whose dumps can be found again, with their records: the receipt, the journal, the digest lists.

    Names are flat: they contain no slash. Errors are `DumpError` unless they are returned.

    Attributes:
        fd: a descriptor of the directory, if it is one of this host; otherwise None.
    """

    @property
    def fd(self) -> int | None: ...

    def lock(self, *, shared: bool = False) -> None:
        """Lock it until it is closed, or this process exits; with ``shared``, only against runs that write.

        Raises:
            DumpError: another run is using it.
        """

    def sweep(self) -> None:
        """Remove temporary files of killed runs. The caller must have the lock."""

    def names(self) -> list[str]:
        """Return all names, in any order."""

    def entry(self, name: str) -> Entry | None:
        """Return the entry of a name, or None if there is none or it can't be determined."""

    def exists(self, name: str) -> bool:
        """Return whether a name exists; raise `DumpError` if that can't be determined."""

    def open(self, name: str) -> int:
        """Return a descriptor to read a dump at any offset; the caller closes it.

        Raises:
            DumpError: it can't be opened: ENOENT, ELOOP for a link.
        """

    def settle(self, name: str) -> None:
        """Make a dump durable that was published without a sync, so that later reads show what is really stored.

        Raises:
            DumpError: it can't be opened, or a part of it was lost.
        """

    def hold(self, name: str) -> bool:
        """Protect the file under a name: no other name of this run that the place treats as the same may replace it.

        Return False if there is no file, or it is protected under another name.
        """

    def holder(self, name: str) -> str | None:
        """Return the name under which the file called ``name`` is protected, or None."""

    def clashes(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return each name that refers to the same file as an earlier name, with that earlier name."""

    def read_small(self, name: str, largest: int) -> bytes | None:
        """Return the content of one of our own files, or None if there is none.

        Raises:
            DumpError: it can't be read, isn't a regular file, or has more than ``largest`` bytes.
        """

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write our own files, each one complete and durable, or not at all.

        Raises:
            DumpError: one can't be written; the file that had its name is unchanged.
            NotDurableError: all are under their names, which may not survive a power failure.
        """

    def new_log(self, name: str) -> Log:
        """Create an empty log with mode 0600; the name must not exist."""

    def renew_log(self, name: str, content: bytes) -> Log:
        """Replace any file of that name atomically by a log that begins with ``content`` and is durable."""

    def remove(self, name: str) -> None:
        """Remove one of our own files, if possible."""
