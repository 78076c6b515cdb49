"""What every engine promises of an association, and :func:`associate`, the way to one."""

from __future__ import annotations

import functools
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from pydicom.dataset import Dataset

from asyncdicom.association.instance import Instance
from asyncdicom.association.query import Match, Query
from asyncdicom.association.received import Received
from asyncdicom.errors import ConfigurationError, NoPresentationContext
from asyncdicom.modality import Engine, Modality, check_ae_title
from asyncdicom.observe import NULL_OBSERVER, Observer
from asyncdicom.outcome import AgreedContext, Peer, Phases, Status, SubOperations
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer.context import AcceptedContext, PresentationContext
from asyncdicom.upper_layer.message import Command

DEFAULT_AE_TITLE = "ASYNCDICOM"

# A peer that was asked to stop by C-CANCEL gets so long, in seconds, before it is aborted.
CANCEL_GRACE = 2.0

# Takes a received instance, answers its status (PS3.4 B.2.3).
InstanceHandler = Callable[[Received], Awaitable[int]]

# Verification and every information model: enough for everything but storage, which depends on the instances.
DEFAULT_CONTEXTS = tuple(
    PresentationContext(abstract_syntax)
    for abstract_syntax in (
        uid.VERIFICATION,
        uid.STUDY_ROOT_FIND,
        uid.STUDY_ROOT_MOVE,
        uid.PATIENT_ROOT_FIND,
        uid.PATIENT_ROOT_MOVE,
        uid.MODALITY_WORKLIST_FIND,
    )
)

# Offered for what comes back by C-GET: as it is stored where the peer can, uncompressed otherwise.
_GET_TRANSFER_SYNTAXES = (
    *uid.UNCOMPRESSED,
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE
    uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
)


def contexts_for_get(query: Query) -> tuple[PresentationContext, ...]:
    """The presentation contexts of a C-GET: the model, and storage with ourselves as SCP (PS3.7 D.3.3.4)."""
    from pynetdicom.presentation import StoragePresentationContexts

    storage = [
        PresentationContext(str(context.abstract_syntax), _GET_TRANSFER_SYNTAXES, scu_role=False, scp_role=True)
        for context in StoragePresentationContexts
    ]
    return (PresentationContext(query.get_sop_class), *storage)[: uid.MAX_CONTEXTS]


def contexts_for(instances: Sequence[Instance]) -> tuple[PresentationContext, ...]:
    """The presentation contexts that instances need, each once.

    :raises ConfigurationError: when they need more than the 128 that one association can have; shard them then
    """
    contexts = tuple(dict.fromkeys(instance.context for instance in instances))
    if len(contexts) > uid.MAX_CONTEXTS:
        raise ConfigurationError("contexts", len(contexts), "one association has at most 128: send in several")
    return contexts


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a C-MOVE or C-GET (PS3.4 C.4.2 and C.4.3); the last one carries the final status.

    :ivar status: the status
    :ivar sub_operations: the peer's counts so far
    :ivar failed: SOP Instance UIDs that failed, as far as the peer names them
    """

    status: Status
    sub_operations: SubOperations
    failed: tuple[str, ...] = ()


class Responses(Protocol):
    """Responses as they come. Stopping early is fine: the peer is then stopped by C-CANCEL."""

    @property
    def message_id(self) -> int:
        """The Message ID of the request; 0 before it is sent, which is when the first response is asked for."""
        ...

    def __aiter__(self) -> AsyncIterator[Response]: ...

    async def __anext__(self) -> Response: ...

    async def aclose(self) -> None:
        """Stop: C-CANCEL, a grace, then A-ABORT."""


class Matches(Protocol):
    """Matches as they come. Stopping early is fine: the peer is then stopped by C-CANCEL."""

    @property
    def waiting(self) -> int:
        """Answers that are here, and not yet asked for: the next one will come without a wait."""
        ...

    def __aiter__(self) -> AsyncIterator[Match]: ...

    async def __anext__(self) -> Match: ...

    async def aclose(self) -> None:
        """Stop: C-CANCEL, a grace, then A-ABORT."""


class Storing(Protocol):
    """A C-STORE whose request is sent."""

    async def status(self) -> Status:
        """Wait for the answer.

        :return: what the peer answered, also when that is a failure
        """
        ...


# A fleet agrees on the same few with every modality, thousands of times.
@functools.lru_cache(maxsize=512)
def _agreed(accepted: tuple[AcceptedContext, ...]) -> tuple[AgreedContext, ...]:
    return tuple(AgreedContext(context.abstract_syntax, context.transfer_syntax) for context in accepted)


class Association(ABC):
    """An established association. One operation at a time; starting another one stops what is outstanding.

    Every method raises an :class:`asyncdicom.errors.OperationError` when the peer does not do its part, and the association is
    then over. Cancelling a caller aborts the association.

    :ivar modality: with whom
    :ivar phases: seconds by phase
    :ivar peer: how the peer names its implementation
    :ivar accepted: the presentation contexts that both agreed on
    :ivar certificate_expires: when the certificate that the peer showed expires, in seconds since the epoch; None without TLS
    """

    def __init__(self, modality: Modality, phases: Phases) -> None:
        self.modality = modality
        self.phases = phases
        self.peer = Peer()
        self.accepted: tuple[AcceptedContext, ...] = ()
        self.certificate_expires: float | None = None

    @property
    def agreed(self) -> tuple[AgreedContext, ...]:
        """What both sides agreed on, as outcomes tell it."""
        return _agreed(self.accepted)

    def context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> AcceptedContext:
        """The accepted presentation context for an abstract syntax.

        :param transfer_syntax: demanded exactly, when given
        :raises NoPresentationContext: when there is none
        """
        for context in self.accepted:
            if context.abstract_syntax == abstract_syntax and transfer_syntax in (None, context.transfer_syntax):
                return context
        syntax = f" in transfer syntax {transfer_syntax}" if transfer_syntax else ""
        raise NoPresentationContext(f"{self.modality}: accepted no presentation context for {abstract_syntax}{syntax}")

    @property
    @abstractmethod
    def is_established(self) -> bool:
        """Whether operations can be asked for."""

    @abstractmethod
    async def echo(self) -> Status:
        """C-ECHO (PS3.7 section 9.1.5).

        :return: 0x0000, or what the peer answered instead
        """

    @abstractmethod
    def find(self, query: Query, *, limit: int | None = None) -> Matches:
        """C-FIND (PS3.7 section 9.1.2).

        :param limit: matches after which the peer is stopped by C-CANCEL
        :return: an asynchronous iterator of matches; it raises :class:`asyncdicom.errors.FailureStatus` when the peer ends in
            failure
        """

    @abstractmethod
    def move(self, query: Query, *, to: str) -> Responses:
        """C-MOVE (PS3.7 section 9.1.4).

        :param to: the AE title that the instances are to be sent to; the peer must know its address
        """

    @abstractmethod
    def get(self, query: Query, handler: InstanceHandler) -> Responses:
        """C-GET (PS3.7 section 9.1.3); needs the contexts of :func:`contexts_for_get`.

        :param handler: takes each instance and answers its status
        """

    async def store(
        self,
        instance: Instance | Dataset | str | Path,
        *,
        move_originator_ae_title: str | None = None,
        move_originator_message_id: int | None = None,
    ) -> Status:
        """C-STORE (PS3.7 section 9.1.1); the dataset's bytes are sent as they are.

        :return: what the peer answered, also when that is a failure
        :raises NoPresentationContext: when its SOP class was not accepted in its transfer syntax
        """
        storing = await self.begin_store(
            instance,
            move_originator_ae_title=move_originator_ae_title,
            move_originator_message_id=move_originator_message_id,
        )
        return await storing.status()

    @abstractmethod
    def prepare_store(self, instance: Instance) -> StoreRequest:
        """Make the request of a C-STORE, for :meth:`begin_store`: what is done ahead, nobody waits for.

        :raises NoPresentationContext: when its SOP class was not accepted in its transfer syntax
        """

    @abstractmethod
    async def begin_store(
        self,
        instance: Instance | StoreRequest | Dataset | str | Path,
        *,
        move_originator_ae_title: str | None = None,
        move_originator_message_id: int | None = None,
    ) -> Storing:
        """Send the request of a C-STORE; what remains is to await its answer, and there is time until that is here.

        :raises NoPresentationContext: when its SOP class was not accepted in its transfer syntax
        """

    @abstractmethod
    async def n_event_report(
        self, event_type: int, sop_class_uid: str, sop_instance_uid: str, dataset: Dataset | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-EVENT-REPORT (PS3.7 section 10.1.1)."""

    @abstractmethod
    async def n_get(
        self, attributes: Sequence[int], sop_class_uid: str, sop_instance_uid: str
    ) -> tuple[Status, Dataset | None]:
        """N-GET (PS3.7 section 10.1.2).

        :param attributes: tags; none for all
        """

    @abstractmethod
    async def n_set(self, modifications: Dataset, sop_class_uid: str, sop_instance_uid: str) -> tuple[Status, Dataset | None]:
        """N-SET (PS3.7 section 10.1.3)."""

    @abstractmethod
    async def n_action(
        self, action_type: int, sop_class_uid: str, sop_instance_uid: str, dataset: Dataset | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-ACTION (PS3.7 section 10.1.4)."""

    @abstractmethod
    async def n_create(
        self, attributes: Dataset | None, sop_class_uid: str, sop_instance_uid: str | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-CREATE (PS3.7 section 10.1.5)."""

    @abstractmethod
    async def n_delete(self, sop_class_uid: str, sop_instance_uid: str) -> Status:
        """N-DELETE (PS3.7 section 10.1.6)."""

    @abstractmethod
    async def release(self) -> None:
        """Release (PS3.8 section 7.2); what is outstanding is stopped first. A peer that does not answer is aborted."""

    @abstractmethod
    async def abort(self) -> None:
        """Abort (PS3.8 section 7.3), and give back everything. Harmless when it is over already."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.release()
        else:
            with anyio.CancelScope(shield=True):
                await self.abort()

    def __repr__(self) -> str:
        state = "established" if self.is_established else "over"
        return f"<{type(self).__name__} with {self.modality}, {state}, {len(self.accepted)} contexts>"


# Where each engine's `request(modality, calling_ae_title, contexts, phases)` is; imported when first used.
_ENGINES: dict[str, str] = {"native": "asyncdicom.association.native", "pynetdicom": "asyncdicom.association.bridge"}


def resolve_engine(engine: Engine | None, covering: Container[str] = _ENGINES) -> Engine:
    """The engine that will serve: the one that is asked for, by default the native one; the bridge where that covers less.

    :param covering: the engines that cover what is wanted
    :raises ConfigurationError: when there is no engine of that name
    """
    if engine not in (None, "native", "pynetdicom"):
        raise ConfigurationError("engine", engine, 'write "native" or "pynetdicom"')
    wanted: Engine = engine or "native"
    return wanted if wanted in covering else "pynetdicom"


@functools.cache
def _requestor(engine: Engine) -> Callable[..., Awaitable[Association]]:
    request: Callable[..., Awaitable[Association]] = importlib.import_module(_ENGINES[engine]).request
    return request


@asynccontextmanager
async def associate(
    modality: Modality,
    *,
    calling_ae_title: str | None = None,
    contexts: Sequence[PresentationContext] | None = None,
    engine: Engine | None = None,
    query: Query | None = None,
    phases: Phases | None = None,
    observer: Observer = NULL_OBSERVER,
) -> AsyncIterator[Association]:
    """Establish an association; leaving the block releases it, leaving it by an exception aborts it.

    :param modality: with whom
    :param calling_ae_title: how we introduce ourselves, unless the modality says otherwise
    :param contexts: presentation contexts to propose; default :data:`DEFAULT_CONTEXTS`
    :param engine: ``native`` or ``pynetdicom``
    :param query: whose extended negotiation is to be proposed
    :param phases: filled as the phases pass, also when the association fails
    :param observer: told when the association opens and closes
    :raises OperationError: when the association cannot be had; its class and ``reason`` say why
    """
    phases = Phases() if phases is None else phases
    title = modality.calling_ae_title or check_ae_title(calling_ae_title or DEFAULT_AE_TITLE, "calling_ae_title")
    proposed = tuple(contexts) if contexts is not None else DEFAULT_CONTEXTS
    if not 1 <= len(proposed) <= uid.MAX_CONTEXTS:
        raise ConfigurationError("contexts", len(proposed), "propose between 1 and 128 presentation contexts")
    request = _requestor(resolve_engine(engine or modality.engine))
    observer.scu_association_opened(modality.name)
    try:
        async with await request(modality, title, proposed, phases, query) as association:
            yield association
    finally:
        observer.scu_association_closed(modality.name)


@dataclass(frozen=True)
class StoreRequest:
    """A request for C-STORE, to be sent once, over the association that made it."""

    context: AcceptedContext
    command: Command
    instance: Instance


class Stopwatch:
    """Adds the seconds of a ``with`` block to one phase."""

    def __init__(self, phases: Phases, phase: str) -> None:
        self._phases = phases
        self._phase = phase

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        spent = time.monotonic() - self._started
        setattr(self._phases, self._phase, (getattr(self._phases, self._phase) or 0.0) + spent)
