"""Requests for storage commitment that wait for their report: in the index, so that no restart forgets one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from asyncdicom.archive.sqlite import SQLiteIndex, Transaction

# How long what is over stays for a look back, in seconds.
_KEPT = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that is still to be reported on.

    :ivar instances: pairs of SOP class UID and SOP instance UID
    :ivar requested_at: seconds since the epoch (UTC)
    :ivar attempts: how often the report was tried
    """

    id: int
    transaction_uid: str
    calling_ae_title: str
    instances: tuple[tuple[str, str], ...]
    requested_at: float
    attempts: int


class Commitments:
    """The requests in an index."""

    def __init__(self, index: SQLiteIndex) -> None:
        self._index = index

    async def add(self, transaction_uid: str, calling_ae_title: str, instances: list[tuple[str, str]]) -> bool:
        """Remember a request, and return once that is committed.

        :return: False when this requester's transaction is known and not reported on yet
        :raises ArchiveError: when it could not be committed
        """
        text, now = json.dumps(instances), time.time()

        def job(transaction: Transaction) -> bool:
            transaction.execute("DELETE FROM commitments WHERE due_at IS NULL AND requested_at < ?", (now - _KEPT,))
            cursor = transaction.execute(
                "INSERT INTO commitments (transaction_uid, calling_ae_title, instances, requested_at, due_at)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (transaction_uid, calling_ae_title, text, now, now),
            )
            return cursor.rowcount == 1

        return await self._index.write(job)

    async def due(self, *, limit: int = 16) -> list[Pending]:
        """Those whose report is to be tried now, the one that waits longest first."""
        rows = await self._index.ask(
            "SELECT id, transaction_uid, calling_ae_title, instances, requested_at, attempts FROM commitments"
            " WHERE due_at <= ? ORDER BY due_at LIMIT ?",
            (time.time(), limit),
        )
        return [Pending(key, uid, title, _pairs(text), at, attempts) for key, uid, title, text, at, attempts in rows]

    async def next_due(self) -> float | None:
        """When the next report is to be tried (seconds since the epoch, UTC); None when none is."""
        ((due,),) = await self._index.ask("SELECT min(due_at) FROM commitments WHERE due_at IS NOT NULL")
        return due if due is None else float(due)

    async def ended(self, pending: Pending, ending: str) -> None:
        """A request is over: reported on, or given up.

        :raises ArchiveError: when it could not be committed
        """
        sql = "UPDATE commitments SET due_at = NULL, attempts = attempts + 1, ending = ? WHERE id = ?"
        await self._index.write(lambda transaction: transaction.execute(sql, (ending, pending.id)).rowcount)

    async def later(self, pending: Pending, due_at: float) -> None:
        """The report could not be delivered: it is tried again.

        :raises ArchiveError: when it could not be committed
        """
        sql = "UPDATE commitments SET due_at = ?, attempts = attempts + 1 WHERE id = ?"
        await self._index.write(lambda transaction: transaction.execute(sql, (due_at, pending.id)).rowcount)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((sop_class, sop_instance) for sop_class, sop_instance in json.loads(text))
