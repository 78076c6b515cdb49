"""A thousand modalities that are swept all the time: the page follows, and whoever reads it feels nothing of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal

from asyncdicom.service.config import check
from asyncdicom.service.run import Service
from asyncdicom.testing import SimulatedModality
from tests.peers.running import free_port

from .conftest import Visit, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODALITIES = 1_000
# Of which every fifth is down.
DOWN = 5
# Seconds from one sweep to the next.
EVERY = 2.0
# Milliseconds that the page may not answer to who uses it. Others work on this machine too, and hold up any of several rounds;
# what the page does itself would be there in all of them.
LONGEST, ROUNDS = 100, 4
# Of a hundred rows with sixty outcomes each.
MOST_NODES = 2_500
WATCH = """
window.long = [];
new PerformanceObserver((list) => window.long.push(...list.getEntries().map(({ duration }) => Math.round(duration))))
  .observe({ type: "longtask", buffered: true });
"""

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.blocking]


@pytest.fixture
def large(portal: BlockingPortal, tmp_path: Path) -> Iterator[str]:
    """The address of a service that sweeps a thousand modalities."""
    with portal.wrap_async_context_manager(SimulatedModality()) as answering:
        closed = free_port()
        raw: dict[str, Any] = {
            "fleet": {"concurrency": 64, "breaker": {"failures": 10_000}},
            "sweep": [{"operation": "echo", "every": EVERY, "targets": ["@all"]}],
            "web": {"port": 0},
            "modality": [
                {
                    "name": f"scanner-{number:03}",
                    "ae_title": f"CT{number}",
                    "host": answering.host,
                    "port": answering.port if number % DOWN else closed,
                    "groups": [f"site-{number % 20}"],
                }
                for number in range(MODALITIES)
            ],
        }
        with portal.wrap_async_context_manager(Service(check(raw, tmp_path))) as service:
            assert service.web is not None
            yield f"http://{service.web[0]}:{service.web[1]}"


def longest_of(page: Page, work: Callable[[], object]) -> int:
    """The longest task of the page meanwhile, in milliseconds; 0 when none took more than 50, from which on they are told."""
    work()
    longest: int = page.evaluate("Math.max(0, ...window.long.splice(0))")
    return longest


def test_a_thousand_modalities_are_followed_without_a_lag(
    large: str, visit: Visit, record_property: Callable[[str, object], None]
) -> None:
    with httpx.Client(base_url=large, trust_env=False) as client:
        deadline = time.monotonic() + 20
        while "<b>0</b><span>unknown" not in client.get("/?fragment=1").text:
            assert time.monotonic() < deadline, "not everybody was asked"
            time.sleep(0.2)
        times = []
        for _ in range(5):
            began = time.monotonic()
            answer = client.get("/")
            times.append((time.monotonic() - began) * 1000)
    page = visit("about:blank", ignore="^request: ")
    page.add_init_script(WATCH)
    loading = [longest_of(page, lambda: page.goto(large)) for _ in range(ROUNDS)]
    loaded = page.evaluate("Math.round(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd)")
    rows = page.locator("tr[data-key]")
    assert rows.count() == 100
    assert page.evaluate("document.querySelectorAll('*').length") <= MOST_NODES
    page.locator("tr[data-key] .name").nth(60).focus()
    focused = page.evaluate("document.activeElement.textContent")
    page.evaluate("getSelection().selectAllChildren(document.querySelectorAll('.where')[62])")
    selected = page.evaluate("String(getSelection())")
    scrolled = page.evaluate("scrollY")
    counted = "window.updates = 0; new MutationObserver(() => window.updates++).observe(document.getElementById('freshness'),"
    page.evaluate(f"(() => {{ {counted} {{ childList: true }}) }})()")
    updating = [longest_of(page, lambda: page.wait_for_timeout(EVERY * 1000)) for _ in range(ROUNDS)]
    assert page.evaluate("window.updates") >= ROUNDS - 1
    assert page.evaluate("[document.activeElement.textContent, String(getSelection())]") == [focused, selected]
    assert page.evaluate("scrollY") == pytest.approx(scrolled, abs=1)
    page.keyboard.press("/")
    page.keyboard.type("scanner-99", delay=30)
    until(page, "document.querySelectorAll('tr[data-key]').length === 10")
    page.wait_for_timeout(EVERY * 1000)
    assert page.evaluate("document.activeElement.value") == "scanner-99"
    assert rows.count() == 10
    told = f"{min(times):.0f} ms and {len(answer.content) // 1024} KiB from the server, {loaded} ms to its end in the browser"
    record_property("a page of 1,000", f"{told}; longest tasks {loading} ms while loading, {updating} ms while updating")
    assert min(loading) <= LONGEST
    assert min(updating) <= LONGEST
