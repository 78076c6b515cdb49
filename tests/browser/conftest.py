"""Pages in a real browser: Chromium without a window, on loopback alone, and nothing that it complains about goes unseen."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncdicom.modality import Modality
from asyncdicom.monitor.arrivals import Arrived
from asyncdicom.monitor.space import Forecast
from asyncdicom.outcome import AgreedContext, Outcome, Peer, Phases, Reason, Rejected
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.server import serve_web
from tests.peers.fixtures import give_up
from tests.peers.programs import program
from tests.web.conftest import KnownService

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Milliseconds for the browser to do what it is asked.
PATIENCE = 5_000


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this package."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        give_up("playwright is not installed (make test installs it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=["--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    """A loop in another thread, where services live."""
    with start_blocking_portal("asyncio") as portal:
        yield portal


def until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript. The browser's own way to wait is one that the policy of the pages refuses.

    :raises TimeoutError: when it does not come true
    """
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come true: {condition}")
        page.wait_for_timeout(20)


Visit = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open an address in a window of its own; what the browser complains about meanwhile fails the test.

    ``ignore`` is what complaints may contain, and the other settings are those of the browser's context.
    """
    complaints: list[str] = []
    with ExitStack() as stack:

        def opened(address: str, *, ignore: str = r"(?!)", **settings: Any) -> Page:
            context = stack.enter_context(browser.new_context(**settings))
            context.set_default_timeout(PATIENCE)
            page = context.new_page()

            def complain(what: str) -> None:
                if not re.search(ignore, what):
                    complaints.append(what)

            host = urlsplit(address).netloc
            page.on("console", lambda said: complain(f"{said.type}: {said.text}"))
            page.on("pageerror", lambda error: complain(f"error: {error}"))
            page.on("request", lambda asked: urlsplit(asked.url).netloc == host or complain(f"request: {asked.url}"))
            page.goto(address)
            return page

        yield opened
    assert complaints == []


class Shown(KnownService):
    """A service whose modalities are in every state, and to which everything has happened."""

    def __init__(self) -> None:
        failing = [reason for reason in Reason if reason not in (Reason.OK, Reason.CANCELLED, Reason.BREAKER_OPEN)]
        names = [f"down-{reason.value}" for reason in failing]
        known = [Modality(name, ae_title="X", host="127.0.0.1", groups=("broken",)) for name in (*names, "quite alone")]
        known += [Modality(f"up-{n}", ae_title=f"CT{n}", host="127.0.0.1", port=104, groups=("scanners",)) for n in range(5)]
        super().__init__((*known, Modality("not asked", ae_title="MR1", host="::1")))
        # Every window listens, and those of the test before may not have been missed yet.
        self.changes._most = 64
        for reason, name in zip(failing, names, strict=True):
            self.ended(name, reason, detail=f"said <b>{reason.value}</b>")
        self.ended("quite alone", Reason.CONNECT_TIMEOUT)
        self.observer.breaker_changed("quite alone", True)
        self.ended("quite alone", Reason.BREAKER_OPEN)
        for number in range(5):
            for turn in range(60):
                reason = Reason.ABORTED if turn == 20 + number else Reason.OK
                self.ended(f"up-{number}", reason, duration=0.01 + 0.001 * (turn * 7 % 11))
        self.kept = 100
        self.known_studies = [
            {
                "study_instance_uid": "1.2.3",
                "series": 1,
                "instances": 5,
                "size": 2048,
                "last_received": 1.7e9,
                "completed_at": 1e9,
            }
        ]

    def ended(self, name: str, reason: Reason, **fields: Any) -> None:
        """A modality was asked for an echo."""
        known = self.states.get(name)
        assert known is not None
        fields.setdefault("duration", 0.02)
        if reason is Reason.OK:
            fields["phases"] = Phases(resolve=0.001, connect=0.002, tls=0.003, associate=0.004, operation=0.005, release=0.001)
            fields["peer"] = Peer("1.2.3.4", "SOMEBODY_1")
            fields["contexts"] = (AgreedContext("1.2.840.10008.1.1", "1.2.840.10008.1.2.1"),)
        if reason is Reason.REJECTED_PERMANENT:
            fields["rejected"] = Rejected(1, 1, 3)
        self.observer.operation_ended(Outcome(name, "echo", reason, **fields))

    def storage(self) -> StorageSummary:
        return StorageSummary(
            *("ME@127.0.0.1:104", 2, self.kept, 1, 5 << 20, 3, 1_700_000_000.0, 50 << 30),
            arrivals=(Arrived("CT1", self.kept, 1, 5 << 20, 1_700_000_000.0), Arrived("STRANGER", 0, 2)),
            duplicates={"identical": 3, "kept": 1},
            quarantined=1,
            pending=2,
            oldest_pending=1_700_000_000.0,
            forecast=Forecast(1 << 20, 3600.0, 1800.0),
        )

    def stored(self) -> None:
        """An instance came."""
        self.kept += 1
        self.observer.store_ended("CT1", 0x0000, 4711, 0.1)


class Site:
    """A service that is served."""

    def __init__(self, address: str, portal: BlockingPortal, service: Shown) -> None:
        self.address = address
        self.service = service
        self._portal = portal

    def ended(self, name: str, reason: Reason, **fields: Any) -> None:
        """A modality was asked, on the loop of the service."""
        self._portal.call(lambda: self.service.ended(name, reason, **fields))

    def stored(self) -> None:
        """An instance came, on the loop of the service."""
        self._portal.call(self.service.stored)


@pytest.fixture
def site(portal: BlockingPortal) -> Iterator[Site]:
    """A service whose modalities are in every state."""
    service = Shown()
    with portal.wrap_async_context_manager(serve_web(service, "127.0.0.1", 0)) as (host, port):
        yield Site(f"http://{host}:{port}", portal, service)
