"""A fleet gives exactly one outcome per target, of the right reason, by its deadline, and leaves nothing behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import pytest

from asyncdicom import (
    Breaker,
    ConfigurationError,
    Fleet,
    Instance,
    Limits,
    Modality,
    Observer,
    Outcome,
    Query,
    Received,
    SubOperations,
    Timeouts,
    TooManyMatches,
)
from asyncdicom.fleet import merge
from asyncdicom.testing import Behaviour, Fault, HeldInstance, SimulatedModality, simulate, synthetic_study

TIMEOUTS = Timeouts(resolve=0.5, connect=0.5, associate=0.5, operation=0.5, release=0.3)


class Ended(Observer):
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.open = 0

    def operation_ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def scu_association_opened(self, modality: str) -> None:
        self.open += 1

    def scu_association_closed(self, modality: str) -> None:
        self.open -= 1


async def test_every_target_has_one_outcome(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    observer = Ended()
    async with simulate(60, faults="silent=4,reject=4,reset=4,garbage=4") as sims:
        inventory = sims.inventory(timeouts=TIMEOUTS)
        async with fleet_of(inventory, concurrency=30, observer=observer) as fleet:
            outcomes = [outcome async for outcome in fleet.echo()]
    assert Counter(outcome.modality for outcome in outcomes) == Counter(modality.name for modality in inventory)
    assert Counter(str(outcome.reason) for outcome in outcomes) == {
        "ok": 44,
        "associate_timeout": 4,
        "rejected_permanent": 4,
        "connection_lost": 4,
        "protocol_error": 4,
    }
    assert observer.outcomes == outcomes
    assert observer.open == 0


async def test_an_outcome_tells_what_both_sides_agreed_on(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with (
        SimulatedModality() as answering,
        SimulatedModality("failure_status") as failing,
        simulate(1, faults="reject=1") as sims,
    ):
        inventory = [answering.modality("up"), failing.modality("failing"), *sims.inventory(timeouts=TIMEOUTS)]
        async with fleet_of(inventory) as fleet:
            outcomes = {outcome.modality: outcome async for outcome in fleet.echo()}
    (agreed,) = outcomes.pop("up").contexts
    assert agreed.abstract_syntax == "1.2.840.10008.1.1"
    assert agreed.transfer_syntax.startswith("1.2.840.10008.1.2")
    assert outcomes.pop("failing").contexts == (agreed,)
    assert [outcome.contexts for outcome in outcomes.values()] == [()]
    assert all("contexts" not in outcome.as_json() for outcome in outcomes.values())


async def test_outcomes_come_as_they_complete(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=0.4)) as slow, SimulatedModality() as quick:
        async with fleet_of([slow.modality("slow"), quick.modality("quick")]) as fleet:
            assert [outcome.modality async for outcome in fleet.echo()] == ["quick", "slow"]


async def test_at_the_deadline_everything_ends_and_every_target_still_has_its_outcome(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    async with simulate(40, faults="silent=40") as sims, fleet_of(sims.inventory(), concurrency=10, deadline=0.5) as fleet:
        started = time.monotonic()
        outcomes = [outcome async for outcome in fleet.echo()]
        assert time.monotonic() - started < 1.5
    assert len(outcomes) == 40
    assert {str(outcome.reason) for outcome in outcomes} == {"deadline"}


async def test_a_modality_never_sees_more_associations_than_configured(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=0.02)) as sim:
        modality = sim.modality(limits=Limits(per_modality=2))
        async with fleet_of([modality], concurrency=50) as fleet:
            outcomes = [outcome async for outcome in fleet.echo([modality] * 20)]
        assert len(outcomes) == 20
        assert sim.peak == 2


async def test_runs_share_the_limits_of_their_fleet(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=0.02)) as sim, fleet_of([sim.modality()]) as fleet:

        async def run() -> None:
            assert [outcome.ok async for outcome in fleet.echo()] == [True]

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(run)
        assert sim.peak == 1
        assert sim.echoes == 8


async def test_a_transient_rejection_is_tried_again_and_a_permanent_one_is_not(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    transient = Behaviour(Fault.REJECTING_TRANSIENT, result=2, source=3, diagnostic=2, first=1)
    async with SimulatedModality(transient) as busy, SimulatedModality(Fault.REJECTING) as closed:
        async with fleet_of([busy.modality("busy"), closed.modality("closed")], retries=2) as fleet:
            outcomes = {outcome.modality: outcome async for outcome in fleet.echo()}
    assert (outcomes["busy"].reason, outcomes["busy"].attempts) == ("ok", 2)
    assert (outcomes["closed"].reason, outcomes["closed"].attempts) == ("rejected_permanent", 1)


async def test_a_modality_that_failed_often_is_left_alone(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality(Fault.CLOSING) as sim:
        modality = sim.modality()
        async with fleet_of([modality], breaker=Breaker(failures=3, open_for=60)) as fleet:
            reasons = [str(outcome.reason) for _ in range(5) async for outcome in fleet.echo()]
    assert reasons == ["connection_lost"] * 3 + ["breaker_open"] * 2


async def test_leaving_an_iteration_early_stops_what_is_left(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with simulate(20, faults="silent=10") as sims:
        async with fleet_of(sims.inventory(), concurrency=20) as fleet:
            outcomes = fleet.echo()
            async for outcome in outcomes:
                assert outcome.ok
                break
            await outcomes.aclose()  # type: ignore[attr-defined]
        assert sum(modality.current for modality in sims.modalities) == 0


async def test_an_exception_in_the_block_comes_out_as_it_is(fleet_of: Callable[..., Fleet]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fleet_of([]):
            raise ZeroDivisionError


async def test_a_fleet_works_inside_of_its_block_only(fleet_of: Callable[..., Fleet]) -> None:
    async with SimulatedModality() as sim:
        with pytest.raises(RuntimeError, match="async with"):
            async for _ in fleet_of([sim.modality()]).echo():
                pass


async def test_matches_of_several_archives_come_together(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    async with AsyncExitStack() as stack:
        archives = [
            await stack.enter_async_context(
                SimulatedModality(matches=[{"StudyInstanceUID": f"1.{n}"}, {"StudyInstanceUID": "1.9"}])
            )
            for n in range(3)
        ]
        dead = await stack.enter_async_context(SimulatedModality(Fault.REFUSING))
        inventory = [*(sim.modality(f"a{n}") for n, sim in enumerate(archives)), dead.modality("dead")]
        async with fleet_of(inventory) as fleet:
            plain = fleet.find(Query())
            found = sorted([(str(match.dataset.StudyInstanceUID), match.sources) async for match in plain])
            merged = fleet.find(Query(), merge=True)
            united = {str(match.dataset.StudyInstanceUID): set(match.sources) async for match in merged}
    assert len(found) == 6
    assert found[0] == ("1.0", ("a0",))
    assert united == {"1.0": {"a0"}, "1.1": {"a1"}, "1.2": {"a2"}, "1.9": {"a0", "a1", "a2"}}
    assert {name: str(outcome.reason) for name, outcome in plain.outcomes.items()} == {
        "a0": "ok",
        "a1": "ok",
        "a2": "ok",
        "dead": "connect_refused",
    }
    assert plain.outcomes["a0"].matches == 2


async def test_merging_takes_no_more_memory_than_it_may_and_stops_the_archives(
    no_leaks: object, fleet_of: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_MOST", 20_000)
    different = [{"StudyInstanceUID": f"1.{n}"} for n in range(200)]
    async with SimulatedModality(matches=different) as one, SimulatedModality(matches=different[:10]) as other:
        async with fleet_of([one.modality("one"), other.modality("other")]) as fleet:
            with pytest.raises(TooManyMatches, match="narrow the query"):
                async for _ in fleet.find(Query(), merge=True):
                    pass


async def test_a_limit_gives_so_many_matches_and_cancels_the_rest(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.002)
    async with SimulatedModality(endless, matches=[{"PatientID": "1"}]) as sim:
        async with fleet_of([sim.modality()]) as fleet:
            matches = fleet.find(Query(), limit=5)
            assert len([match async for match in matches]) == 5
        assert sim.cancels_received == 1
        assert [outcome.matches for outcome in matches.outcomes.values()] == [5]


async def test_every_instance_sent_has_its_outcome(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    what = study(5)
    async with SimulatedModality() as one, SimulatedModality(Behaviour(Fault.FAILURE_STATUS, status=0xA700)) as full:
        async with fleet_of([one.modality("one"), full.modality("full")]) as fleet:
            outcomes = [outcome async for outcome in fleet.send(what)]
        assert one.associations == 1
    by_target = {(outcome.modality, outcome.instance): outcome for outcome in outcomes}
    assert len(by_target) == len(outcomes) == 10
    assert {str(o.reason) for (name, _), o in by_target.items() if name == "one"} == {"ok"}
    assert {o.status for (name, _), o in by_target.items() if name == "full"} == {0xA700}
    assert {stored.sop_instance_uid for stored in one.stored} == {instance.sop_instance_uid for instance in what}


async def test_more_contexts_than_one_association_can_have_are_sharded(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    what = [
        Instance(f"1.2.3.{n}", f"1.2.4.{n}", "1.2.840.10008.1.2", size=0, data=b"\x08\x00\x18\x00\x00\x00\x00\x00")
        for n in range(200)
    ]
    async with SimulatedModality() as sim, fleet_of([sim.modality()]) as fleet:
        outcomes = [outcome async for outcome in fleet.send(what)]
        assert {str(outcome.reason) for outcome in outcomes} == {"ok"}
        assert len(outcomes) == 200
        assert sim.associations == 2


async def test_an_association_that_breaks_costs_the_instance_under_way_and_no_other(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    what = study(4)
    async with SimulatedModality(Behaviour(Fault.RESETTING_OPERATION, first=1)) as sim, fleet_of([sim.modality()]) as fleet:
        outcomes = [outcome async for outcome in fleet.send(what)]
    assert Counter(str(outcome.reason) for outcome in outcomes) == {"connection_lost": 1, "ok": 3}


async def test_a_modality_that_wants_one_operation_per_association_gets_it(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    what = study(3)
    async with SimulatedModality() as sim:
        async with fleet_of([sim.modality(one_operation_per_association=True)]) as fleet:
            assert [outcome.ok async for outcome in fleet.send(what)] == [True] * 3
        assert (sim.associations, sim.peak) == (3, 1)


async def test_what_comes_by_get_is_counted_against_what_the_peer_says(
    no_leaks: object, fleet_of: Callable[..., Fleet]
) -> None:
    held = [HeldInstance.read(data) for _, data in synthetic_study(4)]
    came: list[str] = []

    async def keep(received: Received) -> int:
        came.append(received.sop_instance_uid)
        return 0x0000 if len(came) < 4 else 0xA700

    async with SimulatedModality(instances=held) as sim, fleet_of([sim.modality()]) as fleet:
        [outcome] = [outcome async for outcome in fleet.get(Query(), into=keep)]
    assert outcome.received == 3
    assert outcome.sub_operations is not None
    assert (outcome.sub_operations.completed, outcome.sub_operations.failed) == (3, 1)
    assert outcome.reason == "failure_status"
    assert "1 of 4 sub-operations failed" in outcome.detail


async def test_a_peer_that_counts_more_than_came_is_found_out(no_leaks: object, fleet_of: Callable[..., Fleet]) -> None:
    from asyncdicom import Ledger

    async with SimulatedModality(sub_operations=SubOperations(completed=7)) as sim, fleet_of([sim.modality()]) as fleet:
        [outcome] = [outcome async for outcome in fleet.move(Query(), to="DEST", ledger=Ledger())]
    assert outcome.received == 0
    assert not outcome.ok
    assert "the peer counts 7 instances as sent, 0 were kept here" in outcome.detail


def test_two_modalities_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="taken"):
        Fleet([Modality("a", "A", "127.0.0.1"), Modality("a", "B", "127.0.0.1")])


def test_targets_are_chosen_by_name_group_and_address() -> None:
    a = Modality("a", "A", "127.0.0.1", groups=("ct",))
    b = Modality("b", "B", "127.0.0.1", groups=("ct", "north"))
    fleet = Fleet([a, b])
    assert fleet.select("@ct") == [a, b]
    assert fleet.select("b", "@all") == [b, a]
    assert fleet.select("@north") == [b]
    assert fleet.select("X@127.0.0.1:104")[0].ae_title == "X"
    for wrong in ("c", "@south", "X@nowhere"):
        with pytest.raises(ConfigurationError, match=r"write|there are"):
            fleet.select(wrong)


def study(count: int) -> list[Instance]:
    held = [HeldInstance.read(data) for _, data in synthetic_study(count)]
    return [
        Instance(
            one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, size=len(one.dataset), data=bytes(one.dataset)
        )
        for one in held
    ]
