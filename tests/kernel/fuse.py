"""A filesystem for tests, in memory, served over /dev/fuse (fuse(4)) by a separate process: it folds names, or lies.

``python fuse.py POINT OPTION ...`` mounts it and serves it until it is unmounted; tests use `mounted`.

Options:
    fold: names are equal if they differ only in case, Unicode normalization, or trailing dots; it preserves them.
    noreplace: rename(2) supports no flags.
    close=N: each close(2) of a file fails with errno N, which is how a server reports lost writes.
    direct_io: reads and writes bypass the page cache; with ``size=N``, every file claims to have N bytes, as in /proc.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HEADER = struct.Struct("<IIQQIIIHH")
_ATTR = struct.Struct("<6Q10I")
_MOST = 1 << 17
_ROOT = 1
_MODE, _SIZE = 1 << 0, 1 << 3
_FOPEN_DIRECT_IO = 1
_NOREPLACE = 1


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[Path]:
    """Mount such a filesystem on an empty directory."""
    command = [sys.executable, __file__, str(point), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            if server.stdout.readline() != "mounted\n":
                raise OSError(errno.ENODEV, f"no filesystem could be mounted at {point}")
            yield point
        finally:
            subprocess.run(["umount", "--lazy", point], check=False)
            server.kill()  # Otherwise it would wait until every file is closed.


class Node:
    """A file or a directory; ``size`` is the size that it claims to have."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.links = 1
        self.data = bytearray()
        self.time = time.time_ns()
        self.entries: dict[str, tuple[str, Node]] = {}  # By folded name: the name as specified, and the node.


class FuseError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Server:
    def __init__(self, fd: int, options: set[str]) -> None:
        self.fd = fd
        self.fold = "fold" in options
        self.noreplace = "noreplace" not in options
        self.direct_io = "direct_io" in options
        numbers = dict(option.split("=") for option in options if "=" in option)
        self.size = int(numbers["size"]) if "size" in numbers else None
        self.closing = int(numbers.get("close", "0"))
        self.nodes = {_ROOT: Node(_ROOT, stat.S_IFDIR | 0o700)}
        self.last = _ROOT

    def serve(self) -> None:
        calls = {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            9: self.mkdir,
            10: self.unlink,
            11: self.unlink,
            12: self.rename,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            25: self.flush,
            26: self.init,
            27: self.open,
            28: self.readdir,
            35: self.create,
            45: self.rename2,
        }
        nothing = {18, 20, 29, 30}  # RELEASE, FSYNC, RELEASEDIR, FSYNCDIR
        silent = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
        while True:
            try:
                request = os.read(self.fd, _MOST + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: it was unmounted.
            _, code, unique, number, *_ = _HEADER.unpack_from(request)
            if code in silent:
                continue
            try:
                if code in calls:
                    answer = calls[code](self.nodes.get(number) or self.nodes[_ROOT], request[_HEADER.size :])
                elif code in nothing:
                    answer = b""
                else:
                    raise FuseError(errno.ENOSYS)
                failure = 0
            except FuseError as failed:
                answer, failure = b"", failed.number
            with suppress(FileNotFoundError):  # The caller was killed.
                os.write(self.fd, struct.pack("<IiQ", 16 + len(answer), -failure, unique) + answer)

    def key(self, name: str) -> str:
        if not self.fold:
            return name
        return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold()).rstrip(".") or name

    def find(self, folder: Node, name: bytes) -> Node:
        try:
            return folder.entries[self.key(os.fsdecode(name))][1]
        except KeyError:
            raise FuseError(errno.ENOENT) from None

    def new(self, folder: Node, name: bytes, mode: int) -> Node:
        shown = os.fsdecode(name)
        if self.key(shown) in folder.entries:
            raise FuseError(errno.EEXIST)
        self.last += 1
        node = self.nodes[self.last] = Node(self.last, mode)
        folder.entries[self.key(shown)] = (shown, node)
        return node

    def attributes(self, node: Node) -> bytes:
        held = len(node.data)
        size = held if self.size is None or stat.S_ISDIR(node.mode) else self.size
        seconds, rest = divmod(node.time, 10**9)
        times = (seconds,) * 3
        return _ATTR.pack(
            node.number, size, -(-held // 512), *times, rest, rest, rest, node.mode, node.links, 0, 0, 0, 4096, 0
        )

    def entry(self, node: Node) -> bytes:
        return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + self.attributes(node)

    def init(self, _: Node, body: bytes) -> bytes:
        _, _, readahead, _ = struct.unpack_from("<4I", body)
        return struct.pack("<4IHHII2HI7I", 7, 31, readahead, 1 << 5, 12, 10, _MOST, 1, 32, 0, 0, *[0] * 7)

    def lookup(self, folder: Node, body: bytes) -> bytes:
        return self.entry(self.find(folder, body.split(b"\0")[0]))

    def getattr(self, node: Node, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(node)

    def setattr(self, node: Node, body: bytes) -> bytes:
        valid, _, _, size, _, _, _, _, _, _, _, _, mode = struct.unpack_from("<2I6Q5I", body)[:13]
        if valid & _SIZE:
            held = len(node.data)
            if size < held:
                del node.data[size:]
            else:
                node.data.extend(bytes(size - held))
        if valid & _MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.time = time.time_ns()
        return self.getattr(node, b"")

    def mkdir(self, folder: Node, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<2I", body)
        return self.entry(self.new(folder, body[8:].split(b"\0")[0], stat.S_IFDIR | stat.S_IMODE(mode)))

    def unlink(self, folder: Node, body: bytes) -> bytes:
        name = body.split(b"\0")[0]
        node = self.find(folder, name)
        if node.entries:
            raise FuseError(errno.ENOTEMPTY)
        node.links = 0
        del folder.entries[self.key(os.fsdecode(name))]
        return b""

    def rename(self, folder: Node, body: bytes) -> bytes:
        return self.move(folder, struct.unpack_from("<Q", body)[0], 0, body[8:])

    def rename2(self, folder: Node, body: bytes) -> bytes:
        if not self.noreplace:
            raise FuseError(errno.ENOSYS)
        number, flags, _ = struct.unpack_from("<Q2I", body)
        return self.move(folder, number, flags, body[16:])

    def move(self, folder: Node, number: int, flags: int, names: bytes) -> bytes:
        old, new, *_ = names.split(b"\0")
        node, target, shown = self.find(folder, old), self.nodes[number], os.fsdecode(new)
        if flags & ~_NOREPLACE:
            raise FuseError(errno.EINVAL)
        standing = target.entries.get(self.key(shown))
        if standing is not None and flags:
            raise FuseError(errno.EEXIST)
        if standing is not None and standing[1] is not node:
            if stat.S_ISDIR(standing[1].mode):
                raise FuseError(errno.EISDIR)
            standing[1].links = 0
        del folder.entries[self.key(os.fsdecode(old))]
        # A replaced file leaves its name in its first spelling, as on an ext4 with casefold.
        target.entries[self.key(shown)] = (standing[0] if standing else shown, node)
        return b""

    def open(self, node: Node, _: bytes) -> bytes:
        direct = self.direct_io and not stat.S_ISDIR(node.mode)
        return struct.pack("<QII", 0, _FOPEN_DIRECT_IO if direct else 0, 0)

    def create(self, folder: Node, body: bytes) -> bytes:
        _, mode, _, _ = struct.unpack_from("<4I", body)
        node = self.new(folder, body[16:].split(b"\0")[0], mode)
        return self.entry(node) + self.open(node, b"")

    def read(self, node: Node, body: bytes) -> bytes:
        _, offset, length = struct.unpack_from("<2QI", body)
        return bytes(node.data[offset : offset + length])

    def write(self, node: Node, body: bytes) -> bytes:
        _, offset, length = struct.unpack_from("<2QI", body)
        data = body[40 : 40 + length]
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + length] = data
        node.time = time.time_ns()
        return struct.pack("<II", length, 0)

    def flush(self, node: Node, _: bytes) -> bytes:
        if self.closing and node.data:
            raise FuseError(self.closing)
        return b""

    def statfs(self, _: Node, __: bytes) -> bytes:
        blocks = 1 << 18
        return struct.pack("<5Q4I6I", blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096, 0, *[0] * 6)

    def readdir(self, folder: Node, body: bytes) -> bytes:
        _, offset, room = struct.unpack_from("<2QI", body)
        listed = b""
        for place, (name, node) in enumerate(list(folder.entries.values()), 1):
            encoded = os.fsencode(name)
            each = struct.pack("<2Q2I", node.number, place, len(encoded), node.mode >> 12) + encoded
            each += bytes(-len(each) % 8)
            if place > offset and len(listed) + len(each) <= room:
                listed += each
        return listed


def main(point: str, *options: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    said = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"asyncdump-tests", os.fsencode(point), b"fuse", 2 | 4, said) != 0:  # MS_NOSUID | MS_NODEV
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)
    print("mounted", flush=True)
    Server(fd, set(options)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
