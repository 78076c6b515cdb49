"""A thousand associations that do nothing are served in one process, and stay usable."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from asyncdicom import PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import HeldInstance, Wire, send_instances, synthetic_instance
from asyncdicom.testing.sockets import allow_descriptors
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import AssociateRequest
from asyncdicom.upper_layer.pdu import PDUReader, PDUType
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
REQUEST = negotiation.encode_request(
    AssociateRequest("ANY-SCP", "IDLE", negotiation.propose([PresentationContext(VERIFICATION)])[0])
)
ECHO = pdu.encode_message(
    1, dimse.encode_command(dimse.request(CommandField.C_ECHO_RQ, 1, VERIFICATION, dataset=False)), max_length=4_096
)


class Idle(asyncio.Protocol):
    """An association without anything that a test does not need, so that a thousand of them are cheap.

    :ivar got: the PDUs that came, by their type
    """

    def __init__(self) -> None:
        self.got: list[int] = []
        self._frames = PDUReader(1 << 20)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.say(REQUEST)

    def say(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        self.got += [found.type for found in self._frames]


async def until_all(idle: list[Idle], got: list[int]) -> None:
    with anyio.fail_after(15):
        while any(each.got != got for each in idle):
            await anyio.sleep(0.01)


@pytest.mark.timeout(90)
async def test_a_thousand_idle_associations_cost_next_to_nothing_and_stay_usable(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    # Each has two threads of its own on the bridge, which wake up now and then.
    count = 1_000 if engine == "native" else 150
    allow_descriptors(4 * count)

    async def accept(received: Received) -> int:
        return 0x0000

    async with StorageSCP(accept, port=0, engine=engine, max_associations=count + 1, observer=seen) as scp:
        loop = asyncio.get_running_loop()
        idle: list[Idle] = []
        for _ in range(count):
            _, one = await loop.create_connection(Idle, "127.0.0.1", scp.port)
            idle.append(one)
        await until_all(idle, [PDUType.ASSOCIATE_AC])
        assert scp.associations == count
        if engine == "native":
            started, cpu = time.monotonic(), time.process_time()
            await anyio.sleep(0.5)
            # The bar, 2 % of a core, is measured with `make bench`; a timer for each would show here all the same.
            assert time.process_time() - cpu < 0.1 * (time.monotonic() - started)
        # There is room for one more, and for no other.
        assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]
        for one in idle:
            one.say(ECHO)
        await until_all(idle, [PDUType.ASSOCIATE_AC, PDUType.DATA_TF])
        for one in idle:
            one.say(pdu.encode_release_rq())
        await until_all(idle, [PDUType.ASSOCIATE_AC, PDUType.DATA_TF, PDUType.RELEASE_RP])
        await seen.settled()
        assert scp.associations == 0
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate()
            assert await wire.release()
    assert (seen.accepted, seen.aborted, seen.rejected) == (count + 2, {}, {})
