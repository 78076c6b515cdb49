"""A fleet that is large leaves others on the event loop their turns."""

from __future__ import annotations

import asyncio
from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import Fleet
from asyncdicom.fleet.pace import Pace
from asyncdicom.testing import simulate


class Turns:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.now = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Turns:
        self._task = asyncio.create_task(self._count())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.now += 1


async def test_so_many_begin_in_one_turn_and_others_in_the_next_ones() -> None:
    pace = Pace(3)
    begun: list[int] = []
    async with Turns() as turns:

        async def one() -> None:
            await pace.begin()
            begun.append(turns.now)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(one)
    assert sorted(Counter(begun).values()) == [1, 3, 3, 3]


async def test_who_comes_alone_does_not_wait() -> None:
    pace = Pace(1)
    async with Turns() as turns:
        for _ in range(5):
            before = turns.now
            await pace.begin()
            assert turns.now == before
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_who_is_cancelled_while_it_waits_takes_nobodys_turn() -> None:
    pace = Pace(2)
    begun: list[int] = []

    async def one(number: int) -> None:
        await pace.begin()
        begun.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(9)]
    await asyncio.sleep(0)
    for number in (2, 3, 5):
        tasks[number].cancel()
    await asyncio.wait(tasks)
    assert begun == [0, 1, 4, 6, 7, 8]
    # And nothing turns on for nobody.
    for _ in range(3):
        await asyncio.sleep(0)
    assert not pace._is_turning


async def test_a_sweep_of_many_at_once_begins_no_more_in_one_turn_than_that(
    no_leaks: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    async with simulate(200) as simulated, Turns() as turns:
        begin = Pace.begin

        async def counted(pace: Pace) -> None:
            await begin(pace)
            begun.append(turns.now)

        monkeypatch.setattr(Pace, "begin", counted)
        async with Fleet(simulated.inventory(), concurrency=200) as fleet:
            outcomes = [outcome async for outcome in fleet.echo()]
    assert [outcome.ok for outcome in outcomes] == [True] * 200
    assert len(begun) == 200
    assert max(Counter(begun).values()) <= 16
