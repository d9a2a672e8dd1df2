"""A disk that loses writes on demand: while its memory is limited, zram rejects incompressible data.

Its errors occur below the page cache. Anyone who waits for write-back gets them, once each.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from files import MiB, unavailable

_PATIENCE = 20.0
_CONTROL = Path("/sys/class/zram-control")
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single"),
}


class Liar:
    """One device, and where it is mounted. Only the test uses it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            unavailable("a zram device needs root")
        if not _CONTROL.is_dir():
            unavailable("the kernel has no zram")
        self._number = int((_CONTROL / "hot_add").read_text())
        self._knobs = Path(f"/sys/block/zram{self._number}")
        self._device = f"/dev/zram{self._number}"
        self.point = Path(tempfile.mkdtemp(prefix="asyncdump-liar-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back()
        (_CONTROL / "hot_remove").write_text(str(self._number))
        self.point.rmdir()

    def _give_back(self) -> None:
        for fd in os.listdir("/proc/self/fd"):  # Descriptors that a failed test left open would keep it busy.
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self.point}/"):
                    os.close(int(fd))
        subprocess.run(["umount", self.point], check=False, capture_output=True)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                (self._knobs / "reset").write_text("1")
                return
            except OSError as error:
                # A mount namespace that was created meanwhile has a copy of the mount, as long as it exists.
                if error.errno != errno.EBUSY or time.monotonic() > until:
                    raise
            time.sleep(0.05)

    @contextmanager
    def formatted(self, kind: str, size: int = 512 * MiB) -> Iterator[Path]:
        """Create and mount an empty filesystem on it."""
        if shutil.which(_MKFS[kind][0]) is None:
            unavailable(f"{_MKFS[kind][0]} is not installed")
        (self._knobs / "disksize").write_text(str(size))
        try:
            subprocess.run([*_MKFS[kind], self._device], check=True, capture_output=True)
            self.mount()
            yield self.point
        finally:
            (self._knobs / "mem_limit").write_text("0")
            self._give_back()

    def mount(self) -> None:
        subprocess.run(["mount", self._device, self.point], check=True, capture_output=True)

    def mount_again(self) -> bool:
        """Mount it again, so that only what is on the disk is visible; return whether it can be mounted at all."""
        subprocess.run(["umount", self.point], check=True, capture_output=True)
        return subprocess.run(["mount", self._device, self.point], check=False, capture_output=True).returncode == 0

    @property
    def refused(self) -> int:
        """The number of writes that it has rejected so far."""
        return int((self._knobs / "io_stat").read_text().split()[1])

    @contextmanager
    def lying(self, after: int, writes: int) -> Iterator[None]:
        """Reject data beyond ``after`` bytes, until ``writes`` writes were rejected, or the block ends."""
        used = int((self._knobs / "mm_stat").read_text().split()[2])
        (self._knobs / "mem_limit").write_text(str(max(used + after, 4096)))
        most, ended = self.refused + writes, threading.Event()

        def heal() -> None:
            while self.refused < most and not ended.wait(0.0005):
                pass
            with suppress(OSError):
                (self._knobs / "mem_limit").write_text("0")

        healing = threading.Thread(target=heal)
        healing.start()
        try:
            yield
        finally:
            ended.set()
            healing.join()
