"""What keeps two runs out of one folder: a lock on a file of our own in it (flock(2)), that goes with its last user.

A lock on the folder itself could be taken by whoever may read it. The file has mode 0600.
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
    """Held from its making until `release`, or until this process ends in whichever way."""

    def __init__(self, folder: int, path: str, *, shared: bool = False) -> None:
        """Lock an open folder; ``path`` is what errors call it.

        Whoever locks it ``shared`` only reads there, and does without a lock where it can have none: in a folder of
        somebody else, or on a filesystem that is read-only.

        Raises:
            BusyError: another run is running there.
            DumpError: the file can't be made, or belongs to someone else.
        """
        self._folder: Final = folder
        self._path: Final = os.path.join(path, LOCK)
        self._fd = -1
        try:
            while not self._take(shared=shared):
                pass  # Its last user has removed it meanwhile.
        except BlockingIOError as error:
            self._close()
            raise BusyError(
                f"another run is running in {path}",
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
        """Open and lock the file; return False if it isn't the one any more that has the name."""
        self._fd = self._open(shared=shared)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return True  # A filesystem, or a sandbox, that has no locks gives no protection.
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
            f"{self._path} is not a lock of this user",
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
        """Unlock, and remove the file unless somebody else has it locked too.

        A child that this process has forked meanwhile holds the same open file: closing alone would leave it locked.
        """
        if self._fd < 0:
            return
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
        except OSError:  # It wasn't locked either.
            return False
        return False

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
