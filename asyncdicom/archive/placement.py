"""Where an instance goes, and what becomes of one that is there already: decided and done in one hop, on a thread.

The archive sees to it that a SOP Instance UID is in here once at a time. Different ones may still meet at a path; there
the file system decides, which gives a name away only once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from asyncdicom.archive.conformance import QUARANTINE, SUSPECT, doubts_of
from asyncdicom.archive.contract import (
    Content,
    Draft,
    DuplicateOutcome,
    Duplicates,
    Entry,
    Holder,
    Objects,
    Row,
    RowReader,
    Steps,
)
from asyncdicom.archive.keys import Keys, read_keys
from asyncdicom.archive.layout import Layout, beside
from asyncdicom.association.received import Received
from asyncdicom.elements import DEFLATED, Buffer, Truncated, storable
from asyncdicom.errors import ArchiveError, DatasetError

_log = logging.getLogger(__name__)

# Longer ones than PS3.5 section 9.1 allows occur; beyond this it is no UID.
_MAX_UID = 1024
# The clock may have been set back; what was named so long, in seconds, before the last row is looked for, too.
_OVERLAP = 900.0
# As much of a stored dataset as is read for its keys.
_HEAD = 4 << 20


@dataclass(slots=True)
class Placed:
    """What was done for one instance, and what is left to do.

    :ivar path: what holds the instance now, relative to the archive
    :ivar entry: what the index is still to hold; None when nothing
    :ivar supersedes: the rows that it takes the place of
    :ivar created: the path was free before
    :ivar unsettled: the folder whose names are still to be made durable; None: they are
    :ivar kept_aside: what had the path before is kept until the index has committed
    :ivar obsolete: paths to remove once it has
    :ivar doubts: what is odd about the instance, in the words of :mod:`asyncdicom.archive.conformance`
    :ivar adopted: the entry is that of a file that the index did not know, and the instance is still to be placed
    """

    path: str
    duplicate: DuplicateOutcome | None = None
    entry: Entry | None = None
    supersedes: Sequence[int] = ()
    created: bool = False
    unsettled: str | None = None
    kept_aside: bool = False
    obsolete: Sequence[str] = ()
    adopted: bool = False
    doubts: tuple[str, ...] = ()
    steps: Steps = field(default_factory=list)


@dataclass(slots=True)
class _Offer:
    """An instance that asks for a place."""

    received: Received
    data: Content
    size: int
    header: bytes
    keys: Keys
    path: str
    sha256: str
    steps: Steps


class Placement:
    """Puts instances in their places. Every method blocks.

    :param index: what knows the instances that are there; None: the names of the files alone tell
    """

    def __init__(self, objects: Objects, layout: Layout, duplicates: Duplicates, index: RowReader | None) -> None:
        self._objects = objects
        self._layout = layout
        self._duplicates = duplicates
        self._index = index

    @property
    def _hashes(self) -> bool:
        # Only the index and the names of "keep-all" want it; comparing two files needs none.
        return self._index is not None or self._duplicates == "keep-all"

    def begin(self, received: Received) -> Draft:
        """Begin an instance whose dataset is still arriving.

        :raises DatasetError: when the instance cannot be understood
        :raises ArchiveError: when it cannot be kept; so does :class:`OSError`
        """
        return self._objects.draft(_header(received), hashed=self._hashes)

    def append(self, draft: Draft, parts: Sequence[Buffer]) -> None:
        """Add to a draft, within the space that may be used.

        :raises ArchiveError: when it cannot be kept; so does :class:`OSError`
        """
        self._objects.take(sum(len(part) for part in parts))
        draft.append(parts)

    def place(self, received: Received, contested: bool = False, draft: Draft | None = None) -> Placed:
        """Keep an instance; what names the folder that :meth:`settle` is to be called for then.

        :param contested: whether it is known that its SOP Instance UID is there already
        :param draft: the dataset, where it does not come with `received`
        :raises DatasetError: when the instance cannot be understood
        :raises ArchiveError: when it cannot be kept; so does :class:`OSError`
        """
        header = _header(received)
        if draft is None:
            data: Content = received.parts
            size = received.size
            keys = _keys_of(received)
            sha256 = _digest(received.parts) if self._hashes else ""
            beginning = bytes(received.parts[0][:2])
        else:
            data, size, sha256 = draft, draft.size, draft.sha256
            head = draft.read(_HEAD, 0)
            keys = read_keys(head, received.transfer_syntax_uid, is_whole=size <= _HEAD)
            beginning = head[:2]
        doubts = doubts_of(received, keys, size, beginning)
        path = self._layout.path(received, keys)
        if doubts and not SUSPECT.isdisjoint(doubts):
            path = f"{QUARANTINE}/{path}"
        placed = self._place(_Offer(received, data, size, header, keys, path, sha256, []), contested)
        placed.doubts = doubts
        return placed

    def _place(self, offer: _Offer, contested: bool) -> Placed:
        # Asking for the name first makes an instance that comes again cheap: it is not written to be refused.
        if not contested and not self._objects.exists(offer.path):
            placed = self._create(offer, offer.path)
            if placed is not None:
                return placed
        return self._place_contested(offer)

    def _create(
        self,
        offer: _Offer,
        path: str,
        duplicate: DuplicateOutcome | None = None,
        supersedes: Sequence[int] = (),
        variant: str = "",
        obsolete: Sequence[str] = (),
    ) -> Placed | None:
        """Keep an instance under a name; None when the name is taken."""
        self._take(offer)
        try:
            self._objects.create(path, offer.header, offer.data, offer.steps)
        except FileExistsError:
            return None
        entry = self._entry(offer, path, variant)
        folder = path.rpartition("/")[0] if self._objects.syncs_names else None
        return Placed(path, duplicate, entry, supersedes, created=True, unsettled=folder, obsolete=obsolete, steps=offer.steps)

    def _take(self, offer: _Offer) -> None:
        if not isinstance(offer.data, Draft):
            self._objects.take(offer.size)

    def _entry(self, offer: _Offer, path: str, variant: str = "") -> Entry | None:
        if self._index is None:
            return None
        received, keys = offer.received, offer.keys
        return Entry(
            received.sop_instance_uid,
            received.sop_class_uid,
            received.transfer_syntax_uid,
            keys.study_instance_uid,
            keys.series_instance_uid,
            keys.patient_id,
            keys.accession_number,
            keys.study_date,
            keys.modality,
            path,
            offer.size,
            offer.sha256,
            storable(received.calling_ae_title),
            storable(received.peer_address),
            time.time(),
            variant,
        )

    def _place_contested(self, offer: _Offer) -> Placed:
        rows = [] if self._index is None else self._index.rows_of(offer.received.sop_instance_uid)
        there = [row for row in rows if self._objects.exists(row.path)]
        if there:
            return self._decide(offer, there, [row.id for row in rows])
        # A row without its file (somebody removed it) must not make us say that we have it.
        supersedes = [row.id for row in rows]
        for path in self._names(offer):
            holder = self._objects.holder(path)
            if holder is None:
                placed = self._create(offer, path, supersedes=supersedes)
                if placed is not None:
                    return placed
                holder = self._objects.holder(path)
            if holder is not None and _is_of(holder, offer):
                return self._place_over(offer, path, holder, supersedes)
        raise ArchiveError("every name for the instance is taken by others")

    def _names(self, offer: _Offer) -> tuple[str, str]:
        return offer.path, beside(offer.path, offer.received.sop_instance_uid)

    def _place_over(self, offer: _Offer, path: str, holder: Holder, supersedes: Sequence[int]) -> Placed:
        """A file of this SOP instance is there, and no index tells of it."""
        if self._objects.matches(path, holder, offer.data):
            # It may come from a life that ended before it was durable.
            self._objects.settle(path)
            return Placed(path, "identical", self._entry(offer, path), supersedes)
        if self._index is None:
            return self._decide(offer, [Row(0, path, "")], [])
        # It was named, and then we were killed; or it is older than the index. It was there first.
        self._objects.settle(path)
        return Placed(path, None, self._entry_of_file(path, holder), supersedes, adopted=True)

    def _entry_of_file(self, path: str, holder: Holder) -> Entry:
        head = self._objects.head(path, holder, _HEAD)
        keys = read_keys(head, holder.transfer_syntax_uid, is_whole=holder.size <= _HEAD)
        return Entry(
            holder.sop_instance_uid,
            holder.sop_class_uid,
            holder.transfer_syntax_uid,
            keys.study_instance_uid,
            keys.series_instance_uid,
            keys.patient_id,
            keys.accession_number,
            keys.study_date,
            keys.modality,
            path,
            holder.size,
            self._objects.digest(path, holder),
            holder.calling_ae_title,
            "",
            time.time(),
        )

    def _decide(self, offer: _Offer, there: Sequence[Row], ids: Sequence[int]) -> Placed:
        """The SOP instance is there, with these files: the same bytes are always welcome, others fall to the policy."""
        for row in there:
            if row.sha256 == offer.sha256 and self._index is not None:
                return Placed(row.path, "identical")
        first = there[0].path
        if self._duplicates == "keep-first":
            return Placed(first, "kept")
        if self._duplicates == "reject":
            return Placed(first, "rejected")
        if self._duplicates == "keep-all":
            return self._add(offer)
        return self._replace(offer, [row.path for row in there], ids)

    def _add(self, offer: _Offer) -> Placed:
        # Named by its content: the same bytes come to the same name however often, and in whatever order.
        path = beside(offer.path, offer.sha256)
        placed = self._create(offer, path, "added", variant=offer.sha256)
        if placed is not None:
            return placed
        holder = self._objects.holder(path)
        if holder is None or not _is_of(holder, offer) or not self._objects.matches(path, holder, offer.data):
            raise ArchiveError("the name for one more instance is taken by another")
        self._objects.settle(path)
        return Placed(path, "identical", self._entry(offer, path, offer.sha256))

    def _replace(self, offer: _Offer, there: Sequence[str], ids: Sequence[int]) -> Placed:
        for path in self._names(offer):
            obsolete = [old for old in there if old != path]
            holder = self._objects.holder(path)
            if holder is None:
                placed = self._create(offer, path, "replaced", ids, obsolete=obsolete)
                if placed is not None:
                    return placed
                holder = self._objects.holder(path)
            if holder is not None and (path in there or _is_of(holder, offer)):
                self._take(offer)
                undoable = self._index is not None
                self._objects.replace(path, offer.header, offer.data, offer.steps, undoable=undoable)
                entry = self._entry(offer, path)
                return Placed(path, "replaced", entry, ids, kept_aside=undoable, obsolete=obsolete, steps=offer.steps)
        raise ArchiveError("every name for the instance is taken by others")

    def settle(self, folder: str) -> None:
        """Make the names in a folder durable.

        :raises OSError: when they are not
        """
        self._objects.settle_names(folder)

    def undo(self, placed: Placed) -> None:
        """The index did not take it: take back what was done. What cannot be taken back was not acknowledged either."""
        try:
            if placed.kept_aside:
                self._objects.restore(placed.path)
            elif placed.created:
                self._objects.remove(placed.path)
        except OSError as error:
            _log.error("a file that is not indexed could not be removed: %s", error.strerror)

    def finish(self, placed: Placed) -> None:
        """The index took it: drop what it took the place of."""
        try:
            if placed.kept_aside:
                self._objects.forget(placed.path)
            for path in placed.obsolete:
                self._objects.remove(path)
        except OSError as error:
            _log.error("a file that was replaced could not be removed: %s", error.strerror)

    def recover(self) -> None:
        """Settle what an earlier life was replacing when it ended: the index tells which of the two was acknowledged."""
        for path, holder in self._objects.set_aside():
            if self._is_current(path, holder):
                self._objects.restore(path)
            else:
                self._objects.forget(path)

    def _is_current(self, path: str, holder: Holder) -> bool:
        if self._index is None:
            return not self._objects.exists(path)
        rows = [row for row in self._index.rows_of(holder.sop_instance_uid) if row.path == path]
        return bool(rows) and rows[0].sha256 == self._objects.digest_aside(path, holder)

    def without_file(self, count: int) -> list[int]:
        """Of the rows that were added last, those whose file is not there.

        A commit whose sync failed was refused and its file removed, but it may lie in the log of the database and come
        back when that is read again.
        """
        if self._index is None:
            return []
        return [row.id for row in self._index.last_rows(count) if not self._objects.exists(row.path)]

    def without_row(self, limit: int) -> list[Entry]:
        """Files that an earlier life named last and did not index, each with what the index is to hold of it.

        It ended between naming them and committing their rows: nobody was told that they are kept, and they are whole.

        :param limit: how many to look for
        """
        return list(itertools.islice(self._without_row(), limit))

    def _without_row(self) -> Iterator[Entry]:
        if self._index is None:
            return
        since = (self._index.last_received_at() or 0.0) - _OVERLAP
        for path in self._objects.files_since(since, self._layout.depth):
            holder = self._objects.holder(path)
            if holder is None or not holder.sop_instance_uid:
                continue
            if not self._index.rows_of(holder.sop_instance_uid):
                self._objects.settle(path)
                try:
                    yield self._entry_of_file(path, holder)
                except DatasetError as error:
                    _log.warning("a file that is not indexed cannot be understood: %s", error)


def _is_of(holder: Holder, offer: _Offer) -> bool:
    return holder.sop_instance_uid == offer.received.sop_instance_uid.strip("\0 ")


def _keys_of(received: Received) -> Keys:
    """The keys of an instance: they lie in its first part, as good as always."""
    syntax = received.transfer_syntax_uid
    if len(received.parts) > 1 and syntax not in DEFLATED:
        with contextlib.suppress(Truncated):
            return read_keys(received.parts[0], syntax, is_whole=False)
    return read_keys(received.data, syntax)


def _digest(parts: Sequence[Buffer]) -> str:
    digest = hashlib.sha256(usedforsecurity=False)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _header(received: Received) -> bytes:
    if not 0 < len(received.sop_instance_uid) <= _MAX_UID:
        raise DatasetError("the request has no SOP Instance UID, or one that is none")
    try:
        return received.header
    except (UnicodeEncodeError, struct.error):
        raise DatasetError("a UID of the request is none") from None
