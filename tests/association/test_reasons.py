"""Every way in which a peer can fail has its own reason, within its deadline, and leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from asyncdicom import TLS, AssociationRejected, Modality, OperationError, PresentationContext, Query, Timeouts, associate
from asyncdicom.modality import Engine
from asyncdicom.testing import Behaviour, Certificates, Fault, SimulatedModality
from asyncdicom.upper_layer.context import VERIFICATION

TIMEOUTS = Timeouts(resolve=0.5, connect=0.5, associate=0.5, operation=0.5, release=0.3)

ON_ECHO = {
    Fault.REJECTING: "rejected_permanent",
    Fault.REJECTING_TRANSIENT: "rejected_transient",
    Fault.NO_CONTEXT: "no_context",
    Fault.REFUSING: "connect_refused",
    Fault.BLACK_HOLE: "connect_timeout",
    Fault.SILENT: "associate_timeout",
    Fault.STALLING: "associate_timeout",
    Fault.SILENT_AFTER_ASSOCIATE: "operation_timeout",
    Fault.STALLING_OPERATION: "operation_timeout",
    Fault.RESETTING: "connection_lost",
    Fault.RESETTING_OPERATION: "connection_lost",
    Fault.CLOSING: "connection_lost",
    Fault.CLOSING_OPERATION: "connection_lost",
    Fault.GARBAGE: "protocol_error",
    Fault.GARBAGE_OPERATION: "protocol_error",
    Fault.LYING_LENGTH: "protocol_error",
    Fault.LYING_LENGTH_OPERATION: "protocol_error",
    Fault.WRONG_MESSAGE: "protocol_error",
    Fault.WRONG_MESSAGE_TYPE: "protocol_error",
    Fault.ABORTING: "aborted",
    Fault.ABORTING_OPERATION: "aborted",
}


async def reason_of_an_echo(modality: Modality, engine: Engine) -> str:
    try:
        async with associate(modality, engine=engine, contexts=[PresentationContext(VERIFICATION)]) as association:
            status = await association.echo()
    except OperationError as error:
        return error.reason
    return "ok" if status == 0x0000 else "failure_status"


@pytest.mark.parametrize("fault", ON_ECHO, ids=str)
async def test_a_peer_that_fails_is_named_by_its_reason(no_leaks: object, engine: Engine, fault: Fault) -> None:
    async with SimulatedModality(fault) as sim:
        started = time.monotonic()
        assert await reason_of_an_echo(sim.modality(timeouts=TIMEOUTS), engine) == ON_ECHO[fault]
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("fault", [Fault.HEALTHY, Fault.NO_RELEASE, Fault.UNKNOWN_USER_ITEM], ids=str)
async def test_what_does_not_matter_is_no_failure(no_leaks: object, engine: Engine, fault: Fault) -> None:
    async with SimulatedModality(fault) as sim:
        assert await reason_of_an_echo(sim.modality(timeouts=TIMEOUTS), engine) == "ok"


async def test_a_status_of_failure_is_returned_and_the_association_lives_on(no_leaks: object, engine: Engine) -> None:
    async with (
        SimulatedModality(Behaviour(Fault.FAILURE_STATUS, status=0x0122)) as sim,
        associate(sim.modality(), engine=engine) as association,
    ):
        assert await association.echo() == 0x0122
        assert association.is_established


async def test_a_host_without_address_is_not_resolved(no_leaks: object, engine: Engine) -> None:
    modality = Modality("nowhere", "NOWHERE", "no-such-host.invalid", 104, timeouts=TIMEOUTS)
    assert await reason_of_an_echo(modality, engine) == "resolve_failed"


async def test_a_rejection_says_by_whom_and_why(no_leaks: object, engine: Engine) -> None:
    behaviour = Behaviour(Fault.REJECTING, result=1, source=1, diagnostic=7)
    async with SimulatedModality(behaviour) as sim:
        with pytest.raises(AssociationRejected) as caught:
            async with associate(sim.modality(), engine=engine):
                raise AssertionError("rejected associations do not open")
        assert (caught.value.result, caught.value.source, caught.value.diagnostic) == (1, 1, 7)
        assert "called AE title not recognized" in str(caught.value)


async def test_tls_is_spoken_to_a_peer_that_is_verified(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    async with SimulatedModality(Fault.TLS, tls=tls) as sim:
        modality = sim.modality(tls=TLS(ca=tls.ca), timeouts=TIMEOUTS)
        assert await reason_of_an_echo(modality, engine) == "ok"


async def test_a_foreign_authority_fails_the_handshake(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    async with SimulatedModality(Fault.TLS, tls=tls) as sim:
        modality = sim.modality(tls=TLS(ca=tls.foreign_ca), timeouts=TIMEOUTS)
        assert await reason_of_an_echo(modality, engine) == "tls_failed"


async def test_a_certificate_of_another_name_fails_the_handshake(no_leaks: object, engine: Engine, tls: Certificates) -> None:
    async with SimulatedModality(Fault.TLS, tls=tls) as sim:
        modality = sim.modality(tls=TLS(ca=tls.ca, server_name="pacs.example"), timeouts=TIMEOUTS)
        assert await reason_of_an_echo(modality, engine) == "tls_failed"


@pytest.mark.parametrize("fault", [Fault.HEALTHY, Fault.SILENT_TLS], ids=str)
async def test_a_peer_that_speaks_no_tls_fails_the_handshake(
    no_leaks: object, engine: Engine, tls: Certificates, fault: Fault
) -> None:
    async with SimulatedModality(fault) as sim:
        modality = sim.modality(tls=TLS(ca=tls.ca), timeouts=TIMEOUTS)
        assert await reason_of_an_echo(modality, engine) == "tls_failed"


async def test_a_find_that_fails_raises_the_status(no_leaks: object, engine: Engine) -> None:
    async with (
        SimulatedModality(Behaviour(Fault.FAILURE_STATUS, status=0xA700)) as sim,
        associate(sim.modality(), engine=engine) as association,
    ):
        with pytest.raises(OperationError) as caught:
            async for _ in association.find(Query()):
                raise AssertionError("there are no matches")
        assert caught.value.reason == "failure_status"
        assert getattr(caught.value, "status", None) == 0xA700


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    from asyncdicom.testing import certificates

    return certificates(tmp_path)


async def test_a_rejection_that_comes_at_once_is_still_a_rejection(no_leaks: object, engine: Engine) -> None:
    """The peer has said its word and closed before pynetdicom looks whether the connection stands."""
    async with SimulatedModality(Fault.REJECTING) as sim:
        reasons = {await reason_of_an_echo(sim.modality(), engine) for _ in range(150)}
    assert reasons == {"rejected_permanent"}
