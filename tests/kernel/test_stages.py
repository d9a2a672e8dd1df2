"""Stages on a real kernel: what goes in comes out, and nothing is left of a filter that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from files import (
    HUGE_KINDS,
    GiB,
    KiB,
    MiB,
    allocated,
    children,
    content,
    digest_of,
    leftovers,
    mentions,
    noise,
    read,
    unavailable,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncdump
from asyncdump import Dump, Zstd

FRAME = 64 * KiB
SIZES = (0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * MiB + 1, 5 * MiB)
KINDS = ("hugetlbfs", "huge_memfd", "tmpfs", "memfd", "ext4", "xfs")
SMALL = Zstd(level=1, frame=FRAME)
STAGES: dict[str, dict[str, Any]] = {
    "zstd": {"compress": SMALL},
    "filter": {"filter": [["cat"]]},
    "filters": {"filter": [["cat"], ["cat"], ["cat"]]},
    "zstd, filter": {"compress": SMALL, "filter": [["cat"]]},
    "filter, zstd": {"compress": SMALL, "filter": [["cat"]], "first": "filter"},
}


def content_of(path: str) -> bytes:
    # Names here don't tell what programs have made of a dump; none of the contents begins as a .zst does.
    with asyncdump.open_dump(path, compressed=read(path)[:4] == b"\x28\xb5\x2f\xfd") as dump:
        return dump.read()


def no_child_is_left() -> bool:
    return children() == []


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", ["auto", "read", "splice"])
@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_goes_in_comes_out(kind, stages, method, make, folder_on) -> None:
    data = content(6 * MiB)
    sources = [make(kind, data, holes=holes) for holes in ([False] if kind in HUGE_KINDS else [False, True])]
    cuts = [(source, size, offset) for source in sources for size in SIZES for offset in (0, 4097)]
    dumps = [
        Dump(source=source, name=str(number), offset=offset, length=size, method=method, **STAGES[stages])
        for number, (source, size, offset) in enumerate(cuts)
    ]
    report = await asyncdump.dump_all(dumps, output=folder_on("ext4").path, allow_filters=True)
    report.raise_for_failures()
    for file, (_, size, offset) in zip(report.files, cuts, strict=True):
        expected = data[offset : offset + size]
        assert content_of(file.path) == expected, file
        assert file.digest == f"xxh128:{digest_of(read(file.path), 'xxh128')}"
        if stages.startswith("zstd"):
            assert file.content_digest == f"xxh128:{digest_of(expected, 'xxh128')}"
        assert file.stored == os.path.getsize(file.path)
    assert no_child_is_left()


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
async def test_zstd_itself_accepts_it(kind, make, folder_on) -> None:
    if shutil.which("zstd") is None:
        unavailable("zstd is not installed")
    sources = [make(kind, content(size)) for size in (1, 5 * MiB)]
    sources += [make(kind, b"")] if kind == "tmpfs" else []
    dumps = [Dump(source=source, name=f"{number}.zst", compress="zstd") for number, source in enumerate(sources)]
    folder = folder_on("ext4").path
    report = await asyncdump.dump_all(dumps, output=folder)
    report.raise_for_failures()
    for file in report.files:
        subprocess.run(["zstd", "-t", "-q", file.path], check=True)
        listed = subprocess.run(["zstd", "--list", "-v", file.path], check=True, capture_output=True, text=True).stdout
        assert "XXH64" in listed
        plain = subprocess.run(["zstd", "-dc", file.path], check=True, capture_output=True).stdout
        assert plain == read(file.source)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    size=st.integers(0, 3 * MiB),
    offset=st.integers(0, 5000),
    level=st.integers(-5, 12),
    frame=st.integers(4 * KiB, MiB),
    checksum=st.booleans(),
    threads=st.integers(0, 3),
    long=st.none() | st.integers(10, 27),
    filters=st.integers(0, 2),
    first=st.sampled_from(["compress", "filter"]),
    method=st.sampled_from(["auto", "read", "splice"]),
)
def test_any_stages_keep_the_content(tmp_path_factory, tmpfs: Path, **drawn: Any) -> None:
    source, folder = tmpfs / "property", tmp_path_factory.mktemp("property")
    data = content(drawn["offset"] + drawn["size"])
    source.write_bytes(data)
    zstd = Zstd(**{name: drawn[name] for name in ("level", "frame", "checksum", "threads", "long")})
    dump = Dump(
        source=str(source),
        name="dump",
        offset=drawn["offset"],
        method=drawn["method"],
        compress=zstd,
        filter=[["cat"]] * drawn["filters"],
        first=drawn["first"],
    )

    async def run() -> asyncdump.Report:
        return await asyncdump.dump_all([dump], output=folder, allow_filters=True)

    report = anyio.run(run)
    report.raise_for_failures()
    assert content_of(str(folder / "dump")) == data[drawn["offset"] :]
    source.unlink()


async def test_a_large_hole_costs_next_to_nothing(tmpfs: Path, folder_on) -> None:
    source = tmpfs / "over-4-GiB"
    size = 4 * GiB + 12345
    islands = {0: noise(5000, 1), 2 * GiB + 1: noise(3 * MiB, 2), size - 7: noise(7, 3)}
    try:
        with source.open("wb") as file:
            file.truncate(size)
            for start, data in islands.items():
                os.pwrite(file.fileno(), data, start)
        held = allocated(source)
        report = await asyncdump.dump_all(
            [Dump(source=str(source), name="dump", compress="zstd", checksum="none")], output=folder_on("ext4").path
        )
        report.raise_for_failures()
        assert report.stored < 4 * MiB
        assert report.seconds < 5
        assert allocated(source) == held
        with asyncdump.open_dump(report.files[0].path) as dump:
            assert dump.seek(0, os.SEEK_END) == size
            for start, data in islands.items():
                dump.seek(start)
                assert dump.read(len(data)) == data
            dump.seek(3 * GiB)
            assert not any(dump.read(100))
    finally:
        source.unlink()


@pytest.mark.parametrize("stages", STAGES)
async def test_holes_in_huge_pages_take_none(stages, make, folder_on) -> None:
    data = noise(2 * MiB) + bytes(4 * MiB) + noise(2 * MiB)
    source = make("hugetlbfs", data, holes=True)
    report = await asyncdump.dump_all(
        [Dump(source=source, name="dump", **STAGES[stages])], output=folder_on("ext4").path, allow_filters=True
    )
    report.raise_for_failures()
    assert content_of(report.files[0].path) == data
    assert allocated(source) == 4 * MiB


# --- filters that fail -------------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("filters", "says", "status"),
    [
        ([["sh", "-c", "echo oh no >&2; exit 3"]], ["sh", "oh no"], 3),
        ([["cat"], ["sh", "-c", "cat > /dev/null; exit 4"], ["cat"]], ["sh", 4], 4),
        ([["cat"], ["sh", "-c", "kill -9 $$"], ["cat"]], ["sh", "SIGKILL"], -9),
        ([["head", "-c", "10"]], ["head"], 0),
        ([["sleep", "1000"]], ["sleep", "0.5 s"], None),
        ([["sh", "-c", "cat > /dev/null; sleep 1000 & echo hi"]], ["sh", "0.5 s"], None),
        ([["sh", "-c", "cat; exec >&-; sleep 1000"]], ["sh", "0.5 s"], None),
        ([["sh", "-c", "yes on-and-on | head -c 1000000 >&2; exit 1"]], ["[argument 2]"], 1),
    ],
    ids=["status", "one of three", "signal", "little read", "nothing", "much read", "nothing more", "flood"],
)
@pytest.mark.parametrize("kind", ["tmpfs", "hugetlbfs"])
async def test_a_filter_that_fails(kind, filters, says, status, make, folder_on) -> None:
    folder = folder_on("ext4").path
    dumps = [
        Dump(source=make(kind, noise(6 * MiB)), name="bad", filter=filters, timeout=0.5),
        Dump(source=make(kind, noise(2 * MiB)), name="good", filter=[["cat"]]),
    ]
    descriptors = len(os.listdir("/proc/self/fd"))
    report = await asyncdump.dump_all(dumps, output=folder, allow_filters=True)
    bad, good = report.files
    assert good.ok
    assert isinstance(bad.error, asyncdump.FilterError)
    assert mentions(bad.error, *says)
    assert bad.error.command == says[0] or len(says) == 1
    assert len(str(bad.error)) < 2500
    assert bad.error.status == status
    assert sorted(os.listdir(folder)) == ["XXH128SUMS", "good", "receipt.json"]
    assert no_child_is_left()
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_cancelled_filter_leaves_no_process(make, folder_on) -> None:
    folder = folder_on("ext4").path
    dump = Dump(source=make("tmpfs", noise(6 * MiB)), name="stuck", filter=[["sh", "-c", "sleep 1000"], ["cat"]])
    async with asyncdump.open_run([dump], output=folder, allow_filters=True) as run:
        while not children():
            await anyio.sleep(0.001)
        began = time.perf_counter()
        run.cancel()
    assert time.perf_counter() - began < 0.5
    assert run.report.interrupted == "cancelled"
    assert no_child_is_left()
    assert leftovers(folder) == []


async def test_a_manifest_alone_runs_nothing(make, folder_on, tmp_path: Path) -> None:
    folder = folder_on("ext4").path
    dump = Dump(source=make("tmpfs", b"x"), filter=[["touch", str(tmp_path / "ran")]])
    with pytest.raises(asyncdump.ManifestError, match="allow_filters"):
        await asyncdump.dump_all([dump], output=folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(asyncdump.ManifestError, match="no-such-program"):
        await asyncdump.dump_all(
            [Dump(source=dump.source, filter=[["no-such-program"]])], output=folder, allow_filters=True
        )


@pytest.mark.parametrize("kind", ["tmpfs", "hugetlbfs"])
async def test_no_byte_passes_through_python(kind, make, folder_on, tmp_path: Path) -> None:
    """Of what a filter is fed and gives, this process reads and writes nothing itself."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    source, folder = make(kind, noise(16 * MiB)), folder_on("ext4").path
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(
        f"version: 1\noutput: {folder}\ndefaults: {{checksum: none}}\n"
        f"dumps:\n  - {{source: {source}, name: dump, filter: [[cat]]}}\n"
    )
    logs = tmp_path / "strace"
    logs.mkdir()
    calls = "read,write,readv,writev,pread64,pwrite64,preadv2,pwritev2,execve"
    tracing = ["strace", "-ff", "-qq", "-e", f"trace={calls}", "-o", str(logs / "log")]
    subprocess.run([*tracing, sys.executable, "-m", "asyncdump", str(manifest), "--allow-filters", "-q"], check=True)
    largest = 0
    for log in logs.iterdir():
        lines = log.read_text().splitlines()
        if not any('["cat"]' in line for line in lines):
            answers = [line.rpartition("= ")[2].split()[0] for line in lines]
            largest = max(largest, *(int(answer) for answer in answers if answer.isdigit()), 0)
    assert largest < 256 * KiB
    assert read(os.path.join(folder, "dump")) == read(source)


# --- standard output -----------------------------------------------------------------------------------------------------


def command(folder: Path, source: str, *options: str, **keys: str) -> list[str]:
    manifest = folder / "manifest.yaml"
    more = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    manifest.write_text(f'version: 1\noutput: "-"\ndumps:\n  - source: {source}\n{more}')
    return [sys.executable, "-m", "asyncdump", str(manifest), "--quiet", "--allow-filters", *options]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "keys", [{}, {"compress": "zstd"}, {"filter": "[[cat]]"}, {"filter": "[[cat]]", "compress": "zstd"}]
)
@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs", "ext4"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_a_dump_to_standard_output(to, kind, keys, make, tmp_path: Path) -> None:
    data = content(8 * MiB) + noise(2 * MiB)
    arguments = command(tmp_path, make(kind, data), **keys)
    out = tmp_path / "out"
    if to == "pipe":
        out.write_bytes(subprocess.run(arguments, stdout=subprocess.PIPE, check=True).stdout)
    else:
        with out.open("wb") as file:
            file.write(b"before")
            file.flush()
            subprocess.run(arguments, stdout=file, check=True)
        whole = out.read_bytes()
        assert whole[:6] == b"before"
        out.write_bytes(whole[6:])
    assert content_of(str(out)) == data


@pytest.mark.parametrize("keys", [{}, {"compress": "zstd"}, {"filter": "[[cat]]"}])
def test_a_reader_that_goes_away_ends_the_run(keys, make, tmp_path: Path) -> None:
    arguments = command(tmp_path, make("tmpfs", noise(8 * MiB)), **keys)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 1
    assert "EPIPE" in said
    assert "Traceback" not in said


def test_only_one_dump_fits_into_standard_output(make, tmp_path: Path) -> None:
    arguments = command(tmp_path, f"{make('tmpfs', b'x')}\n  - source: {make('tmpfs', b'y')}")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert mentions(done.stderr, "output: ", 2)


# A process begins with the peak memory of the one that starts it: this starts from a small one.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(arguments: list[str], peak: Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", MEASURE, str(peak), *arguments], **options)


def peak_of(process: subprocess.Popen[bytes], peak: Path) -> int:
    """Return the peak memory in bytes of a process that has ended well."""
    assert process.wait() == 0
    return int(peak.read_text()) * KiB


@pytest.mark.sample(1)
@pytest.mark.parametrize("keys", [{}, {"compress": "zstd"}, {"filter": "[[cat]]"}])
def test_a_slow_reader_holds_memory_flat(keys, tmpfs: Path, tmp_path: Path) -> None:
    """Backpressure: the pipe is full, and that is all that is held."""
    source = tmpfs / "slow"
    peaks = {}
    for size in (16, 192):
        source.write_bytes(noise(size * MiB))
        with measured(command(tmp_path, str(source), **keys), tmp_path / "peak", stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while process.stdout.read(4 * MiB):
                time.sleep(0.01)  # The point of it: some ten times slower than it could be.
        peaks[size] = peak_of(process, tmp_path / "peak")
    source.unlink()
    assert peaks[192] < peaks[16] + 16 * MiB
    assert peaks[192] < 200 * MiB


@pytest.mark.sample(1)
@pytest.mark.parametrize("more", ["", "    filter: [[cat]]\n    first: filter\n"])
def test_the_budget_is_kept_whatever_the_level(more, tmpfs: Path, tmp_path: Path) -> None:
    sources = []
    for number in range(8):
        sources.append(tmpfs / f"budget-{number}")
        sources[-1].write_bytes(noise(40 * MiB, number))
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(
        f"version: 1\noutput: out\ndumps:\n  - source: {tmpfs}/budget-*\n"
        f"    compress: {{zstd: {{level: 6, frame: 40MiB}}}}\n{more}"
    )
    arguments = [sys.executable, "-m", "asyncdump", str(manifest), "--quiet", "--concurrency", "8", "--allow-filters"]
    with measured(arguments, tmp_path / "peak") as process:
        process.wait()
    for source in sources:
        source.unlink()
    assert peak_of(process, tmp_path / "peak") < (256 + 64) * MiB
    with pytest.raises(asyncdump.ManifestError, match=r"\d MiB"):
        Zstd(level=22, frame="128MiB")


@pytest.mark.parametrize("keys", [{}, {"compress": "zstd"}, {"filter": "[[cat]]"}])
def test_events_go_beside_a_dump_to_standard_output(keys, make, tmp_path: Path) -> None:
    data = noise(3 * MiB)
    arguments = [*command(tmp_path, make("tmpfs", data), **keys), "--progress", "json"]
    arguments.remove("--quiet")
    done = subprocess.run(arguments, capture_output=True, check=True)
    (tmp_path / "out").write_bytes(done.stdout)
    assert content_of(str(tmp_path / "out")) == data
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert (events[0], events[-1]) == ("run_started", "run_finished")


@pytest.mark.parametrize("keys", [{}, {"compress": "zstd"}, {"filter": "[[cat]]"}])
def test_a_dry_run_to_standard_output(keys, make, tmp_path: Path) -> None:
    arguments = [*command(tmp_path, make("tmpfs", b"x"), **keys), "--dry-run"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=20)
    assert mentions(done.stdout, "1 file", "1 B")
    assert done.stderr == ""
