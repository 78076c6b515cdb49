"""Pictures of outcomes are exact, and few elements."""

from __future__ import annotations

import re

from asyncdicom.monitor.state import KEPT_OUTCOMES, Sample
from asyncdicom.outcome import Phases, Reason
from asyncdicom.web.charts import packed, phases_bar, sparkline, strip


def samples(*reasons: Reason, every: float = 30.0, duration: float = 0.01) -> list[Sample]:
    return [Sample(1_700_000_000.0 + every * index, "echo", reason, duration) for index, reason in enumerate(reasons)]


def test_a_run_of_equal_outcomes_is_one_line() -> None:
    drawn = strip(samples(*[Reason.OK] * 50, *[Reason.ABORTED] * 10), "ct1")
    assert re.findall(r'd="([^"]+)" class="(\w+)"', drawn) == [("M0 11h199", "ok"), ("M200 11h39", "bad")]


def test_the_newest_is_at_the_right_however_few_there_are() -> None:
    drawn = strip(samples(Reason.OK), "ct1")
    assert f'd="M{(KEPT_OUTCOMES - 1) * 4} 11h3"' in drawn
    assert 'aria-label="ct1: last 1 outcomes, 0 failed"' in drawn
    assert 'data-samples=""' in strip([], "ct1")


def test_a_strip_of_any_outcomes_is_at_most_four_elements() -> None:
    mixed = [Reason.OK, Reason.ABORTED, Reason.BREAKER_OPEN] * 20
    assert strip(samples(*mixed), "<b>").count("<") == 1 + 3 + 1


def test_samples_are_packed_with_what_when_and_how_long() -> None:
    known = [
        Sample(1_700_000_000.9, "echo", Reason.OK, 0.0123),
        Sample(1_700_000_030.0, "find", Reason.RESOLVE_FAILED, 1.0),
        Sample(1_699_999_999.0, "echo", Reason.OK, 0.0),
    ]
    first, *rest = packed(known).split(" ")
    assert int(first, 16) == 1_700_000_000
    assert rest == ["000.7b", "111e.2710", "000.0"]
    assert packed([]) == ""
    assert len(packed(samples(*[Reason.OK] * KEPT_OUTCOMES))) < 600


def test_a_failure_interrupts_the_line_of_latencies() -> None:
    drawn = sparkline(samples(Reason.OK, Reason.OK, Reason.ABORTED, Reason.OK))
    assert drawn is not None
    assert re.search(r'd="([^"]+)"', drawn)[1] == "M226 0h0L230 0 M238 0h0"  # type: ignore[index]
    assert sparkline(samples(Reason.OK, Reason.ABORTED)) is None
    assert sparkline(samples(Reason.OK, Reason.OK, duration=0.0)) is None


def test_phases_are_parts_of_one_bar_with_their_numbers() -> None:
    drawn = phases_bar(Phases(connect=0.01, associate=0.03, operation=0.06))
    assert drawn is not None
    assert re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)" height="10" class="p-(\w+)"', drawn) == [
        ("0.0", "100.0", "connect"),
        ("100.0", "300.0", "associate"),
        ("400.0", "600.0", "operation"),
    ]
    assert "60.0 ms" in drawn
    assert "resolve" not in drawn
    assert phases_bar(Phases()) is None
    assert "<svg" not in (phases_bar(Phases(resolve=0.0)) or "")
