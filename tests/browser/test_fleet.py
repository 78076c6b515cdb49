"""The fleet page in a browser: it follows what happens, filters without a reload, and disturbs nobody who reads it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from asyncdicom.outcome import Reason

from .conftest import Site, Visit, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.blocking]


def rows(page: Page) -> list[str]:
    names: list[str] = page.locator("tr[data-key]").evaluate_all("rows => rows.map(row => row.dataset.key)")
    return names


def is_the_same_document(page: Page) -> bool:
    """Whether the page was not loaded again since this was first asked."""
    seen: bool = page.evaluate("window.seen ?? !(window.seen = true)")
    return seen


def test_a_modality_that_goes_down_moves_to_the_top_without_a_reload(site: Site, visit: Visit) -> None:
    page = visit(site.address)
    is_the_same_document(page)
    before = rows(page)
    assert before[0] != "up-3"
    site.ended("up-3", Reason.CONNECT_REFUSED, detail="nothing listens there")
    until(page, "document.querySelector('tr[data-key]').dataset.key === 'up-3'")
    first = page.locator("tr[data-key='up-3']").inner_text()
    assert "Connection refused" in first
    assert "nothing listens there" in first.lower()
    assert "Next: the machine answers but nothing listens" in first
    assert page.title() == f"{sum(name.startswith(('down', 'quite')) for name in before) + 1} down · asyncdicom"
    assert sorted(rows(page)) == sorted(before)
    assert is_the_same_document(page)


def test_search_filters_while_one_types_and_the_address_says_so(site: Site, visit: Visit) -> None:
    page = visit(site.address)
    is_the_same_document(page)
    page.keyboard.press("/")
    page.keyboard.type("CT2", delay=20)
    until(page, "document.querySelectorAll('tr[data-key]').length === 1")
    assert rows(page) == ["up-2"]
    assert page.url == f"{site.address}/?q=CT2"
    assert page.locator(".found").inner_text() == "1 of 21 modalities"
    assert page.evaluate("document.activeElement.value") == "CT2"
    assert is_the_same_document(page)
    page.reload()
    assert rows(page) == ["up-2"]


def test_only_failing_is_one_click_and_stays_in_the_address(site: Site, visit: Visit) -> None:
    page = visit(site.address)
    everybody = len(rows(page))
    page.get_by_label("Only failing").check()
    until(page, "document.querySelectorAll('tr.up, tr.unknown').length === 0")
    assert page.url == f"{site.address}/?failing=1"
    assert 0 < len(rows(page)) < everybody
    page.go_back()
    until(page, f"document.querySelectorAll('tr[data-key]').length === {everybody}")
    assert not page.get_by_label("Only failing").is_checked()


def test_groups_and_tiles_filter_without_a_reload(site: Site, visit: Visit) -> None:
    page = visit(site.address)
    is_the_same_document(page)
    page.get_by_label("Group", exact=True).select_option("scanners")
    until(page, "document.querySelectorAll('tr[data-key]').length === 5")
    page.locator(".tile.down").click()
    until(page, "document.querySelectorAll('tr[data-key]').length === 0")
    assert page.locator(".empty").inner_text() == "No modality matches."
    assert page.get_by_label("State", exact=True).input_value() == "down"
    # Once more takes it back.
    page.locator(".tile.down").click()
    until(page, "document.querySelectorAll('tr[data-key]').length === 5")
    assert page.url == f"{site.address}/?group=scanners"
    assert is_the_same_document(page)


def test_without_the_script_the_form_filters_too(site: Site, visit: Visit) -> None:
    page = visit(site.address, java_script_enabled=False)
    page.get_by_label("Name, AE title or host").fill("up-")
    page.get_by_label("Only failing").check()
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/?q=up-&state=&group=&failing=1")
    assert page.locator(".empty").inner_text() == "No modality matches."


def test_the_strip_tells_what_and_when_under_the_pointer(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/?q=up-1")
    strip = page.locator("tr[data-key='up-1'] .strip")
    place = strip.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] * 21.5 / 60, place["y"] + 5)
    tip = page.locator("#tip")
    assert re.match(r"Association aborted · C-ECHO · \d+\.\d ms\n.*\d:\d\d:\d\d.* · \d+ s ago$", tip.inner_text())
    page.mouse.move(place["x"] + place["width"] * 22.5 / 60, place["y"] + 5)
    assert tip.inner_text().startswith("Answers · C-ECHO")
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_the_strip_tells_by_keys_and_by_touch(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/?q=up-0", has_touch=True)
    tip = page.locator("#tip")
    page.get_by_role("link", name="up-0").focus()
    page.keyboard.press("Tab")
    assert tip.inner_text().startswith("Answers · C-ECHO")
    for _ in range(39):
        page.keyboard.press("ArrowLeft")
    assert tip.inner_text().startswith("Association aborted")
    page.keyboard.press("End")
    assert tip.inner_text().startswith("Answers")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    place = page.locator("tr[data-key='up-0'] .strip").bounding_box()
    assert place is not None
    page.touchscreen.tap(place["x"] + place["width"] * 20.5 / 60, place["y"] + 5)
    assert tip.inner_text().startswith("Association aborted")


def test_an_update_keeps_focus_selection_and_what_was_typed(site: Site, visit: Visit) -> None:
    page = visit(site.address, viewport={"width": 1000, "height": 400})
    page.locator("tr[data-key='up-2'] .name").focus()
    page.evaluate("getSelection().selectAllChildren(document.querySelector(\"tr[data-key='up-4'] .where\"))")
    page.evaluate("scrollTo(0, 900)")
    where = page.evaluate("scrollY")
    site.ended("up-2", Reason.OK, duration=1.25)
    until(page, "document.querySelector(\"tr[data-key='up-2'] .c-latency\").textContent === '1.2 s'")
    assert page.evaluate("document.activeElement.textContent") == "up-2"
    assert page.evaluate("String(getSelection())") == "CT4 127.0.0.1:104"
    assert page.evaluate("scrollY") == where
    page.get_by_label("Name, AE title or host").fill("up")
    page.evaluate("document.activeElement.setSelectionRange(1, 1)")
    site.ended("up-2", Reason.OK, duration=2.25)
    until(page, "document.querySelector(\"tr[data-key='up-2'] .c-latency\").textContent === '2.2 s'")
    assert page.evaluate("[document.activeElement.value, document.activeElement.selectionStart]") == ["up", 1]


def test_everything_is_reached_by_keys_in_the_order_of_the_page(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/?q=up-0")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(({ textContent, ariaLabel, name, tagName }) => ariaLabel ?? (name || textContent || tagName))"
                "(document.activeElement)"
            )
        )
    assert reached[:8] == [
        *("Skip to the content", "asyncdicom", "Fleet", "Storage", "Name, AE title or host", "State", "Group", "failing"),
    ]
    assert reached[-2:] == ["up-0", "up-0: last 60 outcomes, 1 failed"]


def test_a_service_that_went_away_is_told_of_and_so_is_its_return(site: Site, visit: Visit) -> None:
    page = visit(site.address, ignore="Failed to load resource|ERR_FAILED")
    page.route("**/?fragment=1", lambda route: route.abort())
    site.ended("up-0", Reason.OK)
    notice = page.locator("#notice")
    notice.get_by_text("what you see is old").wait_for()
    page.unroute("**/?fragment=1")
    site.ended("up-0", Reason.OK)
    until(page, "document.getElementById('notice').textContent === ''")
    assert page.locator("#freshness").is_visible()
