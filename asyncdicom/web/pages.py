"""The pages, as functions from states to markup. They touch nothing and may run in any thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlencode

from asyncdicom.monitor.state import KEPT_OUTCOMES, ModalityState, Sample
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web import words
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.markup import Child, Markup, element, joined

ROWS = 100
_CONDITIONS = {"up": "Up", "down": "Down", "unknown": "Unknown"}
_BAR, _GAP, _HEIGHT = 3, 1, 22


@dataclass(frozen=True, slots=True)
class Filter:
    """What of the fleet is shown.

    :ivar text: part of a name, AE title or host
    :ivar condition: ``up``, ``down``, ``unknown``, or empty for all
    :ivar group: a group, or empty for all
    :ivar page: from 1
    """

    text: str = ""
    condition: str = ""
    group: str = ""
    page: int = 1

    def takes(self, state: ModalityState) -> bool:
        """Whether a modality is shown."""
        modality = state.modality
        wanted = self.text.strip().lower()
        found = (modality.name, modality.ae_title, modality.host, str(modality))
        return (
            (not wanted or any(wanted in value.lower() for value in found))
            and self.condition in ("", state.condition)
            and (not self.group or self.group in modality.groups)
        )

    def address(self, page: int) -> str:
        """The address of another page of the same."""
        pairs = {"q": self.text, "state": self.condition, "group": self.group, "page": str(page) if page > 1 else ""}
        query = urlencode({key: value for key, value in pairs.items() if value})
        return f"/?{query}" if query else "/"


@dataclass(frozen=True, slots=True)
class Shell:
    """What every page has around it.

    :ivar title: our AE title
    :ivar version: of asyncdicom
    :ivar assets: the address of each static file by its name
    """

    title: str
    version: str
    assets: dict[str, str]

    def page(self, title: str, *content: Child) -> str:
        """A whole document."""
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{title} · asyncdicom"),
            element("link", rel="icon", type="image/svg+xml", href=self.assets["icon.svg"]),
            element("link", rel="stylesheet", href=self.assets["fleet.css"]),
            element("noscript", element("meta", http_equiv="refresh", content="15")),
            element("script", src=self.assets["fleet.js"], defer=True),
        )
        bar = element(
            "header",
            element("a", element("span", class_="mark", aria_hidden="true"), "asyncdicom", href="/", class_="brand"),
            element("span", self.title, class_="own mono", title="our AE title"),
            element("span", "", id="freshness", class_="freshness", role="status"),
            class_="bar",
        )
        foot = element("footer", f"asyncdicom {self.version} · ", element("a", "metrics", href="/metrics"))
        return "<!doctype html>" + element("html", head, element("body", bar, element("main", *content), foot), lang="en")


def fleet(shell: Shell, states: Sequence[ModalityState], shown: Filter, storage: StorageSummary | None, now: float) -> str:
    """The fleet page.

    :param states: all of them, worst first
    :param now: seconds since the epoch
    """
    groups = sorted({group for state in states for group in state.modality.groups})
    down = sum(state.condition == "down" for state in states)
    title = f"{down} down" if down else "Fleet"
    return shell.page(title, _filters(shown, groups), fleet_fragment(states, shown, storage, now))


def fleet_fragment(states: Sequence[ModalityState], shown: Filter, storage: StorageSummary | None, now: float) -> Markup:
    """What of the fleet page changes by itself."""
    rows = [state for state in states if shown.takes(state)]
    pages = max(1, -(-len(rows) // ROWS))
    page = min(max(1, shown.page), pages)
    visible = rows[(page - 1) * ROWS : page * ROWS]
    heads = ("State", "Modality", "What it says", "Latency", "Last outcomes", "Since")
    if visible:
        table: Child = element(
            "table",
            element("thead", element("tr", [element("th", head, scope="col") for head in heads])),
            element("tbody", [_row(state, now) for state in visible]),
            class_="fleet",
        )
    else:
        table = element("p", "No modality matches." if states else "The configuration has no modalities yet.", class_="empty")
    down = sum(state.condition == "down" for state in states)
    return element(
        "div",
        element("div", _tiles(states), storage_overview(storage, now), class_="overview"),
        element("div", table, class_="card"),
        _pager(shown, page, pages, len(rows)),
        id="live",
        data_title=f"{f'{down} down' if down else 'Fleet'} · asyncdicom",
    )


def modality(shell: Shell, state: ModalityState, now: float) -> str:
    """The page of one modality."""
    return shell.page(state.modality.name, modality_fragment(state, now))


def modality_fragment(state: ModalityState, now: float) -> Markup:
    """What of the page of a modality changes by itself."""
    peer = state.modality
    facts: list[tuple[str, Child]] = [
        ("AE title", element("span", peer.ae_title, class_="mono")),
        ("Address", element("span", str(peer).partition("@")[2], class_="mono")),
        ("Groups", ", ".join(peer.groups) or "–"),
        ("We call as", element("span", peer.calling_ae_title, class_="mono") if peer.calling_ae_title else "default"),
        ("TLS", "yes" if peer.tls else "no"),
        ("Implementation", _implementation(state.last)),
        ("Last success", ago(state.last_success, now)),
        ("Last instance from it", ago(state.last_received, now)),
        ("Failures in a row", words.number(state.failures)),
    ]
    return element(
        "div",
        element("nav", element("a", "‹ Fleet", href="/"), class_="back"),
        element(
            "div",
            element("h1", peer.name),
            _pill(state),
            element("span", _since(state, now), class_="muted"),
            element("button", "Ask now", type="button", data_echo=f"/api/modalities/{quote(peer.name, safe='')}/echo"),
            class_="headline",
        ),
        [_told(outcome) for outcome in state.latest.values()],
        element(
            "div",
            element("dl", [element("div", element("dt", term), element("dd", fact)) for term, fact in facts]),
            class_="card facts",
        ),
        element(
            "div",
            element("h2", "Last outcomes"),
            _strip(state.samples, "strip wide"),
            _history(state.samples),
            class_="card pad",
        ),
        element("div", element("h2", "Up and down"), _changes(state, now), class_="card pad") if state.changes else None,
        element("div", element("h2", "Failures, however long ago"), _failures(state), class_="card pad")
        if state.failed
        else None,
        id="live",
        data_title=f"{peer.name} {state.condition} · asyncdicom",
    )


def _filters(shown: Filter, groups: Iterable[str]) -> Markup:
    def options(selected: str, pairs: Iterable[tuple[str, str]]) -> list[Markup]:
        return [element("option", label, value=value, selected=value == selected) for value, label in pairs]

    return element(
        "form",
        element(
            "input",
            type="search",
            name="q",
            value=shown.text,
            placeholder="Name, AE title or host",
            aria_label="Name, AE title or host",
            autocomplete="off",
        ),
        element(
            "select", options(shown.condition, [("", "Every state"), *_CONDITIONS.items()]), name="state", aria_label="State"
        ),
        element(
            "select", options(shown.group, [("", "Every group"), *((g, g) for g in groups)]), name="group", aria_label="Group"
        ),
        element("button", "Show", type="submit"),
        action="/",
        method="get",
        class_="filters",
        id="filters",
    )


def _tiles(states: Sequence[ModalityState]) -> Markup:
    counts = {condition: sum(state.condition == condition for state in states) for condition in _CONDITIONS}
    tiles = [
        element(
            "a",
            element("b", words.number(counts[condition])),
            element("span", label),
            href=f"/?state={condition}",
            class_=f"tile {condition}{'' if counts[condition] else ' none'}",
        )
        for condition, label in (("down", "down"), ("unknown", "unknown"), ("up", "up"))
    ]
    return element("div", tiles, class_="tiles")


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
        ("turned away", words.number(storage.rejected), ""),
        ("free", words.size(storage.free_bytes), ""),
        ("last instance", ago(storage.last_received, now), ""),
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
            [element("div", element("dd", value, class_=f"figure{mark}"), element("dt", term)) for term, value, mark in facts],
        ),
        class_="storage",
        aria_label="Storage",
    )


def _row(state: ModalityState, now: float) -> Markup:
    peer = state.modality
    name = element("a", peer.name, href=f"/modalities/{quote(peer.name, safe='')}", class_="name")
    where = element("span", element("b", peer.ae_title), f" {str(peer).partition('@')[2]}", class_="mono muted where")
    return element(
        "tr",
        element("td", _pill(state), class_="c-state"),
        element("td", name, where, class_="c-name"),
        element("td", _words(state), class_="c-words"),
        element("td", words.milliseconds(state.latency if state.condition == "up" else None), class_="c-latency num"),
        element("td", _strip(state.samples, "strip"), class_="c-strip"),
        element("td", _since(state, now), class_="c-since"),
        class_=state.condition,
    )


def _words(state: ModalityState) -> Markup:
    outcome = state.telling
    if outcome is None:
        return element("span", "Not asked yet", class_="muted")
    if outcome.ok:
        return element("span", words.REASONS[Reason.OK], class_="muted")
    detail = words.detail_of(outcome)
    return joined(
        (
            element("span", words.REASONS[outcome.reason], class_="reason"),
            element("code", outcome.reason.value),
            element("span", detail, class_="detail") if detail else None,
            element("span", "Next: ", outcome.remedy, class_="remedy") if outcome.remedy else None,
        )
    )


def _told(outcome: Outcome) -> Markup:
    code: Child = None
    if not outcome.ok:
        code = element("code", outcome.reason.value)
    status = f"status {outcome.status!r}" if outcome.status is not None else None
    phases = {name: value for name, value in asdict(outcome.phases).items() if value is not None}
    return element(
        "div",
        element(
            "p",
            element("b", f"C-{outcome.operation.upper()}", class_="mono"),
            " ",
            words.REASONS[outcome.reason],
            " ",
            code,
            element("span", words.milliseconds(outcome.duration), class_="num muted"),
        ),
        element("p", words.detail_of(outcome), class_="muted") if words.detail_of(outcome) else None,
        element("p", status, class_="mono muted") if status and not outcome.ok else None,
        element("p", element("b", "Next: "), outcome.remedy, class_="next") if outcome.remedy else None,
        element(
            "ul",
            [
                element("li", element("span", name), element("span", words.milliseconds(phases[name]), class_="num"))
                for name in phases
            ],
            class_="phases",
        ),
        class_=f"card pad told {'up' if outcome.ok else 'down'}",
    )


def _history(samples: Sequence[Sample]) -> Markup:
    rows = [
        element(
            "tr",
            element("td", element("time", words.moment(sample.at), datetime=words.moment(sample.at)), class_="mono muted"),
            element("td", f"C-{sample.operation.upper()}", class_="mono"),
            element("td", words.REASONS[sample.reason], class_="" if sample.reason is Reason.OK else "reason"),
            element("td", words.milliseconds(sample.duration), class_="num"),
        )
        for sample in reversed(samples)
    ]
    heads = ("When", "Operation", "Outcome", "Took")
    body = element("tbody", rows or element("tr", element("td", "Nothing yet.", colspan=4, class_="muted")))
    return element(
        "table", element("thead", element("tr", [element("th", h, scope="col") for h in heads])), body, class_="history"
    )


def _changes(state: ModalityState, now: float) -> Markup:
    rows = [
        element(
            "tr",
            element("td", element("time", words.moment(change.at), datetime=words.moment(change.at)), class_="mono muted"),
            element("td", _CONDITIONS[change.condition], class_="reason" if change.condition == "down" else ""),
            element("td", words.span(seconds)),
        )
        for change, seconds in reversed(state.stretches(now))
    ]
    return _table(("When", "State", "For"), rows)


def _failures(state: ModalityState) -> Markup:
    rows = [
        element(
            "tr",
            element("td", element("time", words.moment(failure.at), datetime=words.moment(failure.at)), class_="mono muted"),
            element("td", f"C-{failure.operation.upper()}", class_="mono"),
            element("td", words.REASONS[failure.reason], class_="reason"),
            element("td", failure.detail, class_="muted said"),
        )
        for failure in reversed(state.failed)
    ]
    return _table(("When", "Operation", "Outcome", "What it said"), rows, "history failures")


def _table(heads: Sequence[str], rows: Sequence[Markup], class_: str = "history") -> Markup:
    head = element("thead", element("tr", [element("th", name, scope="col") for name in heads]))
    return element("table", head, element("tbody", rows), class_=class_)


def _strip(samples: Sequence[Sample], class_: str) -> Markup:
    """The last outcomes as bars, newest at the right: a success as high as it took long, a failure in full height."""
    longest = max((sample.duration for sample in samples if sample.reason is Reason.OK), default=0.0) or 1.0
    step = _BAR + _GAP
    paths = {"ok": "", "bad": "", "skipped": ""}
    for position, sample in enumerate(samples, start=KEPT_OUTCOMES - len(samples)):
        kind, height = "bad", _HEIGHT
        if sample.reason is Reason.OK:
            kind, height = "ok", max(4, round(_HEIGHT * 0.85 * sample.duration / longest))
        elif sample.reason is Reason.BREAKER_OPEN:
            kind, height = "skipped", 4
        paths[kind] += f"M{position * step} {_HEIGHT}v-{height}h{_BAR}v{height}z"
    failed = sum(sample.reason is not Reason.OK for sample in samples)
    width = KEPT_OUTCOMES * step
    return element(
        "svg",
        element("path", d=f"M0 {_HEIGHT - 1}h{width}v1h-{width}z", class_="ground"),
        [element("path", d=path, class_=kind) for kind, path in paths.items() if path],
        viewBox=f"0 0 {width} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"last {len(samples)} outcomes, {failed} failed",
        class_=class_,
    )


def _pill(state: ModalityState) -> Markup:
    alone = element("span", "left alone", class_="alone", title="asked again after a while") if state.breaker_open else None
    label = element("span", _CONDITIONS[state.condition], class_=f"pill {state.condition}")
    return joined((label, alone))


def _since(state: ModalityState, now: float) -> Markup:
    if state.since is None:
        return element("span", "–", class_="muted")
    return element("time", words.span(now - state.since), datetime=words.moment(state.since), title=words.moment(state.since))


def ago(at: float | None, now: float) -> Child:
    """How long ago something was."""
    if at is None:
        return "never"
    return element("time", f"{words.span(now - at)} ago", datetime=words.moment(at), title=words.moment(at))


def _implementation(outcome: Outcome | None) -> Child:
    if outcome is None or outcome.peer.implementation_class_uid is None:
        return "–"
    version, class_uid = outcome.peer.implementation_version, outcome.peer.implementation_class_uid
    return [element("span", version or "", class_="mono"), " ", element("span", class_uid, class_="mono muted")]


def _pager(shown: Filter, page: int, pages: int, rows: int) -> Markup | None:
    if pages == 1:
        return None
    return element(
        "nav",
        element("a", "‹ Worse", href=shown.address(page - 1), rel="prev") if page > 1 else None,
        element("span", f"{(page - 1) * ROWS + 1}–{min(rows, page * ROWS)} of {words.number(rows)}", class_="muted num"),
        element("a", "Better ›", href=shown.address(page + 1), rel="next") if page < pages else None,
        class_="pager",
        aria_label="Pages",
    )
