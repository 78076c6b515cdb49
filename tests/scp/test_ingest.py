"""What is acknowledged is kept; what is not kept is not acknowledged; and nothing is left of what was cut off."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import time
from pathlib import Path

import anyio
import pytest
from pydicom import dcmread
from pydicom.data.data_manager import DATA_ROOT

from asyncdicom import (
    Archive,
    AssociationRejected,
    ConnectionLost,
    DatasetError,
    Instance,
    OperationError,
    PresentationContext,
    Received,
    StorageSCP,
    associate,
)
from asyncdicom.modality import Engine, Modality
from asyncdicom.testing import HeldInstance, Wire, send_instances, synthetic_instance, synthetic_study
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_every_byte_of_a_study_is_kept(no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen) -> None:
    study = dict(synthetic_study(20))
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
            assert set(await send_instances("127.0.0.1", scp.port, study.values())) == {0x0000}
        await seen.settled()
    kept = await anyio.to_thread.run_sync(
        lambda: {dcmread(p).SOPInstanceUID: dataset_hash(p) for p in files_of(tmp_path / "archive")}
    )
    assert kept == {uid: hashlib.sha256(HeldInstance.read(data).dataset).hexdigest() for uid, data in study.items()}
    assert seen.statuses == {0x0000: 20}


def dataset_hash(path: Path) -> str:
    instance = Instance.read(path)
    return hashlib.sha256(path.read_bytes()[instance.offset :]).hexdigest()


@pytest.mark.blocking  # the files are read and compared in the test itself
@pytest.mark.timeout(180)
async def test_every_file_of_pydicom_s_test_data_that_can_be_stored_is_stored_byte_for_byte(
    no_leaks: object, engine: Engine, tmp_path: Path
) -> None:
    wanted: dict[Instance, str] = {}
    for name in sorted((Path(DATA_ROOT) / "test_files").rglob("*.dcm")):
        try:
            instance = Instance.read(name)
        except DatasetError:
            continue
        wanted[instance] = dataset_hash(name)
    assert len(wanted) > 60
    came: dict[tuple[str, str, str], set[str]] = {}
    async with Archive(tmp_path / "archive", durability="none", duplicates="keep-all") as archive:

        async def keep(received: Received) -> int:
            stored = await archive.store(received)
            if stored.path is not None:
                key = (received.sop_class_uid, received.sop_instance_uid, received.transfer_syntax_uid)
                came.setdefault(key, set()).add(dataset_hash(archive.directory / stored.path))
            return int(stored.status)

        async with StorageSCP(keep, port=0, engine=engine) as scp:
            modality = Modality("self", "SELF", "127.0.0.1", scp.port)
            for instance, digest in wanted.items():
                async with associate(modality, contexts=[instance.context], engine=engine) as association:
                    status = await association.store(instance)
                assert status == 0x0000, (instance.path, status)
                assert digest in came[instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid], (
                    instance.path
                )


@pytest.mark.timeout(120)
async def test_a_connection_cut_at_a_random_byte_leaves_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen
) -> None:
    """Bar R7: a thousand cuts. Each costs two threads on the bridge, which is no default: fewer have to do there."""
    chance = random.Random(7)
    cuts = 1_000 if engine == "native" else 60
    conversation = whole_conversation()
    async with Archive(tmp_path / "archive", durability="none") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
            for _ in range(cuts):
                wire = await Wire.connect("127.0.0.1", scp.port)
                await wire.send(conversation[: chance.randrange(1, len(conversation) - 1)])
                if chance.random() < 0.5:
                    wire.reset()
                await wire.close()
            await seen.settled()
            assert scp.associations == 0
    assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []
    assert not seen.statuses


def whole_conversation() -> bytes:
    from asyncdicom.upper_layer import negotiation

    request = negotiation.AssociateRequest("ANY-SCP", "CUT", negotiation.propose(STORAGE)[0])
    command = dimse.request(
        CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
    )
    message = pdu.encode_message(1, dimse.encode_command(command), HELD.dataset, max_length=4_096)
    return bytes(negotiation.encode_request(request)) + bytes(message)


@pytest.mark.parametrize("policy", ["keep-first", "replace", "keep-all", "reject"])
async def test_one_instance_sent_a_hundred_times_at_once_is_never_a_mix(
    no_leaks: object, engine: Engine, tmp_path: Path, policy: str
) -> None:
    """Bar R6 over the network: the same SOP Instance UID with two different datasets."""
    one = HELD
    other = HeldInstance(
        b"",
        memoryview(bytes(one.dataset[:-2]) + b"\x01\x02"),
        one.sop_class_uid,
        one.sop_instance_uid,
        one.transfer_syntax_uid,
        one.keys,
    )
    statuses: list[int] = []

    async def send(port: int, instance: HeldInstance) -> None:
        async with await Wire.connect("127.0.0.1", port, timeout=30) as wire:
            await wire.associate(STORAGE)
            statuses.append(await wire.store(instance))
            await wire.release()

    async with Archive(tmp_path / "archive", durability="none", duplicates=policy) as archive:  # type: ignore[arg-type]
        async with StorageSCP(archive, port=0, engine=engine) as scp:
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(send, scp.port, one if number % 2 else other)
    assert len(statuses) == 100
    assert set(statuses) <= ({0x0000, 0x0111} if policy == "reject" else {0x0000})
    hashes = await anyio.to_thread.run_sync(lambda: {dataset_hash(path) for path in files_of(tmp_path / "archive")})
    known = {hashlib.sha256(instance.dataset).hexdigest() for instance in (one, other)}
    assert hashes <= known
    assert len(hashes) == (2 if policy == "keep-all" else 1)


async def test_garbage_is_answered_with_0xc000_and_leaves_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen
) -> None:
    garbage = HeldInstance(b"", memoryview(b"\xfe\xed" * 500), HELD.sop_class_uid, "1.2.3", HELD.transfer_syntax_uid, {})
    async with Archive(tmp_path / "archive", durability="none") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                await wire.associate(STORAGE)
                status = await wire.store(garbage)
                assert await wire.store(HELD) == 0x0000
                await wire.release()
    assert 0xC000 <= status <= 0xCFFF
    assert len(await anyio.to_thread.run_sync(files_of, tmp_path / "archive")) == 1
    assert seen.statuses == {status: 1, 0x0000: 1}


async def test_a_disk_without_room_is_answered_with_0xa700_and_the_association_lives_on(
    no_leaks: object, engine: Engine, tmp_path: Path
) -> None:
    """Bar R4 over the network; the archive has its own small disk."""
    async with Archive(tmp_path / "archive", min_free=1 << 60) as archive, StorageSCP(archive, port=0, engine=engine) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate([*STORAGE, PresentationContext(VERIFICATION)])
            assert [await wire.store(HELD), await wire.store(HELD)] == [0xA700, 0xA700]
            assert await wire.echo() == 0x0000
            assert await wire.release()
    assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []


HOSTILE = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a\0b",
    "1.2\r\nINFO forged=1",
    "9" * 64,
    "ä.ü",
    "%2e%2e",
    "~root",
    "-rf",
    " ",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_uid_stays_inside_the_archive_and_splits_no_log_record(
    no_leaks: object, engine: Engine, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bar S5 over the network; the layouts have their own two hundred names."""
    caplog.set_level(logging.INFO)
    async with Archive(tmp_path / "root" / "archive", durability="none") as archive:
        async with StorageSCP(archive, port=0, engine=engine) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                await wire.associate(
                    STORAGE,
                    calling_ae_title=name.encode("ascii", "replace")
                    .decode()[:16]
                    .replace("\0", "?")
                    .replace("\r", "?")
                    .replace("\n", "?")
                    .replace("\\", "?")
                    or "X",
                )
                # Refused by an abort is as good: nothing was acknowledged.
                with contextlib.suppress(OperationError, ValueError):
                    await wire.store(HELD, AffectedSOPInstanceUID=name)
    found = await anyio.to_thread.run_sync(files_of, tmp_path)
    assert all(path.is_relative_to(tmp_path / "root" / "archive") for path in found)
    assert not any(
        "\n" in record.getMessage() or "\r" in record.getMessage()
        for record in caplog.records
        if record.name.startswith("asyncdicom")
    )


async def test_a_drain_finishes_what_is_under_way_and_rejects_what_is_new(no_leaks: object, engine: Engine, seen: Seen) -> None:
    """Bar R8."""
    gate = anyio.Event()
    statuses: list[int] = []

    async def slow(received: Received) -> int:
        await gate.wait()
        return 0x0000

    async def send(port: int) -> None:
        async with await Wire.connect("127.0.0.1", port, timeout=10) as wire:
            await wire.associate(STORAGE)
            statuses.append(await wire.store(HELD))
            await wire.release()

    async with StorageSCP(slow, port=0, engine=engine, drain_timeout=10, observer=seen) as scp:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(send, scp.port)
            with anyio.fail_after(10):
                while scp.associations < 50:
                    await anyio.sleep(0.01)
            tasks.start_soon(scp.drain)
            await anyio.sleep(0.1)
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                with pytest.raises(AssociationRejected) as caught:
                    await wire.associate()
                assert caught.value.result == 2
            gate.set()
    assert statuses == [0x0000] * 50


async def test_past_the_drain_timeout_what_is_left_is_aborted(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async def never(received: Received) -> int:
        await anyio.sleep_forever()
        return 0x0000

    async with StorageSCP(never, port=0, engine=engine, drain_timeout=0.5, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port, timeout=10) as wire:
            await wire.associate(STORAGE)
            async with anyio.create_task_group() as tasks:
                started = time.monotonic()
                tasks.start_soon(scp.drain)
                with pytest.raises(OperationError):
                    await wire.store(HELD)
                assert time.monotonic() - started < 3
        await seen.settled()
    assert not seen.statuses


async def test_a_handler_that_hangs_or_raises_touches_none_of_its_neighbours(no_leaks: object, engine: Engine) -> None:
    """Bar R13 in small."""

    async def handle(received: Received) -> int:
        if received.calling_ae_title == "HANGS":
            await anyio.sleep_forever()
        if received.calling_ae_title == "RAISES":
            raise ZeroDivisionError
        return 0x0000

    async with StorageSCP(handle, port=0, engine=engine) as scp, await Wire.connect("127.0.0.1", scp.port) as hanging:
        await hanging.associate(STORAGE, calling_ae_title="HANGS")
        with anyio.move_on_after(0.2):
            await hanging.store(HELD)
        assert await send_instances("127.0.0.1", scp.port, [HELD.file], calling_ae_title="RAISES") == [0xC211]
        for _ in range(10):
            assert await send_instances("127.0.0.1", scp.port, [HELD.file]) == [0x0000]


async def test_no_patient_data_reaches_the_log(
    no_leaks: object, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bar S7: a canary in every text of a dataset, on the way of success and on those of failure."""
    caplog.set_level(logging.INFO, "asyncdicom")
    canary = "CANARY^X7Q"
    dataset = await anyio.to_thread.run_sync(canaries, canary)
    instance = Instance.of(dataset)

    def leaky(received: Received) -> int:
        raise ValueError(f"cannot use {received.dataset.PatientName}")

    async with Archive(tmp_path / "archive", durability="none") as archive:
        for handler in (archive, leaky, None):
            async with StorageSCP(handler, port=0, engine=engine) as scp:  # type: ignore[arg-type]
                modality = Modality("self", "SELF", "127.0.0.1", scp.port)
                async with associate(modality, contexts=[instance.context], engine=engine) as association:
                    await association.store(instance)
    assert caplog.records, "there was something to be logged"
    assert canary not in "\n".join(logging.Formatter().format(record) for record in caplog.records)


def canaries(canary: str):  # type: ignore[no-untyped-def]
    from io import BytesIO

    dataset = dcmread(BytesIO(HELD.file))
    for element in dataset:
        if element.VR in ("PN", "LO", "SH", "ST", "LT", "UT"):
            element.value = canary
    dataset.PatientName = dataset.PatientID = canary
    return dataset


async def test_a_connection_lost_while_the_handler_works_is_only_that(no_leaks: object, engine: Engine, seen: Seen) -> None:
    entered = anyio.Event()

    async def slow(received: Received) -> int:
        entered.set()
        await anyio.sleep(0.2)
        return 0x0000

    async with StorageSCP(slow, port=0, engine=engine, observer=seen) as scp:
        wire = await Wire.connect("127.0.0.1", scp.port)
        await wire.associate(STORAGE)
        async with anyio.create_task_group() as tasks:

            async def store() -> None:
                with pytest.raises((ConnectionLost, OperationError)):
                    await wire.store(HELD)

            tasks.start_soon(store)
            await entered.wait()
            wire.reset()
        await wire.close()
        await seen.settled()
    assert seen.aborted == {"connection_lost": 1}
