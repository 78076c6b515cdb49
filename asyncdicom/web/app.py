"""The routes: pages for people, JSON for programs, metrics and discovery for Prometheus."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from asyncdicom._version import __version__
from asyncdicom.errors import ConfigurationError
from asyncdicom.monitor.probe import explain
from asyncdicom.monitor.state import ModalityState, worst_first
from asyncdicom.web import pages, storage_page
from asyncdicom.web.backend import Backend
from asyncdicom.web.guard import Guard
from asyncdicom.web.stream import Streams
from asyncdicom.web.words import moment

_STATIC = {
    "fleet.css": "text/css; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Prometheus gives up after its scrape timeout: the answer has to be there some time before, in seconds.
_SCRAPE_OFFSET = 0.5
_STUDIES_SHOWN = 50
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
    return Starlette(
        routes=_Routes(backend, executor, streams).routes(), middleware=[Middleware(Guard, token=lambda: backend.token)]
    )


class _Routes:
    def __init__(self, backend: Backend, executor: Executor, streams: Streams) -> None:
        self._backend = backend
        self._executor = executor
        # Three small files, read once: answering them touches no disk.
        self._streams = streams
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
            Route("/api/events", self.api_events),
            Route("/api/studies", self.api_studies),
            Route("/api/modalities", self.api_modalities),
            Route("/api/modalities/{name}", self.api_modality),
            Route("/api/modalities/{name}/echo", self.api_echo, methods=["POST"]),
        ]

    async def fleet(self, request: Request) -> Response:
        """The fleet page, or with ``fragment=1`` what of it changes."""
        query = request.query_params
        page = query.get("page", "1")
        shown = pages.Filter(
            text=query.get("q", "")[:100],
            condition=query.get("state", ""),
            group=query.get("group", ""),
            page=int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1,
        )
        states = self._backend.states.all()
        fragment = "fragment" in query

        def render() -> str:
            storage, ordered = self._backend.storage(), worst_first(states)
            if fragment:
                return pages.fleet_fragment(ordered, shown, storage, time.time())
            return pages.fleet(self._shell(), ordered, shown, storage, time.time())

        return HTMLResponse(await self._in_thread(render))

    async def modality(self, request: Request) -> Response:
        """The page of one modality, or with ``fragment=1`` what of it changes."""
        state = self._state(request)
        if "fragment" in request.query_params:
            return HTMLResponse(await self._in_thread(lambda: pages.modality_fragment(state, time.time())))
        return HTMLResponse(await self._in_thread(lambda: pages.modality(self._shell(), state, time.time())))

    async def storage(self, request: Request) -> Response:
        """The storage page, or with ``fragment=1`` what of it changes."""
        studies, senders = await self._backend.studies(_STUDIES_SHOWN), await self._backend.senders()
        fragment = "fragment" in request.query_params

        def render() -> str:
            shown = storage_page.Shown(self._backend.storage(), studies, senders, time.time())
            return storage_page.fragment(shown) if fragment else storage_page.page(self._shell(), shown)

        return HTMLResponse(await self._in_thread(render))

    async def static(self, request: Request) -> Response:
        """Style, script and icon."""
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
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
        try:
            probed = await self._backend.probe(query.get("target", ""), query.get("module", "echo"), timeout)
        except ConfigurationError as error:
            return PlainTextResponse(f"{error}\n", 400)
        if query.get("debug", "") == "true":
            return PlainTextResponse(await self._in_thread(lambda: explain(probed)))
        body, content_type = await self._in_thread(lambda: probed.render(accept))
        return Response(body, headers={"content-type": content_type})

    async def discovery(self, request: Request) -> Response:
        """The inventory for Prometheus (``http_sd_configs``)."""
        return JSONResponse([_discovered(state) for state in self._backend.states.all()])

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
        return JSONResponse({"reloaded": not mistakes, "mistakes": mistakes}, 422 if mistakes else 200)

    async def api_events(self, request: Request) -> Response:
        """What changes, as server-sent events: ``modality``, ``gone`` and ``storage``."""
        if self._streams.is_full:
            raise HTTPException(503, "too many listen already")
        return StreamingResponse(self._streams.events(), media_type="text/event-stream")

    async def api_studies(self, request: Request) -> Response:
        """The studies that received something last, latest first; no patients."""
        asked = request.query_params.get("limit", "100")
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:9]) <= _MOST_STUDIES):
            raise HTTPException(400, f"limit: a number from 1 to {_MOST_STUDIES}")
        studies = await self._backend.studies(int(asked))
        return JSONResponse([_study(study) for study in studies])

    async def api_modalities(self, request: Request) -> Response:
        """Every modality, in the order of the inventory."""
        states = self._backend.states.all()
        return await self._in_thread(lambda: JSONResponse([as_json(state) for state in states]))

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
        return JSONResponse({**outcome.as_json(), "detail": outcome.detail, "remedy": outcome.remedy})

    def _state(self, request: Request) -> ModalityState:
        state = self._backend.states.get(request.path_params["name"])
        if state is None:
            raise HTTPException(404, "the inventory has no modality of this name")
        return state

    def _shell(self) -> pages.Shell:
        assets = {name: f"/static/{name}?v={digest}" for name, digest in self._digests.items()}
        return pages.Shell(self._backend.title, __version__, assets)

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)


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
