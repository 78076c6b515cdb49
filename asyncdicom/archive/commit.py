"""Group commit: one thread writes, and everything that waits for it shares a transaction.

A commit costs a sync of the disk however many rows it holds. While one is under way, what arrives is collected for the
next, over all associations; nobody waits for company.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from asyncdicom.errors import ArchiveError, ArchiveFull

_log = logging.getLogger(__name__)

T = TypeVar("T")
TransactionT = TypeVar("TransactionT")

# A bound on how much one failing row makes the others do again.
_MAX_GROUP = 512

_Job = tuple[Callable[[TransactionT], object], "asyncio.Future[object]"]


class GroupCommit(Generic[TransactionT]):
    """One writing thread on one connection.

    :param connection: for this thread alone from now on, in autocommit mode
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
        self._queue: SimpleQueue[_Job[TransactionT] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="archive-index", daemon=True)
        self._thread.start()

    async def submit(self, job: Callable[[TransactionT], T]) -> T:
        """Run a job in a transaction, and return its result once that is committed.

        The job may be run twice, and must do nothing but work on the transaction. When the caller is cancelled the job is
        done all the same.

        :raises ArchiveError: when it was not committed
        """
        if self._closed:
            raise ArchiveError("the index is closed")
        future: asyncio.Future[object] = self._loop.create_future()
        self._queue.put((job, future))
        return cast(T, await future)

    def close(self) -> None:
        """Commit what was submitted, and end the thread. Blocks until it has ended."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            group = [job]
            try:
                while len(group) < _MAX_GROUP:
                    following = self._queue.get_nowait()
                    if following is None:
                        self._queue.put(None)
                        break
                    group.append(following)
            except Empty:
                pass
            results = self._commit_group(group)
            try:
                self._loop.call_soon_threadsafe(_resolve, group, results)
            except RuntimeError:
                # The loop is closed: nobody waits any more. What was submitted is committed nevertheless.
                continue

    def _commit_group(self, group: list[_Job[TransactionT]]) -> list[object]:
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

    def _commit(self, group: list[_Job[TransactionT]]) -> list[object]:
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


def _resolve(group: list[_Job[TransactionT]], results: list[object]) -> None:
    for (_, future), result in zip(group, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


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
