"""Every instance read again and compared with its row, and every file looked for in the index; nothing is changed.

A service may be at work on the same archive: a file is there before its row is, so a row without its file, like a file
that is some time old without its row, is a difference all the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asyncdicom.archive.contract import Entry
from asyncdicom.archive.directory import Directory
from asyncdicom.archive.inspection import condition_of
from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.archive.threads import alone, end
from asyncdicom.background import to_its_end
from asyncdicom.errors import ArchiveError

# Hashing gives Python's lock away, so more threads are of use; the disk is what they share.
_THREADS = 4
_PAGE = 256
# A file without a row may be one whose row is about to be committed, for so many seconds.
_SETTLED = 60.0


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be.

    :ivar kind: ``missing``: the index knows it and the file is gone; ``damaged``: its bytes are not those that arrived;
        ``unreadable``: the disk refuses; ``unknown``: a file that the index does not know
    :ivar path: relative to the archive
    :ivar detail: what was seen, in one line
    """

    kind: Literal["missing", "damaged", "unreadable", "unknown"]
    path: str
    sop_instance_uid: str = ""
    detail: str = ""


@dataclass(slots=True)
class Progress:
    """How far a verification is.

    :ivar expected: instances that the index knew at the beginning
    :ivar read: those that were read again
    :ivar size: bytes of their datasets
    :ivar files: files that were looked for in the index
    """

    expected: int = 0
    read: int = 0
    size: int = 0
    files: int = 0


async def verify(
    directory: Path, index: Path, progress: Progress, told: Callable[[], None] = lambda: None
) -> AsyncIterator[Difference]:
    """Verify an archive, whether a service is at work on it or not.

    :param directory: of the archive
    :param index: its SQLite database
    :param progress: kept up to date
    :param told: called whenever that has changed
    :raises ConfigurationError: when there is no archive, or no index
    :raises ArchiveError: when the index cannot be read
    """
    objects = Directory(directory, durability="none")
    rows = SQLiteIndex(index, durability="none")
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")
    try:
        await loop.run_in_executor(executor, objects.open_for_reading)
        await rows.open_for_reading()
        ((progress.expected,),) = await rows.ask("SELECT count(*) FROM instances")
        told()
        last = 0
        told_of: set[str] = set()
        while page := await rows.page(after=last, limit=_PAGE):
            last = page[-1][0]
            looks = [loop.run_in_executor(executor, _look, objects, entry) for _, entry in page]
            for (row_id, entry), look in zip(page, looks, strict=True):
                difference = await look
                progress.read += 1
                progress.size += entry.size
                # It may have been replaced while we looked.
                if difference is not None and await rows.has(row_id, entry.path):
                    told_of.add(entry.path)
                    yield difference
            told()
        async for difference in _unknown(objects, rows, executor, progress, told):
            # A file whose header is damaged does not tell which row is its own.
            if difference.path not in told_of:
                yield difference
    finally:
        await to_its_end(_give_back(executor, rows, objects))


async def _give_back(executor: ThreadPoolExecutor, rows: SQLiteIndex, objects: Directory) -> None:
    await end(executor)
    await rows.close()
    await alone(objects.close_after_reading)


def _look(objects: Directory, entry: Entry) -> Difference | None:
    try:
        condition = condition_of(objects, entry)
    except (ArchiveError, OSError) as error:
        return Difference("unreadable", entry.path, entry.sop_instance_uid, str(error))
    if condition == "intact":
        return None
    detail = "the file is gone" if condition == "missing" else "its bytes are not those that arrived"
    return Difference(condition, entry.path, entry.sop_instance_uid, detail)


async def _unknown(
    objects: Directory, rows: SQLiteIndex, executor: ThreadPoolExecutor, progress: Progress, told: Callable[[], None]
) -> AsyncIterator[Difference]:
    loop = asyncio.get_running_loop()
    walk = objects.files(before=time.time() - _SETTLED)
    while page := await loop.run_in_executor(executor, _some, walk):
        for path in page:
            progress.files += 1
            uid = await loop.run_in_executor(executor, _uid_of, objects, path)
            if uid is None:
                continue
            known = await loop.run_in_executor(executor, rows.rows_of, uid) if uid else []
            if all(row.path != path for row in known):
                yield Difference("unknown", path, uid, "no row names this file")
        told()


def _some(walk: Iterator[str]) -> list[str]:
    return list(itertools.islice(walk, _PAGE))


def _uid_of(objects: Directory, path: str) -> str | None:
    """The SOP Instance UID of a file; empty for one that is none of ours, None for one that is gone."""
    try:
        holder = objects.holder(path)
    except (ArchiveError, OSError):
        return ""
    return None if holder is None else holder.sop_instance_uid
