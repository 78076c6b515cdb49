"""What came back: one closed set of results and reasons, used by library, commands, metrics and pages alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from asyncdicom.errors import AssociationRejected, FailureStatus, OperationError

Operation = Literal["echo", "find", "move", "get", "store"]
OPERATIONS: tuple[Operation, ...] = ("echo", "find", "move", "get", "store")

Phase = Literal["resolve", "connect", "tls", "associate", "operation", "release"]
PHASES: tuple[Phase, ...] = ("resolve", "connect", "tls", "associate", "operation", "release")


class Reason(StrEnum):
    """Why an operation ended as it did. Closed: every operation ends in exactly one of these."""

    OK = "ok"
    RESOLVE_FAILED = "resolve_failed"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_FAILED = "tls_failed"
    REJECTED_PERMANENT = "rejected_permanent"
    REJECTED_TRANSIENT = "rejected_transient"
    NO_CONTEXT = "no_context"
    ASSOCIATE_TIMEOUT = "associate_timeout"
    OPERATION_TIMEOUT = "operation_timeout"
    ABORTED = "aborted"
    CONNECTION_LOST = "connection_lost"
    PROTOCOL_ERROR = "protocol_error"
    FAILURE_STATUS = "failure_status"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    BREAKER_OPEN = "breaker_open"


# What to look at next, for a person in front of a red modality.
REMEDIES: dict[Reason, str] = {
    Reason.OK: "",
    Reason.RESOLVE_FAILED: "check the host name, and the resolver of this machine",
    Reason.CONNECT_REFUSED: "the machine answers but nothing listens: check the port, and whether its DICOM service runs",
    Reason.CONNECT_TIMEOUT: "check power, network cable, VLAN and firewall between here and the peer",
    Reason.TLS_FAILED: "check certificates on both sides: authority, expiry, name, and whether the peer speaks TLS at all",
    Reason.REJECTED_PERMANENT: "check both AE titles, and that the peer has this caller in its list",
    Reason.REJECTED_TRANSIENT: "the peer is at its limit: ask less often, or lower per_modality",
    Reason.NO_CONTEXT: "the peer does not support this service, or not in this transfer syntax",
    Reason.ASSOCIATE_TIMEOUT: "the port is open but no DICOM answers: restart the peer's DICOM service",
    Reason.OPERATION_TIMEOUT: "the peer associates but does not answer: look at its load and its database",
    Reason.ABORTED: "the peer aborted: look at its log for this moment",
    Reason.CONNECTION_LOST: "the peer or something in between cut the connection: look for resets in the firewall",
    Reason.PROTOCOL_ERROR: "what answers is not speaking DICOM correctly: check the port",
    Reason.FAILURE_STATUS: "the peer refused the operation: look up its status in its conformance statement",
    Reason.CANCELLED: "",
    Reason.DEADLINE: "the run's deadline passed first: raise it, or the concurrency",
    Reason.BREAKER_OPEN: "left alone for a while after repeated failures",
}


class Status(int):
    """A DIMSE status (PS3.7 Annex C): an integer with a readable ``repr``."""

    __slots__ = ()

    @property
    def category(self) -> Literal["Success", "Pending", "Cancel", "Warning", "Failure"]:
        """The category of PS3.7 Annex C.1."""
        value = int(self)
        if value == 0x0000:
            return "Success"
        if value in (0xFF00, 0xFF01):
            return "Pending"
        if value == 0xFE00:
            return "Cancel"
        if value in (0x0001, 0x0107, 0x0116) or 0xB000 <= value <= 0xBFFF:
            return "Warning"
        return "Failure"

    def __repr__(self) -> str:
        return f"0x{int(self):04X} ({self.category})"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Peer:
    """How the peer names its implementation (PS3.7 D.3.3.2)."""

    implementation_class_uid: str | None = None
    implementation_version: str | None = None


@dataclass(frozen=True, slots=True)
class AgreedContext:
    """A presentation context that both sides agreed on (PS3.8 section 9.3.3.2).

    :ivar abstract_syntax: the UID of what is asked for
    :ivar transfer_syntax: the UID of how it is encoded
    """

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """An A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""

    result: int | None = None
    source: int | None = None
    reason: int | None = None


@dataclass(frozen=True, slots=True)
class SubOperations:
    """The counts of C-MOVE and C-GET sub-operations (PS3.7 sections 9.1.3 and 9.1.4)."""

    remaining: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0

    @property
    def total(self) -> int:
        """All sub-operations that the peer spoke of."""
        return self.remaining + self.completed + self.failed + self.warning


@dataclass(slots=True)
class Phases:
    """Seconds spent in each phase; None where a phase was not reached."""

    resolve: float | None = None
    connect: float | None = None
    tls: float | None = None
    associate: float | None = None
    operation: float | None = None
    release: float | None = None

    def milliseconds(self) -> dict[str, float | None]:
        """The phases in milliseconds, rounded to a microsecond."""
        return {name: None if value is None else round(value * 1000, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation on one target.

    :ivar modality: the modality's name
    :ivar operation: one of :data:`OPERATIONS`
    :ivar reason: why it ended as it did
    :ivar status: the final DIMSE status, None when the peer gave none
    :ivar duration: seconds from start to end, waiting for a slot not included
    :ivar phases: seconds by phase
    :ivar peer: how the peer names its implementation
    :ivar contexts: the presentation contexts that both sides agreed on; none without an association
    :ivar rejected: the rejection, when there was one
    :ivar detail: what happened, in one line for a person; never patient data
    :ivar attempts: how often it was tried
    :ivar sub_operations: the peer's final counts (move, get)
    :ivar received: instances that arrived here, when that is known (get, and move to ourselves)
    :ivar matches: matches that came (find)
    :ivar instance: the SOP Instance UID (store)
    :ivar path: the file (store)
    :ivar certificate_expires: when the certificate that the peer showed expires, in seconds since the epoch; None without TLS
    :ivar tells: whether it says of the modality that it is up or down, and not only of a question that somebody had
    """

    modality: str
    operation: Operation
    reason: Reason
    status: Status | None = None
    duration: float = 0.0
    phases: Phases = field(default_factory=Phases)
    peer: Peer = field(default_factory=Peer)
    rejected: Rejected = field(default_factory=Rejected)
    detail: str = ""
    ae_title: str = ""
    host: str = ""
    port: int = 0
    attempts: int = 1
    sub_operations: SubOperations | None = None
    received: int | None = None
    matches: int | None = None
    instance: str | None = None
    path: Path | None = None
    certificate_expires: float | None = None
    tells: bool = True
    contexts: tuple[AgreedContext, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the operation did what was asked."""
        return self.reason is Reason.OK

    @property
    def remedy(self) -> str:
        """What to look at next."""
        return REMEDIES[self.reason]

    def as_json(self) -> dict[str, Any]:
        """The fields of ``echo --json``: every field always present, null where it does not apply."""
        return {
            "modality": self.modality,
            "ae_title": self.ae_title,
            "host": self.host,
            "port": self.port,
            "ok": self.ok,
            "reason": str(self.reason),
            "status": None if self.status is None else int(self.status),
            "duration_ms": round(self.duration * 1000, 3),
            "phases_ms": self.phases.milliseconds(),
            "peer": asdict(self.peer),
            "rejected": asdict(self.rejected),
        }


def reason_of(error: OperationError) -> Reason:
    """The reason that an error stands for."""
    return Reason(error.reason)


def rejection_of(error: BaseException) -> Rejected:
    """The rejection that an error carries, or an empty one."""
    if isinstance(error, AssociationRejected):
        return Rejected(error.result, error.source, error.diagnostic)
    return Rejected()


def status_of(error: BaseException) -> Status | None:
    """The DIMSE status that an error carries, if any."""
    return Status(error.status) if isinstance(error, FailureStatus) else None
