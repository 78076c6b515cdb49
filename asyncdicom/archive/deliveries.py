"""Which target still waits for which event: in the index, so that no restart forgets one.

An event is written once, into the outbox. From there it becomes one delivery for each target that wants its kind, and the
delivery is removed when the target has taken it. The event counts as delivered when none is left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from asyncdicom.archive.contract import Event
from asyncdicom.archive.sqlite import DELIVERED_KEPT, SQLiteIndex, Transaction

# No attempt is postponed for longer than this, in seconds: what seems due later was written by a clock that was set back.
LONGEST_WAIT = 900.0

_SPREAD = """
INSERT OR IGNORE INTO deliveries (target, event_id)
SELECT ?, id FROM outbox
WHERE id > ? AND id <= ? AND delivered_at IS NULL AND kind IN (SELECT value FROM json_each(?))
"""
# Of those up to an id, the ones that nobody waits for (any more).
_CLOSE = """
UPDATE outbox SET delivered_at = ?
WHERE delivered_at IS NULL AND id <= ? AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_id = outbox.id)
"""
_DUE = """
SELECT event_id, attempts, kind, payload, created_at
FROM deliveries JOIN outbox ON id = event_id
WHERE target = ? AND NOT due_at BETWEEN ? AND ? ORDER BY event_id LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to one target.

    :ivar attempts: how often it was tried
    """

    event: Event
    attempts: int


class Deliveries:
    """The deliveries in an index."""

    def __init__(self, index: SQLiteIndex) -> None:
        self._index = index

    async def identity(self) -> str:
        """Which index this is: made once with it, the same for its life."""
        ((identity,),) = await self._index.ask("SELECT id FROM identity")
        return str(identity)

    async def configure(self, targets: Collection[str], quiet_since: float) -> int:
        """Take these targets and no others. A new one gets what happens from now on.

        When nobody was told before, studies that are complete by now are not told of either: the first target of an old
        archive would get all of it.

        :param targets: their names
        :param quiet_since: seconds since the epoch: a study whose last instance is older is complete
        :return: how many deliveries were dropped, to targets that are there no more
        :raises ArchiveError: when it could not be committed
        """
        names, now = json.dumps(sorted(targets)), time.time()

        def job(transaction: Transaction) -> int:
            known = {name for (name,) in transaction.execute("SELECT name FROM event_targets")}
            if not known:
                transaction.flush()
                transaction.execute(
                    "UPDATE studies SET completed_at = ? WHERE completed_at IS NULL AND last_received <= ?", (now, quiet_since)
                )
            gone = "NOT IN (SELECT value FROM json_each(?))"
            dropped = transaction.execute(f"DELETE FROM deliveries WHERE target {gone}", (names,)).rowcount  # noqa: S608
            transaction.execute(f"DELETE FROM event_targets WHERE name {gone}", (names,))  # noqa: S608
            ((last,),) = transaction.execute("SELECT coalesce(max(id), 0) FROM outbox")
            for name in targets:
                transaction.execute("INSERT OR IGNORE INTO event_targets (name, position) VALUES (?, ?)", (name, last))
            ((reached,),) = transaction.execute("SELECT coalesce(min(position), ?) FROM event_targets", (last,))
            transaction.execute(_CLOSE, (now, reached))
            return dropped

        return await self._index.write(job)

    async def spread(self, wanted: Mapping[str, Collection[str]], *, limit: int = 500) -> int:
        """Make deliveries of the events that came since the last time.

        :param wanted: for each target the kinds of event that it wants
        :return: how many events there were; as many as ``limit`` when there may be more
        :raises ArchiveError: when it could not be committed
        """
        kinds = {name: json.dumps(sorted(each)) for name, each in wanted.items()}
        if not await self._index.ask(
            "SELECT 1 FROM outbox WHERE delivered_at IS NULL AND id > (SELECT min(position) FROM event_targets) LIMIT 1"
        ):
            return 0

        def job(transaction: Transaction) -> int:
            positions = dict(transaction.execute("SELECT name, position FROM event_targets").fetchall())
            first = min(positions.values(), default=0)
            ids = transaction.execute(
                "SELECT id FROM outbox WHERE delivered_at IS NULL AND id > ? ORDER BY id LIMIT ?", (first, limit)
            ).fetchall()
            if not ids:
                return 0
            ((last,),) = ids[-1:]
            for name, position in positions.items():
                transaction.execute(_SPREAD, (name, position, last, kinds.get(name, "[]")))
            transaction.execute("UPDATE event_targets SET position = max(position, ?)", (last,))
            transaction.execute(f"{_CLOSE} AND id > ?", (time.time(), last, first))
            return len(ids)

        return await self._index.write(job)

    async def due(self, target: str, *, limit: int) -> list[Delivery]:
        """What is to be tried now, in the order in which it happened.

        :raises ArchiveError: when the index cannot be read
        """
        now = time.time()
        rows = await self._index.ask(_DUE, (target, now, now + LONGEST_WAIT, limit))
        return [
            Delivery(Event(event_id, kind, json.loads(payload), created_at), attempts)
            for event_id, attempts, kind, payload, created_at in rows
        ]

    async def next_due(self, target: str) -> float | None:
        """When the next attempt is to be made that has to wait (seconds since the epoch, UTC); None when none has.

        :raises ArchiveError: when the index cannot be read
        """
        sql = "SELECT min(due_at) FROM deliveries WHERE target = ? AND due_at > ?"
        ((due,),) = await self._index.ask(sql, (target, time.time()))
        return due if due is None else float(due)

    async def over(self, target: str, event_id: int) -> None:
        """A target has taken an event, or never will.

        :raises ArchiveError: when it could not be committed
        """

        def job(transaction: Transaction) -> None:
            transaction.execute("DELETE FROM deliveries WHERE target = ? AND event_id = ?", (target, event_id))
            transaction.execute(f"{_CLOSE} AND id = ?", (time.time(), event_id, event_id))

        await self._index.write(job)

    async def later(self, target: str, event_id: int, due_at: float) -> None:
        """An attempt failed: there is another one.

        :param due_at: seconds since the epoch (UTC)
        :raises ArchiveError: when it could not be committed
        """
        sql = "UPDATE deliveries SET attempts = attempts + 1, due_at = ? WHERE target = ? AND event_id = ?"
        await self._index.write(lambda transaction: transaction.execute(sql, (due_at, target, event_id)).rowcount)

    async def hasten(self, target: str) -> None:
        """Make everything due that waits for another attempt: what failed was the target, and it takes events again.

        :raises ArchiveError: when it could not be committed
        """
        sql = "UPDATE deliveries SET due_at = 0 WHERE target = ? AND due_at > 0"
        await self._index.write(lambda transaction: transaction.execute(sql, (target,)).rowcount)

    async def tell_condition(self, modality: str, *, is_up: bool, payload: dict[str, Any]) -> bool:
        """Put ``modality.up`` or ``modality.down`` into the outbox, unless that was what was told last.

        One that is up when it is asked for the first time is no news.

        :return: whether there is an event
        :raises ArchiveError: when it could not be committed
        """
        return await self._index.write(_telling(_CONDITION, modality, is_up, payload))

    async def tell_silence(self, modality: str, *, is_quiet: bool, payload: dict[str, Any]) -> bool:
        """Put ``modality.quiet`` or ``modality.heard`` into the outbox, unless that was what was told last.

        One that is heard when it never was quiet is no news.

        :return: whether there is an event
        :raises ArchiveError: when it could not be committed
        """
        return await self._index.write(_telling(_SILENCE, modality, not is_quiet, payload))

    async def forget(self, *, limit: int = 500) -> int:
        """Remove some of what was delivered long ago: stores that come meanwhile wait for it.

        :return: how much it was; as much as ``limit`` when there may be more
        :raises ArchiveError: when it could not be committed
        """
        before = time.time() - DELIVERED_KEPT
        some = "SELECT id FROM outbox WHERE delivered_at < ? LIMIT ?"
        if not await self._index.ask(some, (before, 1)):
            return 0
        sql = f"DELETE FROM outbox WHERE id IN ({some})"  # noqa: S608 - of ours
        return await self._index.write(lambda transaction: transaction.execute(sql, (before, limit)).rowcount)


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of modalities when it changes.

    :ivar known: reads what was told last: whether all was well
    :ivar note: writes it down
    :ivar well: the kind of event when all is well again
    :ivar unwell: the other
    """

    known: str
    note: str
    well: str
    unwell: str


_CONDITION = _Told(
    "SELECT is_up FROM told_conditions WHERE modality = ?",
    "INSERT OR REPLACE INTO told_conditions (modality, is_up) VALUES (?, ?)",
    "modality.up",
    "modality.down",
)
_SILENCE = _Told(
    "SELECT NOT is_quiet FROM told_silences WHERE modality = ?",
    "INSERT OR REPLACE INTO told_silences (modality, is_quiet) VALUES (?, NOT ?)",
    "modality.heard",
    "modality.quiet",
)


def _telling(what: _Told, modality: str, is_well: bool, payload: dict[str, Any]) -> Callable[[Transaction], bool]:
    text, now = json.dumps(payload), time.time()

    def job(transaction: Transaction) -> bool:
        told = transaction.execute(what.known, (modality,)).fetchone()
        if told is not None and bool(told[0]) == is_well:
            return False
        transaction.execute(what.note, (modality, is_well))
        if told is None and is_well:
            return False
        kind = what.well if is_well else what.unwell
        transaction.execute("INSERT INTO outbox (kind, payload, created_at) VALUES (?, ?, ?)", (kind, text, now))
        return True

    return job
