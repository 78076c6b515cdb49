"""The storage page: what arrives, from whom, which studies are in progress or complete, and how long the disk will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from asyncdicom.monitor.arrivals import Arrived
from asyncdicom.monitor.space import Forecast
from asyncdicom.web import marks, words
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.markup import Child, Markup, element, joined
from asyncdicom.web.shell import Shell, live

# Studies on the page.
STUDIES = 50
# Whoever has sent lately is what one looks for; who has not is on the page of its modality.
_SENDERS = 200
# A disk that lasts longer than this does not fill up, as far as anybody plans; in seconds.
_LONG = 5 * 365 * 86_400.0
_SOON = 2 * 86_400.0
_TRUSTED = 3600.0
_DUPLICATES = {
    "identical": "the same once more: nothing was written",
    "kept": "another under the same UID: the first was kept",
    "replaced": "another under the same UID: it replaced the first",
    "added": "another under the same UID: both are kept",
    "rejected": "another under the same UID: refused",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown.

    :ivar storage: the storage SCP; None without one
    :ivar studies: as the index has them, latest first
    :ivar senders: calling AE title to when its last instance came, in seconds since the epoch
    :ivar now: seconds since the epoch
    :ivar names: AE title to the names of the modalities that have it
    """

    storage: StorageSummary | None
    studies: Sequence[Mapping[str, Any]]
    senders: Mapping[str, float]
    now: float
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def page(shell: Shell, shown: Shown) -> str:
    """The whole page."""
    return shell.page("Storage", fragment(shown), here="/storage")


def fragment(shown: Shown) -> Markup:
    """What of it changes by itself."""
    storage = shown.storage
    head = element("h1", "Storage")
    if storage is None:
        return live("Storage", head, element("p", "The configuration has no [scp]: nothing is received here.", class_="empty"))
    address = element("span", storage.address, class_="mono muted")
    return live(
        "Storage",
        element("div", head, address, class_="headline"),
        _figures(storage, shown),
        marks.card("Arrivals", _arrivals(storage, shown)),
        marks.card("Studies", _studies(storage, shown)),
        marks.card("Duplicates since the start", _duplicates(storage)) if any(storage.duplicates.values()) else None,
        data_storage="",
    )


def _is_complete(study: Mapping[str, Any], storage: StorageSummary, now: float) -> bool:
    # Without targets nobody writes down when a study is complete: the rule is the same.
    return study["completed_at"] is not None or now - study["last_received"] >= storage.settling


def _figures(storage: StorageSummary, shown: Shown) -> Markup:
    in_progress = sum(not _is_complete(study, storage, shown.now) for study in shown.studies)
    and_more = "+" if in_progress == STUDIES else ""
    waiting, oldest = _waiting(storage, shown.now)
    duplicates = sum(storage.duplicates.values())
    free, forecast = _free(storage)
    figures: list[tuple[str, Child, Child, bool]] = [
        ("Instances kept", words.number(storage.instances), "since the start", False),
        ("Received", words.size(storage.received_bytes), joined(("last ", marks.ago(storage.last_received, shown.now))), False),
        (
            "Studies in progress",
            f"{in_progress}{and_more}",
            f"complete after {words.span(storage.settling)} without more",
            False,
        ),
        ("Free space", free, forecast, _fills_soon(storage.forecast)),
        ("Refused", words.number(storage.failed), f"{words.number(storage.rejected)} turned away", storage.failed > 0),
        ("Duplicates", words.number(duplicates), "arrived again", False),
        ("In quarantine", words.number(storage.quarantined), "since the start", storage.quarantined > 0),
        ("Events that wait", waiting, oldest, False),
    ]
    return element(
        "dl",
        [
            element(
                "div",
                element("dt", term),
                element("dd", value, class_=f"figure{' bad' if is_bad else ''}"),
                element("dd", more, class_="muted more") if more is not None else None,
                class_="tile",
            )
            for term, value, more, is_bad in figures
        ],
        class_="board",
    )


def _waiting(storage: StorageSummary, now: float) -> tuple[Child, Child]:
    if storage.pending is None:
        return "–", "nobody is told of any"
    if not storage.pending or storage.oldest_pending is None:
        return words.number(storage.pending), "all are delivered"
    return words.number(storage.pending), joined(("the oldest ", marks.ago(storage.oldest_pending, now)))


def _free(storage: StorageSummary) -> tuple[str, str]:
    forecast = storage.forecast
    if storage.free_bytes is None:
        return "–", "no archive, or its file system does not answer"
    free = words.size(storage.free_bytes)
    if forecast is None:
        return free, "how fast it fills is known after some minutes"
    over = f"over the last {words.span(forecast.observed)}"
    if forecast.full_in is None or forecast.full_in > _LONG:
        return free, f"not filling, {over}"
    return free, f"full in {words.span(forecast.full_in)}, at {words.size(forecast.rate * 3600)} an hour {over}"


def _fills_soon(forecast: Forecast | None) -> bool:
    # What one study does to a few minutes alarms nobody.
    if forecast is None or forecast.full_in is None or forecast.observed < _TRUSTED:
        return False
    return forecast.full_in < _SOON


def _arrivals(storage: StorageSummary, shown: Shown) -> Markup:
    known = {arrived.calling_ae_title: arrived for arrived in storage.arrivals}
    for title, at in shown.senders.items():
        known.setdefault(title.strip(), Arrived(title.strip(), last=at))
    latest = sorted(known.values(), key=lambda arrived: (-arrived.last, arrived.calling_ae_title))
    rows = [
        element(
            "tr",
            element("td", arrived.calling_ae_title, class_="mono"),
            element("td", _modalities(shown.names.get(arrived.calling_ae_title, ()))),
            element("td", words.number(arrived.instances), class_="num"),
            element("td", words.size(arrived.received_bytes), class_="num"),
            element("td", words.number(arrived.failed), class_="num reason" if arrived.failed else "num"),
            element("td", marks.ago(arrived.last or None, shown.now), class_="muted"),
        )
        for arrived in latest[:_SENDERS]
    ]
    heads = ("Calling AE title", "Modality", "Instances", "Bytes", "Refused", "Last")
    nothing = "Nobody has sent anything yet."
    return marks.table("Arrivals", heads, rows, nothing, numbers=("Instances", "Bytes", "Refused"))


def _modalities(names: Sequence[str]) -> Child:
    if not names:
        return element("span", "not in the inventory", class_="muted")
    links = [element("a", name, href=f"/modalities/{quote(name, safe='')}") for name in names[:3]]
    more = f" and {len(names) - len(links)} more" if len(names) > len(links) else None
    return [[link, " "] for link in links] + [[more]]


def _studies(storage: StorageSummary, shown: Shown) -> Markup:
    rows = []
    for study in shown.studies:
        state = "complete" if _is_complete(study, storage, shown.now) else "in progress"
        rows.append(
            element(
                "tr",
                element("td", element("span", state, class_=f"pill {'up' if state == 'complete' else 'unknown'}")),
                element("td", study["study_instance_uid"] or "without a UID", class_="mono"),
                element("td", words.number(study["series"]), class_="num"),
                element("td", words.number(study["instances"]), class_="num"),
                element("td", words.size(study["size"]), class_="num"),
                element("td", marks.ago(study["last_received"], shown.now), class_="muted"),
            )
        )
    heads = ("State", "Study Instance UID", "Series", "Instances", "Size", "Last instance")
    return marks.table("Studies", heads, rows, "Nothing yet, or no index.", numbers=("Series", "Instances", "Size"))


def _duplicates(storage: StorageSummary) -> Markup:
    rows = [
        element(
            "tr",
            element("td", outcome, class_="mono"),
            element("td", _DUPLICATES.get(outcome, "")),
            element("td", words.number(count), class_="num"),
        )
        for outcome, count in storage.duplicates.items()
        if count
    ]
    return marks.table("Duplicates", ("Outcome", "What became of it", "Instances"), rows, numbers=("Instances",))
