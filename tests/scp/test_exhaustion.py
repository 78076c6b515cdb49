"""The listener survives what uses it up: no descriptors left (bar R11), and peers that are half-open by the hundred (R10)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncdicom import OperationError, PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import HeldInstance, Wire, send_instances, synthetic_instance
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.negotiation import AssociateRequest
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]

HALF_A_REQUEST = negotiation.encode_request(
    AssociateRequest("ANY-SCP", "HALF", negotiation.propose([PresentationContext(VERIFICATION)])[0])
)[:90]

# A listener that may open few files: it tells its port, then again and again how many seconds of CPU it has used.
_CHILD = """
import asyncio, json, os, resource, sys, time
import anyio
from asyncdicom import StorageSCP

async def accept(received):
    return 0x0000

async def main(engine):
    async with StorageSCP(accept, port=0, engine=engine, artim_timeout=60.0) as scp:
        # What is imported and made once has its descriptors by now.
        opened = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, opened + 40))
        print(json.dumps({"port": scp.port}), flush=True)
        while True:
            await anyio.sleep(0.25)
            print(json.dumps({"at": time.monotonic(), "cpu": time.process_time()}), flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.timeout(60)
async def test_out_of_descriptors_it_waits_and_serves_again_once_they_return(engine: Engine) -> None:
    process = await anyio.open_process([sys.executable, "-c", _CHILD, engine], stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)

        async def line() -> dict[str, float]:
            with anyio.fail_after(20):
                told: dict[str, float] = json.loads(await lines.receive_until(b"\n", 4_096))
            return told

        port = int((await line())["port"])
        assert await send_instances("127.0.0.1", port, [HELD.file]) == [0x0000]
        # More connections than it may open; the system takes them all the same, and they wait to be accepted.
        holders = [await Wire.connect("127.0.0.1", port) for _ in range(80)]
        for wire in holders[::2]:
            # For these there is more to be opened than the connection.
            with suppress(OperationError):
                await wire.send(HALF_A_REQUEST)
        for _ in range(2):
            first = await line()
        for _ in range(6):
            last = await line()
        assert last["cpu"] - first["cpu"] < 0.5 * (last["at"] - first["at"])
        for wire in holders:
            await wire.close()
        started = time.monotonic()
        with anyio.fail_after(5):
            assert await send_instances("127.0.0.1", port, [HELD.file]) == [0x0000]
        assert time.monotonic() - started < 1.0
        # So does an association that ran out of them half-way.
        for _ in range(20):
            assert await send_instances("127.0.0.1", port, [HELD.file]) == [0x0000]
    finally:
        process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()


@pytest.mark.timeout(90)
async def test_two_hundred_half_open_peers_keep_nobody_out(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """Bar R10 in small: nothing, one byte, a header, half a request."""
    answered: list[int] = []
    slowest = 0.0
    artim = 3.0

    async def accept(received: Received) -> int:
        return 0x0000

    async with StorageSCP(accept, port=0, engine=engine, max_associations=20, artim_timeout=artim, observer=seen) as scp:

        async def sender() -> None:
            nonlocal slowest
            while len(answered) < 60:
                started = time.monotonic()
                answered.extend(await send_instances("127.0.0.1", scp.port, [HELD.file]))
                slowest = max(slowest, time.monotonic() - started)
                await anyio.sleep(0.02)

        opened = time.monotonic()
        peers = [await Wire.connect("127.0.0.1", scp.port) for _ in range(200)]
        for number, wire in enumerate(peers):
            said = (b"", b"\x01", HALF_A_REQUEST[:6], HALF_A_REQUEST)[number % 4]
            if said:
                await wire.send(said)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(sender)
        assert set(answered) == {0x0000}
        assert set(seen.rejected) <= {"artim"}
        for wire in peers:
            await wire.closed(10)
            await wire.close()
        assert time.monotonic() - opened < artim + 3.0
        await seen.settled()
        assert scp._half_open == 0
        assert scp._door.serving == set()
    assert slowest < 2.0
