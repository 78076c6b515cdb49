"""An association is a context manager that is always released, or aborted, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from contextlib import AsyncExitStack, suppress

import anyio
import pytest

from asyncdicom import (
    ConnectionLost,
    Modality,
    OperationError,
    PresentationContext,
    Query,
    StorageSCP,
    Timeouts,
    associate,
)
from asyncdicom.association.dialogue import Exchange
from asyncdicom.association.link import Link
from asyncdicom.association.native import NativeAssociation
from asyncdicom.association.plain import PlainTransport
from asyncdicom.modality import Engine
from asyncdicom.outcome import Phases
from asyncdicom.testing import Behaviour, Fault, SimulatedModality
from asyncdicom.upper_layer.context import VERIFICATION

# A real archive reads a database for each match.
ENDLESS = Behaviour(Fault.ENDLESS_PENDING, interval=0.002)


async def test_leaving_the_block_releases(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality() as sim:
        async with associate(sim.modality(), engine=engine) as association:
            assert await association.echo() == 0x0000
        assert (sim.releases_received, sim.aborts_received) == (1, 0)
        assert not association.is_established


async def test_leaving_the_block_by_an_exception_aborts(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality() as sim:
        with pytest.raises(ZeroDivisionError):
            async with associate(sim.modality(), engine=engine):
                raise ZeroDivisionError
        await until(lambda: sim.aborts_received == 1)
        assert sim.releases_received == 0


async def test_several_operations_share_one_association(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality(matches=[{"PatientID": "1"}, {"PatientID": "2"}]) as sim:
        async with associate(sim.modality(), engine=engine) as association:
            for _ in range(3):
                assert await association.echo() == 0x0000
                found = [match.dataset.PatientID async for match in association.find(Query(keys={"PatientID": ""}))]
                assert sorted(found) == ["1", "2"]
        assert sim.associations == 1


async def test_phases_are_timed_apart(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=0.2, associate_delay=0.1)) as sim:
        async with associate(sim.modality(), engine=engine) as association:
            await association.echo()
        phases = association.phases
        assert phases.resolve is not None
        assert phases.connect is not None
        assert phases.tls is None
        assert phases.associate is not None
        assert phases.operation is not None
        assert phases.release is not None
        assert 0.1 <= phases.associate < 0.2 <= phases.operation < 0.4


async def test_the_peer_s_implementation_is_known(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality() as sim, associate(sim.modality(), engine=engine) as association:
        assert association.peer.implementation_class_uid


async def test_stopping_a_find_early_cancels_it_at_the_peer(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality(ENDLESS, matches=[{"PatientID": "1"}]) as sim:
        async with associate(sim.modality(), engine=engine) as association:
            async for _ in association.find(Query()):
                break
            assert await association.echo() == 0x0000
        assert (sim.cancels_received, sim.aborts_received, sim.releases_received) == (1, 0, 1)


async def test_a_find_ends_at_its_limit_by_a_cancel(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality(ENDLESS, matches=[{"PatientID": "1"}]) as sim:
        async with associate(sim.modality(), engine=engine) as association:
            assert len([match async for match in association.find(Query(), limit=7)]) == 7
        assert (sim.cancels_received, sim.aborts_received) == (1, 0)


async def test_a_peer_that_ignores_a_cancel_is_aborted_after_a_grace(no_leaks: object, engine: Engine) -> None:
    behaviour = Behaviour(Fault.ENDLESS_PENDING, honour_cancel=False, interval=0.01)
    async with SimulatedModality(behaviour, matches=[{"PatientID": "1"}]) as sim:
        with anyio.fail_after(4):
            async with associate(sim.modality(), engine=engine) as association:
                assert len([match async for match in association.find(Query(), limit=3)]) == 3
        await until(lambda: sim.aborts_received == 1)
        assert sim.cancels_received == 1


async def test_a_flood_of_matches_is_cancelled_or_aborted_within_the_grace(no_leaks: object, engine: Engine) -> None:
    """What lies in the buffers of the network alone can take longer to read than the grace."""
    async with SimulatedModality(Fault.ENDLESS_PENDING, matches=[{"PatientID": "1"}]) as sim:
        with anyio.fail_after(4):
            async with associate(sim.modality(), engine=engine) as association:
                matches = association.find(Query())
                await anext(aiter(matches))
                await anyio.sleep(0.3)
                await matches.aclose()
        assert sim.cancels_received == 1 or sim.aborts_received == 1


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.SILENT_AFTER_ASSOCIATE, Fault.BLACK_HOLE, Fault.STALLING], ids=str)
async def test_cancelling_the_caller_frees_its_thread_at_once(no_leaks: object, engine: Engine, fault: Fault) -> None:
    async with SimulatedModality(fault) as sim:
        with anyio.move_on_after(0.2) as scope, anyio.fail_after(2.0):
            async with associate(sim.modality(), engine=engine) as association:
                await association.echo()
        assert scope.cancelled_caught


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012])
async def test_cancelling_at_any_moment_leaves_nothing_behind(no_leaks: object, engine: Engine, delay: float) -> None:
    async with SimulatedModality(matches=[{"PatientID": "1"}] * 50) as sim:

        async def work() -> None:
            async with associate(sim.modality(), engine=engine) as association:
                await association.echo()
                async for _ in association.find(Query()):
                    pass

        task = asyncio.create_task(work())
        await anyio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: sim.current == 0)


async def test_cancelling_at_every_await_leaves_nothing_behind(no_leaks: object, engine: Engine) -> None:
    """The caller is cancelled at its first resumption, then at its second, and so on until it ends by itself (bar C5)."""
    async with SimulatedModality(matches=[{"PatientID": "1"}] * 3) as sim:

        async def work() -> None:
            async with associate(sim.modality(), engine=engine) as association:
                await association.echo()
                async for _ in association.find(Query()):
                    pass

        for step in range(1, 200):
            task = asyncio.ensure_future(CancelAt(work(), step))
            await asyncio.wait([task])
            await until(lambda: sim.current == 0)
            if not task.cancelled():
                assert task.exception() is None
                break
        else:
            raise AssertionError("the work never ended by itself")
        assert step > 3


class CancelAt:
    """Runs a coroutine and throws a cancellation into it when it is resumed for the n-th time."""

    def __init__(self, coroutine, step: int) -> None:  # type: ignore[no-untyped-def]
        self._coroutine = coroutine
        self._step = step

    def __await__(self):  # type: ignore[no-untyped-def]
        inner = self._coroutine.__await__()
        count = 0
        try:
            waiting = next(inner)
            while True:
                try:
                    sent = yield waiting
                except BaseException as error:
                    waiting = inner.throw(error)
                    continue
                count += 1
                waiting = inner.throw(asyncio.CancelledError()) if count == self._step else inner.send(sent)
        except StopIteration as stop:
            return stop.value


async def test_an_operation_after_the_end_says_so(no_leaks: object, engine: Engine) -> None:
    async with SimulatedModality() as sim:
        async with associate(sim.modality(), engine=engine) as association:
            await association.abort()
            with pytest.raises(ConnectionLost):
                await association.echo()


async def test_an_idle_association_costs_one_thread_and_no_more(engine: Engine) -> None:
    async with SimulatedModality() as sim:
        before = {thread.name for thread in threading.enumerate() if "asyncdicom-bridge" not in thread.name}
        async with associate(sim.modality(), engine=engine) as association:
            await association.echo()
            mine = [t for t in threading.enumerate() if t.name not in before and "asyncdicom-bridge" not in t.name]
            assert len(mine) <= 1


@pytest.mark.timeout(120)
@pytest.mark.blocking  # starting thousands of threads is what is tested
async def test_more_than_1100_associations_at_once_work(engine: Engine) -> None:
    count = 1_150
    raise_descriptor_limit(8 * count)
    timeouts = Timeouts(connect=30, associate=60, operation=60, release=30)
    async with SimulatedModality(ae_title="MANY") as sim:
        modality: Modality = sim.modality(timeouts=timeouts)
        all_open = anyio.Event()
        # A listener's backlog is shorter than this crowd: they come one after the other, and stay.
        at_the_door = anyio.CapacityLimiter(50)
        is_open = 0

        async def hold() -> None:
            nonlocal is_open
            async with AsyncExitStack() as stack:
                async with at_the_door:
                    asked = associate(modality, engine=engine, contexts=[PresentationContext(VERIFICATION)])
                    association = await stack.enter_async_context(asked)
                is_open += 1
                if is_open == count:
                    all_open.set()
                await all_open.wait()
                assert await association.echo() == 0x0000

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(hold)
        assert sim.peak == sim.echoes == sim.releases_received == count


def raise_descriptor_limit(wanted: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


async def test_a_peer_may_release_while_we_are_idle(no_leaks: object, engine: Engine) -> None:
    """Seldom, but PS3.8 allows it to the acceptor too; the next operation then says that the association is over."""
    async with StorageSCP(None, port=0, idle_timeout=0.3) as scp:
        modality = Modality("idle", "IDLE", "127.0.0.1", scp.port)
        async with associate(modality, engine=engine) as association:
            await until(lambda: scp.associations == 1)
            await until(lambda: scp.associations == 0)
            with pytest.raises(Exception, match=r"abort|over|closed"):
                await association.echo()


async def until(condition, seconds: float = 3.0) -> None:  # type: ignore[no-untyped-def]
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)


# With TLS there is more between the socket and us, and it is asyncio's.
@pytest.mark.parametrize("fault", sorted(set(Fault) - {Fault.TLS, Fault.SILENT_TLS}), ids=str)
async def test_an_association_leaves_nothing_to_the_garbage_collector(fault: Fault) -> None:
    """However it ended. Thousands of them would have everything else wait while it looks for them."""
    ours = (NativeAssociation, Link, PlainTransport, Phases, Exchange, OperationError)
    patience = Timeouts(associate=0.2, operation=0.2, release=0.2)
    async with SimulatedModality(fault, matches=[{"PatientID": "1"}]) as sim:
        modality = sim.modality(timeouts=patience)

        async def ask() -> None:
            with suppress(OperationError):
                async with associate(modality, engine="native") as association:
                    await association.echo()
                    async for _ in association.find(Query(keys={"PatientID": ""}), limit=2):
                        pass

        def there() -> Counter[str]:
            # By its type: some things that others have made look into files when they are asked for their class.
            return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if issubclass(kind, ours))

        gc.collect()
        gc.disable()
        before = there()
        try:
            for _ in range(2):
                await ask()
            # A timer holds what was aborted, until the peer has had its time to read that.
            with anyio.move_on_after(2):
                while left := there() - before:
                    await anyio.sleep(0.05)
        finally:
            gc.enable()
    assert not left
