"""What changes is told of as it changes, to no more listeners than there may be, and until the server ends."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx

from asyncdicom.modality import Modality
from asyncdicom.web import stream
from asyncdicom.web.server import serve_web
from tests.web.conftest import KnownService, Serve

MODALITIES = tuple(Modality(f"ct{n}", ae_title=f"CT{n}", host="127.0.0.1", port=104 + n) for n in range(3))


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    kind = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


async def test_a_modality_that_was_asked_is_told_of_with_all_that_is_known(serve: Serve) -> None:
    backend = KnownService(MODALITIES)
    async with serve(backend) as client, client.stream("GET", "/api/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = _events(response)
        while not backend.changes._listeners:
            await anyio.sleep(0.01)
        await backend.echo("ct1")
        backend.observer.store_ended("CT1", 0x0000, 1000, 0.1)
        with anyio.fail_after(5):
            kind, told = await anext(events)
            assert (kind, told["name"], told["state"], told["reason"]) == ("modality", "ct1", "down", "connect_refused")
            kind, told = await anext(events)
            assert (kind, told["instances"], told["received_bytes"]) == ("storage", 1, 1000)
        await events.aclose()  # type: ignore[attr-defined]


async def test_a_page_is_told_who_changed_in_one_event(serve: Serve, monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "_TOGETHER", 0.1)
    backend = KnownService(MODALITIES)
    async with serve(backend) as client, client.stream("GET", "/api/events?brief=1") as response:
        events = _events(response)
        while not backend.changes._listeners:
            await anyio.sleep(0.01)
        for name in ("ct2", "ct0", "ct2"):
            backend.changes._tell(name)
        with anyio.fail_after(5):
            assert await anext(events) == ("changed", {"modalities": ["ct0", "ct2"], "storage": False})
            backend.observer.store_ended("CT1", 0x0000, 1000, 0.1)
            assert await anext(events) == ("changed", {"modalities": [], "storage": True})
        await events.aclose()  # type: ignore[attr-defined]


async def test_bursts_are_written_in_batches_and_nothing_of_them_is_lost(serve: Serve) -> None:
    modalities = tuple(Modality(f"ct{n:03}", ae_title=f"CT{n}", host="127.0.0.1") for n in range(250))
    backend = KnownService(modalities)
    async with serve(backend) as client, client.stream("GET", "/api/events") as response:
        while not backend.changes._listeners:
            await anyio.sleep(0.01)
        for modality in modalities:
            backend.changes._tell(modality.name)
        told: list[str] = []
        with anyio.fail_after(5):
            async for _, data in _events(response):
                told.append(data["name"])
                if len(told) == len(modalities):
                    break
    assert told == [modality.name for modality in modalities]


async def test_many_changes_of_one_modality_come_together(serve: Serve, monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "_TOGETHER", 0.2)
    backend = KnownService(MODALITIES)
    async with serve(backend) as client, client.stream("GET", "/api/events") as response:
        while not backend.changes._listeners:
            await anyio.sleep(0.01)
        for _ in range(50):
            await backend.echo("ct0")
        await backend.echo("ct2")
        names = []
        with anyio.move_on_after(0.6):
            async for _, told in _events(response):
                names.append(told["name"])
    assert names[-1] == "ct2"
    assert len(names) <= 4


async def test_no_more_listen_than_may_and_who_leaves_makes_room(serve: Serve) -> None:
    backend = KnownService(MODALITIES)
    async with serve(backend) as client:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(client.stream("GET", "/api/events"))
            with anyio.fail_after(5):
                while not backend.changes.is_full:
                    await anyio.sleep(0.01)
            assert (await client.get("/api/events")).status_code == 503
        with anyio.fail_after(5):
            while backend.changes._listeners:
                # Whoever has left is noticed when there is something to say.
                await backend.echo("ct0")
                await anyio.sleep(0.05)


async def test_streams_end_with_the_server_and_do_not_hold_it_up() -> None:
    backend = KnownService(MODALITIES)
    async with AsyncExitStack() as stack:
        async with serve_web(backend, "127.0.0.1", 0) as (host, port):
            client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=5))
            response = await stack.enter_async_context(client.stream("GET", f"http://{host}:{port}/api/events"))
            while not backend.changes._listeners:
                await anyio.sleep(0.01)
            started = time.monotonic()
        assert time.monotonic() - started < 1.5
        assert [event async for event in _events(response)] == []
    assert not backend.changes._listeners


async def test_studies_are_listed_without_patients(serve: Serve) -> None:
    backend = KnownService(MODALITIES)
    backend.known_studies = [
        {
            "study_instance_uid": "1.2.3",
            "study_date": "20260101",
            "instances": 5,
            "size": 2048,
            "first_received": 1_700_000_000.0,
            "last_received": 1_700_000_060.0,
            "completed_at": None,
            "series": 2,
        }
    ]
    async with serve(backend) as client:
        (study,) = (await client.get("/api/studies")).json()
        assert study["last_received"] == "2023-11-14T22:14:20Z"
        assert (study["study_instance_uid"], study["completed_at"], study["series"]) == ("1.2.3", None, 2)
        for wrong in ("0", "x", "-1", "99999999999"):
            assert (await client.get("/api/studies", params={"limit": wrong})).status_code == 400
        page = (await client.get("/storage")).text
        fragment = (await client.get("/storage", params={"fragment": "1"})).text
    assert "in progress" in page
    assert "CT1" in page
    assert fragment.startswith("<div id=")
    assert fragment in page
