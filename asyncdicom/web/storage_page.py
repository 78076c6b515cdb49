"""The storage page: what arrives, from whom, and which studies are in progress or complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdicom.web import words
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.markup import Child, Markup, element
from asyncdicom.web.pages import Shell, ago, storage_overview


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown.

    :ivar storage: the storage SCP; None without one
    :ivar studies: as the index has them, latest first
    :ivar senders: calling AE title to when its last instance came, in seconds since the epoch
    :ivar now: seconds since the epoch
    """

    storage: StorageSummary | None
    studies: Sequence[Mapping[str, Any]]
    senders: Mapping[str, float]
    now: float


def page(shell: Shell, shown: Shown) -> str:
    """The whole page."""
    return shell.page("Storage", fragment(shown))


def fragment(shown: Shown) -> Markup:
    """What of it changes by itself."""
    content: list[Child] = [element("nav", element("a", "‹ Fleet", href="/"), class_="back"), element("h1", "Storage")]
    if shown.storage is None:
        content.append(element("p", "The configuration has no [scp]: nothing is received here.", class_="empty"))
    else:
        content.append(element("div", storage_overview(shown.storage, shown.now), class_="overview"))
        content.append(element("div", element("h2", "Studies"), _studies(shown), class_="card pad"))
        content.append(element("div", element("h2", "Senders"), _senders(shown), class_="card pad"))
    return element("div", content, id="live", data_title="Storage · asyncdicom")


def _table(heads: Sequence[str], rows: list[Markup], nothing: str, numbers: Sequence[str] = ()) -> Markup:
    body = rows or element("tr", element("td", nothing, colspan=len(heads), class_="muted"))
    head = element("thead", element("tr", [_head(name, name in numbers) for name in heads]))
    return element("table", head, element("tbody", body), class_="history sums")


def _head(name: str, is_number: bool) -> Markup:
    return element("th", name, scope="col", class_="num" if is_number else None)


def _studies(shown: Shown) -> Markup:
    rows = [
        element(
            "tr",
            element("td", study["study_instance_uid"] or "without a UID", class_="mono"),
            element("td", "complete" if study["completed_at"] is not None else "in progress"),
            element("td", words.number(study["series"]), class_="num"),
            element("td", words.number(study["instances"]), class_="num"),
            element("td", words.size(study["size"]), class_="num"),
            element("td", ago(study["last_received"], shown.now), class_="muted"),
        )
        for study in shown.studies
    ]
    heads = ("Study Instance UID", "State", "Series", "Instances", "Size", "Last instance")
    return _table(heads, rows, "Nothing yet, or no index.", ("Series", "Instances", "Size"))


def _senders(shown: Shown) -> Markup:
    rows = [
        element("tr", element("td", title, class_="mono"), element("td", ago(at, shown.now), class_="muted"))
        for title, at in sorted(shown.senders.items(), key=lambda pair: -pair[1])
    ]
    return _table(("Calling AE title", "Last instance"), rows, "Nobody has sent anything yet.")
