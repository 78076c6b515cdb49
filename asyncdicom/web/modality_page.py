"""The page of one modality: what it says, how long each phase took, what it accepts, and its history."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from urllib.parse import quote

from asyncdicom.monitor.state import ModalityState, Sample
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web import charts, marks, words
from asyncdicom.web.markup import Child, Markup, element
from asyncdicom.web.shell import Shell, live


def page(shell: Shell, state: ModalityState, now: float) -> str:
    """The whole page.

    :param now: seconds since the epoch
    """
    return shell.page(state.modality.name, fragment(state, now))


def fragment(state: ModalityState, now: float) -> Markup:
    """What of it changes by itself."""
    name = state.modality.name
    silence = marks.silence(state)
    return live(
        f"{name} {state.condition}",
        element("nav", element("a", "‹ Fleet", href="/"), class_="back", aria_label="Back"),
        element(
            "div",
            element("h1", name),
            marks.pill(state),
            element("span", marks.since(state, now), class_="muted"),
            # Without the script, the answer is that of the API.
            element(
                "form",
                element("button", "Echo now", type="submit"),
                id="echo",
                method="post",
                action=f"/api/modalities/{quote(name, safe='')}/echo",
                data_keep=True,
            ),
            class_="headline",
        ),
        element("output", id="echoed", form="echo", class_="card pad told echoed", data_keep=True, hidden=True),
        element("div", [_told(outcome) for outcome in state.latest.values()], class_="tells"),
        element("section", silence, class_="card pad told down", aria_label="Silence") if silence is not None else None,
        _facts(state, now),
        marks.card("Last outcomes", *_outcomes(state)),
        _contexts(state),
        marks.card("Up and down", _changes(state, now)) if state.changes else None,
        marks.card("Failures, however long ago", _failures(state)) if state.failed else None,
        data_modality=name,
    )


def _told(outcome: Outcome) -> Markup:
    detail = words.detail_of(outcome)
    status = outcome.status
    return element(
        "section",
        element(
            "p",
            element("b", f"C-{outcome.operation.upper()}", class_="mono"),
            " ",
            words.REASONS[outcome.reason],
            " ",
            None if outcome.ok else element("code", outcome.reason.value),
            element("span", words.milliseconds(outcome.duration), class_="num muted"),
        ),
        element("p", detail, class_="muted") if detail else None,
        element("p", f"status {status!r}", class_="mono muted") if status is not None and not outcome.ok else None,
        element("p", _rejection(outcome), class_="mono muted") if outcome.rejected.result is not None else None,
        element("p", element("b", "Next: "), outcome.remedy, class_="next") if outcome.remedy else None,
        charts.phases_bar(outcome.phases),
        class_=f"card pad told {'up' if outcome.ok else 'down'}",
        aria_label=f"C-{outcome.operation.upper()}",
    )


def _rejection(outcome: Outcome) -> str:
    rejected = outcome.rejected
    return f"A-ASSOCIATE-RJ: result {rejected.result}, source {rejected.source}, reason {rejected.reason}"


def _facts(state: ModalityState, now: float) -> Markup:
    peer = state.modality
    quiet, expected = state.quiet_since, state.expected_by
    facts: list[tuple[str, Child]] = [
        ("AE title", element("span", peer.ae_title, class_="mono")),
        ("Address", element("span", str(peer).partition("@")[2], class_="mono")),
        ("Groups", ", ".join(peer.groups) or "–"),
        ("We call as", element("span", peer.calling_ae_title, class_="mono") if peer.calling_ae_title else "default"),
        ("TLS", "yes" if peer.tls else "no"),
        ("Implementation", _implementation(state.last)),
        ("Last success", marks.ago(state.last_success, now)),
        ("Last instance from it", marks.ago(state.last_received, now)),
        ("Failures in a row", words.number(state.failures)),
    ]
    if expected is not None:
        facts.append(("Next instance expected by", marks.time(expected)))
    if quiet is not None:
        facts.append(("Quiet since", marks.time(quiet)))
    listed = [element("div", element("dt", term), element("dd", fact)) for term, fact in facts]
    return element("section", element("dl", listed), class_="card facts", aria_label="What is known of it")


def _implementation(outcome: Outcome | None) -> Child:
    if outcome is None or outcome.peer.implementation_class_uid is None:
        return "–"
    version, class_uid = outcome.peer.implementation_version, outcome.peer.implementation_class_uid
    return [element("span", version or "", class_="mono"), " ", element("span", class_uid, class_="mono muted")]


def _contexts(state: ModalityState) -> Markup | None:
    agreed = dict.fromkeys(context for outcome in state.latest.values() for context in outcome.contexts)
    if not agreed:
        return None
    rows = [
        element(
            "tr",
            element("td", words.uid(context.abstract_syntax)),
            element("td", words.uid(context.transfer_syntax)),
            element("td", context.abstract_syntax, class_="mono muted"),
        )
        for context in agreed
    ]
    heading = "Presentation contexts that it accepted last"
    return marks.card(heading, marks.table(heading, ("Service", "Transfer syntax", "Abstract syntax UID"), rows))


def _outcomes(state: ModalityState) -> tuple[Child, ...]:
    samples = state.samples
    return (
        _figures(samples),
        charts.sparkline(samples, "spark wide"),
        charts.strip(samples, state.modality.name, "strip wide"),
        element(
            "details",
            element("summary", f"All {len(samples)}, with times"),
            marks.table("Last outcomes", ("When", "Operation", "Outcome", "Took"), _history(samples), numbers=("Took",)),
            id="history",
        ),
    )


def _figures(samples: Sequence[Sample]) -> Markup:
    took = sorted(sample.duration for sample in samples if sample.reason is Reason.OK)
    asked = sum(sample.reason is not Reason.BREAKER_OPEN for sample in samples)
    share = f"{len(took) / asked:.0%} of {asked}" if asked else "–"
    figures = (
        ("answered", share),
        ("median", words.milliseconds(statistics.median(took) if took else None)),
        ("95th percentile", words.milliseconds(took[min(len(took) - 1, int(len(took) * 0.95))] if took else None)),
        ("slowest", words.milliseconds(took[-1] if took else None)),
    )
    listed = [element("div", element("dt", term), element("dd", value, class_="figure")) for term, value in figures]
    return element("dl", listed, class_="figures")


def _history(samples: Sequence[Sample]) -> list[Markup]:
    return [
        element(
            "tr",
            element("td", marks.time(sample.at), class_="mono muted"),
            element("td", f"C-{sample.operation.upper()}", class_="mono"),
            element("td", words.REASONS[sample.reason], class_="" if sample.reason is Reason.OK else "reason"),
            element("td", words.milliseconds(sample.duration), class_="num"),
        )
        for sample in reversed(samples)
    ]


def _changes(state: ModalityState, now: float) -> Markup:
    rows = [
        element(
            "tr",
            element("td", marks.time(change.at), class_="mono muted"),
            element("td", marks.CONDITIONS[change.condition], class_="reason" if change.condition == "down" else ""),
            element("td", words.span(seconds)),
        )
        for change, seconds in reversed(state.stretches(now))
    ]
    return marks.table("Up and down", ("When", "State", "For"), rows)


def _failures(state: ModalityState) -> Markup:
    rows = [
        element(
            "tr",
            element("td", marks.time(failure.at), class_="mono muted"),
            element("td", f"C-{failure.operation.upper()}", class_="mono"),
            element("td", words.REASONS[failure.reason], class_="reason"),
            element("td", failure.detail, class_="muted said"),
        )
        for failure in reversed(state.failed)
    ]
    return marks.table("Failures", ("When", "Operation", "Outcome", "What it said"), rows)
