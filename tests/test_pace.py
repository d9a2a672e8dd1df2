"""Steps that keep to a disk's pace, played without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from files import KiB, MiB

from asyncdump.kernel.pace import FIRST, Pace


def play(pace: Pace, seconds: Callable[[int], float], *, wanted: int = 2 * MiB, steps: int = 100) -> list[int]:
    """Return the lengths of so many steps on a disk that takes ``seconds`` for a length."""
    lengths = []
    for _ in range(steps):
        lengths.append(pace.step(wanted))
        pace.took(lengths[-1], seconds(lengths[-1]))
    return lengths


def test_a_fast_disk_gets_whole_steps_after_a_few() -> None:
    lengths = play(Pace(), lambda length: length / 2e9)
    assert lengths[0] == FIRST
    assert lengths[3:] == [2 * MiB] * 97
    assert play(Pace(), lambda length: length / 2e9, wanted=64 * MiB)[-1] == 64 * MiB


@pytest.mark.parametrize("rate", [100 * KiB, MiB, 10 * MiB])
def test_a_slow_disk_gets_short_ones(rate: int) -> None:
    lengths = play(Pace(), lambda length: length / rate)
    assert lengths[-1] <= max(rate * 0.15, 16 * KiB)


def test_a_disk_that_becomes_slow_and_fast_again() -> None:
    pace = Pace()
    play(pace, lambda length: length / 1e9)
    slow = play(pace, lambda length: length / 1e6)
    assert slow[-1] <= 150_000
    assert max(slow[2:]) <= 150_000
    assert play(pace, lambda length: length / 1e9)[-1] == 2 * MiB


def test_where_each_call_waits_steps_stay_as_they_are() -> None:
    """200 ms a call, whatever its length: short ones would carry next to nothing."""
    pace = Pace()
    play(pace, lambda length: length / 1e9)
    lengths = play(pace, lambda length: 0.2 + length / 1e9)
    assert lengths[-50:] == [2 * MiB] * 50


def test_steps_of_several_threads_that_began_before_say_nothing() -> None:
    """Eight long ones are under way when the first has come to its end."""
    pace = Pace()
    play(pace, lambda length: length / 1e9)
    for number in range(8):
        pace.took(2 * MiB, 2.0 + number)
    lengths = play(pace, lambda length: 8 * length / 1e6)
    assert lengths[-1] <= 64 * KiB


def test_a_step_stays_one_that_the_disk_takes_whatever_a_tail_was() -> None:
    pace = Pace()
    pace.took(50_001, 0.2)
    for _ in range(8):
        pace.took(pace.step(2 << 20), 0.2)
    assert pace.step(2 << 20) % 4096 == 0
