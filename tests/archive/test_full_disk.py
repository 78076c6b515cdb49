"""No space (R4): 0xA700, nothing left, and at work again as soon as there is space."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from asyncdicom.archive import Archive
from asyncdicom.archive.space import Space
from asyncdicom.errors import ArchiveFull
from tests.archive.instances import files_in, one, sha256, study
from tests.peers.fixtures import give_up

_SIZE = 3 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(disk)], capture_output=True, text=True)
    if mount.returncode:
        give_up(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("index", ["elsewhere", "on the disk", None])
async def test_a_full_disk_gets_0xa700_and_stores_again_as_soon_as_there_is_space(
    tmp_path: Path, small_disk: Path, index: str | None, log: list[str], no_leaks: object
) -> None:
    folder = small_disk if index == "on the disk" else tmp_path
    spec = f"sqlite:{folder}/index/index.db" if index else None
    instances = study(80, rows=4096)
    root = small_disk / "archive"
    async with Archive(root, index=spec) as archive:
        # Some while there is space: an index on the same disk can lose the race for the last of it to the files, and then all
        # that wait for one commit are refused.
        results = [await archive.store(instance) for instance in instances[:12]]
        results += await asyncio.gather(*(archive.store(instance) for instance in instances[12:]))
        assert {int(result.status) for result in results[:12]} == {0}
        acknowledged = {instance.encoded for instance, result in zip(instances, results, strict=True) if result.status == 0}
        assert {int(result.status) for result in results} == {0, 0xA700}
        assert [result.path for result in results if result.status] == [None] * (80 - len(acknowledged))
        assert set((await files_in(root)).values()) == acknowledged
        assert all("no space is left" in line or "index" in line for line in log)
        # Whatever is removed: a store that follows at once succeeds.
        for path in list(await files_in(root))[:10]:
            await anyio.to_thread.run_sync((root / path).unlink)
        started = time.monotonic()
        fresh = one(seed="fresh", rows=4096)
        assert (await archive.store(fresh)).status == 0
        assert time.monotonic() - started < 1
        if archive.index is not None:
            (row,) = await archive.index.instances(sop_instance_uid=fresh.sop_instance_uid)
            assert row.sha256 == sha256(fresh)


async def test_less_than_the_floor_gets_0xa700_and_is_asked_for_again_at_once(
    small_disk: Path, log: list[str], no_leaks: object
) -> None:
    instances = study(60, rows=4096)
    root = small_disk / "archive"
    async with Archive(root, min_free=1 << 20) as archive:
        results = [await archive.store(instance) for instance in instances]
        stored = [result for result in results if result.status == 0]
        assert {int(result.status) for result in results} == {0, 0xA700}
        free = await anyio.to_thread.run_sync(archive.free_bytes)
        assert (1 << 20) - (128 << 10) < free < (1 << 20) + (256 << 10)
        assert "1048576 bytes would stay free" in log[0]
        for result in stored[:5]:
            assert result.path is not None
            await anyio.to_thread.run_sync(result.path.unlink)
        assert (await archive.store(one(seed="fresh", rows=4096))).status == 0


def test_a_free_space_check_does_not_ask_the_file_system_every_time(tmp_path: Path) -> None:
    asked = []
    descriptor = os.open(tmp_path, os.O_RDONLY)

    def ask() -> int:
        asked.append(1)
        return descriptor

    try:
        space = Space(ask, 1 << 20)
        started = time.monotonic()
        for _ in range(1000):
            space.take(1000)
        assert len(asked) <= 2 + (time.monotonic() - started)
        never = Space(ask, 1 << 60)
        with pytest.raises(ArchiveFull):
            never.take(1)
        asked.clear()
        Space(ask, 0).take(1 << 62)
        assert asked == []
    finally:
        os.close(descriptor)


async def test_free_bytes_are_those_of_the_file_system(small_disk: Path, no_leaks: object) -> None:
    async with Archive(small_disk / "archive") as archive:
        free = await anyio.to_thread.run_sync(archive.free_bytes)
        assert _SIZE // 2 < free <= _SIZE
