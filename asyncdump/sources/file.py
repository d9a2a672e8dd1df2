"""A memory-mapped file as the kernel sees it: its kind, page size, holes and spans.

Nothing here, and nothing in an engine, reads source memory from user space: a source that is truncated while it is
mapped would kill the process with SIGBUS. Only the kernel dereferences it, and answers with an error instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

import msgspec

from asyncdump.errors import DumpError, SourceChangedError, explain
from asyncdump.kernel.linux import filesystem, some
from asyncdump.text import as_path
from asyncdump.vocabulary.values import MEMORY, SMALL_PAGE, Source, Span, Stat

LARGEST_STREAM: Final = 64 << 20
"""Bytes that are read of a source that doesn't tell its size: they are held in memory until they are written."""

_GENERATED: Final = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "configfs", "securityfs", "selinuxfs"),
        *("efivarfs", "pstore", "bpf", "resctrl", "binfmt_misc", "mqueue", "apparmorfs", "fusectl"),
    }
)
"""Filesystems that make up content when it is read: what stat(2) says of its size is 0, or a page, or the most."""

_TRUE_SIZES: Final = MEMORY | {
    *("ext4", "xfs", "btrfs", "bcachefs", "ocfs2", "zfs", "f2fs", "nfs", "smb", "cifs", "overlayfs", "vfat", "exfat")
}
"""Filesystems whose reads end where stat(2) says. Others are asked, by a read of the last byte."""

_ADDRESSES: Final = frozenset({"mem", "pagemap", "kcore"})
"""Files of /proc in which a position is an address: there is no first byte to begin at."""

_STEP: Final = 1 << 20


def path_of(given: str | os.PathLike[str]) -> str:
    """Return a path that somebody gave.

    Raises:
        DumpError: no file can be called so.
    """
    try:
        return as_path(given)
    except ValueError as error:
        raise DumpError(f"the path {error}", operation="open") from error


def open_file(path: str, *, flags: int = 0, follow: bool = True, folder: int | None = None) -> int:
    """Open a file for reading and return its descriptor; the caller closes it. All that is read is opened here.

    A fifo or a device in its place can't make this call wait (O_NONBLOCK), nor become the terminal of this process
    (O_NOCTTY, open(2)).

    Args:
        path: relative to the open ``folder``, if there is one.
        flags: more of open(2): O_DIRECT, O_NOATIME.
        follow: whether a symbolic link as its last part is followed.
        folder: a descriptor.

    Raises:
        OSError: ELOOP for a link that isn't to be followed, and all that open(2) says.
    """
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags if follow else flags | os.O_NOFOLLOW, dir_fd=folder)


def open_regular(path: str) -> int:
    """Open a regular file of ours for reading, no link, and return its descriptor; the caller closes it.

    Raises:
        DumpError: it can't be opened, or something else is in its place.
    """
    with explain("open", path):
        fd = open_file(path, follow=False)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise DumpError(f"{path} is a {_type_name(mode)}, not a regular file", path=path, operation="open")
    return fd


def open_source(path: str, *, follow: bool = True) -> int:
    """Open a source for reading and return its descriptor; the caller closes it.

    The source's access time is left as it was where the kernel allows that (O_NOATIME, owner and root only; open(2)).

    Raises:
        DumpError: it can't be opened, or is neither a regular file nor a block device.
    """
    with explain("open", path):
        # Looked at before: to open a device may do something. What was opened is looked at again.
        refuse_special(path, os.stat(path, follow_symlinks=follow).st_mode)
        try:
            fd = open_file(path, flags=os.O_NOATIME, follow=follow)
        except OSError:
            fd = open_file(path, follow=follow)
    try:
        refuse_special(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_special(path: str, mode: int) -> None:
    """Raise `DumpError` unless ``mode`` (stat(2)) is that of a regular file or a block device."""
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DumpError(
            f"{path} is a {_type_name(mode)}, not a file that can be dumped",
            path=path,
            operation="open",
            hint="name a regular file or a block device",
        )


def _type_name(mode: int) -> str:
    tests = {
        "folder": stat.S_ISDIR,
        "fifo": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
        "character device": stat.S_ISCHR,
        "symbolic link": stat.S_ISLNK,
    }
    return next((name for name, is_type in tests.items() if is_type(mode)), "special file")


def describe(fd: int, path: str) -> Source:
    """Return what the kernel says of an open source.

    Raises:
        DumpError: the kernel doesn't say, or no byte can be read of it: a drive without a medium, memory of a process.
    """
    with explain("stat", path):
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            size = os.lseek(fd, 0, os.SEEK_END)
            kind, page, allocated, sized = "block device", SMALL_PAGE, size, True
            if size == 0:
                raise DumpError(f"{path} is a block device of 0 bytes: nothing is in it", path=path, operation="lseek")
        else:
            kind, block = filesystem(fd)
            size, allocated = status.st_size, status.st_blocks * 512
            page = block if kind == "hugetlbfs" else SMALL_PAGE
            if kind == "proc" and os.path.basename(os.path.realpath(path)) in _ADDRESSES:
                raise DumpError(
                    f"{path} holds memory by its addresses: it has no first byte and no end",
                    path=path,
                    operation="open",
                    hint="name the file that the memory is mapped from, as in /proc/PID/map_files",
                )
            sized = kind not in _GENERATED and _is_true(fd, size, kind)
    return Source(
        path=path,
        filesystem=kind,
        page=page,
        size=size,
        allocated=allocated,
        device=status.st_dev,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        memfd=kind in MEMORY and path.startswith("/proc/") and _is_memfd(fd),
        sized=sized,
        stat=Stat(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns),
    )


def _is_true(fd: int, size: int, kind: str) -> bool:
    """Tell whether reads of a file end where its size says, without a call where that's known.

    Raises:
        OSError: it has a size of 0 and can't be read: that isn't an empty file.
    """
    if size and kind in _TRUE_SIZES:
        return True
    last = max(0, size - 1)
    try:
        found = last + len(os.pread(fd, 2, last))
    except OSError:
        if size:  # The last page can't be read, for one.
            return True
        raise
    # One that was written to, or truncated, between the two looks has another size by now.
    return found == size or os.fstat(fd).st_size != size


def _is_memfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    except OSError:
        return False


def reopen(planned: Source) -> tuple[int, Source]:
    """Open a source that was planned and return its descriptor and what it is now.

    Raises:
        SourceChangedError: another file stands in its place, or it has shrunk.
        DumpError: it can't be opened.
    """
    fd = open_source(planned.path, follow=not planned.found)
    try:
        now = describe(fd, planned.path)
        if not (now.sized and planned.sized):  # Made up when it is read, inode and all.
            return gather(fd, now)
        if (now.device, now.inode) != (planned.device, planned.inode):
            raise replaced(planned.path)
        if now.size < planned.size:
            raise truncated(planned.path, now.size, planned.size)
    except BaseException:
        os.close(fd)
        raise
    return fd, now


def gather(fd: int, source: Source) -> tuple[int, Source]:
    """Read a source that doesn't tell its size to its end, into memory (memfd_create(2)), and close it.

    Returns:
        The descriptor of the memory, and what it is.

    Raises:
        DumpError: it gives more than `LARGEST_STREAM` bytes, or can't be read; it is left open.
    """
    memory = -1
    try:
        with explain("read", source.path):
            memory = os.memfd_create("asyncdump", os.MFD_CLOEXEC)
            _pour(fd, memory, source.path)
        held = msgspec.structs.replace(describe(memory, source.path), sized=True, found=source.found)
    except BaseException:
        if memory >= 0:
            os.close(memory)
        raise
    os.close(fd)
    return memory, held


def _pour(fd: int, memory: int, path: str) -> None:
    total = 0
    while piece := os.read(fd, _STEP):  # In a row: some of these files can't be read at a position.
        total += len(piece)
        if total > LARGEST_STREAM:
            raise DumpError(
                f"{path} doesn't tell its size, and gives more than {LARGEST_STREAM >> 20} MiB",
                path=path,
                operation="read",
                hint="copy it with cat(1), and dump the copy",
            )
        view = memoryview(piece)
        while view:
            view = view[some(os.write(memory, view)) :]


def replaced(path: str) -> SourceChangedError:
    """Return the error that says another file is in the place of a source."""
    return SourceChangedError(
        f"{path} was replaced by another file after the run was planned",
        path=path,
        operation="open",
        hint="run again: the new file will be dumped",
    )


def truncated(path: str, found: int, expected: int) -> SourceChangedError:
    """Return the error that says a source ended before its time; both figures are bytes."""
    return SourceChangedError(
        f"{path} was truncated while it was dumped: it ends at byte {found}, {expected} were expected",
        path=path,
        operation="read",
        hint="dump it again when its owner no longer resizes it",
    )


def check_kept(fd: int, source: Source, end: int) -> None:
    """Raise unless an open source still holds what it held when it was opened as ``source``, up to byte ``end``.

    One that was truncated and grown again has lost its memory, and reads as zeros. Its size doesn't tell. What does:
    less is allocated than before; on hugetlbfs also the time of change, which no store moves, but ftruncate(2) does.
    Both come with the one fstat(2) at the end: what was lost and filled again by then goes unseen elsewhere, and on
    hugetlbfs if it was done by truncate(2). Pages that were punched out look the same.

    Raises:
        SourceChangedError: it is shorter, or has lost memory.
    """
    if source.filesystem == "block device":
        return
    status = os.fstat(fd)
    if status.st_size < end:
        raise truncated(source.path, status.st_size, end)
    shorter = max(0, source.size - status.st_size)  # Behind ``end``: not what was asked for.
    lost = status.st_blocks * 512 < min(source.allocated, source.size) - shorter
    if source.filesystem == "hugetlbfs":
        lost = lost or (status.st_size == source.size and status.st_mtime_ns != source.mtime_ns)
    elif not source.in_memory:
        # On a disk, blocks come and go that hold nothing of the file; but these have none from its middle.
        lost = lost and source.filesystem in {"ext4", "xfs"} and not source.has_holes
    if lost:
        raise SourceChangedError(
            f"{source.path} lost memory while it was dumped: it was truncated and grown again, or pages punched out",
            path=source.path,
            operation="read",
            hint="dump it again when its owner no longer resizes it",
        )


def find_spans(fd: int, source: Source, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
    """Yield the data and the holes of ``[offset, end)`` bytes, in order and without gaps.

    Holes of less than ``shortest_hole`` bytes are counted as data. A hugetlbfs file reports itself as data throughout
    (it has no SEEK_HOLE), and so comes back as one span.
    """
    pending: Span | None = None
    for span in _extents(fd, source, offset, end):
        hole = span.hole and span.length >= shortest_hole
        if pending is not None and pending.hole == hole:
            pending = Span(offset=pending.offset, length=span.end - pending.offset, hole=hole)
            continue
        if pending is not None:
            yield pending
        pending = Span(offset=span.offset, length=span.length, hole=hole)
    if pending is not None:
        yield pending


def _extents(fd: int, source: Source, offset: int, end: int) -> Iterator[Span]:
    if not source.has_holes or source.filesystem == "hugetlbfs":
        if offset < end:
            yield Span(offset=offset, length=end - offset)
        return
    while offset < end:
        data = _seek(fd, offset, os.SEEK_DATA, end)
        if data > offset:
            yield Span(offset=offset, length=data - offset, hole=True)
        if data < end:
            hole = _seek(fd, data, os.SEEK_HOLE, end)
            yield Span(offset=data, length=hole - data)
            data = hole
        offset = data


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        # ENXIO: nothing but a hole from here on. Any other errno: the filesystem has no such seek, all of it is data.
        only_hole = whence == os.SEEK_DATA and error.errno == errno.ENXIO
        return end if only_hole or whence == os.SEEK_HOLE else offset
    # A hole is looked for from a byte of data: going forward at least one byte, this can't spin on a live file.
    return min(max(found, offset + (whence == os.SEEK_HOLE)), end)
