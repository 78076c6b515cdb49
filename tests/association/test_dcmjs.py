"""Echo, find, store, get and move with dcmjs-dimse on the other end, plain and with TLS."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydicom import dcmread

from asyncdicom import (
    AssociationRejected,
    Instance,
    PresentationContext,
    Query,
    Received,
    StorageSCP,
    UserIdentity,
    associate,
    contexts_for,
    contexts_for_get,
)
from asyncdicom.modality import Engine
from asyncdicom.upper_layer.context import VERIFICATION
from tests.peers.certificates import Certificates
from tests.peers.dcmjs import Archive, start_dcmjs_fixture  # noqa: F401 - a fixture
from tests.peers.fixtures import Starter
from tests.peers.peer import Address

# The files that went out and came in are compared in the test itself, which blocks.
pytestmark = pytest.mark.blocking


async def started(start: Starter[Archive], **settings: Any) -> Archive:
    return await anyio.to_thread.run_sync(partial(start, **settings))


def datasets(study: list[Path]) -> dict[str, bytes]:
    found = {}
    for path in study:
        instance = Instance.read(path)
        found[instance.sop_instance_uid] = path.read_bytes()[instance.offset :]
    return found


def study_uid(study: list[Path]) -> str:
    return str(dcmread(study[0]).StudyInstanceUID)


async def test_dcmjs_answers_an_echo_and_keeps_what_is_stored_byte_for_byte(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path]
) -> None:
    peer = await started(start_dcmjs)
    what = [Instance.read(path) for path in study]
    contexts = [PresentationContext(VERIFICATION), *contexts_for(what)]
    async with associate(peer.modality(), contexts=contexts, engine=engine) as association:
        assert association.peer.implementation_version is not None
        assert "DCMJS" in association.peer.implementation_version
        assert await association.echo() == 0x0000
        for instance in what:
            assert await association.store(instance) == 0x0000
    sent = datasets(study)
    assert {uid: peer.dataset(uid) for uid in sent} == sent
    assert [event["read"] for event in peer.events("stored")] == [instance.sop_instance_uid for instance in what]
    assert peer.events("aborted") == peer.events("error") == []
    assert len(peer.events("released")) == len(peer.events("association"))


async def test_dcmjs_finds_by_key_and_is_told_who_asks(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path]
) -> None:
    peer = await started(start_dcmjs, instances=study)
    modality = peer.modality(user_identity=UserIdentity("username", b"jane", response=True))
    async with associate(modality, calling_ae_title="FINDER", engine=engine) as association:
        query = Query(keys={"PatientID": "P1", "PatientName": "", "StudyDate": ""})
        matches = [match.dataset async for match in association.find(query)]
        assert [(match.StudyInstanceUID, match.PatientName, match.StudyDate) for match in matches] == [
            (study_uid(study), "Doe^Jane", "20260102")
        ]
        assert [match async for match in association.find(Query(keys={"PatientID": "NOBODY"}))] == []
        images = Query("image", {"StudyInstanceUID": study_uid(study), "SeriesInstanceUID": ""})
        # It sends them all at once, and C-CANCEL comes too late for it.
        assert len([match async for match in association.find(images, limit=1)]) == 1
        assert {match.dataset.SOPInstanceUID async for match in association.find(images)} == datasets(study).keys()
        assert await association.echo() == 0x0000
    asked = peer.events("association")[-1]
    assert (asked["calling"], asked["identity"]) == ("FINDER", "jane")


async def test_dcmjs_stops_an_endless_find_when_it_is_cancelled(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path]
) -> None:
    peer = await started(start_dcmjs, instances=study, endless=True)
    async with associate(peer.modality(), engine=engine) as association:
        assert len([match async for match in association.find(Query(keys={"PatientID": "P1"}), limit=3)]) == 3
        assert await association.echo() == 0x0000
    assert len(peer.events("cancelled")) == 1
    assert peer.events("aborted") == []


async def test_what_comes_from_dcmjs_by_get_is_what_it_sent(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path]
) -> None:
    peer = await started(start_dcmjs, instances=study)
    came: dict[str, bytes] = {}

    async def keep(received: Received) -> int:
        came[received.sop_instance_uid] = bytes(received.data)
        return 0x0000

    query = Query(keys={"StudyInstanceUID": study_uid(study)})
    async with associate(peer.modality(), engine=engine, contexts=contexts_for_get(query)) as association:
        responses = [response async for response in association.get(query, keep)]
    assert [response.sub_operations.completed for response in responses] == [1, 2, 3, 3]
    assert responses[-1].status == 0x0000
    assert came == {uid: peer.sent(uid) for uid in datasets(study)}


async def test_what_dcmjs_moves_arrives_at_our_scp(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path]
) -> None:
    came: dict[str, bytes] = {}

    async def keep(received: Received) -> int:
        came[received.sop_instance_uid] = bytes(received.data)
        return 0x0000

    async with StorageSCP(keep, port=0, ae_title="DEST", engine=engine) as scp:
        peer = await started(start_dcmjs, instances=study, destinations=[Address("DEST", scp.port)])
        query = Query(keys={"StudyInstanceUID": study_uid(study)})
        async with associate(peer.modality(), calling_ae_title="DEST", engine=engine) as association:
            responses = [response async for response in association.move(query, to="DEST")]
            nowhere = [response async for response in association.move(query, to="NOWHERE")]
    assert responses[-1].status == 0x0000
    assert responses[-1].sub_operations.completed == len(study)
    assert [response.status for response in nowhere] == [0xA801]
    assert came == {uid: peer.sent(uid) for uid in datasets(study)}


async def test_dcmjs_is_asked_and_given_to_over_mutual_tls(
    no_leaks: object, engine: Engine, start_dcmjs: Starter[Archive], study: list[Path], certificates: Certificates
) -> None:
    peer = await started(start_dcmjs, tls=certificates.server, client=certificates.client)
    what = [Instance.read(path) for path in study]
    contexts = [PresentationContext(VERIFICATION), *contexts_for(what)]
    async with associate(peer.modality(), contexts=contexts, engine=engine) as association:
        assert await association.echo() == 0x0000
        assert {int(await association.store(instance)) for instance in what} == {0x0000}
    assert association.phases.tls is not None
    sent = datasets(study)
    assert {uid: peer.dataset(uid) for uid in sent} == sent
    # By another name it does not want to be called.
    modality = peer.modality()
    with pytest.raises(AssociationRejected) as caught:
        async with associate(type(modality)("peer", "OTHER", modality.host, modality.port, tls=modality.tls), engine=engine):
            raise AssertionError("rejected associations do not open")
    assert (caught.value.result, caught.value.source, caught.value.diagnostic) == (1, 1, 7)
