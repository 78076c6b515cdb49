"""One SOP Instance UID sent again: the same bytes are welcome, others fall to the policy, and nothing is ever mixed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from asyncdicom.archive import Archive
from asyncdicom.archive.contract import DUPLICATES, Duplicates
from asyncdicom.association.received import Received
from tests.archive.instances import altered, files_in, one, sha256, with_attributes
from tests.archive.test_store import Recorder

INDEXED = pytest.mark.parametrize("indexed", [True, False], ids=["index", "no-index"])
POLICIES = pytest.mark.parametrize("duplicates", DUPLICATES)
OUTCOMES = {"keep-first": "kept", "replace": "replaced", "keep-all": "added", "reject": "rejected"}


def _archive(folder: Path, indexed: bool, duplicates: Duplicates, **settings: object) -> Archive:
    index = f"sqlite:{folder}/index.db" if indexed else None
    return Archive(folder / "archive", duplicates=duplicates, index=index, **settings)  # type: ignore[arg-type]


async def _check_index(archive: Archive, uid: str) -> None:
    """Every file has its row, every row its file, and the sums are those of the rows."""
    if archive.index is None:
        return
    rows = await archive.index.instances(sop_instance_uid=uid)
    files = await files_in(archive.directory)
    assert sorted(row.path for row in rows) == sorted(files)
    for row in rows:
        assert sha256(Received(files[row.path][-row.size :], "", "", "")) == row.sha256
    counts = await archive.index.study_counts(rows[0].study_instance_uid)
    assert (counts.instances, counts.size) == (len(rows), sum(row.size for row in rows))


@INDEXED
@POLICIES
async def test_the_same_bytes_sent_100_times_at_once_give_one_intact_file(
    tmp_path: Path, indexed: bool, duplicates: Duplicates, no_leaks: object
) -> None:
    instance = one(rows=64)
    seen = Recorder()
    async with _archive(tmp_path, indexed, duplicates, observer=seen) as archive:
        results = await asyncio.gather(*(archive.store(altered(instance, 7)) for _ in range(100)))
        await _check_index(archive, instance.sop_instance_uid)
    assert {result.status for result in results} == {0}
    assert Counter(result.duplicate for result in results) == {None: 1, "identical": 99}
    assert seen.duplicates == ["identical"] * 99
    assert seen.steps.count("write") == 1
    assert list((await files_in(tmp_path / "archive")).values()) == [altered(instance, 7).encoded]


@INDEXED
@POLICIES
async def test_other_bytes_sent_100_times_at_once_fall_to_the_policy_and_never_mix(
    tmp_path: Path, indexed: bool, duplicates: Duplicates, no_leaks: object
) -> None:
    instance = one(rows=64)
    offers = [altered(instance, content) for content in range(100)]
    async with _archive(tmp_path, indexed, duplicates) as archive:
        results = await asyncio.gather(*(archive.store(offer) for offer in offers))
        await _check_index(archive, instance.sop_instance_uid)
    assert Counter(result.duplicate for result in results) == {None: 1, OUTCOMES[duplicates]: 99}
    statuses = Counter(int(result.status) for result in results)
    assert statuses == ({0: 1, 0x0111: 99} if duplicates == "reject" else {0: 100})
    files = list((await files_in(tmp_path / "archive")).values())
    whole = {offer.encoded for offer in offers}
    assert whole.issuperset(files)
    if duplicates == "keep-all":
        assert whole == set(files)
        assert len(files) == 100
    else:
        assert len(files) == 1
        first = [offer for offer, result in zip(offers, results, strict=True) if result.duplicate is None]
        # Turns are taken in the order of asking, so the last to replace is the last that was offered.
        assert files == [offers[-1].encoded if duplicates == "replace" else first[0].encoded]


@INDEXED
async def test_bytes_that_keep_all_has_added_are_identical_when_they_come_again(tmp_path: Path, indexed: bool) -> None:
    instance = one()
    async with _archive(tmp_path, indexed, "keep-all") as archive:
        assert (await archive.store(altered(instance, 1))).duplicate is None
        added = await archive.store(altered(instance, 2))
        again = await archive.store(altered(instance, 2))
        assert (added.duplicate, again.duplicate) == ("added", "identical")
        assert added.path == again.path
        await _check_index(archive, instance.sop_instance_uid)
    assert len(await files_in(tmp_path / "archive")) == 2


@POLICIES
async def test_an_instance_that_moved_to_another_study_is_a_duplicate_for_the_index(
    tmp_path: Path, duplicates: Duplicates, no_leaks: object
) -> None:
    first = with_attributes(StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1")
    moved = with_attributes(StudyInstanceUID="2.2", SeriesInstanceUID="2.2.2")
    async with _archive(tmp_path, True, duplicates) as archive:
        assert archive.index is not None
        await archive.store(first)
        result = await archive.store(moved)
        assert result.duplicate == OUTCOMES[duplicates]
        old, new = await archive.index.study_counts("1.1"), await archive.index.study_counts("2.2")
        expected = {"keep-first": (1, 0), "reject": (1, 0), "replace": (0, 1), "keep-all": (1, 1)}[duplicates]
        assert (old.instances, new.instances) == expected
        assert (old.series, new.series) == expected
        rows = await archive.index.instances(sop_instance_uid="1.2.3")
        assert sorted(row.path for row in rows) == sorted(await files_in(archive.directory))


@INDEXED
@POLICIES
async def test_different_instances_never_share_a_file_even_where_the_layout_gives_one_name(
    tmp_path: Path, indexed: bool, duplicates: Duplicates
) -> None:
    offers = [with_attributes(f"1.2.{number}", PatientID="P1") for number in range(30)]
    async with _archive(tmp_path, indexed, duplicates, layout="{PatientID}.dcm") as archive:
        results = await asyncio.gather(*(archive.store(offer) for offer in offers))
        assert [(result.status, result.duplicate) for result in results] == [(0, None)] * 30
        again = await asyncio.gather(*(archive.store(offer) for offer in offers))
        assert [(result.status, result.duplicate) for result in again] == [(0, "identical")] * 30
        assert [result.path for result in again] == [result.path for result in results]
    assert sorted((await files_in(tmp_path / "archive")).values()) == sorted(offer.encoded for offer in offers)


async def test_an_instance_whose_file_was_removed_is_not_said_to_be_there(tmp_path: Path) -> None:
    instance = one()
    async with _archive(tmp_path, True, "keep-first") as archive:
        stored = await archive.store(instance)
        assert stored.path is not None
        await asyncio.to_thread(stored.path.unlink)
        again = await archive.store(instance)
        assert (again.status, again.duplicate) == (0, None)
        await _check_index(archive, instance.sop_instance_uid)


@POLICIES
async def test_a_file_that_the_index_does_not_know_was_there_first(tmp_path: Path, duplicates: Duplicates) -> None:
    instance = one()
    async with _archive(tmp_path, False, "keep-first") as archive:
        await archive.store(altered(instance, 1))
    async with _archive(tmp_path, True, duplicates) as archive:
        assert archive.index is not None
        result = await archive.store(altered(instance, 2))
        assert result.duplicate == OUTCOMES[duplicates]
        await _check_index(archive, instance.sop_instance_uid)


async def test_a_file_that_the_index_does_not_know_is_indexed_when_the_same_bytes_come(tmp_path: Path) -> None:
    instance = one()
    async with _archive(tmp_path, False, "keep-first") as archive:
        await archive.store(instance)
    async with _archive(tmp_path, True, "reject") as archive:
        assert (await archive.store(instance)).duplicate == "identical"
        await _check_index(archive, instance.sop_instance_uid)
