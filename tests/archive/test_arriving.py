"""Datasets too large for memory are written as they arrive, and are then kept by the same rules as all others."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import asyncdicom.archive.archive as composition
from asyncdicom.archive import Archive, Arriving, Stored
from asyncdicom.archive.contract import DUPLICATES, Duplicates
from asyncdicom.archive.directory import Directory
from asyncdicom.association.received import Received
from tests.archive.instances import altered, files_in, one, sha256
from tests.archive.test_full_disk import small_disk  # noqa: F401 - a fixture
from tests.archive.test_store import Recorder

INDEXED = pytest.mark.parametrize("indexed", [True, False], ids=["index", "no-index"])
OUTCOMES = {"keep-first": "kept", "replace": "replaced", "keep-all": "added", "reject": "rejected"}


@pytest.fixture(params=["unnamed", "named"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts without a name, and with a temporary one."""
    if request.param == "named":
        monkeypatch.setattr(composition, "Directory", functools.partial(Directory, unnamed=False))


def archive_in(folder: Path, indexed: bool, duplicates: Duplicates = "keep-first", **settings: object) -> Archive:
    index = f"sqlite:{folder}/index.db" if indexed else None
    return Archive(folder / "archive", duplicates=duplicates, index=index, **settings)  # type: ignore[arg-type]


def with_data(instance: Received, data: bytes) -> Received:
    other = copy.copy(instance)
    other.parts = (data,)
    return other


def parts_of(instance: Received, size: int = 1_000) -> Iterator[memoryview]:
    view = memoryview(instance.data)
    for at in range(0, len(view), size):
        yield view[at : at + size]


def begun(archive: Archive, instance: Received) -> Arriving:
    return archive.begin(with_data(instance, b""))


async def arrive(archive: Archive, instance: Received, size: int = 1_000) -> Stored:
    arriving = begun(archive, instance)
    for part in parts_of(instance, size):
        await arriving.append([part[:10], part[10:]])
    assert arriving.size == instance.size
    return await arriving.keep()


@INDEXED
async def test_what_arrives_in_parts_is_kept_like_what_arrives_whole(
    tmp_path: Path, indexed: bool, unnamed: None, no_leaks: object
) -> None:
    instance, seen = one(rows=64), Recorder()
    async with archive_in(tmp_path, indexed, observer=seen) as archive:
        stored = await arrive(archive, instance)
        if archive.index is not None:
            (row,) = await archive.index.instances(sop_instance_uid=instance.sop_instance_uid)
            assert (row.size, row.sha256) == (instance.size, sha256(instance))
        assert (stored.status, stored.duplicate) == (0, None)
    assert list((await files_in(tmp_path / "archive")).values()) == [instance.encoded]
    assert seen.steps[:4] == ["write", "sync", "name", "sync_folder"]


@INDEXED
async def test_the_same_bytes_again_are_welcome_however_they_come(
    tmp_path: Path, indexed: bool, unnamed: None, no_leaks: object
) -> None:
    instance = one(rows=64)
    async with archive_in(tmp_path, indexed) as archive:
        first = await archive.store(instance)
        again = await arrive(archive, instance)
        third = await archive.store(instance)
    assert [(s.status, s.duplicate) for s in (first, again, third)] == [(0, None), (0, "identical"), (0, "identical")]
    assert list((await files_in(tmp_path / "archive")).values()) == [instance.encoded]


@INDEXED
@pytest.mark.parametrize("duplicates", DUPLICATES)
async def test_other_bytes_fall_to_the_policy(
    tmp_path: Path, indexed: bool, duplicates: Duplicates, unnamed: None, no_leaks: object
) -> None:
    instance = one(rows=64)
    other = altered(instance, 9)
    async with archive_in(tmp_path, indexed, duplicates) as archive:
        assert (await arrive(archive, instance)).status == 0
        stored = await arrive(archive, other)
    assert stored.duplicate == OUTCOMES[duplicates]
    assert stored.status == (0x0111 if duplicates == "reject" else 0)
    kept = sorted((await files_in(tmp_path / "archive")).values())
    wanted = {"replace": [other.encoded], "keep-all": sorted([instance.encoded, other.encoded])}
    assert kept == wanted.get(duplicates, [instance.encoded])


@INDEXED
async def test_one_uid_that_arrives_many_times_at_once_is_kept_once(tmp_path: Path, indexed: bool, no_leaks: object) -> None:
    instance = one(rows=64)
    async with archive_in(tmp_path, indexed, "replace") as archive:
        offers = [altered(instance, number % 3) for number in range(30)]
        results = await asyncio.gather(*(arrive(archive, offer, 3_000) for offer in offers))
    assert {result.status for result in results} == {0}
    (kept,) = (await files_in(tmp_path / "archive")).values()
    assert kept in {offer.encoded for offer in offers}


async def test_what_is_discarded_leaves_nothing(tmp_path: Path, unnamed: None, no_leaks: object) -> None:
    instance = one(rows=64)
    async with archive_in(tmp_path, True) as archive:
        arriving = begun(archive, instance)
        await arriving.append([instance.data])
        await arriving.discard()
        await arriving.discard()
        left = begun(archive, instance)
        await left.append([instance.data])
    # One was left to the archive, which is closed.
    assert await files_in(tmp_path / "archive") == {}


async def test_a_caller_that_is_cancelled_at_any_time_leaves_nothing(tmp_path: Path, unnamed: None, no_leaks: object) -> None:
    instance = one(rows=512)
    async with archive_in(tmp_path, True) as archive:
        for delay in range(20):
            arriving = begun(archive, instance)
            with anyio.move_on_after(delay / 4_000):
                for part in parts_of(instance, 500):
                    await arriving.append([part])
            await arriving.discard()
    assert await files_in(tmp_path / "archive") == {}


async def test_an_empty_or_a_truncated_dataset_cannot_be_understood(tmp_path: Path, unnamed: None, no_leaks: object) -> None:
    instance = one(rows=64)
    async with archive_in(tmp_path, True) as archive:
        assert (await begun(archive, instance).keep()).status == 0xC000
        cut = with_data(instance, instance.data[:101])
        assert (await arrive(archive, cut)).status == 0xC000
    assert await files_in(tmp_path / "archive") == {}


async def test_no_space_on_the_way_is_answered_at_the_end_and_leaves_nothing(
    tmp_path: Path,
    small_disk: Path,  # noqa: F811
    no_leaks: object,
) -> None:
    instance = one(rows=64)
    big = with_data(instance, bytes(instance.data) + bytes(8 << 20))
    async with Archive(small_disk / "archive", index=f"sqlite:{tmp_path}/index.db") as archive:
        assert (await arrive(archive, big, 1 << 20)).status == 0xA700
        assert await files_in(small_disk / "archive") == {}
        assert (await arrive(archive, instance)).status == 0


async def test_the_floor_of_free_space_holds_for_what_arrives_in_parts(tmp_path: Path, no_leaks: object) -> None:
    instance = one(rows=64)
    async with Archive(tmp_path / "archive", min_free=1 << 60) as archive:
        assert (await arrive(archive, instance)).status == 0xA700
    assert await files_in(tmp_path / "archive") == {}


async def test_a_closed_archive_refuses(tmp_path: Path) -> None:
    instance = one(rows=64)
    async with Archive(tmp_path / "archive") as archive:
        pass
    assert (await arrive(archive, instance)).status == 0xA700
