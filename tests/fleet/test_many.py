"""Many modalities at once, a good part of them ill: bar C1, and five thousand in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable

import anyio
import pytest

from asyncdicom import Fleet, Modality, Outcome, Query, Timeouts
from asyncdicom.modality import Engine
from asyncdicom.testing import Behaviour, Fault, SimulatedFleet, simulate
from tests.measuring import percentile, without_collector

# Of 500: 10 % each are black holes, silent, stalling and resetting; 5 % each say garbage, and never stop answering.
COUNT = 500
FAULTS = "black_hole=10%,silent=10%,stall=10%,reset=10%,garbage=5%,endless_pending=5%"
ILL = {
    Fault.BLACK_HOLE: "connect_timeout",
    Fault.SILENT: "associate_timeout",
    Fault.STALLING: "associate_timeout",
    Fault.RESETTING: "connection_lost",
    Fault.GARBAGE: "protocol_error",
}
SETTINGS = {"matches": [{"StudyInstanceUID": "1.2.3", "PatientID": "1"}]}


def settings(number: int, behaviour: Behaviour) -> dict[str, object]:
    return SETTINGS


def wrong(
    sims: SimulatedFleet, inventory: list[Modality], outcomes: list[Outcome], endless: str, *, or_late: bool = False
) -> dict[str, object]:
    """The targets whose outcome is none, more than one, or of the wrong reason.

    :param endless: the reason of those that never stop answering
    :param or_late: the deadline is a right reason for everybody
    """
    reasons: dict[str, list[str]] = {modality.name: [] for modality in inventory}
    for outcome in outcomes:
        reasons[outcome.modality].append(str(outcome.reason))
    expected = {**ILL, Fault.HEALTHY: "ok", Fault.ENDLESS_PENDING: endless}
    return {
        modality.name: (sim.behaviour.fault, reasons[modality.name])
        for modality, sim in zip(inventory, sims.modalities, strict=True)
        if reasons[modality.name] not in ([expected[sim.behaviour.fault]], ["deadline"] if or_late else None)
    }


@pytest.mark.timeout(120)
async def test_of_500_targets_half_are_ill_and_each_has_its_own_outcome_while_the_healthy_do_not_notice(
    no_leaks: object, engine: Engine, fleet_of: Callable[..., Fleet]
) -> None:
    """Bar C1, with C-ECHO: p99 of the healthy is at most 1.2 times that of a sweep of healthy ones alone; the median of rounds.

    Of the bridge, whose threads take turns at the interpreter by the 5 ms, it is the median.
    """
    percent = 99 if engine == "native" else 50
    timeouts = Timeouts(connect=1.0, associate=1.0, operation=1.0, release=0.5)
    async with simulate(COUNT, faults=FAULTS) as ill, simulate(COUNT, host="127.96.0.1") as well:
        inventory, healthy = ill.inventory(timeouts=timeouts), well.inventory(timeouts=timeouts)
        names = {
            modality.name
            for modality, sim in zip(inventory, ill.modalities, strict=True)
            if sim.behaviour.fault is Fault.HEALTHY
        }

        async def sweep(modalities: list[Modality]) -> list[Outcome]:
            async with fleet_of(modalities, concurrency=100) as fleet:
                return [outcome async for outcome in fleet.echo()]

        alone: list[float] = []
        among: list[float] = []
        for _ in range(5):
            with without_collector():
                outcomes = await sweep(healthy)
            assert Counter(str(outcome.reason) for outcome in outcomes) == {"ok": COUNT}
            alone.append(percentile((outcome.duration for outcome in outcomes), percent))
            with without_collector():
                outcomes = await sweep(inventory)
            assert wrong(ill, inventory, outcomes, "ok") == {}
            among.append(percentile((outcome.duration for outcome in outcomes if outcome.modality in names), percent))
            ratio = statistics.median(among) / statistics.median(alone)
            if ratio <= 1.2:
                break
        assert ratio <= 1.2, f"alone {alone}, among the ill {among}"
        assert {sim.associations for sim in well.modalities} == {len(alone)}


@pytest.mark.timeout(120)
async def test_a_sweep_of_which_some_never_stop_answering_ends_by_its_deadline(
    no_leaks: object, engine: Engine, fleet_of: Callable[..., Fleet]
) -> None:
    """Bar C1, with C-FIND: by the deadline and a second, each with one outcome, those that are still answering included."""
    # The bridge's two hundred threads and all the peers share what processors there are.
    timeouts = Timeouts(connect=1.0, associate=1.0 if engine == "native" else 2.0, operation=1.0, release=0.5)
    deadline = 2.5
    sims = simulate(COUNT, faults=FAULTS, settings=settings)
    for sim in sims.with_fault(Fault.ENDLESS_PENDING):
        # A real archive reads a database for each match.
        sim.behaviour = dataclasses.replace(sim.behaviour, interval=0.02)
    async with sims:
        inventory = sims.inventory(timeouts=timeouts)
        async with fleet_of(inventory, concurrency=200, deadline=deadline) as fleet:
            started = time.monotonic()
            matches = fleet.find(Query())
            found = Counter([match.sources[0] async for match in matches])
            took = time.monotonic() - started
        assert took < deadline + 1.0
        assert len(matches.outcomes) == COUNT
        # The bridge needs a thread for each at once, and may not come to everybody.
        told = list(matches.outcomes.values())
        assert wrong(sims, inventory, told, "deadline", or_late=engine == "pynetdicom") == {}
        endless = {
            modality.name
            for modality, sim in zip(inventory, sims.modalities, strict=True)
            if sim.behaviour.fault is Fault.ENDLESS_PENDING
        }
        assert {name for name, count in found.items() if count > 1} <= endless
        assert {outcome.modality for outcome in told if outcome.ok} <= set(found) - endless
        # Seen from the other side, too, nothing is left open.
        with anyio.fail_after(1.0):
            while sum(sim.current for sim in sims.modalities):
                await anyio.sleep(0.01)


@pytest.mark.timeout(120)
async def test_5000_modalities_are_swept_in_one_process(no_leaks: object) -> None:
    """One in twenty never answers: it costs its own deadline, and nobody else's."""
    count = 5_000
    timeouts = Timeouts(connect=2.0, associate=2.0, operation=2.0, release=1.0)
    async with simulate(count, faults="silent=5%") as sims:
        inventory = sims.inventory(timeouts=timeouts)
        async with Fleet(inventory, concurrency=500, engine="native") as fleet:
            outcomes = [outcome async for outcome in fleet.echo()]
        assert len({outcome.modality for outcome in outcomes}) == len(outcomes) == count
        assert Counter(str(outcome.reason) for outcome in outcomes) == {
            "ok": count * 19 // 20,
            "associate_timeout": count // 20,
        }
        assert {sim.echoes for sim in sims.with_fault(Fault.HEALTHY)} == {1}
