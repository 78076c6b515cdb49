"""Storage commitment (R15): success only after re-reading and re-hashing; no restart and no deaf requester loses a report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from asyncdicom import Archive, StorageSCP, associate
from asyncdicom.archive import Stored
from asyncdicom.archive.commitments import Pending
from asyncdicom.association.commitment import (
    AS_SCU,
    CommitmentReport,
    FailureReason,
    InstanceReference,
    request_commitment,
)
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Engine, Modality
from asyncdicom.scp import commitment as module
from asyncdicom.scp.commitment import CommitmentReports, StorageCommitment
from asyncdicom.testing.instances import CT_IMAGE_STORAGE
from tests.archive.instances import study
from tests.peers.fixtures import Starter
from tests.peers.orthanc import Orthanc
from tests.peers.running import free_port
from tests.scp.conftest import Seen

_PATIENCE = 20.0


class Requester:
    """A scanner by pynetdicom: asks for storage commitment, and listens for the reports."""

    def __init__(self) -> None:
        self.port = free_port()
        self.reports: SimpleQueue[tuple[int, CommitmentReport]] = SimpleQueue()
        self.answer = 0x0000
        self._server: Any = None

    @property
    def modality(self) -> Modality:
        return Modality("scanner", ae_title="SCANNER", host="127.0.0.1", port=self.port)

    def listen(self) -> None:
        """Have it take reports from now on."""
        ae = AE("SCANNER")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._report)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _report(self, event: Any) -> tuple[int, None]:
        report = CommitmentReport.decode(event.request.EventInformation.getvalue(), str(event.context.transfer_syntax))
        if self.answer == 0x0000:
            self.reports.put((event.event_type, report))
        return self.answer, None

    def ask(
        self,
        port: int,
        dataset: Dataset,
        *,
        action: int = 1,
        instance: str = str(StorageCommitmentPushModelInstance),
        ae_title: str = "SCANNER",
    ) -> int:
        """Send an N-ACTION, and return its status."""
        ae = AE(ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate("127.0.0.1", port)
        assert association.is_established
        try:
            status, _ = association.send_n_action(dataset, action, StorageCommitmentPushModel, instance)
            return int(status.Status)
        finally:
            association.release()

    async def reported(self) -> tuple[int, CommitmentReport]:
        """The next report."""
        with anyio.fail_after(_PATIENCE):
            while self.reports.empty():
                await anyio.sleep(0.02)
        return self.reports.get_nowait()


@pytest.fixture
def requester() -> Iterator[Requester]:
    requester = Requester()
    requester.listen()
    yield requester
    requester.close()


@asynccontextmanager
async def serving(
    folder: Path, engine: Engine, *known: Modality, seen: Seen | None = None
) -> AsyncIterator[tuple[Archive, StorageSCP]]:
    """A storage SCP with storage commitment, for the modalities that it knows."""
    observer = seen or Seen()
    titles = {modality.ae_title: modality for modality in known}
    async with (
        Archive(folder / "archive", index=f"sqlite:{folder / 'index.db'}") as archive,
        StorageCommitment(archive, titles.get, observer=observer) as commitment,
        StorageSCP(archive, port=0, engine=engine, services=[commitment], observer=observer) as scp,
    ):
        yield archive, scp


def about(*references: InstanceReference, transaction: str | None = None) -> Dataset:
    """The Action Information."""
    dataset = Dataset()
    dataset.TransactionUID = transaction or generate_uid()
    dataset.ReferencedSOPSequence = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
        dataset.ReferencedSOPSequence.append(item)
    return dataset


async def keep(archive: Archive, count: int) -> list[tuple[InstanceReference, Stored]]:
    kept = [(instance, await archive.store(instance)) for instance in study(count)]
    return [(InstanceReference(instance.sop_class_uid, instance.sop_instance_uid), stored) for instance, stored in kept]


def _overwrite(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


async def test_what_is_intact_is_committed(tmp_path: Path, engine: Engine, requester: Requester, no_leaks: object) -> None:
    async with serving(tmp_path, engine, requester.modality) as (archive, scp):
        references = [reference for reference, _ in await keep(archive, 5)]
        asked = about(*references)
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        event, report = await requester.reported()
    assert event == 1
    assert report == CommitmentReport(str(asked.TransactionUID), tuple(references))


async def test_what_is_damaged_missing_unknown_or_of_another_class_is_reported_failed(
    tmp_path: Path, engine: Engine, requester: Requester
) -> None:
    async with serving(tmp_path, engine, requester.modality) as (archive, scp):
        (intact, _), (damaged, flipped), (missing, removed), (other, _) = await keep(archive, 4)
        assert flipped.path is not None
        assert removed.path is not None
        await anyio.to_thread.run_sync(_overwrite, flipped.path)
        await anyio.to_thread.run_sync(removed.path.unlink)
        unknown = InstanceReference(CT_IMAGE_STORAGE, "1.2.3.4.5")
        of_another_class = InstanceReference("1.2.840.10008.5.1.4.1.1.4", other.sop_instance_uid)
        asked = about(intact, damaged, missing, unknown, of_another_class)
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        event, report = await requester.reported()
    assert event == 2
    assert report.committed == (intact,)
    assert dict(report.failed) == {
        damaged: FailureReason.PROCESSING_FAILURE,
        missing: FailureReason.NO_SUCH_OBJECT_INSTANCE,
        unknown: FailureReason.NO_SUCH_OBJECT_INSTANCE,
        of_another_class: FailureReason.CLASS_INSTANCE_CONFLICT,
    }


async def test_a_report_survives_a_restart(tmp_path: Path, engine: Engine, requester: Requester) -> None:
    async with serving(tmp_path, engine, requester.modality) as (archive, scp):
        ((reference, _),) = await keep(archive, 1)
        asked = about(reference)
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        # Ended before the first attempt, which leaves the requester a moment to release its association.
    assert requester.reports.empty()
    async with serving(tmp_path, engine, requester.modality):
        assert await requester.reported() == (1, CommitmentReport(str(asked.TransactionUID), (reference,)))


@pytest.mark.parametrize("how", ["deaf", "unwilling"])
async def test_a_report_is_tried_again_until_it_is_taken(
    tmp_path: Path, requester: Requester, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.2)
    monkeypatch.setattr(module, "_FIRST", 0.0)
    async with serving(tmp_path, "native", requester.modality) as (archive, scp):
        ((reference, _),) = await keep(archive, 1)
        if how == "deaf":
            await anyio.to_thread.run_sync(requester.close)
        else:
            requester.answer = 0x0110
        asked = about(reference)
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        with anyio.fail_after(_PATIENCE):
            assert archive.index is not None
            while not await archive.index.ask("SELECT 1 FROM commitments WHERE attempts > 0"):
                await anyio.sleep(0.02)
        assert requester.reports.empty()
        requester.answer = 0x0000
        if how == "deaf":
            await anyio.to_thread.run_sync(requester.listen)
        assert (await requester.reported())[1].committed == (reference,)


async def test_a_request_that_makes_no_sense_is_refused_and_leaves_nothing_to_do(
    tmp_path: Path, engine: Engine, requester: Requester
) -> None:
    empty, nameless = about(), about(InstanceReference(CT_IMAGE_STORAGE, "1.2"))
    del nameless.TransactionUID
    good = about(InstanceReference(CT_IMAGE_STORAGE, "1.2"))

    def ask(port: int) -> list[int]:
        return [
            requester.ask(port, empty),
            requester.ask(port, nameless),
            requester.ask(port, good, action=2),
            requester.ask(port, good, instance="1.2.3"),
            requester.ask(port, good, ae_title="STRANGER"),
        ]

    async with serving(tmp_path, engine, requester.modality) as (archive, scp):
        assert await anyio.to_thread.run_sync(ask, scp.port) == [0x0115, 0x0115, 0x0123, 0x0112, 0x0110]
        assert archive.index is not None
        assert await archive.index.ask("SELECT 1 FROM commitments") == []


async def test_a_transaction_is_taken_once_while_its_report_is_due(
    tmp_path: Path, engine: Engine, requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST", 1.0)
    async with serving(tmp_path, engine, requester.modality) as (archive, scp):
        ((reference, _),) = await keep(archive, 1)
        asked = about(reference)
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0210
        await requester.reported()
        assert requester.reports.empty()


async def test_an_archive_without_an_index_cannot_commit_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs an index"):
        StorageCommitment(Archive(tmp_path / "archive"), lambda title: None)


async def test_our_own_request_is_reported_on_to_our_handler(tmp_path: Path, engine: Engine, requester: Requester) -> None:
    """Both sides are ours here; the peers' sides are in the tests with Orthanc."""
    reports: list[CommitmentReport] = []
    async with StorageSCP(port=0, engine=engine, services=[CommitmentReports(reports.append)]) as ours:
        us = Modality("us", ae_title="ASYNCDICOM", host="127.0.0.1", port=ours.port)
        async with serving(tmp_path, engine, us) as (archive, scp):
            ((reference, _),) = await keep(archive, 1)
            them = Modality("them", ae_title="THEM", host="127.0.0.1", port=scp.port)
            async with associate(them, contexts=[AS_SCU]) as association:
                status, transaction = await request_commitment(association, [reference])
            assert status == 0x0000
            with anyio.fail_after(_PATIENCE):
                while not reports:
                    await anyio.sleep(0.02)
    assert reports == [CommitmentReport(transaction, (reference,))]


async def test_a_handler_that_fails_is_a_processing_failure_for_the_reporter(engine: Engine) -> None:
    def fail(report: CommitmentReport) -> None:
        raise RuntimeError("the database is down")

    async with StorageSCP(port=0, engine=engine, services=[CommitmentReports(fail)]) as ours:
        us = Modality("us", ae_title="ASYNCDICOM", host="127.0.0.1", port=ours.port)
        async with associate(us, contexts=[module.AS_SCP]) as association:
            report = CommitmentReport("1.2.3", (InstanceReference(CT_IMAGE_STORAGE, "1.2"),))
            status, _ = await association.n_event_report(
                report.event_type, module.PUSH_MODEL, module.PUSH_MODEL_INSTANCE, report.dataset()
            )
            assert status == 0x0110
            assert await association.release() is None


async def test_a_request_beyond_what_is_held_is_a_resource_limitation_and_the_association_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    small, large = (about(InstanceReference(CT_IMAGE_STORAGE, "1.2.3")) for _ in range(2))
    large.add_new(0x00090010, "LO", "FILLER")
    large.add_new(0x00091001, "OB", bytes(5 << 20))
    peer = Modality("peer", ae_title="ASYNCDICOM", host="127.0.0.1", port=1)
    async with serving(tmp_path, engine, peer) as (_, scp):
        them = Modality("them", ae_title="THEM", host="127.0.0.1", port=scp.port)
        async with associate(them, contexts=[AS_SCU]) as association:
            for asked, answer in ((large, 0x0213), (large, 0x0213), (small, 0x0000)):
                status, _ = await association.n_action(1, module.PUSH_MODEL, module.PUSH_MODEL_INSTANCE, asked)
                assert status == answer


async def test_one_request_that_cannot_be_reported_on_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requester: Requester
) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.0)
    report_on = StorageCommitment._report_on

    async def fail_for_one(commitment: StorageCommitment, pending: Pending) -> CommitmentReport:
        if pending.transaction_uid == "1.2.3.666":
            raise ValueError("nobody thought of this")
        return await report_on(commitment, pending)

    monkeypatch.setattr(StorageCommitment, "_report_on", fail_for_one)
    async with serving(tmp_path, "native", requester.modality) as (archive, scp):
        ((reference, _),) = await keep(archive, 1)
        for transaction in ("1.2.3.666", "1.2.3.1"):
            asked = about(reference, transaction=transaction)
            assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0000
        assert (await requester.reported())[1].transaction_uid == "1.2.3.1"
        assert archive.index is not None
        (attempts,) = await archive.index.ask("SELECT attempts FROM commitments WHERE due_at IS NOT NULL")
        assert attempts[0] >= 1


async def test_what_was_forgotten_of_one_message_is_not_held_against_the_next(tmp_path: Path) -> None:
    """A dataset that is too long for an operation without a service is read and forgotten: the request after it is another."""
    large = about(InstanceReference("1.2", "1.2.3"))
    large.add_new(0x00090010, "LO", "FILLER")
    large.add_new(0x00091001, "OB", bytes(5 << 20))
    peer = Modality("peer", ae_title="ASYNCDICOM", host="127.0.0.1", port=1)
    async with serving(tmp_path, "native", peer) as (_, scp):
        them = Modality("them", ae_title="THEM", host="127.0.0.1", port=scp.port)
        async with associate(them, contexts=[AS_SCU]) as association:
            # Nobody answers an N-EVENT-REPORT here.
            status, _ = await association.n_event_report(1, module.PUSH_MODEL, module.PUSH_MODEL_INSTANCE, large)
            assert status == 0x0211
            status, _ = await request_commitment(association, [InstanceReference(CT_IMAGE_STORAGE, "1.2.3")])
            assert status == 0x0000


async def test_a_request_that_names_too_many_instances_is_a_resource_limitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requester: Requester
) -> None:
    monkeypatch.setattr(module, "_MAX_INSTANCES", 2)
    asked = about(*(InstanceReference(CT_IMAGE_STORAGE, f"1.2.{n}") for n in range(3)))
    async with serving(tmp_path, "native", requester.modality) as (_, scp):
        assert await anyio.to_thread.run_sync(requester.ask, scp.port, asked) == 0x0213


@pytest.mark.peer("Orthanc")
async def test_orthanc_gets_its_commitment(
    tmp_path: Path, engine: Engine, start_orthanc: Starter[Orthanc], no_leaks: object
) -> None:
    port = free_port()
    us = Modality("asyncdicom", ae_title="ASYNCDICOM", host="127.0.0.1", port=port)
    orthanc = await anyio.to_thread.run_sync(lambda: start_orthanc(known=[us]))
    modality = Modality("orthanc", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port)
    async with (
        Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive,
        StorageCommitment(archive, {orthanc.ae_title: modality}.get) as commitment,
        StorageSCP(archive, port=port, engine=engine, services=[commitment]),
        httpx.AsyncClient(timeout=_PATIENCE) as http,
    ):
        (intact, _), (damaged, stored) = await keep(archive, 2)
        assert stored.path is not None
        await anyio.to_thread.run_sync(_overwrite, stored.path)
        body = {"DicomInstances": [{"SOPClassUID": one[0], "SOPInstanceUID": one[1]} for one in (intact, damaged)]}
        asked = await http.post(f"{orthanc.url}/modalities/asyncdicom/storage-commitment", json=body)
        assert asked.status_code == 200
        with anyio.fail_after(_PATIENCE):
            while (found := (await http.get(orthanc.url + asked.json()["Path"])).json())["Status"] == "Pending":
                await anyio.sleep(0.1)
    assert found["Status"] == "Failure"
    assert [one["SOPInstanceUID"] for one in found["Success"]] == [intact.sop_instance_uid]
    assert [one["SOPInstanceUID"] for one in found["Failures"]] == [damaged.sop_instance_uid]


@pytest.mark.peer("Orthanc")
async def test_orthanc_commits_itself_to_what_it_keeps(
    tmp_path: Path, engine: Engine, start_orthanc: Starter[Orthanc], no_leaks: object
) -> None:
    reports: list[CommitmentReport] = []
    async with StorageSCP(port=0, engine=engine, services=[CommitmentReports(reports.append)]) as scp:
        us = Modality("asyncdicom", ae_title="ASYNCDICOM", host="127.0.0.1", port=scp.port)
        orthanc = await anyio.to_thread.run_sync(lambda: start_orthanc(known=[us]))
        modality = Modality("orthanc", ae_title=orthanc.ae_title, host="127.0.0.1", port=orthanc.port)
        instance = study(1)[0]
        file = tmp_path / "instance.dcm"
        await anyio.to_thread.run_sync(file.write_bytes, instance.encoded)
        await anyio.to_thread.run_sync(orthanc.upload, file)
        kept = InstanceReference(instance.sop_class_uid, instance.sop_instance_uid)
        unknown = InstanceReference(CT_IMAGE_STORAGE, "1.2.3.4.5")
        async with associate(modality, contexts=[AS_SCU], engine=engine) as association:
            status, transaction = await request_commitment(association, [kept, unknown])
        assert status == 0x0000
        with anyio.fail_after(_PATIENCE):
            while not reports:
                await anyio.sleep(0.05)
    assert (reports[0].transaction_uid, reports[0].committed) == (transaction, (kept,))
    assert [reference for reference, _ in reports[0].failed] == [unknown]
