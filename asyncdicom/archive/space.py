"""How much can still be written, without asking the file system for every object."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from asyncdicom.errors import ArchiveFull

# How long an answer of the file system is believed, in seconds. What others write meanwhile goes unseen.
_BELIEVED = 1.0


class Space:
    """The free space above a floor.

    Called from many threads without a lock: a lost subtraction is made good by the next look at the file system.

    :param descriptor: returns an open descriptor on the file system
    :param floor: bytes that must stay free
    """

    def __init__(self, descriptor: Callable[[], int], floor: int) -> None:
        self._descriptor = descriptor
        self._floor = floor
        self._free = 0
        self._asked: float | None = None

    def look(self) -> int:
        """Ask the file system, and return the bytes that an unprivileged user can still write."""
        found = os.fstatvfs(self._descriptor())
        self._free = found.f_bavail * found.f_frsize
        self._asked = time.monotonic()
        return self._free

    def free(self) -> int:
        """Return the free bytes, asking at most once a second."""
        return self.look() if self._stale() else self._free

    def _stale(self) -> bool:
        return self._asked is None or time.monotonic() - self._asked > _BELIEVED

    def take(self, size: int) -> None:
        """Reserve space for an object.

        :raises ArchiveFull: when less than the floor would be left; said only after asking, so that space that has been
            made counts at once
        """
        if not self._floor:
            return
        if self._stale() or self._free - size < self._floor:
            self.look()
        self._free -= size
        if self._free < self._floor:
            raise ArchiveFull(f"less than {self._floor} bytes would stay free")
