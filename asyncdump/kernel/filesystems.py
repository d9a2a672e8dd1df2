"""What is known about filesystems without trying it: one row for each.

There is no column for anything that can be tried when it is needed: O_DIRECT, O_TMPFILE, renameat2(2),
sync_file_range(2), and which names are the same (`asyncdump.sinks.clash`). A row contains what no call answers, or
answers too late. It orders attempts and saves calls. A filesystem without a row guarantees nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Traits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The guaranteed properties of a filesystem.

    Attributes:
        in_memory: files are in memory: there is no disk to read ahead from, and no page cache to pollute.
        huge_pages: files consist of huge pages. write(2) fails with EINVAL, so that only a mapping can fill them; a
            block of statfs(2) is a page; SEEK_HOLE finds no holes, and reading a mapped hole takes a page of the pool.
        clones: copy_file_range(2) within it may share blocks, or copy on the server, so it is worth a first attempt.
        clones_are_free: a clone needs no space.
        syncfs_flushes: syncfs(2) commits the metadata of all files together and flushes the cache of the device.
        compresses: data may be stored in less space than its size.
        generated: content is generated when it is read; the size of stat(2) is 0, a page, or a maximum.
        true_size: reads end at the size of stat(2).
        keeps_blocks: fewer blocks (st_blocks) than before, in a file without holes, mean that content was lost.
    """

    in_memory: bool = False
    huge_pages: bool = False
    clones: bool = False
    clones_are_free: bool = False
    syncfs_flushes: bool = False
    compresses: bool = False
    generated: bool = False
    true_size: bool = False
    keeps_blocks: bool = False


_NOTHING: Final = Traits()
_GENERATED: Final = Traits(generated=True)  # proc(5), sysfs(5), cgroups(7) and similar.
_TRUE_SIZE: Final = Traits(true_size=True)

_TRAITS: Final[dict[str, Traits]] = {
    # Documentation/admin-guide/mm/hugetlbpage.rst: no write(2). fs/hugetlbfs/inode.c: no llseek of its own.
    "hugetlbfs": Traits(in_memory=True, huge_pages=True, true_size=True),
    "tmpfs": Traits(in_memory=True, true_size=True),  # tmpfs(5); memfd_create(2) and shm_open(3) too.
    "ramfs": Traits(in_memory=True, true_size=True),
    # A place without a directory: `asyncdump.sinks.memory`.
    "memory": Traits(in_memory=True),
    # ext4_sync_fs commits the journal, with a barrier. No FICLONERANGE: copy_file_range(2) copies.
    "ext4": Traits(syncfs_flushes=True, true_size=True, keeps_blocks=True),
    # xfs_fs_sync_fs forces the log, which flushes. mkfs.xfs(8): reflink=1 is the default since 5.1.
    "xfs": Traits(clones=True, clones_are_free=True, syncfs_flushes=True, true_size=True, keeps_blocks=True),
    # btrfs_sync_fs commits the transaction. btrfs(5): compress=. Blocks move when extents are rewritten.
    "btrfs": Traits(clones=True, clones_are_free=True, syncfs_flushes=True, compresses=True, true_size=True),
    "bcachefs": Traits(clones=True, compresses=True, true_size=True),
    "ocfs2": Traits(clones=True, true_size=True),
    "zfs": Traits(clones=True, compresses=True, true_size=True),  # zpool-features(7): block_cloning, since 2.2.
    "f2fs": Traits(compresses=True, true_size=True),  # Documentation/filesystems/f2fs.rst: compress_algorithm=.
    "nfs": Traits(clones=True, true_size=True),  # RFC 7862: COPY and CLONE, by the server.
    "smb": Traits(clones=True, true_size=True),  # MS-FSCC: FSCTL_DUPLICATE_EXTENTS_TO_FILE, by the server.
    "cifs": Traits(clones=True, true_size=True),
    "overlayfs": _TRUE_SIZE,  # All else is as the filesystem below has it, which isn't known.
    "vfat": _TRUE_SIZE,
    "exfat": _TRUE_SIZE,
    **dict.fromkeys(
        ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "configfs", "securityfs", "selinuxfs"), _GENERATED
    ),
    **dict.fromkeys(
        ("efivarfs", "pstore", "bpf", "resctrl", "binfmt_misc", "mqueue", "apparmorfs", "fusectl"), _GENERATED
    ),
}

NAMES: Final = {
    0x958458F6: "hugetlbfs",
    0x01021994: "tmpfs",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xCA451A4E: "bcachefs",
    0x7461636F: "ocfs2",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x6969: "nfs",
    0xFE534D42: "smb",
    0xFF534D42: "cifs",
    0x65735546: "fuse",
    0x794C7630: "overlayfs",
    0x858458F6: "ramfs",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
    0x65735543: "fusectl",
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x62656570: "configfs",
    0x73636673: "securityfs",
    0xF97CFF8C: "selinuxfs",
    0xDE5E81E4: "efivarfs",
    0x6165676C: "pstore",
    0xCAFE4A11: "bpf",
    0x7655821: "resctrl",
    0x42494E4D: "binfmt_misc",
    0x19800202: "mqueue",
    0x5A3C69F0: "apparmorfs",
}
"""The names of filesystems by their magic number (``f_type``, statfs(2))."""


def traits(filesystem: str) -> Traits:
    """Return the traits of a filesystem, by the name that `asyncdump.kernel.linux.filesystem` returns."""
    return _TRAITS.get(filesystem, _NOTHING)
