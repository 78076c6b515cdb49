"""The service: its parts are put together here, started in order, reloaded, drained and ended."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from asyncdicom.archive import Archive
from asyncdicom.archive.deliveries import Deliveries
from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.errors import ArchiveError, ConfigurationError
from asyncdicom.events.relay import Bell
from asyncdicom.modality import Modality
from asyncdicom.monitor.changes import Changes
from asyncdicom.monitor.history import History
from asyncdicom.monitor.metrics import Metrics
from asyncdicom.monitor.probe import DEFAULT_TIMEOUT, Probed, probe
from asyncdicom.monitor.state import Broadcast, ModalityState, States, StorageState
from asyncdicom.monitor.sweep import Sweeps
from asyncdicom.monitor.vigil import Vigil
from asyncdicom.outcome import Outcome
from asyncdicom.scp.server import StorageSCP
from asyncdicom.service import parts
from asyncdicom.service.config import Config, ConfigurationErrors, load
from asyncdicom.service.lend import FleetLender
from asyncdicom.service.logs import Format, logging_to
from asyncdicom.service.notify import Notifier
from asyncdicom.web.backend import StorageSummary
from asyncdicom.web.server import serve_web

logger = logging.getLogger(__name__)

# Seconds for the index to answer whoever asks whether the service is ready.
_INDEX_DEADLINE = 2.0
# Seconds from the end of a drain to the end of the process, whatever hangs.
_END_WITHIN = 4.8


class Service:
    """Everything that a configuration asks for, as one async context manager; entered, it serves.

    :param config: the configuration
    :param notifier: who is told when it is ready, reloads and stops
    :raises ConfigurationError: when a setting cannot be honoured
    :ivar states: what is known of the modalities
    :ivar storage_state: what the storage SCP did
    :ivar metrics: what is counted
    :ivar changes: who is told that something changed
    :ivar web: the address and port of the web side, None without one or before it serves
    """

    def __init__(self, config: Config, *, notifier: Notifier | None = None) -> None:
        self._config = config
        self._notifier = notifier or Notifier()
        self.states = States(config.modality, on_change=self._changed)
        self.metrics = Metrics(parts.exposed(config), self.states)
        self.storage_state = StorageState()
        # Last, so that whoever is told of a change finds it.
        self.changes = Changes()
        bell = Bell()
        listening = (bell,) if config.events.target else ()
        self._observer = Broadcast(self.states, self.storage_state, self.metrics, *listening, self.changes)
        self._archive: Archive | None = parts.make_archive(config, self._observer)
        self._relay = parts.make_relay(config, self._archive, bell, self._observer)
        self._commitment = parts.make_commitment(config, self._archive, self._modality_with, self._observer)
        self._scp: StorageSCP | None = parts.make_scp(config, self._archive, self._commitment, self._observer)
        self._vigil: Vigil | None = None
        self._fleets = FleetLender()
        self._sweeps = Sweeps(self._fleets.lend, self.metrics.sweep_ended)
        self._executor: ThreadPoolExecutor | None = None
        self._reloading = anyio.Lock()
        self._stack = AsyncExitStack()
        self._started = False
        self._draining = False
        self.web: tuple[str, int] | None = None

    # -- living -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            # What was started already is ended in its order. Task groups wrap the reason on its way out.
            try:
                await self._stack.__aexit__(*sys.exc_info())
            except ExceptionGroup as group:
                raise _only(group) from None
            raise
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        self._started = False
        return await self._stack.__aexit__(*exception)

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="service")
        self._stack.callback(self._executor.shutdown, wait=False, cancel_futures=True)
        if self._archive is not None:
            await enter(self._archive)
            if self._archive.index is not None:
                await self._archive.index.ping()
                await self._remember(self._archive.index)
            logger.info("the archive is open", extra={"directory": self._archive.directory})
        if self._relay is not None:
            await enter(self._relay)
        elif self._archive is not None and self._archive.index is not None:
            # Nobody is told any more: who comes later gets nothing of today.
            await Deliveries(self._archive.index).configure((), 0.0)
        await enter(self._fleets)
        await self._fleets.replace(parts.make_fleet(self._config, self._observer))
        if self._commitment is not None:
            await enter(self._commitment)
        if self._scp is not None:
            # Before anybody calls: reading what was learnt of thousands takes a moment.
            index = None if self._archive is None else self._archive.index
            self._vigil = await enter(Vigil(self.states, self._silence_changed, index=index))
            await enter(self._scp)
            address = {"ae_title": self._config.ae.title, "host": self._scp.host, "port": self._scp.port}
            logger.info("the storage SCP listens", extra=address)
        if self._config.web is not None:
            self.web = await enter(serve_web(self, self._config.web.host, self._config.web.port))
            logger.info("the web side listens", extra={"host": self.web[0], "port": self.web[1]})
        await enter(self._sweeps)
        self._sweeps.configure(parts.sweep_plans(self._config))
        tasks = await enter(_background())
        tasks.start_soon(self.metrics.sample_loop_lag, name="loop lag")
        tasks.start_soon(self._notifier.keep_alive, name="watchdog")
        self._started = True

    async def _remember(self, index: SQLiteIndex) -> None:
        """Take up what earlier lives knew, and write down what this one learns."""
        history = await self._stack.enter_async_context(History(index))
        self.states.received_before(await index.last_received())
        self.states.remember(await history.past(self._config.modality))
        self.states.on_outcome = history.note

    async def run(self, drained: Callable[[float], None] = lambda seconds: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads. A second signal ends the drain.

        :param drained: called at the end of the drain with the seconds that the rest may take
        :raises ConfigurationError: when it cannot start as configured
        :raises ExceptionGroup: when a part of it failed
        """
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with self:
                self._notifier.ready(self._status)
                logger.info("the service is ready", extra={"modalities": len(self._config.modality)})
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    await self.reload()
                drained(await self._drain(signals))
        logger.info("the service has ended")

    async def _drain(self, signals: AsyncIterator[signal.Signals]) -> float:
        """Accept nothing new, and finish what is under way.

        :return: seconds that the rest may take
        """
        timeout = self._config.scp.drain_timeout if self._config.scp is not None else 0.0
        self._draining = True
        self._notifier.stopping(timeout + _END_WITHIN)
        open_now = self._scp.associations if self._scp is not None else 0
        logger.info("draining", extra={"associations": open_now, "seconds": timeout})
        self._sweeps.configure(())
        if self._vigil is not None:
            self._vigil.end()
        started = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_hurry, signals, tasks.cancel_scope)
            if self._scp is not None:
                await self._scp.drain()
            if self._relay is not None:
                # What does not end in time is ended, and told again by the next life.
                with anyio.move_on_after(timeout - (time.monotonic() - started)):
                    await self._relay.drain()
            tasks.cancel_scope.cancel()
        # The aborts at the end of a drain that took all its time count already.
        overtime = time.monotonic() - started - timeout
        return _END_WITHIN - max(0.0, overtime)

    def _changed(self, state: ModalityState) -> None:
        _log_change(state)
        if self._relay is not None:
            parts.tell_condition(self._relay, state)

    def _silence_changed(self, state: ModalityState) -> None:
        _log_silence(state)
        self.changes.silence_changed(state.modality.name)
        if self._relay is not None:
            parts.tell_silence(self._relay, state)

    def _modality_with(self, ae_title: str) -> Modality | None:
        return parts.modality_with(self._config, ae_title)

    # -- what the web side asks for -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Our AE title."""
        return self._config.ae.title

    @property
    def token(self) -> str | None:
        """What requests must carry; None when they need not."""
        return self._config.token

    @property
    def scp(self) -> StorageSCP | None:
        """The storage SCP, None without one."""
        return self._scp

    @property
    def fleets(self) -> FleetLender:
        """Who lends the current fleet."""
        return self._fleets

    @property
    def archive(self) -> Archive | None:
        """The archive, None without one."""
        return self._archive

    def storage(self) -> StorageSummary | None:
        """The storage SCP in a few numbers. Looks at the disk: call it in a thread."""
        if self._scp is None:
            return None
        free: int | None = None
        if self._archive is not None:
            try:
                free = self._archive.free_bytes()
            except (ArchiveError, OSError):
                # Shown as unknown: the page is looked at most when something is wrong.
                free = None
        host = f"[{self._scp.host}]" if ":" in self._scp.host else self._scp.host
        return StorageSummary(
            address=f"{self.title}@{host}:{self._scp.port}",
            associations=self.storage_state.associations,
            instances=self.storage_state.instances,
            failed=self.storage_state.failed,
            received_bytes=self.storage_state.received_bytes,
            rejected=self.storage_state.rejected,
            last_received=self.storage_state.last_received,
            free_bytes=free,
        )

    async def studies(self, limit: int) -> list[dict[str, Any]]:
        """The studies that received something last, latest first, without patients; none without an index.

        :raises ArchiveError: when the index does not answer
        """
        index = None if self._archive is None else self._archive.index
        return [] if index is None else await index.studies(limit=limit)

    async def senders(self) -> dict[str, float]:
        """For every calling AE title, when its last instance arrived (seconds since the epoch, UTC).

        :raises ArchiveError: when the index does not answer
        """
        index = None if self._archive is None else self._archive.index
        return {} if index is None else await index.last_received()

    async def not_ready(self) -> list[str]:
        """Why the service cannot work now; nothing when it can."""
        if self._draining:
            return ["draining: the service ends"]
        reasons: list[str] = []
        if not self._started:
            reasons.append("the service is still starting")
        if self._scp is not None and not self._scp.is_accepting:
            reasons.append("the storage SCP does not accept associations")
        if self._archive is not None and self._archive.index is not None:
            try:
                with anyio.fail_after(_INDEX_DEADLINE):
                    await self._archive.index.ping()
            except (ArchiveError, TimeoutError):
                reasons.append("the index does not answer")
        return reasons

    async def echo(self, name: str) -> Outcome:
        """Ask a modality of the inventory for an echo, now.

        :raises ConfigurationError: when the inventory has no such name
        """
        async with self._fleets.lend() as fleet:
            (outcome,) = [outcome async for outcome in fleet.echo(fleet.select(name))]
        return outcome

    async def probe(self, name: str, module: str, timeout: float | None) -> Probed:
        """Probe a modality of the inventory.

        :param timeout: seconds; None for the fleet's deadline
        :raises ConfigurationError: when the inventory has no such name, there is no such module, or it is not allowed
        """
        async with self._fleets.lend() as fleet:
            modality = next((modality for modality in fleet.modalities if modality.name == name), None)
            if modality is None:
                # Neither a group nor an address: whoever can reach us must not be able to have us call anybody.
                raise ConfigurationError("target", name, "the name of a modality of the inventory")
            return await probe(fleet, modality, module, timeout or self._config.fleet.deadline or DEFAULT_TIMEOUT)

    async def reload(self) -> list[str]:
        """Read the configuration again: modalities, fleet, sweeps, the allow list, the users and the token. Associations go on.

        :return: its mistakes; with any, the old one stays
        """
        async with self._reloading:
            if self._draining or self._config.path is None or self._executor is None:
                return ["there is nothing to reload: the service ends, or was configured without a file"]
            self._notifier.reloading()
            try:
                loop = asyncio.get_running_loop()
                wanted = await loop.run_in_executor(self._executor, load, self._config.path)
                await self._apply(wanted)
            except ConfigurationError as error:
                mistakes = [str(one) for one in (error if isinstance(error, ConfigurationErrors) else [error])]
                for mistake in mistakes:
                    logger.error("the new configuration has a mistake, and the old one stays", extra={"mistake": mistake})
                return mistakes
            finally:
                self._notifier.ready(self._status)
        return []

    async def _apply(self, wanted: Config) -> None:
        running = self._config
        later = parts.needing_restart(running, wanted)
        # What only a restart changes stays as it runs, so that the next reload names it again.
        config = replace(
            wanted,
            ae=running.ae,
            archive=running.archive,
            events=running.events,
            web=running.web,
            scp=running.scp,
            event_keys=parts.renew_keys(self._relay, running, wanted),
            token=wanted.token if running.web is not None and wanted.web is not None else running.token,
        )
        if self._scp is not None and running.scp is not None and wanted.scp is not None:
            # First, because it can refuse: the listener stays where it is, whatever the new file says of its host.
            self._scp.access = parts.make_access(wanted.scp)
            self._scp.identities = wanted.identities
            await self._scp.renew_certificate()
            at_once = {key: getattr(wanted.scp, key) for key in ("allow", "accept_any", "user_identity")}
            config = replace(config, scp=running.scp.model_copy(update=at_once))
        if (config.fleet, config.modality) != (running.fleet, running.modality):
            await self._fleets.replace(parts.make_fleet(config, self._observer))
            for modality in running.modality:
                # The new fleet begins with closed breakers.
                self._observer.breaker_changed(modality.name, False)
        self._config = config
        self.states.configure(config.modality)
        if self._vigil is not None:
            self._vigil.configure(config.modality)
        self.metrics.configure(parts.exposed(config))
        self._sweeps.configure(parts.sweep_plans(config))
        logger.info("reloaded", extra={"modalities": len(config.modality), "sweeps": len(config.sweep)})
        if later:
            logger.warning("these settings change with a restart only", extra={"settings": ", ".join(later)})

    @property
    def _status(self) -> str:
        return f"{len(self._config.modality)} modalities, {len(self._config.sweep)} sweeps"

    def __repr__(self) -> str:
        state = "draining" if self._draining else "serving" if self._started else "not serving"
        return f"<Service {self.title} {state}: {self._status}, web={self.web}, {self._scp!r}>"


def serve(
    path: Path,
    *,
    log_format: Format = "text",
    level: int = logging.INFO,
) -> int:
    """Run the service of a configuration file until it is told to end.

    :param path: the configuration
    :return: the exit status: 0 after a signal, 1 when a part failed, 2 when it cannot start as configured
    """
    try:
        config = load(path)
    except ConfigurationErrors as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with logging_to(format=log_format, level=level):
        try:
            anyio.run(_serve, config)
        except ConfigurationError as error:
            logger.critical("the service cannot start", extra={"mistake": str(error)})
            return 2
        except Exception:
            logger.critical("the service ends because a part of it failed", exc_info=True)
            return 1
    return 0


async def _serve(config: Config) -> None:
    # Once drained, nothing that hangs - a thread in a dead file system, a peer - keeps the process from ending.
    await Service(config).run(drained=lambda seconds: faulthandler.dump_traceback_later(seconds, exit=True))


async def _hurry(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            logger.warning("a second signal ends the drain")
            scope.cancel()
            return


@asynccontextmanager
async def _background() -> AsyncIterator[TaskGroup]:
    """Tasks that run for ever, and are cancelled when the block ends."""
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        finally:
            tasks.cancel_scope.cancel()


def _only(error: Exception) -> Exception:
    """The one exception that nested groups of one hold, else the group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _log_change(state: ModalityState) -> None:
    outcome = state.telling
    fields = {"modality": state.modality.name, "reason": outcome.reason.value if outcome is not None else ""}
    if state.condition == "down":
        logger.warning("a modality is down", extra=fields)
    else:
        logger.info("a modality is up", extra=fields)


def _log_silence(state: ModalityState) -> None:
    fields = {"modality": state.modality.name}
    if state.quiet_since is not None:
        logger.warning("a modality is quiet: nothing came from it for longer than expected", extra=fields)
    else:
        logger.info("a modality is quiet no more", extra=fields)
