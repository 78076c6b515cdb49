"""Who plays: one modality for each way in which a device behaves, and what the service is to say of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asyncdicom.cli.simulate import studies
from asyncdicom.outcome import Reason
from asyncdicom.testing import Behaviour, Certificates, Fault, SimulatedModality

# Who sends to us: they are modalities of the fleet too, so that the page shows when the last image came.
SENDERS = ("CT1", "CT2", "MR1", "CR2")
# Seconds in which one that falls silent is expected to send, and its studies before it sends nothing any more.
EXPECTED_WITHIN = 5.0
LAST_STUDIES = 2

# On the engine pynetdicom the one may stand for the other.
_NOT_DICOM = frozenset((Reason.PROTOCOL_ERROR, Reason.ABORTED))


@dataclass(frozen=True)
class Role:
    """A modality of the demo.

    :ivar words: what it does, for the verdict
    :ivar expected: reasons that the service may give for its condition; the first is the usual one
    :ivar distrusted: its certificate is signed by an authority that the service does not trust
    :ivar falls_silent: it sends, and then no more, which the service is to notice
    """

    name: str
    behaviour: str
    words: str
    expected: tuple[Reason, ...] = (Reason.OK,)
    group: str = "scanners"
    distrusted: bool = False
    falls_silent: bool = False

    @property
    def speaks_tls(self) -> bool:
        """Whether it needs certificates."""
        return Behaviour.of(self.behaviour).fault is Fault.TLS


ROLES: tuple[Role, ...] = (
    Role("ct1", "healthy", "answers, and sends studies"),
    Role("ct2", "healthy", "answers, and sends studies"),
    Role("mr1", "healthy", "answers, and sends studies"),
    Role("pacs", "healthy", "answers, queries too", group="archives"),
    Role("vna", "slow:0.3", "answers late, queries too", group="archives"),
    Role("us1", "slow:0.8", "answers late"),
    Role("cr1", "no_release", "never answers a release"),
    Role("cr2", "healthy", "answers, and stops sending", falls_silent=True),
    Role("dx1", "unknown_user_item", "says more than anybody knows"),
    Role("mg1", "tls", "speaks TLS", group="tls"),
    Role("mg2", "tls", "speaks TLS, signed by a stranger", (Reason.TLS_FAILED,), "tls", distrusted=True),
    Role("xa1", "rejecting", "rejects us for good", (Reason.REJECTED_PERMANENT,)),
    Role("xa2", "rejecting_transient", "rejects us: busy", (Reason.REJECTED_TRANSIENT,)),
    Role("nm1", "no_context", "does not know C-ECHO", (Reason.NO_CONTEXT,)),
    Role("pt1", "refusing", "its port is closed", (Reason.CONNECT_REFUSED,)),
    Role("pt2", "black_hole", "is behind a silent firewall", (Reason.CONNECT_TIMEOUT,)),
    Role("rf1", "silent", "accepts, and says nothing", (Reason.ASSOCIATE_TIMEOUT,)),
    Role("rf2", "silent_after_associate", "associates, and says nothing", (Reason.OPERATION_TIMEOUT,)),
    Role("es1", "resetting", "resets the connection", (Reason.CONNECTION_LOST,)),
    Role("es2", "aborting_operation", "aborts the association", (Reason.ABORTED,)),
    Role("ot1", "garbage", "does not speak DICOM", tuple(sorted(_NOT_DICOM, reverse=True))),
    Role("ot2", "failure_status", "answers with a failure", (Reason.FAILURE_STATUS,)),
)


@asynccontextmanager
async def playing(trusted: Certificates) -> AsyncIterator[dict[str, SimulatedModality]]:
    """Have all of them listen on loopback, for the length of the block.

    :return: the simulated modalities by name
    """
    async with AsyncExitStack() as stack:
        modalities: dict[str, SimulatedModality] = {}
        for index, role in enumerate(ROLES):
            modality = SimulatedModality(
                role.behaviour,
                host=f"127.64.1.{index + 1}",
                ae_title=role.name.upper(),
                matches=studies(index, 3) if role.group == "archives" else (),
                keep="nothing",
                tls=trusted if role.speaks_tls else None,
            )
            modalities[role.name] = await stack.enter_async_context(modality)
        yield modalities


def table(role: Role, modality: SimulatedModality, certificates: Certificates) -> dict[str, Any]:
    """A role as a ``[[modality]]`` of the configuration."""
    fields: dict[str, Any] = {
        "name": role.name,
        "ae_title": modality.ae_title,
        "host": modality.host,
        "port": modality.port,
        "groups": [role.group],
    }
    if role.falls_silent:
        fields["arrivals"] = {"within": EXPECTED_WITHIN}
    if role.speaks_tls:
        ca = certificates.foreign_ca if role.distrusted else certificates.ca
        fields["tls"] = {"ca": str(ca), "server_name": "localhost"}
    return fields


def studies_of(title: str) -> int | None:
    """How many studies a sender has; None for one that never stops."""
    return next((LAST_STUDIES for role in ROLES if role.falls_silent and role.name.upper() == title), None)
