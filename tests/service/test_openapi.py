"""``/api/openapi.json``: every route is described and nothing else, and a running service answers as it says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.routing import Route

from asyncdicom._version import __version__
from asyncdicom.service.run import Service
from asyncdicom.testing import SimulatedModality, send_instances, synthetic_study
from asyncdicom.web.app import create_app, streams_of
from asyncdicom.web.openapi import describe
from tests.conftest import Baseline
from tests.service.test_service import SCP, WEB, client_of, condition_of, entry, made, until, write

jsonschema = pytest.importorskip("jsonschema")
openapi_spec_validator = pytest.importorskip("openapi_spec_validator")

DESCRIPTION = describe(__version__)
FORMATS = jsonschema.FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or (value.endswith("Z") and datetime.fromisoformat(value) is not None)


def check(schema: dict[str, Any], value: object) -> None:
    """Hold a value against a schema of the description."""
    whole = {**schema, "components": DESCRIPTION["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=FORMATS).validate(value)


def described() -> set[tuple[str, str, int]]:
    return {
        (method.upper(), path, int(status))
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
    }


class Asking:
    """Asks a service, and holds what it answers against the description."""

    def __init__(self, client: httpx.AsyncClient, seen: set[tuple[str, str, int]]) -> None:
        self._client = client
        self._seen = seen

    async def __call__(
        self, method: str, path: str, status: int, name: str = "sim", headers: dict[str, str] | None = None, **query: str
    ) -> Any:
        answer = await self._client.request(method, path.replace("{name}", name), params=query, headers=headers)
        assert answer.status_code == status, (path, answer.status_code, answer.text)
        self._seen.add((method, path, status))
        content = DESCRIPTION["paths"][path][method.lower()]["responses"][str(status)]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in content, f"{path} answers {status} as {kind}"
        value = answer.json() if kind == "application/json" else answer.text
        check(content[kind]["schema"], value)
        return value


def test_it_is_valid_openapi() -> None:
    openapi_spec_validator.validate(DESCRIPTION)


async def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    service = await made(tmp_path / "a.toml", "")
    with ThreadPoolExecutor(1) as executor:
        application = await anyio.to_thread.run_sync(create_app, service, executor, streams_of(service))
    routes = {
        (method, route.path)
        for route in application.routes
        if isinstance(route, Route)
        for method in (route.methods or ()) - {"HEAD"}
    }
    assert len(application.routes) == len({path for _, path in routes})
    assert {(method, path) for method, path, _ in described()} == routes


def test_every_parameter_of_a_path_is_described() -> None:
    for path, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            given = {item["name"] for item in operation.get("parameters", ()) if item["in"] == "path"}
            assert given == set(re.findall(r"\{(\w+)\}", path))


def test_errors_have_one_shape() -> None:
    problem = set(DESCRIPTION["components"]["schemas"]["Problem"]["required"])
    assert problem == {"error", "where", "remedy"}
    assert problem <= set(DESCRIPTION["components"]["schemas"]["NotReloaded"]["required"])
    for methods in DESCRIPTION["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                schema = answer["content"].get("application/json", {}).get("schema", {})
                if status >= "400" and schema:
                    assert schema["$ref"].rpartition("/")[2] in ("Problem", "NotReloaded")


@asynccontextmanager
async def running(folder: Path, sim: SimulatedModality, more: str = "") -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    gone = '[[modality]]\nname = "gone"\nae_title = "GONE"\nhost = "127.0.0.1"\nport = 1\n'
    text = SCP + WEB + more + "[[sweep]]\nevery = 0.2\n" + entry(sim, "sim", '["site-a"]') + gone
    await anyio.Path(folder).mkdir()
    service = await made(folder / "a.toml", text)
    async with service, client_of(service) as client:
        yield service, client


async def test_a_running_service_answers_as_it_is_described(no_leaks: Baseline, tmp_path: Path) -> None:
    seen: set[tuple[str, str, int]] = set()
    async with SimulatedModality() as sim:
        async with running(tmp_path / "open", sim) as (service, client):
            ask = Asking(client, seen)
            assert service.archive is not None
            assert service.archive.index is not None
            await send(service, sim)
            await until(lambda: condition_of(service, "sim") == "up" and condition_of(service, "gone") == "down")
            assert await ask("GET", "/api/openapi.json", 200) == DESCRIPTION
            for path in ("/", "/modalities/{name}", "/storage"):
                await ask("GET", path, 200)
                await ask("GET", path, 200, fragment="1")
            await ask("GET", "/modalities/{name}", 404, "nobody")
            for file in ("fleet.css", "fleet.js", "icon.svg"):
                await ask("GET", "/static/{name}", 200, file)
            await ask("GET", "/static/{name}", 404, "fleet.exe")
            for accept in ("*/*", "application/openmetrics-text; version=1.0.0"):
                await ask("GET", "/metrics", 200, headers={"accept": accept})
                await ask("GET", "/probe", 200, headers={"accept": accept}, target="sim", module="find")
            await ask("GET", "/probe", 200, target="gone", debug="true")
            told = await ask("GET", "/probe", 400, target="nobody")
            assert told["where"] == "target"
            told = await ask("GET", "/probe", 400, target="sim", module="reboot")
            assert (told["where"], told["remedy"]) == ("module", "one of echo, find, worklist, store")
            assert len(await ask("GET", "/sd", 200)) == 2
            await ask("GET", "/-/healthy", 200)
            await ask("GET", "/-/ready", 200)
            assert len(await ask("GET", "/api/modalities", 200)) == 2
            for name in ("sim", "gone"):
                assert (await ask("GET", "/api/modalities/{name}", 200, name))["outcomes"]
                await ask("POST", "/api/modalities/{name}/echo", 200, name)
            for method, path in (("GET", "/api/modalities/{name}"), ("POST", "/api/modalities/{name}/echo")):
                await ask(method, path, 404, "nobody")
            assert len(await ask("GET", "/api/studies", 200, limit="5")) == 1
            await ask("GET", "/api/studies", 400, limit="many")
            await events(client, seen)
            with contextlib.ExitStack() as listeners:
                for _ in range(64):
                    listeners.enter_context(service.changes.listening())
                await ask("GET", "/api/events", 503)
            for path in ("/-/reload", "/api/modalities/{name}/echo"):
                await ask("POST", path, 403, headers={"origin": "http://evil.example"})
            await ask("POST", "/-/reload", 200)
            await write(tmp_path / "open/a.toml", "[scp]\nport = -1\n")
            assert len((await ask("POST", "/-/reload", 422))["mistakes"]) == 1
            await service.archive.index.close()
            await ask("GET", "/-/ready", 503)
            await ask("GET", "/storage", 503)
            assert (await ask("GET", "/api/studies", 503))["where"] == "archive.index"
        await anyio.Path(tmp_path / "token").write_text("opensesame")
        async with running(tmp_path / "closed", sim, 'token_file = "../token"\n') as (_, client):
            ask = Asking(client, seen)
            for method, path, status in described():
                if status == 401:
                    await ask(method, path, 401)
    assert seen == described()


async def send(service: Service, sim: SimulatedModality) -> None:
    assert service.scp is not None
    study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(2, 16, 16)])
    await send_instances("127.0.0.1", service.scp.port, study, calling_ae_title=sim.ae_title)


async def events(client: httpx.AsyncClient, seen: set[tuple[str, str, int]]) -> None:
    """Listen until a modality was told of, and hold it against its schema."""
    async with client.stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen.add(("GET", "/api/events", answer.status_code))
        check({"$ref": "#/components/schemas/Modality"}, await first(answer, "modality"))


async def first(answer: httpx.Response, wanted: str) -> Any:
    """The data of the first event of a kind."""
    kind = ""
    with anyio.fail_after(5):
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == wanted:
                return json.loads(line.removeprefix("data: "))
    raise AssertionError(f"the stream ended without {wanted}")


async def test_the_storage_event_is_described_too(tmp_path: Path) -> None:
    async with SimulatedModality() as sim, running(tmp_path / "a", sim) as (service, client):
        async with client.stream("GET", "/api/events") as answer:
            await send(service, sim)
            check({"$ref": "#/components/schemas/Storage"}, await first(answer, "storage"))


async def test_what_the_framework_refuses_has_the_shape_of_a_problem(tmp_path: Path) -> None:
    async with SimulatedModality() as sim, running(tmp_path / "a", sim) as (_, client):
        for method, path, status in (("GET", "/api/nothing", 404), ("GET", "/-/reload", 405), ("PUT", "/sd", 405)):
            answer = await client.request(method, path)
            assert answer.status_code == status
            check({"$ref": "#/components/schemas/Problem"}, answer.json())
        assert answer.headers["allow"]
        page = (await client.get("/modalities/<b>")).text
        assert "<b>&lt;" not in page
        assert "&lt;b&gt;" in page
