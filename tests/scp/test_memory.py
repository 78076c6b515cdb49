"""What a hostile peer can make the storage SCP keep in memory: next to nothing (bars S2, S3 and S4)."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from asyncdicom import Archive, PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import HeldInstance, Wire, send_instances, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.pdu import PDUType
from tests.bombs import DEFLATED, bomb
from tests.measuring import allocations
from tests.mutation import values
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,)), PresentationContext(VERIFICATION)]
MAX_PDU = 131_072
MEBIBYTE = 1 << 20


async def accept(received: Received) -> int:
    return 0x0000


def store(number: int, data: bytes, *, max_length: int = MAX_PDU) -> bytes:
    """A whole C-STORE request on context 1."""
    return pdu.encode_message(1, dimse.encode_command(store_command(number)), data, max_length=max_length)


def store_command(number: int) -> dimse.Command:
    return dimse.request(
        CommandField.C_STORE_RQ, number, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
    )


class Firehose:
    """Sends from a buffer that is there already, beside a wire, so that the sender's memory is not what is measured."""

    def __init__(self, wire: Wire) -> None:
        connection: socket.socket = wire._writer.get_extra_info("socket")
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._socket.setblocking(False)
        self.sent = 0

    def __enter__(self) -> Firehose:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def push(self, data: memoryview, *, endless: bool = False) -> bool:
        """Send as much as goes, which is at most a mebibyte; False when the peer takes no more of it.

        :param endless: begin again at the end
        """
        end = self.sent + MEBIBYTE if endless else min(self.sent + MEBIBYTE, len(data))
        try:
            while self.sent < end:
                at = self.sent % len(data)
                self.sent += self._socket.send(data[at : at + 65_536])
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


# -- lying lengths (S2) -----------------------------------------------------------------------------------------------

LIES = {
    "request": (False, PDUType.ASSOCIATE_RQ, 0xFFFFFFF0),
    "request-just-over": (False, PDUType.ASSOCIATE_RQ, pdu.MAX_ASSOCIATE_LENGTH + 1),
    "data": (True, PDUType.DATA_TF, 0xFFFFFFF0),
    "data-signed": (True, PDUType.DATA_TF, 0x7FFFFFFF),
    "data-just-over": (True, PDUType.DATA_TF, MAX_PDU + 1),
    "release": (True, PDUType.RELEASE_RQ, 0x10000000),
    "abort": (True, PDUType.ABORT, 5),
    "second-request": (True, PDUType.ASSOCIATE_RQ, 0xFFFFFFFF),
    "unknown": (True, 0x99, 0xFFFFFFFF),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_length_is_refused_before_the_body_and_costs_less_than_a_mebibyte(
    no_leaks: object, engine: Engine, seen: Seen, lie: str
) -> None:
    """Bar S2. Of the body that follows all the same, nothing is kept either."""
    associated, kind, length = LIES[lie]
    body = memoryview(bytes(MEBIBYTE))
    async with StorageSCP(accept, port=0, engine=engine, max_pdu=MAX_PDU, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            if associated:
                await wire.associate(STORAGE)
            with allocations() as allocated:
                await wire.send(struct.pack(">BxL", kind, length))
                started = time.monotonic()
                found = await wire.receive_pdu()
                assert found is not None
                assert found.type == PDUType.ABORT
                assert time.monotonic() - started < 0.5
                with Firehose(wire) as firehose:
                    while firehose.push(body, endless=True) and time.monotonic() - started < 3.0:
                        await anyio.sleep(0.001)
                assert await wire.closed() < 2.0
            assert allocated.peak < MEBIBYTE
        await seen.settled()
        assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]


async def test_a_pdu_of_exactly_the_announced_maximum_is_taken_and_one_byte_more_is_not(
    no_leaks: object, engine: Engine
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, max_pdu=16_384) as scp:
        for excess in (0, 1):
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                assert (await wire.associate(STORAGE)).max_length == 16_384
                await wire.send_message(1, store_command(1))
                await wire.send(values((1, 2, bytes(16_384 - 6 + excess))))
                found = await wire.receive_pdu()
                assert found is not None
                assert found.type == (PDUType.ABORT if excess else PDUType.DATA_TF)


# -- messages that do not end (S3) ------------------------------------------------------------------------------------


async def test_a_message_without_a_last_fragment_is_cut_at_the_cap(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """Bar S3."""
    cap = 4 * MEBIBYTE
    fragment = memoryview(values((1, 0, bytes(MAX_PDU - 6))))
    async with StorageSCP(accept, port=0, engine=engine, max_object_size=cap, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(STORAGE)
            await wire.send_message(1, store_command(1))
            most = 0
            with allocations() as allocated, Firehose(wire) as firehose, anyio.fail_after(5):
                while firehose.push(fragment, endless=True):
                    most = max(most, scp._door.ingest.budget.used)
                    await anyio.sleep(0.001)
            assert most <= cap + 2 * MAX_PDU
            # A buffer that grows may have to be copied once.
            assert allocated.peak < 2 * cap + 2 * MEBIBYTE
        await seen.settled()
        assert scp._door.ingest.budget.used == 0
    assert seen.aborted == {"too_large": 1}
    assert not seen.statuses


async def test_a_command_set_without_a_last_fragment_is_cut_too(no_leaks: object, engine: Engine, seen: Seen) -> None:
    fragment = memoryview(values((1, 1, bytes(16_000))))
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(STORAGE)
            with allocations() as allocated, Firehose(wire) as firehose, anyio.fail_after(5):
                while firehose.push(fragment, endless=True):
                    await anyio.sleep(0.001)
                await wire.closed()
            assert allocated.peak < MEBIBYTE
        await seen.settled()
    assert set(seen.aborted) <= {"protocol_error", "too_large"}
    assert seen.aborted.total() == 1


# The bridge holds whole messages, which is what its library puts together: two of them are two PDUs when they are short.
@pytest.mark.parametrize(
    ("engine", "size"),
    [
        ("native", 8_000),
        ("native", MAX_PDU - 6),
        ("native", 10 * MAX_PDU),
        ("pynetdicom", 8_000),
        ("pynetdicom", MAX_PDU - 6),
    ],
)
async def test_a_thousand_pipelined_requests_on_a_slow_disk_wait_on_the_wire(
    no_leaks: object, engine: Engine, seen: Seen, size: int
) -> None:
    """Bar S3: beyond the instance in hand, an association holds two PDUs at the most. The rest stays with the peer."""
    peers = 6
    done = anyio.Event()
    handled = 0

    async def slow(received: Received) -> int:
        nonlocal handled
        handled += 1
        await done.wait()
        return 0x0000

    one = store(1, bytes(size))
    pipeline = memoryview(one * min(1_000, 64 * MEBIBYTE // len(one)))
    async with StorageSCP(slow, port=0, engine=engine, max_pdu=MAX_PDU, observer=seen) as scp:
        async with AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(await Wire.connect("127.0.0.1", scp.port)) for _ in range(peers)]
            for wire in wires:
                await wire.associate(STORAGE)
                stack.callback(wire.reset)
            firehoses = [stack.enter_context(Firehose(wire)) for wire in wires]
            with allocations() as allocated, anyio.fail_after(10):
                quiet = 0
                # Until nobody has taken anything for a while.
                while quiet < 30 or handled < peers:
                    before = sum(firehose.sent for firehose in firehoses)
                    for firehose in firehoses:
                        assert firehose.push(pipeline)
                    quiet = quiet + 1 if sum(firehose.sent for firehose in firehoses) == before else 0
                    await anyio.sleep(0.005)
                ahead = allocated.now / peers - size
        done.set()
        await seen.settled()
        assert scp._door.ingest.budget.used == 0
    # Objects have their own size, besides that of the bytes.
    assert ahead <= 2 * MAX_PDU + 24_000, f"{ahead / MAX_PDU:.1f} PDUs an association"


# -- deflate bombs (S4) -----------------------------------------------------------------------------------------------


def deflated(size: int) -> HeldInstance:
    """An instance that inflates to so many MiB."""
    uid = "1.2.826.0.1.3680043.9.1"
    data = bomb(
        size,
        (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x00080018, b"UI", uid.encode() + b"\0"),
        (0x0020000D, b"UI", b"1.2.3\0"),
        (0x0020000E, b"UI", b"1.2.4\0"),
    )
    return HeldInstance(b"", memoryview(data), "1.2.840.10008.5.1.4.1.1.2", uid, DEFLATED, {})


BOMBS = [PresentationContext("1.2.840.10008.5.1.4.1.1.2", (DEFLATED,))]


@pytest.mark.parametrize("size", [1, 64, 1_024])
async def test_a_deflate_bomb_is_archived_as_the_bytes_that_it_is(
    no_leaks: object, engine: Engine, tmp_path: Path, size: int
) -> None:
    """Bar S4: an instance that inflates to a gibibyte costs what came, and a little."""
    instance = deflated(size)
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(BOMBS)
            with allocations() as allocated:
                assert await wire.store(instance) == 0x0000
            assert allocated.peak < 32 * MEBIBYTE


@pytest.mark.parametrize("size", [1, 64, 1_024])
async def test_a_handler_that_decodes_a_deflate_bomb_is_told_so_before_it_goes_off(
    no_leaks: object, engine: Engine, size: int
) -> None:
    """Bar S4: an honest one is decoded, of a bomb the decoder lets go."""

    def decode(received: Received) -> int:
        return 0x0000 if received.dataset.StudyInstanceUID else 0xC000

    async with StorageSCP(decode, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port, timeout=30) as wire:
        await wire.associate(BOMBS)
        with allocations() as allocated:
            status = await wire.store(deflated(size))
        assert allocated.peak < 32 * MEBIBYTE
        assert status == (0x0000 if size == 1 else 0xC211)


async def test_a_peer_that_only_opens_connections_costs_little(no_leaks: object, engine: Engine) -> None:
    async with StorageSCP(accept, port=0, engine=engine) as scp:
        wires: list[Wire] = []
        try:
            wires.append(await Wire.connect("127.0.0.1", scp.port))
            with allocations() as allocated:
                wires += [await Wire.connect("127.0.0.1", scp.port) for _ in range(100)]
                await anyio.sleep(0.1)
            # Ours and those of the test together.
            assert allocated.now / 100 < 65_536
        finally:
            for wire in wires:
                await wire.close()
