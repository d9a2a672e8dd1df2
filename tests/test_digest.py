"""Digests: the right algorithm behind each name, however the bytes come."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
from files import MiB, digest_of, noise
from hypothesis import given
from hypothesis import strategies as st

from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.names import LISTS
from asyncdump.vocabulary.values import Checksum

EMPTY = {
    "xxh128": "99aa06d3014798d86001c324468d497f",
    "blake3": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}
"""The digests of no bytes, from the specifications."""

checksums = pytest.mark.parametrize("checksum", EMPTY)


@checksums
def test_of_nothing(checksum) -> None:
    digest = new_digest(checksum)
    assert digest is not None
    assert digest.hexdigest() == EMPTY[checksum]


@checksums
def test_two_digests_are_apart(checksum) -> None:
    one, other = new_digest(checksum), new_digest(checksum)
    assert one is not None
    assert other is not None
    one.update(memoryview(b"x"))
    assert one.hexdigest() == digest_of(b"x", checksum)
    assert other.hexdigest() == EMPTY[checksum]


def test_none_is_none() -> None:
    assert new_digest("none") is None


def test_every_digest_has_a_list_of_its_own() -> None:
    assert {*LISTS, "none"} == set(get_args(Checksum))
    assert len(set(LISTS.values())) == len(LISTS)


@checksums
@given(cuts=st.lists(st.integers(0, 70_000), max_size=6), start=st.integers(0, 1000))
def test_the_pieces_do_not_matter(checksum, cuts: list[int], start: int) -> None:
    data = noise(70_000, start)
    digest = new_digest(checksum)
    assert digest is not None
    for begin, end in pairwise([0, *sorted(cuts), len(data)]):
        digest.update(memoryview(data)[begin:end])
    assert digest.hexdigest() == digest_of(data, checksum)


@checksums
def test_memory_that_may_be_written_to_is_taken_too(checksum) -> None:
    digest = new_digest(checksum)
    assert digest is not None
    digest.update(memoryview(bytearray(noise(3 * MiB))))
    assert digest.hexdigest() == digest_of(noise(3 * MiB), checksum)
