"""The relay: every target is told everything that it wants, once if all goes well, and nobody waits for another."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from importlib import resources
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncdicom.archive.deliveries import Deliveries
from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.errors import DeliveryFailed
from asyncdicom.events.command import Command
from asyncdicom.events.contract import Message, Target
from asyncdicom.events.courier import Backoff
from asyncdicom.events.relay import Bell, Relay
from tests.conftest import Baseline
from tests.events.conftest import Counted, eventually
from tests.events.receiving import TAKE, lines_of

QUICK = Backoff(first=0.05, longest=0.2, longest_pause=0.1)


class Recorder:
    """A target in this process, which does as it is told.

    :ivar taken: what it took
    :ivar at_once: the most events that it was given at the same time
    """

    def __init__(self, name: str, *, on: tuple[str, ...] = ("study.complete",), concurrency: int = 4) -> None:
        self.name = name
        self.on = frozenset(on)
        self.concurrency = concurrency
        self.key: bytes | None = None
        self.taken: list[Message] = []
        self.tried: list[str] = []
        self.refuses: set[str] = set()
        self.refuses_for_good: set[str] = set()
        self.under_way = 0
        self.at_once = 0
        self.takes = anyio.Event()
        self.takes.set()

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def deliver(self, message: Message) -> None:
        study = message.data.get("StudyInstanceUID", "")
        self.tried.append(study)
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        try:
            await self.takes.wait()
            await anyio.lowlevel.checkpoint()
        finally:
            self.under_way -= 1
        if study in self.refuses or "*" in self.refuses:
            raise DeliveryFailed("refused")
        if study in self.refuses_for_good:
            raise DeliveryFailed("refused for good", final=True)
        self.taken.append(message)


def relay_of(index: SQLiteIndex, *targets: Target, bell: Bell | None = None, observer: Counted | None = None) -> Relay:
    return Relay(index, targets, bell=bell, observer=observer or Counted(), backoff=QUICK)


async def tell(index: SQLiteIndex, *studies: str, kind: str = "study.complete", bell: Bell | None = None) -> None:
    for study in studies:
        await index.outbox_add(kind, {"StudyInstanceUID": study})
    if bell is not None:
        bell.ring()


async def test_every_target_gets_the_kinds_that_it_wants_and_each_event_has_one_id(
    no_leaks: Baseline, index: SQLiteIndex, counted: Counted
) -> None:
    bell = Bell()
    studies = Recorder("studies")
    everything = Recorder("everything", on=("study.complete", "instance.stored"))
    async with relay_of(index, studies, everything, bell=bell, observer=counted):
        await tell(index, "1", "2", bell=bell)
        await tell(index, "3", kind="instance.stored", bell=bell)
        await tell(index, "4", kind="modality.up", bell=bell)
        await eventually(lambda: len(studies.taken) == 2 and len(everything.taken) == 3)
        # What nobody wants does not wait for anybody either.
        await eventually(lambda: counted.pending == (0, None))
    assert [message.data["StudyInstanceUID"] for message in studies.taken] == ["1", "2"]
    ids = {message.id for message in everything.taken}
    assert {message.id for message in studies.taken} < ids
    assert len(ids) == 3
    assert counted.delivered == {"studies": 2, "everything": 3}
    assert not counted.failed


async def test_a_target_that_hangs_or_fails_holds_up_nobody_and_repeats_for_nobody(
    index: SQLiteIndex, counted: Counted
) -> None:
    bell = Bell()
    well, failing, hanging = Recorder("well"), Recorder("failing"), Recorder("hanging")
    failing.refuses.add("*")
    hanging.takes = anyio.Event()
    async with relay_of(index, well, failing, hanging, bell=bell, observer=counted):
        await tell(index, *map(str, range(20)), bell=bell)
        await eventually(lambda: len(well.taken) == 20 and counted.failed.get("failing", 0) >= 5)
        assert hanging.under_way == 4
        await eventually(lambda: counted.pending is not None and counted.pending[0] == 20)
        failing.refuses.clear()
        hanging.takes.set()
        await eventually(lambda: len(failing.taken) == 20 and len(hanging.taken) == 20)
    assert len(well.taken) == len(well.tried) == 20
    assert len({message.id for message in failing.taken}) == 20


async def test_an_event_that_is_refused_again_and_again_holds_up_no_other(index: SQLiteIndex) -> None:
    bell = Bell()
    target = Recorder("target", concurrency=1)
    target.refuses.add("1")
    async with relay_of(index, target, bell=bell):
        await tell(index, "1", "2", "1", "3", bell=bell)
        await eventually(lambda: len(target.taken) == 2 and target.tried.count("1") >= 4)
        target.refuses.clear()
        await eventually(lambda: len(target.taken) == 4)
    assert [message.data["StudyInstanceUID"] for message in target.taken][:2] == ["2", "3"]


async def test_what_was_not_delivered_is_delivered_by_the_next_life_and_nothing_else(index: SQLiteIndex) -> None:
    bell = Bell()
    one, other = Recorder("one"), Recorder("other")
    one.takes = anyio.Event()
    async with relay_of(index, one, other, bell=bell):
        await tell(index, "1", "2", bell=bell)
        await eventually(lambda: len(other.taken) == 2)
    one.takes.set()
    async with relay_of(index, one, other, bell=bell):
        await eventually(lambda: len(one.taken) == 2)
        await tell(index, "3", bell=bell)
        await eventually(lambda: len(one.taken) == len(other.taken) == 3)
    assert [message.data["StudyInstanceUID"] for message in other.taken] == ["1", "2", "3"]
    assert {message.id for message in one.taken} == {message.id for message in other.taken}


async def test_a_drain_ends_what_is_under_way_and_begins_nothing_more(index: SQLiteIndex) -> None:
    bell = Bell()
    target = Recorder("target", concurrency=2)
    target.takes = anyio.Event()
    async with relay_of(index, target, bell=bell) as relay:
        await relay_of(index).drain()
        await tell(index, "1", "2", "3", bell=bell)
        await eventually(lambda: target.under_way == 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.drain)
            await anyio.sleep(0.05)
            target.takes.set()
        assert len(target.taken) == 2
        await anyio.sleep(0.1)
        assert len(target.tried) == 2
    assert (await index.outbox_pending())[0] == 1


async def test_a_new_target_gets_nothing_that_is_older_than_itself(index: SQLiteIndex) -> None:
    bell = Bell()
    await tell(index, "before anybody")
    one, other = Recorder("one"), Recorder("other")
    one.takes = anyio.Event()
    async with relay_of(index, one, bell=bell):
        await tell(index, "1", bell=bell)
        await eventually(lambda: one.under_way == 1)
    one.takes.set()
    async with relay_of(index, one, other, bell=bell):
        await tell(index, "2", bell=bell)
        await eventually(lambda: len(one.taken) == 2 and len(other.taken) == 1)
    assert [message.data["StudyInstanceUID"] for message in one.taken] == ["1", "2"]
    assert [message.data["StudyInstanceUID"] for message in other.taken] == ["2"]


async def test_events_for_a_target_that_is_gone_wait_no_more(index: SQLiteIndex) -> None:
    gone, stays = Recorder("gone"), Recorder("stays")
    gone.takes = anyio.Event()
    async with relay_of(index, gone, stays):
        await tell(index, "1", "2")
        await eventually(lambda: len(stays.taken) == 2)
    assert (await index.outbox_pending())[0] == 2
    async with relay_of(index, stays):
        assert await index.outbox_pending() == (0, None)


async def test_events_of_one_study_go_one_after_the_other_and_those_of_many_at_once(index: SQLiteIndex) -> None:
    bell = Bell()
    target = Recorder("target", on=("instance.stored", "study.complete"), concurrency=3)
    target.takes = anyio.Event()
    async with relay_of(index, target, bell=bell):
        await tell(index, "1", "1", "2", "1", "2", bell=bell)
        await eventually(lambda: target.under_way == 2)
        assert sorted(target.tried) == ["1", "2"]
        await tell(index, "3", "4", bell=bell)
        await eventually(lambda: target.under_way == 3)
        target.takes.set()
        await eventually(lambda: len(target.taken) == 7)
    assert target.at_once == 3
    for study in "12":
        numbers = [int(message.id.split("-")[1]) for message in target.taken if message.data["StudyInstanceUID"] == study]
        assert numbers == sorted(numbers)


async def test_what_is_refused_for_good_is_not_tried_again(index: SQLiteIndex, counted: Counted) -> None:
    target = Recorder("target")
    target.refuses_for_good.add("1")
    async with relay_of(index, target, observer=counted):
        await tell(index, "1", "2")
        await eventually(lambda: counted.pending == (0, None) and len(target.taken) == 1)
    assert sorted(target.tried) == ["1", "2"]
    assert counted.failed == {"target": 1}


async def test_a_target_that_takes_nothing_is_asked_with_one_event_at_a_time(index: SQLiteIndex, counted: Counted) -> None:
    target = Recorder("target")
    target.refuses.add("*")
    backoff = Backoff(first=0.02, longest=0.02, longest_pause=30)
    bell = Bell()
    async with Relay(index, [target], bell=bell, observer=counted, backoff=backoff):
        await tell(index, *map(str, range(100)), bell=bell)
        await eventually(lambda: counted.failed.get("target", 0) >= 6)
        # The first few at once, and then one after each pause: most were never tried.
        assert len(set(target.tried)) < 20
        target.refuses.clear()
        await eventually(lambda: len(target.taken) == 100)


async def test_after_an_outage_nothing_waits_out_its_own_backoff(index: SQLiteIndex, counted: Counted) -> None:
    bell = Bell()
    target = Recorder("target")
    target.refuses.add("*")
    backoff = Backoff(first=0.03, longest=300, longest_pause=0.03)
    async with Relay(index, [target], bell=bell, observer=counted, backoff=backoff):
        await tell(index, "1", "2", "3", "4", bell=bell)
        # By now they would wait for minutes.
        deliveries = "UPDATE deliveries SET due_at = due_at + 200 WHERE due_at > 0"
        await eventually(lambda: counted.failed.get("target", 0) >= 8)
        await index.write(lambda transaction: transaction.execute(deliveries).rowcount)
        target.refuses.clear()
        await tell(index, "5", bell=bell)
        await eventually(lambda: len(target.taken) == 5)


async def test_many_events_are_all_delivered_however_slowly_they_are_read(index: SQLiteIndex) -> None:
    bell = Bell()
    target = Recorder("target", concurrency=64)
    async with relay_of(index, target, bell=bell):
        async with anyio.create_task_group() as tasks:
            for n in range(1200):
                tasks.start_soon(index.outbox_add, "study.complete", {"StudyInstanceUID": str(n % 300)})
        bell.ring()
        await eventually(lambda: len(target.taken) == 1200, 20)
    assert len({message.id for message in target.taken}) == 1200


async def test_an_index_that_does_not_take_an_outcome_makes_no_event_go_out_again(
    index: SQLiteIndex, caplog: pytest.LogCaptureFixture
) -> None:
    bell = Bell()
    target = Recorder("target")
    async with relay_of(index, target, bell=bell):
        refuse = "CREATE TRIGGER refuse BEFORE DELETE ON deliveries BEGIN SELECT raise(FAIL, 'refused'); END"
        await index.write(lambda transaction: transaction.execute(refuse).rowcount)
        await tell(index, "1", bell=bell)
        await eventually(lambda: "what became of an event is not written" in caplog.text)
        await tell(index, "2", bell=bell)
        await eventually(lambda: len(target.taken) == 2)
        await index.write(lambda transaction: transaction.execute("DROP TRIGGER refuse").rowcount)
        with anyio.fail_after(5):
            while (await index.outbox_pending())[0]:
                await anyio.sleep(0.02)
    assert target.tried == ["1", "2"]


async def test_what_was_delivered_long_ago_is_forgotten_in_small_parts(index: SQLiteIndex) -> None:
    deliveries = Deliveries(index)
    await tell(index, *map(str, range(5)))
    await index.outbox_delivered([1, 2, 3, 4])
    aged = "UPDATE outbox SET delivered_at = delivered_at - 8 * 86400 WHERE id <= 3"
    await index.write(lambda transaction: transaction.execute(aged).rowcount)
    assert [await deliveries.forget(limit=2) for _ in range(3)] == [2, 1, 0]
    assert await index.ask("SELECT id FROM outbox ORDER BY id") == [(4,), (5,)]


async def test_an_index_of_the_version_before_gets_an_identity_and_keeps_its_events(tmp_path: Path) -> None:
    path = tmp_path / "old.db"

    def made() -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for version in (1, 2):
                connection.executescript(resources.files("asyncdicom.archive").joinpath(f"schema-{version}.sql").read_text())
            connection.execute("INSERT INTO outbox (kind, payload, created_at) VALUES ('study.complete', '{}', 1)")
            connection.execute("PRAGMA user_version = 2")
            connection.commit()

    await anyio.to_thread.run_sync(made)
    identities = set()
    for _ in range(2):
        opened = SQLiteIndex(path)
        await opened.open()
        identities.add(await Deliveries(opened).identity())
        assert len(await opened.outbox()) == 1
        await opened.close()
    (identity,) = identities
    assert len(identity) == 24


async def test_a_clock_that_is_set_back_stops_no_event(index: SQLiteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries = Deliveries(index)
    await deliveries.configure(["target"], 0)
    await tell(index, "1")
    await deliveries.spread({"target": ["study.complete"]})
    (delivery,) = await deliveries.due("target", limit=10)
    await deliveries.later("target", delivery.event.id, time.time() + 30)
    assert await deliveries.due("target", limit=10) == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    assert [each.attempts for each in await deliveries.due("target", limit=10)] == [1]


async def test_a_modality_is_told_when_it_changes_and_restarts_tell_nothing_new(index: SQLiteIndex) -> None:
    target = Recorder("target", on=("modality.down", "modality.up"))
    async with relay_of(index, target) as relay:
        for is_up in (True, False, False, True, True, False):
            relay.tell_condition("ct1", is_up=is_up, payload={"modality": "ct1"})
        await eventually(lambda: len(target.taken) == 3)
    async with relay_of(index, target) as relay:
        relay.tell_condition("ct1", is_up=False, payload={"modality": "ct1"})
        relay.tell_condition("ct1", is_up=True, payload={"modality": "ct1"})
        await eventually(lambda: len(target.taken) == 4)
    kinds = [message.kind for message in target.taken]
    assert kinds == ["modality.down", "modality.up", "modality.down", "modality.up"]


async def test_the_delivered_message_is_what_the_outbox_holds(index: SQLiteIndex, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    target = Command("command", ["sh", "-c", TAKE, str(kept)], on=["study.complete"])
    async with relay_of(index, target):
        await tell(index, "1.2.3")
        await eventually(lambda: lines_of(kept))
    identity = await Deliveries(index).identity()
    (line,) = await anyio.to_thread.run_sync(lines_of, kept)
    assert line["id"].startswith(f"{identity}-1-")
    assert (line["kind"], line["data"]) == ("study.complete", {"StudyInstanceUID": "1.2.3"})
    assert abs(line["created_at"] - time.time()) < 60
    assert json.loads(Message("i", "k", 1.5, {"a": None}).encoded()) == {
        "id": "i",
        "kind": "k",
        "created_at": 1.5,
        "data": {"a": None},
    }
