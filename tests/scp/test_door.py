"""Who may in, for how long, and how much: a peer that breaks a rule is turned away, and the others do not notice."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from pathlib import Path

import anyio
import pytest

from asyncdicom import (
    Access,
    AllowRule,
    AssociationAborted,
    AssociationRejected,
    ConfigurationError,
    ConnectionLost,
    OperationError,
    PresentationContext,
    Received,
    ServerTLS,
    StorageSCP,
)
from asyncdicom.modality import Engine
from asyncdicom.monitor.metrics import REJECTION_REASONS
from asyncdicom.scp import refusals
from asyncdicom.testing import Certificates, HeldInstance, Wire, certificates, send_instances, synthetic_instance
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.negotiation import AssociateRequest
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return certificates(tmp_path, client_name="CT1")


async def accept(received: Received) -> int:
    return 0x0000


async def rejection(port: int, **fields: str) -> tuple[int, int, int]:
    async with await Wire.connect("127.0.0.1", port) as wire:
        with pytest.raises(AssociationRejected) as caught:
            await wire.associate(**fields)  # type: ignore[arg-type]
    return caught.value.result, caught.value.source, caught.value.diagnostic


async def test_an_unknown_calling_ae_title_is_rejected_permanently(no_leaks: object, engine: Engine, seen: Seen) -> None:
    access = Access([AllowRule.parse("CT1", ["127.0.0.0/8"])])
    async with StorageSCP(accept, port=0, access=access, engine=engine, observer=seen) as scp:
        assert await rejection(scp.port, calling_ae_title="CT2") == (1, 1, 3)
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(calling_ae_title="CT1")
            assert await wire.echo() == 0x0000
            assert await wire.release()
    assert seen.rejected == {"calling_ae_title": 1}


async def test_a_connection_from_elsewhere_is_closed_before_a_byte_is_read(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    access = Access([AllowRule.parse("CT1", ["127.9.9.0/24"])])
    async with StorageSCP(accept, port=0, access=access, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            assert await wire.closed() < 1.0
    assert seen.rejected == {"network": 1}


async def test_the_called_ae_title_counts_when_it_is_required(no_leaks: object, engine: Engine) -> None:
    async with StorageSCP(accept, port=0, ae_title="ARCHIVE", require_called_ae_title=True, engine=engine) as scp:
        assert await rejection(scp.port, called_ae_title="OTHER") == (1, 1, 7)
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(called_ae_title="ARCHIVE")
            await wire.release()


async def test_beyond_the_limit_requests_are_rejected_transiently_and_half_open_peers_do_not_count(
    no_leaks: object, engine: Engine
) -> None:
    async with StorageSCP(accept, port=0, max_associations=2, engine=engine) as scp:
        silent = [await Wire.connect("127.0.0.1", scp.port) for _ in range(20)]
        async with await Wire.connect("127.0.0.1", scp.port) as one, await Wire.connect("127.0.0.1", scp.port) as two:
            await one.associate()
            await two.associate()
            assert await rejection(scp.port) == (2, 3, 2)
            assert await one.release()
            await one.closed()
            with anyio.fail_after(2):
                while scp.associations > 1:
                    await anyio.sleep(0.01)
            async with await Wire.connect("127.0.0.1", scp.port) as three:
                await three.associate()
                assert await three.echo() == 0x0000
        for wire in silent:
            await wire.close()


def test_beyond_loopback_it_refuses_to_open_without_knowing_who_may_in() -> None:
    """Bar S9."""
    with pytest.raises(ConfigurationError, match="accept_any"):
        StorageSCP(accept, host="0.0.0.0")
    StorageSCP(accept, host="0.0.0.0", access=Access(accept_any=True))
    StorageSCP(accept, host="0.0.0.0", access=Access([AllowRule.parse("CT1")]))


def test_every_reason_to_turn_somebody_away_says_what_to_do() -> None:
    assert set(REJECTION_REASONS) <= set(refusals._HINTS)


async def test_a_request_in_a_protocol_that_nobody_speaks_is_rejected_and_counted(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    """PS3.8 section 9.3.2: bit 0 alone is tested."""
    contexts = negotiation.propose([PresentationContext(VERIFICATION)])[0]
    request = negotiation.encode_request(AssociateRequest("ANY-SCP", "NEWER", contexts, protocol_version=2))
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.send(request)
            answer = await wire.receive_pdu()
            assert answer is not None
            assert bytes(answer.body[1:4]) == bytes(negotiation.PROTOCOL_VERSION_NOT_SUPPORTED)
        with anyio.fail_after(5):
            while not seen.rejected:
                await anyio.sleep(0.01)
    assert seen.rejected == {"protocol_version": 1}


HALF_A_REQUEST = negotiation.encode_request(
    AssociateRequest("ANY-SCP", "HALF", negotiation.propose([PresentationContext(VERIFICATION)])[0])
)[:90]


@pytest.mark.parametrize(
    "said", [b"", b"\x01", b"\x01\x00\x00\x00\x01\x00", HALF_A_REQUEST], ids=["nothing", "byte", "header", "half"]
)
async def test_a_peer_that_does_not_ask_for_an_association_is_closed_at_artim(
    no_leaks: object, engine: Engine, seen: Seen, said: bytes
) -> None:
    async with StorageSCP(accept, port=0, artim_timeout=0.5, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            if said:
                await wire.send(said)
            assert 0.3 < await wire.closed() < 1.5
            assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]
    assert seen.rejected["artim"] == 1


async def test_a_connection_that_is_closed_without_a_word_is_nothing_to_report(
    no_leaks: object, engine: Engine, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, observer=seen) as scp:
        for _ in range(5):
            wire = await Wire.connect("127.0.0.1", scp.port)
            await wire.close()
        assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]
    assert not seen.rejected
    assert [record for record in caplog.records if record.name.startswith("asyncdicom")] == []


async def test_an_idle_association_is_ended(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, idle_timeout=0.5, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate()
            assert 0.3 < await wire.closed() < 1.5
        await seen.settled()
    assert seen.aborted == {"idle": 1}


async def test_a_peer_that_stalls_inside_a_message_is_ended(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, idle_timeout=0.5, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(STORAGE)
            await wire.send(struct.pack(">BBLLBB", 4, 0, 60_000, 59_996, 1, 3) + b"\0" * 100)
            assert 0.3 < await wire.closed() < 1.5
        await seen.settled()
    assert seen.aborted == {"stalled": 1} or seen.aborted == {"idle": 1}


@pytest.mark.parametrize("when", ["first", "associated"])
async def test_a_lying_length_is_answered_by_an_abort_at_once(no_leaks: object, engine: Engine, when: str) -> None:
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        if when == "associated":
            await wire.associate()
        await wire.send(struct.pack(">BBL", 4 if when == "associated" else 1, 0, 0xFFFFFFF0))
        started = time.monotonic()
        found = await wire.receive_pdu()
        assert found is not None
        assert found.name == "A-ABORT"
        assert time.monotonic() - started < 0.5
        assert await wire.closed() < 1.0


async def test_a_pdu_over_the_announced_maximum_is_refused(no_leaks: object, engine: Engine) -> None:
    async with StorageSCP(accept, port=0, max_pdu=16_384, engine=engine) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            accepted = await wire.associate(STORAGE)
            assert accepted.max_length == 16_384
            await wire.send(pdu.encode_pdu(4, b"\0" * 16_385))
            found = await wire.receive_pdu()
            assert found is not None
            assert found.name == "A-ABORT"


async def test_a_message_over_the_limit_is_cut(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, max_object_size=4_000, engine=engine, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate(STORAGE)
            with pytest.raises((AssociationAborted, ConnectionLost)):
                await wire.store(HELD)
        await seen.settled()
    assert seen.aborted == {"too_large": 1}
    assert not seen.statuses


@pytest.mark.parametrize(
    "titles",
    [
        (b" " * 16, b"CT1".ljust(16)),
        (b"ARCHIVE".ljust(16), b"\xc3\xa4\xc3\xb6".ljust(16)),
        (b"A\0".ljust(16, b"\0"), b"B".ljust(16, b"\0")),
    ],
    ids=["blank", "non-ascii", "nul-padded"],
)
async def test_ae_titles_that_are_none_do_no_harm(no_leaks: object, engine: Engine, titles: tuple[bytes, bytes]) -> None:
    request = bytearray(
        negotiation.encode_request(
            AssociateRequest("CALLED", "CALLING", negotiation.propose([PresentationContext(VERIFICATION)])[0])
        )
    )
    request[10:42] = titles[0] + titles[1]
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        await wire.send(bytes(request))
        found = await wire.receive_pdu()
        assert found is not None
        assert found.name in ("A-ASSOCIATE-AC", "A-ASSOCIATE-RJ")


async def test_a_private_class_is_storage_when_promiscuous_alone(no_leaks: object, engine: Engine) -> None:
    private = [PresentationContext("1.3.6.1.4.1.99999.1", ("1.2.840.10008.1.2",))]
    for promiscuous in (True, False):
        async with StorageSCP(accept, port=0, promiscuous=promiscuous, engine=engine) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                await wire.associate(private)
                assert bool(wire.accepted) is promiscuous
                if promiscuous:
                    instance = HeldInstance(
                        b"",
                        memoryview(b"\x08\x00\x18\x00\x02\x00\x00\x001\0"),
                        "1.3.6.1.4.1.99999.1",
                        "1",
                        "1.2.840.10008.1.2",
                        {},
                    )
                    assert await wire.store(instance) == 0x0000
                await wire.release()


async def test_an_offered_window_of_operations_is_answered_with_one(no_leaks: object, engine: Engine) -> None:
    async with StorageSCP(accept, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as wire:
        accepted = await wire.associate(asynchronous_operations=(0, 0))
        assert accepted.asynchronous_operations == (1, 1)


async def test_tls_takes_clients_of_the_authority_alone(
    no_leaks: object, engine: Engine, tls: Certificates, seen: Seen
) -> None:
    server = ServerTLS(tls.certificate, tls.key, client_ca=tls.ca, bind={"CT1": ("CT1",)})
    async with StorageSCP(accept, port=0, tls=server, engine=engine, observer=seen) as scp:
        good = tls.client_context(certificate=tls.client_certificate, key=tls.client_key)
        async with await Wire.connect("127.0.0.1", scp.port, ssl=good) as wire:
            await wire.associate(calling_ae_title="CT1")
            assert await wire.echo() == 0x0000
            await wire.release()
        async with await Wire.connect("127.0.0.1", scp.port, ssl=good) as wire:
            with pytest.raises(AssociationRejected):
                await wire.associate(calling_ae_title="CT2")
        for context in (
            tls.client_context(),
            tls.client_context(certificate=tls.foreign_certificate, key=tls.foreign_key),
            tls.client_context(certificate=tls.expired_certificate, key=tls.expired_key),
        ):
            with pytest.raises((OperationError, OSError)):
                async with await Wire.connect("127.0.0.1", scp.port, ssl=context) as wire:
                    await wire.associate(calling_ae_title="CT1")
    assert seen.rejected["calling_ae_title"] == 1
    assert seen.rejected["tls"] == 3
    # None of them got as far as a request for association.
    assert seen.accepted == 1


async def test_tls_below_1_2_is_refused(no_leaks: object, engine: Engine, tls: Certificates, seen: Seen) -> None:
    old, lenient = tls.client_context(), tls.server_context()
    for context in (old, lenient):
        # OpenSSL of today speaks it only when it is told to twice.
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", ssl=lenient) as server:
        # It is not the peer that refuses.
        async with await Wire.connect(*server.sockets[0].getsockname(), ssl=old) as wire:
            assert await wire.receive_bytes() == b""
    async with StorageSCP(accept, port=0, tls=ServerTLS(tls.certificate, tls.key), engine=engine, observer=seen) as scp:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await Wire.connect("127.0.0.1", scp.port, ssl=old)
        await seen.turned_away("tls")
    assert (seen.rejected, seen.accepted) == ({"tls": 1}, 0)


async def test_a_silent_tls_peer_shuts_nobody_out(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    async with StorageSCP(accept, port=0, tls=ServerTLS(tls.certificate, tls.key), artim_timeout=1.0, engine=engine) as scp:
        silent = [await Wire.connect("127.0.0.1", scp.port) for _ in range(5)]
        async with await Wire.connect("127.0.0.1", scp.port, ssl=tls.client_context()) as wire:
            await wire.associate()
            assert await wire.echo() == 0x0000
            await wire.release()
        for wire in silent:
            assert await wire.closed() < 2.0
            await wire.close()
