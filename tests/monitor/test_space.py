"""When the disk will be full: said from what was observed, and not said where that is too little."""

from __future__ import annotations

import anyio
import pytest

from asyncdicom.errors import ArchiveError
from asyncdicom.monitor import space
from asyncdicom.monitor.space import EVERY, LEAST, WINDOW, Filling
from tests.conftest import Baseline

GIB = 1 << 30


def filled(rate: float, seconds: float, *, floor: int = 0, free: int = 100 * GIB) -> Filling:
    """So many bytes a second become less."""
    filling = Filling(floor)
    at = 0.0
    while at <= seconds:
        filling.note(round(free - rate * at), at)
        at += EVERY
    return filling


def test_what_is_left_above_the_floor_is_divided_by_the_rate() -> None:
    forecast = filled(1 << 20, 3600, floor=10 * GIB).forecast()
    assert forecast is not None
    assert forecast.rate == 1 << 20
    assert forecast.full_in == pytest.approx((90 * GIB - (1 << 20) * 3600) / (1 << 20))
    assert forecast.observed == 3600


def test_nothing_is_said_before_enough_was_seen() -> None:
    assert Filling().forecast() is None
    assert filled(1 << 20, LEAST - EVERY).forecast() is None
    assert filled(1 << 20, LEAST).forecast() is not None


@pytest.mark.parametrize("rate", [0.0, -1000.0])
def test_a_disk_that_gets_no_fuller_is_never_full(rate: float) -> None:
    forecast = filled(rate, 3600).forecast()
    assert forecast is not None
    assert forecast.full_in is None


def test_a_disk_below_its_floor_is_full_now() -> None:
    forecast = filled(1 << 20, 600, floor=200 * GIB).forecast()
    assert forecast is not None
    assert forecast.full_in == 0


def test_room_that_was_made_begins_anew() -> None:
    filling = filled(1 << 20, 3600)
    filling.note(400 * GIB, 3630)
    assert filling.forecast() is None
    filling.note(400 * GIB - LEAST * 1000, 3630 + LEAST)  # type: ignore[arg-type]
    forecast = filling.forecast()
    assert forecast is not None
    assert forecast.rate == 1000


def test_only_the_last_hours_count() -> None:
    filling = filled(10 << 20, 3600)
    free = 100 * GIB - (10 << 20) * 3600
    for step in range(1, 1000):
        filling.note(free, 3600 + step * EVERY)
    forecast = filling.forecast()
    assert forecast is not None
    assert forecast.observed <= WINDOW
    assert forecast.full_in is None


async def test_a_file_system_that_does_not_answer_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, no_leaks: Baseline
) -> None:
    monkeypatch.setattr(space, "EVERY", 0.01)
    answers = [OSError("stale file handle"), ArchiveError("not open"), 7 * GIB]
    seen = anyio.Event()
    noted: list[int] = []

    class Noting(Filling):
        def note(self, free: int, at: float) -> None:
            noted.append(free)
            seen.set()

    def look() -> int:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, int)
        return answer

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Noting().watch, look)
            await seen.wait()
            tasks.cancel_scope.cancel()
    assert noted[0] == 7 * GIB
