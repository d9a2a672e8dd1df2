"""The output folder and what is written there: temporary names, the rename, and every byte at its place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from files import PAGE, KiB, MiB, allocated, digest_of, leftovers, noise
from hypothesis import example, given
from hypothesis import strategies as st

from asyncdump.engines.read import data_runs
from asyncdump.errors import DumpError
from asyncdump.kernel.lane import BUFFER, Buffer, Lane
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.digest import new_digest

Opener = Callable[..., Folder]


@pytest.fixture(params=["tmpfs", "ext4"])
def folder(request: pytest.FixtureRequest, folder_on: Opener) -> Folder:
    """An output folder on a filesystem in memory, and on one on a disk."""
    return folder_on(request.param)


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def written(folder: Folder, name: str, data: bytes) -> Draft:
    """Return a dump that is ready to get its name."""
    draft = folder.create(name)
    draft.resize(len(data))
    draft.write(memoryview(data), 0)
    return draft


def holds(folder: Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder.path).iterdir()}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the folder -------------------------------------------------------------------------------------------------------


def test_missing_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    folder = Folder(os.fspath(tmp_path / "a" / "b" / "c"))
    folder.close()
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Folder(os.fspath(tmp_path)).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    before = descriptors()
    with pytest.raises(DumpError, match=r"mkdir of .*/file: EEXIST"):
        Folder(os.fspath(path))
    with pytest.raises(DumpError, match=r"mkdir of .*/file/below: "):
        Folder(os.fspath(path / "below"))
    assert descriptors() == before


def test_a_folder_knows_what_it_is_on(folder_on: Opener, tmpfs: Path) -> None:
    folder = folder_on("tmpfs")
    assert (folder.filesystem, folder.device) == ("tmpfs", tmpfs.stat().st_dev)
    assert folder_on("ext4").filesystem == "ext4"


def test_a_folder_is_held_while_its_path_moves_on(folder_on: Opener, tmp_path: Path) -> None:
    folder = folder_on(tmp_path)
    moved, elsewhere = tmp_path / "moved", Path(folder.path)
    draft = written(folder, "dump", b"content")
    elsewhere.rename(moved)
    elsewhere.mkdir()
    assert folder.publish([draft], durable=True, overwrite=False) == [None]
    assert (moved / "dump").read_bytes() == b"content"
    assert list(elsewhere.iterdir()) == []


def test_a_link_exists_even_if_it_leads_nowhere(folder: Folder) -> None:
    assert not folder.exists("link")
    os.symlink("nowhere", os.path.join(folder.path, "link"))
    assert folder.exists("link")


def test_scratch_files_have_no_name(folder: Folder) -> None:
    scratch = folder.scratch()
    scratch.write(memoryview(b"x"), 0)
    assert os.listdir(folder.path) == []
    scratch.close()
    assert os.listdir(folder.path) == []


# --- one dump ---------------------------------------------------------------------------------------------------------


def test_until_it_is_published_a_dump_has_a_temporary_name(folder: Folder) -> None:
    drafts = [folder.create("dump"), folder.create("dump")]
    found = os.listdir(folder.path)
    assert len(found) == len(set(found)) == 2
    assert sorted(leftovers(folder.path)) == sorted(found)
    for name in found:
        assert stat.S_IMODE(os.stat(os.path.join(folder.path, name)).st_mode) == 0o600
    for draft in drafts:
        draft.abort()


def test_two_runs_never_share_a_temporary_name(folder: Folder) -> None:
    other = Folder(folder.path)
    drafts = [folder.create("dump"), other.create("dump")]
    assert len(os.listdir(folder.path)) == 2
    for draft in drafts:
        draft.abort()
    other.close()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_has_the_temporary_name_already_is_not_written_to(kind, folder: Folder, tmp_path: Path) -> None:
    folder.create("dump").abort()
    draft = folder.create("dump")
    (temporary,) = os.listdir(folder.path)
    draft.abort()
    planted, other = Path(folder.path, temporary.replace("-2.", "-3.")), tmp_path / "other"
    other.write_bytes(b"theirs")
    if kind == "file":
        planted.write_bytes(b"theirs")
    else:
        planted.symlink_to(other)
    with pytest.raises(DumpError, match=r"open of .*/dump: EEXIST"):
        folder.create("dump")
    assert planted.read_bytes() == other.read_bytes() == b"theirs"
    assert os.listdir(folder.path) == [planted.name]


@pytest.mark.parametrize("durable", [True, False])
def test_a_published_dump_has_its_name_and_its_mode(durable, folder: Folder) -> None:
    before = descriptors()
    draft = written(folder, "dump", noise(MiB + 5))
    assert folder.publish([draft], durable=durable, overwrite=False) == [None]
    assert holds(folder) == {"dump": noise(MiB + 5)}
    assert stat.S_IMODE(os.stat(os.path.join(folder.path, "dump")).st_mode) == 0o600
    assert descriptors() == before


def test_an_aborted_dump_leaves_nothing(folder: Folder) -> None:
    before = descriptors()
    draft = written(folder, "dump", noise(PAGE))
    draft.abort()
    draft.abort()
    assert os.listdir(folder.path) == []
    assert descriptors() == before


def test_abort_does_not_touch_what_was_published(folder: Folder) -> None:
    draft = written(folder, "dump", b"whole")
    folder.publish([draft], durable=False, overwrite=False)
    draft.abort()
    assert holds(folder) == {"dump": b"whole"}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_name_that_was_taken_meanwhile_stays_as_it_is(kind, durable, folder: Folder) -> None:
    draft = written(folder, "dump", b"ours")
    path = Path(folder.path, "dump")
    {"file": lambda: path.write_bytes(b"theirs"), "link": lambda: path.symlink_to("nowhere"), "folder": path.mkdir}[
        kind
    ]()
    before = path.lstat()
    (error,) = folder.publish([draft], durable=durable, overwrite=False)
    assert error is not None
    assert (error.path, error.operation, error.errno) == (str(path), "rename", errno.EEXIST)
    assert "overwrite=True" in error.hint
    assert path.lstat().st_ino == before.st_ino
    assert os.listdir(folder.path) == ["dump"]
    if kind == "file":
        assert path.read_bytes() == b"theirs"


def test_overwriting_replaces_the_name_and_not_what_it_leads_to(folder: Folder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    for name in ("link", "file", "hard"):
        path = Path(folder.path, name)
        if name == "link":
            path.symlink_to(other)
        else:
            path.write_bytes(b"old")
        if name == "hard":
            os.link(path, os.path.join(folder.path, "kept"))
        assert folder.publish([written(folder, name, b"new")], durable=True, overwrite=True) == [None]
        assert not path.is_symlink()
        assert path.read_bytes() == b"new"
    assert other.read_bytes() == b"theirs"
    assert Path(folder.path, "kept").read_bytes() == b"old"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("durable", [True, False])
def test_in_a_group_each_dump_has_its_own_fate(count, durable, folder: Folder) -> None:
    before = descriptors()
    drafts = [written(folder, f"dump-{index}", noise(PAGE + index, index)) for index in range(count)]
    taken = count // 2
    Path(folder.path, f"dump-{taken}").write_bytes(b"theirs")
    errors = folder.publish(drafts, durable=durable, overwrite=False)
    assert [error is not None for error in errors] == [index == taken for index in range(count)]
    assert holds(folder) == {
        f"dump-{index}": b"theirs" if index == taken else noise(PAGE + index, index) for index in range(count)
    }
    assert descriptors() == before


def test_a_folder_in_the_way_is_an_error_of_that_dump_alone(folder: Folder) -> None:
    os.mkdir(os.path.join(folder.path, "b"))
    errors = folder.publish([written(folder, name, b"x") for name in "abc"], durable=True, overwrite=True)
    assert [error and error.errno for error in errors] == [None, errno.EISDIR, None]
    assert sorted(os.listdir(folder.path)) == ["a", "b", "c"]


def test_a_dump_whose_folder_is_gone_cannot_begin(folder_on: Opener, tmp_path: Path) -> None:
    folder = folder_on(tmp_path)
    os.rmdir(folder.path)
    before = descriptors()
    with pytest.raises(DumpError, match=r"open of .*/dump: ENOENT"):
        folder.create("dump")
    assert descriptors() == before
    os.mkdir(folder.path)  # What made it will remove it.


# --- small files ------------------------------------------------------------------------------------------------------


def test_small_files_are_whole(folder: Folder) -> None:
    files = {"receipt.json": b"{}", "empty": b"", "large": noise(3 * PAGE + 1)}
    folder.write_small(files)
    assert holds(folder) == files
    folder.write_small({"receipt.json": b"[]"})
    assert holds(folder) == {**files, "receipt.json": b"[]"}


def test_a_small_file_that_fails_leaves_what_was_there(folder: Folder) -> None:
    before = descriptors()
    folder.write_small({"receipt.json": b"old"})
    os.mkdir(os.path.join(folder.path, "SHA256SUMS"))
    with pytest.raises(DumpError, match=r"rename of .*/SHA256SUMS: EISDIR"):
        folder.write_small({"SHA256SUMS": b"new"})
    assert sorted(os.listdir(folder.path)) == ["SHA256SUMS", "receipt.json"]
    assert descriptors() == before


def test_no_small_file_is_written_if_one_cannot_be(folder: Folder) -> None:
    folder.write_small({"receipt.json": b"old"})
    before = descriptors()
    with pytest.raises(TypeError):
        folder.write_small({"receipt.json": b"new", "wrong": None})  # type: ignore[dict-item]
    assert holds(folder) == {"receipt.json": b"old"}
    assert descriptors() == before


# --- bytes at their places --------------------------------------------------------------------------------------------

SIZE = 24 * PAGE
offsets = st.integers(0, SIZE) | st.integers(0, SIZE // PAGE).map(lambda page: page * PAGE)
writes = st.lists(
    st.tuples(st.sampled_from(["write", "cached", "zeros"]), offsets, offsets, st.integers(0, PAGE)), max_size=8
)
"""How, from where, to where, and how far the memory is from a page's start."""


@given(writes)
@example([("write", 0, SIZE, 0), ("write", PAGE, PAGE + 1, 0)])
@example([("write", 1, SIZE, 1), ("write", 0, SIZE - 1, 0)])
@example([("write", 0, SIZE, 1), ("cached", 5, 6, 0), ("write", 0, PAGE, 0)])
def test_writes_of_any_kind_in_any_order(place: Path, lane: Lane, writes: list[tuple[str, int, int, int]]) -> None:
    folder = Folder(os.fspath(place))
    draft = folder.create("random")
    model = bytearray(SIZE)
    view = lane.buffer.view
    try:
        draft.resize(SIZE)
        for number, (how, one, other, shift) in enumerate(writes):
            start, length = min(one, other), abs(one - other)
            data = bytes(length) if how == "zeros" else noise(length, number * 1000 + 1)
            view[shift : shift + length] = data
            match how:
                case "write":
                    draft.write(view[shift : shift + length], start)
                case "cached":
                    draft.write_cached(view[shift : shift + length], start)
                case "zeros":
                    draft.write_zeros(start, length)
            model[start : start + length] = data
        assert draft.fd is not None
        assert os.pread(draft.fd, SIZE + 1, 0) == model
        assert draft.stored == sum(abs(one - other) for _, one, other, _ in writes)
        assert folder.publish([draft], durable=False, overwrite=True) == [None]
        assert Path(folder.path, "random").read_bytes() == model
    finally:
        draft.abort()
        folder.close()


def test_what_is_not_written_is_a_hole(folder: Folder) -> None:
    draft = folder.create("holey")
    draft.resize(MiB)
    draft.write(memoryview(noise(PAGE)), 64 * PAGE)
    folder.publish([draft], durable=True, overwrite=False)
    path = os.path.join(folder.path, "holey")
    assert holds(folder) == {"holey": bytes(64 * PAGE) + noise(PAGE) + bytes(MiB - 65 * PAGE)}
    assert allocated(path) < 64 * KiB


def test_more_zeros_than_are_kept_at_hand(folder: Folder) -> None:
    draft = folder.create("zeros")
    draft.write(memoryview(noise(2 * MiB + 9)), 0)
    draft.write_zeros(7, 2 * MiB - 1)
    folder.publish([draft], durable=False, overwrite=False)
    data = noise(2 * MiB + 9)
    assert holds(folder) == {"zeros": data[:7] + bytes(2 * MiB - 1) + data[2 * MiB + 6 :]}


@pytest.mark.parametrize("size", [0, 1, PAGE, BUFFER, BUFFER + 1, 2 * BUFFER + PAGE + 3])
def test_what_was_written_is_read_back(size, folder: Folder, lane: Lane) -> None:
    data = noise(size)
    draft = written(folder, "dump", data)
    digest = new_digest("sha256")
    assert digest is not None
    checks: list[None] = []
    draft.read_back(size, digest, lane, lambda: checks.append(None))
    assert digest.hexdigest() == digest_of(data, "sha256")
    assert len(checks) >= -(-size // BUFFER)
    draft.abort()


def test_no_more_is_read_back_than_was_asked_for(folder: Folder, lane: Lane) -> None:
    draft = written(folder, "dump", noise(3 * PAGE))
    digest = new_digest("sha256")
    assert digest is not None
    draft.read_back(PAGE + 1, digest, lane, lambda: None)
    assert digest.hexdigest() == digest_of(noise(PAGE + 1), "sha256")
    draft.abort()


def test_a_write_at_an_odd_place_does_not_cost_the_direct_descriptor(folder_on: Opener) -> None:
    folder = folder_on("ext4")
    draft = folder.create("dump")
    direct = draft.direct
    assert direct is not None
    draft.write(memoryview(noise(PAGE)), 1)
    assert draft.direct == direct
    draft.abort()


def test_a_dump_that_is_shorter_than_what_was_written_is_noticed(folder: Folder, lane: Lane) -> None:
    draft = written(folder, "dump", noise(PAGE + 5))
    digest = new_digest("sha256")
    assert digest is not None
    with pytest.raises(DumpError, match=r"/dump .*4101.*4102"):
        draft.read_back(PAGE + 6, digest, lane, lambda: None)
    draft.abort()


def test_reading_back_can_be_ended(folder: Folder, lane: Lane) -> None:
    draft = written(folder, "dump", noise(PAGE))
    digest = new_digest("sha256")
    assert digest is not None

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft.read_back(PAGE, digest, lane, stop)
    assert digest.hexdigest() == digest_of(b"", "sha256")
    draft.abort()


def test_without_the_direct_descriptor_a_sink_still_writes(folder: Folder) -> None:
    draft = written(folder, "dump", noise(PAGE))
    draft.close_direct()
    draft.write(memoryview(noise(PAGE, 9)), PAGE)
    assert folder.publish([draft], durable=True, overwrite=False) == [None]
    assert holds(folder) == {"dump": noise(PAGE) + noise(PAGE, 9)}


# --- runs of zeros ----------------------------------------------------------------------------------------------------

SMALL = 16 * PAGE
BUFFER_OF_OURS = Buffer(SMALL)


def naive_runs(data: bytes, grain: int) -> list[tuple[int, int]]:
    """Say the same as `data_runs`, grain by grain."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), grain):
        piece = data[start : start + grain]
        if not any(piece):
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + len(piece))
        else:
            runs.append((start, start + len(piece)))
    return runs


pieces = st.lists(
    st.tuples(st.integers(0, SMALL - 1), st.sampled_from([1, 7, 8, 9, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])), max_size=8
)


backgrounds = st.sampled_from(["noise", "zeros"])


@given(pieces, backgrounds, st.integers(1, SMALL), st.sampled_from([PAGE, 2 * PAGE, 4 * PAGE, 2 * MiB]))
@example([(0, 3 * PAGE)], "zeros", SMALL, PAGE)
@example([(PAGE - 1, 1)], "zeros", SMALL, PAGE)
@example([(SMALL - 1, 1)], "zeros", SMALL, PAGE)
@example([(2 * PAGE + 4, 1)], "zeros", 2 * PAGE + 5, PAGE)
def test_runs_are_those_that_looking_at_each_grain_finds(
    pieces: list[tuple[int, int]], background: str, length: int, grain: int
) -> None:
    """Zeros in noise, or noise in zeros."""
    full = background == "noise"
    data = bytearray(noise(SMALL) if full else SMALL)
    for start, count in pieces:
        stop = min(start + count, SMALL)
        data[start:stop] = bytes(stop - start) if full else noise(stop - start, start)
    BUFFER_OF_OURS.view[:] = data
    assert list(data_runs(BUFFER_OF_OURS, length, grain)) == naive_runs(bytes(data[:length]), grain)


def test_a_single_byte_anywhere_is_data() -> None:
    view = BUFFER_OF_OURS.view
    view[:] = bytes(SMALL)
    for at in (0, 1, 7, 8, PAGE - 8, PAGE - 1, PAGE, 5 * PAGE + 4095, SMALL - 9, SMALL - 1):
        view[at] = 1
        page = at - at % PAGE
        assert list(data_runs(BUFFER_OF_OURS, SMALL, PAGE)) == [(page, page + PAGE)]
        view[at] = 0
    assert list(data_runs(BUFFER_OF_OURS, SMALL, PAGE)) == []
