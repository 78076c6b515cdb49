"""Bytes in a folder: with and without unnamed files, after a life that ended badly, and where somebody meddles."""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
from pathlib import Path

import anyio.to_thread
import pytest

import asyncdicom.archive.archive as composition
from asyncdicom.archive import Archive
from asyncdicom.archive.directory import Directory
from tests.archive.instances import altered, everything_in, files_in, folders_in, one, study, with_attributes


@pytest.fixture(params=[True, False], ids=["unnamed", "temporary-names"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each way of writing in turn, for every archive that is made."""
    chosen: bool = request.param
    monkeypatch.setattr(composition, "Directory", functools.partial(Directory, unnamed=chosen))
    return chosen


def _directory(root: Path, **settings: object) -> Directory:
    directory = Directory(root, durability="full", **settings)  # type: ignore[arg-type]
    directory.open()
    return directory


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096])
def test_an_object_is_written_whole_or_refused_by_its_name(tmp_path: Path, data: bytes, unnamed: bool) -> None:
    directory = _directory(tmp_path, unnamed=unnamed)
    try:
        directory.create("a/b/c.dcm", b"head", [data], [])
        with pytest.raises(FileExistsError):
            directory.create("a/b/c.dcm", b"head", [b"other"], [])
        directory.replace("a/b/c.dcm", b"head", [data * 2], [], undoable=True)
        directory.restore("a/b/c.dcm")
        assert everything_in(tmp_path) == {"a/b/c.dcm": b"head" + data}
        directory.replace("a/b/c.dcm", b"head", [data * 2], [], undoable=True)
        directory.forget("a/b/c.dcm")
        assert everything_in(tmp_path) == {"a/b/c.dcm": b"head" + data * 2}
        directory.remove("a/b/c.dcm")
    finally:
        directory.close()
    assert everything_in(tmp_path) == {}
    assert folders_in(tmp_path) == []


@pytest.mark.parametrize("most", [1, 3, 4, 5, 1000])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    whole_write = os.writev

    def short_write(descriptor: int, parts: list[memoryview]) -> int:
        # As the kernel does beyond 2 GiB, after a signal, or at the end of a disk.
        return whole_write(descriptor, [b"".join(parts)[:most]])

    monkeypatch.setattr(os, "writev", short_write)
    directory = _directory(tmp_path)
    try:
        directory.create("a.dcm", b"head", [b"and ", b"", b"the data"], [])
    finally:
        directory.close()
    assert everything_in(tmp_path) == {"a.dcm": b"headand the data"}


def test_nothing_but_the_objects_is_there_at_any_time_in_between(tmp_path: Path, unnamed: bool) -> None:
    directory = _directory(tmp_path, unnamed=unnamed)
    try:
        directory.create("a/1.dcm", b"head", [b"data"], [])
        assert set(everything_in(tmp_path)) == {"a/1.dcm"}
    finally:
        directory.close()
    assert folders_in(tmp_path) == ["a"]


def test_files_and_folders_are_not_for_everybody(tmp_path: Path, unnamed: bool) -> None:
    directory = _directory(tmp_path / "archive", unnamed=unnamed)
    try:
        directory.create("a/1.dcm", b"head", [b"data"], [])
    finally:
        directory.close()
    for path in (tmp_path / "archive", tmp_path / "archive" / "a", tmp_path / "archive" / "a" / "1.dcm"):
        assert not path.stat().st_mode & 0o007


async def test_the_index_is_not_for_everybody(tmp_path: Path) -> None:
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        assert (await archive.store(one())).status == 0
        made = await anyio.to_thread.run_sync(
            lambda: {path.name: path.stat().st_mode & 0o007 for path in tmp_path.glob("index.db*")}
        )
    assert made == dict.fromkeys(("index.db", "index.db-wal", "index.db-shm", "index.db.lock"), 0)


async def test_what_an_earlier_life_had_not_named_is_swept(tmp_path: Path, unnamed: bool, no_leaks: object) -> None:
    archive = tmp_path / "archive"

    def leave() -> None:
        (archive / ".incoming" / "aside" / "1.2" / "3.4").mkdir(parents=True)
        (archive / ".incoming" / "0").write_bytes(b"half of it")
        (archive / ".incoming" / "17").write_bytes(b"")

    await anyio.to_thread.run_sync(leave)
    async with Archive(archive) as opened:
        assert await files_in(archive) == {}
        assert await anyio.to_thread.run_sync(folders_in, archive) == []
        assert (await opened.store(one())).status == 0


@pytest.mark.parametrize("committed", [True, False])
async def test_a_replacement_that_was_cut_is_decided_by_the_index(tmp_path: Path, committed: bool, no_leaks: object) -> None:
    first, second = altered(one(), 1), altered(one(), 2)
    index = tmp_path / "index.db"
    settings = {"duplicates": "replace", "index": f"sqlite:{index}"}
    async with Archive(tmp_path / "archive", **settings) as archive:  # type: ignore[arg-type]
        stored = await archive.store(first)
        if committed:
            await archive.store(second)
    assert stored.path is not None
    aside = tmp_path / "archive" / ".incoming" / "aside" / stored.path.relative_to(tmp_path / "archive")

    def cut(path: Path) -> None:
        # As it lies there between the renaming and what follows the commit.
        aside.parent.mkdir(parents=True)
        aside.write_bytes(first.encoded)
        path.write_bytes(second.encoded)

    await anyio.to_thread.run_sync(cut, stored.path)
    async with Archive(tmp_path / "archive", **settings) as archive:  # type: ignore[arg-type]
        assert list((await files_in(tmp_path / "archive")).values()) == [(second if committed else first).encoded]
        assert await anyio.to_thread.run_sync((tmp_path / "archive" / ".incoming").exists) is False
        assert (await archive.store(second)).duplicate == ("identical" if committed else "replaced")


async def test_a_replacement_that_was_cut_before_the_renaming_is_undone(tmp_path: Path, no_leaks: object) -> None:
    first = one()
    settings = {"duplicates": "replace", "index": f"sqlite:{tmp_path}/index.db", "outbox": True}
    async with Archive(tmp_path / "archive", **settings) as archive:  # type: ignore[arg-type]
        stored = await archive.store(first)
    assert stored.path is not None
    aside = tmp_path / "archive" / ".incoming" / "aside" / stored.path.relative_to(tmp_path / "archive")

    def cut(path: Path) -> None:
        aside.parent.mkdir(parents=True)
        aside.hardlink_to(path)

    await anyio.to_thread.run_sync(cut, stored.path)
    async with Archive(tmp_path / "archive", **settings):  # type: ignore[arg-type]
        assert list((await files_in(tmp_path / "archive")).values()) == [first.encoded]


async def test_a_row_that_came_back_without_its_file_is_removed_at_opening(tmp_path: Path, log: list[str]) -> None:
    index = f"sqlite:{tmp_path}/index.db"
    kept, lost = study(2)
    async with Archive(tmp_path / "archive", index=index) as archive:
        await archive.store(kept)
        stored = await archive.store(lost)
    assert stored.path is not None
    await anyio.to_thread.run_sync(stored.path.unlink)
    async with Archive(tmp_path / "archive", index=index) as archive:
        assert archive.index is not None
        assert await archive.index.instances(sop_instance_uid=lost.sop_instance_uid) == []
        assert len(await archive.index.instances(sop_instance_uid=kept.sop_instance_uid)) == 1
        assert (await archive.index.study_counts(kept.dataset.StudyInstanceUID)).instances == 1
    assert "1 instances are indexed whose files are gone" in log[0]


@pytest.mark.parametrize("index", [True, False])
async def test_a_symbolic_link_does_not_lead_outside(tmp_path: Path, index: bool, log: list[str], unnamed: bool) -> None:
    outside = tmp_path / "outside"
    instance = with_attributes(StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1")

    def meddle() -> None:
        outside.mkdir()
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive" / "1.1").symlink_to(outside)

    await anyio.to_thread.run_sync(meddle)
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    async with Archive(tmp_path / "archive", index=spec) as archive:
        assert (await archive.store(instance)).status == 0xA700
        assert await files_in(outside) == {}
        assert await anyio.to_thread.run_sync(folders_in, outside) == []
        assert "outside" in log[0]
        assert (await archive.store(one())).status == 0


async def test_a_symbolic_link_in_place_of_a_file_is_not_followed(tmp_path: Path, unnamed: bool) -> None:
    instance = with_attributes(StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1")
    secret = tmp_path / "secret"

    def meddle() -> None:
        secret.write_bytes(b"secret")
        (tmp_path / "archive" / "1.1" / "1.1.1").mkdir(parents=True)
        (tmp_path / "archive" / "1.1" / "1.1.1" / "1.2.3.dcm").symlink_to(secret)

    await anyio.to_thread.run_sync(meddle)
    async with Archive(tmp_path / "archive", duplicates="replace") as archive:
        assert (await archive.store(instance)).status == 0xA700
    assert (await files_in(tmp_path))["secret"] == b"secret"


async def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, unnamed: bool) -> None:
    instance = with_attributes(StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1")

    def meddle() -> None:
        (tmp_path / "archive" / "1.1" / "1.1.1").mkdir(parents=True)
        (tmp_path / "archive" / "1.1" / "1.1.1" / "1.2.3.dcm").write_bytes(b"no DICOM file")

    await anyio.to_thread.run_sync(meddle)
    async with Archive(tmp_path / "archive", duplicates="replace") as archive:
        assert (await archive.store(instance)).status == 0
        assert (await archive.store(instance)).duplicate == "identical"
    assert sorted((await files_in(tmp_path / "archive")).values()) == sorted([b"no DICOM file", instance.encoded])


@pytest.mark.parametrize("index", [True, False])
async def test_a_directory_that_is_removed_gets_0xa700_until_it_is_there_again(
    tmp_path: Path, index: bool, unnamed: bool, log: list[str], no_leaks: object
) -> None:
    first, second, third = study(3)
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    async with Archive(tmp_path / "archive", index=spec) as archive:
        assert (await archive.store(first)).status == 0
        await anyio.to_thread.run_sync(shutil.rmtree, tmp_path / "archive")
        assert (await archive.store(second)).status == 0xA700
        assert await anyio.to_thread.run_sync((tmp_path / "archive").exists) is False
        assert "ENOENT" in log[0]
        await anyio.to_thread.run_sync((tmp_path / "archive").mkdir)
        assert (await archive.store(third)).status == 0
        assert list((await files_in(tmp_path / "archive")).values()) == [third.encoded]


async def test_a_folder_that_is_removed_by_hand_is_made_again(tmp_path: Path, unnamed: bool) -> None:
    first, second = study(2)
    async with Archive(tmp_path / "archive") as archive:
        stored = await archive.store(first)
        assert stored.path is not None
        await anyio.to_thread.run_sync(shutil.rmtree, stored.path.parent)
        assert (await archive.store(second)).status == 0
    assert list((await files_in(tmp_path / "archive")).values()) == [second.encoded]


async def test_an_index_that_cannot_commit_takes_the_file_back(tmp_path: Path, log: list[str], no_leaks: object) -> None:
    first, second = altered(one(), 1), altered(one(), 2)
    settings = {"duplicates": "replace", "index": f"sqlite:{tmp_path}/index.db", "outbox": True}

    def refuse(event: str) -> None:
        with sqlite3.connect(tmp_path / "index.db") as connection:
            connection.execute(f"CREATE TRIGGER refuse BEFORE {event} BEGIN SELECT RAISE(ABORT, 'refused'); END")
        connection.close()

    def allow() -> None:
        with sqlite3.connect(tmp_path / "index.db") as connection:
            connection.execute("DROP TRIGGER refuse")
        connection.close()

    async with Archive(tmp_path / "archive", **settings) as archive:  # type: ignore[arg-type]
        await anyio.to_thread.run_sync(refuse, "INSERT ON instances")
        assert (await archive.store(first)).status == 0xA700
        assert await files_in(tmp_path / "archive") == {}
        assert await anyio.to_thread.run_sync(folders_in, tmp_path / "archive") == []
        await anyio.to_thread.run_sync(allow)
        assert (await archive.store(first)).status == 0
        await anyio.to_thread.run_sync(refuse, "INSERT ON outbox")
        assert (await archive.store(second)).status == 0xA700
        assert list((await files_in(tmp_path / "archive")).values()) == [first.encoded]
        await anyio.to_thread.run_sync(allow)
        assert (await archive.store(second)).duplicate == "replaced"
        assert list((await files_in(tmp_path / "archive")).values()) == [second.encoded]
    assert len(log) == 2
    assert all("did not commit" in line for line in log)
