"""What fits is written, though it doesn't look so: zeros that become holes, what is compressed, pages set aside."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from files import HUGE_PAGE, KiB, MiB, allocated, noise, read, unavailable, write_pages
from tool import COMMAND, asyncdump, check_whole, checked, content_of, run, write_manifest

_MAP_HUGETLB = 0x40000
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
ZEROS = bytes(8 * MiB)


def dumps_to(output: Path, source: str | Path, tmp_path: Path, **dump: object) -> Path:
    return write_manifest(tmp_path / "m.yaml", output, [{"source": str(source), "name": "dump", **dump}])


# --- a disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("data", "options", "fits"),
    [
        (ZEROS, {}, True),
        (noise(MiB) + ZEROS, {}, True),
        (ZEROS + noise(3 * MiB), {}, False),
        (noise(8 * MiB), {}, False),
        (noise(8 * MiB), {"offset": 7 * MiB}, True),
        (ZEROS, {"method": "mmap"}, False),
        (ZEROS, {"sparse": "never"}, False),
        (ZEROS, {"method": "read", "checksum": "none"}, True),
        # Single bytes, each in a page of its own.
        ((b"x" + bytes(4095)) * 300 + ZEROS, {}, True),
        ((b"x" + bytes(4095)) * 1500, {}, False),
    ],
)
def test_zeros_that_are_left_out_take_no_room(data, options, fits, tiny: Path, make, tmp_path) -> None:
    manifest = dumps_to(tiny / "out", make("tmpfs", data), tmp_path, **options)
    done = asyncdump(manifest, "-q")
    assert done.returncode == (0 if fits else 2), done.stderr
    if fits:
        expected = data[int(str(options.get("offset", 0))) :]
        assert check_whole(tiny / "out", {"dump": expected}) == {"dump"}
        assert allocated(tiny / "out" / "dump") <= 2 * MiB
    else:
        assert len(done.stderr.splitlines()) == 1


def test_several_that_fit_one_by_one_and_not_together(tiny: Path, make, tmp_path) -> None:
    dumps = [{"source": make("tmpfs", noise(1 * MiB + 512 * KiB, n) + ZEROS), "name": f"dump-{n}"} for n in range(2)]
    done = asyncdump(write_manifest(tmp_path / "m.yaml", tiny / "out", dumps), "-q")
    assert done.returncode == 2
    assert asyncdump(write_manifest(tmp_path / "m.yaml", tiny / "out", dumps[:1]), "-q").returncode == 0


def test_zeros_that_are_stored_take_no_room_where_they_are_restored(tiny: Path, ext4, make, tmp_path) -> None:
    output = ext4 / tmp_path.name
    manifest = dumps_to(output, make("tmpfs", noise(MiB) + ZEROS), tmp_path, method="mmap")
    assert asyncdump(manifest, "-q").returncode == 0
    done = asyncdump("restore", output, "--to", tiny / "back", "-q")
    assert done.returncode == 0, done.stderr
    assert read(tiny / "back" / "dump") == noise(MiB) + ZEROS
    other = ext4 / f"{tmp_path.name}-2"
    assert asyncdump(dumps_to(other, make("tmpfs", noise(4 * MiB)), tmp_path), "-q").returncode == 0
    assert asyncdump("restore", other, "--to", tiny / "more").returncode == 2


# --- a limit of the process ------------------------------------------------------------------------------------------


def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command where no file may have more than 2 MiB (ulimit -f)."""
    return checked(run("prlimit", f"--fsize={2 * MiB}", COMMAND, *[str(each) for each in arguments]))


def test_what_is_compressed_may_fit_into_a_limit(ext4, make, tmp_path) -> None:
    output = ext4 / tmp_path.name
    data = noise(MiB) + ZEROS + noise(100, 5)
    source = make("tmpfs", data)
    done = limited(dumps_to(output, source, tmp_path), "-q", "--compress", "zstd")
    manifest = write_manifest(tmp_path / "m.yaml", output, [{"source": source, "name": "dump.zst"}])
    assert done.returncode == 0, done.stderr
    assert len(read(output / "dump")) < 2 * MiB
    done = limited(manifest, "-q", "--compress", "zstd", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert content_of(output / "dump.zst") == data
    assert asyncdump("verify", output).returncode == 0


@pytest.mark.parametrize("compress", ["zstd", "none"])
def test_what_does_not_fit_is_told(compress, ext4, make, tmp_path) -> None:
    output = ext4 / tmp_path.name
    done = limited(dumps_to(output, make("tmpfs", noise(5 * MiB)), tmp_path), "-q", "--compress", compress)
    assert done.returncode == 1
    assert "EFBIG" in done.stderr
    assert "ulimit" in done.stderr
    assert "dump" not in os.listdir(output)


# --- huge pages ------------------------------------------------------------------------------------------------------


@contextmanager
def all_taken(left: int) -> Iterator[None]:
    """Reserve all pages of the pool but some."""
    free, reserved = (int((_POOL / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    if free - reserved <= left:
        unavailable("too few huge pages are free")
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    hog = mmap.mmap(-1, (free - reserved - left) * HUGE_PAGE, flags=flags)
    try:
        yield
    finally:
        hog.close()


@contextmanager
def huge_mount(point: Path, options: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize=2M,{options}", "none", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.fixture
def dumped(hugetlbfs, ext4, make, tmp_path) -> Path:
    """The dump of four huge pages."""
    output: Path = ext4 / tmp_path.name
    manifest = dumps_to(output, make("hugetlbfs", noise(4 * HUGE_PAGE)), tmp_path)
    assert asyncdump(manifest, "-q").returncode == 0
    return output


@pytest.mark.parametrize(
    ("options", "left", "fits"),
    [
        (f"min_size={4 * HUGE_PAGE}", 0, True),
        (f"min_size={4 * HUGE_PAGE},size={6 * HUGE_PAGE}", 0, True),
        (f"size={4 * HUGE_PAGE},min_size={4 * HUGE_PAGE}", 0, True),
        (f"min_size={2 * HUGE_PAGE}", 2, True),
        (f"min_size={2 * HUGE_PAGE}", 1, False),
        (f"size={6 * HUGE_PAGE}", 0, False),
        (f"min_size={4 * HUGE_PAGE},size={4 * HUGE_PAGE}", 4, True),
    ],
)
def test_pages_that_a_mount_has_reserved_are_its_own(options, left, fits, dumped: Path, tmp_path) -> None:
    with huge_mount(tmp_path / "mount", options) as mount, all_taken(left):
        done = asyncdump("restore", dumped, "--to", mount, "-q")
        assert done.returncode == (0 if fits else 2), done.stderr
        if fits:
            assert read(mount / "dump") == noise(4 * HUGE_PAGE)
            (mount / "dump").unlink()


def test_pages_reserved_and_used_are_not_counted_again(dumped: Path, tmp_path) -> None:
    options = f"min_size={4 * HUGE_PAGE},size={8 * HUGE_PAGE}"
    with huge_mount(tmp_path / "mount", options) as mount, all_taken(0):
        assert asyncdump("restore", dumped, "--to", mount, "-q").returncode == 0
        done = asyncdump("restore", dumped, "--to", mount / "again", "-q")
        assert done.returncode == 2
        assert "2.0 MiB" in done.stderr
        (mount / "dump").unlink()


def test_zeros_that_are_stored_take_no_huge_pages(hugetlbfs, ext4, make, tmp_path) -> None:
    output = ext4 / tmp_path.name
    data = noise(HUGE_PAGE) + bytes(3 * HUGE_PAGE)
    source = ext4 / f"{tmp_path.name}.source"
    write_pages(source, data)
    manifest = dumps_to(output, source, tmp_path, method="mmap")
    assert asyncdump(manifest, "-q").returncode == 0
    with huge_mount(tmp_path / "mount", f"size={HUGE_PAGE}") as mount:
        done = asyncdump("restore", output, "--to", mount, "-q")
        assert done.returncode == 0, done.stderr
        assert read(mount / "dump") == data
        (mount / "dump").unlink()
