"""Memory of a process on a real kernel: what is there is dumped, what isn't is not brought in, and nothing is harmed."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import seccomp
from files import HUGE_PAGE, MiB, allocated, noise, read, unavailable
from memory import PAGE, Child, child

import asyncdump
from asyncdump import Dump
from asyncdump.errors import DumpError
from asyncdump.kernel import memory
from asyncdump.sources.process import look_at_process

PRIVATE, SHARED = 0x22, 0x21  # MAP_ANONYMOUS with MAP_PRIVATE, MAP_SHARED
HUGE = 0x40000 | 21 << 26  # MAP_HUGETLB | MAP_HUGE_2MB
PAGEOUT, GUARD_INSTALL = 21, 102  # madvise(2)
SCAN = 0xC0606610
FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


@pytest.fixture
def owner() -> Iterator[Child]:
    with child() as started:
        yield started


def cost(owner: Child) -> dict[str, str]:
    """Return what a process holds, as the kernel counts it: pages, huge pages, page tables."""
    fields = dict(line.split(":\t") for line in Path(f"/proc/{owner.pid}/status").read_text().splitlines())
    return {name: fields[name].strip() for name in ("VmRSS", "RssAnon", "RssShmem", "HugetlbPages", "VmPTE", "VmSwap")}


def laid_out(owner: Child, flags: int, step: int, pages: str) -> tuple[int, bytes]:
    """Map memory whose steps are named by characters, ``-`` for what isn't touched; return address and content."""
    address = owner.do(f"map({len(pages) * step}, {flags})")
    for index, name in enumerate(pages):
        if name != "-":
            owner.do(f"fill({address + index * step}, {step}, {ord(name)})")
    return address, b"".join(bytes(step) if name == "-" else name.encode() * step for name in pages)


async def dumped(owner: Child, address: int, length: int, folder: Path, **options: Any) -> bytes:
    """Dump a range, and say that this has cost its owner nothing."""
    before = cost(owner)
    report = await asyncdump.dump_all(Dump(owner.range(address, length), name="dump"), output=folder, **options)
    report.raise_for_failures()
    assert cost(owner) == before
    return read(folder / "dump")


# --- what is dumped, at no cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", ["xxh128", "none"])
@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
async def test_holes_of_huge_pages_take_none_from_the_pool(owner, flags, checksum, hugetlbfs, tmp_path: Path) -> None:
    address, content = laid_out(owner, flags | HUGE, HUGE_PAGE, "-a--b-")
    before = FREE.read_text()
    assert await dumped(owner, address, len(content), tmp_path, checksum=checksum) == content
    assert allocated(tmp_path / "dump") <= 2 * HUGE_PAGE + MiB
    assert FREE.read_text() == before
    # A part of a huge page, and of holes on both sides.
    part = await dumped(owner, address + MiB, 2 * HUGE_PAGE, tmp_path, checksum=checksum, overwrite=True)
    assert part == content[MiB : MiB + 2 * HUGE_PAGE]


@pytest.mark.parametrize("options", [{"compress": "zstd"}, {"checksum": "sha256"}], ids=str)
async def test_no_way_to_dump_them_does(owner, options, hugetlbfs, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE | HUGE, HUGE_PAGE, "-a-b")
    before = cost(owner)
    asked = owner.range(address, len(content))
    dump = Dump(asked, name="dump", **options)
    assert (await asyncdump.plan_all(dump, output=tmp_path / "none")).dumps[0].source.allocated == 2 * HUGE_PAGE
    (await asyncdump.dump_all(dump, output=tmp_path)).raise_for_failures()
    assert (await asyncdump.verify_all(tmp_path, against_source=True)).ok
    filtered = Dump(asked, name="dump", filter=[["cat"]], sparse="never")
    (await asyncdump.dump_all(filtered, output=tmp_path / "cat", allow_filters=True)).raise_for_failures()
    assert read(tmp_path / "cat/dump") == content
    assert cost(owner) == before


async def test_small_pages_with_holes_between_them(owner, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, "a-b--c" * 40 + "-" * 2000 + "d")
    assert await dumped(owner, address, len(content), tmp_path) == content
    # A page that was only read is the one of zeros that all processes share: nothing of its own.
    owner.do(f"ctypes.string_at({address + PAGE}, 1) and None")
    assert look_at_process(owner.pid, address, 3 * PAGE).allocated == 2 * PAGE
    # Neither an address nor a length has to be whole pages.
    assert await dumped(owner, address + 100, 5 * PAGE + 3, tmp_path, overwrite=True) == content[100 : 5 * PAGE + 103]


async def test_shared_memory_that_others_have_filled(owner, tmp_path: Path) -> None:
    """The process has no pages of its own for it, and would see what the others wrote."""
    fd = owner.do("os.memfd_create('shared')")
    owner.do(f"os.ftruncate({fd}, {8 * MiB})")
    owner.do(f"os.pwrite({fd}, b'z' * 8192, {4 * MiB})")
    address = owner.do(f"map({8 * MiB}, 1, {fd})")
    content = bytes(4 * MiB) + b"z" * 8192 + bytes(4 * MiB - 8192)
    assert await dumped(owner, address, 8 * MiB, tmp_path) == content
    assert os.stat(f"/proc/{owner.pid}/fd/{fd}").st_blocks * 512 == 8192


async def test_a_private_mapping_of_a_file(owner, tmp_path: Path) -> None:
    """Pages that it changed are its own; the rest are the file's, also those that nobody has touched."""
    under = noise(16 * PAGE) + b"tail"
    (tmp_path / "file").write_bytes(under)
    fd = owner.do(f"os.open({os.fspath(tmp_path / 'file')!r}, os.O_RDONLY)")
    address = owner.do(f"map({32 * PAGE}, 2, {fd})")
    owner.do(f"fill({address + PAGE}, {PAGE}, 7)")
    os.unlink(tmp_path / "file")
    content = under[:PAGE] + b"\7" * PAGE + under[2 * PAGE :]
    content += bytes(32 * PAGE - len(content))  # Past the end of the file is nothing.
    assert await dumped(owner, address, 32 * PAGE, tmp_path / "out") == content


async def test_what_it_may_not_read_itself(owner, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, "abcdef-h")
    owner.do(f"call('mprotect', {address + PAGE}, {2 * PAGE}, 0)")
    assert await dumped(owner, address, len(content), tmp_path) == content


async def test_guard_pages_are_holes(owner, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, "abcd")
    try:
        owner.do(f"call('madvise', {address + PAGE}, {PAGE}, {GUARD_INSTALL})")
    except OSError as error:
        unavailable(f"the kernel has no guard pages: {error}", excusable=True)
    expected = content[:PAGE] + bytes(PAGE) + content[2 * PAGE :]
    assert await dumped(owner, address, len(content), tmp_path) == expected


@pytest.fixture
def swap(ext4: Path) -> Iterator[None]:
    """A file to swap to."""
    path = ext4 / "swap"
    path.write_bytes(bytes(32 * MiB))
    path.chmod(0o600)
    for command in (["mkswap", "-q", str(path)], ["swapon", str(path)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            path.unlink()
            unavailable(f"{command[0]} says {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)
        path.unlink()


@pytest.mark.usefixtures("swap")
async def test_what_was_swapped_out_is_dumped(owner, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, "ab-" * 100)
    owner.do(f"call('madvise', {address}, {len(content)}, {PAGEOUT})")
    if not int(cost(owner)["VmSwap"].split()[0]):
        unavailable("the kernel swaps nothing out")
    assert look_at_process(owner.pid, address, len(content)).allocated == 200 * PAGE
    report = await asyncdump.dump_all(Dump(owner.range(address, len(content)), name="dump"), output=tmp_path)
    report.raise_for_failures()
    assert read(tmp_path / "dump") == content


# --- what can't be read ------------------------------------------------------------------------------------------------


async def test_pages_that_can_not_be_read(owner, tmp_path: Path, monkeypatch) -> None:
    """To a kernel that has guard pages and doesn't tell of them, they are pages like others."""
    address, content = laid_out(owner, PRIVATE, PAGE, "abcd" * 4)
    try:
        owner.do(f"call('madvise', {address + PAGE}, {PAGE}, {GUARD_INSTALL})")
    except OSError as error:
        unavailable(f"the kernel has no guard pages: {error}", excusable=True)
    monkeypatch.setattr(memory, "_unknown", {"guard"})
    dump = Dump(owner.range(address, len(content)), name="dump")
    (failed,) = (await asyncdump.dump_all(dump, output=tmp_path)).files
    assert isinstance(failed.error, DumpError)
    assert failed.error.errno in {errno.EIO, errno.EFAULT}
    assert f"byte {PAGE} ({address + PAGE:#x})" in str(failed.error)
    assert "on_read_error" in failed.error.hint
    report = await asyncdump.dump_all(dump, output=tmp_path, on_read_error="zero", overwrite=True)
    report.raise_for_failures()
    assert [(bad.offset, bad.length) for bad in report.files[0].bad] == [(PAGE, PAGE)]
    assert read(tmp_path / "dump") == content[:PAGE] + bytes(PAGE) + content[2 * PAGE :]


async def test_memory_that_is_unmapped_meanwhile(owner, tmp_path: Path) -> None:
    address, content = laid_out(owner, PRIVATE, MiB, "abcd")
    plan = await asyncdump.plan_all(Dump(owner.range(address, len(content)), name="dump"), output=tmp_path)
    owner.do(f"call('munmap', {address + 3 * MiB}, {MiB})")
    (failed,) = (await asyncdump.dump_all(plan)).files
    assert isinstance(failed.error, DumpError)
    assert f"{address + 3 * MiB:#x}" in str(failed.error)
    assert not (tmp_path / "dump").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up being root")
def test_the_memory_of_another_user(owner) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, "a")
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            look_at_process(owner.pid, address, len(content))
        except DumpError as error:
            os.write(writing, json.dumps([error.errno, error.hint]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading, "rb") as answer:
        number, hint = json.loads(answer.read())
    assert number in {errno.EACCES, errno.EPERM}
    assert "CAP_SYS_PTRACE" in hint
    assert "ptrace_scope" in hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a packet socket")
def test_memory_of_a_device_is_refused() -> None:
    """What stands for it: the ring of a packet socket, which is mapped and isn't a file."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.setsockopt(263, 5, struct.pack("4I", PAGE, 4, 2048, 8))  # SOL_PACKET, PACKET_RX_RING: tpacket_req
        with mmap.mmap(packets.fileno(), 4 * PAGE):
            lines = Path("/proc/self/maps").read_text().splitlines()
            low, high = next(line.split()[0] for line in lines if "socket:" in line).split("-")
            with pytest.raises(DumpError, match="of a device") as refused:
                look_at_process(os.getpid(), int(low, 16), int(high, 16) - int(low, 16))
    assert refused.value.errno is None


def test_a_private_mapping_of_dev_zero_is_memory(owner) -> None:
    fd = owner.do("os.open('/dev/zero', os.O_RDWR)")
    address = owner.do(f"map({4 * PAGE}, 2, {fd})")
    owner.do(f"fill({address}, {PAGE}, 1)")
    assert look_at_process(owner.pid, address, 4 * PAGE).allocated == PAGE


# --- other kernels -----------------------------------------------------------------------------------------------------

_DUMP = """
import json, sys, asyncdump
from asyncdump.kernel import memory
pid, address, length, folder = json.loads(sys.argv[1])
source = asyncdump.ProcessMemory(pid=pid, address=address, length=length)
asyncdump.dump_sync(asyncdump.Dump(source, name="dump"), output=folder).raise_for_failures()
print(*memory._unknown)
"""


@pytest.mark.parametrize(
    "rules",
    [
        ["process_vm_readv=EPERM"],
        ["process_vm_readv=ENOSYS"],
        [f"ioctl:1=={SCAN}=ENOTTY"],
        [f"ioctl:1=={SCAN}=EPERM", "process_vm_readv=EPERM"],
    ],
    ids=" ".join,
)
def test_calls_that_are_not_allowed_are_done_without(owner, rules, hugetlbfs, tmp_path: Path) -> None:
    seccomp.require()
    address, content = laid_out(owner, PRIVATE | HUGE, HUGE_PAGE, "-a-b")
    small, more = laid_out(owner, PRIVATE, PAGE, "a-b--c" * 40)
    before = cost(owner)
    for where, expected, name in ((address, content, "huge"), (small, more, "small")):
        given = json.dumps([owner.pid, where, len(expected), os.fspath(tmp_path / name)])
        command = [sys.executable, seccomp.__file__, *rules, "--", sys.executable, "-c", _DUMP, given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert ("scan" in done.stdout) is any(rule.startswith("ioctl") for rule in rules)
        assert read(tmp_path / name / "dump") == expected
    assert cost(owner) == before


@pytest.mark.parametrize("layout", ["a", "-", "a-b--c" * 40, "-" * 70 + "a", "ab" * 600])
def test_both_ways_to_list_pages_agree(owner, layout, monkeypatch) -> None:
    address, content = laid_out(owner, PRIVATE, PAGE, layout)
    fd = os.open(f"/proc/{owner.pid}/pagemap", os.O_RDONLY)
    try:
        found = []
        for unknown in (set(), {"guard"}, {"scan"}):
            monkeypatch.setattr(memory, "_unknown", unknown)
            found.append(list(memory.pages_in(fd, address + 5, address + len(content) - 5)))
        assert found[0] == found[1] == found[2]
        held = bytearray(len(content))
        for low, high in found[0]:
            held[low - address : high - address] = content[low - address : high - address]
        assert held[5:-5] == content[5:-5]
        owner.end()
        for unknown in (set(), {"scan"}):
            monkeypatch.setattr(memory, "_unknown", unknown)
            with pytest.raises(ProcessLookupError):
                list(memory.pages_in(fd, address, address + PAGE))
    finally:
        os.close(fd)
