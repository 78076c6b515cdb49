"""Peers that are out of the ordinary, broken or hostile: each costs its deadline at the most, and ends in an error of ours."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import (
    TLS,
    ConnectionLost,
    Instance,
    NoPresentationContext,
    OperationError,
    OperationTimeout,
    PresentationContext,
    ProtocolError,
    Query,
    Received,
    associate,
)
from asyncdicom.association.contract import contexts_for_get
from asyncdicom.modality import Engine, Limits
from asyncdicom.testing import Certificates, HeldInstance, Wire, certificates, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField, MessageReader
from asyncdicom.upper_layer.negotiation import AssociateAccept, ContextResult
from asyncdicom.upper_layer.pdu import PDUType
from tests.association.scripted import TIMEOUTS, accept, answer, release, scripted

HELD = HeldInstance.read(synthetic_instance())
INSTANCE = Instance(
    HELD.sop_class_uid, HELD.sop_instance_uid, HELD.transfer_syntax_uid, size=len(HELD.dataset), data=bytes(HELD.dataset)
)
ECHO = [PresentationContext(VERIFICATION)]


# -- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [0, 8, 9, 4_095, 4_096, 1 << 31])
async def test_a_peer_may_announce_any_maximum_length_that_a_message_fits_into(
    no_leaks: object, engine: Engine, max_length: int
) -> None:
    lengths: list[int] = []

    async def script(wire: Wire) -> None:
        await accept(wire, max_length=max_length)
        reader = MessageReader(1 << 30)
        while True:
            found = await wire.receive_pdu()
            assert found is not None
            lengths.append(len(found.body))
            for value in pdu.decode_data(found.body):
                # Fragments have an even length, the last one excepted: DCMTK refuses others.
                assert value.is_last or len(value.data) % 2 == 0
                whole = reader.receive(value)
                if whole is not None:
                    assert bytes(whole.data or b"") == INSTANCE.data
                    await wire.send_message(1, dimse.response(whole.command, 0x0000))
                    return await release(wire)

    async with scripted(script) as peer, associate(peer.modality(), contexts=[INSTANCE.context], engine=engine) as association:
        assert await association.store(INSTANCE) == 0x0000
    assert max(lengths) <= (max_length or 1 << 20)


@pytest.mark.parametrize("max_length", [1, 6, 7])
async def test_a_maximum_length_that_no_message_fits_into_is_a_protocol_error(
    no_leaks: object, engine: Engine, max_length: int
) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire, max_length=max_length)
        await wire.receive_pdu()

    async with scripted(script) as peer:
        with pytest.raises(ProtocolError, match="maximum"):
            async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                await association.echo()


async def test_our_own_smallest_maximum_length_holds(no_leaks: object, engine: Engine) -> None:
    async def script(wire: Wire) -> None:
        request = await accept(wire)
        assert request.max_length == 4_096
        await answer(wire)
        await release(wire)

    async with scripted(script) as peer:
        modality = peer.modality(limits=Limits(max_pdu=4_096))
        async with associate(modality, contexts=ECHO, engine=engine) as association:
            assert await association.echo() == 0x0000


# -- acceptances that are none ----------------------------------------------------------------------------------------


def _foreign_syntax(answer: AssociateAccept) -> AssociateAccept:
    return dataclasses.replace(answer, contexts=(ContextResult(1, 0, "1.2.840.10008.1.2.4.50"),))


def _no_syntax(answer: AssociateAccept) -> AssociateAccept:
    return dataclasses.replace(answer, contexts=(ContextResult(1, 0, ""),))


def _foreign_context(answer: AssociateAccept) -> AssociateAccept:
    return dataclasses.replace(answer, contexts=(ContextResult(99, 0, "1.2.840.10008.1.2"),))


@pytest.mark.parametrize("edit", [_foreign_syntax, _no_syntax, _foreign_context], ids=lambda edit: edit.__name__)
async def test_what_was_not_proposed_cannot_be_accepted(no_leaks: object, engine: Engine, edit: Any) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire, edit=edit)
        await wire.receive_pdu()

    async with scripted(script) as peer:
        with pytest.raises((ProtocolError, NoPresentationContext)):
            async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                await association.echo()


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_an_answer_and_the_end_that_come_together_are_both_noticed(no_leaks: object, engine: Engine) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire)
        found = await wire.receive_message()
        encoded = dimse.encode_command(dimse.response(found.command, 0x0000))
        await wire.send(pdu.encode_message(found.context_id, encoded, max_length=4_096) + pdu.encode_abort())

    async with scripted(script) as peer:
        modality = peer.modality(timeouts=dataclasses.replace(TIMEOUTS, operation=10.0))
        with pytest.raises(OperationError):
            async with associate(modality, contexts=ECHO, engine=engine) as association:
                assert await association.echo() == 0x0000
                await anyio.sleep(0.1)
                started = time.monotonic()
                try:
                    await association.echo()
                finally:
                    assert time.monotonic() - started < 1.0


async def test_a_peer_that_is_gone_when_it_is_refused_is_an_operation_that_failed(no_leaks: object, engine: Engine) -> None:
    """It says what deserves an A-ABORT, and closes or resets before that can be sent."""
    talking = itertools.count()

    async def script(wire: Wire) -> None:
        turn = next(talking)
        await accept(wire)
        await wire.receive_message()
        await wire.send(b"\x99" * 10)
        for _ in range(turn // 2):
            await anyio.lowlevel.checkpoint()
        if turn % 2:
            wire.reset()

    async with scripted(script) as peer:
        for _ in range(16):
            with pytest.raises(OperationError) as caught:
                async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                    await association.echo()
            assert caught.value.reason in ("protocol_error", "connection_lost")


async def test_an_association_that_breaks_while_an_instance_is_handled_ends_by_an_error_of_ours(
    no_leaks: object, engine: Engine
) -> None:
    """The instance came whole, the garbage behind it too: there is nobody left to answer."""

    async def script(wire: Wire) -> None:
        await accept(wire, max_length=16_384)
        await wire.receive_message()
        store = dimse.request(
            CommandField.C_STORE_RQ, 9, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
        )
        instance = pdu.encode_message(3, dimse.encode_command(store), HELD.dataset, max_length=16_384)
        await wire.send(bytes(instance) + b"\x99" * 10)
        await wire.closed()

    async def take(received: Received) -> int:
        await anyio.sleep(0.1)
        return 0x0000

    query = Query(level="study", keys={"StudyInstanceUID": "1.2.3"})
    contexts = [
        PresentationContext(query.get_sop_class),
        PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,), scu_role=False, scp_role=True),
    ]
    async with scripted(script) as peer:
        with pytest.raises(OperationError):
            async with associate(peer.modality(), contexts=contexts, engine=engine) as association:
                async for _ in association.get(query, take):
                    pass


@pytest.mark.parametrize("end", ["abort", "release", "close"])
async def test_a_find_whose_peer_ends_after_a_match_ends_at_once(no_leaks: object, engine: Engine, end: str) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire)
        found = await wire.receive_message()
        encoded = dimse.encode_command(dimse.response(found.command, 0xFF00, dataset=True))
        last = {"abort": pdu.encode_abort(), "release": pdu.encode_release_rq(), "close": b""}[end]
        await wire.send(pdu.encode_message(found.context_id, encoded, b"", max_length=4_096) + last)
        if end == "release":
            ended = await wire.receive_pdu()
            assert ended is not None
            assert ended.type == PDUType.RELEASE_RP

    async with scripted(script) as peer:
        modality = peer.modality(timeouts=dataclasses.replace(TIMEOUTS, operation=10.0))
        started = time.monotonic()
        matches = 0
        with pytest.raises(OperationError) as caught:
            async with associate(modality, engine=engine) as association:
                async for _ in association.find(Query()):
                    matches += 1
                    await anyio.sleep(0.1)  # Everything else is here by now.
        assert time.monotonic() - started < 2.0
    assert matches == 1
    assert caught.value.reason == ("aborted" if end == "abort" else "connection_lost")


@pytest.mark.parametrize("when", ["waiting", "between"])
async def test_a_peer_that_releases_gets_its_answer(no_leaks: object, engine: Engine, when: str) -> None:
    answered = asyncio.Event()

    async def script(wire: Wire) -> None:
        await accept(wire)
        if when == "waiting":
            await wire.receive_message()
        await wire.send(pdu.encode_release_rq())
        found = await wire.receive_pdu()
        assert found is not None
        assert found.type == PDUType.RELEASE_RP, found.name
        answered.set()

    async with scripted(script) as peer:
        for _ in range(20):
            answered.clear()
            with pytest.raises(ConnectionLost, match="released"):
                async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                    if when == "between":
                        await anyio.sleep(0.03)
                    await association.echo()
            with anyio.fail_after(1):
                await answered.wait()


async def test_two_releases_that_cross_are_both_answered(no_leaks: object, engine: Engine) -> None:
    """PS3.8 section 7.2.2.7: the requestor answers first."""
    answered = 0

    async def script(wire: Wire) -> None:
        nonlocal answered
        await accept(wire)
        await answer(wire)
        await wire.send(pdu.encode_release_rq())
        found = await wire.receive_pdu()
        assert found is not None
        if found.type == PDUType.RELEASE_RQ:  # It crossed ours on the way.
            found = await wire.receive_pdu()
            assert found is not None
            assert found.type == PDUType.RELEASE_RP, found.name
            await wire.send(pdu.encode_release_rp())
        assert found.type == PDUType.RELEASE_RP, found.name
        answered += 1

    async with scripted(script) as peer:
        for _ in range(40):
            async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                await association.echo()
        with anyio.fail_after(2):
            while answered < 40:
                await anyio.sleep(0.01)


# -- floods -----------------------------------------------------------------------------------------------------------


async def test_a_peer_that_talks_while_we_send_does_not_lock_us_up(no_leaks: object, engine: Engine) -> None:
    """Its messages fill what we buffer of them; our own must go out all the same."""
    large = dataclasses.replace(INSTANCE, data=bytes(8 << 20), size=8 << 20)

    async def script(wire: Wire) -> None:
        await accept(wire, max_length=16_384)
        unasked = dimse.Command(CommandField=0x8001, MessageIDBeingRespondedTo=1, CommandDataSetType=0x0101, Status=0x0000)
        message = pdu.encode_message(1, dimse.encode_command(unasked), max_length=4_096)
        await wire.send(message * 300)
        while await wire.receive_pdu() is not None:
            pass

    async with scripted(script) as peer:
        started = time.monotonic()
        with pytest.raises(OperationError):
            async with associate(peer.modality(), contexts=[INSTANCE.context], engine=engine) as association:
                await anyio.sleep(0.2)
                await association.store(large)
        assert time.monotonic() - started < 4.0


async def test_a_peer_that_never_reads_times_the_request_out(no_leaks: object, engine: Engine) -> None:
    large = dataclasses.replace(INSTANCE, data=bytes(32 << 20), size=32 << 20)
    done = asyncio.Event()

    async def script(wire: Wire) -> None:
        await accept(wire)
        wire._reader._transport.pause_reading()  # type: ignore[attr-defined]
        await done.wait()

    async with scripted(script) as peer:
        started = time.monotonic()
        with pytest.raises(OperationTimeout):
            async with associate(peer.modality(), contexts=[INSTANCE.context], engine=engine) as association:
                await association.store(large)
        assert 0.8 < time.monotonic() - started < 4.0
        done.set()


async def test_event_reports_that_nobody_asked_for_start_no_threads(no_leaks: object, engine: Engine) -> None:
    before = threading.active_count()
    threads = [before]

    async def script(wire: Wire) -> None:
        await accept(wire)
        found = await wire.receive_message()
        report = dimse.request(
            CommandField.N_EVENT_REPORT_RQ,
            7,
            "1.2.840.10008.1.20.1",
            dataset=False,
            AffectedSOPInstanceUID="1.2.3",
            EventTypeID=1,
        )
        message = pdu.encode_message(found.context_id, dimse.encode_command(report), max_length=4_096)
        for _ in range(20):
            await wire.send(message * 10)
            await anyio.sleep(0.005)
            threads.append(threading.active_count())
        await wire.receive_pdu()

    async with scripted(script) as peer:
        with pytest.raises(OperationError):
            async with associate(peer.modality(), contexts=ECHO, engine=engine) as association:
                await association.echo()
    assert max(threads) <= before + 6


# -- C-FIND and C-GET ---------------------------------------------------------------------------------------------------


async def test_a_match_without_an_identifier_is_an_empty_match(no_leaks: object, engine: Engine) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire)
        found = await wire.receive_message()
        await wire.send_message(found.context_id, dimse.response(found.command, 0xFF00))
        await wire.send_message(found.context_id, dimse.response(found.command, 0x0000))
        await release(wire)

    async with scripted(script) as peer, associate(peer.modality(), engine=engine) as association:
        matches = [match async for match in association.find(Query())]
    assert [len(match.dataset) for match in matches] == [0]


@pytest.mark.parametrize("context_id", [1, 3, 5, 199, 2])
async def test_an_instance_on_a_context_that_was_not_accepted_is_not_taken(
    no_leaks: object, engine: Engine, context_id: int
) -> None:
    """Context 1 is that of the C-GET, 3 was accepted without the role that we asked for, the others were not accepted."""
    taken: list[Received] = []

    async def script(wire: Wire) -> None:
        await accept(wire, edit=lambda answer: dataclasses.replace(answer, contexts=answer.contexts[:2], roles=()))
        found = await wire.receive_message()
        store = dimse.request(
            CommandField.C_STORE_RQ, 9, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
        )
        await wire.send_message(context_id, store, HELD.dataset)
        kept = await wire.receive_message()
        assert kept.command.status == 0x0122
        await wire.send_message(found.context_id, dimse.response(found.command, 0xB000, NumberOfFailedSuboperations=1))
        await release(wire)

    async def take(received: Received) -> int:
        taken.append(received)
        return 0x0000

    query = Query(level="study", keys={"StudyInstanceUID": "1.2.3"})
    async with scripted(script) as peer:
        try:
            async with associate(peer.modality(), contexts=contexts_for_get(query), engine=engine) as association:
                async for _ in association.get(query, take):
                    pass
        except ProtocolError:
            assert context_id not in (1, 3)
        else:
            assert context_id in (1, 3)
    assert taken == []


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


class Proxy:
    """Stands between us and a peer, and can stop forwarding what the peer says in the middle of a record.

    :ivar left: bytes that are still forwarded; None for all
    """

    def __init__(self, port: int) -> None:
        self.left: int | None = None
        self._behind = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._forward(reader, writer)))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self._behind)

        async def up() -> None:
            while data := await reader.read(65_536):
                to_behind.write(data)

        async def down() -> None:
            while data := await behind.read(65_536):
                if self.left is not None:
                    data, self.left = data[: self.left], self.left - len(data[: self.left])
                writer.write(data)

        try:
            ways = [asyncio.create_task(up()), asyncio.create_task(down())]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for each in (writer, to_behind):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()


@pytest.mark.parametrize("count", [0, 1, 5, 30])
@pytest.mark.parametrize("phase", ["associate", "operation"])
async def test_a_tls_peer_that_stalls_inside_a_record_times_out(
    no_leaks: object, engine: Engine, tls: Certificates, phase: str, count: int
) -> None:
    async def script(wire: Wire) -> None:
        if phase == "associate":
            proxy.left = count
        await accept(wire)
        found = await wire.receive_message()
        proxy.left = count
        await wire.send_message(found.context_id, dimse.response(found.command, 0x0000))
        await wire.receive_pdu()

    async with scripted(script, tls=tls.server_context()) as peer, Proxy(peer.port) as proxy:
        modality = dataclasses.replace(peer.modality(tls=TLS(ca=tls.ca)), port=proxy.port)
        started = time.monotonic()
        with pytest.raises(OperationError) as caught:
            async with associate(modality, contexts=ECHO, engine=engine) as association:
                await association.echo()
        assert caught.value.reason == f"{phase}_timeout"
        assert 0.8 < time.monotonic() - started < 4.0


async def test_half_a_record_keeps_no_request_back(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    """A session ticket or a key update that comes late, and in pieces, is nothing to wait for."""
    requests = 0
    answered = asyncio.Event()

    async def script(wire: Wire) -> None:
        nonlocal requests
        await accept(wire)
        await answer(wire)
        await asyncio.wait_for(answered.wait(), 1.0)
        proxy.left = 3
        await wire.send(b"\x04")  # Three bytes of its record arrive.
        await wire.receive_message()
        requests += 1

    async with scripted(script, tls=tls.server_context()) as peer, Proxy(peer.port) as proxy:
        modality = dataclasses.replace(peer.modality(tls=TLS(ca=tls.ca)), port=proxy.port)
        with pytest.raises(OperationError):
            async with associate(modality, contexts=ECHO, engine=engine) as association:
                await association.echo()
                answered.set()
                await anyio.sleep(0.1)
                await association.echo()
        with anyio.fail_after(1.0):
            while not requests:
                await anyio.sleep(0.01)


async def test_a_tls_peer_that_closes_without_a_word_has_lost_its_connection(
    no_leaks: object, engine: Engine, tls: Certificates
) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire)
        await wire.receive_message()
        wire.reset()

    async with scripted(script, tls=tls.server_context()) as peer:
        with pytest.raises(ConnectionLost):
            async with associate(peer.modality(tls=TLS(ca=tls.ca)), contexts=ECHO, engine=engine) as association:
                await association.echo()


# -- addresses --------------------------------------------------------------------------------------------------------


async def test_a_peer_is_reached_by_ipv6(no_leaks: object, engine: Engine) -> None:
    async def script(wire: Wire) -> None:
        await accept(wire)
        await answer(wire)
        await release(wire)

    async with scripted(script, host="::1") as peer, associate(peer.modality(), contexts=ECHO, engine=engine) as association:
        assert await association.echo() == 0x0000
