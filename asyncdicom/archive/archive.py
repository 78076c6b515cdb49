"""The promise, in order: written as received, synced, named, its folder synced, indexed with its event, and only then said."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

import aiofiles.os
from anyio import CancelScope

from asyncdicom.archive.arriving import Arriving
from asyncdicom.archive.conformance import MISMATCHED, SUSPECT
from asyncdicom.archive.contract import (
    CANNOT_UNDERSTAND,
    DUPLICATE_SOP_INSTANCE,
    DUPLICATES,
    DURABILITIES,
    MISMATCH,
    OUT_OF_RESOURCES,
    SUCCESS,
    Draft,
    Duplicates,
    Durability,
    Entry,
    Index,
    Objects,
    Stored,
)
from asyncdicom.archive.directory import Directory
from asyncdicom.archive.inspection import Condition, condition_of
from asyncdicom.archive.keeper import Attempt, Keeper
from asyncdicom.archive.layout import DEFAULT_LAYOUT, Layout
from asyncdicom.archive.placement import Placed, Placement
from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.archive.threads import alone, end
from asyncdicom.archive.turns import Turns
from asyncdicom.association.received import Received
from asyncdicom.background import to_its_end
from asyncdicom.errors import ArchiveError, ArchiveFull, ConfigurationError, DatasetError
from asyncdicom.observe import NULL_OBSERVER, Observer

_log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Placed, found out to be there already or adopted, and placed once more.
_ROUNDS = 4
# In memory, what is not larger is written without leaving the loop: this much takes a quarter of a millisecond.
_AT_ONCE = 1 << 20
# More rows than one group commit can have held when a life ended.
_CHECKED_AT_OPENING = 1024
# A life that ended leaves as many without a row as were under way; this many are an archive whose index was lost.
_ADDED_AT_OPENING = 4096


class Archive:
    """Keeps instances in a folder, and says so only when they are safe.

    An async context manager; one process at a time has a directory, or an index. A ``store`` returns
    ``0x0000`` only after the bytes, exactly as received, were synced, visible under their final name, the folder synced, and
    the index row committed together with its event.

    :param directory: where to; made when it is missing
    :param durability: ``full`` as above; ``file`` syncs files alone, so that a power cut may take the last instances;
        ``none`` leaves all of it to the operating system, so that a power cut may leave torn files
    :param layout: folders and file name, from attributes in braces: see :data:`asyncdicom.archive.layout.FIELDS`
    :param duplicates: what becomes of other bytes under a SOP Instance UID that is there already; the same bytes are
        always welcome. ``keep-first`` answers success and drops them, ``replace`` and ``keep-all`` keep them, ``reject``
        answers 0x0111. Without an index an instance counts as there when its path is taken.
    :param min_free: bytes that must stay free; below, instances are refused with 0xA700
    :param index: ``"sqlite:PATH"``; None or ``"none"`` for no index
    :param outbox: write an event ``instance.stored`` for each instance, in the transaction of its row. Only where somebody
        takes them out again (:meth:`SQLiteIndex.outbox`, :meth:`SQLiteIndex.outbox_delivered`): what nobody takes stays
    :param threads: how many instances may be on their way to the disk at once; the rest waits. By default 8, so that
        their syncs overlap, and 2 where nothing is synced
    :raises ConfigurationError: when a parameter is wrong
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        durability: Durability = "full",
        layout: str = DEFAULT_LAYOUT,
        duplicates: Duplicates = "keep-first",
        min_free: int = 0,
        index: str | None = None,
        outbox: bool = False,
        observer: Observer = NULL_OBSERVER,
        threads: int | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise ConfigurationError("archive.durability", durability, f"one of {', '.join(DURABILITIES)}")
        if duplicates not in DUPLICATES:
            raise ConfigurationError("archive.duplicates", duplicates, f"one of {', '.join(DUPLICATES)}")
        if min_free < 0:
            raise ConfigurationError("archive.min_free", min_free, "0 or more bytes")
        if threads is not None and threads < 1:
            raise ConfigurationError("archive.threads", threads, "1 or more")
        self.directory = Path(directory).absolute()
        self.durability = durability
        self.duplicates = duplicates
        self.index: SQLiteIndex | None = _index(index, durability, self.directory, outbox)
        self._observer = observer
        self._threads = threads or (2 if durability == "none" else 8)
        self._objects: Objects = Directory(self.directory, durability=durability, min_free=min_free)
        self._placement = Placement(self._objects, Layout(layout), duplicates, self.index)
        # Each is one hop to a thread, however many steps it takes there.
        self._undo = aiofiles.os.wrap(self._placement.undo)
        self._finish = aiofiles.os.wrap(self._placement.finish)
        self._executor: ThreadPoolExecutor | None = None
        self._keeper: Keeper | None = None
        self._turns = Turns()
        self._under_way: set[asyncio.Task[Stored]] = set()
        self._arriving: WeakSet[Arriving] = WeakSet()
        self._open = False
        self._at_once = False

    # Opening and closing

    async def __aenter__(self) -> Self:
        if self._executor is not None:
            raise RuntimeError("the archive is open already")
        # anyio imports its backend when it is first used; by the time that we need it there may be no descriptor left.
        CancelScope()
        executor = self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="archive")
        try:
            await to_its_end(self._take_possession(executor))
        except BaseException:
            await self._close()
            raise
        self._open = True
        return self

    async def _take_possession(self, executor: ThreadPoolExecutor) -> None:
        await aiofiles.os.wrap(self._objects.open)(executor=executor)
        if self.index is not None:
            await self.index.open()
        await self._recover(executor, self.index)
        self._keeper = Keeper(self._placement, self.index, executor, self._threads)
        self._at_once = self.index is None and self._objects.is_memory

    async def _recover(self, executor: ThreadPoolExecutor, index: Index | None) -> None:
        await aiofiles.os.wrap(self._placement.recover)(executor=executor)
        if index is not None:
            gone = await aiofiles.os.wrap(self._placement.without_file)(_CHECKED_AT_OPENING, executor=executor)
            if gone:
                _log.warning("%d instances are indexed whose files are gone: their rows are removed", len(gone))
                await index.remove(gone)
            found = await aiofiles.os.wrap(self._placement.without_row)(_ADDED_AT_OPENING, executor=executor)
            added = [await index.add(entry) for entry in found]
            if any(added):
                _log.warning("%d instances were kept and not indexed: their rows are added", sum(added))
            if len(found) == _ADDED_AT_OPENING:
                _log.warning("there may be more of them: 'asyncdicom verify' tells")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._open = False
        await to_its_end(self._give_back())

    async def _give_back(self) -> None:
        # Whatever is under way ends by itself, as slowly as the disk is; leaving it would leave files without rows.
        while self._under_way:
            await asyncio.wait(self._under_way)
        for arriving in list(self._arriving):
            await arriving.discard()
        self._keeper = None
        executor, self._executor = self._executor, None
        if executor is not None:
            await end(executor)
        if self.index is not None:
            await self.index.close()
        if executor is not None:
            await alone(self._objects.close)

    # Storing

    async def store(self, received: Received) -> Stored:
        """Keep an instance, and return the status that its sender is to get.

        When the caller is cancelled, what is under way is ended first, one way or the other: the buffer of ``received``
        is not in use any more when this raises.

        :return: ``0x0000`` when it is safe, ``0x0111`` when it is a duplicate to be rejected, ``0xA700`` when it cannot be
            kept, ``0xC000`` when it cannot be understood (PS3.4 Table B.2-1)
        :raises RuntimeError: when the archive is not open
        """
        if not self._open:
            raise RuntimeError("the archive is not open: use 'async with'")
        if self._at_once and received.sop_instance_uid not in self._turns and received.size <= _AT_ONCE:
            return self._keep_at_once(received)
        return await self._keep_to_its_end(received)

    def _keep_at_once(self, received: Received) -> Stored:
        # A hop to a thread and back costs more than all that is done there, and nothing here waits for a device.
        try:
            placed = self._placement.place(received)
            if placed.unsettled is not None:
                self._placement.settle(placed.unsettled)
        except (DatasetError, ArchiveError, OSError) as error:
            return _refusal(received, error)
        for step, seconds in placed.steps:
            self._observer.write_step(step, seconds)
        return self._stored(received, placed)

    def begin(self, received: Received) -> Arriving:
        """Begin an instance whose dataset is still arriving, for those too large for memory.

        :param received: all but its data
        :return: what takes the dataset, and then does what :meth:`store` does
        """
        arriving = Arriving(
            received,
            self._placement.begin,
            self._placement.append,
            partial(self._run, received),
            self._keep_to_its_end,
        )
        self._arriving.add(arriving)
        return arriving

    async def _run(self, received: Received, function: Callable[[], None]) -> Stored | None:
        """Run what blocks on a thread; what goes wrong there is the answer for the sender."""
        try:
            if self._executor is None:
                raise ArchiveError("the archive is closed")
            if self._at_once:
                _do_at_once(function)
                return None
            await asyncio.get_running_loop().run_in_executor(self._executor, function)
        except (DatasetError, ArchiveError, OSError) as error:
            return _refusal(received, error)
        return None

    async def _keep_to_its_end(
        self, received: Received, draft: Draft | None = None, steps: Sequence[tuple[str, float]] = ()
    ) -> Stored:
        task = asyncio.get_running_loop().create_task(self._keep(received, draft, steps))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await to_its_end(task)

    async def _keep(self, received: Received, draft: Draft | None, steps: Sequence[tuple[str, float]]) -> Stored:
        async with self._turns(received.sop_instance_uid):
            for step, seconds in steps:
                self._observer.write_step(step, seconds)
            try:
                return await self._keep_in_turn(received, draft)
            except (DatasetError, ArchiveError, OSError) as error:
                return _refusal(received, error)

    async def _keep_in_turn(self, received: Received, draft: Draft | None) -> Stored:
        executor, keeper = self._executor, self._keeper
        if keeper is None:
            raise ArchiveError("the archive is closed")
        contested = False
        for _ in range(_ROUNDS):
            attempt = Attempt(received, contested, draft)
            placed = None
            try:
                placed = await keeper.keep(attempt)
            finally:
                # The index did not take it, or the SOP instance is there under another path, which only the index knows.
                if placed is None and attempt.placed is not None:
                    await self._undo(attempt.placed, executor=executor)
            for step, seconds in attempt.steps:
                self._observer.write_step(step, seconds)
            if placed is not None and not placed.adopted:
                if placed.kept_aside or placed.obsolete:
                    await self._finish(placed, executor=executor)
                return self._stored(received, placed)
            contested = True
        raise ArchiveError("what is there of this instance changes as fast as it is looked at")

    def _stored(self, received: Received, placed: Placed) -> Stored:
        if placed.duplicate is not None:
            self._observer.duplicate(placed.duplicate)
        if placed.doubts:
            return self._stored_in_doubt(received, placed)
        if placed.duplicate == "rejected":
            return Stored(DUPLICATE_SOP_INSTANCE, None, placed.duplicate)
        received.path = self.directory / placed.path
        return Stored(SUCCESS, received.path, placed.duplicate)

    def _stored_in_doubt(self, received: Received, placed: Placed) -> Stored:
        quarantined = not SUSPECT.isdisjoint(placed.doubts)
        self._observer.nonconformant(placed.doubts, quarantined=quarantined)
        what = ", ".join(placed.doubts)
        becomes = "quarantined" if quarantined else "accepted"
        _log.warning("an instance from %a does not conform (%s): %s", received.calling_ae_title, what, becomes)
        if placed.duplicate == "rejected":
            return Stored(DUPLICATE_SOP_INSTANCE, None, placed.duplicate, placed.doubts)
        received.path = self.directory / placed.path
        return Stored(
            SUCCESS if MISMATCHED.isdisjoint(placed.doubts) else MISMATCH, received.path, placed.duplicate, placed.doubts
        )

    async def inspect(self, sop_instance_uid: str) -> list[tuple[Entry, Condition]]:
        """Read what is kept of a SOP instance again, and compare it with what arrived.

        :return: every object that the index knows of it, with its condition; none when it knows none
        :raises ArchiveError: when the archive is not open or has no index, or cannot be read
        """
        if self._executor is None or self.index is None:
            raise ArchiveError("the archive is not open, or has no index")
        loop, executor = asyncio.get_running_loop(), self._executor
        return [
            (entry, await loop.run_in_executor(executor, condition_of, self._objects, entry))
            for entry in await self.index.instances(sop_instance_uid=sop_instance_uid)
        ]

    def free_bytes(self) -> int:
        """Return the bytes that can still be written, as of at most a second ago. May ask the file system, which blocks:
        call it on a thread where that matters.

        :raises ArchiveError: when the archive is not open
        """
        if not self._open:
            raise ArchiveError("the archive is not open")
        return self._objects.free_bytes()

    def __repr__(self) -> str:
        state = f"open, {len(self._under_way)} under way" if self._open else "closed"
        return f"<Archive {str(self.directory)!r} {self.durability} {self.duplicates} index={self.index!r}: {state}>"


def _do_at_once(function: Callable[[], None]) -> None:
    # As in _keep_at_once: nothing here waits for a device.
    function()


def _index(spec: str | None, durability: Durability, root: Path, outbox: bool) -> SQLiteIndex | None:
    if spec is None or spec == "none":
        return None
    kind, _, where = spec.partition(":")
    if kind == "sqlite" and where:
        return SQLiteIndex(Path(where).absolute(), durability=durability, root=root, outbox=outbox)
    if kind in ("postgresql", "postgres"):
        # Not the value: it may hold a password.
        raise ConfigurationError("archive.index", f"{kind}:", 'PostgreSQL is not supported yet: write "sqlite:PATH" or "none"')
    raise ConfigurationError("archive.index", spec, 'write "sqlite:PATH" or "none"')


def _refusal(received: Received, error: Exception) -> Stored:
    if isinstance(error, DatasetError):
        _log.warning("an instance from %a cannot be understood: %s", received.calling_ae_title, error)
        return Stored(CANNOT_UNDERSTAND)
    _log.warning("an instance from %a is not stored: %s", received.calling_ae_title, _reason(error))
    return Stored(OUT_OF_RESOURCES)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        return f"no space is left ({name})" if error.errno in _FULL else f"the directory cannot be used ({name})"
    if isinstance(error.__cause__, sqlite3.Error):
        return str(error)
    return f"no space is left: {error}" if isinstance(error, ArchiveFull) else str(error)
