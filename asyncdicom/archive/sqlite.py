"""The index in SQLite: what is kept, sums of it, and the outbox of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from asyncdicom.archive.commit import GroupCommit
from asyncdicom.archive.contract import Addition, Durability, Entry, Event, Row, StudyCounts
from asyncdicom.archive.exclusive import hold
from asyncdicom.archive.folders import sync_folder
from asyncdicom.archive.threads import alone, end, hand
from asyncdicom.errors import ArchiveError, ConfigurationError

T = TypeVar("T")

# Each schema-N.sql brings the one before to version N.
SCHEMA_VERSION = 5
_SETTING = "archive.index"
# WAL with FULL syncs the log at every commit; with NORMAL a power cut loses the last ones, which breaks an acknowledgement.
_SYNCHRONOUS: dict[Durability, str] = {"full": "FULL", "file": "NORMAL", "none": "OFF"}
# Patient IDs are in it.
_FILE_MODE = 0o640
# How long delivered events stay for a look back, in seconds.
DELIVERED_KEPT = 7 * 86400.0
# One of them may be committing for everybody.
_READERS = 3

_FIELDS = (
    "sop_instance_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "study_instance_uid",
    "series_instance_uid",
    "patient_id",
    "accession_number",
    "study_date",
    "modality",
    "path",
    "size",
    "sha256",
    "calling_ae_title",
    "peer_address",
    "received_at",
    "variant",
)
_COLUMNS = ", ".join(_FIELDS)
_INSERT = (
    f"INSERT INTO instances ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))})"  # noqa: S608 (names of ours)
    " ON CONFLICT (sop_instance_uid, variant) DO NOTHING"
)
_SELECT = f"SELECT {_COLUMNS} FROM instances"  # noqa: S608 (names of ours)
_EVENT = "INSERT INTO outbox (kind, payload, created_at) VALUES (?, ?, ?)"
_ADD_STUDY = """
INSERT INTO studies (study_instance_uid, patient_id, accession_number, study_date,
                     instances, size, first_received, last_received)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (study_instance_uid) DO UPDATE SET
    instances = instances + excluded.instances, size = size + excluded.size,
    last_received = max(last_received, excluded.last_received), completed_at = NULL
"""
_ADD_SERIES = """
INSERT INTO series (study_instance_uid, series_instance_uid, modality, instances, size) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (study_instance_uid, series_instance_uid) DO UPDATE SET
    instances = instances + excluded.instances, size = size + excluded.size
"""
_ADD_SENDER = """
INSERT INTO senders (calling_ae_title, last_received) VALUES (?, ?)
ON CONFLICT (calling_ae_title) DO UPDATE SET last_received = max(last_received, excluded.last_received)
"""


class Transaction:
    """What one group of changes works on, and what they add up to."""

    def __init__(self, connection: sqlite3.Connection, root: Path, outbox: bool) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self._root = root
        self._outbox = outbox
        # Instances of a group usually belong to a few series: the sums are written once for each, and not for every row.
        self._studies: dict[str, list[Any]] = {}
        self._series: dict[tuple[str, str], list[Any]] = {}
        self._senders: dict[str, float] = {}

    def add(self, entry: Entry, supersedes: Sequence[int], duplicate: str | None) -> bool:
        for row_id in supersedes:
            self.remove(row_id)
        cursor = self.execute(_INSERT, [getattr(entry, name) for name in _FIELDS])
        if cursor.rowcount == 0:
            if supersedes:
                # Half of it is done: the whole must not be.
                raise ArchiveError("an instance is there that should have been superseded")
            return False
        study, received = entry.study_instance_uid, entry.received_at
        tally = self._studies.get(study)
        if tally is None:
            tally = [entry.patient_id, entry.accession_number, entry.study_date, 0, 0, received, received]
            self._studies[study] = tally
        tally[3] += 1
        tally[4] += entry.size
        tally[6] = received
        tally = self._series.setdefault((study, entry.series_instance_uid), [entry.modality, 0, 0])
        tally[1] += 1
        tally[2] += entry.size
        self._senders[entry.calling_ae_title] = received
        if self._outbox:
            self.execute(_EVENT, ("instance.stored", _payload(entry, self._root, duplicate), received))
        return True

    def remove(self, row_id: int) -> None:
        found = self.execute(
            "DELETE FROM instances WHERE id = ? RETURNING study_instance_uid, series_instance_uid, size", (row_id,)
        ).fetchone()
        if found is None:
            return
        study, series, size = found
        # What this group has added up so far is written first: it may be this very row.
        self.flush()
        for table, key, values in (
            ("series", "study_instance_uid = ? AND series_instance_uid = ?", (study, series)),
            ("studies", "study_instance_uid = ?", (study,)),
        ):
            self.execute(f"UPDATE {table} SET instances = instances - 1, size = size - ? WHERE {key}", (size, *values))  # noqa: S608
            self.execute(f"DELETE FROM {table} WHERE instances = 0 AND {key}", values)  # noqa: S608

    def flush(self) -> None:
        for study, tally in self._studies.items():
            self.execute(_ADD_STUDY, (study, *tally))
        for (study, series), tally in self._series.items():
            self.execute(_ADD_SERIES, (study, series, *tally))
        for sender, received in self._senders.items():
            self.execute(_ADD_SENDER, (sender, received))
        self._studies.clear()
        self._series.clear()
        self._senders.clear()


class SQLiteIndex:
    """An index in one file, for one process.

    :param path: the database; made when it is missing, with its folder
    :param durability: how safe a commit is: ``full`` syncs every one, ``file`` leaves the last ones to the system
    :param root: the archive's directory: events name files by absolute paths
    :param outbox: write an event for each instance, in its transaction
    """

    def __init__(self, path: Path, *, durability: Durability = "full", root: Path | None = None, outbox: bool = True) -> None:
        self.path = path
        self._outbox = outbox
        self._root = root or Path()
        self._durability = durability
        self._lock = -1
        self._commits: GroupCommit[Transaction] | None = None
        self._writer: sqlite3.Connection | None = None
        self._readers: ThreadPoolExecutor | None = None
        # A connection for every thread that reads, opened when it first does, closed together.
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connecting = threading.Lock()

    async def open(self) -> None:
        """Open the database, and bring it to the current schema.

        :raises ConfigurationError: when it cannot be used, is in use, or comes from a newer version
        """
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="archive-index-read")
        try:
            self._writer = await asyncio.get_running_loop().run_in_executor(self._readers, self._open)
            self._commits = GroupCommit(self._writer, self._begin, Transaction.flush)
        except BaseException:
            await self.close()
            raise

    async def open_for_reading(self) -> None:
        """Look without taking possession: whoever has the index goes on.

        :raises ConfigurationError: when there is none, or it comes from another version
        """
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="archive-index-read")
        if not await asyncio.get_running_loop().run_in_executor(self._readers, self.path.is_file):
            await self.close()
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", "there is no such file: nothing was received yet")
        try:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._check)
        except BaseException:
            await self.close()
            raise

    def _check(self) -> None:
        # Connecting would make one.
        if not self.path.is_file():
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", "there is no such file: nothing was received yet")
        try:
            ((version,),) = self._read("PRAGMA user_version")
        except ArchiveError as error:
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", f"it cannot be used: {error}") from error
        if version != SCHEMA_VERSION:
            remedy = f"another version wrote it (schema {version}): start the service once"
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", remedy)

    def _open(self) -> sqlite3.Connection:
        try:
            missing = [path for path in self.path.parents if not path.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._durability == "full":
                for path in missing:
                    sync_folder(path.parent)
            # A file of its own: SQLite loses its own locks on a database when anybody in the process closes a descriptor of it.
            lock = self.path.with_name(self.path.name + ".lock")
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", f"it cannot be used: {error.strerror}") from error
        hold(self._lock, self.path, _SETTING)
        try:
            self._make()
            connection = self._connect()
            try:
                connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durability]}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA cache_size = -32768")
                self._migrate(connection)
            except BaseException:
                connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(_SETTING, f"sqlite:{self.path}", f"it cannot be used: {error}") from error
        return connection

    def _make(self) -> None:
        # SQLite would make it readable for everybody. Its log and its shared memory get the mode of the database.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))

    def _begin(self, connection: sqlite3.Connection) -> Transaction:
        return Transaction(connection, self._root, self._outbox)

    def _connect(self) -> sqlite3.Connection:
        # Opened and closed by different threads, used by one at a time.
        return sqlite3.connect(self.path, timeout=10.0, isolation_level=None, check_same_thread=False)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ConfigurationError(
                _SETTING,
                f"sqlite:{self.path}",
                f"a newer version wrote it (schema {version}, this one knows {SCHEMA_VERSION}):"
                " use that version, or another file",
            )
        if version < SCHEMA_VERSION:
            folder = resources.files("asyncdicom.archive")
            names = [f"schema-{following}.sql" for following in range(version + 1, SCHEMA_VERSION + 1)]
            schemas = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
            # All of them or none.
            connection.executescript(f"BEGIN IMMEDIATE;\n{schemas}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;")

    async def close(self) -> None:
        """Commit what is under way and give everything back."""
        readers, self._readers = self._readers, None
        if readers is None:
            return
        # First, because a connection that is closed while a thread reads from it takes the process along.
        await end(readers)
        await alone(self._close)

    def _close(self) -> None:
        commits, self._commits = self._commits, None
        if commits is not None:
            commits.close()
        with self._connecting:
            connections, self._connections = self._connections, []
            self._local = threading.local()
        for connection in connections:
            connection.close()
        if self._writer is not None:
            # The last to close: it checkpoints the log into the database.
            self._writer.close()
            self._writer = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Writing

    async def write(self, job: Callable[[Transaction], T]) -> T:
        if self._readers is None or self._commits is None:
            raise ArchiveError("the index is not open")
        told: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Done whether the caller is cancelled or not.
        hand(self._readers, self._commits.submit, [(job, told)])
        return await told

    def submit(self, additions: Sequence[Addition]) -> None:
        """Do what :meth:`add` does for some at once, from a thread of the caller's, which this may block.

        :raises ArchiveError: when the index is not open
        """
        commits = self._commits
        if commits is None:
            raise ArchiveError("the index is not open")
        commits.submit([(_adding(*addition[:3]), addition.told) for addition in additions])

    async def add(self, entry: Entry, supersedes: Sequence[int] = (), duplicate: str | None = None) -> bool:
        """Add an instance and its event in one transaction, and return once that is committed.

        :param supersedes: rows that this one takes the place of
        :return: False, and nothing added, when this SOP instance (and variant) is there already
        :raises ArchiveError: when it could not be committed
        """
        return await self.write(_adding(entry, supersedes, duplicate))

    async def remove(self, rows: Iterable[int]) -> None:
        """Remove rows whose files are gone.

        :raises ArchiveError: when it could not be committed
        """
        ids = list(rows)

        def job(transaction: Transaction) -> None:
            for row_id in ids:
                transaction.remove(row_id)

        await self.write(job)

    async def outbox_add(self, kind: str, payload: dict[str, Any]) -> int:
        """Put an event into the outbox, and return its id once it is committed."""
        text = json.dumps(payload)

        def job(transaction: Transaction) -> int:
            cursor = transaction.execute(_EVENT, (kind, text, time.time()))
            return int(cursor.lastrowid or 0)

        return await self.write(job)

    async def outbox_delivered(self, ids: Iterable[int]) -> None:
        """Mark events as delivered; those delivered more than a week ago are removed."""
        values = list(ids)

        def job(transaction: Transaction) -> None:
            now = time.time()
            for event_id in values:
                transaction.execute("UPDATE outbox SET delivered_at = ? WHERE id = ?", (now, event_id))
            transaction.execute("DELETE FROM outbox WHERE delivered_at < ?", (now - DELIVERED_KEPT,))

        await self.write(job)

    async def complete_studies(self, quiet_since: float, limit: int = 100) -> list[str]:
        """Tell of studies that received nothing lately: an event ``study.complete`` each, once, until more arrives.

        :param quiet_since: seconds since the epoch; studies whose last instance is older
        :return: their Study Instance UIDs; the rest beyond ``limit`` waits for the next call
        """

        def job(transaction: Transaction) -> list[str]:
            transaction.flush()
            found = transaction.execute(
                "SELECT study_instance_uid, instances, size, first_received, last_received FROM studies"
                " WHERE completed_at IS NULL AND last_received <= ? AND study_instance_uid <> ''"
                " ORDER BY last_received LIMIT ?",
                (quiet_since, limit),
            ).fetchall()
            now = time.time()
            for study, instances, size, first, last in found:
                payload = {
                    "StudyInstanceUID": study,
                    "instances": instances,
                    "size": size,
                    "first_received": first,
                    "last_received": last,
                }
                transaction.execute("UPDATE studies SET completed_at = ? WHERE study_instance_uid = ?", (now, study))
                transaction.execute(_EVENT, ("study.complete", json.dumps(payload), now))
            return [study for study, *_ in found]

        return await self.write(job)

    # Reading

    def _read(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Read on the calling thread's own connection."""
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
                with self._connecting:
                    self._connections.append(connection)
                    self._local.connection = connection
            return list(connection.execute(sql, parameters))
        except sqlite3.Error as error:
            raise ArchiveError(f"the index cannot be read: {error}") from error

    async def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        if self._readers is None:
            raise ArchiveError("the index is not open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, sql, parameters)

    def rows_of(self, sop_instance_uid: str) -> list[Row]:
        """The instances with this UID. Blocks: called on the archive's threads.

        :raises ArchiveError: when the index cannot be read
        """
        sql = "SELECT id, path, sha256 FROM instances WHERE sop_instance_uid = ? ORDER BY variant"
        return [Row(*row) for row in self._read(sql, (sop_instance_uid,))]

    def last_received_at(self) -> float | None:
        """When the instance that was added last arrived (seconds since the epoch, UTC). Blocks."""
        rows = self._read("SELECT received_at FROM instances ORDER BY id DESC LIMIT 1")
        return float(rows[0][0]) if rows else None

    def last_rows(self, count: int) -> list[Row]:
        """The instances that were added last. Blocks: called on the archive's threads."""
        sql = "SELECT id, path, sha256 FROM instances ORDER BY id DESC LIMIT ?"
        return [Row(*row) for row in self._read(sql, (count,))]

    async def page(self, *, after: int, limit: int) -> list[tuple[int, Entry]]:
        """The instances in the order of their rows, each with the id of its row.

        :param after: leave out those with this id and before
        """
        rows = await self.ask(f"SELECT id, {_COLUMNS} FROM instances WHERE id > ? ORDER BY id LIMIT ?", (after, limit))  # noqa: S608
        return [(row_id, Entry(*values)) for row_id, *values in rows]

    async def has(self, row_id: int, path: str) -> bool:
        """Whether a row is still there and names this file."""
        return bool(await self.ask("SELECT 1 FROM instances WHERE id = ? AND path = ?", (row_id, path)))

    async def ping(self) -> None:
        """Return when the index answers.

        :raises ArchiveError: when it does not
        """
        await self.ask("SELECT 1 FROM instances LIMIT 1")
        await self.write(lambda transaction: None)

    async def study_counts(self, study_uid: str) -> StudyCounts:
        """What is there of one study; all zero for one that is not known."""
        sql = (
            "SELECT (SELECT count(*) FROM series WHERE study_instance_uid = s.study_instance_uid),"
            " instances, size, first_received, last_received FROM studies AS s WHERE study_instance_uid = ?"
        )
        rows = await self.ask(sql, (study_uid,))
        return StudyCounts(study_uid, *rows[0]) if rows else StudyCounts(study_uid)

    async def studies(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The studies that received something last, latest first, with their sums. For pages, so without patients."""
        sql = (
            "SELECT study_instance_uid, study_date, instances, size, first_received, last_received, completed_at,"
            " (SELECT count(*) FROM series WHERE study_instance_uid = s.study_instance_uid)"
            " FROM studies AS s ORDER BY last_received DESC LIMIT ?"
        )
        names = (
            "study_instance_uid",
            "study_date",
            "instances",
            "size",
            "first_received",
            "last_received",
            "completed_at",
            "series",
        )
        return [dict(zip(names, row, strict=True)) for row in await self.ask(sql, (limit,))]

    async def instances(self, *, study_uid: str | None = None, sop_instance_uid: str | None = None) -> list[Entry]:
        """The instances of one study, or of one SOP Instance UID."""
        if (study_uid is None) == (sop_instance_uid is None):
            raise ValueError("ask for a study or for a SOP Instance UID")
        if study_uid is not None:
            rows = await self.ask(f"{_SELECT} WHERE study_instance_uid = ? ORDER BY id", (study_uid,))
        else:
            rows = await self.ask(f"{_SELECT} WHERE sop_instance_uid = ? ORDER BY id", (sop_instance_uid,))
        return [Entry(*row) for row in rows]

    async def outbox_pending(self) -> tuple[int, float | None]:
        """How many events wait to be delivered, and when the oldest was created (seconds since the epoch, UTC)."""
        sql = (
            "SELECT count(*), (SELECT created_at FROM outbox WHERE delivered_at IS NULL ORDER BY id LIMIT 1)"
            " FROM outbox WHERE delivered_at IS NULL"
        )
        ((count, oldest),) = await self.ask(sql)
        return count, oldest

    async def outbox(self, *, after: int = 0, limit: int = 100) -> list[Event]:
        """Events that wait to be delivered, oldest first.

        :param after: leave out those with this id and before
        """
        sql = "SELECT id, kind, payload, created_at FROM outbox WHERE delivered_at IS NULL AND id > ? ORDER BY id LIMIT ?"
        rows = await self.ask(sql, (after, limit))
        return [Event(event_id, kind, json.loads(payload), created) for event_id, kind, payload, created in rows]

    async def last_received(self) -> dict[str, float]:
        """For every calling AE title, when its last instance arrived (seconds since the epoch, UTC)."""
        return dict(await self.ask("SELECT calling_ae_title, last_received FROM senders"))

    def __repr__(self) -> str:
        return f"<SQLiteIndex {str(self.path)!r}: {'closed' if self._commits is None else 'open'}>"


def _adding(entry: Entry, supersedes: Sequence[int], duplicate: str | None) -> Callable[[Transaction], bool]:
    return lambda transaction: transaction.add(entry, supersedes, duplicate)


def _payload(entry: Entry, root: Path, duplicate: str | None) -> str:
    # DICOM's own keywords, so that a command line can name them. No patient: who needs one asks the file.
    return json.dumps(
        {
            "SOPInstanceUID": entry.sop_instance_uid,
            "SOPClassUID": entry.sop_class_uid,
            "StudyInstanceUID": entry.study_instance_uid,
            "SeriesInstanceUID": entry.series_instance_uid,
            "Modality": entry.modality,
            "TransferSyntaxUID": entry.transfer_syntax_uid,
            "path": f"{root}/{entry.path}",
            "size": entry.size,
            "sha256": entry.sha256,
            "calling_ae_title": entry.calling_ae_title,
            "received_at": entry.received_at,
            "duplicate": duplicate,
        }
    )
