"""The index: one transaction for many, nobody failing for a neighbour, an outbox that loses nothing, sums that are right."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import anyio.to_thread
import pytest

from asyncdicom.archive.contract import Entry
from asyncdicom.archive.sqlite import SCHEMA_VERSION, SQLiteIndex
from asyncdicom.errors import ArchiveError, ArchiveFull, ConfigurationError


def _entry(number: int, *, study: str = "1.1", series: str = "1.1.1", sender: str = "CT1", at: float | None = None) -> Entry:
    return Entry(
        f"1.2.{number}",
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.1.2.1",
        study,
        series,
        "P1",
        "A1",
        "20260101",
        "CT",
        f"{study}/{series}/1.2.{number}.dcm",
        100,
        f"{number:064x}",
        sender,
        "127.0.0.1",
        time.time() if at is None else at,
    )


async def _open(tmp_path: Path) -> SQLiteIndex:
    index = SQLiteIndex(tmp_path / "index.db", root=tmp_path / "archive")
    await index.open()
    return index


async def test_what_was_added_is_there_with_its_event_and_its_sums(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    entries = [_entry(n, series=f"1.1.{n % 3}", sender=f"CT{n % 2}", at=1000.0 + n) for n in range(30)]
    # One after the other: those that are added at once have no order.
    assert [await index.add(entry) for entry in entries] == [True] * 30
    assert await index.instances(study_uid="1.1") == entries
    assert await index.instances(sop_instance_uid="1.2.7") == [entries[7]]
    counts = await index.study_counts("1.1")
    assert (counts.series, counts.instances, counts.size) == (3, 30, 3000)
    assert (counts.first_received, counts.last_received) == (1000.0, 1029.0)
    assert await index.last_received() == {"CT0": 1028.0, "CT1": 1029.0}
    assert await index.outbox_pending() == (30, 1000.0)
    events = await index.outbox(limit=100)
    assert [event.payload["SOPInstanceUID"] for event in events] == [entry.sop_instance_uid for entry in entries]
    assert {event.kind for event in events} == {"instance.stored"}
    assert events[0].payload["path"] == f"{tmp_path}/archive/{entries[0].path}"
    assert "P1" not in str(events)
    await index.close()
    index = await _open(tmp_path)
    assert (await index.study_counts("1.1")).instances == 30
    await index.close()


async def test_nothing_is_known_of_a_study_that_is_not_there(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    counts = await index.study_counts("9.9")
    assert (counts.series, counts.instances, counts.size, counts.last_received) == (0, 0, 0, None)
    assert await index.outbox_pending() == (0, None)
    assert await index.last_received() == {}
    with pytest.raises(ValueError, match="ask for"):
        await index.instances()
    await index.close()


async def test_many_at_once_share_few_transactions(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    changes = tmp_path / "index.db-wal"
    await index.add(_entry(0))
    before = (await anyio.to_thread.run_sync(changes.stat)).st_size
    await asyncio.gather(*(index.add(_entry(n)) for n in range(1, 201)))
    written = (await anyio.to_thread.run_sync(changes.stat)).st_size - before
    # A transaction of its own would write some eight pages of 4 KiB for each.
    assert written < 200 * 8 * 4096 / 4
    await index.close()


async def test_a_row_that_fails_does_not_fail_its_neighbours(tmp_path: Path, log: list[str], no_leaks: object) -> None:
    index = await _open(tmp_path)
    entries = [_entry(n) for n in range(40)]
    for n in (3, 17, 39):
        # A lone surrogate cannot be written as UTF-8.
        entries[n] = replace(entries[n], peer_address="\ud800")
    results = await asyncio.gather(*(index.add(entry) for entry in entries), return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, ArchiveError)] == [3, 17, 39]
    assert sum(result is True for result in results) == 37
    assert (await index.study_counts("1.1")).instances == 37
    assert (await index.outbox_pending())[0] == 37
    assert len(await index.instances(study_uid="1.1")) == 37
    await index.close()


async def test_one_sop_instance_is_added_once(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    results = await asyncio.gather(*(index.add(_entry(1)) for _ in range(20)))
    assert sorted(results) == [False] * 19 + [True]
    assert (await index.outbox_pending())[0] == 1
    assert await index.add(replace(_entry(1), variant="x")) is True
    assert [row.path for row in await anyio.to_thread.run_sync(index.rows_of, "1.2.1")] == [_entry(1).path] * 2
    await index.close()


async def test_superseding_moves_the_sums(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    await index.add(_entry(1))
    await index.add(_entry(2))
    (row,) = await anyio.to_thread.run_sync(index.rows_of, "1.2.1")
    await index.add(_entry(1, study="2.2", series="2.2.2"), [row.id], "replaced")
    old, new = await index.study_counts("1.1"), await index.study_counts("2.2")
    assert (old.series, old.instances, new.series, new.instances) == (1, 1, 1, 1)
    (row,) = await anyio.to_thread.run_sync(index.rows_of, "1.2.2")
    await index.remove([row.id, row.id, 12345])
    assert (await index.study_counts("1.1")).instances == 0
    assert [study["study_instance_uid"] for study in await index.studies()] == ["2.2"]
    assert (await index.outbox(limit=10))[-1].payload["duplicate"] == "replaced"
    await index.close()


async def test_an_event_stays_until_it_is_delivered(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    ids = [await index.outbox_add("modality.down", {"modality": f"ct{n}"}) for n in range(5)]
    assert ids == sorted(set(ids))
    assert [event.id for event in await index.outbox(limit=3)] == ids[:3]
    assert [event.id for event in await index.outbox(after=ids[2])] == ids[3:]
    await index.outbox_delivered(ids[:2])
    await index.close()
    index = await _open(tmp_path)
    assert [event.id for event in await index.outbox()] == ids[2:]
    assert (await index.outbox_pending())[0] == 3
    await index.outbox_delivered(ids)
    assert await index.outbox_add("modality.up", {}) > max(ids)
    await index.close()


async def test_delivered_events_are_removed_after_a_week(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    old, young = [await index.outbox_add("modality.down", {}) for _ in range(2)]
    await index.outbox_delivered([old, young])

    def age() -> None:
        with sqlite3.connect(tmp_path / "index.db") as connection:
            connection.execute("UPDATE outbox SET delivered_at = delivered_at - 8 * 86400 WHERE id = ?", (old,))
        connection.close()

    await anyio.to_thread.run_sync(age)
    await index.outbox_delivered([])

    def left() -> list[int]:
        with sqlite3.connect(tmp_path / "index.db") as connection:
            ids = [event_id for (event_id,) in connection.execute("SELECT id FROM outbox")]
        connection.close()
        return ids

    assert await anyio.to_thread.run_sync(left) == [young]
    await index.close()


async def test_a_quiet_study_is_told_once_until_more_arrives(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    await index.add(_entry(1, at=100.0))
    await index.add(_entry(2, study="2.2", at=200.0))
    await index.add(_entry(3, study="", at=100.0))
    assert await index.complete_studies(50.0) == []
    assert await index.complete_studies(150.0) == ["1.1"]
    assert await index.complete_studies(150.0) == []
    assert await index.complete_studies(300.0) == ["2.2"]
    await index.add(_entry(4, at=400.0))
    assert await index.complete_studies(300.0) == []
    assert await index.complete_studies(500.0) == ["1.1"]
    told = [event.payload for event in await index.outbox() if event.kind == "study.complete"]
    assert [(each["StudyInstanceUID"], each["instances"]) for each in told] == [("1.1", 1), ("2.2", 1), ("1.1", 2)]
    await index.close()


async def test_a_cancelled_caller_is_indexed_all_the_same(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    tasks = [asyncio.create_task(index.add(_entry(n))) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await index.add(_entry(99))
    assert (await index.study_counts("1.1")).instances == 11
    await index.close()


async def test_closing_commits_what_was_submitted(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    tasks = [asyncio.create_task(index.add(_entry(n))) for n in range(50)]
    await asyncio.sleep(0)
    await index.close()
    assert await asyncio.gather(*tasks) == [True] * 50
    with pytest.raises(ArchiveError, match="not open"):
        await index.add(_entry(99))
    with pytest.raises(ArchiveError, match="not open"):
        await index.ping()


async def test_ping_answers(tmp_path: Path) -> None:
    index = await _open(tmp_path)
    await index.ping()
    await index.close()


async def _raises(index: SQLiteIndex) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        await index.open()
    assert caught.value.path == "archive.index"
    return caught.value


async def test_a_newer_schema_is_refused(tmp_path: Path, no_leaks: object) -> None:
    def write() -> None:
        connection = sqlite3.connect(tmp_path / "index.db")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.close()

    await anyio.to_thread.run_sync(write)
    error = await _raises(SQLiteIndex(tmp_path / "index.db"))
    assert f"schema {SCHEMA_VERSION + 1}" in str(error)


async def test_what_is_no_index_is_refused(tmp_path: Path, no_leaks: object) -> None:
    def write() -> None:
        (tmp_path / "text.db").write_bytes(b"no database at all" * 100)
        (tmp_path / "folder.db").mkdir()
        (tmp_path / "file").touch()
        connection = sqlite3.connect(tmp_path / "foreign.db")
        connection.execute("CREATE TABLE instances (x)")
        connection.close()

    await anyio.to_thread.run_sync(write)
    for name in ("text.db", "folder.db", "file/index.db", "foreign.db"):
        assert "cannot be used" in str(await _raises(SQLiteIndex(tmp_path / name)))


async def test_a_commit_that_finds_no_space_is_an_error_and_the_next_one_works(tmp_path: Path, no_leaks: object) -> None:
    index = await _open(tmp_path)
    writer = index._writer
    assert writer is not None

    def limit(more: int) -> None:
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + more}")

    await anyio.to_thread.run_sync(limit, 0)
    with pytest.raises(ArchiveFull, match="did not commit"):
        for n in range(500):
            await index.add(_entry(n))
    done = (await index.study_counts("1.1")).instances
    await anyio.to_thread.run_sync(limit, 1000)
    assert await index.add(_entry(1000)) is True
    assert (await index.study_counts("1.1")).instances == done + 1
    await index.close()


def _schema(version: int) -> str:
    return resources.files("asyncdicom.archive").joinpath(f"schema-{version}.sql").read_text(encoding="utf-8")


def test_the_schemas_are_in_the_package() -> None:
    assert "CREATE TABLE instances" in _schema(1)
    assert all(_schema(version) for version in range(1, SCHEMA_VERSION + 1))


async def test_an_index_of_an_earlier_version_is_brought_to_the_current_one(tmp_path: Path, no_leaks: object) -> None:
    def write() -> None:
        connection = sqlite3.connect(tmp_path / "index.db", isolation_level=None)
        connection.executescript(_schema(1))
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO senders VALUES ('CT1', 1000.0)")
        connection.close()

    await anyio.to_thread.run_sync(write)
    index = await _open(tmp_path)
    assert await index.last_received() == {"CT1": 1000.0}
    assert await index.add(_entry(1)) is True
    await index.close()

    def read() -> tuple[int, int]:
        connection = sqlite3.connect(tmp_path / "index.db")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (commitments,) = connection.execute("SELECT count(*) FROM commitments").fetchone()
        finally:
            connection.close()
        return version, commitments

    assert await anyio.to_thread.run_sync(read) == (SCHEMA_VERSION, 0)


async def test_closing_waits_for_whoever_was_cancelled_in_the_middle_of_reading(tmp_path: Path, no_leaks: object) -> None:
    """A connection that is closed while a thread reads from it ends the process."""
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) SELECT count(*) FROM n, instances"
    for _ in range(10):
        index = await _open(tmp_path)
        await index.add(_entry(1))
        reading = [asyncio.create_task(index.ask(slow)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in reading:
            task.cancel()
        await index.close()
        assert all(task.cancelled() for task in reading)
