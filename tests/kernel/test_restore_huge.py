"""Back into huge pages: through a mapping, with the holes that were there, and never with more pages than there are."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import HUGE_PAGE, allocated, free_pages, leftovers, noise, read, write_huge

import asyncdump
from asyncdump import Dump, Zstd, restore_all


def sparse(pages: int, *data: int) -> bytes:
    """Return huge pages of zeros, but for those of these numbers."""
    return b"".join(noise(HUGE_PAGE, page) if page in data else bytes(HUGE_PAGE) for page in range(pages))


@pytest.fixture
def target(hugetlbfs: Path) -> Iterator[Path]:
    place = hugetlbfs / "back"
    yield place
    if place.exists():
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


async def dump(output: Path, *sources: str, **options: Any) -> None:
    dumps = [Dump(source=source, name=f"map_{n}") for n, source in enumerate(sources)]
    (await asyncdump.dump_all(dumps, output=output, **options)).raise_for_failures()


@pytest.mark.sample(2)
@pytest.mark.parametrize("compress", ["none", "zstd", Zstd(frame="256KiB"), Zstd(frame="8MiB")])
async def test_into_huge_pages_and_no_more_than_were_held(compress, make, target, hugetlbfs, tmp_path) -> None:
    sources = [make("hugetlbfs", sparse(6, *data), holes=True) for data in ((0, 3), (5,), (), (1, 2, 3, 4))]
    await dump(tmp_path / "out", *sources, compress=compress)
    free = free_pages(hugetlbfs)
    (await restore_all(tmp_path / "out", target)).raise_for_failures()
    for number, source in enumerate(sources):
        assert read(target / f"map_{number}") == read(source)
        assert allocated(target / f"map_{number}") == allocated(source)
    assert free - free_pages(hugetlbfs) == 7


@pytest.mark.parametrize("size", [1, 4096, HUGE_PAGE + 5, 3 * HUGE_PAGE - 1])
async def test_a_size_that_is_no_whole_page_is_filled_up(size, make, target, tmp_path) -> None:
    await dump(tmp_path / "out", make("tmpfs", noise(size)))
    (await restore_all(tmp_path / "out", target)).raise_for_failures()
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    assert read(target / "map_0") == noise(size).ljust(whole, b"\0")


@pytest.mark.parametrize("compress", ["none", "zstd"])
async def test_too_few_free_pages_are_told_before_a_byte_is_written(compress, make, hugetlbfs, tmp_path) -> None:
    await dump(tmp_path / "out", make("hugetlbfs", noise(4 * HUGE_PAGE)), compress=compress)
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize=2M,size={3 * HUGE_PAGE}", "none", point], check=True)
    try:
        with pytest.raises(asyncdump.ReceiptError, match=r"\b4 .* 2\.0 MiB.* 3 "):
            await restore_all(tmp_path / "out", point)
        assert os.listdir(point) == []
    finally:
        subprocess.run(["umount", point], check=True)


async def test_pages_that_go_away_meanwhile_are_an_error_and_leave_nothing(make, hugetlbfs, tmp_path) -> None:
    """Frames of one repeated byte look like zeros from outside: the mapping is the last to know."""
    await dump(tmp_path / "out", make("hugetlbfs", b"\x55" * (4 * HUGE_PAGE)), compress="zstd")
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize=2M,size={3 * HUGE_PAGE}", "none", point], check=True)
    try:
        report = await restore_all(tmp_path / "out", point)
        [failed] = report.failures
        assert isinstance(failed.error, asyncdump.DumpError)
        assert failed.error.errno == errno.ENOMEM
        assert "nr_hugepages" in failed.error.hint
        assert os.listdir(point) == []
    finally:
        subprocess.run(["umount", point], check=True)


async def test_over_what_is_there(make, target, hugetlbfs, tmp_path) -> None:
    await dump(tmp_path / "out", make("hugetlbfs", noise(2 * HUGE_PAGE)))
    target.mkdir()
    write_huge(target / "map_0", b"old" * 1000)
    with pytest.raises(asyncdump.TargetExistsError):
        await restore_all(tmp_path / "out", target)
    (await restore_all(tmp_path / "out", target, overwrite=True)).raise_for_failures()
    assert read(target / "map_0") == noise(2 * HUGE_PAGE)
    assert leftovers(target) == []


async def test_damage_takes_no_page(make, target, hugetlbfs, tmp_path) -> None:
    await dump(tmp_path / "out", make("hugetlbfs", noise(3 * HUGE_PAGE)))
    with open(tmp_path / "out" / "map_0", "r+b") as file:
        file.seek(5 * HUGE_PAGE // 2)
        file.write(b"\0\0\0\0")
    free = free_pages(hugetlbfs)
    report = await restore_all(tmp_path / "out", target)
    assert isinstance(report.failures[0].error, asyncdump.DamagedError)
    assert os.listdir(target) == []
    assert free_pages(hugetlbfs) == free


async def test_into_one_gigantic_page(make, gigantic: Path, tmp_path) -> None:
    data = bytes(3 * HUGE_PAGE) + noise(HUGE_PAGE + 9)
    await dump(tmp_path / "out", make("tmpfs", data))
    try:
        (await restore_all(tmp_path / "out", gigantic / "back")).raise_for_failures()
        with open(gigantic / "back" / "map_0", "rb") as file:
            assert file.read(len(data) + 4096) == data + bytes(4096)
    finally:
        for path in (gigantic / "back").iterdir():
            path.unlink()
        (gigantic / "back").rmdir()
