"""Every engine, from every kind of file, onto every filesystem: the bytes are the same, or the kernel's no is told."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from files import (
    HUGE_KINDS,
    METHODS,
    PAGE,
    Dumper,
    GiB,
    KiB,
    MiB,
    allocated,
    content,
    digest_of,
    finish,
    leftovers,
    look_at,
    new_transfer,
    noise,
    read,
    unavailable,
    write_huge,
)

import asyncdump
from asyncdump.kernel.lane import Lane
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.values import Checksum

KINDS = ("hugetlbfs", "tmpfs", "memfd", "huge_memfd", "ext4", "xfs", "btrfs")
DESTINATIONS = ("ext4", "xfs", "btrfs", "tmpfs")
SIZES = (0, 1, 4095, 4096, 4097, 2 * MiB - 1, 2 * MiB, 2 * MiB + 1)
OFFSETS = (0, 1, 512, PAGE, 2 * MiB + 1)
CHECKSUMS: tuple[Checksum, ...] = ("none", "xxh128", "none", "blake3", "sha256")
LARGE = content(8 * MiB)


class Case:
    """One transfer of the table: what is cut out of which file, and how."""

    def __init__(self, path: str, offset: int, data: bytes, number: int) -> None:
        self.path = path
        self.offset = offset
        self.data = data
        # Five checksums, two ways with zeros, eight sizes by six cuts: each pair of choices comes up.
        self.checksum = CHECKSUMS[number % len(CHECKSUMS)]
        self.sparse = bool((number // 3) % 2)

    def options(self) -> dict[str, object]:
        return {
            "offset": self.offset,
            "length": len(self.data),
            "checksum": self.checksum,
            "sparse": self.sparse,
        }


def table(make, kind: str) -> Iterator[Case]:
    numbers = itertools.count()
    large = make(kind, LARGE, holes=False)
    holey = large if kind in HUGE_KINDS else make(kind, LARGE, holes=True)
    for size, offset in itertools.product(SIZES, OFFSETS):
        number = next(numbers)
        yield Case((large, holey)[number % 2], offset, LARGE[offset : offset + size], number)
    yield Case(large, 0, LARGE, 1)
    yield Case(holey, 4096, LARGE[4096:], 4)
    yield Case(large, len(LARGE), b"", next(numbers))
    if kind not in HUGE_KINDS:
        for size in SIZES:
            data = content(size)
            yield Case(make(kind, data), 0, data, next(numbers))


def refusal(method: str, kind: str, destination: str, case: Case) -> int | None:
    """Return the errno with which this kernel refuses a method, or None where it has to work."""
    if method == "direct" and case.offset % PAGE:
        return errno.EINVAL
    if not case.data:
        return None
    if method in {"sendfile", "splice"} and kind in HUGE_KINDS:
        return errno.EINVAL
    if method == "reflink" and kind != destination:
        return errno.EXDEV
    return None


def check_refusal(error: asyncdump.MethodRefusedError, method: str, expected: int, case: Case) -> None:
    assert error.errno == expected
    assert error.operation == method
    assert "auto" in error.hint
    assert "read" in error.hint or not case.data


def check_dump(path: str, case: Case, digest: str | None) -> None:
    assert Path(path).read_bytes() == case.data
    assert digest == digest_of(case.data, case.checksum)
    if not case.sparse and len(case.data) >= PAGE:
        assert allocated(path) >= len(case.data)


@pytest.mark.sample(4)
@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_the_bytes_are_the_same_or_the_method_is_refused(
    method, kind, destination, make, dump: Dumper, folder_on
) -> None:
    folder: Folder = folder_on(destination)
    for case in table(make, kind):
        expected = refusal(method, kind, destination, case)
        place = f"offset {case.offset}, length {len(case.data)}, {case.options()}"
        if expected is not None:
            with pytest.raises(asyncdump.MethodRefusedError) as refused:
                dump(folder, case.path, method=method, **case.options())
            check_refusal(refused.value, method, expected, case)
            assert os.listdir(folder.path) == [], place
        else:
            transfer = dump(folder, case.path, method=method, **case.options())
            check_dump(os.path.join(folder.path, "dump"), case, transfer.digest)
            os.unlink(os.path.join(folder.path, "dump"))


@pytest.mark.parametrize(
    ("kind", "destination", "checksum", "method"),
    [
        ("hugetlbfs", "ext4", "none", "direct"),
        ("huge_memfd", "xfs", "none", "direct"),
        ("tmpfs", "ext4", "none", "direct"),
        ("hugetlbfs", "ext4", "xxh128", "read"),
        ("xfs", "xfs", "xxh128", "reflink"),
        ("btrfs", "btrfs", "none", "reflink"),
        ("xfs", "btrfs", "none", "read"),
    ],
)
def test_auto_chooses_the_fastest_that_is_right(
    kind, destination, checksum, method, make, dump: Dumper, folder_on
) -> None:
    transfer = dump(folder_on(destination), make(kind, LARGE), checksum=checksum)
    assert transfer.engine is not None
    assert transfer.engine.method == method


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_reflink_takes_no_room(kind, make, dump: Dumper, folder_on) -> None:
    source = make(kind, noise(64 * MiB))
    os.sync()
    folder = folder_on(kind)
    before = os.statvfs(folder.path)
    dump(folder, source, method="reflink", durable=True)
    after = os.statvfs(folder.path)
    assert (before.f_bfree - after.f_bfree) * before.f_frsize < 8 * MiB


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, "ext4") for method in METHODS),
        *((method, "tmpfs") for method in METHODS if method != "reflink"),
        *((method, "hugetlbfs") for method in ("direct", "mmap", "read")),
    ],
)
def test_lanes_share_a_file(method, kind, make, folder_on) -> None:
    data = noise(48 * MiB)
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(make(kind, data)), method=method, checksum="xxh128")
    first = Lane()
    transfer.begin(folder, first)
    helpers = [Lane() for _ in range(3)]
    threads = [threading.Thread(target=transfer.work, args=(lane,)) for lane in helpers]
    for thread in threads:
        thread.start()
    transfer.work(first)
    for thread in threads:
        thread.join()
    finish(transfer, folder, first)
    for lane in (first, *helpers):
        lane.close()
    assert Path(folder.path, "dump").read_bytes() == data
    assert transfer.digest == digest_of(data, "xxh128")


@pytest.mark.parametrize("method", ["auto", "read"])
@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
def test_zeros_that_are_seen_are_left_out(kind, method, make, dump: Dumper, folder_on) -> None:
    data = noise(2 * MiB) + bytes(4 * MiB) + noise(2 * MiB)
    folder = folder_on("ext4")
    transfer = dump(folder, make(kind, data), method=method, checksum="xxh128")
    path = Path(folder.path, "dump")
    assert path.read_bytes() == data
    assert allocated(path) <= 4 * MiB + 64 * KiB
    assert transfer.sink is not None
    assert transfer.sink.stored == 4 * MiB
    dump(folder, make(kind, data), method=method, sparse=False)
    assert allocated(path) >= 8 * MiB


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs", "xfs"])
async def test_a_whole_run_over_odd_cuts(kind, make, folder_on) -> None:
    source = make(kind, LARGE)
    cuts = [(offset, size) for offset in OFFSETS for size in SIZES]
    folder = folder_on("ext4")
    dumps = [
        asyncdump.Dump(source=source, name=f"{offset}-{size}", offset=offset, length=size) for offset, size in cuts
    ]
    report = await asyncdump.dump_all(dumps, output=folder.path)
    report.raise_for_failures()
    for file, (offset, size) in zip(report.files, cuts, strict=True):
        data = LARGE[offset : offset + size]
        assert read(file.path) == data
        assert file.digest == f"xxh128:{digest_of(data, 'xxh128')}"
    assert leftovers(folder.path) == []


async def test_a_run_names_the_method_that_was_refused(make, folder_on) -> None:
    folder = folder_on("ext4")
    good, bad = (make("hugetlbfs", LARGE) for _ in range(2))
    report = await asyncdump.dump_all(
        [
            asyncdump.Dump(source=good, name="good", method="direct"),
            asyncdump.Dump(source=bad, name="bad", method="sendfile"),
        ],
        output=folder.path,
    )
    assert [file.ok for file in report.files] == [True, False]
    error = report.files[1].error
    assert isinstance(error, asyncdump.MethodRefusedError)
    assert error.errno == errno.EINVAL
    assert "direct" in error.hint
    assert sorted(os.listdir(folder.path)) == ["XXH128SUMS", "good", "receipt.json"]


ISLANDS = {0: noise(5000, 1), GiB + 1: noise(3 * MiB, 2), 2 * GiB - 2: noise(4099, 3)}
HUGE_SIZE = 2 * GiB + 4097


def test_the_islands_end_where_the_file_does() -> None:
    assert max(start + len(data) for start, data in ISLANDS.items()) == HUGE_SIZE


@pytest.fixture(scope="module")
def huge_digest() -> str:
    """The digest of 2 GiB of zeros with islands in it, from a walk of our own."""
    hasher, done = xxhash.xxh3_128(), 0
    zeros = bytes(16 * MiB)
    for start, data in ISLANDS.items():
        while done < start:
            step = min(start - done, len(zeros))
            hasher.update(memoryview(zeros)[:step])
            done += step
        hasher.update(data)
        done += len(data)
    return str(hasher.hexdigest())


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("tmpfs", "ext4") for method in METHODS if (kind, method) != ("tmpfs", "reflink")],
)
def test_over_two_gib_and_mostly_holes(kind, method, request, dump: Dumper, folder_on, huge_digest) -> None:
    source = request.getfixturevalue(kind) / "over-2-GiB"
    try:
        with source.open("wb") as file:
            file.truncate(HUGE_SIZE)
            for start, data in ISLANDS.items():
                os.pwrite(file.fileno(), data, start)
        held = allocated(source)
        folder = folder_on("ext4")
        transfer = dump(folder, source, method=method, checksum="xxh128")
        path = Path(folder.path, "dump")
        assert transfer.digest == huge_digest
        assert path.stat().st_size == HUGE_SIZE
        assert allocated(path) < 4 * MiB
        assert allocated(source) == held
        with path.open("rb") as file:
            for start, data in ISLANDS.items():
                assert os.pread(file.fileno(), len(data), start) == data
    finally:
        source.unlink()


def stream_digest(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(16 * MiB):
            hasher.update(piece)
            os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
    return str(hasher.hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "read"])
def test_over_two_gib_of_data(method, tmpfs: Path, ext4: Path, dump: Dumper, folder_on) -> None:
    if os.sysconf("SC_AVPHYS_PAGES") * PAGE < 4 * GiB:
        unavailable("less than 4 GiB of memory are free", excusable=True)
    source = tmpfs / "dense"
    try:
        with source.open("wb") as file:
            hasher = xxhash.xxh3_128()
            for number in range(2 * GiB // (32 * MiB)):
                piece = noise(32 * MiB, number * 977)
                hasher.update(piece)
                file.write(piece)
            file.write(noise(4097))
            hasher.update(noise(4097))
        folder = folder_on("ext4")
        transfer = dump(folder, source, method=method, checksum="xxh128")
        assert transfer.digest == hasher.hexdigest()
        assert stream_digest(Path(folder.path, "dump")) == hasher.hexdigest()
    finally:
        source.unlink()


def check_islands(path: Path, islands: dict[int, bytes], digest: str | None) -> None:
    assert path.stat().st_size == GiB
    assert digest is None or digest == f"xxh128:{stream_digest(path)}"
    with path.open("rb") as file:
        for start, data in islands.items():
            assert os.pread(file.fileno(), len(data), start) == data
        assert not any(os.pread(file.fileno(), MiB, 100 * MiB))


@pytest.mark.slow
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
async def test_a_page_of_one_gib(checksum, gigantic: Path, folder_on) -> None:
    source = gigantic / "page"
    islands = {0: noise(5 * MiB, 1), GiB // 2 + 1: noise(9 * MiB, 2), GiB - 5: noise(5, 3)}
    try:
        write_huge(source, b"\1", page=GiB)
        with source.open("r+b") as file, mmap.mmap(file.fileno(), GiB) as mapping:
            for start, data in islands.items():
                mapping[start : start + len(data)] = data
        folder = folder_on("ext4")
        report = await asyncdump.dump_all(
            [asyncdump.Dump(source=str(source), name="dump")], output=folder.path, checksum=checksum
        )
        report.raise_for_failures()
        [done] = report.files
        assert done.method == ("direct" if checksum == "none" else "read")
        check_islands(Path(done.path), islands, done.digest)
    finally:
        source.unlink()


def test_digests_are_those_of_the_libraries() -> None:
    for checksum in CHECKSUMS:
        hasher = new_digest(checksum)
        if hasher is not None:
            hasher.update(memoryview(LARGE))
            assert hasher.hexdigest() == digest_of(LARGE, checksum)
