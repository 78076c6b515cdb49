"""What a healthy simulated modality does, asked by foreign programs and by the wire."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from asyncdicom.errors import AssociationAborted
from asyncdicom.outcome import SubOperations
from asyncdicom.testing import (
    Behaviour,
    Certificates,
    Delivery,
    Fault,
    HeldInstance,
    SimulatedModality,
    Wire,
    certificates,
    send_instances,
    synthetic_instance,
    synthetic_study,
    synthetic_uid,
)
from asyncdicom.testing.content import decode_dataset, encode_dataset
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    PresentationContext,
)
from asyncdicom.upper_layer.message import CommandField
from tests.peers import dcmtk
from tests.peers.certificates import Identity

pytestmark = pytest.mark.usefixtures("no_leaks")

CT = str(CTImageStorage)
STUDY = synthetic_uid("study", 0)


def identifier(**keys: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.peer("echoscu")
async def test_echoscu_gets_its_echo() -> None:
    async with SimulatedModality() as sim:
        done = await dcmtk.echoscu(sim, extra=["--repeat", "3"]).run_async()
        assert done.returncode == 0, done.stderr
        assert (sim.echoes, sim.releases_received) == (3, 1)


@pytest.mark.peer("echoscu")
async def test_echoscu_gets_its_echo_over_tls(tmp_path: Path) -> None:
    issued: Certificates = await anyio.to_thread.run_sync(certificates, tmp_path)
    client = Identity(issued.client_certificate, issued.client_key, issued.ca)
    async with SimulatedModality(tls=issued.server_context(client_ca=True)) as sim:
        done = await dcmtk.echoscu(sim, tls=client).run_async()
        assert done.returncode == 0, done.stderr
        assert sim.echoes == 1


@pytest.mark.peer("echoscu")
async def test_echoscu_does_not_mind_an_unknown_user_item() -> None:
    async with SimulatedModality(Fault.UNKNOWN_USER_ITEM) as sim:
        assert (await dcmtk.echoscu(sim).run_async()).returncode == 0


@pytest.mark.peer("echoscu")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.REJECTING, "Calling AE Title Not Recognized"),
        (Fault.REJECTING_TRANSIENT, "Local Limit Exceeded"),
        (Fault.NO_CONTEXT, "No Acceptable Presentation Contexts"),
        (Fault.ABORTING_OPERATION, "Peer aborted Association"),
    ],
)
async def test_echoscu_understands_what_is_wrong(fault: Fault, said: str) -> None:
    async with SimulatedModality(fault) as sim:
        done = await dcmtk.echoscu(sim).run_async()
        # Not its exit status: that is 0 also after an abort.
        assert said in done.stdout + done.stderr


@pytest.mark.peer("storescu")
async def test_storescu_is_acknowledged_and_what_it_sent_remembered(tmp_path: Path) -> None:
    files = {uid: data for uid, data in synthetic_study(3, 128, 128)}
    for uid, data in files.items():
        await anyio.Path(tmp_path / f"{uid}.dcm").write_bytes(data)
    async with SimulatedModality(max_length=16_384) as sim:
        command = await anyio.to_thread.run_sync(lambda: dcmtk.storescu(sim, [tmp_path], calling="SENDER"))
        done = await command.run_async()
        assert done.returncode == 0, done.stderr
        assert sim.stores == len(sim.stored) == 3
        for stored in sim.stored:
            assert stored.calling_ae_title == "SENDER"
            assert (stored.sop_class_uid, stored.status) == (CT, 0)
            sent = HeldInstance.read(files[stored.sop_instance_uid])
            assert stored.transfer_syntax_uid == sent.transfer_syntax_uid
            assert stored.data is not None
            assert stored.sha256 == hashlib.sha256(stored.data).hexdigest()
            received = decode_dataset(stored.data, stored.transfer_syntax_uid)
            assert received.PixelData == decode_dataset(sent.dataset, sent.transfer_syntax_uid).PixelData


@pytest.mark.peer("findscu")
async def test_findscu_gets_the_matches() -> None:
    matches = [{"PatientID": f"P{n}", "PatientName": "Müller^Test", "StudyInstanceUID": f"1.2.{n}"} for n in range(1, 8)]
    async with SimulatedModality(matches=matches) as sim:
        done = await dcmtk.findscu(sim, {"QueryRetrieveLevel": "STUDY", "PatientID": ""}, extra=["-d"]).run_async()
        assert done.returncode == 0, done.stderr
        output = done.stdout + done.stderr
        for n in range(1, 8):
            assert f"[P{n}]" in output
        assert "ISO_IR 192" in output
        assert sim.queries[0].QueryRetrieveLevel == "STUDY"


@pytest.mark.peer("getscu")
async def test_getscu_gets_the_instances_that_it_names(tmp_path: Path) -> None:
    ours, other = list(synthetic_study(3)), list(synthetic_study(2, seed=9))
    async with SimulatedModality(instances=[data for _, data in ours + other]) as sim:
        keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}
        # Bit-preserving, so that what lies there can be compared.
        done = await dcmtk.getscu(sim, keys, tmp_path, extra=["+B"]).run_async()
        assert done.returncode == 0, done.stderr
        received = [dcmread(BytesIO(await path.read_bytes())) async for path in anyio.Path(tmp_path).iterdir()]
        assert {dataset.SOPInstanceUID for dataset in received} == {uid for uid, _ in ours}
        sent = {uid: dcmread(BytesIO(data)).PixelData for uid, data in ours}
        assert {dataset.SOPInstanceUID: dataset.PixelData for dataset in received} == sent
        assert sim.gets == 1


@pytest.mark.peer("movescu", "storescp")
async def test_movescu_makes_it_really_send(start_storescp: Any) -> None:
    destination = await anyio.to_thread.run_sync(start_storescp)
    known = {"STORESCP": ("127.0.0.1", destination.port)}
    async with SimulatedModality(instances=[data for _, data in synthetic_study(3)], destinations=known) as sim:
        keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}
        done = await dcmtk.movescu(sim, keys, "STORESCP").run_async()
        assert done.returncode == 0, done.stderr
        assert len(await anyio.to_thread.run_sync(lambda: destination.files)) == 3
        done = await dcmtk.movescu(sim, keys, "NOBODY").run_async()
        assert done.returncode != 0
        assert list(sim.move_destinations) == ["STORESCP", "NOBODY"]


def _with_pynetdicom(host: str, port: int) -> dict[str, Any]:
    """Echo, find, get and store by pynetdicom's own association."""
    received: list[str] = []

    def store(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0xB000 if len(received) == 2 else 0x0000

    ae = AE()
    for sop_class in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        ae.add_requested_context(sop_class)
    ae.add_requested_context(CTImageStorage, EXPLICIT_VR_LITTLE_ENDIAN)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    roles = [build_role(CTImageStorage, scu_role=True, scp_role=True)]
    association = ae.associate(host, port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert association.is_established
    study = identifier(StudyInstanceUID=STUDY)
    try:
        return {
            "echo": association.send_c_echo().Status,
            "find": [
                (status.Status, found and found.PatientID)
                for status, found in association.send_c_find(study, StudyRootQueryRetrieveInformationModelFind)
            ],
            "get": [
                (status.Status, status.get("NumberOfCompletedSuboperations"), status.get("NumberOfWarningSuboperations"))
                for status, _ in association.send_c_get(study, StudyRootQueryRetrieveInformationModelGet)
            ],
            "move": [
                status.Status
                for status, _ in association.send_c_move(study, "ANYONE", StudyRootQueryRetrieveInformationModelMove)
            ],
            "store": association.send_c_store(dcmread(BytesIO(synthetic_instance(number=9)))).Status,
            "received": received,
        }
    finally:
        association.release()


async def test_pynetdicom_gets_what_it_asks_for() -> None:
    study = list(synthetic_study(3))
    async with SimulatedModality(matches=[{"PatientID": "P1"}], instances=[data for _, data in study]) as sim:
        seen = await anyio.to_thread.run_sync(_with_pynetdicom, sim.host, sim.port)
        assert seen["echo"] == seen["store"] == 0
        assert seen["find"] == [(0xFF00, "P1"), (0x0000, None)]
        assert seen["received"] == [uid for uid, _ in study]
        assert seen["get"] == [(0xFF00, 1, 0), (0xFF00, 1, 1), (0xB000, 2, 1)]
        assert seen["move"] == [0xFF00, 0xFF00, 0x0000]
        assert (sim.echoes, sim.finds, sim.gets, sim.moves, sim.stores, sim.releases_received) == (1, 1, 1, 1, 1, 1)
        assert not sim.protocol_errors


async def query(wire: Wire, field: CommandField, sop_class: str, asked: Dataset, **elements: Any) -> list[dimse.Message]:
    """Send a query or a retrieval, acknowledge what comes by C-STORE, and return all responses."""
    context_id = wire.context_of(sop_class)
    (transfer_syntax,) = {c.transfer_syntax for c in wire.accepted if c.context_id == context_id}
    command = dimse.request(field, wire.next_message_id(), sop_class, dataset=True, **elements)
    await wire.send_message(context_id, command, encode_dataset(asked, transfer_syntax))
    found = []
    while True:
        message = await wire.receive_message()
        if message.command.field == CommandField.C_STORE_RQ:
            await wire.send_message(message.context_id, dimse.response(message.command, 0))
            continue
        found.append(message)
        if message.command.status != 0xFF00:
            return found


@pytest.mark.parametrize(
    "transfer_syntax",
    [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN],
)
async def test_matches_are_encoded_as_negotiated(transfer_syntax: str) -> None:
    async with SimulatedModality(matches=[{"PatientID": "P1"}]) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_FIND, (transfer_syntax,))])
        match, final = await query(wire, CommandField.C_FIND_RQ, STUDY_ROOT_FIND, identifier())
        found = decode_dataset(match.data, transfer_syntax)
        assert (found.PatientID, found.QueryRetrieveLevel) == ("P1", "STUDY")
        assert (final.command.status, final.data) == (0, None)


async def test_matches_can_depend_on_the_query() -> None:
    def matches(asked: Dataset) -> Iterable[dict[str, Any]]:
        return ({"PatientID": f"{asked.PatientID}{n}"} for n in range(2))

    async with SimulatedModality(matches=matches) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_FIND)])
        found = await query(wire, CommandField.C_FIND_RQ, STUDY_ROOT_FIND, identifier(PatientID="X"))
        assert [decode_dataset(m.data, EXPLICIT_VR_LITTLE_ENDIAN).PatientID for m in found[:-1]] == ["X0", "X1"]


async def test_thousands_of_matches_arrive_in_order() -> None:
    matches = [{"PatientID": f"P{n}"} for n in range(5_000)]
    async with SimulatedModality(matches=matches) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_FIND, (IMPLICIT_VR_LITTLE_ENDIAN,))], max_length=4_096)
        found = await query(wire, CommandField.C_FIND_RQ, STUDY_ROOT_FIND, identifier())
        assert len(found) == 5_001
        assert b"P4999" in bytes(found[-2].data or b"")


async def test_an_exception_of_the_tests_own_function_aborts_and_is_raised_at_the_end() -> None:
    def matches(_: Dataset) -> Iterable[dict[str, Any]]:
        raise LookupError("a mistake in the test")

    async def ask(sim: SimulatedModality) -> None:
        async with await Wire.connect(sim.host, sim.port) as wire:
            await wire.associate([PresentationContext(STUDY_ROOT_FIND)])
            with pytest.raises(AssociationAborted):
                await query(wire, CommandField.C_FIND_RQ, STUDY_ROOT_FIND, identifier())

    sim = SimulatedModality(matches=matches)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with sim:
            await ask(sim)
    assert caught.group_contains(LookupError)


async def test_a_get_without_the_scp_role_fails_every_sub_operation() -> None:
    (uid, data), *_ = synthetic_study(1)
    async with SimulatedModality(instances=[data]) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_GET), PresentationContext(CT)])
        (final,) = await query(wire, CommandField.C_GET_RQ, STUDY_ROOT_GET, identifier(StudyInstanceUID=STUDY))
        assert final.command.status == 0xA702
        assert final.command["NumberOfFailedSuboperations"] == 1
        assert decode_dataset(final.data, EXPLICIT_VR_LITTLE_ENDIAN).FailedSOPInstanceUIDList == uid


async def test_a_get_sends_large_instances_to_a_peer_with_small_pdus() -> None:
    data = synthetic_instance(700, 700)
    async with SimulatedModality(instances=[data]) as sim, await Wire.connect(sim.host, sim.port) as wire:
        contexts = [PresentationContext(STUDY_ROOT_GET), PresentationContext(CT, scp_role=True)]
        await wire.associate(contexts, max_length=4_096)
        (final,) = await query(wire, CommandField.C_GET_RQ, STUDY_ROOT_GET, identifier(StudyInstanceUID=STUDY))
        assert (final.command.status, final.command["NumberOfCompletedSuboperations"]) == (0, 1)


async def test_a_get_can_be_cancelled_between_sub_operations() -> None:
    files = [data for _, data in synthetic_study(20)]
    behaviour = Behaviour(interval=0.02)
    async with SimulatedModality(behaviour, instances=files) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_MOVE)])
        command = dimse.request(CommandField.C_MOVE_RQ, 3, STUDY_ROOT_MOVE, dataset=True, MoveDestination="X")
        await wire.send_message(1, command, encode_dataset(identifier(), EXPLICIT_VR_LITTLE_ENDIAN))
        assert (await wire.receive_message()).command.status == 0xFF00
        await wire.send_message(1, dimse.cancel(3))
        while (final := (await wire.receive_message()).command).status == 0xFF00:
            pass
        assert final.status == 0xFE00
        assert final["NumberOfRemainingSuboperations"] + final["NumberOfCompletedSuboperations"] == 20


async def test_a_peer_that_does_not_answer_a_sub_operation_is_aborted() -> None:
    sim = SimulatedModality(instances=[synthetic_instance()], sub_operation_timeout=0.1)
    async with sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_GET), PresentationContext(CT, scp_role=True)])
        command = dimse.request(CommandField.C_GET_RQ, 1, STUDY_ROOT_GET, dataset=True)
        await wire.send_message(1, command, encode_dataset(identifier(), EXPLICIT_VR_LITTLE_ENDIAN))
        assert (await wire.receive_message()).command.field == CommandField.C_STORE_RQ
        with pytest.raises(AssociationAborted):
            await wire.receive_message()
        assert "sub-operation" in sim.protocol_errors[0]


async def move(sim: SimulatedModality, destination: str = "DEST") -> dimse.Command:
    async with await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(STUDY_ROOT_MOVE)], calling_ae_title="MOVER")
        asked = identifier(StudyInstanceUID=STUDY)
        found = await query(wire, CommandField.C_MOVE_RQ, STUDY_ROOT_MOVE, asked, MoveDestination=destination)
        return found[-1].command


async def test_a_move_reports_configured_counts() -> None:
    async with SimulatedModality(sub_operations=SubOperations(0, 7, 2, 1)) as sim:
        final = await move(sim)
        assert final.status == 0xB000
        assert final["NumberOfCompletedSuboperations"] == 7
        assert final["NumberOfFailedSuboperations"] == 2
        assert final["NumberOfWarningSuboperations"] == 1
        assert "NumberOfRemainingSuboperations" not in final


async def test_a_move_sends_through_a_function_of_the_test() -> None:
    seen: list[Delivery] = []

    async def deliver(delivery: Delivery) -> int:
        seen.append(delivery)
        await asyncio.sleep(0)
        return 0xA700 if len(seen) == 1 else 0x0000

    study = list(synthetic_study(3))
    async with SimulatedModality(instances=[data for _, data in study], deliver=deliver) as sim:
        final = await move(sim)
        assert (final.status, final["NumberOfFailedSuboperations"]) == (0xB000, 1)
        assert [delivery.instance.file for delivery in seen] == [data for _, data in study]
        assert {(d.destination, d.originator_ae_title, d.originator_message_id) for d in seen} == {("DEST", "MOVER", 1)}


async def test_a_move_sends_to_another_simulated_modality() -> None:
    async with SimulatedModality(ae_title="DEST", keep="hash") as destination:
        known = {"DEST": (destination.host, destination.port)}
        files = [data for _, data in synthetic_study(3)]
        async with SimulatedModality(ae_title="PACS", instances=files, destinations=known) as sim:
            assert (await move(sim)).status == 0
            assert (await move(sim, "ELSEWHERE")).status == 0xA801
        assert [stored.sha256 for stored in destination.stored] == [
            hashlib.sha256(HeldInstance.read(file).dataset).hexdigest() for file in files
        ]
        assert {(s.calling_ae_title, s.move_originator_ae_title, s.data) for s in destination.stored} == {
            ("PACS", "MOVER", None)
        }


@pytest.mark.parametrize("fault", [Fault.REFUSING, Fault.REJECTING, Fault.RESETTING_OPERATION])
async def test_a_move_to_a_destination_out_of_reach_fails_every_sub_operation(fault: Fault) -> None:
    async with SimulatedModality(fault) as destination:
        known = {"DEST": (destination.host, destination.port)}
        async with SimulatedModality(instances=[synthetic_instance()], destinations=known) as sim:
            final = await move(sim)
            assert (final.status, final["NumberOfFailedSuboperations"]) == (0xA702, 1)


@pytest.mark.parametrize(
    ("keep", "has_hash", "has_data"), [("bytes", True, True), ("hash", True, False), ("nothing", False, False)]
)
async def test_what_is_kept_of_an_instance_is_configured(keep: Any, has_hash: bool, has_data: bool) -> None:
    async with SimulatedModality(keep=keep, store_status=0xB007) as sim:
        assert await send_instances(sim.host, sim.port, [synthetic_instance()]) == [0xB007]
        (stored,) = sim.stored
        assert (bool(stored.sha256), stored.data is not None) == (has_hash, has_data)
        assert stored.status == 0xB007


async def test_only_configured_sop_classes_and_transfer_syntaxes_are_accepted() -> None:
    sim = SimulatedModality(sop_classes={CT}, transfer_syntaxes={IMPLICIT_VR_LITTLE_ENDIAN})
    async with sim, await Wire.connect(sim.host, sim.port) as wire:
        contexts = [PresentationContext(CT), PresentationContext(CT, ("1.2.3",)), PresentationContext(STUDY_ROOT_FIND)]
        accept = await wire.associate(contexts)
        assert [context.result for context in accept.contexts] == [0, 4, 3]
        assert [context.transfer_syntax for context in wire.accepted] == [IMPLICIT_VR_LITTLE_ENDIAN]


async def test_a_normalized_request_is_acknowledged_and_shown() -> None:
    async with SimulatedModality() as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext("1.2.840.10008.1.20.1")])
        command = dimse.request(
            CommandField.N_EVENT_REPORT_RQ, 1, "1.2.840.10008.1.20.1", dataset=True, AffectedSOPInstanceUID="1.2", EventTypeID=1
        )
        await wire.send_message(1, command, b"")
        assert (await wire.receive_message()).command.status == 0
        assert sim.normalized[0].command["EventTypeID"] == 1


async def test_a_dataset_beyond_the_cap_is_aborted() -> None:
    async with SimulatedModality(max_object_size=1_000) as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(CT)])
        with pytest.raises(AssociationAborted):
            await wire.store(synthetic_instance())
        assert "larger than 1000" in sim.protocol_errors[0]


async def test_a_response_to_nothing_is_aborted() -> None:
    async with SimulatedModality() as sim, await Wire.connect(sim.host, sim.port) as wire:
        await wire.associate([PresentationContext(CT)])
        request = dimse.request(CommandField.C_STORE_RQ, 1, CT, dataset=True)
        await wire.send_message(1, dimse.response(request, 0))
        with pytest.raises(AssociationAborted):
            await wire.receive_message()
