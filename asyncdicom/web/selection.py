"""What of a fleet is shown: filters, and the order of what they leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from asyncdicom.monitor.state import ModalityState

ROWS = 100
STATES = ("down", "unknown", "up", "quiet")
_MOST_PAGES = 99_999
_LONGEST_TEXT = 100


@dataclass(frozen=True, slots=True)
class Filter:
    """What of the fleet is shown.

    :ivar text: part of a name, AE title or host
    :ivar condition: one of :data:`STATES`, or empty for all
    :ivar group: a group, or empty for all
    :ivar failing: only what is down or quiet
    :ivar page: from 1
    """

    text: str = ""
    condition: str = ""
    group: str = ""
    failing: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """The filter of an address.

        :param query: the parameters of its query
        """
        page = query.get("page", "1")
        return cls(
            text=query.get("q", "")[:_LONGEST_TEXT],
            condition=query.get("state", ""),
            group=query.get("group", ""),
            failing=query.get("failing", "") == "1",
            page=min(int(page), _MOST_PAGES) if page.isascii() and page.isdigit() and len(page) < 6 else 1,
        )

    def address(self, **changed: Any) -> str:
        """The address of the same with something changed; on the first page unless that is what changes."""
        wanted = replace(self, **{"page": 1, **changed})
        pairs = {
            "q": wanted.text,
            "state": wanted.condition,
            "group": wanted.group,
            "failing": "1" if wanted.failing else "",
            "page": str(wanted.page) if wanted.page > 1 else "",
        }
        query = urlencode({key: value for key, value in pairs.items() if value})
        return f"/?{query}" if query else "/"


@dataclass(frozen=True, slots=True)
class Selection:
    """What is shown of a fleet, worst first.

    :ivar rows: those of this page
    :ivar found: how many the filter leaves
    :ivar page: from 1
    :ivar pages: how many there are
    :ivar counts: how many of all modalities are in each of :data:`STATES`
    :ivar groups: every group
    """

    rows: Sequence[ModalityState]
    found: int
    page: int
    pages: int
    counts: dict[str, int]
    groups: Sequence[str]


def select(states: Iterable[ModalityState], shown: Filter) -> Selection:
    """Filter, order and cut into pages: in one pass, because there are thousands and each is asked for often.

    :param states: all of them
    """
    counts = dict.fromkeys(STATES, 0)
    groups: set[str] = set()
    by_condition: dict[str, list[ModalityState]] = {"down": [], "quiet": [], "unknown": [], "up": []}
    wanted, group = shown.text.strip().lower(), shown.group
    condition = shown.condition if shown.condition in STATES else ""
    for state in states:
        is_now = state.condition
        counts[is_now] += 1
        is_quiet = state.quiet_since is not None
        counts["quiet"] += is_quiet
        modality = state.modality
        groups.update(modality.groups)
        if condition and condition != is_now and not (condition == "quiet" and is_quiet):
            continue
        if shown.failing and is_now != "down" and not is_quiet:
            continue
        if group and group not in modality.groups:
            continue
        # By the address as it is shown, which is made of all that is looked for but the name.
        if wanted and wanted not in modality.name.lower() and wanted not in str(modality).lower():
            continue
        # Something is wrong with what is quiet, whatever it answers.
        by_condition["quiet" if is_quiet and is_now != "down" else is_now].append(state)
    found = sorted(by_condition.pop("down"), key=lambda state: (-(state.since or 0.0), state.modality.name))
    for alike in by_condition.values():
        found += sorted(alike, key=lambda state: state.modality.name)
    pages = max(1, -(-len(found) // ROWS))
    page = min(max(1, shown.page), pages)
    return Selection(found[(page - 1) * ROWS : page * ROWS], len(found), page, pages, counts, sorted(groups))
