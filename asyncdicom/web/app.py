"""The routes: pages for people, JSON for programs, metrics and discovery for Prometheus."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from asyncdicom._version import __version__
from asyncdicom.elements import storable
from asyncdicom.monitor.probe import explain
from asyncdicom.monitor.state import ModalityState
from asyncdicom.web import modality_page, storage_page
from asyncdicom.web.backend import Backend
from asyncdicom.web.fleet_page import FleetPage
from asyncdicom.web.guard import Guard
from asyncdicom.web.openapi import describe
from asyncdicom.web.problems import Problem, Problems, problem_json
from asyncdicom.web.selection import Filter
from asyncdicom.web.shell import Shell
from asyncdicom.web.stream import Streams
from asyncdicom.web.words import moment

_STATIC = {
    "fleet.css": "text/css; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Prometheus gives up after its scrape timeout: the answer has to be there some time before, in seconds.
_SCRAPE_OFFSET = 0.5
_MOST_STUDIES = 1_000
T = TypeVar("T")


def streams_of(backend: Backend) -> Streams:
    """The streams of server-sent events of a service."""

    def modality(name: str) -> dict[str, Any] | None:
        state = backend.states.get(name)
        return None if state is None else as_json(state)

    return Streams(backend.changes, modality, lambda: _storage(backend))


def create_app(backend: Backend, executor: Executor, streams: Streams) -> Starlette:
    """Return the web side of a service.

    :param backend: the service
    :param executor: where pages and metrics are rendered, so that the loop goes on meanwhile
    :param streams: of :func:`streams_of`
    """
    routes = _Routes(backend, executor, streams)
    return Starlette(
        routes=routes.routes(),
        middleware=[Middleware(Guard, token=lambda: backend.token)],
        exception_handlers=Problems(routes.shell).handlers(),
    )


class _Routes:
    def __init__(self, backend: Backend, executor: Executor, streams: Streams) -> None:
        self._backend = backend
        self._executor = executor
        self._fleet = FleetPage()
        # Three small files, read once: answering them touches no disk.
        self._streams = streams
        self._listed = _Listed()
        self._description = json.dumps(describe(__version__)).encode()
        self._static = {name: files(__package__).joinpath("static", name).read_bytes() for name in _STATIC}
        self._digests = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in self._static.items()}

    def routes(self) -> list[BaseRoute]:
        """Every route."""
        return [
            Route("/", self.fleet),
            Route("/modalities/{name}", self.modality),
            Route("/storage", self.storage),
            Route("/static/{name}", self.static),
            Route("/metrics", self.metrics),
            Route("/probe", self.probe),
            Route("/sd", self.discovery),
            Route("/-/healthy", self.healthy),
            Route("/-/ready", self.ready),
            Route("/-/reload", self.reload, methods=["POST"]),
            Route("/api/openapi.json", self.api_description),
            Route("/api/events", self.api_events),
            Route("/api/studies", self.api_studies),
            Route("/api/modalities", self.api_modalities),
            Route("/api/modalities/{name}", self.api_modality),
            Route("/api/modalities/{name}/echo", self.api_echo, methods=["POST"]),
        ]

    async def fleet(self, request: Request) -> Response:
        """The fleet page, or with ``fragment=1`` what of it changes."""
        shown = Filter.of(request.query_params)
        states = self._backend.states.all()
        fragment = "fragment" in request.query_params

        def render() -> str:
            storage, now = self._backend.storage(), time.time()
            if fragment:
                return self._fleet.fragment(states, shown, storage, now)
            return self._fleet.page(self.shell(), states, shown, storage, now)

        return HTMLResponse(await self._in_thread(render))

    async def modality(self, request: Request) -> Response:
        """The page of one modality, or with ``fragment=1`` what of it changes."""
        state = self._state(request)
        if "fragment" in request.query_params:
            return HTMLResponse(await self._in_thread(lambda: modality_page.fragment(state, time.time())))
        return HTMLResponse(await self._in_thread(lambda: modality_page.page(self.shell(), state, time.time())))

    async def storage(self, request: Request) -> Response:
        """The storage page, or with ``fragment=1`` what of it changes."""
        studies, senders = await self._backend.studies(storage_page.STUDIES), await self._backend.senders()
        fragment, states = "fragment" in request.query_params, self._backend.states.all()

        def render() -> str:
            names: dict[str, list[str]] = {}
            for state in states:
                names.setdefault(state.modality.ae_title, []).append(state.modality.name)
            shown = storage_page.Shown(self._backend.storage(), studies, senders, time.time(), names)
            return storage_page.fragment(shown) if fragment else storage_page.page(self.shell(), shown)

        return HTMLResponse(await self._in_thread(render))

    async def static(self, request: Request) -> Response:
        """Style, script and icon."""
        name = request.path_params["name"]
        if name not in self._static:
            raise Problem(404, "there is no such file", name, f"there are {', '.join(self._static)}")
        # The address carries the digest, so a new version has a new one.
        headers = {"cache-control": "public, max-age=86400"}
        return Response(self._static[name], media_type=_STATIC[name], headers=headers)

    async def metrics(self, request: Request) -> Response:
        """Every metric, as text or as OpenMetrics."""
        accept = request.headers.get("accept", "")
        body, content_type = await self._in_thread(lambda: self._backend.metrics.render(accept))
        return Response(body, headers={"content-type": content_type})

    async def probe(self, request: Request) -> Response:
        """Ask one modality of the inventory now; 200 also when it is down, because the metrics say so."""
        query, accept = request.query_params, request.headers.get("accept", "")
        scrape = _seconds(request.headers.get("x-prometheus-scrape-timeout-seconds"))
        # What the answer takes on its way is not the modality's.
        timeout = None if scrape is None else max(scrape - _SCRAPE_OFFSET, scrape / 2)
        probed = await self._backend.probe(query.get("target", ""), query.get("module", "echo"), timeout)
        if query.get("debug", "") == "true":
            return PlainTextResponse(await self._in_thread(lambda: explain(probed)))
        body, content_type = await self._in_thread(lambda: probed.render(accept))
        return Response(body, headers={"content-type": content_type})

    async def discovery(self, request: Request) -> Response:
        """The inventory for Prometheus (``http_sd_configs``)."""
        states = self._backend.states.all()
        return await self._in_thread(lambda: JSONResponse([_discovered(state) for state in states]))

    async def healthy(self, request: Request) -> Response:
        """Whether the loop turns: answering is the proof."""
        return PlainTextResponse("healthy\n")

    async def ready(self, request: Request) -> Response:
        """Whether the service can work, else why not."""
        reasons = await self._backend.not_ready()
        return PlainTextResponse("".join(f"{reason}\n" for reason in reasons) or "ready\n", 503 if reasons else 200)

    async def reload(self, request: Request) -> Response:
        """Read the configuration again."""
        mistakes = await self._backend.reload()
        if not mistakes:
            return JSONResponse({"reloaded": True, "mistakes": []})
        what, remedy = "the configuration has mistakes, and the old one stays", "asyncdicom check-config FILE tells them, too"
        return problem_json(422, what, "the configuration", remedy, reloaded=False, mistakes=mistakes)

    async def api_description(self, request: Request) -> Response:
        """What every address takes and answers (OpenAPI 3.1)."""
        return Response(self._description, media_type="application/json")

    async def api_events(self, request: Request) -> Response:
        """What changes, as server-sent events: ``modality``, ``gone`` and ``storage``; ``changed`` alone with ``brief=1``."""
        if self._streams.is_full:
            raise Problem(503, "too many listen already", "/api/events", "close other pages, or ask /api/modalities again")
        brief = "brief" in request.query_params
        return StreamingResponse(self._streams.events(brief=brief), media_type="text/event-stream")

    async def api_studies(self, request: Request) -> Response:
        """The studies that received something last, latest first; no patients."""
        asked = request.query_params.get("limit", "100")
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:9]) <= _MOST_STUDIES):
            raise Problem(400, f"limit = {asked[:20]!r} is none", "limit", f"write a number from 1 to {_MOST_STUDIES}")
        studies = await self._backend.studies(int(asked))
        return JSONResponse([_study(study) for study in studies])

    async def api_modalities(self, request: Request) -> Response:
        """Every modality, in the order of the inventory."""
        states = self._backend.states.all()
        body = await self._in_thread(lambda: self._listed.render(states))
        return Response(body, media_type="application/json")

    async def api_modality(self, request: Request) -> Response:
        """One modality, with its last outcomes."""
        state = self._state(request)
        samples = [
            {
                "at": moment(sample.at),
                "operation": sample.operation,
                "reason": sample.reason.value,
                "duration_ms": round(sample.duration * 1000, 3),
            }
            for sample in state.samples
        ]
        failed = [
            {
                "at": moment(failure.at),
                "operation": failure.operation,
                "reason": failure.reason.value,
                "status": None if failure.status is None else int(failure.status),
                "detail": failure.detail,
            }
            for failure in state.failed
        ]
        changes = [
            {"at": moment(change.at), "state": change.condition, "seconds": round(seconds, 3)}
            for change, seconds in state.stretches(time.time())
        ]
        latest = {operation: outcome.as_json() for operation, outcome in state.latest.items()}
        return JSONResponse({**as_json(state), "latest": latest, "outcomes": samples, "failed": failed, "changes": changes})

    async def api_echo(self, request: Request) -> Response:
        """Ask a modality for an echo now. 200 whatever came of it: the answer says so."""
        outcome = await self._backend.echo(self._state(request).modality.name)
        return JSONResponse({**outcome.as_json(), "detail": storable(outcome.detail), "remedy": outcome.remedy})

    def _state(self, request: Request) -> ModalityState:
        state = self._backend.states.get(request.path_params["name"])
        if state is None:
            name = request.path_params["name"][:64]
            raise Problem(404, "the inventory has no modality of this name", name, "/api/modalities lists those that there are")
        return state

    def shell(self) -> Shell:
        """What every page has around it."""
        assets = {name: f"/static/{name}?v={digest}" for name, digest in self._digests.items()}
        return Shell(self._backend.title, __version__, assets)

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)


class _Listed:
    """Modalities as JSON. A state does not change, so what was made of it holds for as long as it does."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[ModalityState, bytes]] = {}

    def render(self, states: Sequence[ModalityState]) -> bytes:
        """All of them, as an array. Thousands take long: call it in a thread."""
        before = self._made
        made: dict[str, tuple[ModalityState, bytes]] = {}
        for state in states:
            known = before.get(state.modality.name)
            if known is None or known[0] is not state:
                known = state, json.dumps(as_json(state), ensure_ascii=False, separators=(",", ":")).encode()
            made[state.modality.name] = known
        self._made = made
        return b"".join((b"[", b",".join([rendered for _, rendered in made.values()]), b"]"))


def _storage(backend: Backend) -> dict[str, Any]:
    state = backend.storage_state
    return {
        "associations": state.associations,
        "instances": state.instances,
        "failed": state.failed,
        "received_bytes": state.received_bytes,
        "rejected": state.rejected,
        "last_received": None if state.last_received is None else moment(state.last_received),
    }


def _study(study: dict[str, Any]) -> dict[str, Any]:
    times = ("first_received", "last_received", "completed_at")
    return {**study, **{name: None if study[name] is None else moment(study[name]) for name in times}}


def _seconds(text: str | None) -> float | None:
    """A number of seconds that a scraper says it waits; None where it says none, or nonsense."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def as_json(state: ModalityState) -> dict[str, Any]:
    """A modality and what is known of it; every field always present, null where it does not apply."""
    modality, telling = state.modality, state.telling
    latency = state.latency
    return {
        "name": modality.name,
        "ae_title": modality.ae_title,
        "host": modality.host,
        "port": modality.port,
        "groups": list(modality.groups),
        "state": state.condition,
        "since": None if state.since is None else moment(state.since),
        "reason": None if telling is None else telling.reason.value,
        "detail": None if telling is None else telling.detail,
        "remedy": None if telling is None else telling.remedy,
        "status": None if telling is None or telling.status is None else int(telling.status),
        "latency_ms": None if latency is None else round(latency * 1000, 3),
        "last_success": None if state.last_success is None else moment(state.last_success),
        "last_received": None if state.last_received is None else moment(state.last_received),
        "expected_by": None if state.expected_by is None else moment(state.expected_by),
        "quiet_since": None if state.quiet_since is None else moment(state.quiet_since),
        "failures": state.failures,
        "breaker_open": state.breaker_open,
    }


def _discovered(state: ModalityState) -> dict[str, Any]:
    modality = state.modality
    # Lists are joined with the separator at both ends, as Prometheus' own discoveries do: `.*,scanners,.*` matches exactly.
    groups = f",{','.join(modality.groups)}," if modality.groups else ""
    return {
        "targets": [modality.name],
        "labels": {
            "__meta_dicom_groups": groups,
            "__meta_dicom_ae_title": modality.ae_title,
            "__meta_dicom_host": modality.host,
            "__meta_dicom_port": str(modality.port),
        },
    }
