"""Bar S1 at the listener: whatever a peer sends, nothing breaks, nothing is left, and the neighbours are served."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import OperationError, OperationTimeout, PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine, UserIdentity
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import AssociateRequest, ExtendedNegotiation, Role
from tests import fuzzing
from tests.conftest import Baseline
from tests.mutation import Mutator, Segments, message
from tests.scp.conftest import Seen

# Sequences in the small form. The bridge spends two threads on each and is no default: fewer have to do.
TRIALS: dict[Engine, int] = {"native": 10_000, "pynetdicom": 600}
LONG_TRIALS: dict[Engine, int] = {"native": fuzzing.LONG_TRIALS, "pynetdicom": fuzzing.LONG_TRIALS // 20}
AT_ONCE: dict[Engine, int] = {"native": 64, "pynetdicom": 24}
ARTIM = 0.4
IDLE = 0.4

HELD = HeldInstance.read(synthetic_instance())
CONTEXTS = [PresentationContext(VERIFICATION), PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]

# What it warns about is what it was sent: a broken UID is no fault of ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def conversation(chance: random.Random) -> Segments:
    """A whole conversation with a storage SCP, as a correct peer could have it."""
    proposed, roles = negotiation.propose(CONTEXTS)
    request = AssociateRequest(
        "ANY-SCP",
        "FUZZ",
        proposed,
        max_length=chance.choice((0, 1, 7, 8, 101, 4_096, 131_072, 0xFFFFFFFF)),
        asynchronous_operations=chance.choice((None, (0, 0), (8, 8))),
        roles=roles if chance.random() < 0.7 else (Role(HELD.sop_class_uid, True, True),),
        extended=() if chance.random() < 0.8 else (ExtendedNegotiation(HELD.sop_class_uid, b"\1\1"),),
        user_identity=None if chance.random() < 0.8 else UserIdentity("username", b"someone"),
        other_items=() if chance.random() < 0.8 else ((0x5F, b"from the future"),),
    )
    segments = [negotiation.encode_request(request)]
    for number in range(1, chance.choice((2, 2, 3, 5))):
        kind = chance.random()
        if kind < 0.3:
            segments += message(1, dimse.request(CommandField.C_ECHO_RQ, number, VERIFICATION, dataset=False))
        elif kind < 0.9:
            segments += store(number, has_dataset=chance.random() < 0.9)
        else:
            segments += message(3, dimse.cancel(number))
    segments.append(pdu.encode_release_rq() if chance.random() < 0.8 else pdu.encode_abort())
    return segments


def store(number: int, *, has_dataset: bool = True) -> Segments:
    """A C-STORE request; without its dataset it says so, too."""
    command = dimse.request(
        CommandField.C_STORE_RQ,
        number,
        HELD.sop_class_uid,
        dataset=has_dataset,
        AffectedSOPInstanceUID=HELD.sop_instance_uid,
    )
    return message(3, command, bytes(HELD.dataset) if has_dataset else None)


async def play(port: int, seed: int) -> None:
    """Say one mutated conversation, and leave in one way or another."""
    chance = random.Random(f"{seed}")
    segments = Mutator(f"{seed}").mutate(conversation(chance))
    wire = await Wire.connect("127.0.0.1", port, timeout=10)
    try:
        with suppress(OperationError):
            if segments and chance.random() < 0.9:
                # Whoever does not wait for the answer is aborted before the rest is looked at (PS3.8 Sta3).
                await wire.send(segments.pop(0))
                with suppress(OperationTimeout):
                    await wire.receive_bytes(0.2)
            if chance.random() < 0.5:
                await wire.send(b"".join(segments))
            else:
                for segment in segments:
                    await wire.send(segment)
                    await anyio.lowlevel.checkpoint()
            match chance.randrange(4):
                case 0:
                    wire.reset()
                case 1:
                    with suppress(OperationError):
                        await wire.receive_bytes(0.02)
                case _:
                    # It ends within its deadlines, whatever we have said.
                    started = time.monotonic()
                    await wire.closed(10)
                    assert time.monotonic() - started < max(ARTIM, IDLE) + 3.0
    finally:
        await wire.close()


async def fuzz(engine: Engine, seen: Seen, played: list[int]) -> None:
    instances = 0
    latencies: list[float] = []

    async def keep(received: Received) -> int:
        nonlocal instances
        instances += 1
        assert received.size <= 1 << 20
        return 0x0000

    async def neighbour(port: int) -> None:
        """A healthy sender, all the while. Who was late by the fault of a busy machine was idle, and begins again."""
        while True:
            async with await Wire.connect("127.0.0.1", port, timeout=10) as wire:
                await wire.associate(CONTEXTS, calling_ae_title="NEIGHBOUR")
                answered = time.monotonic()
                while (started := time.monotonic()) - answered < IDLE / 2:
                    assert await wire.store(HELD) == 0x0000
                    answered = time.monotonic()
                    latencies.append(answered - started)
                    await anyio.sleep(0.05)

    with fuzzing.watching() as watch:
        async with StorageSCP(
            keep,
            port=0,
            engine=engine,
            artim_timeout=ARTIM,
            idle_timeout=IDLE,
            max_pdu=16_384,
            max_object_size=1 << 20,
            observer=seen,
        ) as scp:
            budget = scp._door.ingest.budget
            baseline = Baseline()
            await warm_up(scp.port)
            await baseline.settle()
            before = await fuzzing.resident()
            left = iter(played)

            async def player() -> None:
                for seed in left:
                    with watch.play(seed):
                        await play(scp.port, seed)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(neighbour, scp.port)
                async with anyio.create_task_group() as players:
                    for _ in range(AT_ONCE[engine]):
                        players.start_soon(player)
                tasks.cancel_scope.cancel()
            await baseline.settle(ARTIM + 1.0)
            await seen.settled(1.0)
            assert scp.associations == 0
            assert scp._door.serving == set()
            assert (scp._door._admitted, scp._half_open) == (0, 0)
            assert budget.used == 0
            assert await fuzzing.resident() - before < fuzzing.MAX_RSS_GROWTH
            await warm_up(scp.port)
        watch.check()
    assert latencies
    if len(played) >= 100:
        assert instances >= len(played) // 20, "the mutations leave enough of a conversation to reach the handler"


async def warm_up(port: int) -> None:
    """A correct conversation."""
    async with await Wire.connect("127.0.0.1", port) as wire:
        await wire.associate(CONTEXTS)
        assert await wire.echo() == 0x0000
        assert await wire.store(HELD) == 0x0000
        assert await wire.release()


@pytest.mark.timeout(120)
async def test_whatever_a_peer_sends_nothing_breaks_and_nothing_is_left(no_leaks: object, engine: Engine, seen: Seen) -> None:
    await fuzz(engine, seen, fuzzing.seeds(0, TRIALS[engine]))


@pytest.mark.soak
@pytest.mark.timeout(7_200)
async def test_whatever_many_peers_send_nothing_breaks_and_nothing_is_left(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    await fuzz(engine, seen, fuzzing.seeds(TRIALS[engine], LONG_TRIALS[engine]))


async def test_a_conversation_that_is_not_mutated_is_served(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """The corpus itself is sound: else its mutations would all end at the same early place."""
    chance = random.Random(1)
    ended: Counter[int] = Counter()
    async with StorageSCP(accept, port=0, engine=engine, max_pdu=16_384, observer=seen) as scp:
        for _ in range(30):
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                request, *rest = conversation(chance)
                await wire.send(request)
                found = await wire.receive_pdu()
                assert found is not None
                ended[found.type] += 1
                await wire.send(b"".join(rest))
                await wire.closed()
        await seen.settled()
    assert ended[0x02] > 15
    assert seen.statuses[0x0000] > 10


async def accept(received: Received) -> int:
    return 0x0000
