"""Objects larger than what is held in memory go to the disk as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from pathlib import Path

import anyio
import pytest

from asyncdicom import Archive, OperationError, PresentationContext, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.message import CommandField
from tests.scp.conftest import Seen
from tests.scp.test_ingest import files_of

HELD = HeldInstance.read(synthetic_instance())
STORAGE = [PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))]
MEBIBYTE = 1 << 20


def large(size: int) -> HeldInstance:
    """An instance that ends in so many further bytes: an element of a private group."""
    header = b"\xfd\x7f\x01\x10OB\0\0" + size.to_bytes(4, "little")
    pixels = bytes(range(256)) * (size // 256)
    return dataclasses.replace(HELD, dataset=memoryview(bytes(HELD.dataset) + header + pixels))


@pytest.mark.parametrize("size", [3 * MEBIBYTE, 1 * MEBIBYTE, 20 * MEBIBYTE])
async def test_a_large_object_is_kept_byte_for_byte(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen, size: int
) -> None:
    instance = large(size)
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                await wire.associate(STORAGE)
                assert await wire.store(instance) == 0x0000
                # And what follows on the same association, too.
                assert await wire.store(HELD) == 0x0000
                await wire.release()
            await seen.settled()
    (kept,) = await anyio.to_thread.run_sync(lambda: [path.read_bytes() for path in files_of(tmp_path / "archive")])
    assert kept.endswith(bytes(instance.dataset))
    assert seen.statuses == {0x0000: 2}


async def test_an_object_that_is_cut_off_on_its_way_leaves_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen
) -> None:
    instance = large(8 * MEBIBYTE)
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                agreed = await wire.associate(STORAGE)
                encoded = pdu.encode_message(1, store_command(instance), instance.dataset, max_length=agreed.max_length)
                await wire.send(encoded[: 6 * MEBIBYTE])
                wire.reset()
            await seen.settled()
            assert scp._door.ingest.budget.used == 0
        assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []


@pytest.mark.parametrize("how", ["stalls", "is drained"])
async def test_an_object_that_stays_half_leaves_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen, how: str
) -> None:
    """Its peer stops in the middle of it: until it is silent for too long, or until we may wait no longer."""
    instance = large(8 * MEBIBYTE)
    patience = {"idle_timeout": 0.5} if how == "stalls" else {"drain_timeout": 0.5}
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine, observer=seen, **patience) as scp:  # type: ignore[arg-type]
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                agreed = await wire.associate(STORAGE)
                encoded = pdu.encode_message(1, store_command(instance), instance.dataset, max_length=agreed.max_length)
                await wire.send(encoded[: 5 * MEBIBYTE])
                if how == "is drained":
                    with anyio.fail_after(5):
                        await scp.drain()
                assert await wire.closed() < 3.0
            await seen.settled()
            assert scp._door.ingest.budget.used == 0
        assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []
    assert seen.aborted == {"stalled" if how == "stalls" else "drain": 1}


def store_command(instance: HeldInstance, **elements: object) -> bytes:
    command = dimse.request(
        CommandField.C_STORE_RQ,
        1,
        instance.sop_class_uid,
        dataset=True,
        AffectedSOPInstanceUID=instance.sop_instance_uid,
    )
    command.update(elements)
    return dimse.encode_command(command)


async def test_a_large_object_without_a_sop_instance_uid_is_read_to_its_end_and_refused(
    no_leaks: object, engine: Engine, tmp_path: Path
) -> None:
    instance = large(3 * MEBIBYTE)
    command = store_command(instance, AffectedSOPInstanceUID="")
    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, engine=engine) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            agreed = await wire.associate(STORAGE)
            await wire.send(pdu.encode_message(1, command, instance.dataset, max_length=agreed.max_length))
            assert (await wire.receive_message()).command.status == 0xC000
    assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []


async def test_an_object_beyond_the_cap_is_cut_and_leaves_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen
) -> None:
    instance = large(8 * MEBIBYTE)
    async with Archive(tmp_path / "archive") as archive:
        async with StorageSCP(archive, port=0, engine=engine, max_object_size=4 * MEBIBYTE, observer=seen) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                agreed = await wire.associate(STORAGE)
                encoded = pdu.encode_message(1, store_command(instance), instance.dataset, max_length=agreed.max_length)
                # Somewhere in it we are cut off.
                with contextlib.suppress(OperationError):
                    await wire.send(encoded)
            await seen.settled()
    assert await anyio.to_thread.run_sync(files_of, tmp_path / "archive") == []
    assert seen.aborted == {"too_large": 1}


async def test_the_native_engine_takes_any_size_in_little_memory(no_leaks: object, tmp_path: Path) -> None:
    """Bar P11 in small: 200 MB cost far less than their size."""
    instance = large(200 * MEBIBYTE)
    async with Archive(tmp_path / "archive", durability="none") as archive, StorageSCP(archive, port=0) as scp:
        async with await Wire.connect("127.0.0.1", scp.port, timeout=30) as wire:
            agreed = await wire.associate(STORAGE)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await wire.send(pdu.encode_message(1, store_command(instance), None, max_length=agreed.max_length))
            for part in pdu.encode_data(1, instance.dataset, command=False, max_length=agreed.max_length):
                await wire.send(part)
            assert (await wire.receive_message()).command.status == 0x0000
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 32 * MEBIBYTE
