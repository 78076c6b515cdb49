"""The fleet page: who is down, since when, what it said, and what to check next. It runs in any thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from asyncdicom.monitor.state import ModalityState
from asyncdicom.web import charts, marks, words
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.markup import Child, Markup, element
from asyncdicom.web.selection import ROWS, STATES, Filter, Selection, select
from asyncdicom.web.shell import Shell, live

# Outcomes that fill the small picture of latencies.
_FEW = 15
_HEADS = ("State", "Modality", "What it says", "Latency", "Last outcomes", "Since")
_LABELS = {"down": "Down", "unknown": "Unknown", "up": "Up", "quiet": "Quiet"}


class FleetPage:
    """Makes the fleet page, and keeps the rows that it made: a state never changes, so neither does what is said of it."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[ModalityState, Markup]] = {}

    def page(self, shell: Shell, states: list[ModalityState], shown: Filter, storage: StorageSummary | None, now: float) -> str:
        """The whole page.

        :param states: all of them
        :param now: seconds since the epoch
        """
        selection = select(states, shown)
        form = _form(shown, selection.groups)
        changing = self._live(selection, shown, len(states), storage, now)
        return shell.page(_title(selection), element("h1", "Fleet", class_="unseen"), form, changing, here="/")

    def fragment(self, states: list[ModalityState], shown: Filter, storage: StorageSummary | None, now: float) -> Markup:
        """What of it changes by itself."""
        return self._live(select(states, shown), shown, len(states), storage, now)

    def _live(self, selection: Selection, shown: Filter, total: int, storage: StorageSummary | None, now: float) -> Markup:
        if len(self._rows) > 2 * total + ROWS:
            # Of modalities that have left.
            self._rows.clear()
        if selection.rows:
            head = element("thead", element("tr", [element("th", head, scope="col") for head in _HEADS]))
            body = Markup("<tbody>" + "".join([self._row(state, now) for state in selection.rows]) + "</tbody>")
            found: Child = element("table", head, body, class_="fleet")
        else:
            nothing = "No modality matches." if total else "The configuration has no modalities yet."
            found = element("p", nothing, class_="empty")
        count = words.number(selection.found)
        told = f"{count} modalities" if selection.found == total else f"{count} of {words.number(total)} modalities"
        return live(
            _title(selection),
            element("div", _tiles(selection.counts, shown), storage_overview(storage, now), class_="overview"),
            element("p", told, class_="found muted", role="status"),
            element("div", found, class_="card"),
            _pager(shown, selection),
        )

    def _row(self, state: ModalityState, now: float) -> Markup:
        name = state.modality.name
        known = self._rows.get(name)
        if known is None or known[0] is not state:
            known = self._rows[name] = (state, _lasting(state))
        # How long it lasts comes last, because it alone changes with the time.
        return Markup(f'{known[1]}<td class="c-since">{marks.since(state, now)}</td></tr>')


def _title(selection: Selection) -> str:
    down = selection.counts["down"]
    return f"{down} down" if down else "Fleet"


def _lasting(state: ModalityState) -> Markup:
    peer = state.modality
    name = element("a", peer.name, href=f"/modalities/{quote(peer.name, safe='')}", class_="name")
    where = element("span", element("b", peer.ae_title), f" {str(peer).partition('@')[2]}", class_="mono muted where")
    latency = state.latency if state.condition == "up" else None
    cells = (
        element("td", marks.pill(state), class_="c-state"),
        element("td", name, where, class_="c-name"),
        element("td", marks.said(state.telling), marks.silence(state), class_="c-words"),
        element("td", words.milliseconds(latency), charts.sparkline(state.samples, slots=_FEW), class_="c-latency num"),
        element("td", charts.strip(state.samples, peer.name), class_="c-strip"),
    )
    return Markup(element("tr", cells, class_=state.condition, data_key=peer.name).removesuffix("</tr>"))


def _form(shown: Filter, groups: Iterable[str]) -> Markup:
    def options(selected: str, pairs: Iterable[tuple[str, str]]) -> list[Markup]:
        return [element("option", label, value=value, selected=value == selected) for value, label in pairs]

    search = "Name, AE title or host"
    states = [("", "Every state"), *((state, _LABELS[state]) for state in STATES)]
    return element(
        "form",
        element(
            "input",
            type="search",
            name="q",
            value=shown.text,
            placeholder=search,
            aria_label=search,
            aria_keyshortcuts="/",
            autocomplete="off",
            spellcheck="false",
        ),
        element("select", options(shown.condition, states), name="state", aria_label="State"),
        element(
            "select", options(shown.group, [("", "Every group"), *((g, g) for g in groups)]), name="group", aria_label="Group"
        ),
        element(
            "label",
            element("input", type="checkbox", name="failing", value="1", checked=shown.failing),
            "Only failing",
            class_="toggle",
        ),
        element("button", "Show", type="submit", class_="needless"),
        action="/",
        method="get",
        role="search",
        class_="filters",
        id="filters",
    )


def _tiles(counts: Mapping[str, int], shown: Filter) -> Markup:
    tiles = []
    for condition in STATES:
        if condition == "quiet" and not counts["quiet"] and shown.condition != "quiet":
            # Nothing is expected of anybody, or all of it came.
            continue
        is_chosen = shown.condition == condition
        tiles.append(
            element(
                "a",
                element("b", words.number(counts[condition])),
                element("span", condition),
                # Once more takes it back.
                href=shown.address(condition="" if is_chosen else condition),
                aria_current="true" if is_chosen else None,
                class_=f"tile {condition}{'' if counts[condition] else ' none'}",
            )
        )
    return element("nav", tiles, class_="tiles", aria_label="Modalities by state")


def storage_overview(storage: StorageSummary | None, now: float) -> Markup | None:
    """The storage SCP in a few numbers."""
    if storage is None:
        return None
    bad = " bad" if storage.failed else ""
    facts: list[tuple[str, Child, str]] = [
        ("instances kept", words.number(storage.instances), ""),
        ("received", words.size(storage.received_bytes), ""),
        ("refused", words.number(storage.failed), bad),
        ("associations open", words.number(storage.associations), ""),
        ("free", words.size(storage.free_bytes), ""),
        ("last instance", marks.ago(storage.last_received, now), ""),
    ]
    return element(
        "section",
        element(
            "div",
            element("a", "Storage", href="/storage"),
            element("span", storage.address, class_="mono muted"),
            class_="storage-head",
        ),
        element(
            "dl",
            [element("div", element("dt", term), element("dd", value, class_=f"figure{mark}")) for term, value, mark in facts],
        ),
        class_="storage",
        aria_label="Storage",
    )


def _pager(shown: Filter, selection: Selection) -> Markup | None:
    page, pages = selection.page, selection.pages
    if pages == 1:
        return None
    first, last = (page - 1) * ROWS + 1, min(selection.found, page * ROWS)
    return element(
        "nav",
        element("a", "‹ Worse", href=shown.address(page=page - 1), rel="prev") if page > 1 else None,
        element("span", f"{words.number(first)}–{words.number(last)} of {words.number(selection.found)}", class_="muted num"),
        element("a", "Better ›", href=shown.address(page=page + 1), rel="next") if page < pages else None,
        class_="pager",
        aria_label="Pages",
    )
