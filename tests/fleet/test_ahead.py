"""Files are read before their turn, in their order, and no more of them than a helping."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest

from asyncdicom import Instance
from asyncdicom.fleet.ahead import ReadAhead
from asyncdicom.testing import synthetic_study


async def instances(folder: Path, count: int, rows: int = 8) -> list[Instance]:
    def write() -> list[Instance]:
        made = []
        for uid, data in synthetic_study(count, rows, 8):
            (folder / uid).write_bytes(data)
            made.append(Instance.read(folder / uid))
        return made

    return await anyio.to_thread.run_sync(write)


async def test_they_come_loaded_and_in_their_order(tmp_path: Path, no_leaks: object) -> None:
    made = await instances(tmp_path, 50)
    ahead = ReadAhead(made)
    come = [await ahead.next() for _ in made]
    assert [instance.sop_instance_uid for instance in come] == [instance.sop_instance_uid for instance in made]
    assert all(instance.data is not None for instance in come)
    with pytest.raises(IndexError):
        await ahead.next()


async def test_a_large_one_stays_in_its_file(tmp_path: Path, no_leaks: object) -> None:
    (large,) = await instances(tmp_path, 1, rows=65_535)
    assert large.size > 1 << 20
    assert (await ReadAhead([large]).next()).data is None


async def test_one_that_cannot_be_read_comes_as_it_is(tmp_path: Path, no_leaks: object) -> None:
    made = await instances(tmp_path, 3)
    await anyio.to_thread.run_sync((tmp_path / made[1].sop_instance_uid).unlink)
    ahead = ReadAhead(made)
    assert [(await ahead.next()).data is None for _ in made] == [False, True, False]
