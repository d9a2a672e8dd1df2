"""The seam below an engine and a run: what a sink is, and what a place is in which sinks are made and named.

A capability is an attribute. Nobody asks a sink or a place for its class: an engine that needs a descriptor looks at
`Sink.fd`, a run that may use several threads on one dump looks at `Sink.most_lanes`.
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
    """Where the bytes of one dump go. Threads may write different ranges at once, unless ``most_lanes`` says less.

    Attributes:
        path: what errors call it.
        fd: a descriptor into which the kernel can move bytes by itself (splice(2), sendfile(2), copy_file_range(2)),
            or None. It belongs to the sink.
        direct: a second one that bypasses the page cache (O_DIRECT), or None.
        sequential: whether bytes can only be written one after another, from byte 0 on.
        most_lanes: how many threads may write at once, or None for any number.
        grain: zeros in a piece of so many bytes, aligned to it, may be left out; where that isn't possible
            (``sequential``), callers write them.
        stored: bytes written so far, holes not counted.
        pace: how much it takes in one step.
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
        """Return the size in bytes and the inode number; zeros where there is no such thing."""

    def open_again(self) -> int:
        """Return another descriptor for writing to ``fd``, with a file offset of its own; the caller closes it.

        Raises:
            OSError: there is none.
        """

    def resize(self, size: int) -> None:
        """Set the size in bytes: what isn't written is a hole. Nothing happens where a sink has no size."""

    def expect(self, size: int) -> None:
        """Announce a size that may turn out to be another: no error if there is no room for it."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset`` bytes, in whichever way is fastest.

        With a ``fd`` the memory may be a mapping of the source, which only the kernel looks at. Without one it must be
        memory of this process: a truncated source would kill it (SIGBUS).

        Raises:
            OSError: it can't be written; how much was written is not known.
        """

    def write_direct(self, data: memoryview, offset: int) -> int:
        """Write what ``direct`` takes of ``data`` and return how many bytes; count them with `note_written`.

        Raises:
            OSError: EINVAL or EOPNOTSUPP where it takes none after all.
        """

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Write all of ``data`` through the page cache, where there is one; ``flags`` are those of pwritev2(2)."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Write ``length`` zeros at ``offset`` bytes."""

    def note_written(self, length: int) -> None:
        """Count bytes that `write_direct` wrote."""

    def note_copied(self, length: int) -> None:
        """Count bytes that the kernel moved into ``fd`` by itself."""

    def flush_behind(self, offset: int, length: int) -> None:
        """Start write-back of a range that went through the page cache; `DumpError` if what came before is lost."""

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        """Feed ``size`` bytes of what was written to ``digest``; ``check`` is called before each block, and may raise.

        Raises:
            DumpError: it can't be read, or isn't what was written.
        """

    def close_direct(self) -> None:
        """Close what only writing needs: a sink that waits to be published may wait together with many others."""

    def sync(self) -> DumpError | None:
        """Make what was written durable; return the error, or what was lost before."""

    def close(self) -> None:
        """Close it; what that reports is kept."""


class PlacedSink(Sink, Protocol):
    """A sink that its place gives a name when it is complete, or removes.

    Attributes:
        lost: the first error that was reported of what was written: such a sink is never published.
        replaces: whether what has its name now is an older state of the same dump, which it may replace.
    """

    replaces: bool

    @property
    def lost(self) -> DumpError | None: ...

    def ask(self) -> DumpError | None:
        """Return what was lost so far, without waiting for anything."""

    def drop_cache(self) -> None:
        """Let the page cache forget what is durable."""

    def rename(self, *, overwrite: bool) -> DumpError | None:
        """Give it its name, after `close`; return the error, if any: without ``overwrite`` also that it is taken."""

    def discard(self) -> None:
        """Remove what was written, unless it has its name."""

    def abort(self) -> None:
        """Remove what was written, unless it has its name, and close it."""


class Synced(Protocol):
    """Something that can be made durable."""

    def sync(self) -> DumpError | None:
        """Make it durable; return the error, if any."""


class Place(Protocol):
    """Where sinks are made and get their names.

    Attributes:
        path: what reports call it.
        filesystem: as statfs(2) names it, or what stands for that.
        streams: whether bytes reach a reader while they are written: nothing can be taken back, or written again.
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
        """Make finished sinks durable as a group, give them their names, and make the names durable.

        What ``journal`` says of them is made durable before they have their names.

        Returns:
            For each sink its error, or None. A sink with an error was removed, and what it was to replace is as it
            was; except for `NotDurableError`: that one has its name, and what it has replaced is gone.
        """

    def close(self) -> None:
        """Give back what it holds."""


Kind = Literal["file", "folder", "link", "other"]
_KINDS: Final[dict[int, Kind]] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under a name (lstat(2)).

    Attributes:
        size: in bytes.
        device, inode: the identity of the file; zeros where there is none.
        kind: ``file``, ``folder``, ``link`` or ``other``: a device, a fifo, a socket.
    """

    size: int
    device: int
    inode: int
    kind: Kind

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return what lstat(2) says."""
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        return cls(size=status.st_size, device=status.st_dev, inode=status.st_ino, kind=kind)


class Log(Protocol):
    """A file of our own that is only appended to, by one thread at a time."""

    def append(self, data: bytes) -> None:
        """Add all of ``data``, or nothing.

        Raises:
            DumpError: it can't be written.
        """

    def sync(self) -> DumpError | None:
        """Make durable what was added; return the error, if any. After an error nothing tells what is there."""

    @property
    def lost(self) -> DumpError | None:
        """Why nothing tells any more what is there, or None."""

    def close(self) -> None: ...


class Store(Place, Protocol):
    """A place whose dumps are found again, and that keeps the records of them: the receipt, the journal, digest lists.

    Names are flat: none has a slash. Errors are `DumpError` unless they are returned.

    Attributes:
        fd: a descriptor of the folder, where it is one of this host; or None.
    """

    @property
    def fd(self) -> int | None: ...

    def lock(self, *, shared: bool = False) -> None:
        """Keep other runs out until it is closed, or this process ends; with ``shared`` only those that write.

        Raises:
            DumpError: another run is at work.
        """

    def sweep(self) -> None:
        """Remove what runs have left that were killed; for whoever has the lock."""

    def names(self) -> list[str]:
        """Return all names, in any order."""

    def entry(self, name: str) -> Entry | None:
        """Return what stands under a name, or None where nothing does, or where that isn't known."""

    def exists(self, name: str) -> bool:
        """Return whether something stands under a name; `DumpError` where that isn't known."""

    def open(self, name: str) -> int:
        """Return a descriptor to read a dump with, at any position; the caller closes it.

        Raises:
            DumpError: it can't be opened: ENOENT, ELOOP for a link.
        """

    def settle(self, name: str) -> None:
        """Make a dump durable that was published without that, and have what is read of it come from where it is kept.

        Raises:
            DumpError: it can't be opened, or part of it is lost.
        """

    def hold(self, name: str) -> bool:
        """Have what stands under a name replaced by no other name of this run, whatever the place calls equal.

        Returns False where nothing stands there, or what does is held under another name.
        """

    def holder(self, name: str) -> str | None:
        """Return the name by which what stands under ``name`` is held, or None."""

    def clashes(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return each name that leads to the same file as one before it, with that one."""

    def read_small(self, name: str, largest: int) -> bytes | None:
        """Return the content of a file of our own, or None where there is none.

        Raises:
            DumpError: it can't be read, is no regular file, or has more than ``largest`` bytes.
        """

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write files of our own, each complete and durable or not at all.

        Raises:
            DumpError: one can't be written, and what stood under its name is as it was.
            NotDurableError: each has its name, which may not survive a power cut.
        """

    def new_log(self, name: str) -> Log:
        """Create an empty log, mode 0600, where nothing has that name."""

    def renew_log(self, name: str, content: bytes) -> Log:
        """Replace whatever has that name by a log that begins with ``content``, durable, at once or not at all."""

    def remove(self, name: str) -> None:
        """Remove a file of our own, if that is possible."""
