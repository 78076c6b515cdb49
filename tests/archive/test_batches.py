"""Small instances share what the disk charges by the piece, a folder's sync and a commit; and nobody fails for a neighbour."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asyncdicom import Archive
from asyncdicom.archive import keeper
from asyncdicom.archive.contract import Stored
from asyncdicom.archive.folders import Folders
from asyncdicom.association.received import Received
from tests.archive.instances import files_in, study


def _archive(tmp_path: Path) -> Archive:
    index = f"sqlite:{tmp_path / 'index.db'}"
    return Archive(tmp_path / "archive", index=index, layout="{StudyInstanceUID}/{SOPInstanceUID}.dcm")


class _Disk:
    """Stands before the disk's syncs: counts them, delays them, has them fail.

    :ivar folders: those that were synced, in order
    :ivar at_once: how many files were being synced at once, at the most
    :ivar before: called before a file is synced
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: list[str] = []
        self.failing: set[str] = set()
        self.at_once = 0
        self.before: Callable[[], object] = lambda: None
        self._now = 0
        self._lock = threading.Lock()
        self._sync_file, self._sync_folder = os.fdatasync, Folders.sync
        monkeypatch.setattr(os, "fdatasync", self._file)
        monkeypatch.setattr(Folders, "sync", lambda folders, folder: self._folder(folders, folder))

    def _folder(self, folders: Folders, folder: str) -> None:
        self.folders.append(folder)
        if folder in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync_folder(folders, folder)

    def _file(self, descriptor: int) -> None:
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        self.before()
        self._sync_file(descriptor)
        with self._lock:
            self._now -= 1


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk of this machine is now, one thread does it all."""
    monkeypatch.setattr(keeper, "_WORTH_A_THREAD", 3600.0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> _Disk:
    return _Disk(monkeypatch)


async def _while_busy(archive: Archive, disk: _Disk, first: Received, others: Sequence[Received]) -> list[Stored]:
    """Store some while the disk is busy with the first: they come to be one batch."""
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go.wait(10)

    disk.before = hold
    stores = [asyncio.create_task(archive.store(first))]
    while not busy.is_set():
        await asyncio.sleep(0.001)
    stores += [asyncio.create_task(archive.store(other)) for other in others]
    assert archive._keeper is not None
    while len(archive._keeper._waiting) < len(others):
        await asyncio.sleep(0.001)
    disk.before = lambda: None
    disk.folders.clear()
    go.set()
    return list(await asyncio.gather(*stores))


def _folder(stored: Stored) -> str:
    assert stored.path is not None
    return stored.path.parent.name


async def test_what_came_while_the_disk_was_busy_shares_one_sync_of_its_folder(
    tmp_path: Path, disk: _Disk, one_thread: None
) -> None:
    before, first, *others = study(10)
    async with _archive(tmp_path) as archive:
        # The folder itself is made durable by whoever needs it first.
        folder = _folder(await archive.store(before))
        stored = await _while_busy(archive, disk, first, others)
    assert {each.status for each in stored} == {0}
    assert disk.folders == [folder, folder], "one for the first, one for the eight that came meanwhile"
    assert len(await files_in(tmp_path / "archive")) == 10


async def test_a_folder_that_cannot_be_synced_refuses_its_own_alone(tmp_path: Path, disk: _Disk, one_thread: None) -> None:
    first, *healthy = study(5, seed="healthy")
    ill = study(4, seed="ill")
    async with _archive(tmp_path) as archive:
        folder = _folder(await archive.store(ill.pop()))
        disk.failing.add(folder)
        stored = await _while_busy(archive, disk, first, [*healthy[:2], *ill, *healthy[2:]])
        assert [each.status for each in stored] == [0, 0, 0, 0xA700, 0xA700, 0xA700, 0, 0]
        assert archive.index is not None
        for refused in ill:
            assert await archive.index.instances(sop_instance_uid=refused.sop_instance_uid) == []
    assert len(await files_in(tmp_path / "archive")) == 6, "what was refused is gone"


async def test_the_more_threads_wait_for_a_disk_the_slower_it_is(tmp_path: Path, disk: _Disk) -> None:
    disk.before = lambda: time.sleep(0.005)
    async with _archive(tmp_path) as archive:
        # A disk is believed to be fast until it has shown what it is.
        await asyncio.gather(*(archive.store(instance) for instance in study(32, seed="first")))
        disk.at_once = 0
        stored = await asyncio.gather(*(archive.store(instance) for instance in study(64, seed="then")))
    assert {each.status for each in stored} == {0}
    # All eight of them, but on a machine that has other work.
    assert disk.at_once > 4


@pytest.mark.parametrize("rows", [8, 8192], ids=["small", "large"])
async def test_a_system_that_gives_no_more_threads_costs_no_instance(
    tmp_path: Path, disk: _Disk, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go.wait(10)

    # Another thread is always worth its while.
    monkeypatch.setattr(keeper, "_WORTH_A_THREAD", 1e-9)
    before, first, *others = study(7, rows=rows)
    async with _archive(tmp_path) as archive:
        await archive.store(before)
        disk.before = hold
        stores = [asyncio.create_task(archive.store(first))]
        while not busy.is_set():
            await asyncio.sleep(0.001)
        disk.before = lambda: None
        with monkeypatch.context() as patched:
            # So says a system at its limit of tasks; no thread of the archive is idle.
            patched.setattr(threading.Thread, "start", refuse)
            stores += [asyncio.create_task(archive.store(other)) for other in others]
            await asyncio.sleep(0)
            go.set()
            stored = await asyncio.wait_for(asyncio.gather(*stores), 5)
    assert {each.status for each in stored} == {0}
    assert len(await files_in(tmp_path / "archive")) == 7
