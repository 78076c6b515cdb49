"""Group commit: one thread at a time writes, and everything that waits meanwhile shares its next transaction.

A commit costs a sync of the disk however many rows it holds. While one is under way, what arrives is collected for the
next, over all associations; nobody waits for company. There is no thread for it: whoever hands in a job commits it, and
whatever else has come by then, unless somebody is at it already and takes the job along. Handing every job to a thread
of its own costs two changes of threads more, which is as much as a sync of a fast disk.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from asyncdicom.archive import answers
from asyncdicom.errors import ArchiveError, ArchiveFull

_log = logging.getLogger(__name__)

TransactionT = TypeVar("TransactionT")

# A bound on how much one failing row makes the others do again.
_MAX_GROUP = 512

Job = tuple[Callable[[TransactionT], object], "asyncio.Future[Any]"]


class GroupCommit(Generic[TransactionT]):
    """Commits on one connection, which one thread at a time uses.

    :param connection: for this alone from now on, in autocommit mode, free of any thread
    :param begin: makes what jobs work on; called once for every transaction
    :param end: called before the commit, to write what the jobs have added up
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        begin: Callable[[sqlite3.Connection], TransactionT],
        end: Callable[[TransactionT], None],
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job[TransactionT]] = deque()
        self._committing = threading.Lock()
        self._closed = False

    def submit(self, jobs: Sequence[Job[TransactionT]]) -> None:
        """Have jobs run in a transaction. Blocks for as long as the calling thread is the one that commits.

        A job may be run twice, and must do nothing but work on the transaction. It is done whether anybody still waits
        or not.

        :param jobs: each with a future of the loop, which gets its result once that is committed, an
            :class:`ArchiveError` when it is not
        """
        if self._closed:
            answers.give(self._loop, [(told, ArchiveError("the index is closed")) for _, told in jobs])
            return
        self._waiting.extend(jobs)
        # Who finds the lock taken can go: its holder looks once more after it has let go.
        while self._waiting and self._committing.acquire(blocking=False):
            try:
                self._commit_waiting()
            finally:
                self._committing.release()

    def close(self) -> None:
        """Commit what was submitted. Blocks until that is done."""
        self._closed = True
        with self._committing:
            while self._waiting:
                self._commit_waiting()

    def _commit_waiting(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_GROUP))]
        results = self._commit_group(group)
        answers.give(self._loop, [(told, result) for (_, told), result in zip(group, results, strict=True)])

    def _commit_group(self, group: list[Job[TransactionT]]) -> list[object]:
        """Return for every job its result, or the error with which it failed."""
        try:
            return self._commit(group)
        except _JobFailed as failed:
            if len(group) == 1:
                return [_as_archive_error(failed.error)]
        except BaseException as error:
            # The transaction itself. Never again for these: after a failed sync a second commit may succeed in vain.
            return [_as_archive_error(error) for _ in group]
        # One of them failed: each by itself, so that nobody fails for a neighbour's fault.
        results: list[object] = []
        for job in group:
            results += self._commit_group([job])
        return results

    def _commit(self, group: list[Job[TransactionT]]) -> list[object]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = self._begin(connection)
            try:
                results = [job(transaction) for job, _ in group]
                self._end(transaction)
            except Exception as error:
                raise _JobFailed(error) from error
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results


class _JobFailed(Exception):
    def __init__(self, error: Exception) -> None:
        self.error = error


def _as_archive_error(error: BaseException) -> ArchiveError:
    if isinstance(error, ArchiveError):
        return error
    if not isinstance(error, sqlite3.Error):
        _log.error("a row cannot be indexed: %s", type(error).__name__, exc_info=error)
    full = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    kind = ArchiveFull if full else ArchiveError
    wrapped = kind(f"the index did not commit: {type(error).__name__}: {getattr(error, 'sqlite_errorname', '')}")
    wrapped.__cause__ = error
    return wrapped
