"""The fleet: one question to many modalities at once."""

from __future__ import annotations

import logging
import math
import random
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from asyncdicom.archive import Archive
from asyncdicom.association.contract import CANCEL_GRACE, DEFAULT_AE_TITLE, InstanceHandler, resolve_engine
from asyncdicom.association.instance import Instance
from asyncdicom.association.query import Match, Query
from asyncdicom.background import BackgroundTasks
from asyncdicom.errors import ConfigurationError
from asyncdicom.fleet.jobs import Caller, EchoJob, Emit, FindJob, GetJob, Job, MoveJob, Report, StoreJob
from asyncdicom.fleet.limits import Breaker, Decision, Gate
from asyncdicom.fleet.linger import Linger
from asyncdicom.fleet.merge import Merge
from asyncdicom.fleet.outcomes import Outcomes
from asyncdicom.fleet.pace import Pace
from asyncdicom.fleet.retrieve import Ledger
from asyncdicom.modality import Engine, Modality, check_ae_title
from asyncdicom.observe import NULL_OBSERVER, Observer
from asyncdicom.outcome import Outcome, Reason

logger = logging.getLogger(__name__)

# Seconds before the first retry; each further one waits twice as long, and all of them by chance half to one and a half times.
_BACKOFF = 0.5
# Helpings of matches that may wait for the caller; beyond it the archives have to wait.
_WAITING = 4


class Fleet:
    """Many modalities, asked at once; an asynchronous context manager.

    ::

        async with Fleet(modalities, concurrency=200, deadline=10.0) as fleet:
            async for outcome in fleet.echo():
                print(outcome.modality, outcome.reason)

    Each run gives exactly one outcome per target, as they complete. Leaving an iteration early cancels what is left of it.

    :param modalities: whom; their names are unique
    :param calling_ae_title: how we introduce ourselves, unless a modality says otherwise
    :param concurrency: associations at once over all modalities
    :param per_modality: associations at once with one modality; None leaves it to each modality's own limit
    :param deadline: seconds for a whole run, targets that wait for a slot included; None for no limit
    :param retries: further attempts after a transient failure
    :param breaker: when a modality is left alone
    :param linger: seconds for which an association waits for a next operation with the same modality; 0 for not at all
    :param engine: ``native`` or ``pynetdicom``, unless a modality says otherwise
    :param observer: told what happens
    :raises ConfigurationError: when two modalities have the same name, or a value is wrong
    """

    def __init__(
        self,
        modalities: Iterable[Modality] = (),
        *,
        calling_ae_title: str = DEFAULT_AE_TITLE,
        concurrency: int = 64,
        per_modality: int | None = None,
        deadline: float | None = None,
        retries: int = 0,
        breaker: Breaker | None = None,
        linger: float = 0.0,
        engine: Engine | None = None,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        if deadline is not None and not deadline > 0:
            raise ConfigurationError("fleet.deadline", deadline, "a number of seconds above 0")
        if retries < 0:
            raise ConfigurationError("fleet.retries", retries, "0 or more further attempts")
        if not linger >= 0:
            raise ConfigurationError("fleet.linger", linger, "0 or more seconds")
        resolve_engine(engine)
        self._modalities: dict[str, Modality] = {}
        for modality in modalities:
            if self._modalities.setdefault(modality.name, modality) is not modality:
                raise ConfigurationError("modality.name", modality.name, "every modality has its own name; this one is taken")
        self._gate = Gate(concurrency, per_modality, breaker, observer=observer)
        self._pace = Pace()
        self._deadline = deadline
        self._retries = retries
        self._linger = Linger(linger)
        self._caller = Caller(check_ae_title(calling_ae_title, "calling_ae_title"), engine, observer, self._linger)
        self._observer = observer
        self._tasks = BackgroundTasks()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Fleet:
        """Make a fleet of the inventory and the settings in a configuration file. Blocks.

        :param overrides: parameters of :class:`Fleet` that stand above the file's
        :raises ConfigurationError: when the file has mistakes
        """
        from asyncdicom.fleet.inventory import load_inventory

        inventory = load_inventory(Path(path))
        settings: dict[str, Any] = {
            "calling_ae_title": inventory.calling_ae_title,
            "concurrency": inventory.fleet.concurrency,
            "deadline": inventory.fleet.deadline,
            "retries": inventory.fleet.retries,
            "breaker": Breaker(inventory.fleet.breaker.failures, inventory.fleet.breaker.open_for),
        }
        return cls(inventory, **(settings | overrides))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._linger.close()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities, in their order."""
        return tuple(self._modalities.values())

    def select(self, *targets: str) -> list[Modality]:
        """The modalities that targets name, each once.

        :param targets: a name, ``@group``, ``@all`` or ``AET@host:port``
        :raises ConfigurationError: when a target names nothing
        """
        chosen: dict[str, Modality] = {}
        for target in targets:
            if target == "@all":
                found = list(self._modalities.values())
            elif target.startswith("@"):
                found = [modality for modality in self._modalities.values() if target[1:] in modality.groups]
                if not found:
                    groups = sorted({f"@{group}" for modality in self._modalities.values() for group in modality.groups})
                    raise ConfigurationError("target", target, f"no such group; there are {', '.join(['@all', *groups])}")
            elif target in self._modalities:
                found = [self._modalities[target]]
            elif "@" in target:
                found = [Modality.parse(target)]
            else:
                raise ConfigurationError("target", target, "no modality of that name; write a name, @group or AET@host:port")
            chosen.update((modality.name, modality) for modality in found)
        return list(chosen.values())

    # -- operations ---------------------------------------------------------------------------------------------------

    def echo(
        self, targets: Sequence[Modality] | None = None, *, require: Sequence[str] = (), tells: bool = True
    ) -> AsyncIterator[Outcome]:
        """C-ECHO, over an association each.

        :param targets: whom; default all
        :param require: abstract syntaxes that each has to accept, too; one that does not ends in ``no_context``
        :param tells: whether observers may conclude that a modality is up or down
        :return: outcomes as they complete, exactly one per target
        """
        return self._outcomes([EchoJob(modality, self._caller, require, tells=tells) for modality in self._whom(targets)])

    def find(
        self,
        query: Query,
        targets: Sequence[Modality] | None = None,
        *,
        limit: int | None = None,
        merge: bool = False,
        tells: bool = True,
    ) -> Matches:
        """C-FIND.

        :param limit: matches after which everybody is stopped by C-CANCEL
        :param merge: give what several archives tell of once, with all its sources; nothing comes before all have answered
        :param tells: whether observers may conclude that a modality is up or down
        :return: matches as they come, and the outcome of each modality
        """
        return Matches(self, query, self._whom(targets), limit, merge, tells)

    def move(
        self,
        queries: Query | Iterable[Query],
        *,
        to: str,
        targets: Sequence[Modality] | None = None,
        ledger: Ledger | None = None,
    ) -> AsyncIterator[Outcome]:
        """C-MOVE.

        :param to: the AE title that the instances are to be sent to
        :param ledger: reconciles what arrives at our own storage SCP
        :return: outcomes as they complete, exactly one per target and query
        """
        to = check_ae_title(to, "to")
        return self._outcomes(
            [
                MoveJob(modality, self._caller, query, to, ledger)
                for query in _several(queries)
                for modality in self._whom(targets)
            ]
        )

    def get(
        self,
        queries: Query | Iterable[Query],
        *,
        into: Archive | InstanceHandler,
        targets: Sequence[Modality] | None = None,
    ) -> AsyncIterator[Outcome]:
        """C-GET.

        :param into: an archive, or a handler that takes each instance and answers its status
        :return: outcomes as they complete, exactly one per target and query
        """
        return self._outcomes(
            [GetJob(modality, self._caller, query, into) for query in _several(queries) for modality in self._whom(targets)]
        )

    def send(self, instances: Iterable[Instance], targets: Sequence[Modality] | None = None) -> AsyncIterator[Outcome]:
        """C-STORE.

        :return: outcomes as they complete, exactly one per target and instance
        """
        what = list(instances)
        return self._outcomes(
            lambda emit: [StoreJob(modality, self._caller, what, emit) for modality in self._whom(targets)] if what else []
        )

    def _whom(self, targets: Sequence[Modality] | None) -> list[Modality]:
        return list(self._modalities.values()) if targets is None else list(targets)

    # -- runs ---------------------------------------------------------------------------------------------------------

    async def _outcomes(self, jobs: Sequence[Job] | Callable[[Emit], Sequence[Job]]) -> AsyncIterator[Outcome]:
        outcomes = Outcomes()
        emit = self.tell(outcomes.put)
        run = Run(self, jobs(emit) if callable(jobs) else jobs, emit, outcomes.end)
        try:
            self.start(run)
            async for outcome in outcomes:
                yield outcome
        finally:
            run.cancel()

    def tell(self, emit: Emit) -> Emit:
        """Have each outcome told to the observer before it goes on."""

        def told(outcome: Outcome) -> None:
            self._observer.operation_ended(outcome)
            emit(outcome)

        return told

    def start(self, run: Run) -> None:
        """Start a run in the fleet's task group.

        :raises RuntimeError: outside of ``async with``
        """
        self._tasks.start(run.drive)

    @property
    def caller(self) -> Caller:
        """How the fleet introduces itself."""
        return self._caller

    @property
    def gate(self) -> Gate:
        """Its limits."""
        return self._gate

    @property
    def pace(self) -> Pace:
        """How many of its associations begin at once."""
        return self._pace

    @property
    def deadline(self) -> float | None:
        """Seconds for a whole run."""
        return self._deadline

    @property
    def retries(self) -> int:
        """Further attempts after a transient failure."""
        return self._retries

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._modalities)} modalities, {self._gate!r}>"


async def _nothing_more(_: list[Match]) -> bool:
    return False


def _several(queries: Query | Iterable[Query]) -> list[Query]:
    return [queries] if isinstance(queries, Query) else list(queries)


class Run:
    """One question to many: dispatches jobs as the gate lets them go, until each has its outcome.

    :param fleet: whose limits and deadline count
    :param jobs: what is to be done
    :param emit: takes the outcomes
    :param finished: called once, when all is done
    """

    def __init__(self, fleet: Fleet, jobs: Sequence[Job], emit: Emit, finished: Callable[[], None]) -> None:
        self._fleet = fleet
        self._gate = fleet.gate
        self._emit = emit
        self._finished = finished
        self._ready = deque(jobs)
        self._parked: dict[str, deque[Job]] = {}
        self._active = 0
        self._is_leaving = False
        self._changed = anyio.Event()
        self._over = anyio.Event()
        self._scope = anyio.CancelScope()
        self._until = math.inf if fleet.deadline is None else time.monotonic() + fleet.deadline

    def cancel(self) -> None:
        """Stop everything that is under way; nobody waits for outcomes any more."""
        self._scope.cancel()

    async def wind_up(self, seconds: float) -> None:
        """Begin nothing more, and wait for what is under way to stop.

        :param seconds: how long to wait
        """
        for job in self._waiting():
            job.finish(Report(reason=Reason.CANCELLED, detail="enough came before its turn"), self._emit)
        self._ready.clear()
        self._parked.clear()
        self._notify()
        with anyio.move_on_after(seconds):
            await self._over.wait()

    def _waiting(self) -> list[Job]:
        return [*self._ready, *(job for waiting in self._parked.values() for job in waiting)]

    def _somebody_left(self) -> None:
        if not self._is_leaving:
            self._notify()

    def _notify(self) -> None:
        self._changed.set()

    async def drive(self) -> None:
        """Run to the end."""
        unsubscribe = self._gate.subscribe(self._somebody_left)
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    while self._ready or self._parked or self._active:
                        self._changed = anyio.Event()
                        self._dispatch(tasks)
                        if not (self._ready or self._parked or self._active):
                            break
                        with anyio.move_on_after(self._left()):
                            await self._changed.wait()
                        if self._left() <= 0:
                            self._give_up_waiting()
        finally:
            unsubscribe()
            self._over.set()
            self._finished()

    def _left(self) -> float:
        return self._until - time.monotonic() if self._ready or self._parked else math.inf

    def _dispatch(self, tasks: TaskGroup) -> None:
        """Start every job that may go now."""
        while (job := self._admit()) is not None:
            self._active += 1
            tasks.start_soon(self._work, job)

    def _admit(self) -> Job | None:
        """The next job that may go now, its place taken; None when all that are left have to wait."""
        for name in list(self._parked):
            job = self._admit_from(self._parked[name])
            if not self._parked[name]:
                del self._parked[name]
            if job is not None:
                return job
        return self._admit_from(self._ready, park=True)

    def _admit_from(self, waiting: deque[Job], *, park: bool = False) -> Job | None:
        while waiting:
            job = waiting[0]
            name = job.modality.name
            if park and name in self._parked:
                # Those of one modality go in their order.
                self._parked[name].append(waiting.popleft())
                continue
            match self._gate.enter(job.modality):
                case Decision.GO:
                    return waiting.popleft()
                case Decision.BREAKER_OPEN:
                    waiting.popleft()
                    job.finish(Report(reason=Reason.BREAKER_OPEN, detail="left alone after repeated failures"), self._emit)
                case Decision.WAIT_FOR_MODALITY if park:
                    self._parked[name] = deque([waiting.popleft()])
                case _:
                    return None
        return None

    def _give_up_waiting(self) -> None:
        for job in self._waiting():
            job.finish(Report(reason=Reason.DEADLINE, detail="the deadline passed before its turn came"), self._emit)
        self._ready.clear()
        self._parked.clear()

    async def _work(self, job: Job | None) -> None:
        """Do one job, whose place is taken, and then others that may go: a task for each would cost more."""
        try:
            while job is not None:
                await self._perform(job)
                # Where others wait for the same limits, it is the next one's turn.
                job = None if self._gate.is_shared else self._admit()
        finally:
            self._active -= 1
            self._notify()

    async def _perform(self, job: Job) -> None:
        """Do one job, whose place is taken, to its outcome."""
        report = Report()
        inside = True
        try:
            with self._deadline_scope() as scope:
                while True:
                    await self._fleet.pace.begin()
                    await job.attempt(report)
                    if job.attempts > self._fleet.retries or not job.may_retry(report):
                        break
                    self._gate.leave(job.modality, report.reason)
                    inside = False
                    await anyio.sleep(_BACKOFF * 2 ** (job.attempts - 1) * (0.5 + random.random()))  # noqa: S311
                    inside = await self._enter_again(job)
                    if not inside:
                        break
                    report = Report()
            if scope is not None and scope.cancelled_caught:
                report.reason, report.detail = Reason.DEADLINE, "the deadline passed"
        except Exception as error:
            # Ours, not the peer's: the target still gets its outcome, and the others go on.
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__
            logger.error("%s of %s: a fault of ours: %s in %s", job.operation, job.modality.name, kind, where.name)
            logger.debug("traceback", exc_info=True)
            report.reason, report.detail = Reason.PROTOCOL_ERROR, f"a fault of ours: {kind}"
        except BaseException:
            report.reason = Reason.CANCELLED
            raise
        finally:
            if inside:
                # Whoever left looks itself for what may go now.
                self._is_leaving = True
                self._gate.leave(job.modality, report.reason)
                self._is_leaving = False
        job.finish(report, self._emit)

    async def _enter_again(self, job: Job) -> bool:
        """Take a place again after a backoff; False when the breaker opened meanwhile."""
        while True:
            decision = self._gate.enter(job.modality)
            if decision is Decision.GO:
                return True
            if decision is Decision.BREAKER_OPEN:
                return False
            left = anyio.Event()
            unsubscribe = self._gate.subscribe(left.set)
            try:
                await left.wait()
            finally:
                unsubscribe()

    def _deadline_scope(self) -> AbstractContextManager[anyio.CancelScope | None]:
        if self._until == math.inf:
            return nullcontext()
        return anyio.CancelScope(deadline=anyio.current_time() + (self._until - time.monotonic()))


class Matches:
    """The matches of a C-FIND to many, as they come.

    :ivar outcomes: what became of each modality, filled as they complete
    """

    def __init__(
        self, fleet: Fleet, query: Query, targets: list[Modality], limit: int | None, merge: bool, tells: bool = True
    ) -> None:
        self._fleet = fleet
        self._tells = tells
        self._query = query
        self._targets = targets
        self._limit = limit
        self._merge = Merge(query) if merge else None
        self.outcomes: dict[str, Outcome] = {}
        self._iterator = self._iterate()

    def __aiter__(self) -> AsyncIterator[Match]:
        return self._iterator

    async def aclose(self) -> None:
        """Stop everybody."""
        await self._iterator.aclose()  # type: ignore[attr-defined]

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes[outcome.modality] = outcome

    def _close_the_books(self) -> None:
        """Whoever has not stopped within the grace is cancelled, and that is its outcome."""
        for modality in self._targets:
            if modality.name not in self.outcomes:
                job = FindJob(modality, self._fleet.caller, self._query, _nothing_more)
                self._ended(job.outcome(Report(reason=Reason.CANCELLED, detail="enough had come")))

    async def _iterate(self) -> AsyncIterator[Match]:
        send, receive = anyio.create_memory_object_stream[list[Match]](_WAITING)

        async def deliver(matches: list[Match]) -> bool:
            if not matches:
                return True
            try:
                await send.send(matches)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return False
            return True

        # Merged, a limit counts what is left after merging, so no archive can be stopped early for it.
        limit = self._limit if self._merge is None else None
        caller, query = self._fleet.caller, self._query
        jobs = [FindJob(modality, caller, query, deliver, limit, tells=self._tells) for modality in self._targets]
        run = Run(self._fleet, jobs, self._fleet.tell(self._ended), send.close)
        count = 0
        async with receive, send:
            try:
                self._fleet.start(run)
                async for matches in receive:
                    if self._merge is not None:
                        for match in matches:
                            self._merge.add(match)
                        continue
                    for match in matches[: None if self._limit is None else self._limit - count]:
                        yield match
                    count += len(matches)
                    if self._limit is not None and count >= self._limit:
                        await receive.aclose()
                        await run.wind_up(CANCEL_GRACE)
                        self._close_the_books()
                        break
                for match in list(self._merge or ())[: self._limit]:
                    yield match
            finally:
                run.cancel()
