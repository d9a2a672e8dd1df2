"""Digests of blocks: what they are, whichever way the bytes come; where damage is; what has changed since."""

from __future__ import annotations

import hashlib
import pickle
import random
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import blake3
import msgspec
import pytest
import xxhash
from files import HUGE_PAGE, MiB, content, noise
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncdump
from asyncdump import Dump, Zstd, verify_all
from asyncdump.records.receipt import read_receipt
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary import blocks, digest
from asyncdump.vocabulary.blocks import BLOCK, WIDTH, ZERO, Blocks
from asyncdump.vocabulary.digest import Hasher, new_digest
from asyncdump.vocabulary.values import Checksum, Span

SMALL = 256  # Up to 240 bytes XXH3 has other ways, of which no half is that of 64 bits.
CHECKSUMS = [checksum for checksum in get_args(Checksum) if checksum != "none"]
WHOLE = {
    "xxh128": xxhash.xxh3_128_hexdigest,
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "blake3": lambda data: blake3.blake3(data).hexdigest(),
}


def of(data: bytes, block: int = BLOCK) -> bytes:
    """Return the digests of blocks as the documentation has them."""
    return b"".join(xxhash.xxh3_64_digest(data[start : start + block]) for start in range(0, len(data), block))


def ranges(*pairs: tuple[int, int]) -> tuple[Span, ...]:
    return tuple(Span(offset=offset, length=length) for offset, length in pairs)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks small, and zeros known by them."""
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    for module in (blocks, digest):
        patch.setattr(module, "BLOCK", SMALL)
        patch.setattr(module, "ZERO", xxhash.xxh3_64_digest(bytes(SMALL)))


# --- while hashing ----------------------------------------------------------------------------------------------------


def test_the_digest_of_a_block_of_zeros() -> None:
    assert xxhash.xxh3_64_digest(bytes(BLOCK)) == ZERO
    assert xxhash.xxh3_128_digest(bytes(BLOCK))[-WIDTH:] == ZERO


pieces = st.lists(st.tuples(st.sampled_from(["data", "data", "zeros", "later"]), st.integers(0, 5 * SMALL)), max_size=8)


@pytest.mark.parametrize("checksum", CHECKSUMS)
@given(given=pieces, chance=st.randoms(use_true_random=False))
def test_blocks_are_those_of_the_content_however_it_comes(
    checksum: Any, given: list[tuple[str, int]], chance: random.Random
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        hasher = new_digest(checksum)
        assert hasher is not None
        whole, waiting = bytearray(), []
        for kind, length in given:
            data = bytes(length) if kind == "zeros" else chance.randbytes(length)
            whole += data
            if kind == "zeros":
                hasher.zeros(length)
            elif kind == "data":
                hasher.update(memoryview(data))
            else:  # As lanes do: what was taken in order is put in any order.
                waiting.append(hasher.take(memoryview(data)))
        chance.shuffle(waiting)
        for place, blocks_of_it in waiting:
            hasher.put(place, blocks_of_it)
        found = hasher.blocks()
    assert hasher.hexdigest() == WHOLE[checksum](bytes(whole))
    assert found.digests == of(bytes(whole), SMALL)
    assert found.length == len(whole)


@pytest.mark.parametrize("checksum", CHECKSUMS)
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("step", [BLOCK, BLOCK // 2, 3 * BLOCK, 1_000_003])
def test_so_are_those_of_2_mib(checksum, size, step) -> None:
    data = content(size)
    hasher = new_digest(checksum)
    assert hasher is not None
    for start in range(0, size, step):
        hasher.update(memoryview(data)[start : start + step])
    assert hasher.blocks() == Blocks(length=size, digests=of(data))
    assert hasher.hexdigest() == WHOLE[checksum](data)


@pytest.mark.parametrize("sizes", [(0, BLOCK), (5, 3 * BLOCK), (BLOCK - 1, 1), (BLOCK + 1, 2 * BLOCK - 1), (3, 2)])
def test_zeros_behind_data(sizes) -> None:
    first, length = sizes
    hasher = new_digest("xxh128")
    assert hasher is not None
    hasher.update(memoryview(noise(first)))
    hasher.zeros(length)
    hasher.update(memoryview(noise(7)))
    assert hasher.blocks().digests == of(noise(first) + bytes(length) + noise(7))


# --- compared ---------------------------------------------------------------------------------------------------------


@given(
    size=st.integers(1, 20 * SMALL),
    changes=st.lists(st.integers(0, 20 * SMALL), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_changed_byte_is_in_a_changed_block_and_no_other_is(
    size: int, changes: list[int], data: st.DataObject
) -> None:
    before = noise(size, size)
    after = bytearray(before)
    places = {place % size for place in changes}
    for place in places:
        after[place] ^= data.draw(st.integers(1, 255))
    grain = SMALL * data.draw(st.sampled_from([1, 2, 4]))
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        old = Blocks(length=size, grain=SMALL, digests=of(before, SMALL)).coarser(grain)
        new = Blocks(length=size, grain=SMALL, digests=of(bytes(after), SMALL))
        found = new.changed(old)
        assert old.changed(new) == found
        assert new.changed(new) == ()
    covered = {at // grain for each in found for at in range(each.offset, each.end)}
    assert covered == {place // grain for place in places}
    assert all(before.end < after.offset for before, after in pairwise(found))
    assert all(each.offset % grain == 0 and (each.end % grain == 0 or each.end == size) for each in found)


def test_what_is_longer_or_shorter(small) -> None:
    data = noise(10 * SMALL)

    def made(size: int) -> Blocks:
        return Blocks(length=size, grain=SMALL, digests=of(data[:size], SMALL))

    assert made(5 * SMALL).changed(made(3 * SMALL)) == ranges((3 * SMALL, 2 * SMALL))
    assert made(5 * SMALL + 7).changed(made(3 * SMALL + 1)) == ranges((3 * SMALL, 2 * SMALL + 7))
    assert made(3 * SMALL).changed(made(5 * SMALL)) == ()
    assert made(3 * SMALL + 1).changed(made(5 * SMALL)) == ranges((3 * SMALL, 1))
    assert made(4 * SMALL).changed(made(0)) == ranges((0, 4 * SMALL))
    assert made(0).changed(made(4 * SMALL)) == ()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
def test_a_coarser_digest_is_that_of_its_halves(count) -> None:
    fine = Blocks(length=count * BLOCK - 1, digests=random.Random(count).randbytes(count * WIDTH))
    coarse = fine.coarser(4 * BLOCK)
    pairs = [fine.digests[start : start + 16] for start in range(0, len(fine.digests), 16)]
    halves = b"".join(map(xxhash.xxh3_64_digest, pairs))
    fours = b"".join(xxhash.xxh3_64_digest(halves[start : start + 16]) for start in range(0, len(halves), 16))
    assert coarse == Blocks(length=fine.length, grain=4 * BLOCK, digests=fours)
    assert coarse.coarser(BLOCK) is not None
    assert coarse.coarser(BLOCK).grain == 4 * BLOCK


@pytest.mark.parametrize(("length", "grain"), [(256 << 30, BLOCK), ((256 << 30) + 1, 2 * BLOCK), (3 << 40, 16 * BLOCK)])
def test_of_a_huge_file_there_are_no_more_than_131072(length, grain) -> None:
    fine = Blocks(length=length, digests=ZERO * -(-length // BLOCK))
    found = fine.within()
    assert (found.grain, found.length) == (grain, length)
    assert found.count == -(-length // grain) <= 1 << 17


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 1, "digests": b""},
        {"length": 0, "digests": bytes(8)},
        {"length": BLOCK + 1, "digests": bytes(8)},
        {"length": BLOCK, "digests": bytes(7)},
        {"length": -1, "digests": b""},
        {"length": BLOCK, "grain": BLOCK // 2, "digests": bytes(16)},
        {"length": BLOCK, "grain": 3 * BLOCK, "digests": bytes(8)},
        {"length": BLOCK, "grain": 0, "digests": bytes(8)},
        {"length": 1, "grain": 1 << 63, "digests": bytes(8)},
    ],
)
def test_what_can_be_no_row_of_digests(wrong) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        Blocks(**wrong)
    encoded = msgspec.json.encode({{"digests": "xxh3_64"}.get(key, key): value for key, value in wrong.items()})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(encoded, type=Blocks)


# --- in a run ---------------------------------------------------------------------------------------------------------

SIZE = 9 * MiB + 77


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content(SIZE))
    return path


STAGES: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw, not sparse": {"sparse": "never"},
    "zstd": {"compress": Zstd(level=1)},
    "zstd in small frames": {"compress": Zstd(level=1, frame="100KiB")},
    "zstd in large frames": {"compress": Zstd(level=1, frame="5MiB")},
    "zstd, filter": {"compress": "zstd", "filter": [["cat"]]},
    "filter, zstd": {"compress": "zstd", "filter": [["cat"]], "first": "filter"},
    "filter": {"filter": [["cat"]]},
    "from a byte on": {"offset": 4096 * 3 + 5},
    "sendfile": {"method": "sendfile"},
}


@pytest.mark.parametrize("checksum", CHECKSUMS)
@pytest.mark.parametrize("stages", STAGES)
async def test_a_dump_has_the_blocks_of_what_is_stored_and_of_its_content(
    stages, checksum, source: Path, tmp_path: Path
) -> None:
    dump = Dump(source=source, name="dump", checksum=checksum, **STAGES[stages])
    report = await asyncdump.dump_all([dump], output=tmp_path / "out", allow_filters=True)
    report.raise_for_failures()
    [file] = report.files
    stored, held = (tmp_path / "out/dump").read_bytes(), source.read_bytes()[file.offset :]
    assert file.blocks == Blocks(length=len(stored), digests=of(stored))
    if stages.startswith("filter"):
        assert file.content_blocks is None
    else:
        assert file.content_blocks == Blocks(length=len(held), digests=of(held))
    folder = Folder(str(tmp_path / "out"), make=False)
    try:
        found = read_receipt(folder)
    finally:
        folder.close()
    assert found is not None
    assert (found.files[0].blocks, found.files[0].content_blocks) == (file.blocks, file.content_blocks)


async def test_without_a_checksum_there_are_none(source: Path, tmp_path: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=source, checksum="none")], output=tmp_path / "out")
    [file] = report.files
    assert (file.blocks, file.content_blocks, file.changed_blocks(file)) == (None, None, None)


async def test_what_has_changed_since_is_told_whatever_the_dumps_went_through(source: Path, tmp_path: Path) -> None:
    first = (await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "first")).files[0]
    data = bytearray(source.read_bytes())
    data[5 * MiB] ^= 1
    data[7 * MiB] ^= 1
    data += b"more"
    source.write_bytes(data)
    second = (await asyncdump.dump_all([Dump(source=source, compress="zstd")], output=tmp_path / "second")).files[0]
    assert second.changed_blocks(first) == ranges((4 * MiB, len(data) - 4 * MiB))
    assert first.changed_blocks(second) == ranges((4 * MiB, SIZE - 4 * MiB))
    assert second.changed_blocks(second) == ()


async def test_one_large_file_moved_by_several_lanes(tmp_path: Path) -> None:
    data = noise(80 * MiB + 3)
    (tmp_path / "large").write_bytes(data)
    report = await asyncdump.dump_all([Dump(source=tmp_path / "large")], output=tmp_path / "out", durable=False)
    [file] = report.files
    assert file.blocks == Blocks(length=len(data), digests=of(data))
    assert file.lane is not None
    assert file.lanes >= 1


async def test_holes_and_huge_zeros(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * HUGE_PAGE + 5)
        file.seek(33 * HUGE_PAGE + 7)
        file.write(noise(HUGE_PAGE))
    kinds: list[dict[str, Any]] = [{}, {"compress": "zstd"}]
    for options in kinds:
        report = await asyncdump.dump_all(
            [Dump(source=path, **options)], output=tmp_path / "out", overwrite=True, durable=False
        )
        found = report.files[0].content_blocks
        assert found is not None
        assert found.digests == of(path.read_bytes())
        assert found.digests.count(ZERO) == 62


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumped")
    (folder / "source").write_bytes(noise(SIZE))

    async def make() -> None:
        kinds: dict[str, dict[str, Any]] = {"raw": {}, "zstd": {"compress": Zstd(level=1, frame="1MiB")}}
        for name, stages in kinds.items():
            dump = Dump(source=folder / "source", name="dump", **stages)
            (await asyncdump.dump_all([dump], output=folder / name, durable=False)).raise_for_failures()

    import anyio

    anyio.run(make)
    return folder


places = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(places=places)
def test_damage_at_any_byte_is_placed_in_its_block(places: list[int], dumped: Path) -> None:
    import anyio

    path = dumped / "raw/dump"
    damage(path, places)
    try:
        outcome = anyio.run(verify_all, dumped / "raw")
    finally:
        damage(path, places)
    expected = sorted({place // BLOCK for place in places if places.count(place) % 2})
    if not expected:
        assert outcome.ok
        return
    [failed] = outcome.failures
    assert (failed.verdict, failed.offset) == ("corrupt", expected[0] * BLOCK)
    told = [
        block for offset, length in failed.ranges for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))
    ]
    assert told == expected
    assert failed.damaged == sum(min(BLOCK, SIZE - block * BLOCK) for block in expected)


def damage(path: Path, places: list[int]) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))


async def test_all_damage_of_a_compressed_dump_is_told_with_its_first_bad_frame(dumped: Path) -> None:
    path = dumped / "zstd/dump"
    wrong = [100, 5 * MiB, path.stat().st_size - 1000]
    damage(path, wrong)
    try:
        [failed] = (await verify_all(dumped / "zstd")).failures
    finally:
        damage(path, wrong)
    assert (failed.verdict, failed.frame, failed.offset) == ("corrupt", 0, 0)
    last = path.stat().st_size // BLOCK * BLOCK
    assert failed.ranges == ((0, BLOCK), (4 * MiB, BLOCK), (last, path.stat().st_size - last))
    assert failed.damaged == sum(length for _, length in failed.ranges)


async def test_of_many_ranges_the_first_are_told(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(300 * MiB))
    await asyncdump.dump_all([Dump(source=tmp_path / "source")], output=tmp_path / "out", durable=False)
    damage(tmp_path / "out/source", list(range(0, 300 * MiB, 2 * BLOCK)))
    outcome = await verify_all(tmp_path / "out")
    [failed] = outcome.failures
    assert failed.ranges == tuple((start, BLOCK) for start in range(0, 128 * BLOCK, 2 * BLOCK))
    assert failed.damaged == 75 * BLOCK
    assert "75 of 150" in failed.message
    with pytest.raises(ExceptionGroup) as raised:
        outcome.raise_for_failures()
    [error] = raised.value.exceptions
    assert isinstance(error, asyncdump.DamagedError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.ranges, again.damaged) == (error.ranges, error.damaged) == (failed.ranges, failed.damaged)


def test_a_hasher_without_halves_takes_its_first_block_itself() -> None:
    hasher = Hasher(xxhash.xxh3_128())
    hasher.update(memoryview(noise(BLOCK)))
    assert hasher.blocks().digests == of(noise(BLOCK))
