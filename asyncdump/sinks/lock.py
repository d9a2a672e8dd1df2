"""The lock that keeps two runs out of one directory: flock(2) on a file of ours in it, which the last user removes.

Anyone who can read the directory could lock the directory itself. The lock file has mode 0600.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Final

from asyncdump.errors import BusyError, DumpError, from_oserror
from asyncdump.kernel.linux import close_quietly
from asyncdump.vocabulary.names import LOCK

_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Lock:
    """A lock that is held from construction until `release`, or until this process exits for any reason."""

    def __init__(self, folder: int, path: str, *, shared: bool = False) -> None:
        """Lock an open directory; ``path`` is its name in errors.

        A ``shared`` lock is for readers. They continue without a lock if they can't get one, in a directory of another
        user or on a read-only filesystem.

        Raises:
            BusyError: another run is using the directory.
            DumpError: the lock file can't be created, or belongs to another user.
        """
        self._folder: Final = folder
        self._path: Final = os.path.join(path, LOCK)
        self._fd = -1
        try:
            while not self._take(shared=shared):
                pass  # Its last user removed the file between open(2) and flock(2).
        except BlockingIOError as error:
            self._close()
            raise BusyError(
                f"another run is using {path}",
                path=path,
                operation="flock",
                errno=error.errno,
                hint="wait for it to end, or choose another directory",
            ) from error
        except OSError as error:
            self._close()
            if not shared:
                raise from_oserror(error, "open", self._path) from error
        except DumpError:
            self._close()
            if not shared:
                raise

    def _take(self, *, shared: bool) -> bool:
        """Open and lock the file; return False if the name no longer refers to it."""
        self._fd = self._open(shared=shared)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return True  # A filesystem or a sandbox without locks: the run continues unprotected.
        if self._is_named():
            return True
        self._close()
        return False

    def _open(self, *, shared: bool) -> int:
        owner = os.fstat(self._folder).st_uid
        while True:
            try:
                fd = os.open(LOCK, _FLAGS, dir_fd=self._folder)
                break
            except FileNotFoundError:
                if shared and owner != os.geteuid():
                    raise
            with suppress(FileExistsError):
                return os.open(LOCK, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid in {os.geteuid(), owner}:
            return fd
        close_quietly(fd)
        raise DumpError(
            f"{self._path} is a lock file of another user",
            path=self._path,
            operation="open",
            errno=errno.EPERM,
            hint="remove it, or choose another directory",
        )

    def _is_named(self) -> bool:
        ours = os.fstat(self._fd)
        with suppress(FileNotFoundError):
            named = os.stat(LOCK, dir_fd=self._folder, follow_symlinks=False)
            return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
        return False

    def release(self) -> None:
        """Unlock the file, and remove it unless another process holds a lock on it, too.

        A child that was forked meanwhile shares the open file description: closing alone would leave it locked.
        """
        if self._fd < 0:
            return
        # Removed while it is locked: a process that has opened it before finds that it lost its name, and starts over.
        with suppress(OSError):
            if not self._is_shared() and self._is_named():
                os.unlink(LOCK, dir_fd=self._folder)
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._close()

    def _is_shared(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # No locks here: it wasn't locked in the first place.
            return False
        return False

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
