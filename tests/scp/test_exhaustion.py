"""The listener survives what uses it up: no descriptors left (bar R11), and peers that are half-open by the thousand (R10)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncdicom import OperationError, PresentationContext, Received, ServerTLS, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import Certificates, HeldInstance, Wire, certificates, send_instances, synthetic_instance
from asyncdicom.testing.sockets import allow_descriptors
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.negotiation import AssociateRequest
from tests.measuring import percentile
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
            try:
                os.close(os.dup(0))
            except OSError:
                left = 0
            else:
                left = 1
            print(json.dumps({"at": time.monotonic(), "cpu": time.process_time(), "left": left}), flush=True)

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
        early = await Wire.connect("127.0.0.1", port)
        await early.associate([PresentationContext(VERIFICATION)])
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
            assert last["left"] == 0, "it is out of descriptors all the while"
            assert await early.echo() == 0x0000, "who is there already is served"
        assert last["cpu"] - first["cpu"] < 0.5 * (last["at"] - first["at"])
        for wire in holders:
            await wire.close()
        started = time.monotonic()
        with anyio.fail_after(5):
            assert await send_instances("127.0.0.1", port, [HELD.file]) == [0x0000]
        assert time.monotonic() - started < 1.0
        await early.close()
        # So does an association that ran out of them half-way.
        for _ in range(20):
            assert await send_instances("127.0.0.1", port, [HELD.file]) == [0x0000]
    finally:
        process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()


class HalfOpen(asyncio.Protocol):
    """A connection that says a little, or nothing, and then waits for its end.

    :ivar lasted: seconds from its connection to its end; None while it lasts
    """

    def __init__(self, says: bytes) -> None:
        self._says = says
        self._opened = 0.0
        self.lasted: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._opened = time.monotonic()
        self.transport = transport
        if self._says:
            transport.write(self._says)  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        self.lasted = time.monotonic() - self._opened


# A record header, and half of what could be a ClientHello (RFC 8446 section 5.1).
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)


@pytest.fixture(params=["plain", "tls"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Certificates | None:
    """Certificates for a listener that speaks TLS, and none for one that does not."""
    return certificates(tmp_path) if request.param == "tls" else None


@pytest.mark.timeout(90)
async def test_a_thousand_half_open_peers_keep_nobody_out(
    no_leaks: object, engine: Engine, seen: Seen, own: Certificates | None
) -> None:
    """Bar R10: nothing, one byte, a header, half a request; all of them are gone a second after ARTIM at the latest."""
    # On the bridge each that has said something takes two threads, TLS handshakes excepted.
    count = 300 if engine == "pynetdicom" and own is None else 1_000
    artim = 2.0 if engine == "native" and own is None else 3.0
    allow_descriptors(4 * count)
    begun, header = (HALF_A_REQUEST, 6) if own is None else (HALF_A_HELLO, 5)
    says = (b"", begun[:1], begun[:header], begun)
    tls = None if own is None else ServerTLS(own.certificate, own.key)
    context = None if own is None else own.client_context()
    statuses: Counter[int] = Counter()
    echoes: list[float] = []

    async def accept(received: Received) -> int:
        return 0x0000

    async with StorageSCP(
        accept, port=0, engine=engine, max_associations=20, artim_timeout=artim, tls=tls, observer=seen
    ) as scp:
        loop = asyncio.get_running_loop()

        async def open_one(says: bytes) -> HalfOpen:
            _, peer = await loop.create_connection(partial(HalfOpen, says), "127.0.0.1", scp.port)
            return peer

        async def live() -> None:
            while True:
                started = time.monotonic()
                async with await Wire.connect("127.0.0.1", scp.port, ssl=context) as wire:
                    await wire.associate([*STORAGE, PresentationContext(VERIFICATION)])
                    assert await wire.echo() == 0x0000
                    echoes.append(time.monotonic() - started)
                    statuses[await wire.store(HELD)] += 1
                    assert await wire.release()
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(live)
            peers = [await open_one(says[number % 4]) for number in range(count)]
            assert sum(peer.lasted is None for peer in peers) > 0.9 * count, "they are there at once"
            with anyio.fail_after(artim + 5.0):
                while any(peer.lasted is None for peer in peers):
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        lasted = [peer.lasted for peer in peers if peer.lasted is not None]
        # It counts from when the connection is accepted, which may be a moment after it stands.
        assert artim - 0.5 < min(lasted)
        assert max(lasted) < artim + 1.0
        await seen.settled()
        with anyio.fail_after(1.0):
            while scp._half_open or scp._door.serving:
                await anyio.sleep(0.01)
    assert set(statuses) == {0x0000}
    assert set(seen.rejected) <= {"artim", "tls"}
    # A live one may have been in the middle of its handshake at the end.
    assert count <= seen.rejected.total() <= count + 4
    assert len(echoes) > 40
    assert percentile(echoes, 99) <= 1.0
