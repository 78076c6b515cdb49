"""asyncdicom: the asyncio service and library for fleets of DICOM devices.

Ask one::

    async with asyncdicom.associate(asyncdicom.Modality("ct1", "CT1", "10.1.2.3", 104)) as association:
        status = await association.echo()

Ask many::

    async with asyncdicom.Fleet.load("asyncdicom.toml") as fleet:
        async for outcome in fleet.echo():
            print(outcome.modality, outcome.reason)

Receive::

    async with asyncdicom.Archive("data/archive") as archive, asyncdicom.StorageSCP(archive, port=11112):
        await anyio.sleep_forever()

This is the only import path that users need. Names are loaded when they are first used, so that importing the package costs
next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from asyncdicom._version import __version__

if TYPE_CHECKING:
    from asyncdicom import testing
    from asyncdicom.archive import Archive, Stored
    from asyncdicom.association.commitment import CommitmentReport, InstanceReference, request_commitment
    from asyncdicom.association.contract import (
        Association,
        Response,
        associate,
        contexts_for,
        contexts_for_get,
    )
    from asyncdicom.association.instance import Instance
    from asyncdicom.association.query import Match, Query
    from asyncdicom.association.received import Received
    from asyncdicom.errors import (
        ArchiveError,
        ArchiveFull,
        AssociateTimeout,
        AssociationAborted,
        AssociationRejected,
        AsyncDicomError,
        ConfigurationError,
        ConfigurationErrors,
        ConnectionLost,
        ConnectRefused,
        ConnectTimeout,
        DatasetError,
        FailureStatus,
        NoPresentationContext,
        OperationError,
        OperationTimeout,
        ProtocolError,
        ResolveFailed,
        TLSFailed,
        TooManyMatches,
    )
    from asyncdicom.fleet.fleet import Fleet, Matches
    from asyncdicom.fleet.limits import Breaker
    from asyncdicom.fleet.retrieve import Ledger
    from asyncdicom.modality import TLS, Limits, Modality, Timeouts, UserIdentity
    from asyncdicom.observe import Observer
    from asyncdicom.outcome import AgreedContext, Outcome, Peer, Phases, Reason, Rejected, Status, SubOperations
    from asyncdicom.scp.access import Access, AllowRule, ServerTLS
    from asyncdicom.scp.commitment import CommitmentReports, StorageCommitment
    from asyncdicom.scp.identity import Identities
    from asyncdicom.scp.server import StorageSCP
    from asyncdicom.scp.users import HashedPasscode, Users
    from asyncdicom.scp.web_token import WebTokens
    from asyncdicom.upper_layer.context import PresentationContext

# Where each name lives; held against the imports above by the tests.
_HOMES = {
    # who they are
    **dict.fromkeys(("Limits", "Modality", "TLS", "Timeouts", "UserIdentity"), "asyncdicom.modality"),
    # we call them
    **dict.fromkeys(
        ("Association", "Response", "associate", "contexts_for", "contexts_for_get"), "asyncdicom.association.contract"
    ),
    **dict.fromkeys(("Match", "Query"), "asyncdicom.association.query"),
    "Instance": "asyncdicom.association.instance",
    "PresentationContext": "asyncdicom.upper_layer.context",
    **dict.fromkeys(("Fleet", "Matches"), "asyncdicom.fleet.fleet"),
    "Breaker": "asyncdicom.fleet.limits",
    "Ledger": "asyncdicom.fleet.retrieve",
    # they call us
    "StorageSCP": "asyncdicom.scp.server",
    **dict.fromkeys(("CommitmentReports", "StorageCommitment"), "asyncdicom.scp.commitment"),
    **dict.fromkeys(("CommitmentReport", "InstanceReference", "request_commitment"), "asyncdicom.association.commitment"),
    **dict.fromkeys(("Access", "AllowRule", "ServerTLS"), "asyncdicom.scp.access"),
    "Identities": "asyncdicom.scp.identity",
    **dict.fromkeys(("HashedPasscode", "Users"), "asyncdicom.scp.users"),
    "WebTokens": "asyncdicom.scp.web_token",
    "Received": "asyncdicom.association.received",
    **dict.fromkeys(("Archive", "Stored"), "asyncdicom.archive"),
    # what came back
    **dict.fromkeys(
        ("AgreedContext", "Outcome", "Peer", "Phases", "Reason", "Rejected", "Status", "SubOperations"), "asyncdicom.outcome"
    ),
    "Observer": "asyncdicom.observe",
    # what went wrong
    **dict.fromkeys(
        (
            "ArchiveError",
            "ArchiveFull",
            "AssociateTimeout",
            "AssociationAborted",
            "AssociationRejected",
            "AsyncDicomError",
            "ConfigurationError",
            "ConfigurationErrors",
            "ConnectRefused",
            "ConnectTimeout",
            "ConnectionLost",
            "DatasetError",
            "FailureStatus",
            "NoPresentationContext",
            "OperationError",
            "OperationTimeout",
            "ProtocolError",
            "ResolveFailed",
            "TLSFailed",
            "TooManyMatches",
        ),
        "asyncdicom.errors",
    ),
}

__all__ = [
    "TLS",
    "Access",
    "AgreedContext",
    "AllowRule",
    "Archive",
    "ArchiveError",
    "ArchiveFull",
    "AssociateTimeout",
    "Association",
    "AssociationAborted",
    "AssociationRejected",
    "AsyncDicomError",
    "Breaker",
    "CommitmentReport",
    "CommitmentReports",
    "ConfigurationError",
    "ConfigurationErrors",
    "ConnectRefused",
    "ConnectTimeout",
    "ConnectionLost",
    "DatasetError",
    "FailureStatus",
    "Fleet",
    "HashedPasscode",
    "Identities",
    "Instance",
    "InstanceReference",
    "Ledger",
    "Limits",
    "Match",
    "Matches",
    "Modality",
    "NoPresentationContext",
    "Observer",
    "OperationError",
    "OperationTimeout",
    "Outcome",
    "Peer",
    "Phases",
    "PresentationContext",
    "ProtocolError",
    "Query",
    "Reason",
    "Received",
    "Rejected",
    "ResolveFailed",
    "Response",
    "ServerTLS",
    "Status",
    "StorageCommitment",
    "StorageSCP",
    "Stored",
    "SubOperations",
    "TLSFailed",
    "Timeouts",
    "TooManyMatches",
    "UserIdentity",
    "Users",
    "WebTokens",
    "__version__",
    "associate",
    "contexts_for",
    "contexts_for_get",
    "request_commitment",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("asyncdicom.testing")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
