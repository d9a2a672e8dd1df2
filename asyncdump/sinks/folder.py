"""The output directory: temporary names, durability in groups, and the rename that publishes a dump.

Under its final name, a dump is complete and durable, or absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, Final

from asyncdump.errors import DumpError, NotDurableError, explain
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.linux import close_quietly, syncfs
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.draft import Draft, MappedDraft
from asyncdump.sinks.file import FileSink
from asyncdump.sinks.lock import Lock
from asyncdump.sinks.logfile import LogFile
from asyncdump.sinks.opened import OpenFolder
from asyncdump.sinks.place import PlacedSink, Synced
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.names import LOCK

_GROUP_FOR_SYNCFS: Final = 3
_DIRTY_FOR_SYNCFS: Final = 64 << 20


class Folder(OpenFolder):
    """A `Store` on a filesystem of this host."""

    streams: ClassVar[bool] = False

    def __init__(self, path: str, *, make: bool = True) -> None:
        super().__init__(path, make=make)
        self._lock: Lock | None = None
        self._doubtful = False  # Whether a syncfs has failed: a later one won't report the same error again.

    def lock(self, *, shared: bool = False) -> None:
        """Lock the directory until it is closed, or this process exits for any reason (`Lock`).

        With ``shared``, others may read, but not write.

        Raises:
            DumpError: another run is using the directory, or it can't be locked.
        """
        self._lock = Lock(self.fd, self.path, shared=shared)
        self.hold(LOCK)

    def create(self, name: str) -> Draft:
        """Create the temporary file that will become ``name``, mode 0600.

        Raises:
            DumpError: it can't be created.
        """
        draft = MappedDraft if traits(self.filesystem).huge_pages else Draft
        return draft(self, name, self.temporary())

    def scratch(self) -> FileSink:
        """Return a sink without a name (O_TMPFILE), to try engines on; it is gone when it is closed.

        Raises:
            DumpError: the directory can't be written to.
        """
        with suppress(OSError):
            return FileSink(os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.fd), self.path)
        # Either the filesystem doesn't support O_TMPFILE, or the directory isn't writable: this shows which.
        draft = self.create("scratch")
        draft.discard()
        return draft

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        # The order is the guarantee: sync the data (and its records in the journal), close, rename, sync the names.
        errors = self._sync(sinks, journal) if durable else [sink.ask() for sink in sinks]
        for index, sink in enumerate(sinks):
            sink.close()  # Before the rename, because close(2) may report an error.
            errors[index] = errors[index] or sink.lost or sink.rename(overwrite=overwrite or sink.replaces)
            if errors[index] is not None:
                sink.discard()
        # One fsync of the directory for all names. If it fails, any of them may be lost.
        if durable and (failure := self.sync()) is not None:
            errors = [earlier or _not_durable(sink, failure) for sink, earlier in zip(sinks, errors, strict=True)]
        return errors

    def _sync(self, sinks: Sequence[PlacedSink], journal: Synced | None) -> list[DumpError | None]:
        # One syncfs commits the metadata of the whole group, and the journal, which is on the same filesystem. Most
        # data bypassed the page cache. If other processes have much dirty memory, syncfs would wait for that, too: then
        # each file is synced separately.
        grouped = len(sinks) >= _GROUP_FOR_SYNCFS and traits(self.filesystem).syncfs_flushes and not self._doubtful
        if grouped and _dirty_bytes() < _DIRTY_FOR_SYNCFS:
            try:
                syncfs(self.fd)
            except OSError:
                # The error may concern any file, even one that is still being written: sync each one from now on.
                self._doubtful = True
            else:
                for sink in sinks:
                    sink.drop_cache()
                return [sink.lost for sink in sinks]
        errors = [sink.sync() for sink in sinks]
        if journal is not None and (failure := journal.sync()) is not None:
            errors = [error or failure for error in errors]
        return errors

    def settle(self, name: str) -> None:
        sync_file(self.path_of(name))

    def clashes(self, names: Iterable[str]) -> list[tuple[str, str]]:
        return clashes(self, names)

    def write_small(self, files: Mapping[str, bytes]) -> None:
        drafts: list[Draft] = []
        try:
            for name, content in files.items():
                drafts.append(self.create(name))
                with explain("write", drafts[-1].path):
                    drafts[-1].write_cached(memoryview(content), 0)
            published = self.publish(drafts, durable=True, overwrite=True)
        except BaseException:
            for draft in drafts:
                draft.abort()
            raise
        if failures := [failure for failure in published if failure is not None]:
            raise failures[0]

    def new_log(self, name: str) -> LogFile:
        path = self.path_of(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with explain("open", path):
            fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        self.hold(name)
        return LogFile(fd, path)

    def renew_log(self, name: str, content: bytes) -> LogFile:
        draft = self.create(name)
        try:
            with explain("write", draft.path):
                draft.write_cached(memoryview(content), 0)
            if (failure := draft.sync() or draft.rename(overwrite=True) or self.sync()) is not None:
                raise failure
            with explain("dup", draft.path):
                return LogFile(draft.duplicate(), draft.path, len(content))
        finally:
            draft.abort()

    def close(self) -> None:
        """Unlock and close it; further calls do nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
        super().close()


def _not_durable(sink: PlacedSink, failure: DumpError) -> NotDurableError:
    return NotDurableError(
        f"{sink.path} is complete, but its name may not survive a power failure: {failure}",
        path=sink.path,
        operation=failure.operation,
        errno=failure.errno,
        hint=failure.hint,
    )


def sync_file(path: str) -> None:
    """Make a file durable that was written without a sync, and drop it from the page cache.

    Only reading it back from the disk then shows its content: an error of its write-back may have been reported to
    another process.

    Raises:
        DumpError: it can't be opened or synced.
    """
    with explain("fsync", path):
        fd = open_file(path, follow=False)
        try:
            os.fsync(fd)
            with suppress(OSError):  # Advisory.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            close_quietly(fd)


def _dirty_bytes() -> int:
    """Return the bytes of dirty memory, and of memory under write-back, of all processes (proc_meminfo(5))."""
    try:
        with open("/proc/meminfo", "rb") as lines:
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith((b"Dirty:", b"Writeback:")))
    except (OSError, ValueError, IndexError):
        return _DIRTY_FOR_SYNCFS
