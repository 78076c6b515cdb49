"""One at a time for each key, in the order of asking, also when somebody gives up waiting."""

from __future__ import annotations

import asyncio

import pytest

from asyncdicom.archive.turns import Turns


async def test_turns_are_taken_one_at_a_time_and_in_order_for_each_key() -> None:
    turns = Turns()
    inside: dict[str, int] = {}
    order: dict[str, list[int]] = {"a": [], "b": []}

    async def take(key: str, number: int) -> None:
        async with turns(key):
            assert inside.setdefault(key, 0) == 0
            inside[key] += 1
            order[key].append(number)
            await asyncio.sleep(0)
            inside[key] -= 1

    await asyncio.gather(*(take(key, number) for number in range(20) for key in "ab"))
    assert order == {"a": list(range(20)), "b": list(range(20))}
    assert len(turns) == 0


@pytest.mark.parametrize("when", ["waiting", "its turn"])
async def test_who_gives_up_does_not_keep_the_others_waiting(when: str) -> None:
    turns = Turns()
    done = []

    async def take(number: int) -> None:
        async with turns("a"):
            done.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(take(number)) for number in range(3)]
    await asyncio.sleep(0)
    if when == "its turn":
        await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert done == [0, 2]
    assert len(turns) == 0


async def test_a_failure_passes_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="x"):
        async with turns("a"):
            raise ValueError("x")
    async with turns("a"):
        pass
    assert len(turns) == 0
