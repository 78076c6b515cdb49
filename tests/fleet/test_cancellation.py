"""Bar C5: the caller is cancelled at each of its awaits in turn, and no task, thread, descriptor or association is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import TLS, Fleet, Instance, Modality, PresentationContext, Query, Received, Timeouts, associate
from asyncdicom.association.contract import contexts_for_get
from asyncdicom.modality import Engine
from asyncdicom.testing import (
    Behaviour,
    Certificates,
    Fault,
    HeldInstance,
    SimulatedModality,
    certificates,
    simulate,
    synthetic_instance,
)
from tests.conftest import Baseline

HELD = HeldInstance.read(synthetic_instance())
INSTANCE = Instance(
    HELD.sop_class_uid, HELD.sop_instance_uid, HELD.transfer_syntax_uid, size=len(HELD.dataset), data=bytes(HELD.dataset)
)
QUERY = Query(keys={"StudyInstanceUID": "", "PatientID": ""})
TIMEOUTS = Timeouts(resolve=2.0, connect=2.0, associate=2.0, operation=2.0, release=1.0)
# More awaits than any of these operations has.
MOST = 400


class CancelledAt:
    """Runs a coroutine in a task, and has the task cancelled at the n-th of its awaits.

    The cancellation is delivered there, as when whoever called has a deadline that passes at this very moment.

    :ivar awaits: how often it has awaited so far
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int) -> None:
        self._coroutine = coroutine
        self._step = step
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        task = asyncio.current_task()
        assert task is not None
        try:
            waiting = next(inner)
            while True:
                self.awaits += 1
                if self.awaits == self._step:
                    # The task is running: what it is about to wait for is cancelled as soon as it waits.
                    task.cancel()
                try:
                    sent = yield waiting
                except BaseException as error:
                    waiting = inner.throw(error)
                else:
                    waiting = inner.send(sent)
        except StopIteration as stop:
            return stop.value


Work = Callable[[], Coroutine[Any, Any, Any]]
Gone = Callable[[], bool]


async def at_await(work: Work, step: int) -> bool:
    """Do the work, cancelled at one of its own awaits; return whether it was done before it came to that."""
    run = CancelledAt(work(), step)

    async def runs() -> None:
        await run

    await ended(asyncio.create_task(runs()))
    return run.awaits < step


async def at_turn(work: Work, step: int) -> bool:
    """The same, after so many turns of the event loop: whatever the tasks of ours are waiting for by then."""
    task = asyncio.create_task(work())
    for _ in range(step):
        await asyncio.sleep(0)
    is_whole = task.done()
    task.cancel()
    await ended(task)
    return is_whole


async def ended(task: asyncio.Task[None]) -> None:
    """Wait for its end; a cancellation is no failure of it."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def cancelled_everywhere(cancelled: Callable[[Work, int], Awaitable[bool]], work: Work, gone: Gone) -> int:
    """Cancel the work at the first place, at the second, and so on until it ends by itself.

    :param gone: whether nothing is left of it at the peers
    :return: how many places it has
    """
    assert await at_await(work, MOST), "what is made once is made, and it ends by itself"
    await nothing_left([].copy, gone, 0)
    baseline = Baseline()
    for step in range(1, MOST):
        is_whole = await cancelled(work, step)
        await nothing_left(baseline.leaks, gone, step)
        if is_whole:
            return step
    raise AssertionError("it never ended by itself")


async def nothing_left(leaks: Callable[[], list[str]], gone: Gone, step: int) -> None:
    """Return once nothing is left.

    :raises AssertionError: when something is left after two seconds
    """
    end = time.monotonic() + 2.0
    while left := [*leaks(), *([] if gone() else ["an association, as the peer sees it"])]:
        assert time.monotonic() < end, f"cancelled at place {step}, left: {left}"
        await anyio.sleep(0.002)


# -- fleets -----------------------------------------------------------------------------------------------------------


async def echo(fleet: Fleet) -> None:
    async for _ in fleet.echo():
        pass


async def find(fleet: Fleet) -> None:
    async for _ in fleet.find(QUERY, limit=5):
        pass


async def find_merged(fleet: Fleet) -> None:
    async for _ in fleet.find(QUERY, merge=True):
        pass


async def send(fleet: Fleet) -> None:
    async for _ in fleet.send([INSTANCE] * 2):
        pass


async def move(fleet: Fleet) -> None:
    async for _ in fleet.move(QUERY, to="ELSEWHERE"):
        pass


async def get(fleet: Fleet) -> None:
    async def keep(received: Received) -> int:
        await anyio.lowlevel.checkpoint()
        return 0x0000

    async for _ in fleet.get(QUERY, into=keep):
        pass


OPERATIONS = (echo, find, find_merged, send, move, get)


def content(number: int, behaviour: Behaviour) -> dict[str, Any]:
    return {"matches": [{"StudyInstanceUID": f"1.2.{n}", "PatientID": f"{number}"} for n in range(3)], "instances": [HELD]}


# On the bridge, whose threads have their own time, a turn of the loop is no place.
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("engine", "place"), [("native", at_await), ("native", at_turn), ("pynetdicom", at_await)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelling_the_user_of_a_fleet_anywhere_leaves_nothing(
    no_leaks: object,
    fleet_of: Callable[..., Fleet],
    operation: Callable[[Fleet], Awaitable[None]],
    place: Callable[[Work, int], Awaitable[bool]],
) -> None:
    """Three modalities, two at a time; one fails, and is asked again."""
    async with simulate(3, faults="reset=1", settings=content) as sims:
        inventory = sims.inventory(timeouts=TIMEOUTS)

        async def work() -> None:
            async with fleet_of(inventory, concurrency=2) as fleet:
                await operation(fleet)

        assert await cancelled_everywhere(place, work, lambda: not any(sim.current for sim in sims.modalities)) > 3


# -- associations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


async def all_of_it(modality: Modality, engine: Engine) -> None:
    """Every kind of operation on one association."""

    async def keep(received: Received) -> int:
        await anyio.lowlevel.checkpoint()
        return 0x0000

    contexts = [PresentationContext("1.2.840.10008.1.1"), PresentationContext(QUERY.find_sop_class)]
    contexts += [INSTANCE.context, PresentationContext(QUERY.move_sop_class)]
    async with associate(modality, engine=engine, contexts=contexts) as association:
        await association.echo()
        await association.store(INSTANCE)
        async for _ in association.find(QUERY, limit=2):
            pass
        async for _ in association.move(QUERY, to="ELSEWHERE"):
            pass
    storage = [context for context in contexts_for_get(QUERY) if context.abstract_syntax == HELD.sop_class_uid]
    async with associate(modality, engine=engine, contexts=[PresentationContext(QUERY.get_sop_class), *storage]) as association:
        async for _ in association.get(QUERY, keep):
            pass


@pytest.mark.timeout(120)
async def test_cancelling_the_user_of_associations_at_any_await_leaves_nothing(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality(matches=[{"PatientID": "1"}] * 4, instances=[HELD]) as sim:
        modality = sim.modality(timeouts=TIMEOUTS)
        # On the bridge a thread and we race for some of the places: more than once, for either to win.
        for _ in range(1 if engine == "native" else 5):
            assert await cancelled_everywhere(at_await, lambda: all_of_it(modality, engine), lambda: not sim.current) > 10


@pytest.mark.timeout(120)
async def test_cancelling_the_user_of_a_tls_association_at_any_await_leaves_nothing(
    no_leaks: object, engine: Engine, tls: Certificates
) -> None:
    async with SimulatedModality(Fault.TLS, tls=tls) as sim:
        modality = sim.modality(timeouts=TIMEOUTS, tls=TLS(ca=tls.ca))

        async def work() -> None:
            async with associate(modality, engine=engine, contexts=[PresentationContext("1.2.840.10008.1.1")]) as association:
                await association.echo()

        assert await cancelled_everywhere(at_await, work, lambda: not sim.current) > 5
