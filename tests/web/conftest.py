"""A service as the web side sees it, of which every state is known, behind a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality
from asyncdicom.monitor.changes import Changes
from asyncdicom.monitor.metrics import Exposed, Metrics
from asyncdicom.monitor.probe import Probed
from asyncdicom.monitor.state import Broadcast, States, StorageState
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.server import serve_web


class KnownService:
    def __init__(self, modalities: tuple[Modality, ...] = (), token: str | None = None) -> None:
        self.title = "ASYNCDICOM"
        self.token = token
        self.states = States(modalities)
        swept = {"echo": frozenset(modality.name for modality in modalities)}
        exposed = Exposed(modalities, swept, ("echo",), storage=True, archive=Path())
        self.metrics = Metrics(exposed, self.states)
        self.storage_state = StorageState()
        self.changes = Changes(most=3)
        self.observer = Broadcast(self.states, self.storage_state, self.metrics, self.changes)
        self.known_studies: list[dict[str, Any]] = []
        self.mistakes: list[str] = []
        self.unready: list[str] = []
        self.reloads = 0
        self.echoes: list[str] = []
        self.seconds = 0.0

    def storage(self) -> StorageSummary | None:
        return StorageSummary("ASYNCDICOM@127.0.0.1:11112", 3, 1_250, 0, 655 << 20, 2, 1_700_000_000.0, 42 << 30)

    async def studies(self, limit: int) -> list[dict[str, Any]]:
        return self.known_studies[:limit]

    async def senders(self) -> dict[str, float]:
        return {"CT1": 1_700_000_000.0}

    async def probe(self, name: str, module: str, timeout: float | None) -> Probed:
        raise ConfigurationError("target", name, "nobody is probed here")

    async def not_ready(self) -> list[str]:
        return self.unready

    async def reload(self) -> list[str]:
        self.reloads += 1
        return self.mistakes

    async def echo(self, name: str) -> Outcome:
        await anyio.sleep(self.seconds)
        self.echoes.append(name)
        outcome = Outcome(name, "echo", Reason.CONNECT_REFUSED, detail="nothing listens", duration=0.002)
        self.observer.operation_ended(outcome)
        return outcome


Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve() -> Serve:
    """Serve a backend and yield a client for it."""

    @asynccontextmanager
    async def served(backend: KnownService, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
        async with (
            serve_web(backend, "127.0.0.1", 0) as (host, port),
            httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False, timeout=5, **settings) as client,
        ):
            yield client

    return served


@pytest.fixture
def service() -> KnownService:
    """Two modalities, one of which is down."""
    service = KnownService(
        (
            Modality("ct1", ae_title="CT1", host="127.0.0.1", port=104, groups=("scanners", "site-a")),
            Modality("mr 1", ae_title="MR1", host="::1", port=11112),
        )
    )
    service.observer.operation_ended(Outcome("ct1", "echo", Reason.CONNECT_TIMEOUT, detail="no answer", duration=3.0))
    service.observer.operation_ended(Outcome("mr 1", "echo", Reason.OK, duration=0.012))
    return service
