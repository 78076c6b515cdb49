"""What an SCP answers besides C-ECHO and C-STORE: normalized operations, whichever engine carries them (PS3.7 section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from asyncdicom.upper_layer.message import Command, CommandField

if TYPE_CHECKING:
    from asyncdicom.scp.served import ServedPeer

# Statuses of PS3.7 Annex C.
SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_INVOCATION = 0x0210
INVALID_ARGUMENT = 0x0115
NO_SUCH_SOP_INSTANCE = 0x0112
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213

# As many bytes of a dataset are taken for one of these operations.
MAX_DATASET = 4 << 20


@dataclass(frozen=True, slots=True)
class Operation:
    """What a peer asks of us.

    :ivar data: the dataset of the request, empty when there is none; at most 4 MiB
    :ivar transfer_syntax: how that is encoded
    """

    command: Command
    data: bytes
    transfer_syntax: str
    peer: ServedPeer


@dataclass(frozen=True, slots=True)
class Answer:
    """The response.

    :ivar elements: further elements of its command set, by keyword
    """

    status: int
    elements: Mapping[str, Any] = field(default_factory=dict)


# By SOP class and request.
Services = Mapping[tuple[str, int], "Service"]


class Service(Protocol):
    """A service class of normalized operations."""

    @property
    def answers(self) -> tuple[str, CommandField]:
        """The SOP class for which presentation contexts are accepted, with whatever roles are proposed; and the request."""
        ...

    async def perform(self, operation: Operation) -> Answer:
        """Do what was asked. Must not raise for anything that a peer can send."""
        ...
