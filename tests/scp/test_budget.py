"""The budget of bytes in flight bounds memory, and never lets those who share it wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio
import pytest

from asyncdicom import PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.scp.ingest import ByteBudget
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer.message import CommandField
from tests.mutation import message, values
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]


def never() -> bool:
    return False


class Taker(threading.Thread):
    """Takes bytes on a thread, as the upper layer of an association does."""

    def __init__(self, budget: ByteBudget, owner: object, size: int, gone: Callable[[], bool] = never) -> None:
        super().__init__()
        self._call = lambda: budget.take(owner, size, gone=gone)
        self.taken: bool | None = None
        self.start()

    def run(self) -> None:
        self.taken = self._call()


def test_what_fits_is_taken_at_once() -> None:
    budget = ByteBudget(100)
    assert budget.take("a", 60, gone=never)
    assert budget.take("b", 40, gone=never)
    assert budget.used == 100


def test_one_object_over_the_whole_budget_is_taken_when_it_is_alone() -> None:
    assert ByteBudget(100).take("a", 5_000, gone=never)


def test_who_waits_goes_on_when_bytes_come_back() -> None:
    budget = ByteBudget(100)
    budget.take("a", 100, gone=never)
    taker = Taker(budget, "b", 10)
    time.sleep(0.05)
    assert taker.taken is None
    budget.give_back("a", 50)
    taker.join(1.0)
    assert taker.taken
    budget.give_back("a")
    budget.give_back("b")
    assert budget.used == 0


def test_of_two_halves_that_fill_it_the_older_goes_on_and_the_other_after_it() -> None:
    budget = ByteBudget(100)
    budget.take("a", 50, gone=never)
    budget.take("b", 50, gone=never)
    second = Taker(budget, "b", 10)
    time.sleep(0.05)
    first = Taker(budget, "a", 10)
    second.join(1.0)
    # The one that waited first was alone in that, so it goes ahead, until it gives something back.
    assert (first.taken, second.taken) == (None, True)
    budget.give_back("b", 60)
    first.join(1.0)
    assert first.taken


def test_one_that_holds_bytes_and_wants_no_more_holds_up_nobody() -> None:
    """A slow peer, or a handler that hangs, is the oldest holder for long."""
    budget = ByteBudget(100)
    budget.take("idle", 1, gone=never)
    budget.take("a", 50, gone=never)
    budget.take("b", 49, gone=never)
    takers = [Taker(budget, "a", 10), Taker(budget, "b", 10)]
    takers[0].join(1.0)
    assert takers[0].taken
    budget.give_back("a")
    takers[1].join(1.0)
    assert takers[1].taken


def test_who_is_gone_waits_no_longer() -> None:
    budget = ByteBudget(100)
    budget.take("a", 100, gone=never)
    gone = threading.Event()
    taker = Taker(budget, "b", 10, gone.is_set)
    gone.set()
    taker.join(2.0)
    assert taker.taken is False
    assert budget.used == 100


def test_it_adds_up_under_many_threads() -> None:
    budget = ByteBudget(1_000)
    most = 0

    def work(owner: int) -> None:
        nonlocal most
        for round_ in range(50):
            parts = [100 + (owner * 7 + round_) % 200 for _ in range(3)]
            for part in parts:
                assert budget.take(owner, part, gone=never)
                most = max(most, budget.used)
            budget.give_back(owner, sum(parts))

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert not any(thread.is_alive() for thread in threads)
    assert budget.used == 0
    # The one that goes ahead may exceed it by what it holds itself.
    assert most <= 1_000 + 3 * 300


def test_one_that_is_called_back_is_called_once_when_there_is_room() -> None:
    budget = ByteBudget(100)
    called: list[str] = []
    budget.charge("a", 100)
    assert not budget.may_read("b")
    budget.notify("b", lambda: called.append("b"))
    assert called == []
    budget.give_back("a", 10)
    assert called == ["b"]
    budget.give_back("a")
    assert called == ["b"]


def test_of_those_that_are_called_back_one_may_exceed_it() -> None:
    budget = ByteBudget(100)
    called: list[str] = []
    budget.charge("a", 50)
    budget.charge("b", 50)
    budget.notify("a", lambda: called.append("a"))
    budget.notify("b", lambda: called.append("b"))
    assert called == ["a"]
    assert budget.may_read("a")
    assert not budget.may_read("b")
    budget.charge("a", 20)
    budget.give_back("a")
    assert called == ["a", "b"]
    assert budget.may_read("b")


def test_who_is_forgotten_is_not_called() -> None:
    budget = ByteBudget(100)
    called: list[str] = []
    budget.charge("a", 100)
    budget.charge("b", 10)
    budget.notify("b", lambda: called.append("b"))
    called.clear()
    budget.notify("b", lambda: called.append("b"))
    budget.forget("b")
    budget.forget("a")
    assert budget.used == 0
    assert called in ([], ["b"])


@pytest.mark.parametrize("hanging", [True, False], ids=["beside-a-handler-that-hangs", "alone"])
async def test_two_large_objects_that_do_not_fit_together_both_arrive(
    no_leaks: object, engine: Engine, seen: Seen, hanging: bool
) -> None:
    done = anyio.Event()

    async def handle(received: Received) -> int:
        if received.calling_ae_title == "HANGS":
            await done.wait()
        return 0x0000

    data = values((1, 0, bytes(60_000)))
    command, *_ = message(
        1,
        dimse.request(
            CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
        ),
        b"begin",
    )
    async with StorageSCP(handle, port=0, engine=engine, budget=600_000, observer=seen) as scp:
        async with (
            await Wire.connect("127.0.0.1", scp.port) as oldest,
            await Wire.connect("127.0.0.1", scp.port, timeout=10) as one,
            await Wire.connect("127.0.0.1", scp.port, timeout=10) as two,
        ):
            if hanging:
                await oldest.associate(STORAGE, calling_ae_title="HANGS")
                await oldest.send(
                    b"".join(
                        message(
                            1,
                            dimse.request(
                                CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID="1.2"
                            ),
                            b"some",
                        )
                    )
                )
                await anyio.sleep(0.1)
            for wire in (one, two):
                await wire.associate(STORAGE)
                await wire.send(command + data * 4)
            await anyio.sleep(0.2)
            async with anyio.create_task_group() as tasks:
                for wire in (one, two):
                    tasks.start_soon(wire.send, data * 4 + values((1, 2, b"end!")))
                for wire in (one, two):
                    assert (await wire.receive_message()).command.status == 0x0000
            done.set()
        await seen.settled()
        assert scp._door.ingest.budget.used == 0


async def test_waiting_for_the_budget_is_neither_idleness_nor_slowness(no_leaks: object, engine: Engine, seen: Seen) -> None:
    done = anyio.Event()

    async def handle(received: Received) -> int:
        if received.calling_ae_title == "FIRST":
            await done.wait()
        return 0x0000

    async with StorageSCP(handle, port=0, engine=engine, budget=5_000, idle_timeout=0.4, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as first, await Wire.connect("127.0.0.1", scp.port) as second:
            await first.associate(STORAGE, calling_ae_title="FIRST")
            await second.associate(STORAGE, calling_ae_title="SECOND")
            async with anyio.create_task_group() as tasks:
                for wire in (first, second):
                    tasks.start_soon(wire.store, HELD)
                    await anyio.sleep(0.1)
                await anyio.sleep(1.2)
                assert scp.associations == 2
                done.set()
        await seen.settled()
    assert seen.statuses == {0x0000: 2}
