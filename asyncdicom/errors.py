"""Every error that asyncdicom raises, in one tree.

::

    AsyncDicomError
    ├── ConfigurationError            a setting is wrong: where, what, and what to write instead
    │   └── ConfigurationErrors       every mistake of a configuration at once
    ├── DatasetError                  a dataset or file cannot be used: which, and why
    ├── TooManyMatches                what was asked for has more matches than are merged in memory
    ├── ArchiveError                  the archive cannot keep an object
    │   └── ArchiveFull               no space: the peer gets 0xA700
    ├── DeliveryFailed                a target did not take an event
    └── OperationError                an operation on a peer did not succeed; ``reason`` says why
        ├── ResolveFailed             resolve_failed
        ├── ConnectRefused            connect_refused
        ├── ConnectTimeout            connect_timeout
        ├── TLSFailed                 tls_failed
        ├── AssociationRejected       rejected_permanent | rejected_transient
        ├── NoPresentationContext     no_context
        ├── AssociateTimeout          associate_timeout
        ├── OperationTimeout          operation_timeout
        ├── AssociationAborted        aborted
        ├── ConnectionLost            connection_lost
        ├── ProtocolError             protocol_error
        └── FailureStatus             failure_status

``reason`` is a member of the closed set :class:`asyncdicom.outcome.Reason`, written here as a plain string so that this
module, at the bottom of the house, imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class AsyncDicomError(Exception):
    """The root: ``except AsyncDicomError`` catches everything that is ours."""


class ConfigurationError(AsyncDicomError):
    """A setting is wrong.

    :param path: where, as the user writes it (``scp.port``, ``modality[1].name``)
    :param value: what stands there, as text; never a secret
    :param remedy: what to write instead
    """

    def __init__(self, path: str, value: object, remedy: str) -> None:
        super().__init__(f"{path} = {value!r}: {remedy}" if path else remedy)
        self.path = path
        self.value = value
        self.remedy = remedy


class ConfigurationErrors(ConfigurationError):
    """Every mistake of a configuration.

    :param errors: at least one
    :ivar errors: the mistakes: those of single keys first, then those between keys
    """

    def __init__(self, errors: Iterable[ConfigurationError]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors[0].path, self.errors[0].value, self.errors[0].remedy)
        self.args = ("\n".join(str(error) for error in self.errors),)

    def __iter__(self) -> Iterator[ConfigurationError]:
        return iter(self.errors)

    def __len__(self) -> int:
        return len(self.errors)


class DatasetError(AsyncDicomError):
    """A dataset or file cannot be used; the message names it and says why."""


class TooManyMatches(AsyncDicomError):
    """What was asked for has more matches than are merged in memory; the query must be narrowed, or not be merged."""


class ArchiveError(AsyncDicomError):
    """The archive could not keep an object; the sender must not be told that it did."""


class ArchiveFull(ArchiveError):
    """The archive has no space left, or less than its floor."""


class DeliveryFailed(AsyncDicomError):
    """A target did not take an event.

    :param detail: why, for a person; nothing of the event
    :param final: whether trying again is in vain
    """

    def __init__(self, detail: str, *, final: bool = False) -> None:
        super().__init__(detail)
        self.final = final


class OperationError(AsyncDicomError):
    """An operation on a peer did not succeed.

    :param detail: what happened, for a person; never patient data
    """

    reason: str = "protocol_error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or (type(self).__doc__ or "").partition("\n")[0].rstrip("."))

    @property
    def detail(self) -> str:
        """What happened, in one line."""
        return str(self.args[0])


class ResolveFailed(OperationError):
    """The host name has no address, or the resolver did not answer in time."""

    reason = "resolve_failed"


class ConnectRefused(OperationError):
    """Nothing listens at the address and port."""

    reason = "connect_refused"


class ConnectTimeout(OperationError):
    """The address did not answer within the connect timeout."""

    reason = "connect_timeout"


class TLSFailed(OperationError):
    """The TLS handshake failed."""

    reason = "tls_failed"


# PS3.8 Table 9-21; the key is (source, reason/diagnostic).
_REJECT_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
_REJECT_SOURCES = {1: "service user", 2: "service provider (ACSE)", 3: "service provider (presentation)"}


class AssociationRejected(OperationError):
    """The peer rejected the association (PS3.8 section 9.3.4).

    :param result: 1 permanent, 2 transient
    :param source: 1 service user, 2 provider (ACSE), 3 provider (presentation)
    :param diagnostic: the reason/diagnostic of PS3.8 Table 9-21
    """

    def __init__(self, result: int, source: int, diagnostic: int) -> None:
        self.result = result
        self.source = source
        self.diagnostic = diagnostic
        words = _REJECT_REASONS.get((source, diagnostic), f"reason {diagnostic}")
        kind = "permanently" if result == 1 else "transiently"
        super().__init__(f"rejected {kind}: {words}, by the {_REJECT_SOURCES.get(source, f'source {source}')}")
        self.reason = "rejected_permanent" if result == 1 else "rejected_transient"

    @property
    def transient(self) -> bool:
        """Whether asking again later can help."""
        return self.result != 1


class NoPresentationContext(OperationError):
    """The peer accepted no presentation context for the operation."""

    reason = "no_context"


class AssociateTimeout(OperationError):
    """The peer did not answer the request for association in time, or answered half."""

    reason = "associate_timeout"


class OperationTimeout(OperationError):
    """The peer did not answer the operation in time, or answered half."""

    reason = "operation_timeout"


class AssociationAborted(OperationError):
    """The association was aborted by A-ABORT.

    :param source: 0 service user, 2 service provider (PS3.8 section 9.3.8)
    :param diagnostic: the provider's reason
    """

    reason = "aborted"

    def __init__(self, detail: str = "", *, source: int | None = None, diagnostic: int | None = None) -> None:
        super().__init__(detail)
        self.source = source
        self.diagnostic = diagnostic


class ConnectionLost(OperationError):
    """The peer closed or reset the connection."""

    reason = "connection_lost"


class ProtocolError(OperationError):
    """The peer sent bytes that are not DICOM, a lying length, or a message out of turn."""

    reason = "protocol_error"


class FailureStatus(OperationError):
    """The peer answered with a status of failure (PS3.7 Annex C).

    :param status: the DIMSE status
    """

    reason = "failure_status"

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(detail or f"the peer answered with status 0x{status:04X}")
        self.status = status
