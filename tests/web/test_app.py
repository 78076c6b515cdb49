"""The routes, over a real server on loopback."""

from __future__ import annotations

import base64
import time

import anyio
import httpx
import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.web.server import serve_web
from tests.conftest import Baseline

from .conftest import KnownService, Serve

TOKEN = {"authorization": "Bearer opensesame"}


async def test_the_fleet_page_is_whole_and_its_fragment_is_not(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        page, fragment = await client.get("/"), await client.get("/?fragment=1&state=down")
    assert page.status_code == 200
    assert page.text.startswith("<!doctype html>")
    assert fragment.text.startswith('<div id="live"')
    assert "mr 1" not in fragment.text


async def test_a_modality_with_a_space_in_its_name_has_a_page(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        assert (await client.get("/modalities/mr%201")).status_code == 200
        assert (await client.get("/modalities/nobody")).status_code == 404


async def test_every_answer_has_a_strict_policy(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        for path in ("/", "/modalities/ct1", "/metrics", "/api/modalities", "/nothing", "/static/fleet.js", "/-/ready"):
            headers = (await client.get(path)).headers
            assert headers["content-security-policy"].startswith("default-src 'none';")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == ("public, max-age=86400" if "static" in path else "no-store")
            assert "server" not in headers


async def test_what_the_page_loads_is_there(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        for name, kind in (("fleet.css", "text/css"), ("fleet.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
            answer = await client.get(f"/static/{name}")
            assert answer.headers["content-type"].startswith(kind)
        assert (await client.get("/static/..%2fapp.py")).status_code == 404


async def test_metrics_are_text_or_openmetrics(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        text = await client.get("/metrics")
        openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert text.headers["content-type"].startswith("text/plain")
    assert 'asyncdicom_modality_up{modality="mr 1"} 1.0' in text.text
    assert openmetrics.text.endswith("# EOF\n")


async def test_ready_says_why_it_is_not(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        assert (await client.get("/-/healthy")).status_code == 200
        assert (await client.get("/-/ready")).status_code == 200
        service.unready = ["the index does not answer"]
        answer = await client.get("/-/ready")
    assert (answer.status_code, answer.text) == (503, "the index does not answer\n")


async def test_discovery_has_one_item_per_modality(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        items = (await client.get("/sd")).json()
    assert items == [
        {
            "targets": ["ct1"],
            "labels": {
                "__meta_dicom_groups": ",scanners,site-a,",
                "__meta_dicom_ae_title": "CT1",
                "__meta_dicom_host": "127.0.0.1",
                "__meta_dicom_port": "104",
            },
        },
        {
            "targets": ["mr 1"],
            "labels": {
                "__meta_dicom_groups": "",
                "__meta_dicom_ae_title": "MR1",
                "__meta_dicom_host": "::1",
                "__meta_dicom_port": "11112",
            },
        },
    ]


async def test_the_api_lists_modalities_and_tells_of_one(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        down, up = (await client.get("/api/modalities")).json()
        one = (await client.get("/api/modalities/ct1")).json()
    assert (down["name"], down["state"], down["reason"], down["failures"]) == ("ct1", "down", "connect_timeout", 1)
    assert (up["state"], up["latency_ms"], up["remedy"]) == ("up", 12.0, "")
    assert one["latest"]["echo"]["duration_ms"] == 3000.0
    assert (one["expected_by"], one["quiet_since"]) == (None, None)
    assert [outcome["reason"] for outcome in one["outcomes"]] == ["connect_timeout"]


async def test_the_api_tells_since_when_a_modality_is_quiet(service: KnownService, serve: Serve) -> None:
    service.states.silence_judged("ct1", expected_by=1_700_000_000.0, quiet_since=1_700_000_000.0)
    async with serve(service) as client:
        one = (await client.get("/api/modalities/ct1")).json()
    assert one["expected_by"] == one["quiet_since"] == "2023-11-14T22:13:20Z"


async def test_an_echo_can_be_asked_for(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        answer = await client.post("/api/modalities/mr%201/echo")
        assert (await client.get("/api/modalities/mr%201/echo")).status_code == 405
        assert (await client.post("/api/modalities/PACS@127.0.0.1:104/echo")).status_code == 404
    assert answer.status_code == 200
    assert (answer.json()["reason"], answer.json()["ok"]) == ("connect_refused", False)
    assert service.echoes == ["mr 1"]


async def test_a_reload_tells_the_mistakes(service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        assert (await client.get("/-/reload")).status_code == 405
        assert (await client.post("/-/reload")).json() == {"reloaded": True, "mistakes": []}
        service.mistakes = ["scp.port = 0: write another"]
        answer = await client.post("/-/reload")
    assert (answer.status_code, answer.json()["mistakes"]) == (422, ["scp.port = 0: write another"])


async def test_with_a_token_nothing_but_health_is_answered_without_it(service: KnownService, serve: Serve) -> None:
    service.token = "opensesame"
    basic = {"authorization": "Basic " + base64.b64encode(b"anyone:opensesame").decode()}
    wrong = [{}, {"authorization": "Bearer opensesam"}, {"authorization": "Basic !"}, {"authorization": "opensesame"}]
    async with serve(service) as client:
        for headers in wrong:
            assert (await client.post("/-/reload", headers=headers)).status_code == 401
            assert (await client.post("/api/modalities/ct1/echo", headers=headers)).status_code == 401
            answer = await client.get("/api/modalities", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
        assert (await client.get("/-/ready")).status_code == 200
        assert (service.reloads, service.echoes) == (0, [])
        for headers in (TOKEN, basic):
            assert (await client.get("/", headers=headers)).status_code == 200
            assert (await client.post("/-/reload", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
async def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], service: KnownService, serve: Serve) -> None:
    async with serve(service) as client:
        assert (await client.post("/-/reload", headers=headers)).status_code == 403
        assert (await client.post("/-/reload", headers={"sec-fetch-site": "same-origin"})).status_code == 200
    assert service.reloads == 1


async def test_without_a_token_only_this_machine_changes_anything(service: KnownService) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    from asyncdicom.web.guard import Guard

    async def done(request: Request) -> Response:
        return PlainTextResponse("done")

    app = Guard(Starlette(routes=[Route("/x", done, methods=["GET", "POST"])]), lambda: None)
    for client_address, status in (
        (("10.0.0.9", 4711), 403),
        (("127.0.0.5", 1), 200),
        (("::1", 1), 200),
        (("::ffff:127.0.0.1", 1), 200),
    ):
        transport = httpx.ASGITransport(app, client=client_address)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            assert (await client.post("/x")).status_code == status
            assert (await client.get("/x")).status_code == 200


async def test_a_port_that_is_taken_is_a_configuration_error(service: KnownService) -> None:
    async with serve_web(service, "127.0.0.1", 0) as (host, port):
        with pytest.raises(ConfigurationError, match="is another service there"):
            async with serve_web(service, host, port):
                pass


async def test_ending_leaves_nothing_behind_and_waits_for_answers(no_leaks: Baseline, service: KnownService) -> None:
    service.seconds = 0.3
    answers = []

    async def ask(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            answers.append((await client.post("/api/modalities/ct1/echo")).status_code)

    async with (
        anyio.create_task_group() as tasks,
        serve_web(service, "127.0.0.1", 0) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as idle,
    ):
        await idle.get("/-/healthy")
        tasks.start_soon(ask, f"http://{host}:{port}")
        await anyio.sleep(0.1)
    assert answers == [200]


# The handler that captures the log reads source files to render the traceback of the request that is cut.
@pytest.mark.blocking
async def test_cancelling_ends_it_within_the_grace(no_leaks: Baseline, service: KnownService) -> None:
    service.seconds = 60
    started = time.monotonic()
    with anyio.move_on_after(0.3):
        async with (
            serve_web(service, "127.0.0.1", 0) as (host, port),
            httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client,
        ):
            await client.post("/api/modalities/ct1/echo", timeout=60)
    assert time.monotonic() - started < 4
