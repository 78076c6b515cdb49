"""Many answers made one: the same study, told by several archives, becomes one match with several sources."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.datadict import tag_for_keyword

from asyncdicom.association.query import Match, Query
from asyncdicom.elements import text, walk
from asyncdicom.errors import DatasetError, TooManyMatches

_CHARACTER_SET = 0x00080005
# Bytes that merged matches may take: half a million of the usual ones. An archive that does not end would take all there is.
_MOST = 256 << 20
# What a match takes besides its bytes.
_OVERHEAD = 400


class Merge:
    """Matches by the unique key of their level (PS3.4 C.2.2.1.1). The first to tell of one is the one that is kept.

    :param query: whose level decides what makes two matches the same
    """

    def __init__(self, query: Query) -> None:
        self._tag = None if query.unique_key is None else tag_for_keyword(query.unique_key)
        self._wanted = frozenset({_CHARACTER_SET, self._tag or _CHARACTER_SET})
        self._merged: dict[str | bytes, Match] = {}
        self._size = 0

    def add(self, match: Match) -> bool:
        """Add a match.

        :return: whether it is one that was not known
        :raises TooManyMatches: when there are more than are held
        """
        # What has no unique key, as in a worklist, is the same when every byte is.
        key = self._key_of(match) or match.encoded
        known = self._merged.get(key)
        if known is None:
            self._size += len(match.encoded) + _OVERHEAD
            if self._size > _MOST:
                raise TooManyMatches(
                    f"more than {len(self._merged):,} matches to merge: narrow the query, or take them as they come, unmerged"
                )
            self._merged[key] = match
            return True
        known.sources = tuple(dict.fromkeys((*known.sources, *match.sources)))
        return False

    def _key_of(self, match: Match) -> str:
        if self._tag is None:
            return ""
        try:
            values = walk(match.encoded, match.transfer_syntax, self._wanted, last=self._tag)
        except DatasetError:
            return ""
        return text(values.get(self._tag, b""), values.get(_CHARACTER_SET, b""))

    def __len__(self) -> int:
        return len(self._merged)

    def __iter__(self) -> Iterator[Match]:
        return iter(self._merged.values())
