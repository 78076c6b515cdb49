"""The page of a modality in a browser: the echo that is asked for, and what it says."""

from __future__ import annotations

import pytest

from asyncdicom.outcome import Reason

from .conftest import Site, Visit, until

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.blocking]


def test_echo_now_asks_and_shows_what_came_of_it(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1")
    button = page.get_by_role("button", name="Echo now")
    button.focus()
    page.keyboard.press("Enter")
    told = page.locator("#echoed")
    told.get_by_text("Connection refused, after 2.0 ms. nothing listens. Next: the machine answers").wait_for()
    assert site.service.echoes == ["up-1"]
    page.locator(".pill.down").wait_for()
    assert page.title() == "up-1 down · asyncdicom"
    assert button.is_enabled()


def test_an_update_leaves_what_the_echo_said_and_what_is_unfolded(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1")
    page.get_by_role("button", name="Echo now").click()
    page.locator("#echoed").get_by_text("Connection refused").wait_for()
    page.get_by_text("All 60, with times").click()
    site.ended("up-1", Reason.OK, duration=1.25)
    page.locator(".pill.up").wait_for()
    assert page.locator("#echoed").is_visible()
    assert page.locator("#history").get_attribute("open") is not None
    assert page.locator("#history tbody tr").first.inner_text().split("\t")[-1] == "1.2 s"


def test_what_is_known_of_a_modality_is_there(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1")
    text = page.locator("main").inner_text()
    for known in ("SOMEBODY_1", "Verification SOP Class", "Explicit VR Little Endian", "95th percentile", "98% of 60"):
        assert known in text
    legend = page.locator(".phases li").all_inner_texts()
    assert [entry.split()[0] for entry in legend] == ["resolve", "connect", "tls", "associate", "operation", "release"]
    assert page.locator(".stack rect").count() == 6


def test_another_modality_does_not_disturb_the_page(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1")
    asked: list[str] = []
    until(page, "document.getElementById('freshness').textContent !== ''")
    page.on("request", lambda request: asked.append(request.url))
    site.ended("up-2", Reason.OK)
    page.wait_for_timeout(1_500)
    site.ended("up-1", Reason.ABORTED)
    page.locator(".pill.down").wait_for()
    assert len(asked) == 1


def test_with_a_token_the_browser_asks_for_it_once_and_the_echo_carries_it(site: Site, visit: Visit) -> None:
    site.service.token = "opensesame"
    credentials = {"username": "anyone", "password": "opensesame"}
    page = visit(f"{site.address}/modalities/up-1", http_credentials=credentials, ignore="401")
    page.get_by_role("button", name="Echo now").click()
    page.locator("#echoed").get_by_text("Connection refused").wait_for()


def test_an_echo_that_is_not_allowed_is_told_in_words(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1", ignore="403")
    refused = '{"error": "without web.token_file this is answered to this machine alone", "remedy": "send a token"}'
    page.route("**/echo", lambda route: route.fulfill(status=403, content_type="application/json", body=refused))
    page.get_by_role("button", name="Echo now").click()
    page.locator("#echoed").get_by_text(
        "Not asked: without web.token_file this is answered to this machine alone. Next: send a token."
    ).wait_for()
    assert site.service.echoes == []


def test_without_the_script_the_echo_is_asked_for_too(site: Site, visit: Visit) -> None:
    # The answer is no page of ours, and has no icon.
    page = visit(f"{site.address}/modalities/up-1", java_script_enabled=False, ignore="404")
    page.get_by_role("button", name="Echo now").click()
    page.wait_for_url("**/api/modalities/up-1/echo")
    assert '"reason":"connect_refused"' in page.content()


def test_a_modality_that_has_left_is_told_of(site: Site, visit: Visit) -> None:
    page = visit(f"{site.address}/modalities/up-1", ignore="404")
    stay = [state.modality for state in site.service.states.all() if state.modality.name != "up-1"]
    site.service.states.configure(stay)
    page.evaluate("refresh()")
    page.get_by_text("this modality has left the configuration").wait_for()
    assert page.locator("h1").inner_text() == "up-1"
