"""What a store promises: the bytes as received, under their final name, before success is said."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import anyio
import pytest
from pydicom import dcmread

from asyncdicom.archive import Archive, Stored
from asyncdicom.association.received import Received
from asyncdicom.errors import ArchiveError, ConfigurationError
from asyncdicom.observe import Observer
from tests.archive.instances import files_in, one, sha256, study, with_attributes


class Recorder(Observer):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.duplicates: list[str] = []

    def write_step(self, step: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.steps.append(step)

    def duplicate(self, outcome: str) -> None:
        self.duplicates.append(outcome)


async def test_the_file_holds_the_bytes_as_received_after_file_meta_information(tmp_path: Path, no_leaks: object) -> None:
    instance = one()
    async with Archive(tmp_path / "archive") as archive:
        stored = await archive.store(instance)
    assert stored.status == 0x0000
    assert stored.duplicate is None
    ((path, encoded),) = (await files_in(tmp_path / "archive")).items()
    assert tmp_path / "archive" / path == stored.path == instance.path
    assert encoded == instance.header + bytes(instance.data)
    dataset = dcmread(BytesIO(encoded))
    assert path == f"{dataset.StudyInstanceUID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm"
    assert dataset.file_meta.SourceApplicationEntityTitle == "CT1"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_can_be_stored(tmp_path: Path, kind: type) -> None:
    instance = one()
    expected = instance.encoded
    instance.parts = (kind(bytes(instance.data)),)
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db") as archive:
        stored = await archive.store(instance)
        again = await archive.store(instance)
    assert (stored.status, again.duplicate) == (0, "identical")
    assert list((await files_in(tmp_path / "archive")).values()) == [expected]


async def test_a_stored_instance_is_in_the_index_when_success_is_said(tmp_path: Path, no_leaks: object) -> None:
    instance = one()
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db") as archive:
        stored = await archive.store(instance)
        assert archive.index is not None
        (entry,) = await archive.index.instances(sop_instance_uid=instance.sop_instance_uid)
        assert archive.directory / entry.path == stored.path
        assert (entry.size, entry.sha256) == (len(instance.data), sha256(instance))
        assert (entry.calling_ae_title, entry.peer_address) == ("CT1", "127.0.0.1")
        assert (entry.patient_id, entry.modality, entry.study_date) == ("ASYNCDICOM-TEST", "CT", "20000101")


@pytest.mark.parametrize(
    ("durability", "steps"),
    [
        ("full", ["write", "sync", "name", "sync_folder", "index"]),
        ("file", ["write", "sync", "name", "index"]),
        ("none", ["write", "name", "index"]),
    ],
)
async def test_every_step_is_observed_in_the_order_of_the_promise(tmp_path: Path, durability: str, steps: list[str]) -> None:
    seen = Recorder()
    index = f"sqlite:{tmp_path}/index.db"
    async with Archive(tmp_path / "archive", durability=durability, index=index, observer=seen) as archive:  # type: ignore[arg-type]
        await archive.store(one())
    assert seen.steps == steps


async def test_many_stores_at_once_all_succeed(tmp_path: Path, no_leaks: object) -> None:
    instances = study(200)
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db") as archive:
        results = await asyncio.gather(*(archive.store(instance) for instance in instances))
        assert archive.index is not None
        counts = await archive.index.study_counts(instances[0].dataset.StudyInstanceUID)
    assert {result.status for result in results} == {0}
    assert (counts.series, counts.instances) == (1, 200)
    assert counts.size == sum(instance.size for instance in instances)
    assert sorted((await files_in(tmp_path / "archive")).values()) == sorted(instance.encoded for instance in instances)


@pytest.mark.parametrize("index", [True, False])
async def test_what_cannot_be_understood_gets_0xc000_and_leaves_nothing(tmp_path: Path, index: bool, no_leaks: object) -> None:
    instance = one()
    bad = [
        b"",
        b"\0" * 4096,
        b"no dicom at all, but text",
        bytes(instance.data)[:100],
        bytes(with_attributes(SOPInstanceUID="").data),
    ]
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    async with Archive(tmp_path / "archive", index=spec) as archive:
        for data in bad:
            stored = await archive.store(Received(data, "1.2.3", "1.2.3.4", "1.2.840.10008.1.2.1"))
            assert stored == Stored(stored.status)
            assert stored.status == 0xC000
        for uid in ("", "1.2.\N{GREEK SMALL LETTER ALPHA}", "1" * 70_000):
            assert (await archive.store(Received(instance.data, "1.2.3", uid, "1.2.840.10008.1.2.1"))).status == 0xC000
        assert await files_in(tmp_path / "archive") == {}
        assert (await archive.store(instance)).status == 0x0000


@pytest.mark.parametrize("index", [True, False])
async def test_a_cancelled_store_ends_one_way_or_the_other(tmp_path: Path, index: bool, no_leaks: object) -> None:
    instances = study(60, rows=64)
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    async with Archive(tmp_path / "archive", index=spec) as archive:
        for number, instance in enumerate(instances):
            with anyio.move_on_after(number * 0.0002):
                await archive.store(instance)
            # The buffer is the caller's again: what becomes of it must not reach the disk.
            instance.parts = (bytes(len(instance.data)),)
        stored = await files_in(tmp_path / "archive")
        if archive.index is not None:
            rows = [row for each in instances for row in await archive.index.instances(sop_instance_uid=each.sop_instance_uid)]
            assert sorted(row.path for row in rows) == sorted(stored)
    for uid, encoded in ((one_of.sop_instance_uid, one_of.encoded) for one_of in study(60, rows=64)):
        assert [data for path, data in stored.items() if uid in path] in ([], [encoded])


async def test_a_store_that_is_cancelled_twice_still_returns_the_buffer_first(tmp_path: Path, no_leaks: object) -> None:
    instance = one(rows=512)
    async with Archive(tmp_path / "archive") as archive:
        task = asyncio.create_task(archive.store(instance))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert repr(archive).endswith("0 under way>")
    assert list((await files_in(tmp_path / "archive")).values()) == [instance.encoded]


async def test_closing_waits_for_what_is_under_way(tmp_path: Path, no_leaks: object) -> None:
    instances = study(40)
    archive = Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db")
    async with archive:
        tasks = [asyncio.create_task(archive.store(instance)) for instance in instances]
        await asyncio.sleep(0)
    assert {task.result().status for task in tasks} == {0}
    with pytest.raises(RuntimeError, match="not open"):
        await archive.store(instances[0])
    with pytest.raises(ArchiveError, match="not open"):
        archive.free_bytes()


@pytest.mark.parametrize("moment", [0, 1, 2, 5, 10])
async def test_opening_that_is_cancelled_leaves_nothing(tmp_path: Path, moment: int, no_leaks: object) -> None:
    async def use() -> None:
        async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db"):
            await asyncio.sleep(60)

    for _ in range(5):
        task = asyncio.create_task(use())
        for _ in range(moment):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.sleep(0)
        # Once more, while it is closing.
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db") as archive:
        assert (await archive.store(one())).status == 0


async def test_an_archive_can_be_opened_again(tmp_path: Path, no_leaks: object) -> None:
    archive = Archive(tmp_path / "archive", index=f"sqlite:{tmp_path}/index.db")
    for instance in study(3):
        async with archive:
            assert (await archive.store(instance)).status == 0
    assert len(await files_in(tmp_path / "archive")) == 3


async def test_two_archives_cannot_have_one_directory_or_one_index(tmp_path: Path, no_leaks: object) -> None:
    index = f"sqlite:{tmp_path}/index.db"
    async with Archive(tmp_path / "archive", index=index):
        with pytest.raises(ConfigurationError, match=r"archive\.directory.*in use by another process"):
            async with Archive(tmp_path / "archive"):
                pass
        with pytest.raises(ConfigurationError, match=r"archive\.index.*in use by another process"):
            async with Archive(tmp_path / "other", index=index):
                pass
    async with Archive(tmp_path / "archive", index=index):
        pass


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("durability", "some", "archive.durability"),
        ("duplicates", "drop", "archive.duplicates"),
        ("min_free", -1, "archive.min_free"),
        ("threads", 0, "archive.threads"),
        ("index", "mysql:x", "archive.index"),
        ("index", "sqlite:", "archive.index"),
        ("index", "postgresql://user:secret@host/db", "archive.index"),
        ("layout", "{StudyInstanceUID}", "archive.layout"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, setting: str, value: object, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Archive(tmp_path, **{setting: value})  # type: ignore[arg-type]
    assert caught.value.path == named
    assert "secret" not in str(caught.value)


def test_postgresql_is_said_to_come_later(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not supported yet"):
        Archive(tmp_path, index="postgresql://localhost/x")
    assert Archive(tmp_path, index="none").index is None


async def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path, no_leaks: object) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"archive\.directory"):
        async with Archive(tmp_path / "file" / "archive"):
            pass
