"""The stage: everything is started in its order, left to run, looked at, and taken away again."""

from __future__ import annotations

import http.client
import logging
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from asyncdicom.cli.demo import cast, verdict
from asyncdicom.cli.demo.senders import Ledger, send, verify
from asyncdicom.cli.demo.threads import in_thread
from asyncdicom.cli.ending import FAILED, INTERRUPTED, OK, refuse, say
from asyncdicom.cli.running import run
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.modality import Modality
from asyncdicom.monitor.state import ModalityState
from asyncdicom.service.config import Config, check
from asyncdicom.service.logs import logging_to
from asyncdicom.service.run import Service
from asyncdicom.testing import Certificates, SimulatedModality, certificates

_TITLE = "ASYNCDICOM"
# Seconds at the end for what was begun: a study, the first round of the sweeps, a page.
_FINISH = 10.0
_REDRAW = 0.5
# A demo of so many seconds shows also who falls silent; a shorter one may end before.
_SHOWS_SILENCE = 15.0
_THREADS = 4
# Seconds after which a study that received nothing more is complete.
_STUDY_ENDS = 2.0
_PATHS = ("/", "/metrics", "/-/ready")


def demo(seconds: float | None) -> int:
    """Run the command.

    :param seconds: how long; None until Ctrl-C
    :return: 0 when all is as it should be
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        refuse(f"--for {seconds}: write a number of seconds above 0")
    with TemporaryDirectory(prefix="asyncdicom-demo-", ignore_cleanup_errors=True) as folder, logging_to(level=logging.ERROR):
        return run(lambda: _play(Path(folder), seconds))


async def _play(folder: Path, seconds: float | None) -> int:
    say("asyncdicom demo: preparing certificates and modalities ...")
    ledger = Ledger()
    with (
        anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="demo") as executor,
    ):
        issued = await in_thread(executor, certificates, folder / "certificates")
        async with cast.playing(issued) as modalities:
            config = await in_thread(executor, _configure, folder, modalities, issued)
            async with Service(config) as service:
                _introduce(service, len(modalities), seconds)
                interrupted = await _run(service, ledger, seconds, signals, executor)
                unreachable = await in_thread(executor, _look_at_pages, service.web)
            found = verdict.findings(cast.ROLES, service.states, silence=_shows_silence(seconds))
        wrong = await in_thread(executor, verify, ledger, folder / "archive")
    if interrupted and seconds is None:
        # It was told to go on until then: whatever had not been asked yet is no failure.
        say(f"{len(ledger.acknowledged)} instances acknowledged, {len(ledger.acknowledged) - len(wrong)} verified by SHA-256")
        return FAILED if wrong else OK
    text, right = verdict.report(found, ledger, wrong, unreachable)
    sys.stdout.write(text + "\n")
    if interrupted:
        return INTERRUPTED
    return OK if right else FAILED


def _configure(folder: Path, modalities: dict[str, SimulatedModality], issued: Certificates) -> Config:
    """The configuration, as it could stand in a file; with timeouts for a machine that is next door."""
    raw: dict[str, Any] = {
        "ae": {"title": _TITLE},
        "scp": {"port": 0, "drain_timeout": 5.0},
        "archive": {"directory": "archive", "min_free": "0 B", "index": "sqlite:index.db"},
        "fleet": {
            "deadline": 8.0,
            "timeouts": {"resolve": 1.0, "connect": 1.0, "associate": 2.0, "operation": 2.0, "release": 0.5},
        },
        "sweep": [
            {"operation": "echo", "every": 3.0, "targets": ["@all"]},
            {"operation": "find", "every": 5.0, "targets": ["@archives"]},
        ],
        # Nothing is to be done about a study here; that its end is noticed and told is part of what is shown.
        "events": {
            "study_complete_after": _STUDY_ENDS,
            "target": [
                {"name": "pipeline", "kind": "command", "on": ["study.complete"], "run": ["true", "{StudyInstanceUID}"]}
            ],
        },
        "web": {"port": 0},
        "modality": [cast.table(role, modalities[role.name], issued) for role in cast.ROLES],
    }
    return check(raw, folder)


def _introduce(service: Service, count: int, seconds: float | None) -> None:
    assert service.web is not None, "the demo has a web side"  # noqa: S101
    assert service.scp is not None, "the demo has a storage SCP"  # noqa: S101
    host, port = service.web
    end = "Ctrl-C ends it" if seconds is None else f"it ends in {seconds:g} s"
    sys.stdout.write(
        f"  fleet page   http://{host}:{port}/\n"
        f"  metrics      http://{host}:{port}/metrics\n"
        f"  storage SCP  {_TITLE}@{service.scp.host}:{service.scp.port}\n"
        f"{count} simulated modalities, {len(cast.SENDERS)} senders; {end}\n"
    )
    sys.stdout.flush()


async def _run(
    service: Service, ledger: Ledger, seconds: float | None, signals: AsyncIterator[signal.Signals], executor: Executor
) -> bool:
    """Let it run; return whether somebody ended it."""
    assert service.scp is not None, "the demo has a storage SCP"  # noqa: S101
    stop = anyio.Event()
    interrupted = False
    async with Fleet(concurrency=len(cast.SENDERS)) as fleet, anyio.create_task_group() as tasks:
        for title in cast.SENDERS:
            to = Modality(f"from {title}", _TITLE, service.scp.host, service.scp.port, calling_ae_title=title)
            tasks.start_soon(send, fleet, to, ledger, stop, executor, cast.studies_of(title), name=f"sender {title}")
        async with _display(service, ledger):
            with anyio.move_on_after(seconds):
                async for _ in signals:
                    interrupted = True
                    break
            stop.set()
            if not interrupted:
                await _all_seen(service, silence=_shows_silence(seconds))
        # A second signal, or a study that does not end, is not waited for.
        tasks.cancel_scope.deadline = anyio.current_time() + _FINISH
    return interrupted


def _shows_silence(seconds: float | None) -> bool:
    return seconds is not None and seconds >= _SHOWS_SILENCE


async def _all_seen(service: Service, *, silence: bool) -> None:
    """Wait until every modality was asked once, which a short demo may have to.

    :param silence: also until who falls silent was found quiet
    """

    def is_open(state: ModalityState) -> bool:
        return state.condition == "unknown" or (silence and state.modality.arrivals is not None and state.quiet_since is None)

    with anyio.move_on_after(_FINISH):
        while any(is_open(state) for state in service.states.all()):  # noqa: ASYNC110 - nobody tells of it
            await anyio.sleep(_REDRAW)


@asynccontextmanager
async def _display(service: Service, ledger: Ledger) -> AsyncIterator[None]:
    """A line that tells how it goes, on a terminal."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    started = anyio.current_time()

    async def redraw(live: Live) -> None:
        while True:
            conditions = [state.condition for state in service.states.all()]
            live.update(
                Text.assemble(
                    (f"{conditions.count('up')} up", "green"),
                    ", ",
                    (f"{conditions.count('down')} down", "red"),
                    f", {ledger.sent} instances stored, {anyio.current_time() - started:.0f} s",
                ),
                refresh=True,
            )
            await anyio.sleep(_REDRAW)

    with Live(console=console, auto_refresh=False, transient=True) as live:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(redraw, live)
            yield
            tasks.cancel_scope.cancel()


def _look_at_pages(web: tuple[str, int] | None) -> list[str]:
    """What is wrong with the pages that people and Prometheus look at. Blocks."""
    assert web is not None, "the demo has a web side"  # noqa: S101
    wrong = []
    for path in _PATHS:
        connection = http.client.HTTPConnection(*web, timeout=_FINISH)
        try:
            connection.request("GET", path)
            with connection.getresponse() as answer:
                if answer.status != http.HTTPStatus.OK:
                    wrong.append(f"GET {path} answers {answer.status}")
        except OSError as error:
            wrong.append(f"GET {path}: {error}")
        finally:
            connection.close()
    return wrong
