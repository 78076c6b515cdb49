"""How a simulated modality behaves: well, slowly, or badly in one particular way.

The text form, for a single modality and in a fleet's fault specification::

    behaviour     = fault [":" parameter]
    specification = [share-item *("," share-item)]
    share-item    = behaviour "=" share
    share         = number "%" | count

``silent=5%,reject=2%,slow:0.5=10%`` makes one modality in twenty silent, and so on; what is left is healthy. The parameters:

======================== ============================================== ==================
fault                    parameter                                      without it
======================== ============================================== ==================
``slow``                 seconds before each answer to an operation     ``0.5``
``rejecting``            source and diagnostic of PS3.8 Table 9-21      ``1.3``
``rejecting_transient``  how many requests, before it accepts           all of them
``failure_status``       the DIMSE status, decimal or ``0x``            ``0x0110``
``endless_pending``      ``ignore_cancel``                              C-CANCEL is obeyed
======================== ============================================== ==================
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum

from asyncdicom.errors import ConfigurationError


class Fault(StrEnum):
    """What is wrong with a modality. Each member's value is its name in a specification."""

    HEALTHY = "healthy"
    SLOW = "slow"
    """Answers each operation late."""
    REJECTING = "rejecting"
    """Rejects every request for association, permanently."""
    REJECTING_TRANSIENT = "rejecting_transient"
    """Rejects requests for association transiently: local limit exceeded."""
    NO_CONTEXT = "no_context"
    """Accepts the association and none of its presentation contexts."""
    REFUSING = "refusing"
    """Its port is closed."""
    BLACK_HOLE = "black_hole"
    """Its address never answers a connection request."""
    SILENT = "silent"
    """Accepts connections and never says a word."""
    SILENT_AFTER_ASSOCIATE = "silent_after_associate"
    """Accepts the association and never answers an operation."""
    STALLING = "stalling"
    """Sends half an A-ASSOCIATE-AC."""
    STALLING_OPERATION = "stalling_operation"
    """Sends half the P-DATA-TF of its answer to an operation."""
    RESETTING = "resetting"
    """Resets the connection (RST) on the request for association."""
    RESETTING_OPERATION = "resetting_operation"
    """Resets the connection on an operation."""
    CLOSING = "closing"
    """Closes the connection on the request for association."""
    CLOSING_OPERATION = "closing_operation"
    """Closes the connection on an operation."""
    GARBAGE = "garbage"
    """Answers the request for association with bytes that are not DICOM."""
    GARBAGE_OPERATION = "garbage_operation"
    """Answers an operation with bytes that are not DICOM."""
    LYING_LENGTH = "lying_length"
    """Answers the request for association with a PDU header of length 0xFFFFFFF0."""
    LYING_LENGTH_OPERATION = "lying_length_operation"
    """Answers an operation with a PDU header of length 0xFFFFFFF0."""
    ABORTING = "aborting"
    """Answers the request for association with an A-ABORT."""
    ABORTING_OPERATION = "aborting_operation"
    """Answers an operation with an A-ABORT."""
    FAILURE_STATUS = "failure_status"
    """Answers every operation with a status of failure."""
    ENDLESS_PENDING = "endless_pending"
    """Answers C-FIND, C-GET and C-MOVE with Pending until C-CANCEL comes, or for ever."""
    NO_RELEASE = "no_release"
    """Never answers an A-RELEASE-RQ."""
    UNKNOWN_USER_ITEM = "unknown_user_item"
    """Healthy, with a user-information sub-item in its A-ASSOCIATE-AC that nobody knows (PS3.8 D.2: to be ignored)."""
    WRONG_MESSAGE = "wrong_message"
    """Answers an operation with a response to another Message ID."""
    WRONG_MESSAGE_TYPE = "wrong_message_type"
    """Answers an operation with a response of another type."""
    TLS = "tls"
    """Healthy, behind TLS."""
    SILENT_TLS = "silent_tls"
    """Should speak TLS; accepts connections and never answers the handshake."""


# What people write first.
_ALIASES = {
    "reject": Fault.REJECTING,
    "reject_transient": Fault.REJECTING_TRANSIENT,
    "refuse": Fault.REFUSING,
    "stall": Fault.STALLING,
    "reset": Fault.RESETTING,
    "close": Fault.CLOSING,
    "abort": Fault.ABORTING,
}

#: Faults that show on a connection, before any association.
WITHOUT_ASSOCIATION = frozenset({Fault.REFUSING, Fault.BLACK_HOLE})


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A fault with its particulars.

    :ivar fault: what is wrong
    :ivar delay: seconds before each answer to an operation
    :ivar associate_delay: seconds before each answer to a request for association
    :ivar interval: seconds between two Pending responses
    :ivar result: of a rejection: 1 permanent, 2 transient (PS3.8 Table 9-21)
    :ivar source: of a rejection
    :ivar diagnostic: of a rejection
    :ivar status: the status of ``failure_status``
    :ivar honour_cancel: whether C-CANCEL ends an operation
    :ivar first: the fault shows on so many requests for association, then it is gone; None for ever. A port that is refusing or
        a black hole stays so
    """

    fault: Fault = Fault.HEALTHY
    delay: float = 0.0
    associate_delay: float = 0.0
    interval: float = 0.0
    result: int = 1
    source: int = 1
    diagnostic: int = 3
    status: int = 0x0110
    honour_cancel: bool = True
    first: int | None = None

    @classmethod
    def of(cls, behaviour: Behaviour | Fault | str) -> Behaviour:
        """Make a behaviour of whatever names one.

        :param behaviour: one already, a fault, or text such as ``slow:0.5``
        :raises ConfigurationError: when the text names none, or its parameter makes no sense
        """
        if isinstance(behaviour, Behaviour):
            return behaviour
        if isinstance(behaviour, Fault):
            return _plain(behaviour)
        name, colon, parameter = behaviour.strip().partition(":")
        name = name.strip().lower().replace("-", "_")
        try:
            fault = _ALIASES.get(name) or Fault(name)
        except ValueError:
            known = ", ".join(Fault)
            raise ConfigurationError("faults", behaviour, f"no such fault; there are {known}") from None
        return _with_parameter(fault, parameter.strip(), behaviour) if colon else _plain(fault)


def _plain(fault: Fault) -> Behaviour:
    if fault is Fault.SLOW:
        return Behaviour(fault, delay=0.5)
    if fault is Fault.REJECTING_TRANSIENT:
        return Behaviour(fault, result=2, source=3, diagnostic=2)
    return Behaviour(fault)


def _with_parameter(fault: Fault, parameter: str, text: str) -> Behaviour:
    match fault:
        case Fault.SLOW:
            seconds = _number(parameter)
            if seconds is None or not 0 <= seconds < math.inf:
                raise ConfigurationError("faults", text, "slow takes seconds: slow:0.5")
            return Behaviour(fault, delay=seconds)
        case Fault.REJECTING:
            source, dot, diagnostic = parameter.partition(".")
            if not (dot and _is_count(source, 255) and _is_count(diagnostic, 255)):
                raise ConfigurationError(
                    "faults", text, "rejecting takes source and diagnostic of PS3.8 Table 9-21: rejecting:1.7"
                )
            return Behaviour(fault, source=int(source), diagnostic=int(diagnostic))
        case Fault.REJECTING_TRANSIENT:
            if not _is_count(parameter, 1 << 31):
                raise ConfigurationError("faults", text, "rejecting_transient takes how many requests: rejecting_transient:3")
            return Behaviour(fault, result=2, source=3, diagnostic=2, first=int(parameter))
        case Fault.FAILURE_STATUS:
            try:
                status = int(parameter, 0)
            except ValueError:
                status = -1
            if not 0 <= status <= 0xFFFF:
                raise ConfigurationError("faults", text, "failure_status takes a DIMSE status: failure_status:0xA700")
            return Behaviour(fault, status=status)
        case Fault.ENDLESS_PENDING:
            if parameter != "ignore_cancel":
                raise ConfigurationError("faults", text, "endless_pending takes ignore_cancel, or nothing")
            return Behaviour(fault, honour_cancel=False)
        case _:
            raise ConfigurationError("faults", text, f"{fault} takes no parameter")


def assign(count: int, faults: str = "", *, seed: int = 0) -> list[Behaviour]:
    """Share out behaviours over a fleet.

    The same count, specification and seed always give the same result, spread over the whole fleet.

    :param count: modalities
    :param faults: a specification as in this module's docstring; empty for an all-healthy fleet
    :param seed: another seed, another spread
    :raises ConfigurationError: when the specification is wrong, or its shares exceed the fleet
    """
    shared: list[Behaviour] = []
    for item in filter(None, (part.strip() for part in faults.split(","))):
        text, equals, share = item.rpartition("=")
        if not equals:
            raise ConfigurationError("faults", item, "write fault=share, for example silent=5% or refusing=3")
        shared += [Behaviour.of(text)] * _share(share.strip(), count, item)
    if len(shared) > count:
        raise ConfigurationError("faults", faults, f"the shares add up to {len(shared)} of {count} modalities")
    healthy = Behaviour()
    behaviours = shared + [healthy] * (count - len(shared))
    random.Random(seed).shuffle(behaviours)
    return behaviours


def _share(share: str, count: int, item: str) -> int:
    if share.endswith("%"):
        percent = _number(share[:-1].strip())
        if percent is None or not 0 <= percent <= 100:
            raise ConfigurationError("faults", item, "a share in percent is from 0 to 100, for example silent=5%")
        return math.floor(count * percent / 100 + 0.5)
    if not _is_count(share, 1 << 31):
        raise ConfigurationError("faults", item, "a share is a percentage such as 5%, or a number of modalities")
    return int(share)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_count(text: str, limit: int) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= limit
