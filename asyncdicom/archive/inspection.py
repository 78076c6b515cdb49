"""Is what the index knows still there, byte for byte?"""

from __future__ import annotations

from typing import Literal

from asyncdicom.archive.contract import Entry, Objects
from asyncdicom.errors import ArchiveError

Condition = Literal["intact", "missing", "damaged"]


def condition_of(objects: Objects, entry: Entry) -> Condition:
    """Read an instance again and compare its SHA-256 with that of its arrival. Blocks.

    :raises ArchiveError: when it cannot be read; so does :class:`OSError`
    """
    holder = objects.holder(entry.path)
    if holder is None:
        return "missing"
    # A header that is not readable any more, or another instance's, is as bad as wrong pixels.
    if holder.sop_instance_uid != entry.sop_instance_uid.strip("\0 ") or holder.size != entry.size:
        return "damaged"
    try:
        return "intact" if objects.digest(entry.path, holder) == entry.sha256 else "damaged"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise ArchiveError(f"{entry.path} cannot be read: {error.strerror}") from error
