"""The storage page tells what arrives, what became of it, and how long the disk will do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asyncdicom.monitor.arrivals import Arrived
from asyncdicom.monitor.space import Forecast
from asyncdicom.web import storage_page
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.storage_page import Shown

NOW = 2e9
SUMMARY = StorageSummary("ME@127.0.0.1:104", 1, 12, 0, 1 << 20, 0, NOW - 5, 100 << 30)


def study(number: int, *, last: float, completed: float | None = None) -> dict[str, Any]:
    return {
        "study_instance_uid": f"1.2.{number}",
        "series": 1,
        "instances": 4,
        "size": 2048,
        "last_received": last,
        "completed_at": completed,
    }


def page(studies: list[dict[str, Any]] = [], senders: dict[str, float] = {}, **summary: Any) -> str:  # noqa: B006 - read only
    return storage_page.fragment(Shown(replace(SUMMARY, **summary), studies, senders, NOW, {"CT1": ["ct1", "ct 2"]}))


@pytest.mark.parametrize(
    ("forecast", "said"),
    [
        (None, "how fast it fills is known after some minutes"),
        (Forecast(0.0, None, 3600), "not filling, over the last 1 h 0 min"),
        (Forecast(-5.0, None, 3600), "not filling"),
        (Forecast(1e-3, 1e12, 3600), "not filling"),
        (Forecast(1 << 20, 90_000.0, 3600), "full in 1 d 1 h, at 3.5 GiB an hour over the last 1 h 0 min"),
    ],
)
def test_the_free_space_comes_with_when_it_ends(forecast: Forecast | None, said: str) -> None:
    assert said in page(forecast=forecast)
    assert ("figure bad" in page(forecast=forecast)) == (forecast is not None and forecast.full_in == 90_000.0)


def test_without_free_space_there_is_no_forecast() -> None:
    assert "its file system does not answer" in page(free_bytes=None, forecast=Forecast(1, 1, 1000))


def test_a_study_is_complete_when_that_was_told_or_nothing_came_for_long() -> None:
    studies = [study(1, last=NOW - 5), study(2, last=NOW - 61), study(3, last=NOW - 5, completed=NOW)]
    shown = page(studies)
    assert shown.count(">in progress<") == 1
    assert shown.count(">complete<") == 2
    assert ">1</dd><dd" in shown.partition("Studies in progress")[2]


def test_who_sent_is_told_with_the_modalities_of_that_name() -> None:
    arrivals = (Arrived("CT1", 3, 1, 2048, NOW - 9), Arrived("<b>", 1, 0, 1, NOW - 1))
    shown = page(senders={"OLD": NOW - 86_400, "CT1": NOW - 9}, arrivals=arrivals)
    assert 'href="/modalities/ct%202"' in shown
    assert shown.index("&lt;b&gt;") < shown.index(">CT1<") < shown.index(">OLD<")
    assert shown.count("not in the inventory") == 2
    assert shown.count(">CT1<") == 1


def test_duplicates_are_told_by_what_became_of_them() -> None:
    shown = page(duplicates={"identical": 4, "rejected": 1, "kept": 0})
    assert "Duplicates since the start" in shown
    assert "nothing was written" in shown
    assert "the first was kept" not in shown


def test_events_that_wait_are_told_with_the_oldest() -> None:
    assert "nobody is told" in page()
    assert "1 min ago" in page(pending=7, oldest_pending=NOW - 61)
    assert "all are delivered" in page(pending=0, oldest_pending=None)


def test_without_a_storage_scp_the_page_says_so() -> None:
    assert "nothing is received here" in storage_page.fragment(Shown(None, [], {}, NOW))
