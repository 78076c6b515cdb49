"""An association may outlive its operation; the modality never has more of them for that, and none is left behind."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from asyncdicom import ConfigurationError, Fleet, Modality, Outcome, Query
from asyncdicom.testing import Behaviour, Fault, SimulatedModality


async def echo(fleet: Fleet) -> Outcome:
    (outcome,) = [outcome async for outcome in fleet.echo()]
    return outcome


async def settled(sim: SimulatedModality) -> None:
    with anyio.fail_after(5):
        while sim.current:
            await anyio.sleep(0.01)


async def test_operations_within_the_linger_share_one_association(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality() as sim:
        async with fleet_of([sim.modality()], linger=5.0) as fleet:
            first, second, third = await echo(fleet), await echo(fleet), await echo(fleet)
            assert (first.ok, second.ok, third.ok) == (True, True, True)
            assert first.phases.connect is not None
            assert (second.phases.connect, second.phases.associate) == (None, None)
            assert (sim.requests_received, sim.current) == (1, 1)
        await settled(sim)
        assert (sim.releases_received, sim.aborts_received, sim.lost) == (1, 0, 0)


async def test_without_a_linger_each_operation_has_its_own(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality() as sim, fleet_of([sim.modality()]) as fleet:
        assert (await echo(fleet)).ok
        assert (await echo(fleet)).ok
        assert sim.requests_received == 2


async def test_an_association_that_nobody_wants_is_released_in_the_end(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    async with SimulatedModality() as sim, fleet_of([sim.modality()], linger=0.2) as fleet:
        assert (await echo(fleet)).ok
        assert sim.current == 1
        await settled(sim)
        assert sim.releases_received == 1
        assert (await echo(fleet)).ok
        assert sim.requests_received == 2


async def test_one_for_other_contexts_is_released_before_another_is_requested(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    async with SimulatedModality(matches=[{"PatientID": "1"}], max_associations=1) as sim:
        async with fleet_of([sim.modality()], linger=5.0) as fleet:
            assert (await echo(fleet)).ok
            assert len([match async for match in fleet.find(Query())]) == 1
            assert (await echo(fleet)).ok
        await settled(sim)
        assert (sim.requests_received, sim.rejections, sim.releases_received) == (3, 0, 3)


@pytest.mark.parametrize("fault", [Fault.CLOSING_OPERATION, Fault.ABORTING_OPERATION, Fault.RESETTING_OPERATION], ids=str)
async def test_one_that_the_peer_gave_up_is_replaced_without_a_word(
    no_leaks: object, fleet_of: Callable[..., Fleet], fault: Fault
) -> None:
    async with SimulatedModality() as sim, fleet_of([sim.modality()], linger=5.0) as fleet:
        assert (await echo(fleet)).ok
        # Whatever is said on the one that lingers is its end.
        for served in list(sim._served):
            served.behaviour = Behaviour(fault)
        again = await echo(fleet)
        assert (again.ok, again.attempts) == (True, 1)
        assert sim.requests_received == 2


async def test_one_that_the_peer_closed_meanwhile_is_not_used(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality() as sim, fleet_of([sim.modality()], linger=5.0) as fleet:
        assert (await echo(fleet)).ok
        for served in list(sim._served):
            served.reset()
        await anyio.sleep(0.05)
        assert (await echo(fleet)).ok
        assert sim.requests_received == 2


async def test_a_modality_that_wants_one_operation_per_association_gets_it(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    async with SimulatedModality() as sim:
        modality: Modality = sim.modality(one_operation_per_association=True)
        async with fleet_of([modality], linger=5.0) as fleet:
            assert (await echo(fleet)).ok
            await settled(sim)
            assert (await echo(fleet)).ok
        assert sim.requests_received == 2


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_linger_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet\.linger"):
        Fleet(linger=seconds)
