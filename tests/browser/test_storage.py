"""The storage page in a browser: it follows what arrives, and nothing else."""

from __future__ import annotations

import pytest

from asyncdicom.outcome import Reason

from .conftest import Site, Visit, until

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.blocking]


def test_what_arrives_is_counted_without_a_reload(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/storage")
    assert page.get_by_role("region", name="Arrivals").inner_text().count("100") == 1
    until(page, "document.getElementById('freshness').textContent !== ''")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    site.stored()
    until(page, "document.querySelector('.board .figure').textContent === '101'")
    assert page.get_by_role("region", name="Arrivals").inner_text().count("101") == 1
    # What somebody else answers is no matter of this page.
    site.ended("up-1", Reason.OK)
    page.wait_for_timeout(1_500)
    assert asked == [f"{site.address}/storage?fragment=1"]


def test_the_page_says_what_there_is_to_worry_about(site: Site, visit: Visit) -> None:
    text = visit(f"{site.address}/storage").locator("main").inner_text()
    for told in ("full in 1 h 0 min", "In quarantine", "the oldest", "not in the inventory", "nothing was written", "complete"):
        assert told in text
