"""What an archive promises, and what it asks of the two things that it stands on: a place for bytes, and an index."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from asyncdicom.elements import Buffer
from asyncdicom.outcome import Status

Durability = Literal["full", "file", "none"]
DURABILITIES: tuple[Durability, ...] = ("full", "file", "none")

Duplicates = Literal["keep-first", "replace", "keep-all", "reject"]
DUPLICATES: tuple[Duplicates, ...] = ("keep-first", "replace", "keep-all", "reject")

DuplicateOutcome = Literal["identical", "kept", "replaced", "added", "rejected"]

# The statuses of C-STORE that an archive gives: PS3.4 Table B.2-1 and PS3.7 section 9.1.1.1.9.
SUCCESS = Status(0x0000)
DUPLICATE_SOP_INSTANCE = Status(0x0111)
OUT_OF_RESOURCES = Status(0xA700)
CANNOT_UNDERSTAND = Status(0xC000)
MISMATCH = Status(0xB007)

# How long each step of keeping one object took: the step's name as Observer.write_step knows it, and seconds.
Steps = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one instance.

    :ivar status: the DIMSE status for its sender (PS3.4 Table B.2-1)
    :ivar path: the file that holds this SOP instance; None when there is none, or when the instance was rejected
    :ivar duplicate: how it was dealt with when the SOP instance was there already: ``identical``, ``kept``,
        ``replaced``, ``added`` or ``rejected``; None for one that is new
    :ivar doubts: what is odd about it, in the words of :mod:`asyncdicom.archive.conformance`
    """

    status: Status
    path: Path | None = None
    duplicate: DuplicateOutcome | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance as the index knows it.

    :ivar path: where it lies, relative to the archive's directory, with ``/`` between folders
    :ivar size: bytes of the dataset, without File Meta Information
    :ivar sha256: hexadecimal SHA-256 of the dataset's bytes
    :ivar received_at: seconds since the epoch (UTC)
    :ivar variant: empty for the one instance that usually exists; the SHA-256 for others that ``keep-all`` added
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    accession_number: str
    study_date: str
    modality: str
    path: str
    size: int
    sha256: str
    calling_ae_title: str
    peer_address: str
    received_at: float
    variant: str = ""

    def as_json(self) -> dict[str, Any]:
        """Every field, for an interface of a program."""
        return asdict(self)


class Addition(NamedTuple):
    """One instance for the index, as :meth:`Index.add` takes it.

    :ivar told: a future of the loop that opened the index: what that returns or raises
    """

    entry: Entry
    supersedes: Sequence[int]
    duplicate: str | None
    told: asyncio.Future[bool]


@dataclass(frozen=True, slots=True)
class Row:
    """As much of an indexed instance as a decision about a duplicate needs."""

    id: int
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class StudyCounts:
    """What is there of one study.

    :ivar size: bytes of its datasets
    :ivar first_received: seconds since the epoch (UTC); None when nothing is there
    """

    study_instance_uid: str
    series: int = 0
    instances: int = 0
    size: int = 0
    first_received: float | None = None
    last_received: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the outbox.

    :ivar id: grows with every event and never comes twice: the key by which a receiver recognises a repetition
    :ivar kind: ``instance.stored`` or ``study.complete``, ...
    :ivar payload: what happened
    :ivar created_at: seconds since the epoch (UTC)
    """

    id: int
    kind: str
    payload: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Holder:
    """What the head of a stored file says about it.

    :ivar offset: where its dataset begins
    :ivar size: bytes of the dataset
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    offset: int
    size: int


class Draft(ABC):
    """An object that is arriving: nobody sees it yet. It blocks, and is used by one thread at a time.

    :ivar size: bytes of the dataset so far
    """

    size: int = 0

    @property
    @abstractmethod
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the dataset; empty when it was not asked for."""

    @abstractmethod
    def append(self, parts: Sequence[Buffer]) -> None:
        """Add to the dataset.

        :raises OSError: when that cannot be written
        """

    @abstractmethod
    def read(self, size: int, at: int) -> bytes:
        """Read some of the dataset."""

    @abstractmethod
    def discard(self) -> None:
        """Let go of it all. Harmless when it is gone already."""


# A dataset to be kept: in the parts that it came in, or written already.
Content = Sequence[Buffer] | Draft


class Objects(Protocol):
    """A place for bytes. Every method blocks and is called on threads of the archive's own.

    Paths are relative, with ``/`` between folders. A path is visible only when what it names is whole, and what a method
    has returned from is as durable as was asked for. Every failure is an :class:`OSError` or an
    :class:`~asyncdicom.errors.ArchiveError`, and leaves nothing behind.
    """

    def open(self) -> None:
        """Take possession, and remove what an earlier life left half done.

        :raises ConfigurationError: when another process has it, or it cannot be used at all
        """

    def close(self) -> None:
        """Give everything back."""

    @property
    def is_memory(self) -> bool:
        """Whether no device stands behind it, so that nothing here waits for one."""
        ...

    @property
    def syncs_names(self) -> bool:
        """Whether there is anything to do for :meth:`settle_names`."""
        ...

    def exists(self, path: str) -> bool:
        """Whether something has this name."""

    def holder(self, path: str) -> Holder | None:
        """What holds this name; None when nothing does."""

    def matches(self, path: str, holder: Holder, data: Content) -> bool:
        """Whether the dataset under this name has exactly these bytes."""

    def digest(self, path: str, holder: Holder) -> str:
        """The hexadecimal SHA-256 of the dataset under this name."""

    def head(self, path: str, holder: Holder, size: int) -> bytes:
        """The first bytes of the dataset under this name."""

    def draft(self, header: bytes, *, hashed: bool) -> Draft:
        """Begin an object whose dataset is still arriving.

        :param hashed: whether its SHA-256 will be asked for
        """

    def create(self, path: str, header: bytes, data: Content, steps: Steps) -> None:
        """Keep an object under a name that must be free. The name is as durable as was asked for after
        :meth:`settle_names`, which is good for all names in a folder.

        :param data: the dataset; a draft is used up, unless the name is taken
        :raises FileExistsError: when it is
        """

    def replace(self, path: str, header: bytes, data: Content, steps: Steps, *, undoable: bool) -> None:
        """Keep an object under a name that is taken, atomically.

        :param data: the dataset; a draft is used up
        :param undoable: what was there before is kept aside until :meth:`forget` or :meth:`restore` says what to do
        """

    def restore(self, path: str) -> None:
        """Put back what :meth:`replace` kept aside."""

    def forget(self, path: str) -> None:
        """Drop what :meth:`replace` kept aside."""

    def set_aside(self) -> list[tuple[str, Holder]]:
        """What an earlier life kept aside: for each path, what it held before."""

    def digest_aside(self, path: str, holder: Holder) -> str:
        """The hexadecimal SHA-256 of the dataset that was kept aside for this path."""

    def remove(self, path: str) -> None:
        """Remove an object, and folders that are empty then."""

    def settle_names(self, folder: str) -> None:
        """Make the names in a folder as durable as was asked for."""

    def settle(self, path: str) -> None:
        """Make sure that what is there already is as durable as was asked for."""

    def files_since(self, since: float, depth: int) -> Iterator[str]:
        """Every object in a folder in which a name was given since a time.

        :param since: seconds since the epoch (UTC)
        :param depth: how many folders an object lies in
        """

    def free_bytes(self) -> int:
        """Bytes that can still be written."""

    def take(self, size: int) -> None:
        """Ask for space.

        :raises ArchiveFull: when less than the floor would be left
        """


class RowReader(Protocol):
    """What a decision about a duplicate asks of an index. Both block: they are called on the archive's threads.

    :raises ArchiveError: when the index cannot be read
    """

    def rows_of(self, sop_instance_uid: str) -> Sequence[Row]:
        """The instances with this UID, the first one first."""

    def last_received_at(self) -> float | None:
        """When the instance that was added last arrived (seconds since the epoch, UTC); None when there is none."""

    def last_rows(self, count: int) -> Sequence[Row]:
        """The instances that were added last."""


class Index(RowReader, Protocol):
    """What is kept, and who is still to be told."""

    async def open(self) -> None:
        """Take possession.

        :raises ConfigurationError: when it cannot be used, or another process has it
        """

    async def close(self) -> None:
        """Commit what is under way and give everything back."""

    async def add(self, entry: Entry, supersedes: Sequence[int] = (), duplicate: str | None = None) -> bool:
        """Add an instance and its event in one transaction, and return once that is committed.

        :param supersedes: rows that this one takes the place of
        :return: False, and nothing added, when this SOP instance (and variant) is there already
        :raises ArchiveError: when it could not be committed
        """

    def submit(self, additions: Sequence[Addition]) -> None:
        """Do what :meth:`add` does for some at once, from a thread of the caller's, which this may block.

        :raises ArchiveError: when the index is not open
        """

    async def remove(self, rows: Iterable[int]) -> None:
        """Remove rows whose files are gone.

        :raises ArchiveError: when it could not be committed
        """

    async def ping(self) -> None:
        """Return when the index answers.

        :raises ArchiveError: when it does not
        """

    async def study_counts(self, study_uid: str) -> StudyCounts:
        """What is there of one study; all zero for one that is not known."""

    async def instances(self, *, study_uid: str | None = None, sop_instance_uid: str | None = None) -> list[Entry]:
        """The instances of one study, or of one SOP Instance UID."""

    async def outbox_pending(self) -> tuple[int, float | None]:
        """How many events wait to be delivered, and when the oldest was created (seconds since the epoch, UTC)."""

    async def last_received(self) -> dict[str, float]:
        """For every calling AE title, when its last instance arrived (seconds since the epoch, UTC)."""
