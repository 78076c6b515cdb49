"""Verification finds every difference, beside a service at work; opening settles what an earlier life left unsaid."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest

from asyncdicom import Archive
from asyncdicom.archive import verification
from asyncdicom.archive.verification import Difference, Progress, verify
from asyncdicom.errors import ConfigurationError
from tests.archive.instances import files_in, one, study, with_attributes


def _archive(tmp_path: Path, layout: str | None = None) -> Archive:
    settings = {} if layout is None else {"layout": layout}
    return Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}", **settings)


async def _verified(tmp_path: Path) -> tuple[dict[str, Difference], Progress]:
    progress = Progress()
    found = [one async for one in verify(tmp_path / "archive", tmp_path / "index.db", progress)]
    return {difference.path: difference for difference in found}, progress


@pytest.fixture(autouse=True)
def everything_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a moment ago count."""
    monkeypatch.setattr(verification, "_SETTLED", -60.0)


async def _change(path: Path, how: Callable[[Path], object]) -> None:
    await anyio.to_thread.run_sync(how, path)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _spoil_header(path: Path) -> None:
    path.write_bytes(b"x" * 200 + path.read_bytes()[200:])


async def test_an_archive_that_is_whole_has_no_difference_also_while_a_service_is_at_work(
    tmp_path: Path, no_leaks: object
) -> None:
    async with _archive(tmp_path) as archive:
        instances = [*study(20), with_attributes("1.2.9")]
        for instance in instances:
            await archive.store(instance)
        found, progress = await _verified(tmp_path)
    assert found == {}
    assert (progress.expected, progress.read, progress.files) == (21, 21, 21)
    assert progress.size == sum(instance.size for instance in instances)
    assert (await _verified(tmp_path))[0] == {}


async def test_every_kind_of_difference_is_found(tmp_path: Path, no_leaks: object) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "intact": lambda path: None,
        "flipped": _flip,
        "cut": _cut,
        "spoilt": _spoil_header,
        "gone": Path.unlink,
    }
    paths: dict[str, str] = {}
    async with _archive(tmp_path) as archive:
        for (name, change), instance in zip(changes.items(), study(5), strict=True):
            path = (await archive.store(instance)).path
            assert path is not None
            paths[path.relative_to(tmp_path / "archive").as_posix()] = name
            await _change(path, change)
        foreign = tmp_path / "archive" / "note.txt"
        await _change(foreign, lambda path: path.write_text("by hand"))
        copied = tmp_path / "archive" / "copy.dcm"
        await _change(copied, lambda path: path.write_bytes(one(seed="copied").encoded))
        found, progress = await _verified(tmp_path)
    assert {paths.get(path, path): one.kind for path, one in found.items()} == {
        "flipped": "damaged",
        "cut": "damaged",
        "gone": "missing",
        "spoilt": "damaged",
        "note.txt": "unknown",
        "copy.dcm": "unknown",
    }
    assert progress.read == 5


async def test_a_file_of_a_moment_ago_may_be_about_to_be_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_SETTLED", 60.0)
    async with _archive(tmp_path) as archive:
        await archive.store(one())
        path = tmp_path / "archive" / "copy.dcm"
        await _change(path, lambda path: path.write_bytes(one(seed="copied").encoded))
        assert (await _verified(tmp_path))[0] == {}


@pytest.mark.parametrize("what", ["archive", "index.db"])
async def test_without_an_archive_or_its_index_there_is_nothing_to_verify(tmp_path: Path, what: str, no_leaks: object) -> None:
    async with _archive(tmp_path) as archive:
        await archive.store(one())
    await _change(tmp_path / what, lambda path: path.rename(path.with_name("elsewhere")))
    with pytest.raises(ConfigurationError, match="cannot be read" if what == "archive" else "no such file"):
        await _verified(tmp_path)


@pytest.mark.parametrize("layout", ["{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "{SOPInstanceUID}.dcm"])
async def test_what_was_named_and_not_indexed_is_indexed_when_the_archive_opens(tmp_path: Path, layout: str) -> None:
    """As after kill -9 between the name and the commit: nobody was told that they are kept, and they are whole."""
    known, *lost = [*study(6), with_attributes("1.2.9")]
    async with _archive(tmp_path, layout) as archive:
        await archive.store(known)
    async with Archive(tmp_path / "archive", layout=layout) as without_index:
        for instance in lost:
            await without_index.store(instance)
    found, _ = await _verified(tmp_path)
    assert {difference.kind for difference in found.values()} == {"unknown"}
    assert len(found) == 6
    async with _archive(tmp_path, layout) as archive:
        assert archive.index is not None
        for instance in lost:
            (entry,) = await archive.index.instances(sop_instance_uid=instance.sop_instance_uid)
            assert (entry.size, entry.calling_ae_title) == (instance.size, instance.calling_ae_title)
            assert (await archive.store(instance)).duplicate == "identical"
    assert (await _verified(tmp_path))[0] == {}
    assert len(await files_in(tmp_path / "archive")) == 7


async def test_opening_looks_only_where_a_name_was_given_lately(tmp_path: Path) -> None:
    async with _archive(tmp_path) as archive:
        old = await archive.store(one(seed="old"))
        assert old.path is not None
        await archive.store(one(seed="new"))
        stray = old.path.parent / "stray.dcm"
        await _change(stray, lambda path: path.write_bytes(one(seed="stray").encoded))
        long_ago = time.time() - 86_400
        await _change(stray.parent, lambda path: os.utime(path, (long_ago, long_ago)))
    async with _archive(tmp_path) as archive:
        assert archive.index is not None
        assert await archive.index.instances(sop_instance_uid=one(seed="stray").sop_instance_uid) == []
    assert {one.kind for one in (await _verified(tmp_path))[0].values()} == {"unknown"}
