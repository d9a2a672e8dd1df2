"""What is lost below the page cache is told once, to whoever asks first: from then on it's the sink that knows.

The disk is one that lies to order; what is there is looked at when the filesystem was mounted anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from files import KiB, MiB, mentions, noise, read, unavailable, write_pages
from fuse import mounted
from liar import Liar
from tool import (
    Dumps,
    asyncdump,
    check_complete,
    check_whole,
    failing_until_retried,
    receipt_of,
    resume,
    traced,
    write_manifest,
)

from asyncdump.errors import DumpError
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import sync_file_range
from asyncdump.records.journal import Head, Journal, read_journal
from asyncdump.records.report import FileReport
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.names import JOURNAL

NONE_FITS = -(1 << 40)
"""What the disk stores no more of, not even what compresses."""


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, liar: Liar) -> Iterator[Liar]:
    with liar.formatted(request.param):
        (liar.point / "out").mkdir()
        os.sync()
        yield liar


@pytest.fixture
def folder(disk: Liar) -> Iterator[Folder]:
    folder = Folder(str(disk.point / "out"))
    yield folder
    folder.close()


def cached(folder: Folder, name: str, data: bytes) -> Draft:
    draft = folder.create(name)
    draft.resize(len(data))
    draft.write_cached(memoryview(data), 0)
    return draft


def lost_behind(disk: Liar, folder: Folder, name: str = "dump") -> Draft:
    """Return a draft of which the disk has lost something, and the kernel has said so, once."""
    draft = cached(folder, name, noise(8 * MiB))
    with disk.lying(0, 1):
        draft.flush_behind(0, 4 * MiB)
        with pytest.raises(DumpError) as told:
            draft.flush_behind(4 * MiB, 4 * MiB)
    assert told.value.errno == errno.EIO
    with suppress(OSError):  # Most often the kernel has nothing more to tell.
        os.fdatasync(draft.fd or -1)
    return draft


def rewrite_and_lose(disk: Liar, path: Path) -> None:
    """Have a file hold what it held in the page cache alone; whoever opens it from now on isn't told."""
    data = read(path)
    path.unlink()
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR)
    with disk.lying(0, 1), pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
        sync_file_range(fd, 0, 0, 7)  # The data alone: metadata would have the filesystem give up.
    os.close(fd)
    assert read(path) == data


# --- a sink ----------------------------------------------------------------------------------------------------------


def test_a_sink_keeps_what_it_was_told(disk: Liar, folder: Folder) -> None:
    draft = lost_behind(disk, folder)
    failure = draft.sync()
    assert failure is not None
    assert failure.errno == errno.EIO
    assert folder.publish([draft], durable=True, overwrite=False) == [failure]
    assert os.listdir(folder.path) == []


def test_so_does_a_group(disk: Liar, folder: Folder) -> None:
    drafts = [cached(folder, "a", b"a"), lost_behind(disk, folder), cached(folder, "b", b"b")]
    folder._doubtful = False  # As if a syncfs had told nothing.
    errors = folder.publish(drafts, durable=True, overwrite=False)
    assert [error is not None for error in errors] == [False, True, False]
    assert sorted(os.listdir(folder.path)) == ["a", "b"]


def test_nothing_lost_is_hashed(disk: Liar, folder: Folder, lane: Lane) -> None:
    draft = cached(folder, "dump", noise(4 * MiB))
    digest = new_digest("xxh128")
    assert digest is not None
    with disk.lying(0, 1), pytest.raises(DumpError):
        draft.read_back(4 * MiB, digest, lane, lambda: None)
    draft.abort()


def test_what_is_known_to_be_lost_is_not_published_either_if_nobody_asked_for_durability(
    disk: Liar, folder: Folder
) -> None:
    draft = cached(folder, "dump", noise(4 * MiB))
    other = draft.open_again()
    with disk.lying(0, 1), pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
        os.fdatasync(other)  # Told to another descriptor: the kernel tells each.
    os.close(other)
    [error] = folder.publish([draft], durable=False, overwrite=False)
    assert error is not None
    assert error.errno == errno.EIO
    assert os.listdir(folder.path) == []


# --- a group ---------------------------------------------------------------------------------------------------------


def test_a_sync_of_all_that_failed_is_not_trusted_again(disk: Liar) -> None:
    """It tells of a file that isn't of this group but of the next, and is silent then."""
    with closing(Folder(str(disk.point / "out"))) as folder:
        first = [cached(folder, name, noise(4 * KiB, 7)) for name in "bcd"]
        for draft in first:
            os.fdatasync(draft.fd or -1)
        late = cached(folder, "late", noise(24 * MiB))
        with disk.lying(0, 1):
            errors = folder.publish(first, durable=True, overwrite=False)
        assert disk.refused
        if any(error is not None for error in errors):
            return  # The disk was healed too late: metadata was lost too, and the filesystem has given up.
        second = [late, *(cached(folder, name, noise(4 * KiB, 9)) for name in "ef")]
        errors = folder.publish(second, durable=True, overwrite=False)
        assert [error is not None for error in errors] == [True, False, False]
    assert disk.mount_again()
    assert {name: read(disk.point / "out" / name) for name in os.listdir(disk.point / "out")} == {
        **dict.fromkeys("bcd", noise(4 * KiB, 7)),
        **dict.fromkeys("ef", noise(4 * KiB, 9)),
    }


# --- the journal -----------------------------------------------------------------------------------------------------


def record(name: str) -> FileReport:
    return FileReport(
        source=f"/source/{name}",
        name=name,
        path=f"/out/{name}",
        bytes=1,
        stored=1,
        seconds=0.0,
        method="read",
        digest=None,
        error=None,
        phase="done",
    )


@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)  # A Btrfs keeps what is so small with its metadata.
def test_a_journal_that_lost_something_is_written_anew(disk: Liar) -> None:
    with closing(Folder(str(disk.point / "out"))) as folder:
        journal = Journal(folder, Head(files=3), [record("earlier")])
        journal.append([record("first")])
        with disk.lying(NONE_FITS, 1):
            other = os.open(disk.point / "out" / JOURNAL, os.O_RDONLY)
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                os.fdatasync(other)
            os.close(other)
        assert journal.sync() is None
        journal.append([record("second")])
        assert journal.sync() is None
        journal.close()
    assert disk.mount_again()
    told = read_journal(read(disk.point / "out" / JOURNAL), "/out")
    assert told is not None
    assert [file.name for file in told.files] == ["first", "second"]
    assert [file.name for file in told.earlier] == ["earlier"]
    assert told.head.files == 3


@pytest.mark.parametrize("concurrency", ["1", "auto"])
def test_a_journal_that_can_never_be_synced_ends_in_failures(concurrency, make, ext4, tmp_path) -> None:
    output = ext4 / tmp_path.name
    dumps = [{"source": make("tmpfs", noise(MiB, n)), "name": f"dump-{n}"} for n in range(3)]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    faults = ["fdatasync:error=EIO", "syncfs:error=EIO"]
    done, calls = traced(
        tmp_path / "log", ["fdatasync", "syncfs"], manifest, "-q", "--concurrency", concurrency, faults=faults
    )
    assert any(call.injected and JOURNAL in call.args for call in calls)
    assert done.returncode == 1
    expected = {f"dump-{n}": noise(MiB, n) for n in range(3)}
    assert check_whole(output, expected) == set()
    resume(Dumps(manifest, output, expected))


# --- a folder whose names can't be made durable ----------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("files", [1, 4])
def test_a_folder_that_can_not_be_synced_takes_no_dump_away(files, older, make, ext4, tmp_path) -> None:
    output = ext4 / tmp_path.name
    output.mkdir()
    sources = [make("tmpfs", noise(MiB, n)) for n in range(files)]
    dumps = [{"source": source, "name": f"dump-{n}"} for n, source in enumerate(sources)]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    if older:
        assert asyncdump(manifest, "-q").returncode == 0
        for n, source in enumerate(sources):
            write_pages(source, noise(MiB, 100 + n))
    expected = {f"dump-{n}": noise(MiB, 100 * older + n) for n in range(files)}
    done, calls = traced(
        tmp_path / "log", ["fsync"], manifest, "-q", "--overwrite", faults=["fsync:error=EIO"], on=[output]
    )
    assert calls
    assert done.returncode == 1
    assert check_whole(output, expected) == set(expected)
    receipt = receipt_of(output)
    assert [file["error"]["type"] for file in receipt["files"]] == ["NotDurableError"] * files
    assert receipt["earlier"] == []
    verified = asyncdump("verify", output)
    assert verified.returncode == 1
    assert not any(resume(Dumps(manifest, output, expected)).values())


def test_a_retry_replaces_what_stands_there_of_its_own(make, ext4, tmp_path) -> None:
    output = ext4 / tmp_path.name
    output.mkdir()
    dumps = [{"source": make("tmpfs", noise(MiB)), "name": "dump"}]
    retries = {"times": 2, "delay": 0.1, "errors": ["ENOSPC"]}
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps, retries=retries)
    failing_until_retried(tmp_path / "log", ["fsync"], manifest, faults=["fsync:error=ENOSPC"], on=[output])
    check_complete(Dumps(manifest, output, {"dump": noise(MiB)}))


def test_a_folder_whose_name_can_not_be_synced_is_not_left_to_the_next_run(make, ext4, tmp_path) -> None:
    output = ext4 / tmp_path.name / "out"
    output.parent.mkdir()
    manifest = write_manifest(tmp_path / "m.yaml", output, [{"source": make("tmpfs", noise(MiB)), "name": "dump"}])
    done, _ = traced(tmp_path / "log", ["fsync"], manifest, "-q", faults=["fsync:error=EIO"], on=[output.parent])
    assert done.returncode == 2
    assert not output.exists()


# --- what was kept ---------------------------------------------------------------------------------------------------


@pytest.mark.sample(1)
def test_what_is_kept_is_what_the_disk_holds(disk: Liar, make, tmp_path) -> None:
    """A dump that nobody waited for was lost after its run had ended: to make it durable is to dump it again."""
    output = disk.point / "dumps"
    source = make("tmpfs", noise(3 * MiB))
    manifest = write_manifest(tmp_path / "m.yaml", output, [{"source": source, "name": "dump"}])
    assert asyncdump(manifest, "-q", "--no-durable").returncode == 0
    rewrite_and_lose(disk, output / "dump")
    assert resume(Dumps(manifest, output, {"dump": noise(3 * MiB)})) == {"dump": False}
    assert disk.mount_again()
    assert read(output / "dump") == noise(3 * MiB)


@pytest.mark.sample(2)
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_verify_looks_at_the_disk(compress, disk: Liar, make, tmp_path) -> None:
    output = disk.point / "dumps"
    source = make("tmpfs", noise(MiB + 3000))
    dumps = [{"source": source, "name": "dump.zst" if compress == "zstd" else "dump", "compress": compress}]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    assert asyncdump(manifest, "-q").returncode == 0
    rewrite_and_lose(disk, output / str(dumps[0]["name"]))
    assert asyncdump("verify", output, "-q").returncode == 1
    assert disk.mount_again()
    assert asyncdump("verify", output, "-q").returncode == 1


# --- closes, and dd --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem that says by a close that it didn't take what was written."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        unavailable("a filesystem of our own needs root and /dev/fuse")
    with mounted(tmp_path_factory.mktemp("server"), f"close={errno.EDQUOT}") as point:
        yield point


@pytest.mark.sample(3)
@pytest.mark.parametrize("durable", [(), ("--no-durable",)])
@pytest.mark.parametrize("method", ["auto", "sendfile", "mmap"])
def test_what_a_close_tells_is_told(method, durable, server: Path, make, tmp_path) -> None:
    manifest = write_manifest(tmp_path / "m.yaml", server / "out", [{"source": make("tmpfs", noise(MiB)), "name": "a"}])
    done = asyncdump(manifest, "-q", *durable, "--method", method)
    assert done.returncode == 1
    assert mentions(done.stderr, server / "out/a", "EDQUOT")
    assert "a" not in os.listdir(server / "out")


@pytest.mark.parametrize("durable", [True, False])
def test_what_only_the_last_close_tells_is_told(durable, server: Path) -> None:
    with closing(Folder(str(server / f"last-{durable}"))) as folder:
        draft = folder.create("dump")
        draft.close_direct()  # Nothing was written yet: this close succeeds.
        draft.write_cached(memoryview(noise(4 * KiB)), 0)
        [error] = folder.publish([draft], durable=durable, overwrite=False)
        assert error is not None
        assert (error.operation, error.errno) == ("close", errno.EDQUOT)
        assert folder.names() == []


def test_dd_tells_what_a_close_tells(server: Path, make) -> None:
    done = asyncdump("dd", f"if={make('tmpfs', noise(MiB))}", f"of={server / 'copy'}")
    assert done.returncode == 1
    assert "EDQUOT" in done.stderr


@pytest.mark.sample(3)
@pytest.mark.parametrize("method", ["auto", "mmap", "sendfile", "splice"])
def test_dd_tells_of_a_write_back_that_failed(method, disk: Liar, make) -> None:
    source = make("tmpfs", noise(40 * MiB))
    with disk.lying(4 * MiB, 1):
        done = asyncdump("dd", f"if={source}", f"of={disk.point / 'copy'}", "conv=fsync", f"method={method}")
    assert disk.refused
    assert done.returncode == 1
    assert "EIO" in done.stderr or "EROFS" in done.stderr
