"""Echo, find, move, get and store with foreign programs on the other end, plain and with TLS."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest
from pydicom import dcmread

from asyncdicom import (
    Instance,
    PresentationContext,
    Query,
    Received,
    StorageSCP,
    associate,
    contexts_for,
    contexts_for_get,
)
from asyncdicom.modality import Engine
from tests.peers.fixtures import Starter
from tests.peers.orthanc import Orthanc
from tests.peers.peer import Address, Peer

# The files that went out and came in are compared in the test itself, which blocks.
pytestmark = [pytest.mark.peer("storescp"), pytest.mark.blocking]


def instances(study: list[Path]) -> list[Instance]:
    return [Instance.read(path) for path in study]


async def test_dcmtk_answers_an_echo(no_leaks: object, engine: Engine, dcmtk_storescp: Peer) -> None:
    async with associate(dcmtk_storescp.modality(), engine=engine) as association:
        assert await association.echo() == 0x0000
        assert association.peer.implementation_version == "OFFIS_DCMTK_367"


async def test_dcmtk_answers_an_echo_over_mutual_tls(no_leaks: object, engine: Engine, dcmtk_tls_storescp: Peer) -> None:
    async with associate(dcmtk_tls_storescp.modality(), engine=engine) as association:
        assert await association.echo() == 0x0000
    assert association.phases.tls is not None


async def test_pynetdicom_answers_an_echo(no_leaks: object, engine: Engine, pynetdicom_echoscp: Peer) -> None:
    async with associate(pynetdicom_echoscp.modality(), engine=engine) as association:
        assert await association.echo() == 0x0000


async def test_what_is_stored_at_dcmtk_is_byte_for_byte_what_was_sent(
    no_leaks: object, engine: Engine, start_storescp: Starter[Peer], study: list[Path]
) -> None:
    peer = await anyio.to_thread.run_sync(partial(start_storescp, extra=["+B"]))
    what = instances(study)
    async with associate(peer.modality(), engine=engine, contexts=contexts_for(what)) as association:
        for instance in what:
            assert await association.store(instance) == 0x0000
    sent = {instance.sop_instance_uid: dataset_of(path) for instance, path in zip(what, study, strict=True)}
    kept = {str(dcmread(path).SOPInstanceUID): dataset_of(path) for path in peer.files}
    assert kept == sent


def dataset_of(path: Path) -> bytes:
    instance = Instance.read(path)
    return path.read_bytes()[instance.offset :]


async def test_dcmtk_takes_instances_over_tls(
    no_leaks: object, engine: Engine, dcmtk_tls_storescp: Peer, study: list[Path]
) -> None:
    what = instances(study)
    async with associate(dcmtk_tls_storescp.modality(), engine=engine, contexts=contexts_for(what)) as association:
        assert {int(await association.store(instance)) for instance in what} == {0x0000}
    assert len(dcmtk_tls_storescp.files) == len(study)


async def test_orthanc_takes_instances_and_finds_them(
    no_leaks: object, engine: Engine, orthanc_peer: Orthanc, study: list[Path]
) -> None:
    what = instances(study)
    contexts = [*contexts_for(what), PresentationContext(Query().find_sop_class)]
    async with associate(orthanc_peer.modality(), engine=engine, contexts=contexts) as association:
        for instance in what:
            assert await association.store(instance) == 0x0000
        query = Query("image", {"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID), "SeriesInstanceUID": ""})
        found = {str(match.dataset.SOPInstanceUID) async for match in association.find(query)}
    assert found == {instance.sop_instance_uid for instance in what}


async def test_dcmqrscp_finds_by_key(no_leaks: object, engine: Engine, dcmtk_qrscp: Peer, study: list[Path]) -> None:
    async with associate(dcmtk_qrscp.modality(), engine=engine) as association:
        matches = [match async for match in association.find(Query(keys={"PatientID": "P1", "PatientName": ""}))]
        none = [match async for match in association.find(Query(keys={"PatientID": "NOBODY"}))]
    assert [str(match.dataset.StudyInstanceUID) for match in matches] == [str(dcmread(study[0]).StudyInstanceUID)]
    assert matches[0].sources == ("peer",)
    assert none == []


async def test_a_worklist_is_found(no_leaks: object, engine: Engine, dcmtk_worklist: Peer) -> None:
    query = Query(model="worklist", keys={"PatientID": "", "Modality": "", "ScheduledStationAETitle": ""})
    async with associate(dcmtk_worklist.modality(), engine=engine) as association:
        found = [match.dataset.PatientID async for match in association.find(query)]
    assert found == ["W1"]


async def test_what_comes_by_get_is_what_was_there(
    no_leaks: object, engine: Engine, dcmtk_qrscp: Peer, study: list[Path]
) -> None:
    came: dict[str, bytes] = {}

    async def keep(received: Received) -> int:
        came[received.sop_instance_uid] = bytes(received.data)
        return 0x0000

    query = Query(keys={"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID)})
    async with associate(dcmtk_qrscp.modality(), engine=engine, contexts=contexts_for_get(query)) as association:
        responses = [response async for response in association.get(query, keep)]
    assert responses[-1].status == 0x0000
    assert responses[-1].sub_operations.completed == len(came) == len(study)
    assert came == {instance.sop_instance_uid: dataset_of(path) for instance, path in zip(instances(study), study, strict=True)}


@pytest.mark.parametrize("archive", ["dcmqrscp", "orthanc"])
async def test_what_is_moved_arrives_at_our_scp(
    no_leaks: object,
    engine: Engine,
    study: list[Path],
    archive: str,
    start_dcmqrscp: Starter[Peer],
    start_orthanc: Starter[Orthanc],
) -> None:
    came: list[Received] = []

    async def keep(received: Received) -> int:
        came.append(received)
        return 0x0000

    async with StorageSCP(keep, port=0, ae_title="DEST") as scp:
        here = [Address("DEST", scp.port)]
        if archive == "dcmqrscp":
            peer: Peer = await anyio.to_thread.run_sync(partial(start_dcmqrscp, instances=study, destinations=here))
        else:
            peer = await anyio.to_thread.run_sync(partial(start_orthanc, known=here))
            for path in study:
                await anyio.to_thread.run_sync(peer.upload, path)  # type: ignore[attr-defined]
        query = Query(keys={"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID)})
        async with associate(peer.modality(), calling_ae_title="DEST", engine=engine) as association:
            responses = association.move(query, to="DEST")
            last = [response async for response in responses][-1]
    assert last.status == 0x0000
    assert {received.sop_instance_uid for received in came} == {instance.sop_instance_uid for instance in instances(study)}
    assert {received.move_originator_ae_title for received in came} == {"DEST"}
    assert {received.move_originator_message_id for received in came} == {responses.message_id}


async def test_a_move_to_nowhere_ends_in_failure(
    no_leaks: object, engine: Engine, dcmtk_qrscp: Peer, study: list[Path]
) -> None:
    query = Query(keys={"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID)})
    async with associate(dcmtk_qrscp.modality(), engine=engine) as association:
        last = [response async for response in association.move(query, to="NOWHERE")][-1]
    assert last.status == 0xA801


async def test_pynetdicom_s_archive_finds_and_gives(
    no_leaks: object, engine: Engine, pynetdicom_qrscp: Peer, study: list[Path]
) -> None:
    what = instances(study)
    modality = pynetdicom_qrscp.modality()
    came: set[str] = set()

    async def keep(received: Received) -> int:
        came.add(received.sop_instance_uid)
        return 0x0000

    async with associate(modality, engine=engine, contexts=contexts_for(what)) as association:
        for instance in what:
            assert await association.store(instance) == 0x0000
    query = Query(keys={"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID), "PatientID": ""}, model="study")
    async with associate(modality, engine=engine) as association:
        found = {str(match.dataset.StudyInstanceUID) async for match in association.find(query)}
        assert found == {str(dcmread(study[0]).StudyInstanceUID)}
    query = Query(keys={"StudyInstanceUID": str(dcmread(study[0]).StudyInstanceUID)}, model="study")
    async with associate(modality, engine=engine, contexts=contexts_for_get(query)) as association:
        last = [response async for response in association.get(query, keep)][-1]
    assert last.status == 0x0000
    assert came == {instance.sop_instance_uid for instance in what}
