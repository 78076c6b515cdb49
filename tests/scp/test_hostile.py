"""Peers of the storage SCP that are out of the ordinary, broken or hostile: each costs its deadline, none costs a neighbour."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import OperationError, PresentationContext, Received, ServerTLS, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import Certificates, HeldInstance, Wire, certificates, send_instances, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import AssociateRequest
from asyncdicom.upper_layer.pdu import PDUType
from tests.mutation import message, values
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
CONTEXTS = [PresentationContext(VERIFICATION), PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]


async def accept(received: Received) -> int:
    return 0x0000


def store(number: int, context_id: int = 3, data: bytes | None = None) -> bytes:
    """A whole C-STORE request."""
    command = dimse.request(
        CommandField.C_STORE_RQ, number, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
    )
    return b"".join(message(context_id, command, bytes(HELD.dataset) if data is None else data, max_length=16_384))


def echo(number: int) -> bytes:
    """A whole C-ECHO request."""
    return b"".join(message(1, dimse.request(CommandField.C_ECHO_RQ, number, VERIFICATION, dataset=False)))


async def aborted(wire: Wire) -> None:
    """The next thing that comes is an A-ABORT, and then the end."""
    found = await wire.receive_pdu()
    assert found is not None
    assert found.type == PDUType.ABORT, found.name
    await wire.closed(2.0)


# -- pipelining -------------------------------------------------------------------------------------------------------


async def test_a_thousand_requests_at_once_are_answered_one_after_the_other(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    """Bar S3; what they may cost is in test_memory.py."""

    async def slow(received: Received) -> int:
        await anyio.sleep(0.0005)
        return 0x0000

    async with StorageSCP(slow, port=0, engine=engine, max_pdu=16_384, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port, timeout=30) as wire:
            await wire.associate(CONTEXTS)
            async with anyio.create_task_group() as tasks:

                async def say() -> None:
                    for number in range(1, 1_001):
                        await wire.send(store(number))

                tasks.start_soon(say)
                for number in range(1, 1_001):
                    response = await wire.receive_message()
                    assert (response.command.responded_to, response.command.status) == (number, 0x0000)
            assert await wire.release()
        await seen.settled()
        assert scp._door.ingest.budget.used == 0


async def test_answers_in_tiny_pieces_and_requests_in_a_row_do_not_lock_each_other_up(no_leaks: object, engine: Engine) -> None:
    """An answer is more PDUs than may wait to be sent, while more requests have come than may wait to be served."""

    async def slow(received: Received) -> int:
        await anyio.sleep(0.05)
        return 0x0000

    async with StorageSCP(slow, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.associate(CONTEXTS, max_length=8)
        wire.max_length = 16_384
        await wire.send(b"".join(store(number) for number in range(1, 9)))
        for number in range(1, 9):
            assert (await wire.receive_message()).command.responded_to == number


async def test_two_messages_in_one_pdu_are_both_answered(no_leaks: object, engine: Engine) -> None:
    """PS3.8 Annex E lets one P-DATA-TF hold values of more messages than one."""
    commands = [
        dimse.encode_command(dimse.request(CommandField.C_ECHO_RQ, number, VERIFICATION, dataset=False)) for number in (1, 2)
    ]
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.associate(CONTEXTS)
        await wire.send(values((1, 3, commands[0]), (1, 3, commands[1])))
        assert [(await wire.receive_message()).command.responded_to for _ in range(2)] == [1, 2]


# -- out of turn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        store(1, context_id=5),
        store(1, context_id=1),
        echo(1)[:-1] + b"\xff" + echo(2),
        values((3, 3, b"")),
        pdu.encode_pdu(4, struct.pack(">LB", 1, 1)),
        values((1, 3, dimse.encode_command(dimse.Command(CommandField=0x8030, CommandDataSetType=0x0101, Status=0)))),
        negotiation.encode_request(AssociateRequest("ANY-SCP", "TWICE", negotiation.propose(CONTEXTS)[0])),
        pdu.encode_release_rp(),
        pdu.encode_reject(1, 1, 1),
    ],
    ids=[
        "unaccepted-context",
        "foreign-context",
        "reserved-bits",
        "empty-command",
        "empty-value",
        "response",
        "second-request",
        "release-response",
        "reject",
    ],
)
async def test_what_is_out_of_turn_is_answered_by_an_abort(
    no_leaks: object, engine: Engine, seen: Seen, said: bytes, request: pytest.FixtureRequest
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            await wire.send(said)
            if "reserved-bits" in request.node.name or "foreign-context" in request.node.name:
                # Harmless: what matters is that it is answered, one way or the other.
                assert await wire.receive_pdu() is not None
                return
            await aborted(wire)
        await seen.settled()
    assert seen.aborted == {"protocol_error": 1}
    assert not seen.statuses


async def test_a_release_inside_of_a_message_ends_it_without_an_instance(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            await wire.send(store(1)[:-2_000][:6_006])
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            first, *_ = message(3, dimse.request(CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True), b"half")
            await wire.send(first)
            assert await wire.release()
        await seen.settled()
        assert scp._door.ingest.budget.used == 0
    assert not seen.statuses


async def test_a_store_that_promises_no_dataset_is_refused_and_the_association_lives_on(
    no_leaks: object, engine: Engine
) -> None:
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.associate(CONTEXTS)
        request = dimse.request(
            CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=False, AffectedSOPInstanceUID=HELD.sop_instance_uid
        )
        await wire.send_message(3, request)
        assert (await wire.receive_message()).command.status >= 0xA000
        assert await wire.echo() == 0x0000


async def test_a_cancel_of_nothing_is_nothing(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """It is neither answered nor held: an association is not busy for it, and a drain does not wait for it."""
    cancels = b"".join(b"".join(message(3, dimse.cancel(number))) for number in range(50))
    async with StorageSCP(accept, port=0, engine=engine, observer=seen, drain_timeout=20) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            await wire.send(cancels)
            assert await wire.echo() == 0x0000
            assert scp._door.ingest.budget.used == 0
            started = time.monotonic()
            await scp.drain()
            assert time.monotonic() - started < 5.0


async def test_event_reports_start_no_threads(no_leaks: object, engine: Engine) -> None:
    report = dimse.request(
        CommandField.N_EVENT_REPORT_RQ, 7, "1.2.840.10008.1.20.1", dataset=False, AffectedSOPInstanceUID="1.2.3", EventTypeID=1
    )
    most = before = threading.active_count()
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.associate(CONTEXTS)
        with contextlib.suppress(OperationError):
            for _ in range(50):
                await wire.send(b"".join(message(1, report)) * 20)
                most = max(most, threading.active_count())
                await anyio.sleep(0.005)
    assert most <= before + 6


@pytest.mark.parametrize("max_length", [1, 7])
async def test_a_requestor_that_nothing_can_be_sent_to_is_aborted(
    no_leaks: object, engine: Engine, seen: Seen, max_length: int
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            with pytest.raises(OperationError) as caught:
                await wire.associate(CONTEXTS, max_length=max_length)
        assert caught.value.reason in ("aborted", "rejected_permanent")
        assert scp._door._admitted == 0


@pytest.mark.parametrize(
    "item", [b"\x50\0\0\0", b"\x20\0\0\x04\1\0\0\0", b"\x50\0\0\x04\x5f\0\0\0"], ids=["user", "context", "unknown"]
)
async def test_a_request_of_nothing_but_headers_costs_no_time(no_leaks: object, engine: Engine, item: bytes) -> None:
    honest = negotiation.encode_request(AssociateRequest("ANY-SCP", "HEADERS", negotiation.propose(CONTEXTS)[0]))
    body = honest[6:] + item * (1_000_000 // len(item))
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.send(pdu.encode_pdu(1, body))
        started = time.monotonic()
        await wire.receive_pdu()
        assert time.monotonic() - started < 1.5


# -- gone -------------------------------------------------------------------------------------------------------------

UNACCEPTABLE = negotiation.encode_request(AssociateRequest("ANY-SCP", "GONE", negotiation.propose(CONTEXTS)[0], max_length=1))


@pytest.mark.parametrize("said", [b"\x99" * 10, UNACCEPTABLE, store(1, context_id=5)], ids=["garbage", "request", "message"])
async def test_a_peer_that_is_gone_when_it_is_refused_ends_nothing_but_itself(
    no_leaks: object, engine: Engine, seen: Seen, said: bytes, request: pytest.FixtureRequest
) -> None:
    """It closes, or resets, between what deserves an A-ABORT and the A-ABORT, so many turns of the loop later."""
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        for turns in range(24):
            wire = await Wire.connect("127.0.0.1", scp.port)
            if "message" in request.node.name:
                await wire.associate(CONTEXTS)
            await wire.send(said)
            for _ in range(turns // 2):
                await anyio.lowlevel.checkpoint()
            if turns % 2:
                wire.reset()
            await wire.close()
        await seen.settled()
        assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]


@pytest.mark.parametrize("reason", ["protocol_version", "called_ae_title"])
async def test_a_peer_that_is_to_be_rejected_and_goes_on_talking_is_aborted_without_an_error_of_ours(
    no_leaks: object, engine: Engine, seen: Seen, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    contexts = negotiation.propose(CONTEXTS)[0]
    request = bytearray(negotiation.encode_request(AssociateRequest("WHO-IS-THIS", "TALKATIVE", contexts)))
    if reason == "protocol_version":
        request[6:8] = b"\0\2"
    async with StorageSCP(accept, port=0, engine=engine, require_called_ae_title=True, observer=seen) as scp:
        for _ in range(20):
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                # Both are there before the first is looked at.
                await wire.send(bytes(request) + b"\x99" * 10)
                await wire.closed(2.0)
        await seen.settled()
        assert await send_instances("127.0.0.1", scp.port, [HELD.file], called_ae_title="ASYNCDICOM") == [0x0000]
    assert not [record for record in caplog.records if record.levelname == "ERROR" and "asyncdicom" in record.name]


# -- slowness ---------------------------------------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_our_answers_is_ended(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, engine=engine, idle_timeout=0.5, observer=seen) as scp:
        for listener in scp._listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            connection: Any = wire._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            wire._reader._transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(OperationError):
                while True:
                    await wire.send(echo(1) * 100)
        await seen.settled()
        assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]
    assert seen.aborted == {"stalled": 1} or seen.aborted == {"idle": 1}


async def test_a_pdu_may_take_longer_to_come_than_a_peer_may_be_silent(no_leaks: object, engine: Engine) -> None:
    said = store(1, data=b"\x10\x00\x10\x00\x00\x20\x00\x00" + bytes(8_192))
    async with StorageSCP(accept, port=0, engine=engine, idle_timeout=0.4) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            for at in range(0, len(said), 800):
                await wire.send(said[at : at + 800])
                await anyio.sleep(0.1)
            assert (await wire.receive_message()).command.status == 0x0000


async def test_a_fast_beginning_does_not_buy_hours_of_slowness(
    no_leaks: object, engine: Engine, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold its part of the budget all the while."""
    if engine == "pynetdicom":
        monkeypatch.setattr("asyncdicom.scp.bridge._RATE_GRACE", 0.2)
    command, *_ = message(3, dimse.request(CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True), b"half")
    async with StorageSCP(
        accept, port=0, engine=engine, max_pdu=16_384, idle_timeout=0.6, min_rate=50_000, observer=seen
    ) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(CONTEXTS)
            await wire.send(command + values((3, 0, bytes(16_000))) * 60)
            started = time.monotonic()
            with pytest.raises(OperationError):
                while time.monotonic() - started < 5.0:
                    await wire.send(values((3, 0, b"\0")))
                    await anyio.sleep(0.2)
            assert time.monotonic() - started < 3.0
        await seen.settled()
    assert seen.aborted == {"stalled": 1}


# -- handlers ---------------------------------------------------------------------------------------------------------


async def test_a_handler_that_cancels_itself_has_failed(no_leaks: object, engine: Engine) -> None:
    async def cancels(received: Received) -> int:
        raise asyncio.CancelledError

    async with StorageSCP(cancels, port=0, engine=engine) as scp:
        assert await send_instances("127.0.0.1", scp.port, [HELD.file] * 2) == [0xC211, 0xC211]


async def test_leaving_cancels_the_handlers_under_way(no_leaks: object, engine: Engine, seen: Seen) -> None:
    entered, cancelled = anyio.Event(), 0

    async def never(received: Received) -> int:
        nonlocal cancelled
        entered.set()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return 0x0000

    wires = []
    async with StorageSCP(never, port=0, engine=engine, observer=seen) as scp:
        for _ in range(5):
            wires.append(await Wire.connect("127.0.0.1", scp.port))
            await wires[-1].associate(CONTEXTS)
            await wires[-1].send(store(1))
        await entered.wait()
    for wire in wires:
        await wire.closed(2.0)
        await wire.close()
    await seen.settled()
    assert cancelled >= 1


async def test_a_connection_that_comes_while_it_is_left_is_closed(no_leaks: object, engine: Engine) -> None:
    """So many turns of the loop earlier, it is on its way from the listener to a task of its own."""
    for turns in range(8):
        with socket.socket() as coming:
            coming.setblocking(False)
            async with StorageSCP(accept, port=0, engine=engine) as scp:
                await anyio.sleep(0.01)
                assert coming.connect_ex(("127.0.0.1", scp.port)) in (0, errno.EINPROGRESS)
                for _ in range(turns):
                    await asyncio.sleep(0)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Any) -> Certificates:
    return certificates(tmp_path)


class Records:
    """A TLS peer that decides itself which bytes of its records go out."""

    def __init__(self, tls: Certificates) -> None:
        import ssl

        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = tls.client_context().wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def connect(self, port: int) -> None:
        import ssl

        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self.writer.write(self._outgoing.read())
                self._incoming.write(await self.reader.read(65_536))
            else:
                self.writer.write(self._outgoing.read())
                return

    def sealed(self, data: bytes) -> bytes:
        """The records of some bytes."""
        self._ssl.write(data)
        return self._outgoing.read()

    async def receive(self, count: int) -> bytes:
        import ssl

        data = b""
        while len(data) < count:
            try:
                data += self._ssl.read(count - len(data))
            except ssl.SSLWantReadError:
                more = await asyncio.wait_for(self.reader.read(65_536), 3.0)
                if not more:
                    break
                self._incoming.write(more)
        return data

    async def receive_pdu(self) -> bytes:
        header = await self.receive(6)
        return header + await self.receive(int.from_bytes(header[2:6], "big"))


REQUEST = negotiation.encode_request(AssociateRequest("ANY-SCP", "TLS", negotiation.propose(CONTEXTS)[0]))


async def test_half_a_record_keeps_no_answer_back(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    """Bytes have come, but no byte of a PDU: whoever waits for the rest of one does not send."""

    async def slow(received: Received) -> int:
        await anyio.sleep(0.2)
        return 0x0000

    async with StorageSCP(slow, port=0, engine=engine, tls=ServerTLS(tls.certificate, tls.key)) as scp:
        peer = Records(tls)
        await peer.connect(scp.port)
        peer.writer.write(peer.sealed(REQUEST))
        assert (await peer.receive_pdu())[0] == PDUType.ASSOCIATE_AC
        half = peer.sealed(echo(2))
        # Records are numbered: what is sealed later must go out later, so the half is of the one that follows.
        peer.writer.write(half)
        assert (await peer.receive_pdu())[0] == PDUType.DATA_TF
        peer.writer.write(peer.sealed(store(3)) + peer.sealed(echo(4))[:20])
        assert (await peer.receive_pdu())[0] == PDUType.DATA_TF
        peer.writer.close()
        await peer.writer.wait_closed()


async def test_a_tls_peer_that_stalls_inside_a_record_is_ended(
    no_leaks: object, engine: Engine, tls: Certificates, seen: Seen
) -> None:
    server = ServerTLS(tls.certificate, tls.key)
    async with StorageSCP(accept, port=0, engine=engine, tls=server, idle_timeout=0.5, artim_timeout=0.5, observer=seen) as scp:

        async def stall(count: int, associated: bool) -> None:
            peer = Records(tls)
            await peer.connect(scp.port)
            if associated:
                peer.writer.write(peer.sealed(REQUEST))
                assert (await peer.receive_pdu())[0] == PDUType.ASSOCIATE_AC
            peer.writer.write(peer.sealed(echo(1) if associated else REQUEST)[:count])
            with anyio.fail_after(3.0):
                while await peer.reader.read(65_536):
                    pass
            peer.writer.close()
            await peer.writer.wait_closed()

        async with anyio.create_task_group() as tasks:
            for count in (0, 1, 5, 40):
                for associated in (False, True):
                    tasks.start_soon(stall, count, associated)
        await seen.settled()
        with anyio.fail_after(1.0):
            while scp._door.serving:
                await anyio.sleep(0.01)


async def test_a_tls_peer_that_closes_without_a_word_has_lost_its_connection(
    no_leaks: object, engine: Engine, tls: Certificates, seen: Seen
) -> None:
    server = ServerTLS(tls.certificate, tls.key)
    async with StorageSCP(accept, port=0, engine=engine, tls=server, observer=seen) as scp:
        for how in ("fin", "rst"):
            peer = Records(tls)
            await peer.connect(scp.port)
            peer.writer.write(peer.sealed(REQUEST))
            assert (await peer.receive_pdu())[0] == PDUType.ASSOCIATE_AC
            if how == "rst":
                connection: Any = peer.writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.writer.transport.abort()
            else:
                peer.writer.close()
                await peer.writer.wait_closed()
        await seen.settled()
    assert seen.aborted == {"connection_lost": 2}


# -- addresses --------------------------------------------------------------------------------------------------------


async def test_it_listens_on_ipv6(no_leaks: object, engine: Engine) -> None:
    addresses: list[str] = []

    async def handle(received: Received) -> int:
        addresses.append(received.peer_address)
        return 0x0000

    async with StorageSCP(handle, host="::1", port=0, engine=engine) as scp:
        assert await send_instances("::1", scp.port, [HELD.file]) == [0x0000]
    assert addresses == ["::1"]


# -- draining ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(90)
async def test_a_drain_under_load_loses_no_answer(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """What was stored was answered, or the sender knows that it was not."""
    stored = 0

    async def handle(received: Received) -> int:
        nonlocal stored
        await anyio.sleep(0.002)
        stored += 1
        return 0x0000

    answered = 0
    stop = False

    async def send(port: int) -> None:
        nonlocal answered
        while not stop:
            try:
                async with await Wire.connect("127.0.0.1", port) as wire:
                    await wire.associate(CONTEXTS)
                    for _ in range(10):
                        assert await wire.store(HELD) == 0x0000
                        answered += 1
                    await wire.release()
            except OperationError:
                await anyio.sleep(0.02)

    async with StorageSCP(handle, port=0, engine=engine, drain_timeout=5, observer=seen) as scp:
        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(send, scp.port)
            await anyio.sleep(0.5)
            started = time.monotonic()
            await scp.drain()
            assert time.monotonic() - started < 3.0
            stop = True
        await seen.settled()
        assert scp._door._admitted == 0
    assert answered > 16
    assert answered <= stored <= answered + 16
