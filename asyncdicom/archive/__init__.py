"""What we keep."""

from asyncdicom.archive.archive import Archive
from asyncdicom.archive.arriving import Arriving
from asyncdicom.archive.contract import Entry, Event, Stored, StudyCounts
from asyncdicom.archive.layout import DEFAULT_LAYOUT

__all__ = ["DEFAULT_LAYOUT", "Archive", "Arriving", "Entry", "Event", "Stored", "StudyCounts"]
