"""Many answers made one: the same study, told by several archives, becomes one match with several sources."""

from __future__ import annotations

from collections.abc import Iterator

from asyncdicom.association.query import Match, Query
from asyncdicom.errors import DatasetError


class Merge:
    """Matches by the unique key of their level (PS3.4 C.2.2.1.1). The first to tell of one is the one that is kept.

    :param query: whose level decides what makes two matches the same
    """

    def __init__(self, query: Query) -> None:
        self._key = query.unique_key
        self._merged: dict[object, Match] = {}

    def add(self, match: Match) -> bool:
        """Add a match.

        :return: whether it is one that was not known
        """
        try:
            value = match.dataset.get(self._key) if self._key is not None else None
        except DatasetError:
            value = None
        # What has no unique key, as in a worklist, is the same when every byte is.
        key: object = str(value) if value else match.encoded
        known = self._merged.get(key)
        if known is None:
            self._merged[key] = match
            return True
        known.sources = tuple(dict.fromkeys((*known.sources, *match.sources)))
        return False

    def __len__(self) -> int:
        return len(self._merged)

    def __iter__(self) -> Iterator[Match]:
        return iter(self._merged.values())
