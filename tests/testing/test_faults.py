"""Every fault, seen from the wire."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import anyio.lowlevel
import pytest

from asyncdicom.errors import (
    AssociationAborted,
    AssociationRejected,
    ConnectionLost,
    NoPresentationContext,
    OperationError,
    OperationTimeout,
    ProtocolError,
)
from asyncdicom.modality import UserIdentity
from asyncdicom.testing import Behaviour, Certificates, Fault, SimulatedModality, Wire, certificates
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import STUDY_ROOT_FIND, STUDY_ROOT_MOVE, VERIFICATION, PresentationContext
from asyncdicom.upper_layer.message import CommandField

pytestmark = pytest.mark.usefixtures("no_leaks")

SOON = 0.15  # seconds after which a peer that says nothing counts as silent


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("issued"))


async def connect(sim: SimulatedModality, **settings: Any) -> Wire:
    settings.setdefault("timeout", 2.0)
    return await Wire.connect(sim.host, sim.port, **settings)


async def echo(sim: SimulatedModality, **settings: Any) -> int:
    """A C-ECHO with its association."""
    async with await connect(sim, **settings) as wire:
        await wire.associate(called_ae_title=sim.ae_title)
        status = await wire.echo()
        assert await wire.release()
        return status


async def test_a_healthy_modality_answers_and_counts() -> None:
    async with SimulatedModality(ae_title="CT1") as sim:
        assert await echo(sim) == 0x0000
        assert await echo(sim) == 0x0000
        assert (sim.connections, sim.associations, sim.current, sim.peak) == (2, 2, 0, 1)
        assert (sim.echoes, sim.releases_received, sim.aborts_received, sim.lost) == (2, 2, 0, 0)
        assert [request.called_ae_title for request in sim.requests] == ["CT1", "CT1"]
        assert "CT1@127.0.0.1" in repr(sim)


async def test_the_peak_is_the_most_associations_at_once() -> None:
    async with SimulatedModality() as sim:
        wires = [await connect(sim) for _ in range(5)]
        for wire in wires:
            await wire.associate()
        assert (sim.current, sim.peak) == (5, 5)
        assert await wires[0].release()
        assert sim.current == 4
        for wire in wires:
            await wire.close()
        await echo(sim)
        assert (sim.current, sim.peak, sim.lost) == (0, 5, 4)


async def test_an_abort_is_counted_and_ends_the_association() -> None:
    async with SimulatedModality() as sim, await connect(sim) as wire:
        await wire.associate()
        await wire.abort()
        await wire.closed()
        assert (sim.aborts_received, sim.current, sim.lost) == (1, 0, 0)


async def test_a_reset_is_counted_as_lost() -> None:
    async with SimulatedModality() as sim:
        wire = await connect(sim)
        await wire.associate()
        wire.reset()
        await wire.close()
        while sim.open_connections:
            await anyio.lowlevel.checkpoint()
        assert (sim.lost, sim.current) == (1, 0)


async def test_the_modality_that_it_makes_carries_its_address() -> None:
    async with SimulatedModality(ae_title="CT1") as sim:
        known = sim.modality("ct", groups=("a",))
        assert (known.name, known.ae_title, known.host, known.port, known.groups) == ("ct", "CT1", sim.host, sim.port, ("a",))
        assert known.tls is None


async def test_a_slow_modality_answers_late() -> None:
    async with SimulatedModality("slow:0.2") as sim:
        start = time.monotonic()
        assert await echo(sim) == 0
        assert 0.2 <= time.monotonic() - start < 1.5


async def test_an_association_can_be_slow_as_well() -> None:
    async with SimulatedModality(Behaviour(associate_delay=0.2)) as sim, await connect(sim) as wire:
        start = time.monotonic()
        await wire.associate()
        assert 0.2 <= time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (Fault.REJECTING, (1, 1, 3)),
        ("rejecting:1.7", (1, 1, 7)),
        (Fault.REJECTING_TRANSIENT, (2, 3, 2)),
        (Behaviour(Fault.REJECTING, result=2, source=3, diagnostic=1), (2, 3, 1)),
    ],
)
async def test_a_rejecting_modality_rejects_as_configured(behaviour: Any, expected: tuple[int, int, int]) -> None:
    async with SimulatedModality(behaviour) as sim:
        with pytest.raises(AssociationRejected) as caught:
            await echo(sim)
        assert (caught.value.result, caught.value.source, caught.value.diagnostic) == expected
        assert (sim.rejections, sim.associations) == (1, 0)


async def test_a_modality_can_reject_some_and_then_accept() -> None:
    async with SimulatedModality("rejecting_transient:2") as sim:
        for _ in range(2):
            with pytest.raises(AssociationRejected):
                await echo(sim)
        assert await echo(sim) == 0


async def test_more_associations_than_it_takes_are_rejected_transiently() -> None:
    async with SimulatedModality(max_associations=1) as sim, await connect(sim) as first:
        await first.associate()
        with pytest.raises(AssociationRejected, match="local limit exceeded") as caught:
            await echo(sim)
        assert caught.value.transient
        assert await first.release()
        assert await echo(sim) == 0


async def test_another_called_ae_title_is_rejected_where_it_is_required() -> None:
    async with SimulatedModality(ae_title="CT1", require_called_ae_title=True) as sim:
        async with await connect(sim) as wire:
            with pytest.raises(AssociationRejected, match="called AE title not recognized"):
                await wire.associate(called_ae_title="CT2")
        assert await echo(sim) == 0


async def test_no_context_accepts_the_association_alone() -> None:
    async with SimulatedModality(Fault.NO_CONTEXT) as sim, await connect(sim) as wire:
        accept = await wire.associate()
        assert [context.result for context in accept.contexts] == [3]
        with pytest.raises(NoPresentationContext):
            await wire.echo()
        assert await wire.release()


async def test_a_refusing_modality_refuses_connections_at_a_port_that_is_its_own() -> None:
    async with SimulatedModality(Fault.REFUSING) as sim:
        with pytest.raises(ConnectionRefusedError):
            await connect(sim)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((sim.host, sim.port))


async def test_a_black_hole_never_completes_a_connection() -> None:
    async with SimulatedModality(Fault.BLACK_HOLE) as sim:
        for _ in range(3):
            with pytest.raises(OperationTimeout, match="no connection"):
                await connect(sim, timeout=SOON)
        port = sim.port
    # All of it is given back: the port can be used again at once.
    async with SimulatedModality(port=port) as sim:
        assert await echo(sim) == 0


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.SILENT_TLS])
async def test_a_silent_modality_accepts_connections_and_says_nothing(fault: Fault) -> None:
    async with SimulatedModality(fault) as sim:
        async with await connect(sim) as wire:
            wire.timeout = SOON
            with pytest.raises(OperationTimeout):
                await wire.associate()
            # Not even to nonsense.
            await wire.send(b"\x16\x03\x01garbage")
            with pytest.raises(OperationTimeout):
                await wire.receive_bytes(SOON)
        assert (sim.connections, sim.associations) == (1, 0)


async def test_a_silent_modality_still_counts_an_abort() -> None:
    async with SimulatedModality(Fault.SILENT) as sim, await connect(sim, timeout=SOON) as wire:
        with pytest.raises(OperationTimeout):
            await wire.associate()
        await wire.abort()
        await wire.closed(1.0)
        assert sim.aborts_received == 1


async def test_silent_after_associate_never_answers_the_operation() -> None:
    async with SimulatedModality(Fault.SILENT_AFTER_ASSOCIATE) as sim, await connect(sim) as wire:
        await wire.associate()
        wire.timeout = SOON
        with pytest.raises(OperationTimeout, match=" 0 bytes of one"):
            await wire.echo()
        wire.timeout = 2.0
        assert await wire.release()
        assert sim.echoes == 1


async def test_a_stalling_modality_sends_half_an_answer_to_the_request() -> None:
    async with SimulatedModality(Fault.STALLING) as sim, await connect(sim, timeout=SOON) as wire:
        with pytest.raises(OperationTimeout, match=r"[1-9]\d* bytes of one"):
            await wire.associate()
        assert sim.associations == 0


async def test_a_stalling_operation_is_half_answered() -> None:
    async with SimulatedModality(Fault.STALLING_OPERATION) as sim, await connect(sim) as wire:
        await wire.associate()
        wire.timeout = SOON
        with pytest.raises(OperationTimeout, match=r"[1-9]\d* bytes of one"):
            await wire.echo()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.RESETTING, ConnectionLost),
        (Fault.CLOSING, ConnectionLost),
        (Fault.ABORTING, AssociationAborted),
        (Fault.GARBAGE, ProtocolError),
        (Fault.LYING_LENGTH, ProtocolError),
    ],
)
async def test_a_fault_on_the_request_shows_before_any_association(fault: Fault, error: type[OperationError]) -> None:
    async with SimulatedModality(fault) as sim, await connect(sim) as wire:
        with pytest.raises(error):
            await wire.associate()
        assert (sim.requests_received, sim.associations, sim.current) == (1, 0, 0)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.RESETTING_OPERATION, ConnectionLost),
        (Fault.CLOSING_OPERATION, ConnectionLost),
        (Fault.ABORTING_OPERATION, AssociationAborted),
        (Fault.GARBAGE_OPERATION, ProtocolError),
        (Fault.LYING_LENGTH_OPERATION, ProtocolError),
    ],
)
async def test_a_fault_on_the_operation_shows_after_the_association(fault: Fault, error: type[OperationError]) -> None:
    async with SimulatedModality(fault) as sim, await connect(sim) as wire:
        await wire.associate()
        with pytest.raises(error):
            await wire.echo()
        assert (sim.associations, sim.echoes) == (1, 1)
    assert sim.current == 0


async def test_resetting_means_rst_and_closing_means_fin() -> None:
    async with SimulatedModality(Fault.RESETTING) as sim, await connect(sim) as wire:
        with pytest.raises(ConnectionLost, match="reset"):
            await wire.associate()
    async with SimulatedModality(Fault.CLOSING) as sim, await connect(sim) as wire:
        with pytest.raises(ConnectionLost) as caught:
            await wire.associate()
        assert "reset" not in caught.value.detail


async def test_a_fault_can_be_gone_after_a_few_requests() -> None:
    async with SimulatedModality(Behaviour(Fault.RESETTING, first=1)) as sim:
        with pytest.raises(ConnectionLost):
            await echo(sim)
        assert await echo(sim) == 0


async def test_a_failure_status_answers_every_operation() -> None:
    async with SimulatedModality("failure_status:0xA900") as sim:
        assert await echo(sim) == 0xA900


@pytest.mark.parametrize("sop_class", [STUDY_ROOT_FIND, STUDY_ROOT_MOVE])
@pytest.mark.parametrize("interval", [0.0, 0.001])
async def test_endless_pending_ends_by_cancel(sop_class: str, interval: float) -> None:
    behaviour = Behaviour(Fault.ENDLESS_PENDING, interval=interval)
    async with SimulatedModality(behaviour) as sim, await connect(sim) as wire:
        await wire.associate([PresentationContext(sop_class)])
        field = CommandField.C_FIND_RQ if sop_class == STUDY_ROOT_FIND else CommandField.C_MOVE_RQ
        await wire.send_message(1, dimse.request(field, 7, sop_class, dataset=True), b"")
        for _ in range(50):
            answer = await wire.receive_message()
            assert answer.command.status == 0xFF00
            assert (answer.data is not None) is (field == CommandField.C_FIND_RQ)
        await wire.send_message(1, dimse.cancel(7))
        while answer.command.status == 0xFF00:
            answer = await wire.receive_message()
        assert answer.command.status == 0xFE00
        assert await wire.release()
        assert sim.cancels_received == 1


async def test_endless_pending_can_ignore_a_cancel() -> None:
    async with SimulatedModality("endless_pending:ignore_cancel") as sim, await connect(sim) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_FIND)])
        await wire.send_message(1, dimse.request(CommandField.C_FIND_RQ, 7, STUDY_ROOT_FIND, dataset=True), b"")
        await wire.send_message(1, dimse.cancel(7))
        while not sim.cancels_received:
            assert (await wire.receive_message()).command.status == 0xFF00
        # Well beyond what the socket's buffers hold.
        for _ in range(5_000):
            assert (await wire.receive_message()).command.status == 0xFF00


async def test_a_peer_that_does_not_read_endless_pending_costs_bounded_memory() -> None:
    async with SimulatedModality(Fault.ENDLESS_PENDING) as sim, await connect(sim) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_FIND)])
        await wire.send_message(1, dimse.request(CommandField.C_FIND_RQ, 7, STUDY_ROOT_FIND, dataset=True), b"")
        await anyio.sleep(SOON)
        (served,) = sim._served
        assert served._transport is not None
        assert served._transport.get_write_buffer_size() < 1 << 20


async def test_no_release_never_answers_a_release() -> None:
    async with SimulatedModality(Fault.NO_RELEASE) as sim, await connect(sim) as wire:
        await wire.associate()
        assert await wire.echo() == 0
        wire.timeout = SOON
        with pytest.raises(OperationTimeout):
            await wire.release()
        assert sim.releases_received == 1


async def test_an_unknown_user_item_is_there_and_does_no_harm() -> None:
    async with SimulatedModality(Fault.UNKNOWN_USER_ITEM) as sim, await connect(sim) as wire:
        accept = await wire.associate()
        assert [kind for kind, _ in accept.other_items] == [0x5F]
        assert await wire.echo() == 0


async def test_a_wrong_message_answers_another_message_id() -> None:
    async with SimulatedModality(Fault.WRONG_MESSAGE) as sim, await connect(sim) as wire:
        await wire.associate()
        await wire.send_message(1, dimse.request(CommandField.C_ECHO_RQ, 7, VERIFICATION, dataset=False))
        assert (await wire.receive_message()).command.responded_to == 8


async def test_a_wrong_message_type_answers_another_operation() -> None:
    async with SimulatedModality(Fault.WRONG_MESSAGE_TYPE) as sim, await connect(sim) as wire:
        await wire.associate()
        await wire.send_message(1, dimse.request(CommandField.C_ECHO_RQ, 7, VERIFICATION, dataset=False))
        assert (await wire.receive_message()).command.field == CommandField.C_FIND_RSP


async def test_tls_answers_behind_a_certificate(issued: Certificates) -> None:
    async with SimulatedModality(Fault.TLS, tls=issued) as sim:
        assert await echo(sim, ssl=issued.client_context(), server_hostname="localhost") == 0
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(sim, ssl=ssl.create_default_context(cafile=issued.foreign_ca), server_hostname="localhost")
        known = sim.modality()
        assert known.tls is not None
        assert (known.tls.ca, known.tls.server_name) == (issued.ca, "localhost")


async def test_tls_can_be_combined_with_any_fault(issued: Certificates) -> None:
    async with SimulatedModality(Fault.ABORTING_OPERATION, tls=issued) as sim:
        with pytest.raises(AssociationAborted):
            await echo(sim, ssl=issued.client_context(), server_hostname="localhost")


async def test_tls_can_demand_a_client_certificate(issued: Certificates) -> None:
    async with SimulatedModality(tls=issued.server_context(client_ca=True)) as sim:
        presented = issued.client_context(certificate=issued.client_certificate, key=issued.client_key)
        assert await echo(sim, ssl=presented, server_hostname="localhost") == 0
        for context in (
            issued.client_context(),
            issued.client_context(certificate=issued.expired_certificate, key=issued.expired_key),
            issued.client_context(certificate=issued.foreign_certificate, key=issued.foreign_key),
        ):
            # TLS 1.3 tells a client of the refusal with the first bytes that it reads.
            with pytest.raises((ConnectionLost, OSError)):
                await echo(sim, ssl=context, server_hostname="localhost")
        assert sim.connections == 1


async def test_a_connection_inside_its_tls_handshake_is_dropped_at_the_end(issued: Certificates) -> None:
    async with SimulatedModality(Fault.TLS, tls=issued) as sim:
        wire = await connect(sim)
        await wire.send(b"\x16")
        await anyio.sleep(0.02)
    assert await wire.closed(1.0) < 1.0
    await wire.close()


async def test_a_silent_tls_modality_does_not_answer_a_handshake() -> None:
    async with SimulatedModality(Fault.SILENT_TLS) as sim:
        with pytest.raises(OperationTimeout):
            await connect(sim, ssl=ssl.create_default_context(), timeout=SOON)
        assert sim.modality().tls is not None


async def test_leaving_drops_every_connection() -> None:
    async with SimulatedModality(Fault.SILENT) as sim:
        wires = [await connect(sim) for _ in range(5)]
        await anyio.sleep(0.02)
    for wire in wires:
        await wire.closed(1.0)
        await wire.close()


async def test_leaving_by_cancellation_leaves_nothing_behind() -> None:
    wires = []
    with anyio.move_on_after(0.1):
        async with SimulatedModality("slow:5") as sim:
            wire = await connect(sim)
            wires.append(wire)
            await wire.associate()
            await wire.echo()
    for wire in wires:
        await wire.close()


async def test_a_request_that_is_malformed_is_aborted_and_remembered() -> None:
    async with SimulatedModality() as sim, await connect(sim) as wire:
        await wire.send(pdu.encode_pdu(pdu.PDUType.ASSOCIATE_RQ, b"short"))
        found = await wire.receive_pdu()
        assert found is not None
        assert pdu.decode_abort(found.body).source == 2
        await wire.closed()
        assert "at least" in sim.protocol_errors[0]


async def test_a_user_identity_is_seen_and_confirmed() -> None:
    async with SimulatedModality() as sim, await connect(sim) as wire:
        identity = UserIdentity("username", b"someone", response=True)
        accept = await wire.associate(user_identity=identity)
        assert accept.user_identity_response == b""
        assert sim.requests[-1].user_identity == identity
