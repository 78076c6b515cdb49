"""The small pieces that more than one page shows: conditions, times, reasons, tables."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdicom.monitor.state import Condition, ModalityState
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web import words
from asyncdicom.web.markup import Child, Markup, element, joined

CONDITIONS: dict[Condition, str] = {"down": "Down", "unknown": "Unknown", "up": "Up"}


def pill(state: ModalityState) -> Markup:
    """Up or down, whether it is left alone, and whether it is quiet."""
    label = element("span", CONDITIONS[state.condition], class_=f"pill {state.condition}")
    alone = element("span", "left alone", class_="alone", title="asked again after a while") if state.breaker_open else None
    quiet = state.quiet_since
    if quiet is None:
        return joined((label, alone))
    told = words.moment(quiet)
    mark = element(
        "time", f"quiet since {words.day_and_time(quiet)}", datetime=told, class_="alone", title=f"quiet since {told}"
    )
    return joined((label, alone, mark))


def time(at: float) -> Markup:
    """A moment, to the second."""
    told = words.moment(at)
    return element("time", told, datetime=told)


def since(state: ModalityState, now: float) -> Markup:
    """How long a modality is up or down."""
    if state.since is None:
        return element("span", "–", class_="muted")
    told = words.moment(state.since)
    return element("time", words.span(now - state.since), datetime=told, title=told)


def ago(at: float | None, now: float) -> Child:
    """How long ago something was."""
    if at is None:
        return "never"
    told = words.moment(at)
    return element("time", f"{words.span(now - at)} ago", datetime=told, title=told)


def said(outcome: Outcome | None) -> Markup:
    """What a modality said last: the reason in words, the details, and what to check next."""
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


def silence(state: ModalityState) -> Markup | None:
    """What to check where less comes from a modality than is expected of it."""
    if state.quiet_since is None:
        return None
    words_of_it = "Next: look at its send queue, and whether it still sends to us under the AE title that is configured here"
    return joined((element("span", "Sends less than expected", class_="detail"), element("span", words_of_it, class_="remedy")))


def card(heading: str, *content: Child) -> Markup:
    """A part of a page with a heading of its own."""
    return element("section", element("h2", heading), content, class_="card pad")


def table(
    label: str, heads: Sequence[str], rows: Sequence[Markup], nothing: str = "Nothing yet.", numbers: Sequence[str] = ()
) -> Markup:
    """A table that a narrow screen can scroll, also by keys.

    :param label: what it is, for who cannot see it
    :param numbers: the heads of columns that hold numbers
    """
    head = [element("th", name, scope="col", class_="num" if name in numbers else None) for name in heads]
    body: Child = rows or element("tr", element("td", nothing, colspan=len(heads), class_="muted"))
    whole = element("table", element("thead", element("tr", head)), element("tbody", body), class_="plain")
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label)
