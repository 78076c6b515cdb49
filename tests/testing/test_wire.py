"""The raw peer."""

from __future__ import annotations

from typing import Any

import pytest

from asyncdicom.errors import ConnectionLost, OperationTimeout
from asyncdicom.testing import SimulatedModality, Wire, send_instances, sender, synthetic_study
from asyncdicom.upper_layer import pdu

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_it_says_exactly_what_it_is_told() -> None:
    async with SimulatedModality() as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate()
        for byte in pdu.encode_release_rq():
            await wire.send(bytes([byte]))
        found = await wire.receive_pdu()
        assert found == (pdu.PDUType.RELEASE_RP, b"\0\0\0\0")


async def test_the_end_of_a_connection_is_told_from_silence() -> None:
    async with SimulatedModality("closing") as sim, await Wire.connect(sim.host, sim.port) as wire:
        with pytest.raises(OperationTimeout):
            await wire.receive_pdu(0.05)
        with pytest.raises(ConnectionLost):
            await wire.associate()
        assert await wire.receive_pdu() is None
        assert await wire.closed() < 1


async def test_waiting_for_a_close_has_a_deadline() -> None:
    async with SimulatedModality() as sim, await Wire.connect(sim.host, sim.port) as wire:
        with pytest.raises(OperationTimeout):
            await wire.closed(0.05)


async def test_files_are_sent_on_one_association() -> None:
    async with SimulatedModality(ae_title="DEST") as sim:
        files = [data for _, data in synthetic_study(4)]
        assert await send_instances(sim.host, sim.port, files, called_ae_title="DEST", calling_ae_title="ME") == [0] * 4
        assert await send_instances(sim.host, sim.port, []) == []
        assert (sim.associations, sim.stores, sim.releases_received) == (1, 4, 1)
        assert sim.requests[0].calling_ae_title == "ME"


async def test_a_peer_that_never_answers_the_release_changes_no_status() -> None:
    async with SimulatedModality("no_release") as sim:
        files = [data for _, data in synthetic_study(1)]
        assert await send_instances(sim.host, sim.port, files, timeout=0.2) == [0]


async def test_a_failure_inside_a_sender_is_the_callers(no_leaks: Any) -> None:
    async with SimulatedModality() as sim:
        with pytest.raises(LookupError):
            async with sender(sim.host, sim.port, _held()):
                raise LookupError
        assert sim.associations == 1


def _held() -> list[Any]:
    from asyncdicom.testing import HeldInstance

    return [HeldInstance.read(data) for _, data in synthetic_study(1)]
