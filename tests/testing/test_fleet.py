"""Fleets of simulated modalities."""

from __future__ import annotations

import csv
import io
import socket
from collections import Counter
from pathlib import Path

import anyio
import pytest

from asyncdicom.testing import Certificates, Fault, Wire, certificates, simulate

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_every_modality_has_an_address_of_its_own_and_one_port() -> None:
    async with simulate(600) as fleet:
        assert len({modality.host for modality in fleet.modalities}) == 600
        assert {modality.port for modality in fleet.modalities} == {fleet.port}
        assert not any(modality.host.endswith((".0", ".255")) for modality in fleet.modalities)
        for modality in fleet.modalities[::97]:
            async with await Wire.connect(modality.host, modality.port) as wire:
                await wire.associate(called_ae_title=modality.ae_title)
                assert await wire.echo() == 0
            assert modality.echoes == 1
        assert sum(modality.echoes for modality in fleet.modalities) == 7


async def test_faults_are_shared_out_as_specified() -> None:
    async with simulate(40, faults="silent=5%,refusing=2,black_hole=1,rejecting:1.7=10%") as fleet:
        assert Counter(modality.behaviour.fault for modality in fleet.modalities) == {
            Fault.SILENT: 2,
            Fault.REFUSING: 2,
            Fault.BLACK_HOLE: 1,
            Fault.REJECTING: 4,
            Fault.HEALTHY: 31,
        }
        for modality in fleet.with_fault(Fault.REFUSING):
            with pytest.raises(ConnectionRefusedError):
                await Wire.connect(modality.host, modality.port)
        assert {modality.port for modality in fleet.modalities} == {fleet.port}


async def test_the_inventory_is_what_an_inventory_file_holds() -> None:
    async with simulate(3, faults="slow:0.1=1") as fleet:
        rows = list(csv.DictReader(io.StringIO(fleet.inventory_csv())))
        assert list(rows[0]) == ["name", "ae_title", "host", "port", "groups"]
        assert [row["name"] for row in rows] == ["sim0001", "sim0002", "sim0003"]
        assert Counter(row["groups"] for row in rows) == {"simulated healthy": 2, "simulated slow": 1}
        assert [(known.name, known.ae_title, known.host, str(known.port)) for known in fleet.inventory()] == [
            (row["name"], row["ae_title"], row["host"], row["port"]) for row in rows
        ]


async def test_settings_are_given_to_each_modality() -> None:
    fleet = simulate(2, settings=lambda index, behaviour: {"ae_title": f"CT{index}", "max_associations": 1})
    async with fleet:
        assert [modality.ae_title for modality in fleet.modalities] == ["CT0", "CT1"]


async def test_modalities_that_speak_tls_share_certificates(tmp_path: Path) -> None:
    issued: Certificates = await anyio.to_thread.run_sync(certificates, tmp_path)
    async with simulate(4, faults="tls=1,silent_tls=1", tls=issued) as fleet:
        (modality,) = fleet.with_fault(Fault.TLS)
        context = issued.client_context()
        async with await Wire.connect(modality.host, modality.port, ssl=context, server_hostname="localhost") as wire:
            await wire.associate()
            assert await wire.echo() == 0
        assert sum(known.tls is not None for known in fleet.inventory()) == 2


async def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open() -> None:
    with socket.socket() as taken:
        taken.bind(("127.64.0.3", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await simulate(5, port).__aenter__()
    async with simulate(5, port) as fleet:
        assert fleet.port == port
