"""The pages show the worst first, say what to check next, and let nothing through unescaped."""

from __future__ import annotations

import re

import pytest

from asyncdicom.modality import Modality
from asyncdicom.monitor.state import States
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web import modality_page, words
from asyncdicom.web.fleet_page import FleetPage
from asyncdicom.web.markup import Markup, element, text
from asyncdicom.web.selection import ROWS, Filter
from asyncdicom.web.shell import Shell

SHELL = Shell("ME", "1.0", {"icon.svg": "/static/icon.svg", "fleet.css": "/static/fleet.css", "fleet.js": "/static/fleet.js"})
HOSTILE = "<script>alert('\"&\x00\u202e')</script>"


def states_of(*outcomes: Outcome, extra: int = 0) -> States:
    names = [outcome.modality for outcome in outcomes] + [f"m{index}" for index in range(extra)]
    states = States([Modality(name, ae_title="CT1", host="127.0.0.1", groups=("scanners",)) for name in names])
    for outcome in outcomes:
        states.operation_ended(outcome)
    return states


def page_of(states: States, shown: Filter = Filter()) -> str:  # noqa: B008 - frozen
    return FleetPage().page(SHELL, states.all(), shown, None, 2e9)


def rows_of(page: str) -> list[str]:
    return re.findall(r'href="/modalities/([^"]+)"', page)


def test_text_is_escaped_and_markup_is_not_escaped_twice() -> None:
    assert text(HOSTILE) == "&lt;script&gt;alert(&#x27;&quot;&amp;\ufffd\ufffd&#x27;)&lt;/script&gt;"
    assert element("a", "<b>", element("i", "x"), title='"', class_="y", hidden=True, open=False) == (
        '<a title="&quot;" class="y" hidden>&lt;b&gt;<i>x</i></a>'
    )
    assert isinstance(element("br"), Markup)
    assert element("br") == "<br>"


def test_the_worst_comes_first_with_its_reason_and_what_to_check_next() -> None:
    page = page_of(
        states_of(Outcome("good", "echo", Reason.OK), Outcome("bad", "echo", Reason.CONNECT_TIMEOUT, detail="no answer"))
    )
    assert rows_of(page) == ["bad", "good"]
    assert "No connection in time" in page
    assert "connect_timeout" in page
    assert "check power, network cable, VLAN and firewall" in page
    assert "<title>1 down · asyncdicom</title>" in page


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_words(reason: Reason) -> None:
    assert words.REASONS[reason]
    page = page_of(states_of(Outcome("one", "echo", reason)))
    assert page.endswith("</html>")


def test_what_a_peer_says_is_escaped_on_every_page() -> None:
    states = states_of(Outcome("one", "echo", Reason.ABORTED, detail=HOSTILE))
    (state,) = states.all()
    for page in (page_of(states, Filter(text=HOSTILE)), page_of(states), modality_page.page(SHELL, state, 2e9)):
        assert "<script>alert" not in page
        assert "\x00" not in page


def test_a_filter_shows_what_it_names() -> None:
    states = states_of(Outcome("ct1", "echo", Reason.OK), Outcome("mr1", "echo", Reason.ABORTED), extra=1)
    assert rows_of(page_of(states, Filter(text="CT"))) == ["mr1", "m0", "ct1"]  # by AE title
    assert rows_of(page_of(states, Filter(text="mr"))) == ["mr1"]
    assert rows_of(page_of(states, Filter(condition="unknown"))) == ["m0"]
    assert rows_of(page_of(states, Filter(group="none"))) == []
    assert "No modality matches." in page_of(states, Filter(group="none"))


def test_a_large_fleet_is_paged_and_its_page_stays_small() -> None:
    states = states_of(*(Outcome("bad", "echo", Reason.ABORTED) for _ in range(1)), extra=2_000)
    page = page_of(states)
    assert len(rows_of(page)) == ROWS
    assert len(page) < 200_000
    last = page_of(states, Filter(page=999))
    assert "2\u202f001–2\u202f001 of 2\u202f001" in last
    assert "Better" not in last


def test_nothing_on_a_page_comes_from_elsewhere_or_is_inline() -> None:
    page = page_of(states_of(Outcome("ct1", "echo", Reason.OK)))
    assert not re.search(r"https?://|//cdn|style=|<style| on[a-z]+=|<script>", page)


def test_a_modality_without_outcomes_has_a_page() -> None:
    (state,) = states_of(extra=1).all()
    assert "Nothing yet." in modality_page.page(SHELL, state, 2e9)


def test_what_is_quiet_says_so_beside_that_it_is_up() -> None:
    states = states_of(Outcome("one", "echo", Reason.OK))
    states.silence_judged("one", expected_by=1.95e9, quiet_since=1.9e9)
    (state,) = states.all()
    shown = page_of(states)
    assert '<time datetime="2030-03-17T17:46:40Z"' in shown
    assert ">quiet since 17 Mar 17:46Z</time>" in shown
    assert "<b>1</b><span>quiet</span>" in shown
    assert ">Up</span>" in shown
    page = modality_page.page(SHELL, state, 2e9)
    assert "Next instance expected by" in page
    assert "Next: look at its send queue" in page
    assert "Next: look at its send queue" in shown
    assert page.count("2030-03-17T17:46:40Z") >= 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.000044, "0.04 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (1.25, "1.2 s"), (12.0, "12 s"), (None, "–")],
)
def test_a_duration_is_shown_in_a_fitting_unit(value: float | None, shown: str) -> None:
    assert words.milliseconds(value) == shown


def test_spans_and_sizes_are_shown_in_fitting_units() -> None:
    assert [words.span(seconds) for seconds in (-1, 59, 61, 4000, 90_000)] == ["0 s", "59 s", "1 min", "1 h 6 min", "1 d 1 h"]
    assert [words.size(size) for size in (0, 1536, 200 << 20, 5 << 40, 9000 << 40)] == [
        *("0 B", "1.5 KiB", "200 MiB", "5.0 TiB", "9000.0 TiB"),
    ]
