"""A simulated modality is one to dcmjs-dimse as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from asyncdicom.testing import SimulatedModality
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN
from tests.peers import dcmjs
from tests.peers.peer import Address

pytestmark = pytest.mark.blocking


async def test_dcmjs_finds_and_gets_from_a_simulated_modality(no_leaks: object, tmp_path: Path, study: list[Path]) -> None:
    instances = [path.read_bytes() for path in study]
    uid = str(dcmread(study[0]).StudyInstanceUID)
    matches = [{"PatientID": "P1", "StudyInstanceUID": uid}]
    # It proposes implicit VR first, and a simulated modality does not transcode what it holds.
    syntaxes = [EXPLICIT_VR_LITTLE_ENDIAN]
    async with SimulatedModality(matches=matches, instances=instances, transfer_syntaxes=syntaxes) as sim:
        operations: list[dict[str, Any]] = [
            {"name": "find", "keys": {"PatientID": "P1"}},
            {"name": "get", "study": uid},
            {"name": "echo"},
        ]
        said = await dcmjs.scu(Address(sim.ae_title, sim.port), operations, tmp_path)
    found, finished, *retrieved = [event for event in said.events if event["event"] == "response"]
    assert found["elements"]["StudyInstanceUID"] == uid
    assert finished["status"] == 0x0000
    assert [event["status"] for event in retrieved][-2:] == [0x0000, 0x0000]
    received = [event["read"] for event in said.events if event["event"] == "received"]
    assert sorted(received) == sorted(str(dcmread(path).SOPInstanceUID) for path in study)
    assert (sim.finds, sim.gets, sim.echoes, sim.releases_received) == (1, 1, 1, 1)
