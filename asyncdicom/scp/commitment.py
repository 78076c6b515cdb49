"""Storage commitment, as SCP and as SCU (PS3.4 Annex J): are these instances safe, so that I may delete mine?

A request is answered once it is remembered in the index, and reported on once each of its instances was read again and its
SHA-256 compared with that of its arrival. The report goes over an association of our own to the modality of the inventory
that has the requester's AE title; what cannot be delivered is tried again, also after a restart.
"""

from __future__ import annotations

import inspect
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio

from asyncdicom.archive import Archive
from asyncdicom.archive.commitments import Commitments, Pending
from asyncdicom.association.commitment import (
    AS_SCP,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_COMMITMENT,
    CommitmentReport,
    CommitmentRequest,
    FailureReason,
    InstanceReference,
)
from asyncdicom.association.contract import associate
from asyncdicom.background import BackgroundTasks
from asyncdicom.errors import ArchiveError, ArchiveFull, ConfigurationError, DatasetError, OperationError
from asyncdicom.modality import Modality
from asyncdicom.observe import NULL_OBSERVER, Observer
from asyncdicom.scp import services
from asyncdicom.scp.services import Answer, Operation
from asyncdicom.upper_layer.message import CommandField

logger = logging.getLogger(__name__)

# Who asks for a report is given a moment to release its association first: some take one call at a time.
_FIRST = 0.5
# Seconds until the next attempt: twice as many each time, up to an hour, for a day.
_BACKOFF = 5.0
_LONGEST = 3600.0
_PATIENCE = 86400.0
# How often a worker that nobody wakes looks for itself, in seconds: the wall clock may be set.
_LOOK = 30.0
# One request may name as many; beyond it nobody waits for the reading.
_MAX_INSTANCES = 10_000

# Who is to be told, by AE title; None when nobody is known by it.
Whom = Callable[[str], Modality | None]
ReportHandler = Callable[[CommitmentReport], Awaitable[object] | object]


class StorageCommitment:
    """The SCP of the Storage Commitment Push Model for what an archive keeps. An async context manager.

    :param archive: open, with an index
    :param whom: the modality that has an AE title: where to report to
    :param ae_title: our AE title
    :raises ConfigurationError: when the archive has no index
    """

    answers = (PUSH_MODEL, CommandField.N_ACTION_RQ)

    def __init__(
        self, archive: Archive, whom: Whom, *, ae_title: str = "ASYNCDICOM", observer: Observer = NULL_OBSERVER
    ) -> None:
        if archive.index is None:
            raise ConfigurationError("archive.index", "none", "storage commitment needs an index: it tells what is kept")
        self._archive = archive
        self._requests = Commitments(archive.index)
        self._ae_title = ae_title
        self._observer = observer
        self._tasks = BackgroundTasks()
        self._woken = anyio.Event()
        self.whom = whom

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start(self._work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A report that is under way is cancelled, and tried again by the next life.
        await self._tasks.__aexit__(kind, error, trace)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def perform(self, operation: Operation) -> Answer:
        """Take an N-ACTION (PS3.4 section J.3.2)."""
        command = operation.command
        if command.get("RequestedSOPInstanceUID") != PUSH_MODEL_INSTANCE:
            return Answer(services.NO_SUCH_SOP_INSTANCE)
        action = command.get("ActionTypeID")
        if action != REQUEST_COMMITMENT:
            return Answer(services.NO_SUCH_ACTION)
        said = {"ActionTypeID": action}
        title = operation.peer.calling_ae_title
        try:
            request = CommitmentRequest.decode(operation.data, operation.transfer_syntax)
        except DatasetError as error:
            logger.warning("a request for storage commitment from %a cannot be understood: %s", title, error)
            return Answer(services.INVALID_ARGUMENT, said)
        if len(request.references) > _MAX_INSTANCES:
            logger.warning("a request for storage commitment from %a names more than %d instances", title, _MAX_INSTANCES)
            return Answer(services.RESOURCE_LIMITATION, said)
        if self.whom(title) is None:
            # It would wait for a report that nobody can deliver.
            logger.error("%a asks for storage commitment and is no modality: add a [[modality]] with this ae_title", title)
            return Answer(services.PROCESSING_FAILURE, said)
        try:
            is_new = await self._requests.add(
                request.transaction_uid, title, [(one.sop_class_uid, one.sop_instance_uid) for one in request.references]
            )
        except ArchiveError as error:
            logger.error("a request for storage commitment from %a is not taken: %s", title, error)
            full = isinstance(error, ArchiveFull)
            return Answer(services.RESOURCE_LIMITATION if full else services.PROCESSING_FAILURE, said)
        if not is_new:
            return Answer(services.DUPLICATE_INVOCATION, said)
        self._woken.set()
        return Answer(services.SUCCESS, said)

    # -- reports ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            self._woken = anyio.Event()
            seconds = _LOOK
            try:
                for pending in await self._requests.due():
                    await self._deal_with(pending)
                due = await self._requests.next_due()
                if due is not None:
                    seconds = min(_LOOK, max(0.0, due - time.time()))
            except ArchiveError as error:
                logger.error("storage commitment waits for the index: %s", error)
            with anyio.move_on_after(seconds):
                await self._woken.wait()

    async def _deal_with(self, pending: Pending) -> None:
        title = pending.calling_ae_title
        if not pending.attempts:
            await anyio.sleep(max(0.0, min(_FIRST, pending.requested_at + _FIRST - time.time())))
        try:
            report = await self._report_on(pending)
            modality = self.whom(title)
            if modality is None:
                raise ConfigurationError("modality", title, "no modality has this AE title any more")
            await self._deliver(modality, report)
        except Exception as error:
            # Whatever a requester named: one request must neither end the service nor hold up those of the others.
            await self._postpone(pending, error)
            return
        await self._requests.ended(pending, "reported")
        self._observer.commitment_reported(title, len(report.committed), len(report.failed))
        logger.info(
            "reported on a storage commitment", extra={"committed": len(report.committed), "failed": len(report.failed)}
        )

    async def _report_on(self, pending: Pending) -> CommitmentReport:
        committed: list[InstanceReference] = []
        failed: list[tuple[InstanceReference, int]] = []
        for pair in pending.instances:
            reference = InstanceReference(*pair)
            reason = await self._failure_of(reference)
            if reason is None:
                committed.append(reference)
            else:
                failed.append((reference, int(reason)))
        return CommitmentReport(pending.transaction_uid, tuple(committed), tuple(failed))

    async def _failure_of(self, reference: InstanceReference) -> FailureReason | None:
        try:
            found = await self._archive.inspect(reference.sop_instance_uid)
        except (ArchiveError, OSError) as error:
            logger.error("an instance of a storage commitment cannot be read: %s", type(error).__name__)
            return FailureReason.PROCESSING_FAILURE
        if not found:
            return FailureReason.NO_SUCH_OBJECT_INSTANCE
        if all(entry.sop_class_uid != reference.sop_class_uid for entry, _ in found):
            return FailureReason.CLASS_INSTANCE_CONFLICT
        conditions = {condition for _, condition in found}
        if conditions == {"intact"}:
            return None
        damaged = "damaged" in conditions
        logger.error("an instance that was acknowledged is %s", "damaged" if damaged else "missing")
        return FailureReason.PROCESSING_FAILURE if damaged else FailureReason.NO_SUCH_OBJECT_INSTANCE

    async def _deliver(self, modality: Modality, report: CommitmentReport) -> None:
        async with associate(
            modality, calling_ae_title=modality.calling_ae_title or self._ae_title, contexts=[AS_SCP], observer=self._observer
        ) as association:
            status, _ = await association.n_event_report(report.event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE, report.dataset())
        if status.category not in ("Success", "Warning"):
            raise ArchiveError(f"{modality} answers the report with status 0x{int(status):04X}")

    async def _postpone(self, pending: Pending, error: Exception) -> None:
        title = pending.calling_ae_title
        if not isinstance(error, OperationError | ArchiveError | ConfigurationError | OSError):
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("a report fails by a fault of ours: %s in %s", type(error).__name__, where.name)
            logger.debug("traceback", exc_info=error)
        if time.time() - pending.requested_at > _PATIENCE:
            logger.error("a storage commitment of %a was never reported on: %s", title, error)
            await self._requests.ended(pending, f"given up: {error}"[:200])
            return
        seconds = min(_LONGEST, _BACKOFF * 2**pending.attempts)
        logger.warning("a storage commitment of %a is reported on in %.0f s: %s", title, seconds, error)
        await self._requests.later(pending, time.time() + seconds)


class CommitmentReports:
    """Takes the reports that answer our own requests (PS3.4 section J.3.3): the SCU of storage commitment.

    :param handler: called with each report; when it raises, the peer is told so and may report again
    """

    answers = (PUSH_MODEL, CommandField.N_EVENT_REPORT_RQ)

    def __init__(self, handler: ReportHandler) -> None:
        self._handler = handler

    async def perform(self, operation: Operation) -> Answer:
        """Take an N-EVENT-REPORT."""
        command = operation.command
        try:
            report = CommitmentReport.decode(operation.data, operation.transfer_syntax)
        except DatasetError as error:
            logger.warning("a report from %a cannot be understood: %s", operation.peer.calling_ae_title, error)
            return Answer(services.INVALID_ARGUMENT)
        try:
            result = self._handler(report)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            # The handler is the user's: it must not end the association.
            logger.error("the handler of storage commitments failed: %s", type(error).__name__)
            logger.debug("traceback", exc_info=True)
            return Answer(services.PROCESSING_FAILURE)
        return Answer(services.SUCCESS, {"EventTypeID": command.get("EventTypeID")})
