"""A fleet that was replaced stays open for those who use it, and no longer."""

from __future__ import annotations

import anyio
import pytest

from asyncdicom.fleet.fleet import Fleet
from asyncdicom.service.lend import FleetLender
from asyncdicom.testing import SimulatedModality
from tests.conftest import Baseline


async def test_a_replaced_fleet_is_open_until_its_last_user_gives_it_back(no_leaks: Baseline) -> None:
    async with SimulatedModality() as sim, FleetLender() as lender:
        first, second = Fleet([sim.modality("a")]), Fleet([sim.modality("b")])
        await lender.replace(first)
        async with lender.lend() as used:
            assert used is first
            await lender.replace(second)
            async with lender.lend() as other:
                assert other is second
            assert lender.open == 2
            assert [outcome.modality async for outcome in used.echo()] == ["a"]
        with anyio.fail_after(2):
            while lender.open > 1:
                await anyio.sleep(0.001)


async def test_nothing_is_lent_before_there_is_a_fleet_or_after_the_end() -> None:
    lender = FleetLender()
    with pytest.raises(RuntimeError, match="async with"):
        await lender.replace(Fleet([]))
    async with lender:
        with pytest.raises(RuntimeError, match="no fleet"):
            async with lender.lend():
                pass
        await lender.replace(Fleet([]))
    assert lender.open == 0
    with pytest.raises(RuntimeError, match="no fleet"):
        async with lender.lend():
            pass
