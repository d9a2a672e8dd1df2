"""Sizes as people write them, and as they are written for people."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import UNITS, text

from asyncdump.vocabulary.size import MAXIMUM, format_size, parse_size


@pytest.mark.parametrize(("unit", "factor"), UNITS.items())
def test_each_unit_of_the_reference(unit, factor) -> None:
    assert parse_size(f"3{unit}") == 3 * factor
    assert parse_size(f"3 {unit}") == 3 * factor


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        (4096, 4096),
        (MAXIMUM, MAXIMUM),
        ("0", 0),
        ("007", 7),
        (" 16MiB\n", 16 << 20),
        ("2x512", 1024),
        ("2x3x4k", 24 << 10),
        ("2Kx2K", 4 << 20),
        (str(MAXIMUM), MAXIMUM),
    ],
)
def test_what_is_a_size(given, expected) -> None:
    assert parse_size(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        *("", " ", "x", "2x", "x2", "2xx3", "-1", "+1", "1.5", "1.5GiB", "1e3", "1_000", "1,000", "0b1", "1 2"),
        *(
            "GiB",
            "1gib",
            "1Mib",
            "1m",
            "1mb",
            "1Ki",
            "1KBB",
            "1Kb",
            "1E",
            "1EiB",
            "16 MiBs",
            "1GiB 1",
            "1X2",
            "0o8",
            "0X10",
        ),
        *(
            "0x",
            "0o",
            "0xg",
            "0x1000K",
            "2x0x10",
            "0x10x2",
            "0o17b",
            "-0x10",
            "\N{ARABIC-INDIC DIGIT FIVE}",
            "\N{SUPERSCRIPT TWO}",
        ),
        *(-1, True, False, 1.5, 4096.0),
    ],
)
def test_what_is_none(given) -> None:
    with pytest.raises(ValueError, match="MiB"):
        parse_size(given)


@pytest.mark.parametrize("given", [MAXIMUM + 1, str(MAXIMUM + 1), "8192P", "3037000500x3037000500", "9" * 20])
def test_more_than_a_file_can_hold(given) -> None:
    with pytest.raises(ValueError, match=str(MAXIMUM)):
        parse_size(given)


@given(st.lists(st.tuples(st.integers(1, 2**40), st.sampled_from(sorted(UNITS))), min_size=1, max_size=3))
def test_factors_are_multiplied(factors: list[tuple[int, str]]) -> None:
    written = "x".join(f"{number}{unit}" for number, unit in factors)
    product = prod(number * UNITS[unit] for number, unit in factors)
    if product <= MAXIMUM:
        assert parse_size(written) == product
    else:
        with pytest.raises(ValueError, match=str(MAXIMUM)):
            parse_size(written)


@given(text | st.text("0123456789kKMGTPiBx .-", max_size=9))
def test_any_text_is_a_size_or_an_error(written: str) -> None:
    try:
        size = parse_size(written)
    except ValueError as error:
        complaint = str(error)
    else:
        assert 0 <= size <= MAXIMUM
        return
    assert repr(written) in complaint


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (8 << 20, "8.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
        (1234.5, "1.2 KiB"),
    ],
)
def test_sizes_for_people(count, expected) -> None:
    assert format_size(count) == expected


@given(st.integers(0, MAXIMUM))
def test_what_people_read_is_near_the_truth(count: int) -> None:
    number, unit = format_size(count).split()
    assert abs(float(number) * UNITS.get(unit, 1) - count) <= 0.05 * UNITS[unit] * 1.001
    assert float(number) <= 1024 or unit == "TiB"
