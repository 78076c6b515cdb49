"""What a fleet does with one modality: an operation, from its association to its outcomes."""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from asyncdicom.archive import Archive
from asyncdicom.association.contract import Association, InstanceHandler, Response, StoreRequest, contexts_for_get
from asyncdicom.association.instance import Instance
from asyncdicom.association.query import Match, Query
from asyncdicom.association.received import Received
from asyncdicom.errors import AssociationAborted, ConnectionLost, DatasetError, NoPresentationContext, OperationError
from asyncdicom.fleet.ahead import ReadAhead
from asyncdicom.fleet.linger import Linger
from asyncdicom.fleet.retrieve import Ledger, difference
from asyncdicom.modality import Engine, Modality
from asyncdicom.observe import Observer
from asyncdicom.outcome import (
    AgreedContext,
    Operation,
    Outcome,
    Peer,
    Phases,
    Reason,
    Rejected,
    Status,
    SubOperations,
    reason_of,
    rejection_of,
    status_of,
)
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer.context import PresentationContext


@dataclass(frozen=True, slots=True)
class Caller:
    """How a fleet introduces itself and associates."""

    calling_ae_title: str
    engine: Engine | None
    observer: Observer
    linger: Linger


@dataclass(slots=True)
class Report:
    """What is known of one attempt, as far as it got."""

    started: float = field(default_factory=time.monotonic)
    phases: Phases = field(default_factory=Phases)
    peer: Peer = field(default_factory=Peer)
    reason: Reason = Reason.OK
    status: Status | None = None
    rejected: Rejected = field(default_factory=Rejected)
    detail: str = ""
    sub_operations: SubOperations | None = None
    received: int | None = None
    matches: int | None = None
    certificate_expires: float | None = None
    contexts: tuple[AgreedContext, ...] = ()

    def met(self, association: Association) -> None:
        """It got an association."""
        self.peer, self.contexts = association.peer, association.agreed
        self.certificate_expires = association.certificate_expires

    def failed(self, error: OperationError) -> None:
        """It ended by an error."""
        self.reason = reason_of(error)
        self.status = status_of(error) or self.status
        self.rejected = rejection_of(error)
        self.detail = error.detail

    def answered(self, status: Status) -> None:
        """It ended by a final status."""
        self.status = status
        if status.category not in ("Success", "Warning"):
            self.reason = Reason.FAILURE_STATUS
            self.detail = f"the peer answered with status {status!r}"


def _prepared(association: Association, instance: Instance) -> Instance | StoreRequest:
    try:
        return association.prepare_store(instance)
    except (OperationError, DatasetError):
        # It is raised again, and told, when its turn comes.
        return instance


# Where the outcomes of a job go.
Emit = Callable[[Outcome], None]


def _lingered_in_vain(error: OperationError, report: Report) -> bool:
    """Whether the peer had given up an association that lingered: nothing was answered on it, and a new one will do."""
    is_new = report.phases.resolve is not None or report.phases.connect is not None
    is_answered = bool(report.matches) or report.sub_operations is not None
    return not is_new and not is_answered and isinstance(error, ConnectionLost | AssociationAborted)


class Job(ABC):
    """One operation on one modality.

    :param modality: on whom
    :param caller: by whom
    :param tells: whether its outcome says that the modality is up or down
    """

    operation: Operation

    def __init__(self, modality: Modality, caller: Caller, *, tells: bool = True) -> None:
        self.modality = modality
        self.caller = caller
        self.tells = tells
        self.attempts = 0

    def associate(
        self, contexts: Sequence[PresentationContext], report: Report, query: Query | None = None, *, fresh: bool = False
    ) -> AbstractAsyncContextManager[Association]:
        """The association for an attempt."""
        return self.caller.linger.associate(
            self.modality,
            calling_ae_title=self.caller.calling_ae_title,
            contexts=contexts,
            engine=self.caller.engine,
            query=query,
            phases=report.phases,
            fresh=fresh,
            observer=self.caller.observer,
        )

    def outcome(self, report: Report, **fields: Any) -> Outcome:
        """The outcome that a report stands for."""
        return Outcome(
            modality=self.modality.name,
            operation=self.operation,
            reason=report.reason,
            status=report.status,
            duration=time.monotonic() - report.started,
            phases=report.phases,
            peer=report.peer,
            rejected=report.rejected,
            detail=report.detail,
            ae_title=self.modality.ae_title,
            host=self.modality.host,
            port=self.modality.port,
            attempts=max(1, self.attempts),
            sub_operations=report.sub_operations,
            received=report.received,
            matches=report.matches,
            certificate_expires=report.certificate_expires,
            tells=self.tells,
            contexts=report.contexts,
            **fields,
        )

    async def attempt(self, report: Report) -> None:
        """Try once. What the peer does wrong ends in the report; everything else is raised."""
        self.attempts += 1
        try:
            await self.perform(report)
        except OperationError as error:
            if _lingered_in_vain(error, report):
                report.phases = Phases()
                await self.attempt(report)
                self.attempts -= 1
            else:
                report.failed(error)

    @abstractmethod
    async def perform(self, report: Report) -> None:
        """Associate and operate.

        :raises OperationError: when the peer does not do its part
        """

    def may_retry(self, report: Report) -> bool:
        """Whether trying again is worth it, and harmless."""
        return report.reason in TRANSIENT and report.phases.operation is None

    def finish(self, report: Report, emit: Emit) -> None:
        """Emit what is left to be told, at the end of the last attempt or instead of the first."""
        emit(self.outcome(report))


# What may be different a moment later. A permanent rejection will not be, and a timeout has cost enough.
TRANSIENT = {Reason.REJECTED_TRANSIENT, Reason.CONNECT_REFUSED, Reason.CONNECTION_LOST, Reason.CONNECT_TIMEOUT}


class EchoJob(Job):
    """C-ECHO.

    :param require: abstract syntaxes that the peer has to accept, too
    """

    operation: Operation = "echo"

    def __init__(self, modality: Modality, caller: Caller, require: Sequence[str] = (), *, tells: bool = True) -> None:
        super().__init__(modality, caller, tells=tells)
        self._require = require

    async def perform(self, report: Report) -> None:
        """Associate for verification, and for what is required with it, and echo."""
        contexts = [PresentationContext(syntax) for syntax in dict.fromkeys((uid.VERIFICATION, *self._require))]
        async with self.associate(contexts, report) as association:
            report.met(association)
            accepted = {context.abstract_syntax for context in association.accepted}
            missing = [context.abstract_syntax for context in contexts if context.abstract_syntax not in accepted]
            if missing:
                # All of them at once: whoever repairs the peer wants the whole list. It is no fault to answer by an abort.
                detail = f"{self.modality}: accepted no presentation context for {', '.join(missing)}"
                report.failed(NoPresentationContext(detail))
                return
            report.answered(await association.echo())


# Matches that are delivered together at the most, and their bytes.
_TOGETHER = 64
_TOGETHER_BYTES = 1 << 20


class FindJob(Job):
    """C-FIND.

    :param deliver: takes matches and answers whether more are wanted; awaiting it slows the peer down
    """

    operation: Operation = "find"

    def __init__(
        self,
        modality: Modality,
        caller: Caller,
        query: Query,
        deliver: Callable[[list[Match]], Awaitable[bool]],
        limit: int | None = None,
        *,
        tells: bool = True,
    ) -> None:
        super().__init__(modality, caller, tells=tells)
        self._query = query
        self._deliver = deliver
        self._limit = limit

    async def perform(self, report: Report) -> None:
        """Associate for the information model, and find."""
        report.matches = 0
        contexts = [PresentationContext(self._query.find_sop_class)]
        async with self.associate(contexts, report, self._query) as association:
            report.met(association)
            matches = association.find(self._query, limit=self._limit)
            # What is here is delivered together: waking whoever takes it costs more than a match.
            together: list[Match] = []
            size = 0
            try:
                async for match in matches:
                    together.append(match)
                    size += len(match.encoded)
                    if not matches.waiting or len(together) >= _TOGETHER or size >= _TOGETHER_BYTES:
                        report.matches += len(together)
                        if not await self._deliver(together):
                            await matches.aclose()
                        together, size = [], 0
            except OperationError:
                report.matches += len(together)
                await self._deliver(together)
                raise
            report.matches += len(together)
            await self._deliver(together)
            report.status = Status(0x0000)

    def may_retry(self, report: Report) -> bool:
        """Matches that were delivered would be delivered again."""
        return super().may_retry(report) and not report.matches


class RetrieveJob(Job):
    """What C-MOVE and C-GET have in common."""

    def settle(self, report: Report, response: Response | None, kept: int | None) -> None:
        """Reconcile what the peer counts with what came."""
        report.received = kept
        if response is None:
            report.reason = Reason.PROTOCOL_ERROR
            report.detail = "the peer gave no response"
            return
        counts = report.sub_operations = response.sub_operations
        report.answered(response.status)
        if report.reason is Reason.OK and counts.failed:
            report.reason = Reason.FAILURE_STATUS
            report.detail = f"{counts.failed} of {counts.total} sub-operations failed"
        missing = difference(counts, kept)
        if missing:
            report.detail = f"{report.detail}; {missing}" if report.detail else missing
            if report.reason is Reason.OK:
                report.reason = Reason.PROTOCOL_ERROR


class MoveJob(RetrieveJob):
    """C-MOVE."""

    operation: Operation = "move"

    def __init__(self, modality: Modality, caller: Caller, query: Query, to: str, ledger: Ledger | None = None) -> None:
        super().__init__(modality, caller)
        self._query = query
        self._to = to
        self._ledger = ledger

    async def perform(self, report: Report) -> None:
        """Associate for the information model, and move."""
        last = None
        async with self.associate([PresentationContext(self._query.move_sop_class)], report) as association:
            report.met(association)
            responses = association.move(self._query, to=self._to)
            async for response in responses:
                last = response
                report.sub_operations = response.sub_operations
            kept = None
            if self._ledger is not None:
                title = self.modality.calling_ae_title or self.caller.calling_ae_title
                kept = self._ledger.close(title, responses.message_id)
            self.settle(report, last, kept)


class GetJob(RetrieveJob):
    """C-GET.

    :param into: an archive, or a handler that answers a status
    """

    operation: Operation = "get"

    def __init__(self, modality: Modality, caller: Caller, query: Query, into: Archive | InstanceHandler) -> None:
        super().__init__(modality, caller)
        self._query = query
        self._into = into
        self._kept: set[str] = set()

    async def _keep(self, received: Received) -> int:
        if isinstance(self._into, Archive):
            stored = await self._into.store(received)
            received.path, status = stored.path, int(stored.status)
        else:
            result: Any = self._into(received)
            status = int(await result if inspect.isawaitable(result) else result)
        if Status(status).category in ("Success", "Warning"):
            self._kept.add(received.sop_instance_uid)
        return status

    async def perform(self, report: Report) -> None:
        """Associate for the information model and for storage, and get."""
        self._kept.clear()
        last = None
        async with self.associate(contexts_for_get(self._query), report) as association:
            report.met(association)
            async for response in association.get(self._query, self._keep):
                last = response
                report.sub_operations, report.received = response.sub_operations, len(self._kept)
            self.settle(report, last, len(self._kept))


class StoreJob(Job):
    """C-STORE of several instances over as few associations as their presentation contexts need.

    An association that breaks costs the instance that was under way; the others go on over the next one.

    :param emit: takes the outcome of each instance as soon as it is known
    """

    operation: Operation = "store"

    def __init__(self, modality: Modality, caller: Caller, instances: Sequence[Instance], emit: Emit) -> None:
        super().__init__(modality, caller)
        self._left = list(reversed(instances))
        self._emit = emit

    async def perform(self, report: Report) -> None:
        """Associate for the contexts of the instances, and store one after the other."""
        while self._left:
            contexts = tuple(dict.fromkeys(instance.context for instance in self._left))[: uid.MAX_CONTEXTS]
            now = set(contexts)
            batch = [instance for instance in self._left if instance.context in now]
            later = [instance for instance in self._left if instance.context not in now]
            self._left = later + batch
            async with self.associate(contexts, report, fresh=True) as association:
                report.met(association)
                await self._store(association, report, list(reversed(batch)))

    async def _store(self, association: Association, report: Report, instances: Sequence[Instance]) -> None:
        """Store one instance after the other, as far as the association survives it."""
        ahead = ReadAhead(instances)
        # What is known already is told while the peer is at work on the next.
        known: tuple[Instance, Report] | None = None
        try:
            count = 1 if self.modality.one_operation_per_association else len(instances)
            following: Instance | StoreRequest = await ahead.next()
            for left in reversed(range(count)):
                request = following
                instance = request.instance if isinstance(request, StoreRequest) else request
                one = Report(phases=association.phases, peer=association.peer, contexts=association.agreed)
                try:
                    storing = await association.begin_store(request)
                    if known is not None:
                        self._tell(*known)
                        known = None
                    if left:
                        following = _prepared(association, await ahead.next())
                    one.answered(await storing.status())
                except OperationError as error:
                    one.failed(error)
                except DatasetError as error:
                    one.reason, one.detail = Reason.FAILURE_STATUS, str(error)
                if known is not None:
                    self._tell(*known)
                self._left.pop()
                known = instance, one
                if not association.is_established:
                    return
                report.phases = association.phases = Phases()
                if left and following is request:
                    following = await ahead.next()
        finally:
            if known is not None:
                self._tell(*known)

    def _tell(self, instance: Instance, report: Report) -> None:
        self._emit(self.outcome(report, instance=instance.sop_instance_uid, path=instance.path))

    def finish(self, report: Report, emit: Emit) -> None:
        """Emit an outcome for every instance that was not come to."""
        while self._left:
            self._tell(self._left.pop(), report)
